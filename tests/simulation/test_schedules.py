"""Layers that wait: against a simulator on one global clock, where every layer really waits and shortcuts really queue.

The engine gives each layer its window at once. Here every tick goes through the whole network, a layer takes current
while its window lasts and fires ``wait`` ticks after, and spikes that arrive too early stand in a queue.
"""

from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, images, needs_fixtures, randomized
from PIL import Image

from s_resnet import RECIPES, Graph, convert, load_checkpoint, simulate
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron, Node, Readout, Scale, SpikingMaxPool2d
from s_resnet.graph.alphabet import Differential, power_of_two
from s_resnet.graph.neuron import IntegerNeuron
from s_resnet.graph.ops import AvgPool2d, Conv2d, Flatten, Input, Linear, MaxPool2d, Pad, Slice
from s_resnet.models import CifarResNet
from s_resnet.simulation import SimulationSettings, closed_form, lockstep, simulate_with_early_exit


def dyadic(seed, *shape, scale=16):
    """Multiples of 1 / scale, so that every sum below is exact in float32."""
    return torch.randint(-8, 11, shape, generator=torch.Generator().manual_seed(seed)) / scale


SHAPES = {
    "stem": (4, 3, 3, 3),
    "a1": (4, 4, 3, 3),
    "a2": (4, 4, 3, 3),
    "b1": (4, 4, 1, 1),
    "b2": (4, 4, 3, 3),
    "b3": (6, 4, 1, 1),
    "p": (6, 4, 1, 1),
    "c1": (6, 6, 3, 3),
    "c2": (10, 6, 3, 3),
    "fc": (5, 10),
}
W = {name: (dyadic(i, *shape), dyadic(30 + i, shape[0])) for i, (name, shape) in enumerate(SHAPES.items())}
STRIDE = {"b2": 2, "p": 2, "c2": 2}
NEURONS = ("n0", "na", "n1", "nb", "nm", "n2", "nc", "n3")
THETA = {
    "n0": torch.tensor(1.0),
    "na": torch.tensor([0.5, 1.0, 2.0, 0.75]),
    "n1": torch.tensor(2.0),
    "nb": torch.tensor(1.0),
    "nm": torch.tensor(1.5),
    "n2": torch.tensor(0.75),
    "nc": torch.tensor(1.0),
    "n3": torch.tensor(1.0),
}
START = {"na": 0.25, "n3": 0.0}  # of the threshold; the others 1/2
CONSTANT = dyadic(60, 4)  # a correction at every step, of nb
ROWS = 5 * dyadic(61, 5, 6, scale=64)  # corrections of nc in its first five steps; fives, so that their mean is dyadic
ALL = {"phased": ("phased", 1, False), "lagged": ("lagged", 1, False), "signed": ("lagged", 1, True)}
ALL |= {
    "multilevel": ("streaming", 4, True),
    "phased levels": ("phased", 2, False),
    "lagged levels": ("lagged", 3, True),
}
PLANS = {name: dict.fromkeys(NEURONS, row) for name, row in ALL.items()}
MIXED = ("signed", "phased", "lagged", "multilevel", "signed", "phased", "lagged levels", "phased levels")
PLANS["mixed"] = {neuron: ALL[name] for neuron, name in zip(NEURONS, MIXED, strict=True)}
for _plan in PLANS.values():  # under a constant current there is nothing to wait for
    _plan["n0"] = ("streaming", *_plan["n0"][1:])
WAIT = {"streaming": lambda steps: 0, "lagged": lambda steps: 1, "phased": lambda steps: steps}
WEIGHTS = torch.tensor([0.25, 0.5, 2.0])  # of the readout


