"""Operation counts against a plain loop over every spike and every synapse, on small networks."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images, randomized
from torch import nn
from trained_networks import FAMILIES, SIZE, fed, trained, watched

from s_resnet import RECIPES, Graph, convert, simulate, trace
from s_resnet.analysis import count_operations, energy
from s_resnet.analysis.cost.fan_out import synapses
from s_resnet.conversion import Context, passes
from s_resnet.errors import InvalidData
from s_resnet.export import split_copies
from s_resnet.graph import Neuron, Node, Readout, Scale, SpikingMaxPool2d, StreamSettings
from s_resnet.graph.alphabet import Amplitudes, Copies, Differential, Signed
from s_resnet.graph.ops import (
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Pad,
    ReLU,
    Slice,
)
from s_resnet.models import CifarResNet
from s_resnet.simulation.lockstep import fire_mean, propagate

T = 4

# ---- the oracle: loops over everything ----


def reached(op, before, after):
    """Synapses as a list per input position (c, y, x) of how many outputs it reaches, by asking every output."""
    many = dict.fromkeys(itertools.product(*map(range, before)), 0)
    if isinstance(op, Linear):
        return dict.fromkeys(many, len(op.weight))
    if not isinstance(op, Conv2d | AvgPool2d | AdaptiveAvgPool2d | MaxPool2d | SpikingMaxPool2d):
        return dict.fromkeys(many, 1)
    for c, y, x in itertools.product(*map(range, after)):
        if isinstance(op, Conv2d):
            inside = before[0] // op.groups
            group = c // (len(op.weight) // op.groups)
            channels, kernel, dilation = range(group * inside, (group + 1) * inside), op.weight.shape[2:], op.dilation
        elif isinstance(op, AdaptiveAvgPool2d):
            rows = range(y * before[1] // after[1], math.ceil((y + 1) * before[1] / after[1]))
            columns = range(x * before[2] // after[2], math.ceil((x + 1) * before[2] / after[2]))
            for place in itertools.product((c,), rows, columns):
                many[place] += 1
            continue
        else:
            channels, kernel, dilation = (c,), op.kernel, getattr(op, "dilation", (1, 1))
        for channel, i, j in itertools.product(channels, range(kernel[0]), range(kernel[1])):
            at_y = y * op.stride[0] - op.padding[0] + i * dilation[0]
            at_x = x * op.stride[1] - op.padding[1] + j * dilation[1]
            if 0 <= at_y < before[1] and 0 <= at_x < before[2]:
                many[channel, at_y, at_x] += 1
    return many


def trains(graph, x, steps, coded=None):
    """What every node sends, [S, B, *], layer by layer in plain torch, without the engine."""
    values = {}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node.op, Input):
            values[node.name] = x.expand(steps, *x.shape).clone() if coded is None else coded
        elif isinstance(node.op, Neuron):
            total = sum(inputs[1:], start=inputs[0])
            values[node.name] = fire_mean(node.op, total, steps)
        elif isinstance(node.op, Readout):
            values[node.name] = inputs[0]
        else:
            values[node.name] = propagate(node.op, inputs)
    return values


def sent(graph, node, values):
    """Spikes of a node, [S * B] lists of (place, amplitudes): for graded values one where they are not 0."""
    name, differential = node.name, False
    while isinstance(graph[name].op, Flatten | Pad | Slice | SpikingMaxPool2d):
        name = graph[name].inputs[0]
    if isinstance(graph[name].op, Neuron):
        differential = isinstance(graph[name].op.spikes, Differential)
    places = list(itertools.product(*map(range, values[node.name].shape[2:])))
    for image in values[node.name].flatten(2).permute(1, 2, 0).tolist():
        for place, train in zip(places, image, strict=True):
            if differential:
                train = [round(y - sum(train[:t]) / max(1, t)) for t, y in enumerate(train)]
            for value in train:
                if value != 0:
                    yield place, bin(abs(int(value))).count("1") if isinstance(graph[name].op, Neuron) else 1


def events(graph, node, name, values):
    """Synaptic events of one node's input: every spike over every synapse that reads it."""
    before, after = values[name].shape[2:], values[node.name].shape[2:]
    many = reached(node.op, before, after)
    return sum(n * many[place] for place, n in sent(graph, graph[name], values))


