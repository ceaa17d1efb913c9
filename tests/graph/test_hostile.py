"""Hostile files and arguments: whatever they say, they end in a result or in one of our errors."""

import dataclasses
import json
import os
import re
import warnings
from pathlib import Path

import mutations
import numpy as np
import pytest
import torch
from conftest import images, randomized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_artifact import every_op, pictures
from test_cli import Program
from trained_networks import trained

import s_resnet
from s_resnet import RECIPES, Graph, convert, evaluate, load, save, simulate
from s_resnet.errors import ConversionError, InvalidArtifact, InvalidData
from s_resnet.graph import Neuron, Node, Readout, alphabet, inputs, neuron, ops, readout, validate
from s_resnet.graph.provenance import AppliedPass, AppliedRecipe, Provenance, Source
from s_resnet.graph.shapes import MOST, image_of, shapes
from s_resnet.kernels import Update, check, events
from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import cpp, eager, reference
from s_resnet.kernels.surrogate import cpp as surrogate_cpp
from s_resnet.kernels.surrogate.qcfs import qcfs
from s_resnet.kernels.surrogate.reference import Firing
from s_resnet.models import CifarResNet
from s_resnet.simulation import SimulationSettings, features

needs_compiler = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])
SIZE, T = mutations.SIZE, mutations.T


def converted(recipe="s-resnet", weights="float32", timesteps=None):
    model = randomized(CifarResNet(8, 5, 4))
    asked = RECIPES[recipe].at(T).with_weights(weights)
    return convert(model, [images(8, SIZE, seed=seed) for seed in range(2)], asked, timesteps=timesteps)


@pytest.fixture(scope="module")
def graphs():
    """Some of every kind: plain, with a max-pool, waiting, signed, in whole numbers, on a grid, directly trained."""
    made = {
        "plain": converted(),
        "pooled": convert(mutations.Pooled(), [images(8, SIZE)], "s-resnet-released", timesteps=T),
        "lagged": converted("calibrated-lagged"),
        "several": converted("calibrated", timesteps=(2, T)),
        "multilevel": converted("multilevel"),
        "phased, int8": converted("phased", weights="int8"),
        "signed, dyadic": converted("signed", weights="dyadic"),
    }
    return made | {name: trained(name, T, size=SIZE)[1] for name in ("ms_resnet8", "ds_resnet8")}


@pytest.fixture(scope="module")
def file(tmp_path_factory, graphs):
    """A .snn file of the plain network."""
    path = tmp_path_factory.mktemp("hostile") / "base.snn"
    save(graphs["plain"], path)
    return path


def put(tmp_path, file, edit):
    """A file with the header and the tensors edited, and sealed again."""
    header, tensors = mutations.unsealed(file.read_bytes())
    edit({node["name"]: node["settings"] for node in header["nodes"]}, tensors, header)
    path = tmp_path / "edited.snn"
    path.write_bytes(mutations.sealed(header, tensors))
    return path


# ---- the abstract run ----


def spikes(**settings):
    return lambda s, t, h: s["relu"].update(spikes=settings)


def gain(value):
    return {"kind": "SpikingWeights", "gain": value}


def surrogate(**settings):
    return lambda s, t, h: s["relu"].update(surrogate={"kind": "Surrogate", **settings})


def thresholds(settings, tensors, values):
    settings["relu"].update(spikes={"kind": "MultiThreshold"})
    tensors["relu/spikes.thresholds"] = torch.tensor(values)


def again(tensors, name):
    tensors[f"relu/{name}"] = tensors["relu/threshold"]