def network(plan, weighed=False):
    """Max-pool stem, identity shortcut, gated pool, bottleneck with projection, zero-padding shortcut, classifier."""

    def conv(name, reads):
        stride, around = STRIDE.get(name, 1), W[name][0].shape[-1] // 2
        return Node(name, Conv2d(*W[name], (stride, stride), (around, around)), (reads,))

    def neuron(name, *reads):
        schedule, levels, signed = plan[name]
        correction = {"nb": CONSTANT, "nc": ROWS}.get(name)
        op = Neuron(THETA[name], START.get(name, 0.5), correction=correction, schedule=schedule,
                    spikes=power_of_two(levels, signed))  # fmt: skip
        return Node(name, op, reads)

    readout = Readout(torch.tensor(4.0))
    if weighed:
        readout = replace(readout, weights=WEIGHTS, correction=dyadic(62, 5))
    nodes = (
        Node("input", Input(), ()),
        conv("stem", "input"),
        Node("pool", MaxPool2d((3, 3), (2, 2), (1, 1)), ("stem",)),
        neuron("n0", "pool"),
        conv("a1", "n0"),
        neuron("na", "a1"),
        conv("a2", "na"),
        Node("a.short", Scale(torch.tensor(0.75)), ("n0",)),
        neuron("n1", "a2", "a.short"),
        Node("gate", SpikingMaxPool2d((3, 3), (1, 1), (1, 1)), ("n1",)),
        conv("b1", "gate"),
        neuron("nb", "b1"),
        conv("b2", "nb"),
        neuron("nm", "b2"),
        conv("b3", "nm"),
        conv("p", "gate"),
        neuron("n2", "b3", "p"),
        conv("c1", "n2"),
        neuron("nc", "c1"),
        conv("c2", "nc"),
        Node("half", Slice(((None, None, None), (None, None, 2), (None, None, 2))), ("n2",)),
        Node("pad", Pad((0, 0, 0, 0, 2, 2)), ("half",)),
        Node("c.short", Scale(torch.arange(1, 11) / 8), ("pad",)),
        neuron("n3", "c2", "c.short"),
        Node("avg", AvgPool2d((2, 2), (2, 2)), ("n3",)),
        Node("flat", Flatten(), ("avg",)),
        Node("fc", Linear(*W["fc"]), ("flat",)),
        Node("readout", readout, ("fc",)),
    )
    return Graph(nodes).validate()


# ---- the global clock, in float64 ----


class Layer:
    """Neurons that take current in the ticks ``begins + 1 ... begins + steps`` and fire in those ``wait`` later."""

    def __init__(self, name, plan, begins, steps):
        schedule, self.levels, self.signed = plan[name]
        self.name, self.begins, self.steps, self.wait = name, begins, steps, WAIT[schedule](steps)
        self.theta = THETA[name].double().view(-1, 1, 1)
        self.v, self.sent, self.charge, self.train = START.get(name, 0.5) * self.theta, 0, 0, []

    def correction(self, step):
        if self.name == "nb":
            return CONSTANT.double().view(-1, 1, 1)
        if self.name == "nc":
            row = ROWS[step - 1] if step <= len(ROWS) else ROWS.double().mean(0)
            return row.double().view(-1, 1, 1)
        return 0.0

    def tick(self, clock, current):
        if 1 <= clock - self.begins <= self.steps:
            arrived = current + self.correction(clock - self.begins)
            self.v, self.charge = self.v + arrived, self.charge + arrived
        if not 1 <= clock - self.begins - self.wait <= self.steps:
            return torch.zeros_like(current)
        most = 2**self.levels - 1
        if self.levels == 1 and not self.signed:
            k = (self.v >= self.theta).double()
        else:
            k = torch.floor(self.v / self.theta).clamp(-most, most)
            k = torch.maximum(k, torch.zeros_like(k) - (self.sent if self.signed else 0))
        self.v, self.sent = self.v - self.theta * k, self.sent + k
        self.train.append(k)
        return self.theta * k


class Queue:
    """What goes in comes out ``ticks`` later."""

    def __init__(self, ticks):
        self.waiting = deque([None] * ticks)

    def __call__(self, value):
        self.waiting.append(value)
        out = self.waiting.popleft()
        return torch.zeros_like(value) if out is None else out