def in_place(graph, name, node):
    """A sum with one reader, which adds it up itself."""
    summing = isinstance(graph[name].op, Conv2d | Linear | Scale | AvgPool2d | AdaptiveAvgPool2d | Add)
    return summing and graph.users[name] == (node.name,) and isinstance(node.op, Neuron | Add | Readout)


def by_brute_force(graph, x, steps, coded=None):
    """spikes, acs, macs per node, summed over images: what moves through synapses, without readout and means."""
    values = trains(graph, x, steps, coded)
    static = graph.static if coded is None else frozenset()
    found = {}
    for node in graph.nodes:
        op, spikes, acs, macs = node.op, 0, 0, 0
        if isinstance(op, Neuron | SpikingMaxPool2d):
            spikes = sum(n for _, n in sent(graph, node, values))
        for name in node.inputs:
            source = name
            while isinstance(graph[source].op, Flatten | Pad | Slice | SpikingMaxPool2d):
                source = graph[source].inputs[0]
            spiking = isinstance(graph[source].op, Neuron)
            if isinstance(op, Flatten | Pad | Slice) or (name in static and node.name not in static):
                continue
            if node.name in static:
                if isinstance(op, Conv2d | Linear | Scale):
                    many = reached(op, values[name].shape[2:], values[node.name].shape[2:])
                    macs += len(x) * sum(many.values())
                continue
            if in_place(graph, name, node):
                continue
            count = events(graph, node, name, values)
            if isinstance(op, Conv2d | Linear | Scale) and not spiking:
                macs += count
            else:
                acs += count
        if isinstance(op, SpikingMaxPool2d):
            acs += sum(n for _, n in sent(graph, graph[node.inputs[0]], values)) + spikes
        found[node.name] = (spikes, acs, macs)
    return found


def counted(operations):
    return {layer.name: (layer.spikes, layer.acs, layer.macs) for layer in operations.layers}


def same(graph, batches, steps=T, but=()):
    """Counts equal the loops', in every node but those where the readout or a mean adds macs of its own."""
    operations = count_operations(graph, batches, steps)
    total = sum(map(len, batches))
    found = [by_brute_force(graph, x, steps) for x in batches]
    mine = counted(operations)
    for node in graph.nodes:
        expected = [sum(part[node.name][i] for part in found) / total for i in range(3)]
        got = list(mine.get(node.name, (0, 0, 0)))
        if isinstance(node.op, Readout) or node.name in but:
            expected[2] = got[2] = 0
        assert got == expected, (node.name, got, expected)
    assert operations.images == total and operations.timesteps == steps
    assert operations.total.acs == pytest.approx(sum(layer.acs for layer in operations.layers), rel=1e-12)
    assert operations.total.acs > 0
    return operations


# ---- small networks, weights in multiples of 1 / 16 so that no order of additions matters ----


def dyadic(seed, *shape):
    return torch.randint(-6, 9, shape, generator=torch.Generator().manual_seed(seed)) / 16


def grid(batch=2, channels=2, size=(5, 6), seed=3):
    return torch.randint(-8, 17, (batch, channels, *size), generator=torch.Generator().manual_seed(seed)) / 16


def network(*nodes, classes=3, **neuron):
    """Input -> conv -> neuron -> nodes -> global mean -> classifier -> readout; ``nodes`` are (name, op, reads).

    An op given as ``"neuron"`` is one like the first, which streams.
    """
    later = Neuron(torch.ones(()), 0.5, **neuron)
    first = Neuron(torch.ones(()), 0.5, **{**neuron, "schedule": "streaming"})
    stem = [
        Node("x", Input(), ()),
        Node("stem", Conv2d(dyadic(1, 4, 2, 3, 3), dyadic(2, 4), padding=(1, 1)), ("x",)),
        Node("n0", first, ("stem",)),
    ]
    body = [Node(name, later if op == "neuron" else op, tuple(reads.split())) for name, op, reads in nodes]
    last = body[-1] if body else stem[-1]
    graph = Graph((*stem, *body))
    width = dict(graph.activations(grid(1)))[last.name].shape[1]
    head = [
        Node("mean", AdaptiveAvgPool2d((1, 1)), (last.name,)),
        Node("flat", Flatten(), ("mean",)),
        Node("fc", Linear(dyadic(9, classes, width), dyadic(10, classes)), ("flat",)),
        Node("out", Readout(torch.ones(())), ("fc",)),
    ]
    return Graph((*stem, *body, *head)).validate()