SETTINGS = {
    "fewer channels than come": lambda s, t, h: t.update({"layer1.0.conv2/weight": t["layer1.0.conv2/weight"][:, :1]}),
    "more channels than come": lambda s, t, h: t.update(
        {"layer1.0.conv2/weight": t["layer1.0.conv2/weight"].repeat(1, 2, 1, 1)}
    ),
    "a tensor for a number": lambda s, t, h: t.update({"relu/initial_potential": torch.full((4000, 1, 1, 1), 0.5)}),
    "thresholds of other channels": lambda s, t, h: t.update({"relu/threshold": torch.ones(7)}),
    "a threshold of zero": lambda s, t, h: t["relu/threshold"].zero_(),
    "a negative threshold": lambda s, t, h: t["relu/threshold"].neg_(),
    "no threshold": lambda s, t, h: t.update({"relu/threshold": torch.empty(0)}),
    "a stride of zero": lambda s, t, h: s["conv1"].update(stride=[0, 1]),
    "a kernel larger than the image": lambda s, t, h: s["conv1"].update(dilation=[9, 9]),
    "padding without end": lambda s, t, h: s["conv1"].update(padding=[30_000, 30_000]),
    "padding beyond 32 bits": lambda s, t, h: s["conv1"].update(padding=[2**31, 1]),
    "no groups": lambda s, t, h: s["conv1"].update(groups=0),
    "groups that do not divide": lambda s, t, h: s["conv1"].update(groups=3),
    "a gain of two": lambda s, t, h: s["conv1"].update(spiking=gain([1, 1])),
    "a gain that is none": lambda s, t, h: s["conv1"].update(spiking=gain(float("nan"))),
    "a decay above one": lambda s, t, h: s["relu"].update(decay=1.5),
    "a true decay": lambda s, t, h: s["relu"].update(decay=True),
    "amplitudes in a text": spikes(kind="Amplitudes", count="8"),
    "nine amplitudes": spikes(kind="Amplitudes", count=9),
    "true amplitudes": spikes(kind="Amplitudes", count=True),
    "a sign of two": spikes(kind="Amplitudes", count=2, signed=2),
    "no means": spikes(kind="Differential", count=0),
    "amplitudes with reset to zero": lambda s, t, h: s["relu"].update(
        spikes={"kind": "Amplitudes", "count": 2}, reset="zero"
    ),
    "means with a decay": lambda s, t, h: s["relu"].update(spikes={"kind": "Differential"}, decay=0.5),
    "a wait with a decay": lambda s, t, h: s["relu"].update(schedule="lagged", decay=0.5),
    "signs with means": spikes(kind="Differential", signed=True),
    "spikes in a text": lambda s, t, h: s["relu"].update(spikes="Binary"),
    "spikes in a list": lambda s, t, h: s["relu"].update(spikes=["Binary"]),
    "no spikes": lambda s, t, h: s["relu"].update(spikes=None),
    "spikes of no kind": spikes(),
    "spikes of a kind that is none": spikes(kind="Odd"),
    "spikes of a kind that is a list": spikes(kind=["Binary"]),
    "an operation for spikes": spikes(kind="ReLU"),
    "a neuron in a neuron": lambda s, t, h: [
        s["relu"].update(spikes={"kind": "Neuron"}),
        again(t, "spikes.threshold"),
    ],
    "a part of another field": spikes(kind="Surrogate", shape="arctan"),
    "a part of a part": spikes(kind="Amplitudes", count=2, more={"kind": "Binary"}),
    "a part for a number": lambda s, t, h: s["relu"].update(decay={"kind": "Binary"}),
    "thresholds without a tensor": spikes(kind="MultiThreshold"),
    "thresholds in a list": spikes(kind="MultiThreshold", thresholds=[1.0, 2.0]),
    "thresholds with thresholds by channel": lambda s, t, h: [
        thresholds(s, t, [1.0, 2.0]),
        t.update({"relu/threshold": torch.ones(4)}),
    ],
    "thresholds in no order": lambda s, t, h: thresholds(s, t, [2.0, 1.0]),
    "nine thresholds": lambda s, t, h: thresholds(s, t, [float(k) for k in range(1, 10)]),
    "no thresholds": lambda s, t, h: thresholds(s, t, []),
    "thresholds of another type": lambda s, t, h: thresholds(s, t, [1, 2]),
    "thresholds that wait": lambda s, t, h: [thresholds(s, t, [1.0, 2.0]), s["relu"].update(schedule="phased")],
    "thresholds that none has": lambda s, t, h: t.update({"relu/spikes.thresholds": torch.tensor([1.0, 2.0])}),
    "a surrogate in a text": lambda s, t, h: s["relu"].update(surrogate="arctan"),
    "a surrogate that is none": surrogate(shape="boxcar"),
    "a surrogate without width": surrogate(shape="arctan", width=0),
    "a surrogate of a width without end": surrogate(shape="arctan", width=1e30),
    "a surrogate that detaches twice": surrogate(shape="arctan", detach_reset=2),
    "whole numbers in one layer": lambda s, t, h: [
        s["relu"].update(integer={"kind": "IntegerNeuron"}),
        t.update({"relu/integer.threshold": torch.ones(4, dtype=torch.int32)}),
    ],
    "a weight in another type": lambda s, t, h: t.update({"conv1/weight": t["conv1/weight"].double()}),
    "a complex weight": lambda s, t, h: t.update({"conv1/weight": t["conv1/weight"].to(torch.complex64)}),
    "a weight that is none": lambda s, t, h: t["conv1/weight"].view(-1)[3:4].fill_(float("nan")),
    "an infinite bias": lambda s, t, h: t["conv1/bias"].fill_(float("inf")),
    "a weight without end": lambda s, t, h: t["conv1/weight"].fill_(1e38),
    "weights that add up": lambda s, t, h: [t["conv1/weight"].fill_(1e19), s["conv1"].update(spiking=gain(1e6))],
    "a gain in a number": lambda s, t, h: s["conv1"].update(spiking=2.0),
    "a spiking weight of another shape": lambda s, t, h: [
        s["conv1"].update(spiking=gain(1.0)),
        t.update({"conv1/spiking.weight": torch.ones(4, 3, 1, 1)}),
    ],
    "a spiking weight that none has": lambda s, t, h: t.update({"relu/spiking.weight": t["conv1/weight"]}),
    "whole weights without a tensor": lambda s, t, h: s["conv1"].update(integer={"kind": "IntegerWeights"}),
    "whole weights of a neuron": lambda s, t, h: [
        s["relu"].update(integer={"kind": "IntegerWeights"}),
        t.update({"relu/integer.weight": torch.ones(4, dtype=torch.int8)}),
    ],
    "a setting too many": lambda s, t, h: s["relu"].update(speed=2),
    "a tensor that no node has": lambda s, t, h: t.update({"relu/more": torch.ones(1)}),
    "answers for other classes": lambda s, t, h: t.update({"readout/correction": torch.ones(7)}),
    "no steps in the readout": lambda s, t, h: t.update({"readout/weights": torch.empty(0)}),
    "an integer as a name": lambda s, t, h: h["nodes"][0].update(name=3),
    "images of another shape": lambda s, t, h: h["provenance"].update(input_shape=[4, 8, 8]),
    "images without end": lambda s, t, h: h["provenance"].update(input_shape=[3, 0, 8]),
    "a deep list": lambda s, t, h: s["relu"].update(spikes=json.loads("[" * 900 + "]" * 900)),
    "a deep part": lambda s, t, h: s["relu"].update(spikes=json.loads('{"kind":' * 900 + "1" + "}" * 900)),
    "a scale of zero": lambda s, t, h: t["relu/scale"].zero_(),
    "a scale of zero in words": lambda s, t, h: h["provenance"]["calibration"]["scales"].update(relu=0),
    "a look at the source in a text": lambda s, t, h: h["provenance"].update(check="fine"),
    "a look at the source in texts": lambda s, t, h: h["provenance"].update(check={"mean": ["a"], "std": ["b"]}),
    "a mean of two": lambda s, t, h: h["provenance"].update(preprocessing={"size": 8, "resize": 8, "mean": [0, 0]}),
    "a source in a text": lambda s, t, h: h["provenance"].update(source="mine"),
    "steps without end": lambda s, t, h: h["provenance"]["recipe"].update(timesteps=2**31),
    "pixels without end": lambda s, t, h: h["provenance"].update(preprocessing={"size": 10**6, "resize": 10**6}),
}


