"""Operation counts against a plain loop over every spike and every synapse, on small networks."""

import itertools
import json
import math

import pytest
import torch
from conftest import Net, images, needs_fixtures, randomized
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18, resnet50

from s_resnet import (
    RECIPES,
    CifarResNet,
    Graph,
    InvalidData,
    Neuron,
    Node,
    Readout,
    Scale,
    SpikingMaxPool2d,
    convert,
    count_operations,
    simulate,
    trace,
)
from s_resnet.fan_out import fan_out, synapses
from s_resnet.lockstep import propagate, respond
from s_resnet.ops import (
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Pad,
    Slice,
)

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
            values[node.name] = respond(node.op, total, steps)
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
        differential = graph[name].op.differential
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
    """Input -> conv -> neuron -> nodes -> global mean -> flatten -> classifier -> readout. ``nodes``: (name, op, reads).

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
    "signed": {"signed": True},
    "levels": {"levels": 3},
    "signed levels": {"signed": True, "levels": 2},
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_spike_and_every_synapse(body, alphabet):
    graph = network(*BODIES[body], **ALPHABETS[alphabet])
    louder = 4 if "levels" in alphabet else 1
    same(graph, [grid(2, seed=3) * louder, grid(1, seed=4)])


@pytest.mark.parametrize("schedule", ["streaming", "lagged", "phased"])
@pytest.mark.parametrize("body", ["shortcut", "three deep", "max", "average"])
@pytest.mark.parametrize("settings", [{}, {"signed": True, "levels": 2}, {"reset": "zero"}], ids=str)
def test_every_schedule(schedule, body, settings):
    graph = network(*BODIES[body], schedule=schedule, **settings)
    operations = same(graph, [grid()])
    updates = {"streaming": T, "lagged": T + 1, "phased": 2 * T}
    for layer in operations.layers:
        if layer.op == "Neuron":
            steps = updates["streaming" if layer.name == "n0" else schedule]
            assert layer.updates == steps * layer.outputs


def test_differential_spikes_are_the_increments():
    graph = network(*BODIES["shortcut"], differential=True, levels=2)
    operations = same(graph, [grid(2), grid(1, seed=4)], but=("n1", "mean"))
    layers = {layer.name: layer for layer in operations.layers}
    # The receivers keep means: n1 of its currents, the pool of the spikes, so that the classifier reads no increments.
    assert layers["n1"].macs == T * layers["n1"].outputs and layers["mean"].macs == T * 4
    assert layers["n1"].additions == T * layers["n1"].outputs
    assert (layers["n0"].macs, layers["out"].macs) == (0, 3)
    assert layers["n1"].state == 3 * layers["n1"].outputs and layers["n0"].state == 2 * layers["n0"].outputs