def on_the_clock(pictures, plan, steps, weighed=False):
    """All layers with what they fired, the answer at every step of the readout's window, and the time of the last."""

    def conv(name, x):
        weight, bias = (part.double() for part in W[name])
        return F.conv2d(x, weight, bias, STRIDE.get(name, 1), weight.shape[-1] // 2)

    begins = dict(zip(NEURONS, [0] * 8, strict=True))
    wait = {name: WAIT[plan[name][0]](steps) for name in NEURONS}
    for before, name in pairwise(NEURONS):  # in the main branch one after the other
        begins[name] = begins[before] + wait[before]
    end = begins["n3"] + wait["n3"]
    layer = {name: Layer(name, plan, begins[name], steps) for name in NEURONS}
    identity, projection, padded = Queue(wait["na"]), Queue(wait["nb"] + wait["nm"]), Queue(wait["nc"])
    count_in = count_out = 0.0
    total, weighed_by, answers = 0.0, 0.0, []
    for clock in range(1, end + steps + 1):
        n0 = layer["n0"].tick(clock, F.max_pool2d(conv("stem", pictures.double()), 3, 2, 1))
        na = layer["na"].tick(clock, conv("a1", n0))
        n1 = layer["n1"].tick(clock, conv("a2", na) + 0.75 * identity(n0))
        count_in = count_in + n1
        gated = F.max_pool2d(count_in, 3, 1, 1) - count_out
        count_out = count_out + gated
        nb = layer["nb"].tick(clock, conv("b1", gated))
        nm = layer["nm"].tick(clock, conv("b2", nb))
        n2 = layer["n2"].tick(clock, conv("b3", nm) + conv("p", projection(gated)))
        nc = layer["nc"].tick(clock, conv("c1", n2))
        short = torch.zeros(len(pictures), 10, 2, 2, dtype=torch.float64)
        short[:, 2:8] = padded(n2)[:, :, ::2, ::2]
        n3 = layer["n3"].tick(clock, conv("c2", nc) + torch.arange(1, 11).double().view(10, 1, 1) / 8 * short)
        logits = F.linear(n3.mean((2, 3)), *(part.double() for part in W["fc"]))
        if clock > end:
            weight = float(WEIGHTS[min(clock - end, len(WEIGHTS)) - 1]) if weighed else 1.0
            total, weighed_by = total + weight * logits, weighed_by + weight
            answers.append(4.0 * total / weighed_by + (dyadic(62, 5).double() if weighed else 0.0))
    return layer, torch.stack(answers), clock


def pictures(batch=2, seed=80):
    return dyadic(seed, batch, 3, 12, 12, scale=8)


def recorded(monkeypatch, graph, x, steps, **settings):
    """What every neuron layer of the engine emits, ``[S, B, *]`` by name, and what the simulation yields."""
    calls, plain = [], Neuron.advance

    def advance(self, *arguments, **named):
        out = plain(self, *arguments, **named)
        calls.append(out[0])
        return out

    with monkeypatch.context() as patched:
        patched.setattr(Neuron, "advance", advance)
        (chunk,) = graph.stream(x, steps, **settings)
    names = [node.name for node in graph.neurons]
    return dict(zip(names, calls, strict=True)), chunk


# ---- spike for spike ----


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("name", PLANS)
def test_every_spike_and_every_answer_is_that_of_the_global_clock(monkeypatch, name, steps):
    plan, x = PLANS[name], pictures()
    graph = network(plan)
    layers, answers, clock = on_the_clock(x, plan, steps)
    settings = {} if graph.windowed else {"chunk": steps}
    trains, chunk = recorded(monkeypatch, graph, x, steps, **settings)
    for neuron, layer in layers.items():
        want = torch.stack(layer.train)
        assert torch.equal(trains[neuron].double(), want), neuron
        bits = sum(want.abs().long() >> level & 1 for level in range(layer.levels))
        assert torch.equal(chunk.spikes[neuron].long(), bits.flatten(2).sum(2)), neuron
        assert torch.equal(chunk.state.memory[neuron][0].double(), layer.v), neuron
        assert steps == 1 or want.abs().sum() > 0, f"{neuron} never fires: nothing was compared"
    assert torch.equal(chunk.outputs, answers.float()) and (steps == 1 or answers[-1].std() > 0)
    assert graph.end_to_end_steps(steps) == clock
    result = simulate(graph, x, steps)
    assert torch.equal(result.outputs[0], answers[-1].float())
    assert torch.equal(graph(x, steps), answers[-1].float())


def test_the_depth_counts_in_what_one_waits():
    """Eight layers, the first streaming: seven waits."""
    ends = {name: network(PLANS[name]).end_to_end_steps(16) for name in PLANS}
    assert ends == {
        "phased": 16 + 7 * 16,
        "lagged": 16 + 7,
        "signed": 16 + 7,
        "multilevel": 16,
        "phased levels": 16 + 7 * 16,
        "lagged levels": 16 + 7,
        "mixed": 16 + 16 + 1 + 0 + 1 + 16 + 1 + 16,
    }
    assert {name for name in PLANS if network(PLANS[name]).windowed} == set(PLANS) - {"multilevel"}


def test_the_longer_branch_decides_also_where_it_is_the_shortcut():
    one, wait = torch.tensor(1.0), {"schedule": "lagged"}
    nodes = (
        Node("input", Input(), ()),
        Node("a", Neuron(one), ("input",)),
        Node("b", Neuron(one, **wait), ("a",)),
        Node("c", Neuron(one, schedule="phased"), ("b",)),
        Node("d", Neuron(one, **wait), ("a", "c")),
        Node("flat", Flatten(), ("d",)),
        Node("readout", Readout(one), ("flat",)),
    )
    assert Graph(nodes).validate().end_to_end_steps(10) == 10 + 1 + 10 + 1


@pytest.mark.parametrize("name", ["phased", "lagged", "multilevel"])
def test_a_weighed_readout(name):
    plan, x = PLANS[name], pictures()
    _, answers, _ = on_the_clock(x, plan, 6, weighed=True)
    (chunk,) = network(plan, weighed=True).stream(x, 6, None if name != "multilevel" else 6)
    assert torch.equal(chunk.outputs, answers.float())
    # Early answers differ from those of equal weights, and are not the last one's.
    assert not torch.equal(answers, on_the_clock(x, plan, 6)[1])


def test_the_analog_run_knows_neither_schedules_nor_corrections():
    x = pictures()
    runs = [network(plan, weighed).run(x) for plan in PLANS.values() for weighed in (False, True)]
    plain = Graph(tuple(
        replace(node, op=Neuron(THETA[node.name])) if isinstance(node.op, Neuron) else node
        for node in network(PLANS["phased"]).nodes
    ))  # fmt: skip
    assert all(torch.equal(run, plain.run(x)) for run in runs)


def test_after_the_last_row_comes_their_mean():
    op = Neuron(torch.ones(()), correction=torch.tensor([[1.0, 8.0], [2.0, 4.0], [6.0, 0.0]]))
    rows = op.bias_current(1, 4, 5)
    assert rows.shape == (4, 1, 2, 1, 1)
    assert rows.flatten(1).tolist() == [[2, 4], [6, 0], [3, 4], [3, 4]]
    whole = Neuron(torch.ones(2, dtype=torch.int32), correction=torch.tensor([[1, 8], [2, 3]]))
    assert whole.bias_current(1, 2, 3).flatten(1).tolist() == [[2, 3], [2, 6]]  # 3/2 and 11/2, halves to even
    assert replace(op, correction=torch.tensor([1.0, 2.0])).bias_current(7, 4, 5).shape == (2, 1, 1)
    assert Neuron(torch.ones(())).bias_current(0, 4, 5) is None


@pytest.mark.parametrize("settings", [{"schedule": "lagged"}, {"schedule": "phased"}, {}], ids=str)
def test_currents_of_16_bits_are_added_in_the_membranes_type(settings):
    """What comes from a fast convolution is rounded once, not again in every sum."""
    op = Neuron(torch.ones(()), 0.5, **settings)
    parts = [torch.tensor([256.0, 0, 0]), torch.tensor([1.0, 0, 0])]  # bfloat16 holds both, and not their sum
    inputs = [part.view(3, 1, 1, 1, 1).to(torch.bfloat16) for part in parts]
    rows = torch.tensor([0.25, 0, 0]).view(3, 1, 1, 1, 1)
    _, (v,) = op.advance(inputs, None, (inputs[1], torch.tensor(3.0)), bias=rows)
    assert v.item() == 0.5 + 257.25 + 3 - 3


# ---- the closed form ----


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("name", ["phased", "phased levels"])
def test_a_phased_neuron_is_the_quantizer_of_its_charge(name, steps):
    """N = clip(floor(v(0) + T z), 0, T L), neuron for neuron, from what really arrived."""
    layers, _, _ = on_the_clock(pictures(), PLANS[name], steps)
    graph, seen = network(PLANS[name]), 0
    for node in graph.neurons[1:]:
        layer = layers[node.name]
        exact = torch.floor(START.get(node.name, 0.5) + layer.charge / layer.theta)
        count = torch.stack(layer.train).sum(0)
        assert torch.equal(count, exact.clamp(0, steps * (2**layer.levels - 1))), node.name
        assert torch.equal(node.op.quantize(layer.charge, steps), count), node.name
        seen += int(((exact < 0) | (exact > count)).sum())
    assert seen > 0  # both clips were needed


def counts_in_closed_form(graph, x, steps):
    """One pass over mean currents: spike counts by neuron layer, in thresholds."""
    found = {}

    def visit(node, currents, target):
        if isinstance(node.op, Neuron):
            assert len(currents) == 1
            sent = lockstep.fire_mean(node.op, currents, steps)[0]
            found[node.name] = sent / node.op.threshold.view(-1, *(1,) * (sent.ndim - 2)) * steps
        return node.op

    lockstep.lockstep(graph, x, steps, visit)
    return found


def changed(graph, name, **settings):
    """The network with other settings of one node."""
    nodes = (replace(node, op=replace(node.op, **settings)) if node.name == name else node for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def without_rows(graph):
    """The network with corrections that are the same at every step."""
    return changed(graph, "nc", correction=ROWS[0])


@pytest.mark.parametrize("steps", [2, 4, 8])
@pytest.mark.parametrize("name", ["phased", "phased levels"])
def test_one_pass_over_mean_currents_counts_the_same_spikes(monkeypatch, name, steps):
    graph, x = without_rows(network(PLANS[name])), pictures(4)
    trains, _ = recorded(monkeypatch, graph, x, steps)
    found = counts_in_closed_form(graph, x, steps)
    assert set(found) == set(NEURONS)
    for neuron, count in found.items():
        assert torch.equal(count, trains[neuron].float().sum(0)), neuron


def test_the_closed_form_answers_as_the_global_clock_does():
    graph, x = without_rows(network(PLANS["phased"])), pictures(3)
    found = closed_form(graph, x, 8, at=[8, 2, 4, 4])
    assert found.steps == (2, 4, 8)
    for row, steps in enumerate(found.steps):
        simulated = simulate(graph, x, steps)  # which is the global clock's, as shown above
        assert torch.equal(found.outputs[row], simulated.outputs[0])
        for name, count in simulated.spikes.items():
            assert torch.equal(found.spikes[name][row], count[0]), name
    assert found.outputs.std() > 0 and torch.equal(closed_form(graph, x, 4).outputs[0], found.outputs[1])


PHASED = without_rows(network(PLANS["phased"]))
NO_CLOSED_FORM = {
    "corrections by step": (network(PLANS["phased"]), 4, None),
    "lagged": (without_rows(network(PLANS["lagged"])), 4, None),
    "levels, whose spikes are not what they count": (without_rows(network(PLANS["phased levels"])), 4, None),
    "a weighed readout": (without_rows(network(PLANS["phased"], weighed=True)), 4, None),
    "a spiking readout": (changed(PHASED, "readout", mode="spikes"), 4, None),
    "whole numbers": (changed(PHASED, "n1", integer=IntegerNeuron(torch.ones(4, dtype=torch.int32))), 4, None),
    "no steps": (PHASED, 0, None),
    "at 0": (PHASED, 4, [0, 2]),
    "at beyond": (PHASED, 4, [5]),
    "at nothing": (PHASED, 4, []),
    "no readout": (Graph(PHASED.nodes[:-1]), 4, None),
}


@pytest.mark.parametrize("name", NO_CLOSED_FORM)
def test_what_has_no_closed_form_is_refused(name):
    graph, steps, at = NO_CLOSED_FORM[name]
    with pytest.raises(InvalidData, match=r"^closed_form: got") as caught:
        closed_form(graph, pictures(), steps, at)
    assert "\n" not in str(caught.value)


def test_when_the_closed_form_holds():
    graph = without_rows(network(PLANS["phased"]))
    assert lockstep.order_free(graph) and lockstep.steps_of(graph, 9) == 1
    assert lockstep.order_free(without_rows(network(PLANS["phased levels"])))
    assert not lockstep.order_free(network(PLANS["phased"]))  # a correction by step
    assert all(
        not lockstep.order_free(without_rows(network(PLANS[name]))) for name in ("lagged", "multilevel", "mixed")
    )
    for change in ({"reset": "zero"}, {"spikes": Differential()}, {"schedule": "streaming"}):
        other = changed(graph, "n2", **change)
        assert not lockstep.order_free(other) and lockstep.steps_of(other, 9) == 9
    assert not lockstep.order_free(Graph(graph.nodes[:3]))  # no neurons


# ---- whole numbers ----


def whole_numbers(graph, x, steps, rows):
    """An integer network in whole numbers, layer by layer: the spikes ``[T, B, *]`` of each, and their closed form.

    rows: how many steps a correction by step was fitted to; after them comes the rounded mean.
    """
    value, trains, closed = {}, {}, {}
    grid = graph.nodes[0].op.grid

    def correction(op, step):
        table = op.integer.correction.double()
        if table.ndim == 2:
            assert len(table) == rows
            table = table[step] if step < rows else table.mean(0).round()
        return table.view(-1, 1, 1)

    for node in graph.nodes:
        op, inputs = node.op, [value[name] for name in node.inputs if name in value]
        if isinstance(op, Input):
            value[node.name] = (x.double() * grid).round().clamp(-8 * grid, 8 * grid).expand(steps, *x.shape)
        elif isinstance(op, Conv2d):
            current = F.conv2d(inputs[0].flatten(0, 1), op.integer.weight.double(), None, op.stride, op.padding)
            current = (current / grid).round() if op.integer.grid else current
            value[node.name] = (current + op.integer.bias.double().view(-1, 1, 1)).unflatten(0, (steps, len(x)))
        elif isinstance(op, Scale):
            value[node.name] = inputs[0] * op.integer.weight.double().view(-1, 1, 1)
        elif isinstance(op, Neuron):
            theta = op.integer.threshold.double().view(-1, 1, 1)
            arriving = [sum(parts) + correction(op, t) for t, parts in enumerate(zip(*inputs, strict=True))]
            v = (op.initial_potential * theta).round()
            closed[node.name] = torch.div(v + sum(arriving), theta, rounding_mode="floor").clamp(0, steps)
            wait = WAIT[op.schedule](steps)
            trains[node.name] = []
            for tick in range(steps + wait):
                v = v + (arriving[tick] if tick < steps else 0)
                if tick >= wait:
                    trains[node.name].append((v >= theta).double())
                    v = v - theta * trains[node.name][-1]
            value[node.name] = torch.stack(trains[node.name])
        else:
            break  # pooling and the classifier decide no spike
    return {name: torch.stack(train) for name, train in trains.items()}, closed


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=4, shortcut="B"))