@pytest.mark.parametrize("edit", SETTINGS)
def test_a_sealed_file_that_cannot_be_simulated_is_refused_at_load(tmp_path, file, edit):
    path = put(tmp_path, file, SETTINGS[edit])
    with pytest.raises(InvalidArtifact, match="damaged or edited") as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_the_file_itself_is_loaded(tmp_path, file, graphs):
    path = put(tmp_path, file, lambda s, t, h: s["conv1"].update(dilation=[1, 1]))
    assert torch.equal(load(path)(images(2, SIZE), T), graphs["plain"](images(2, SIZE), T))


def test_every_setting_of_every_operation_has_a_rule():
    kinds = [*vars(ops).values(), *vars(neuron).values(), *vars(readout).values()]
    known = {kind for kind in kinds if dataclasses.is_dataclass(kind) and hasattr(kind, "run")}
    known |= {part for kind in known for name in validate._RULES.get(kind, {}) for part in validate.parts(kind, name)}
    assert {*alphabet.SPIKES, alphabet.Surrogate, ops.SpikingWeights, neuron.IntegerNeuron} <= known
    known = {kind for kind in known if kind.__name__[0] != "_"}
    assert len(known) >= 16
    for kind in known - {ops.Op}:
        assert {field.name for field in dataclasses.fields(kind)} == set(validate._RULES.get(kind, {})), kind


