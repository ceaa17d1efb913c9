"""Networks for several T: what runs at each is what their numbers say, and files that lie are refused."""

from dataclasses import replace

import mutations
import pytest
import torch

from s_resnet import Graph, evaluate, load, save, simulate
from s_resnet.errors import InvalidArtifact, InvalidData
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.ops import AdaptiveAvgPool2d, Conv2d, Flatten, Input, Linear
from s_resnet.graph.provenance import AppliedRecipe, Provenance
from s_resnet.simulation import closed_form, features, simulate_with_early_exit

OWN, OTHER, STEPS = 4, 2, 5
ONE = torch.ones(())


def dyadic(*shape, seed, scale=8):
    return torch.randint(-scale, scale + 1, shape, generator=torch.Generator().manual_seed(seed)) / 8


WEIGHTS = {"conv1": dyadic(3, 2, 1, 1, seed=1), "conv2": dyadic(3, 3, 1, 1, seed=2), "fc": dyadic(4, 3, seed=3)}
NUMBERS = {
    "relu1/threshold": torch.tensor([2.0, 0.5, 1.0]),
    "relu1/correction": dyadic(OTHER, 3, seed=4),
    "relu2/threshold": torch.tensor([0.5, 4.0, 1.0]),
    "readout/weights": torch.tensor([0.25, 1.0]),
    "readout/correction": dyadic(4, seed=5),
}
IMAGES = dyadic(3, 2, 2, 2, seed=6, scale=24)


def network(schedule="streaming"):
    """Two layers with a residual branch; relu2 has a current at its own T and none at the other."""
    neuron = Neuron(ONE, 0.5, schedule=schedule)
    nodes = (
        Node("images", Input(), ()),
        Node("conv1", Conv2d(WEIGHTS["conv1"], None), ("images",)),
        Node("relu1", replace(neuron, correction=dyadic(OWN, 3, seed=7)), ("conv1",)),
        Node("conv2", Conv2d(WEIGHTS["conv2"], dyadic(3, seed=8)), ("relu1",)),
        Node("relu2", replace(neuron, correction=dyadic(3, seed=9)), ("conv2", "relu1")),
        Node("pool", AdaptiveAvgPool2d((1, 1)), ("relu2",)),
        Node("flat", Flatten(), ("pool",)),
        Node("fc", Linear(WEIGHTS["fc"], None), ("flat",)),
        Node("readout", Readout(2 * ONE), ("fc",)),
    )
    known = Provenance(recipe=AppliedRecipe("calibrated", OWN), input_shape=(2, 2, 2))
    return Graph(nodes, known, {OTHER: NUMBERS})


def by_hand(steps):
    """Answers ``[steps, B, N]`` with the numbers for the other T: a layer sends its threshold, and subtracts it."""

    def fires(v, current, threshold):
        v = v + current
        spikes = (v >= threshold).to(v)
        return v - spikes * threshold, spikes * threshold

    def conv(name, x):
        return torch.einsum("oi,bihw->bohw", WEIGHTS[name][:, :, 0, 0], x)

    first, second = (NUMBERS[f"relu{k}/threshold"].view(1, 3, 1, 1) for k in (1, 2))
    v1, v2 = (torch.zeros(3, 3, 2, 2) + threshold / 2 for threshold in (first, second))
    table, total, weighed, answers = NUMBERS["relu1/correction"], 0.0, 0.0, []
    for step in range(steps):
        row = table[step] if step < OTHER else table.mean(0)
        v1, sent = fires(v1, conv("conv1", IMAGES) + row.view(1, 3, 1, 1), first)
        v2, out = fires(v2, conv("conv2", sent) + dyadic(3, seed=8).view(1, 3, 1, 1) + sent, second)
        weight = NUMBERS["readout/weights"][min(step, OTHER - 1)]
        total, weighed = total + weight * (out.mean((2, 3)) @ WEIGHTS["fc"].T), weighed + weight
        answers.append(2 * total / weighed + NUMBERS["readout/correction"])
    return torch.stack(answers)


def test_at_another_t_it_runs_with_the_numbers_for_it():
    snn = network()
    other, expected = snn.at(OTHER), by_hand(STEPS)
    assert torch.allclose(simulate(other, IMAGES, STEPS, at=range(1, STEPS + 1)).outputs, expected, atol=1e-6)
    assert all(bool((node.op.threshold == 1).all()) for node in other.neurons)  # so that spikes take the event path
    assert other.tuned == {} and other.provenance.recipe.timesteps == OTHER
    assert torch.equal(other.run(IMAGES), snn.run(IMAGES))  # dyadic: the source network stays
    assert torch.equal(snn.at(OWN)(IMAGES, OWN), replace(snn, tuned={})(IMAGES, OWN))


def test_every_way_to_run_takes_the_numbers_of_its_t():
    """A call for T runs with those for T, or of the largest T below it, or else of the smallest."""
    snn, other, own = network(), network().at(OTHER), network().at(OWN)
    assert not torch.equal(other(IMAGES, 3), own(IMAGES, 3))
    for steps, chosen in ((1, other), (OTHER, other), (3, other), (OWN, own), (9, own)):
        assert snn.at(steps) is snn.at(chosen.provenance.recipe.timesteps)
        expected = chosen(IMAGES, steps)
        found = [
            snn(IMAGES, steps),
            simulate(snn, IMAGES, steps).outputs[-1],
            features(snn, IMAGES, steps, ["readout"])["readout"],
            simulate_with_early_exit(snn, IMAGES, steps, 0.9999).outputs,
        ]
        for one in found:
            assert torch.equal(one, expected), steps
    at = simulate(snn, IMAGES, OWN, at=(1, OTHER, 3, OWN))
    assert at.steps == (1, OTHER, 3, OWN)
    rows = [*simulate(other, IMAGES, 3, at=(1, OTHER, 3)).outputs, own(IMAGES, OWN)]
    assert torch.equal(at.outputs, torch.stack(rows))
    with pytest.raises(InvalidData, match=r"Choose it with graph\.at"):
        simulate(snn, IMAGES, 1, state=at.state)