@pytest.mark.parametrize("schedule", ["streaming", "lagged", "phased"])
@pytest.mark.parametrize("time_indexed", [False, True])
def test_an_integer_network_counts_in_whole_numbers(monkeypatch, model, schedule, time_indexed):
    """Fitted to 5 steps, run for 5 and for 7; a phased one also in closed form."""
    recipe = RECIPES["phased"].set("relu_to_neuron", schedule=schedule)
    recipe = recipe.set("calibrate_neurons", time_indexed=time_indexed)
    graph = convert(model, [images(24, 12, seed=5)], recipe.at(5).with_weights("int8"))
    tables = [node.op.integer.correction for node in graph.neurons]
    by_step = time_indexed and schedule != "phased"
    assert [table.ndim for table in tables] == [1, *[2 if by_step else 1] * 6]
    assert not by_step or all(bool((table != table[0]).any()) for table in tables[1:])
    for node in graph.neurons:
        exact = node.op.correction.double() * node.op.integer.threshold
        assert (node.op.integer.correction - exact).abs().max() <= 0.5 + 1e-4
    x = images(4, 12, seed=6)
    for steps in (5, 7):
        want, closed = whole_numbers(graph, x, steps, 5)
        trains, chunk = recorded(monkeypatch, graph, x, steps, **({} if graph.windowed else {"chunk": steps}))
        assert len(want) == len(trains) == 7
        for name, spikes in want.items():
            assert torch.equal(trains[name].double(), spikes), name
            assert schedule != "phased" or torch.equal(trains[name].double().sum(0), closed[name]), name
            assert chunk.state.memory[name][0].dtype == torch.int32
        assert 0.02 < sum(float(spikes.mean()) for spikes in want.values()) / 7 < 0.9
    if schedule == "streaming":
        parts = [chunk.spikes for chunk in graph.stream(x, 7, 2)]  # 2, 4, then 6: across the last row
        for name, spikes in want.items():
            assert torch.equal(torch.cat([part[name] for part in parts]).double(), spikes.flatten(2).sum(2)), name