def test_shapes_are_those_of_the_values(graphs):
    for name, graph in {**graphs, "every operation": every_op()}.items():
        x = pictures() if name == "every operation" else images(2, SIZE)
        found = shapes(graph.nodes, x.shape[1:])
        real = {node: tuple(value.shape[1:]) for node, value in graph.activations(x)}
        assert found == real and len(real) > 10, name
        # What no size is known of, and nothing that is known differs.
        vague = shapes(graph.nodes, image_of(graph.nodes, Provenance()))
        for node, shape in vague.items():
            assert len(shape) == len(real[node]) or node == "flat"
            assert all(one in (None, other) for one, other in zip(shape, real[node], strict=True)), (name, node)


def test_a_network_may_have_so_many_values_and_no_more():
    pad = Graph((Node("input", ops.Input(), ()), Node("pad", ops.Pad((4096, 4096, 0, 0)), ("input",))))
    rows = MOST // (2 * 4096 + 4 + 4)  # of 4 pixels, which come in as well
    assert shapes(pad.nodes, (1, rows, 4))["pad"] == (1, rows, 8196)
    with pytest.raises(InvalidData, match=f"at most {MOST}"):
        shapes(pad.nodes, (1, rows + 1, 4))


def test_save_writes_nothing_that_load_would_refuse(tmp_path, graphs):
    plain = graphs["plain"]
    first, *_, last = (node.name for node in plain.nodes)
    unread = Node("other", ops.Conv2d(torch.ones(1, 3, 1, 1), None), (first,))
    for nodes in (
        changed(plain, {"conv1": {"spiking": ops.SpikingWeights(gain=float("inf"))}}),
        (*plain.nodes[:-1], unread, plain[last]),
    ):
        with pytest.raises((InvalidData, ConversionError)):
            save(Graph(nodes, plain.provenance), tmp_path / "a.snn")
    assert os.listdir(tmp_path) == []


def test_what_becomes_of_the_file_does_not_change_the_network(tmp_path, graphs):
    """Overwritten in place or truncated; a view of the file would change, or end the process."""
    path, x = tmp_path / "live.snn", images(2, SIZE)
    for spoil in (lambda n: b"\0" * n, lambda n: b""):
        save(graphs["plain"], path)
        snn = load(path)
        with open(path, "r+b") as opened:
            content = spoil(path.stat().st_size)
            opened.write(content)
            opened.truncate(len(content))
        assert torch.equal(snn(x, T), graphs["plain"](x, T)) and torch.equal(snn.run(x), graphs["plain"].run(x))


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.snn")
    os.symlink("/dev/zero", tmp_path / "zero.snn")
    (tmp_path / "sparse.snn").touch()
    os.truncate(tmp_path / "sparse.snn", 2**40)
    for path in tmp_path.iterdir():
        with pytest.raises(InvalidArtifact, match=r"no regular file|more than"):
            load(path)


