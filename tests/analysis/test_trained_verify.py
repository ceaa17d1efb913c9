"""Verification of directly trained networks: against the modules, against autograd, and by hand."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import images
from trained_networks import CLASSES, FAMILIES, SIZE, T, trained, watched

from s_resnet import Graph, evaluate, verify
from s_resnet.conversion import Context, passes
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.alphabet import MultiThreshold, Signed, Surrogate
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear
from s_resnet.graph.provenance import AppliedRecipe, Provenance
from s_resnet.kernels.surrogate.reference import Firing, fire_reference

X = images(6, SIZE)


def dormant(module, currents):
    """Neurons and images through which autograd passes nothing at any step, ``[B, *]``."""
    currents, firing = currents.detach().requires_grad_(), module.firing
    spikes = fire_reference(
        currents,
        Firing(
            thresholds=firing.thresholds,
            decay=firing.decay,
            reset=firing.reset,
            surrogate=firing.surrogate,
            width=firing.width,
            detach_reset=True,
        ),
    )
    (gradient,) = torch.autograd.grad((spikes * torch.rand_like(spikes)).sum(), currents)
    return (gradient == 0).all(0)


def channels(values):
    """The channels ``[C]`` of ``[..., C, H, W]`` after ``values`` as a mean over all else."""
    return values.double().mean((0, 2, 3))


@pytest.mark.parametrize("folded", [False, True], ids=["traced", "folded"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_layers_are_those_of_the_module(arch, folded):
    model, graph = trained(arch)
    graph = passes.fold_batchnorm(graph, Context()) if folded else graph
    modules = dict(model.named_modules())
    for steps in (1, T, 2 * T - 1):
        found = verify(graph, [X[:4], X[4:]], steps)
        logits, seen = watched(model, X, steps)
        before, known = watched(model, X, T)
        assert found.trained_for == T and [layer.name for layer in found.layers] == list(seen)
        for layer in found.layers:
            given, spikes = (part.detach() for part in seen[layer.name])
            asleep, most = dormant(modules[layer.name], given), len(modules[layer.name].firing.thresholds)
            full = (spikes == most).all(0)
            assert layer.rate == pytest.approx(spikes.double().mean().item(), rel=1e-12)
            assert layer.dormant == pytest.approx(asleep.double().mean().item())
            assert layer.channels["dormant"] == pytest.approx(channels(asleep).tolist())
            assert layer.channels["saturation"] == pytest.approx(channels(full).tolist())
            silent = (spikes == 0).transpose(2, 0).flatten(1).all(1).nonzero()[:, 0].tolist()
            assert layer.dead == tuple(silent)
            assert layer.saturated == tuple((channels(full) > 0.01).nonzero()[:, 0].tolist())
            mean, trained_mean = spikes.double().mean(0), known[layer.name][1].double().mean(0)
            assert layer.drift == pytest.approx(float((mean - trained_mean).norm() / trained_mean.norm()))
        assert found.logit_error == pytest.approx(float((logits - before).norm() / before.norm()), abs=1e-6)
        assert found.agreement == pytest.approx(float((logits.argmax(1) == before.argmax(1)).double().mean()))


def one(**neuron):
    """A single neuron that the image itself drives, trained for 4 steps."""
    op = Neuron(torch.tensor(0.5), decay=0.25, reset="zero", amplitude=1.0, surrogate=Surrogate("rectangle"))
    nodes = (
        Node("input", Input(), ()),
        Node("conv", Conv2d(torch.ones(1, 1, 1, 1), None), ("input",)),
        Node("neuron", replace(op, **neuron), ("conv",)),
        Node("flat", Flatten(), ("neuron",)),
        Node("fc", Linear(torch.tensor([[1.0], [-1.0]]), None), ("flat",)),
        Node("mean", Readout(torch.ones(())), ("fc",)),
    )
    return Graph(nodes, Provenance(AppliedRecipe("trained", 4))).validate()


def layer_of(graph, *values, steps=4):
    return verify(graph, [torch.tensor(values).view(-1, 1, 1, 1)], steps).layers[0]


def test_by_hand():
    """Decay 1/4, threshold 1/2, window (0, 1): u = 0.4, 0.5 (spike), 0.4, 0.5 ...; -1 and 1 never lie in it."""
    assert layer_of(one(), 0.4).rate == 0.5 and layer_of(one(), 0.4).dormant == 0
    asleep = layer_of(one(), -1.0, 1.0, 0.25)
    assert asleep.dormant == 2 / 3 and asleep.rate == 1 / 3 and asleep.saturated == (0,)
    assert layer_of(one(surrogate=Surrogate("rectangle", 2.5)), -0.5, 1.0).dormant == 0
    assert (
        layer_of(one(surrogate=Surrogate("triangle")), -0.75, 1.0).dormant == 1 / 2
    )  # the triangle's reach is (-0.5, 1.5)
    assert layer_of(one(surrogate=Surrogate("arctan")), -9.0, 9.0).dormant == 0
    # Three levels: 1.2 lies in the second window, fires the first at once, 1.2 + 0.3 + 0.075 ... never the second.
    levels = torch.tensor([0.6, 1.6, 2.6])
    several = one(threshold=levels[0], spikes=MultiThreshold(levels))
    assert layer_of(several, 1.2).rate == 1 and layer_of(several, 9.0).saturated == (0,)
    assert layer_of(several, 9.0).dormant == 1 and layer_of(several, 1.2, 9.0).dormant == 1 / 2
    assert layer_of(several, 9.0).rate == 3


def test_drift_by_hand():
    """0.4 spikes in every second step: after one step nothing, after 4 half; the logits 1/2 and -1/2."""
    found = verify(one(), [torch.full((1, 1, 1, 1), 0.4)], 1)
    assert found.layers[0].drift == 1.0 and found.logit_error == 1.0 and found.trained_for == 4
    assert "trained for T = 4" in found.verdict and found.layers[0].dead == (0,)
    again = verify(one(), [torch.full((1, 1, 1, 1), 0.4)], 4)
    assert again.layers[0].drift == again.logit_error == 0 and again.agreement == 1
    silent = verify(one(), [torch.full((1, 1, 1, 1), -1.0)], 4)
    assert silent.logit_error == 0 and "never fire" in silent.verdict and "No gradient" in silent.advice


def test_the_json_has_the_keys_of_a_converted_network(tmp_path):
    _, graph = trained("ds_resnet8")
    labels = torch.arange(len(X)) % CLASSES
    found = verify(graph, [(X, labels)], 1, network="a.snn")
    found.save(tmp_path / "a.json")
    entry = json.loads((tmp_path / "a.json").read_text())
    assert entry["schema"] == 1 and entry["trained_for"] == T and set(entry["top1"]) == {"snn", "trained"}
    assert entry["breaks"] is entry["worst"] is entry["cause"] is None
    assert all(layer["errors"] is None and layer["unsettled"] is None for layer in entry["layers"])
    shares = [float((graph(X, steps).argmax(1) == labels).double().mean()) for steps in (1, T)]
    assert [entry["top1"]["snn"], entry["top1"]["trained"]] == shares
    assert set(verify(graph, [(X, labels)], T).top1) == {"snn"}


def test_what_has_no_meaning_is_none():
    """One type for both kinds; the JSON of a converted network has no keys of a trained one."""
    found, other = (
        verify(one(), [torch.full((2, 1, 1, 1), 0.4)], 4),
        verify(one(surrogate=None), [torch.ones(2, 1, 1, 1)], 4),
    )
    assert type(found) is type(other) and type(found.layers[0]) is type(other.layers[0])
    assert found.breaks is found.worst is found.cause is other.trained_for is None
    assert found.layers[0].errors is found.layers[0].unsettled is None
    assert other.layers[0].dormant is other.layers[0].drift is None and other.worst == "neuron"
    trained, entry = found.to_dict(), other.to_dict()
    assert trained.keys() - entry.keys() == {"trained_for"}
    assert trained["layers"][0].keys() - entry["layers"][0].keys() == {"dormant", "drift"}


def test_the_table(tmp_path):
    result = verify(trained("ms_resnet8")[1], [X], 1, network="a.snn")
    header, table, logits, said = result.table().split("\n\n")
    rows = table.splitlines()
    assert rows[0].split() == ["layer", "rate", "dead", "dormant", "drift"]
    assert len(rows) == 1 + len(result.layers) and rows[1].split()[0] == "body.0.0.neuron1"
    assert f"(trained for {T})" in header and "agreement" in logits and result.verdict in said
    _, table, said = verify(trained("ms_resnet8")[1], [X], T).table().split("\n\n")
    assert "drift" not in table and "agreement" not in said
    assert "saturated" in verify(trained("ms_resnet8")[1], [X], 4).table()


def test_what_people_do_wrong():
    _, graph = trained("ms_resnet8")
    with pytest.raises(InvalidData, match="timesteps=0"):
        verify(graph, [X], 0)
    with pytest.raises(InvalidData, match="no images"):
        verify(graph, [], 2)
    with pytest.raises(InvalidData, match="label 9"):
        verify(graph, [(X, torch.full((len(X),), 9))], 2)
    mixed = [
        replace(n, op=replace(n.op, reset="subtract", spikes=Signed())) if n.name == "body.3" else n
        for n in graph.nodes
    ]
    with pytest.raises(InvalidData, match=r"body\.3"):
        verify(replace(graph, nodes=tuple(mixed)), [X], 2)


def test_events_step_by_step():
    """Events [T, B, C, H, W]: the same figures as the module's; fewer frames than steps are refused."""
    model, graph = trained("ms_resnet8")
    events = torch.stack([images(4, SIZE, seed=seed) for seed in range(T)])
    labels = torch.arange(4)
    found = verify(graph, [(events, labels)], T)
    logits, seen = watched(model, events, T)
    for layer in found.layers:
        given, spikes = seen[layer.name]
        asleep = dormant(dict(model.named_modules())[layer.name], given)
        assert layer.rate == pytest.approx(spikes.double().mean().item())
        assert layer.dormant == pytest.approx(asleep.double().mean().item())
    top1 = float((logits.argmax(1) == labels).double().mean())
    assert found.top1 == {"snn": pytest.approx(top1)} and found.images == 4
    report = evaluate(graph, [(events, labels)], T, at=(1, T))
    assert report.snn[1].top1 == pytest.approx(top1) and report.snn[1].agreement == 1 and report.images == 4
    with pytest.raises(InvalidData, match=rf"{T} frames of events for {T + 1} steps"):
        verify(graph, [events], T + 1)