@needs_fixtures
def test_a_real_network_in_closed_form(monkeypatch):
    """In float64: the two add in another order, and in float32 one sum in a million falls on the other side."""
    files = sorted((FIXTURES / "cifar10" / "train").glob("*/*.png"))[::32]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert len(x) == 64
    model = load_checkpoint(FIXTURES / "checkpoints" / "resnet20-12fca82f.th").model
    graph = convert(model, [x[:48]], "phased", timesteps=8).to(torch.float64)
    x = x.double()
    trains, chunk = recorded(monkeypatch, graph, x[32:], 8)
    found = counts_in_closed_form(graph, x[32:], 8)
    counts = {name: train.double().sum(0) for name, train in trains.items()}
    differing = sum(int((found[name] != count).sum()) for name, count in counts.items())
    neurons = sum(count.numel() for count in counts.values())
    assert neurons > 32 * 180_000
    assert differing == 0, f"{differing} of {neurons} counts differ"
    mean_input = torch.einsum("nc,bc->bn", graph["linear"].op.weight, counts["layer3.2.relu_1"].mean((2, 3)) / 8)
    answers = (mean_input + graph["linear"].op.bias) * graph["readout"].op.scale + graph["readout"].op.correction
    assert torch.equal(answers.argmax(1), chunk.outputs[-1].argmax(1))
    assert float((answers.argmax(1) == graph.run(x[32:]).argmax(1)).float().mean()) > 0.8