# ---- what is not finite ----


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_go_nowhere(tmp_path, graphs, value):
    model = randomized(CifarResNet(8, 5, 4))
    model.state_dict()["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    for batches in ([images(4, SIZE)] * 2, None):
        with pytest.raises(
            InvalidData, match=r"from layer2\.0\.conv1 on|layer2\.0\.conv1: weight, got 1 of \d+ values NaN"
        ):
            convert(model, batches, timesteps=T)
    broken = spoiled(graphs["plain"], "layer2.0.conv1", value)
    for use in (lambda: save(broken, tmp_path / "a.snn"), lambda: broken(images(2, SIZE), T)):
        with pytest.raises(InvalidData, match=r"layer2\.0\.conv1: weight, got 1 of"):
            use()
    with pytest.raises(InvalidData, match="answers that are NaN"):
        broken.run(images(2, SIZE))


def changed(graph, settings):
    """Its nodes with other settings, by name."""
    made = {node.name: dataclasses.replace(node.op, **settings.get(node.name, {})) for node in graph.nodes}
    return tuple(Node(node.name, made[node.name], node.inputs) for node in graph.nodes)


def spoiled(graph, name, value):
    weight = graph[name].op.weight.clone()
    weight.view(-1)[0] = value
    return Graph(changed(graph, {name: {"weight": weight}}), graph.provenance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_go_nowhere(graphs, value):
    snn, x = graphs["plain"], images(3, SIZE)
    x[1, 0, 0, 0] = value
    for use in (
        lambda: snn(x, T),
        lambda: snn.run(x),
        lambda: simulate(snn, x, T, SimulationSettings(coding="poisson")),
        lambda: evaluate(snn, [(x, torch.tensor([1, 2, 3]))], timesteps=T),
        lambda: s_resnet.simulation.simulate_with_early_exit(snn, x, T, 0.9),
        lambda: snn(x.expand(T, *x.shape), T),
    ):
        with pytest.raises(InvalidData, match=r"not finite.* in 1 of 3 images \(first: image 1\)"):
            use()


@pytest.mark.parametrize("events", [False, True], ids=["images", "events"])
def test_answers_of_images_that_are_not_finite_are_marked_where_nothing_is_read_back(events):
    x, outputs = images(3, SIZE), torch.ones(2, 3, 5)
    if events:
        x = x.expand(T, *x.shape).clone()
    assert torch.equal(inputs.marked(outputs, x), outputs)
    x[(1, 1) if events else 1][0, 0, 0] = float("nan")
    got = inputs.marked(outputs, x)
    assert got[:, 1].isnan().all() and torch.equal(got[:, [0, 2]], outputs[:, [0, 2]])


def test_answers_that_leave_their_range_are_not_ranked():
    nodes = (
        Node("input", ops.Input(), ()),
        Node("neuron", Neuron(torch.tensor(1.0)), ("input",)),
        Node("flat", ops.Flatten(), ("neuron",)),
        Node("fc", ops.Linear(torch.full((2, 3), 2.0**63), None), ("flat",)),
        Node("readout", Readout(torch.tensor(2.0**64)), ("fc",)),
    )
    snn = Graph(nodes).validate()
    assert snn(torch.full((1, 3, 1, 1), 0.1), 2).isfinite().all()
    with pytest.raises(InvalidData, match="simulate: got answers"):
        snn(torch.full((1, 3, 1, 1), 9.0), 2)


# ---- states ----


def test_a_state_of_another_network_is_refused(graphs):
    x = images(2, SIZE)
    state = simulate(graphs["plain"], x, 1).state
    for name, say in (("pooled", "shapes"), ("multilevel", "shapes"), ("ds_resnet8", "none of")):
        other = graphs[name]
        with pytest.raises(InvalidData, match=say):
            simulate(other, x, 1, state=state)
    with pytest.raises(InvalidData, match="2 images and a state of 3"):
        simulate(graphs["plain"], x, 1, state=simulate(graphs["plain"], images(3, SIZE), 1).state)
    with pytest.raises(InvalidData, match="shapes"):
        simulate(graphs["plain"], images(2, 2 * SIZE), 1, state=state)
    for change in (
        lambda v: v.double(),
        lambda v: v[..., :1],
        lambda v: v[0, 0, 0, 0],
        lambda v: torch.zeros(2, 4000, 8, 8),
    ):
        memory = dict(state.memory)
        name = graphs["plain"].neurons[0].name
        memory[name] = tuple(map(change, memory[name]))
        with pytest.raises(InvalidData, match="state, got a memory"):
            simulate(graphs["plain"], x, 1, state=dataclasses.replace(state, memory=memory))


def test_a_state_without_a_pool_is_refused(graphs):
    """It would start anew, and nothing would say so."""
    x = images(2, SIZE)
    state = simulate(graphs["pooled"], x, 1).state
    for name in state.memory:
        memory = {other: held for other, held in state.memory.items() if other != name}
        with pytest.raises(InvalidData, match=f"none of {name}"):
            simulate(graphs["pooled"], x, 1, state=dataclasses.replace(state, memory=memory))


# ---- kernels ----

KERNELS = {"reference": reference, "cpu": eager, "host": cpp}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"current": torch.zeros(4, 2, 3, 5, 4)},
        {"current": torch.zeros(4, 3, 3, 5, 5)},
        {"current": torch.zeros(2, 3, 5, 5)},
        {"current": torch.zeros(())},
        {"v": torch.zeros(())},
        {"v": torch.zeros(3, 3, 5, 5)},
        {"shortcut": torch.zeros(3, 2, 3, 5, 5)},
        {"shortcut": torch.zeros(4, 2, 1, 5, 5)},
        {"counts": torch.zeros(4, 1, dtype=torch.int32)},
        {"counts": torch.zeros(3, 2, dtype=torch.int32)},
        {"counts": torch.zeros(0, dtype=torch.int32)},
        {"threshold": torch.ones(7, 1, 1)},
        {"threshold": torch.ones(4000, 1, 1, 1)},
        {"bias": torch.ones(2, 3, 5, 6)},
        {"shortcut": torch.zeros(4, 2, 3, 5, 5), "shortcut_scale": torch.ones(2, 1, 1)},
        {"emitted": torch.zeros(2, 3, 5, 4)},
        {"reset": "hard"},
        {"v": torch.zeros(2, 3, 5, 5, dtype=torch.int32), "decay": 0.5},
    ],
    ids=str,
)
def test_a_membrane_kernel_refuses_what_does_not_fit(kernel, wrong):
    given = {"current": torch.zeros(4, 2, 3, 5, 5), "v": torch.zeros(2, 3, 5, 5), "threshold": torch.ones(()), **wrong}
    counts = given.get("counts")
    kept = None if counts is None else counts.clone()
    with pytest.raises(InvalidData, match="kernel: "):
        KERNELS[kernel].integrate_and_fire(given.pop("current"), given.pop("v"), Update(**given))
    assert counts is None or torch.equal(counts, kept)