def conv(seed, *shape, **settings):
    return Conv2d(dyadic(seed, *shape), None, **settings)


BODIES = {
    "none": (),
    "borders": (("c", conv(4, 5, 4, 3, 3, padding=(1, 1)), "n0"), ("n1", "neuron", "c")),
    "no padding": (("c", conv(4, 5, 4, 3, 2), "n0"), ("n1", "neuron", "c")),
    "stride": (("c", conv(4, 4, 4, 3, 3, stride=(2, 2), padding=(1, 1)), "n0"), ("n1", "neuron", "c")),
    "stride beyond the kernel": (("c", conv(4, 4, 4, 1, 2, stride=(3, 4)), "n0"), ("n1", "neuron", "c")),
    "strided projection": (("c", conv(4, 6, 4, 1, 1, stride=(2, 2)), "n0"), ("n1", "neuron", "c")),
    "dilation": (("c", conv(4, 4, 4, 3, 2, padding=(2, 1), dilation=(2, 3)), "n0"), ("n1", "neuron", "c")),
    "groups": (("c", conv(4, 6, 2, 3, 3, padding=(1, 1), groups=2), "n0"), ("n1", "neuron", "c")),
    "depthwise": (("c", conv(4, 4, 1, 3, 3, padding=(2, 0), groups=4), "n0"), ("n1", "neuron", "c")),
    "identity": (("c", conv(4, 4, 4, 3, 3, padding=(1, 1)), "n0"), ("n1", "neuron", "c n0")),
    "shortcut": (
        ("c", conv(4, 4, 4, 3, 3, padding=(1, 1)), "n0"),
        ("s", Scale(torch.tensor(0.5)), "n0"),
        ("n1", "neuron", "c s"),
    ),
    "shortcut A": (
        ("c", conv(4, 8, 4, 3, 3, stride=(2, 2), padding=(1, 1)), "n0"),
        ("slice", Slice(((None, None, None), (None, None, 2), (None, None, 2))), "n0"),
        ("pad", Pad((0, 0, 0, 0, 2, 2)), "slice"),
        ("s", Scale(torch.full((8,), 0.75)), "pad"),
        ("n1", "neuron", "c s"),
    ),
    "two additions": (
        ("c", conv(4, 4, 4, 3, 3, padding=(1, 1)), "n0"),
        ("add", Add(), "c n0"),
        ("n1", "neuron", "add"),
        ("d", conv(5, 4, 4, 1, 1), "add"),
        ("n2", "neuron", "d n1 n1"),
    ),
    "average": (
        ("p", AvgPool2d((4, 2), (2, 1), (2, 1)), "n0"),
        ("c", conv(4, 4, 4, 2, 2), "p"),
        ("n1", "neuron", "c"),
    ),
    "average, rounded up": (("p", AvgPool2d((2, 4), (2, 4), (0, 0), True), "n0"), ("n1", "neuron", "p")),
    "adaptive": (
        ("p", AdaptiveAvgPool2d((4, 4)), "n0"),
        ("s", Scale(torch.tensor(0.5)), "p"),
        ("n1", "neuron", "s p"),
    ),
    "max": (
        ("p", SpikingMaxPool2d((3, 2), (2, 1), (1, 0)), "n0"),
        ("c", conv(4, 4, 4, 2, 2), "p"),
        ("n1", "neuron", "c"),
    ),
    "max, dilated": (("p", SpikingMaxPool2d((2, 2), (1, 2), (0, 0), (2, 1), True), "n0"), ("n1", "neuron", "p")),
    "max, deeper": (
        ("c", conv(8, 4, 4, 3, 3, padding=(1, 1)), "n0"),
        ("n1", "neuron", "c"),
        ("p", SpikingMaxPool2d((2, 2), (1, 1)), "n1"),
        ("d", conv(5, 4, 4, 2, 2), "p"),
        ("n2", "neuron", "d"),
    ),
    "three deep": (
        ("c", conv(4, 4, 4, 3, 3, padding=(1, 1)), "n0"),
        ("n1", "neuron", "c"),
        ("d", conv(5, 4, 4, 3, 3, padding=(1, 1), stride=(2, 1)), "n1"),
        ("e", conv(6, 4, 4, 1, 1, stride=(2, 1)), "n0"),
        ("n2", "neuron", "d e"),
    ),
}
ALPHABETS = {
    "binary": {},
    "signed": {"spikes": Signed()},
    "levels": {"spikes": Amplitudes(3)},
    "signed levels": {"spikes": Amplitudes(2, True)},
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_spike_and_every_synapse(body, alphabet):
    graph = network(*BODIES[body], **ALPHABETS[alphabet])
    louder = 4 if "levels" in alphabet else 1
    same(graph, [grid(2, seed=3) * louder, grid(1, seed=4)])


# ---- several neurons in place of one: the network in which all of them are there ----


def each_by_itself(node, values, expanded):
    """Synaptic events of a value of the expanded network: of every spike of every copy, or one where it is not 0."""
    count = 0
    for name in node.inputs:
        source = name
        while isinstance(expanded[source].op, Flatten | Pad | Slice):
            source = expanded[source].inputs[0]
        if name in expanded.static or in_place(expanded, name, node):
            continue
        many = reached(node.op, values[name].shape[2:], values[node.name].shape[2:])
        summed = isinstance(expanded[source].op, Add | SpikingMaxPool2d) and not name.startswith("add")
        for place, n in many.items():
            sent = values[name][(slice(None), slice(None), *place)]
            count += n * int(sent.sum() if summed else (sent != 0).sum())
    return count


@pytest.mark.parametrize("body", BODIES)
def test_copies_cost_what_the_network_of_all_plain_neurons_costs(body):
    graph, x = network(*BODIES[body], spikes=Copies(3)), grid(2, seed=3) * 3
    expanded = split_copies(graph)
    values, compact = trains(expanded, x, T), trains(graph, x, T)
    assert torch.equal(values["fc"], compact["fc"]) and {0.0, 1.0, 2.0, 3.0} <= set(compact["n0"].unique().tolist())
    operations, whole = count_operations(graph, [x], T), count_operations(expanded, [x], T)
    for layer in operations.layers:
        own = [n for n in expanded.nodes if n.name == layer.name or n.name.startswith(f"{layer.name}.copy")]
        own = [n for n in own if not (layer.op == "Neuron" and isinstance(n.op, Add))]  # whose readers form that sum
        assert layer.copies == len(own) == (3 if layer.op == "Neuron" or len(own) > 1 else 1)
        if layer.op == "Neuron":
            neurons = sum(values[n.name][0, 0].numel() for n in own)
            assert neurons == layer.state == layer.updates / T == 3 * layer.outputs
            spikes = sum(int(values[n.name].sum()) for n in own) / len(x)
            assert (layer.spikes, layer.traffic.spike_bits_written) == (spikes, spikes * (neurons - 1).bit_length())
        if layer.op in ("Conv2d", "Linear", "Scale", "AvgPool2d", "AdaptiveAvgPool2d", "Neuron"):
            events = sum(each_by_itself(n, values, expanded) for n in own) / len(x)
            assert layer.name in graph.static or layer.traffic.sum_reads == events
            assert layer.name in graph.static or events in (layer.acs, layer.macs)
    for name in ("spikes", "acs", "macs", "updates", "additions", "state"):
        assert getattr(operations.total, name) == getattr(whole.total, name), name
    for name in ("weight_reads", "sum_reads", "state_reads", "value_reads"):
        assert getattr(operations.total.traffic, name) == getattr(whole.total.traffic, name), name
    assert energy(operations).snn_int8.synapses == energy(whole).snn_int8.synapses
    assert operations.alphabet == "binary, 3 neurons for each" and operations.most == 3


@pytest.mark.parametrize("schedule", ["streaming", "lagged", "phased"])
@pytest.mark.parametrize("body", ["shortcut", "three deep", "max, deeper", "average"])
@pytest.mark.parametrize("settings", [{}, {"spikes": Amplitudes(2, True)}, {"reset": "zero"}], ids=str)
def test_every_schedule(schedule, body, settings):
    graph = network(*BODIES[body], schedule=schedule, **settings)
    operations = same(graph, [grid()])
    updates = {"streaming": T, "lagged": T + 1, "phased": 2 * T}
    for layer in operations.layers:
        if layer.op == "Neuron":
            steps = updates["streaming" if layer.name == "n0" else schedule]
            assert layer.updates == steps * layer.outputs


def test_differential_spikes_are_the_increments():
    graph = network(*BODIES["shortcut"], spikes=Differential(2))
    operations = same(graph, [grid(2), grid(1, seed=4)], but=("n1", "mean"))
    layers = {layer.name: layer for layer in operations.layers}
    # The receivers keep means: n1 of its currents, the pool of the spikes, so that the classifier reads no increments.
    assert layers["n1"].macs == T * layers["n1"].outputs and layers["mean"].macs == T * 4
    assert layers["n1"].additions == T * layers["n1"].outputs
    assert (layers["n0"].macs, layers["out"].macs) == (0, 3)
    assert layers["n1"].state == 3 * layers["n1"].outputs and layers["n0"].state == 2 * layers["n0"].outputs


def test_the_cases_above_hold_what_they_are_about():
    graph = network(*BODIES["max, deeper"], spikes=Amplitudes(2, True))
    values = trains(graph, grid(2) * 2, T)
    for name in ("n1", "p"):
        assert {-1.0, 2.0, 3.0} <= set(values[name].unique().tolist())
    many = reached(BODIES["stride beyond the kernel"][0][1], (4, 5, 6), (4, 2, 2))
    assert {0, 4} == set(many.values())
    many = reached(BODIES["dilation"][0][1], (4, 5, 6), (4, 5, 5))
    assert min(many.values()) < max(many.values())


@pytest.mark.parametrize("body", ["borders", "shortcut A", "average"])
def test_poisson_input_costs_a_mac_wherever_it_is_not_0(body):
    graph, x = network(*BODIES[body]), grid(3)
    operations = count_operations(graph, [x], T, coding="poisson", seed=5)
    amplitude = x.abs().amax((1, 2, 3), keepdim=True)
    generator = torch.Generator().manual_seed(5)
    draws = torch.stack([torch.rand(x.shape, generator=generator) for _ in range(T)])
    found = by_brute_force(graph, x, T, x.sign() * amplitude * (draws < x.abs() / amplitude))
    for layer in operations.layers:
        if layer.op in ("Conv2d", "Linear", "Neuron", "Scale"):
            assert (layer.spikes, layer.acs, layer.macs) == tuple(count / 3 for count in found[layer.name]), layer.name
    stem = operations.layers[0]
    assert 0 < stem.macs < T * stem.ann.macs and stem.additions == 0


def test_a_dead_layer_costs_its_updates_and_reaches_nothing():
    silent = Conv2d(-torch.ones(4, 4, 3, 3), torch.full((4,), -1.0), padding=(1, 1))
    graph = network(("c", silent, "n0"), ("n1", "neuron", "c"), ("d", conv(5, 4, 4, 3, 3), "n1"), ("n2", "neuron", "d"))
    layers = {layer.name: layer for layer in same(graph, [grid()]).layers}
    assert layers["n1"].spikes == layers["d"].acs == 0 and layers["n1"].updates == T * 4 * 5 * 6
    assert layers["d"].ann.macs == synapses(graph["d"].op, (4, 5, 6), (4, 3, 4)) == 4 * 4 * 9 * 12


# ---- directly trained networks against counts from the modules: convolutions of ones over what they read ----

X = images(3, SIZE)


def reaching(module, given):
    """Unit spikes, or values that are not 0, over the synapses that they reach: a convolution with ones."""
    if isinstance(module, nn.Linear):
        return float(given.sum()) * module.out_features
    ones = torch.ones_like(module.weight)
    return float(F.conv2d(given, ones, None, module.stride, module.padding, module.dilation, module.groups).sum())


def whole(values):
    return bool((values == values.round()).all())


@pytest.mark.parametrize("folded", [False, True], ids=["traced", "folded"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_synapses_and_spikes_are_those_of_the_module(arch, folded):
    """A convolution over spikes adds once for each of them, one over currents multiplies, the stem once an image."""
    model, graph = trained(arch)
    graph = passes.fold_batchnorm(graph, Context()) if folded else graph
    layers = {layer.name: layer for layer in count_operations(graph, [X], T).layers}
    modules, kinds = dict(model.named_modules()), set()
    for name, given in fed(model, X, T).items():
        module, spiking = modules[name], whole(given)
        if isinstance(module, nn.Conv2d | nn.Linear):
            first = given[: len(X)]
            if not spiking and torch.equal(given, first.repeat(len(given) // len(X), *[1] * (first.ndim - 1))):
                given = first  # of the stem alone: the same current at every step
            expected = reaching(module, given if spiking else (given != 0).float()) / len(X)
            got = (layers[name].acs, layers[name].macs)
            assert got == pytest.approx((expected, 0) if spiking else (0, expected)), name
            kinds.add((type(module).__name__, spiking))
    assert {("Conv2d", True), ("Conv2d", False), ("Linear", False)} == kinds
    stem = modules["stem.0"]
    assert layers["stem.0"].macs == reaching(stem, torch.ones(1, 3, SIZE, SIZE))
    for name, (_, out) in watched(model, X, T)[1].items():
        membranes = len(modules[name].firing.thresholds)
        neurons = out[0, 0].numel()
        assert layers[name].spikes == pytest.approx(float(out.sum()) / len(X)) and layers[name].macs == 0
        assert layers[name].updates == T * neurons * membranes and layers[name].state == neurons * membranes
        assert layers[name].traffic.state_reads == T * neurons * membranes


def test_the_dense_pass_is_labeled_so():
    """No source network: MACs of one dense pass, which does not depend on T, and no word of an ANN."""
    _, graph = trained("sew_resnet8")
    one, other = (count_operations(graph, [X], steps) for steps in (1, T))
    assert one.trained and one.total.ann.macs == other.total.ann.macs
    assert "dense MAC" in one.table() and "ANN" not in one.table() and "ANN" not in energy(one).table()
    assert one.to_dict()["trained"] is True and energy(one).to_dict()["trained"] is True


# ---- whole networks ----


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=4, shortcut="A"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_spikes_are_those_of_the_simulation(model, recipe):
    batches = [(images(size, 8, seed=size), torch.arange(size)) for size in (6, 3)]
    snn = convert(model, batches, recipe, timesteps=T)
    operations = count_operations(snn, batches, T)
    runs = [simulate(snn, x, T).spikes for x, _ in batches]
    spikes = {layer.name: layer.spikes for layer in operations.layers if layer.op == "Neuron"}
    assert spikes == {node.name: sum(run[node.name].sum().item() for run in runs) / 9 for node in snn.neurons}
    assert sum(spikes.values()) == operations.total.spikes > 0
    assert (operations.images, operations.timesteps, operations.alphabet) == (9, T, snn.alphabet)
    assert operations.most == {"multilevel": 15, "calibrated-fission": 3}.get(recipe, 1)  # 3 neurons, a spike of each


def test_an_integer_network_moves_bytes(model):
    batches = [images(6, 8)]
    snn = convert(model, batches, RECIPES["calibrated-lagged"].at(T).with_weights("int8"))
    operations = count_operations(snn, batches, T)
    run = simulate(snn, batches[0], T).spikes
    spikes = {layer.name: layer.spikes for layer in operations.layers if layer.op == "Neuron"}
    assert spikes == {name: count.sum().item() / 6 for name, count in run.items()}
    assert operations.weight_bytes == 1
    assert operations.bytes["weights_read"] == operations.total.traffic.weight_reads


def test_parts_and_chunks_and_batches_change_nothing(monkeypatch):
    graph = network(*BODIES["three deep"], schedule="lagged", spikes=Signed())
    x = grid(5)
    whole = count_operations(graph, [x], T)
    apart = count_operations(graph, x.split(2), T, progress=True)
    monkeypatch.setattr("s_resnet.graph.engine.chunks.WINDOW", 2 * T * 4 * 5 * 6)
    assert count_operations(graph, [x], T) == whole == apart


def test_who_watches_a_simulation_sees_every_step_and_changes_nothing():
    graph, x = network(*BODIES["three deep"]), grid()
    plain = simulate(graph, x, T)
    values = trains(graph, x, T)
    for chunk in (1, 3, T):
        seen = {}
        parts = list(
            graph.stream(
                *(x, T, chunk),
                settings=StreamSettings(
                    observe=lambda name, v, seen=seen: seen.setdefault(name, []).append(v.float().clone())
                ),
            )
        )
        assert torch.equal(parts[-1].outputs[-1], plain.outputs[0])
        for name in ("n0", "n1", "n2", "mean"):
            assert torch.equal(torch.cat(seen[name]), values[name].flatten(0, 1)), (chunk, name)
        assert not {"x", "stem"} & seen.keys()


def test_the_json_and_the_table(tmp_path):
    operations = count_operations(network(*BODIES["shortcut"]), [grid()], T)
    operations.save(tmp_path / "operations.json")
    stored = json.loads((tmp_path / "operations.json").read_text())
    assert stored == json.loads(json.dumps(operations.to_dict())) and stored["schema"] == 1
    assert stored["total"]["acs"] == operations.total.acs == sum(layer["acs"] for layer in stored["layers"])
    assert stored["layers"][0]["ann"]["macs"] == operations.layers[0].ann.macs
    assert operations.spikes_per_synapse == operations.total.acs / operations.total.ann.macs
    text = operations.table()
    assert all(layer.name in text for layer in operations.layers) and f"{operations.total.acs:,.0f}" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("body", ["shortcut", "three deep", "max, deeper", "average"])
def test_a_gpu_counts_the_same(body):
    graph = network(*BODIES[body], spikes=Amplitudes(2, True))
    assert count_operations(graph.to("cuda"), [grid()], 40) == count_operations(graph, [grid()], 40)


# ---- what people do wrong ----


def test_mistakes_are_one_line():
    graph, x = network(*BODIES["shortcut"]), grid()
    analog = trace(Net(lambda net, x: net.head(net.relu(net.bn1(net.conv1(x))))), images())

    def wrong(op, reads="n0", **neuron):
        return network(("odd", op, reads), ("n1", "neuron", "odd n0"), **neuron)

    heavy = Neuron(torch.tensor(2.0), spikes=Signed())
    for arguments, words in [
        ((analog, [images()], T), "without neurons"),
        ((graph, [x], 0), "timesteps=0"),
        ((graph, [], T), "no images"),
        ((graph, [x[:0]], T), "0 images"),
        ((graph, [x, grid(1, size=(6, 6))], T), "one size"),
        ((graph, [grid(channels=3)], T), "stem: "),
        ((wrong(ReLU()), [x], T), "odd: got ReLU"),
        ((wrong(heavy), [x], T), "odd: got Neuron of threshold 2"),
        ((wrong(SpikingMaxPool2d((1, 1), (1, 1)), spikes=Differential()), [x], T), "odd: got SpikingMaxPool2d"),
        ((wrong(SpikingMaxPool2d((1, 1), (1, 1)), "stem"), [x], T), "odd: got SpikingMaxPool2d"),
    ]:
        with pytest.raises(InvalidData) as error:
            count_operations(*arguments)
        assert words in str(error.value) and "expected" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InvalidData, match="coding 'rate'"):
        count_operations(graph, [x], T, coding="rate")