# ---- what does not fit ----


MISUSES = {
    "chunk": lambda graph, x: simulate(graph, x, 4, SimulationSettings(chunk=2)),
    "state": lambda graph, x: simulate(graph, x, 4, state=simulate(graph, x, 4).state),
    "exit": lambda graph, x: simulate_with_early_exit(graph, x, 4, 0.9),
}


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("name", ["phased", "lagged", "mixed"])
def test_a_window_is_taken_whole(name, misuse):
    """A lagged one comes in chunks too, but cannot be left before its end."""
    graph, x = network(PLANS[name]), pictures()
    if (name, misuse) == ("lagged", "chunk"):
        assert torch.equal(MISUSES[misuse](graph, x).outputs, simulate(graph, x, 4).outputs)
        return
    with pytest.raises(InvalidData, match=r"window of T") as caught:
        MISUSES[misuse](graph, x)
    assert "\n" not in str(caught.value)


def test_the_whole_window_as_a_chunk_is_none():
    graph, x = network(PLANS["lagged"]), pictures()
    assert torch.equal(simulate(graph, x, 4, SimulationSettings(chunk=4)).outputs, simulate(graph, x, 4).outputs)


def test_answers_at_several_windows_are_those_of_separate_runs():
    graph, x = network(PLANS["mixed"]), pictures()
    result = simulate(graph, x, 8, at=[8, 2, 2, 5])
    assert result.steps == (2, 5, 8)
    for row, steps in enumerate(result.steps):
        _, answers, _ = on_the_clock(x, PLANS["mixed"], steps)
        assert torch.equal(result.outputs[row], answers[-1].float())
        layers, _, _ = on_the_clock(x, PLANS["mixed"], steps)
        bits = sum(torch.stack(layers["nb"].train).abs().long() >> level & 1 for level in range(8))
        assert torch.equal(result.spikes["nb"][row], bits.sum(0).flatten(1).sum(1).double())
    assert torch.equal(simulate(graph, x, 8, at=[5]).outputs[0], result.outputs[1])


@pytest.mark.parametrize("setting", [{"schedule": "later"}, {"reset": "hard"}])
def test_settings_that_there_are_not(setting):
    with pytest.raises(InvalidData, match=r"^neuron: .*got"):
        Neuron(torch.ones(()), **setting)