def test_a_phased_network_in_closed_form_takes_them_too():
    plain = {name: value for name, value in NUMBERS.items() if name != "readout/weights"}
    snn = replace(network("phased"), tuned={OTHER: plain | {"relu1/correction": dyadic(3, seed=4)}})
    own = replace(snn.nodes[2], op=replace(snn.nodes[2].op, correction=None))
    snn = replace(snn, nodes=(*snn.nodes[:2], own, *snn.nodes[3:]))
    both = closed_form(snn, IMAGES, OWN, (OTHER, OWN)).outputs
    assert torch.equal(both, torch.stack([snn.at(OTHER)(IMAGES, OTHER), snn.at(OWN)(IMAGES, OWN)]))


def test_evaluation_marks_the_t_that_have_no_numbers():
    report = evaluate(network(), [(IMAGES, torch.tensor([0, 1, 2]))], STEPS, at=(1, OTHER, 3, OWN, STEPS))
    assert [row.fitted for row in report.snn] == [False, True, False, True, False]
    assert report.fitted == (OTHER, OWN) and report.to_dict()["fitted"] == [OTHER, OWN]
    assert f"numbers of its own for T = {OTHER}, {OWN}" in report.table()


def test_a_file_keeps_them(tmp_path):
    snn = network()
    save(snn, tmp_path / "net.snn")
    again = load(tmp_path / "net.snn").to(torch.float64)
    assert again.fitted == (OTHER, OWN) and again.tuned[OTHER]["relu1/threshold"].dtype == torch.float64
    assert torch.allclose(again(IMAGES.double(), OTHER), snn.at(OTHER)(IMAGES, OTHER).double(), atol=1e-6)


def test_save_refuses_what_load_would_refuse(tmp_path):
    snn = network()
    for wrong in ({}, {"relu1/threshold": torch.ones(7)}, {"relu1/threshold": -torch.ones(3)}):
        with pytest.raises(InvalidData):
            save(replace(snn, tuned={OTHER: wrong and {**NUMBERS, **wrong}}), tmp_path / "wrong.snn")
    assert not list(tmp_path.iterdir())


PLACE = f"T={OTHER}:"
EDITS = {
    "no threshold": lambda t, h: t.pop(f"{PLACE}relu1/threshold"),
    "thresholds of other channels": lambda t, h: t.update({f"{PLACE}relu1/threshold": torch.ones(7)}),
    "a threshold of zero": lambda t, h: t[f"{PLACE}relu2/threshold"].zero_(),
    "a negative threshold": lambda t, h: t[f"{PLACE}relu2/threshold"].neg_(),
    "a threshold that is none": lambda t, h: t[f"{PLACE}relu2/threshold"].fill_(float("nan")),
    "a tiny threshold": lambda t, h: t[f"{PLACE}relu1/threshold"].fill_(1e-38),
    "whole thresholds": lambda t, h: t.update({f"{PLACE}relu1/threshold": torch.ones(3, dtype=torch.int32)}),
    "a current of other channels": lambda t, h: t.update({f"{PLACE}relu1/correction": torch.ones(2, 7)}),
    "weights of no step": lambda t, h: t.update({f"{PLACE}readout/weights": torch.ones(0)}),
    "a negative weight of a step": lambda t, h: t[f"{PLACE}readout/weights"].neg_(),
    "a weight of a convolution": lambda t, h: t.update({f"{PLACE}conv1/weight": WEIGHTS["conv1"]}),
    "a number of no node": lambda t, h: t.update({f"{PLACE}relu9/threshold": torch.ones(3)}),
    "numbers of a T that is not told": lambda t, h: t.update({"T=3:relu1/threshold": torch.ones(3)}),
    "a T without numbers": lambda t, h: h["tuned"].append(3),
    "its own T": lambda t, h: h.update(tuned=[OWN]),
    "a true T": lambda t, h: h.update(tuned=[True]),
    "a T in a text": lambda t, h: h.update(tuned=[str(OTHER)]),
    "T in a number": lambda t, h: h.update(tuned=OTHER),
    "no T": lambda t, h: h.update(tuned=[0]),
    "no list of T": lambda t, h: h.pop("tuned"),
    "T beyond all": lambda t, h: h.update(tuned=[*range(OWN + 1, 99)]),
    "no T of its own": lambda t, h: h["provenance"].pop("recipe"),
    "several thresholds": lambda t, h: [
        next(n for n in h["nodes"] if n["name"] == "relu1")["settings"].update(spikes={"kind": "MultiThreshold"}),
        t.update({"relu1/spikes.thresholds": torch.tensor([1.0, 2.0])}),
        t.pop("relu1/correction"),
    ],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_sealed_file_with_numbers_that_do_not_fit_is_refused(edit, tmp_path):
    path = tmp_path / "net.snn"
    save(network(), path)
    header, tensors = mutations.unsealed(path.read_bytes())
    edit(tensors, header)
    path.write_bytes(mutations.sealed(header, tensors))
    with pytest.raises(InvalidArtifact):
        load(path)