def found_and_packed(channels=3, size=(5, 6), out=4, kernel=3, batch=2):
    found = events.find(torch.ones(4 * batch, channels, *size, dtype=torch.uint8))
    packed = events.pack(torch.ones(out, channels, kernel, kernel), (1, 1), (1, 1), size)
    return found, packed


@needs_compiler
def test_event_kernels_refuse_what_does_not_fit():
    found, packed = found_and_packed()
    assert events.conv2d(found, packed).shape == (8, 4, 5, 6)
    wrong = [
        (found, found_and_packed(channels=1)[1]),  # fewer rows than the spikes name
        (found, found_and_packed(size=(5, 12))[1]),  # laid out for other widths
        (found, found_and_packed(size=(6, 6))[1]),
        (dataclasses.replace(found, shape=(8, 3, 5, 7)), packed),
        (dataclasses.replace(found, shape=(9, 3, 5, 6)), packed),
        (dataclasses.replace(found, ids=found.ids[:-1]), packed),
        (dataclasses.replace(found, start=found.start[:-1]), packed),
        (found, dataclasses.replace(packed, rows=packed.rows[:-1])),
        (found, dataclasses.replace(packed, out_channels=40)),
        (found, dataclasses.replace(packed, out_size=(9, 9))),
    ]
    for spikes, weight in wrong:
        with pytest.raises(InvalidData, match="kernel: events"):
            events.conv2d(spikes, weight)
    v = torch.zeros(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    current, one = events.Currents(found, packed, 4), torch.ones(())
    assert events.integrate_and_fire(current, v, Update(threshold=one))[0].shape == (4, 2, 4, 5, 6)
    for other in (v[:1], v[:, :3], torch.zeros(2, 4, 5, 7), v[..., 0], torch.zeros(20, 4, 5, 6)):
        with pytest.raises(InvalidData, match="kernel: "):
            events.integrate_and_fire(current, other, Update(threshold=one))
    with pytest.raises(InvalidData, match="8 images for 3 steps"):
        events.integrate_and_fire(events.Currents(found, packed, 3), v, Update(threshold=one))
    with pytest.raises(InvalidData, match="counts"):
        events.integrate_and_fire(current, v, Update(threshold=one, counts=torch.zeros(4, 1, dtype=torch.int32)))


@needs_compiler
@pytest.mark.parametrize(
    "spikes",
    [torch.ones(1, 2, 3), torch.ones(1, 2, 3, 3), torch.ones(1, 0, 3, 3, dtype=torch.uint8),
     torch.ones(1, 64, 2, 1100, dtype=torch.uint8)],
    ids=lambda x: f"{x.dtype} {list(x.shape)}",
)  # fmt: skip
def test_spikes_that_cannot_be_counted_are_refused(spikes):
    with pytest.raises(InvalidData, match="kernel: events"):
        events.find(spikes)


@pytest.mark.parametrize(
    "arguments",
    [((1, 1), (0, 0), (2, 2)), ((0, 1), (1, 1), (5, 5)), ((1, 1), (-1, 0), (5, 5)), ((1, 1), (1, 1), (5, 30_000))],
    ids=str,
)
def test_weights_that_cannot_be_laid_out_are_refused(arguments):
    with pytest.raises(InvalidData, match="kernel: events"):
        events.pack(torch.ones(4, 3, 3, 3), *arguments)


@needs_compiler
def test_training_kernels_refuse_what_does_not_fit():
    current, out, firing = torch.zeros(3, 2, 4, 5), torch.zeros(3, 2, 4, 5), Firing((1.0,))
    scale = torch.ones(4)
    surrogate_cpp.run(current, None, out, firing, (scale, scale))
    wrong = [
        (current.half(), None, out.half(), None),
        (current, None, out[:2], None),
        (current, None, out.double(), None),
        (current, torch.zeros(3, 2, 4, 4), out, None),
        (current.transpose(2, 3), None, out.transpose(2, 3), (scale, scale)),
        (current[..., ::2], None, out[..., ::2], None),
        (current, None, out.expand(3, 2, 4, 5)[::1].flip(0)[:, :1].expand(3, 2, 4, 5), None),
        (current, None, out, (torch.ones(3), scale)),
        (current, None, out, (scale.double(), scale)),
        (current, None, out, (torch.ones(8)[::2], scale)),
        (torch.zeros(3, 2), None, torch.zeros(3, 2), (scale, scale)),
    ]
    for one, grad, result, affine in wrong:
        with pytest.raises(InvalidData, match="kernel: fire"):
            surrogate_cpp.run(one, grad, result, firing, affine)
    p = torch.zeros(6, 4, 5)
    crossed, gaps = p.transpose(0, 1).contiguous().transpose(0, 1), p[..., ::2]
    for one, other in ((p, p[:3]), (p, p.double()), (p, crossed), (gaps, gaps), (p.half(), p.half())):
        with pytest.raises(InvalidData, match="kernel: normalize"):
            surrogate_cpp.sums(one, other)
    with pytest.raises(InvalidData, match="kernel: normalize: coefficients"):
        surrogate_cpp.normalized_gradient(p, p.clone(), torch.zeros(3, 4))


def test_qcfs_refuses_what_does_not_fit():
    x = torch.zeros(2, 3, 4, 4)
    for threshold, levels in ((torch.ones(4, 1, 1, 1, 1), 4), (torch.ones(5, 1, 1), 4), (torch.ones(()), 0)):
        with pytest.raises(InvalidData, match="kernel: qcfs"):
            qcfs(x, threshold, levels)


def test_results_of_the_cuda_kernel_lie_as_the_membrane():
    v = torch.zeros(2, 3, 4)
    check.results(v, torch.zeros(5, 2, 3, 4), torch.zeros(2, 3, 4))
    for spikes, after in (
        (torch.zeros(5, 2, 3, 5), v.clone()),
        (torch.zeros(5, 2, 4, 3).transpose(2, 3), v.clone()),
        (torch.zeros(5, 2, 3, 4), torch.zeros(2, 4, 3).transpose(1, 2)),
        (torch.zeros(5, 2, 3, 4), v.double()),
    ):
        with pytest.raises(InvalidData, match="kernel: "):
            check.results(v, spikes, after)


# ---- provenance and the terminal ----


@pytest.mark.parametrize("name", ["source", "data", "recipe", "calibration", "preprocessing", "classes", "input_shape"])
def test_a_name_that_we_read_is_not_free(name, graphs):
    with pytest.raises(InvalidData, match=f"provenance: {name}, got 'my own'"):
        graphs["plain"].with_provenance(**{name: "my own"})
    with pytest.raises(InvalidData, match=f"provenance: {name}, got 'my own'; expected nothing under that name in"):
        graphs["plain"].with_provenance(extra={name: "my own"})
    assert graphs["plain"].with_provenance(extra={"mine": "my own"}).provenance.extra == {"mine": "my own"}


@pytest.mark.parametrize("left", ["source", "recipe", "data", "calibration", "classes", "check"])
def test_a_network_that_says_less_of_itself_runs_all_the_same(left, tmp_path, monkeypatch, capfd, graphs):
    """An entry without its parts, and no entry at all."""
    settings = s_resnet.data.preprocessing_for(SIZE)
    pictures = mutations.data(classes=5)
    np.savez(tmp_path / "x.npz", x=pictures.pixels, y=np.array(pictures.labels))
    monkeypatch.chdir(tmp_path)
    for name in ("lagged", "ms_resnet8"):
        whole = graphs[name].with_provenance(preprocessing=settings)
        known = whole.provenance.to_json()
        known.pop(left, None)
        for index, said in enumerate((known, {**known, left: [] if left == "classes" else {}})):
            path = f"{name}{index}.snn"
            save(Graph(whole.nodes, Provenance.from_json(said)), path)
            program = Program(monkeypatch, capfd)
            for words in (
                ("inspect", path),
                ("evaluate", path, "--data", "x.npz"),
                ("verify", path, "--data", "x.npz"),
            ):
                more = () if words[0] == "inspect" else ("--timesteps", T, "--limit", 4)
                code, _, err = program(*words, *more)
                assert code == 0 or (name == "ms_resnet8" and left == "recipe" and "trained for" in err), (words, err)


ESCAPE = "\x1b]0;owned\x07"


def test_text_from_files_reaches_the_terminal_without_its_escapes(tmp_path, monkeypatch, capfd, graphs):
    snn = graphs["plain"]
    evil = {node.name: node.name.replace("relu", f"re{ESCAPE}lu") for node in snn.nodes}
    nodes = tuple(Node(evil[node.name], node.op, tuple(evil[name] for name in node.inputs)) for node in snn.nodes)
    snn = Graph(nodes, snn.provenance).with_provenance(
        recipe=AppliedRecipe(ESCAPE, T, (AppliedPass(ESCAPE),)),
        classes=(ESCAPE, "\ud800", *"234"),
        source=Source(arch=ESCAPE, name=ESCAPE, classes=5),
        preprocessing=s_resnet.data.preprocessing_for(SIZE),
    )
    monkeypatch.chdir(tmp_path)
    save(snn, "esc.snn")
    pictures = mutations.data(classes=5)
    np.savez("x.npz", x=pictures.pixels, y=np.array(pictures.labels))
    program = Program(monkeypatch, capfd)
    shown = 0
    data = ("--data", "x.npz")
    for words in (
        ("inspect",),
        ("evaluate", "--timesteps", 1, *data),
        ("verify", "--timesteps", 2, *data),
        ("report", "--timesteps", 2, "-o", "page", *data),
        ("export", "--format", "nir", "-o", "esc.nir"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # they reach the terminal as well
            code, out, err = program(words[0], "esc.snn", *words[1:])
        assert code == 0, err
        shown += "owned" in out + err
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x9b]", out + err.replace("\r", "")), words
    assert shown >= 2
    page = Path("page", "index.html").read_text()
    assert "owned" in page and not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x9b]", page)
    with pytest.raises(InvalidData) as caught:
        features(snn, images(2, SIZE), T, [ESCAPE])
    assert str(caught.value).isprintable()


# ---- short fuzzing of every reader; the long one is fuzz.py ----


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(mutations.READERS))
def test_mutated_files_are_accepted_or_refused(name, tmp_path_factory, graphs):
    folder = tmp_path_factory.mktemp(name)
    reader = mutations.snn(folder, graphs) if name == "snn" else mutations.READERS[name](folder)
    ends = []

    @settings(derandomize=True, max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def fuzz(chance):
        ends.append(mutations.tried(reader, mutations.mutated(reader, Path(folder), chance)))

    fuzz()
    assert ends.count("refused") >= 5, "the mutations change nothing"
