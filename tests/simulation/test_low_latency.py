"""Neurons of other alphabets in networks: signed, multi-level and differential, against what they are said to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import images
from test_schedules import PLANS, dyadic, network, pictures, recorded

from s_resnet import Graph, simulate
from s_resnet.graph import Neuron, Node, Readout, Scale, SpikingMaxPool2d
from s_resnet.graph.alphabet import Amplitudes, Differential, Signed, power_of_two
from s_resnet.graph.execution import Execution
from s_resnet.graph.ops import AvgPool2d, Conv2d, Flatten, Input, Linear
from s_resnet.simulation import SimulationSettings, simulate_with_early_exit

ONE = torch.ones(())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def column(values):
    """Currents of one neuron, ``[S, 1, 1, 1, 1]``."""
    return torch.tensor(values).view(-1, 1, 1, 1, 1)


# ---- one neuron by hand ----

CURRENTS = [0.5, 0.5, -1.0, 0.25]  # on a membrane that starts at 1/2: 3/4 in all, which is worth nothing
TRACES = {
    "streaming": ({}, [1, 0, 0, 0], -0.25),
    "lagged": ({"schedule": "lagged"}, [1, 0, 0, 0], -0.25),
    "phased": ({"schedule": "phased"}, [0, 0, 0, 0], 0.75),
    "signed": ({"spikes": Signed()}, [1, 0, -1, 0], 0.75),
    "signed lagged": ({"schedule": "lagged", "spikes": Signed()}, [1, -1, 0, 0], 0.75),
    "signed phased": ({"schedule": "phased", "spikes": Signed()}, [0, 0, 0, 0], 0.75),
    "2 levels": ({"spikes": Amplitudes(2), "schedule": "lagged"}, [1, 0, 0, 0], -0.25),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_neuron_by_hand(name):
    settings, emissions, rest = TRACES[name]
    spikes, (v, *emitted) = Neuron(ONE, 0.5, **settings).advance([column(CURRENTS)], None)
    assert spikes.flatten().tolist() == emissions
    assert v.item() == rest
    assert [part.item() for part in emitted] == ([sum(emissions)] if "signed" in name else [])


@pytest.mark.parametrize(
    ("currents", "emissions", "rest", "bits"),
    [
        ([2.0, 2.0, 2.0], [2, 2, 2], 0.5, [1, 0, 0]),  # once the mean is right nothing needs to be sent
        ([1.0, -5.0, 0.0], [1, -1, 0], -3.5, [1, 1, 0]),  # no more is taken back than was emitted
        ([7.0, 0.0], [3, 4], 0.5, [2, 1]),  # no more than 3 at first; then 4.5 without the mean of 3 gives 1 more
    ],
)
def test_a_differential_neuron_by_hand(currents, emissions, rest, bits):
    counts = torch.zeros(len(currents), 1, dtype=torch.int32)
    op = Neuron(ONE, 0.5, spikes=Differential(2))
    sent, (v, total, step) = op.advance([column(currents)], None, how=Execution(counts=counts))
    assert sent.flatten().tolist() == emissions
    assert (v.item(), total.item(), step.item()) == (rest, sum(emissions), len(currents))
    assert counts.flatten().tolist() == bits


# ---- signed ----


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("theta", [torch.tensor(0.75), torch.tensor([0.5, 1.0, 2.0])], ids=["layer", "channels"])
def test_a_signed_neuron_ends_at_the_quantizer_of_all_it_got(levels, theta):
    """With a shortcut, a bias and a correction by step, once nothing arrives any more; an unsigned one does not."""
    op = Neuron(theta, 0.5, spikes=power_of_two(levels, True), correction=dyadic(1, 4, 3))
    currents, branch, bias = dyadic(2, 9, 2, 3, 4, 4), dyadic(3, 9, 2, 3, 4, 4), dyadic(4, 3, 1, 1)
    rows = bias + op.bias_current(0, 9, 5)
    charge = (currents + 0.5 * branch + rows).double().sum(0)
    exact = torch.floor(0.5 + charge / theta.double().view(-1, 1, 1)).clamp_min(0)
    idle = torch.zeros(40, 2, 3, 4, 4)
    sums = []
    for kind in (op, replace(op, spikes=power_of_two(levels))):
        shortcut = (branch, torch.tensor(0.5))
        first, memory = kind.advance([currents], None, shortcut, bias=rows)
        rest, (v, *emitted) = replace(kind, correction=None).advance([idle], memory)
        spikes = torch.cat([first, rest]).double()
        sums.append(spikes.sum(0))
        # What is not emitted is in the membrane.
        start = 0.5 * theta.double().view(-1, 1, 1)
        assert torch.equal(start + charge, v.double() + theta.double().view(-1, 1, 1) * sums[-1])
        assert spikes.cumsum(0).min() >= 0 and spikes.abs().max() <= 2**levels - 1
        assert not emitted or torch.equal(emitted[0].double(), sums[-1])
    signed, unsigned = sums
    assert torch.equal(signed, exact) and exact.max() >= 2
    assert (unsigned > exact).any() and (unsigned >= exact).all()


@pytest.mark.parametrize("name", ["signed", "multilevel", "lagged levels", "mixed"])
def test_no_neuron_of_a_network_takes_back_what_it_has_not_emitted(monkeypatch, name):
    trains, chunk = recorded(
        monkeypatch, network(PLANS[name]), pictures(), 9, **({"chunk": 9} if name == "multilevel" else {})
    )
    taken_back = 0
    for neuron, (_, levels, signed) in PLANS[name].items():
        assert trains[neuron].cumsum(0).min() >= 0, neuron
        assert trains[neuron].abs().max() <= 2**levels - 1
        taken_back += int((trains[neuron] < 0).sum()) if signed else 0
        assert signed or trains[neuron].min() >= 0
        if signed:
            assert torch.equal(chunk.state.memory[neuron][1], trains[neuron].sum(0))
    assert taken_back > 20


def brute_force_maximum(counts, kernel, stride, padding):
    """The largest of every window of ``[B, C, H, W]``, by loops; outside there is nothing."""
    batch, channels, height, width = counts.shape
    rows = (height + 2 * padding - kernel) // stride + 1
    columns = (width + 2 * padding - kernel) // stride + 1
    out = np.zeros((batch, channels, rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride - padding, j * stride - padding
            window = counts[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            out[:, :, i, j] = window.max((2, 3))
    return out


@pytest.mark.parametrize("most", [1, 15])
def test_the_gate_follows_the_largest_count_also_downwards(most):
    """For spikes that never sum to less than nothing, chunk by chunk."""
    wished = torch.randint(-most, most + 1, (14, 2, 3, 7, 6), generator=seeded(5)).float()
    spikes, sums = [], torch.zeros(2, 3, 7, 6)
    for k in wished:
        spikes.append(torch.maximum(k, -sums))
        sums = sums + spikes[-1]
    spikes, gate, memory = torch.stack(spikes), SpikingMaxPool2d((3, 3), (2, 2), (1, 1)), None
    out = []
    for part in torch.split(spikes, [5, 1, 8]):
        pooled, memory = gate.advance([part], memory)
        out.append(pooled)
    out = torch.cat(out)
    followed = out.cumsum(0).numpy()
    for t, counts in enumerate(spikes.cumsum(0).numpy()):
        assert np.array_equal(followed[t], brute_force_maximum(counts, 3, 2, 1))
    assert out.min() < 0 < out.max()


def test_for_binary_spikes_the_gate_is_the_papers():
    """``maxpool(s)`` where the largest count in is above the count out, else 0."""
    spikes = (torch.rand(20, 2, 3, 6, 6, generator=seeded(6)) < 0.3).float()
    gate = SpikingMaxPool2d((2, 2), (2, 2))
    out, _ = gate.advance([spikes], None)
    count_in, count_out = torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 3, 3)
    for t, s in enumerate(spikes):
        count_in = count_in + s
        passed = F.max_pool2d(s, 2)
        passed[F.max_pool2d(count_in, 2) <= count_out] = 0
        count_out = count_out + passed
        assert torch.equal(out[t], passed)


# ---- differential: only changes are sent ----


def weight(seed, *shape):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64) / (shape[-1] * shape[1] ** 0.5)


V = {
    "stem": (weight(1, 4, 3, 3, 3), weight(2, 1, 4)[0] + 0.5),
    "a1": (weight(3, 5, 4, 3, 3), weight(4, 1, 5)[0] / 4),
    "a2": (weight(5, 4, 5, 3, 3), weight(6, 1, 4)[0] / 4),
    "fc": (weight(7, 3, 16), weight(8, 1, 3)[0]),
}
GRID = {"n0": torch.tensor([0.11, 0.13, 0.17, 0.19]), "na": torch.tensor(0.07), "n1": torch.tensor(0.15)}
GRID = {name: theta.double() for name, theta in GRID.items()}
STEADY = weight(9, 1, 4)[0] / 8  # a correction of n1
SHORT = 0.8  # weight of the shortcut


def differential_network(levels):
    def neuron(name, *reads):
        correction = STEADY if name == "n1" else None
        return Node(name, Neuron(GRID[name], 0.5, spikes=Differential(levels), correction=correction), reads)

    nodes = (
        Node("input", Input(), ()),
        Node("stem", Conv2d(*V["stem"], (1, 1), (1, 1)), ("input",)),
        neuron("n0", "stem"),
        Node("a1", Conv2d(*V["a1"], (1, 1), (1, 1)), ("n0",)),
        neuron("na", "a1"),
        Node("a2", Conv2d(*V["a2"], (1, 1), (1, 1)), ("na",)),
        Node("short", Scale(torch.tensor(SHORT, dtype=torch.float64)), ("n0",)),
        neuron("n1", "a2", "short"),
        Node("avg", AvgPool2d((4, 4), (4, 4)), ("n1",)),
        Node("flat", Flatten(), ("avg",)),
        Node("fc", Linear(*V["fc"]), ("flat",)),
        Node("readout", Readout(torch.tensor(2.0, dtype=torch.float64)), ("fc",)),
    )
    return Graph(nodes).validate()


class Sender:
    """A neuron layer that knows the mean at which its receivers stand, and sends only k."""

    def __init__(self, name, levels):
        self.theta = GRID[name].view(-1, 1, 1) if GRID[name].ndim else GRID[name]
        self.most, self.v, self.sum = 2**levels - 1, 0.5 * self.theta, torch.zeros(1, dtype=torch.float64)

    def step(self, t, current):
        mean = self.sum / max(t - 1, 1)
        u = self.v + current - self.theta * mean
        k = torch.floor(u / self.theta).clamp(-self.most, self.most)
        k = torch.maximum(k, torch.ceil(-(self.sum + mean)))
        self.v, self.sum = u - self.theta * k, self.sum + (mean + k)
        return k


class Receiver:
    """A synapse layer that keeps the mean of its current: the bias is in it from the first step, and never again."""

    def __init__(self, through, bias):
        self.through, self.mean = through, bias

    def step(self, t, k):
        change = self.through(k)
        arrived = self.mean + change
        self.mean = self.mean + change / t
        return arrived


def by_events(x, levels, steps):
    """Emissions k of each layer and the answers, step by step; nothing but k goes through a weight."""
    stem = F.conv2d(x, *V["stem"], padding=1)
    n0, na, n1 = (Sender(name, levels) for name in ("n0", "na", "n1"))
    a1 = Receiver(lambda k: F.conv2d(n0.theta * k, V["a1"][0], padding=1), V["a1"][1].view(-1, 1, 1))
    a2 = Receiver(lambda k: F.conv2d(na.theta * k, V["a2"][0], padding=1), (V["a2"][1] + STEADY).view(-1, 1, 1))
    short = Receiver(lambda k: SHORT * n0.theta * k, torch.zeros(1, dtype=torch.float64))
    fc = Receiver(lambda k: F.linear(F.avg_pool2d(n1.theta * k, 4).flatten(1), V["fc"][0]), V["fc"][1])
    sent, answers = {"n0": [], "na": [], "n1": []}, []
    for t in range(1, steps + 1):
        k0 = n0.step(t, stem)
        ka = na.step(t, a1.step(t, k0))
        k1 = n1.step(t, a2.step(t, ka) + short.step(t, k0))
        fc.step(t, k1)
        answers.append(2.0 * fc.mean)
        for name, k in (("n0", k0), ("na", ka), ("n1", k1)):
            sent[name].append(k)
    return {name: torch.stack(train) for name, train in sent.items()}, torch.stack(answers)


@pytest.mark.parametrize("levels", [1, 3])
def test_differential_coding_is_what_it_is_by_events_alone(monkeypatch, levels):
    graph, x, steps = differential_network(levels), images(3, 8, seed=7).double(), 12
    sent, answers = by_events(x, levels, steps)
    trains, chunk = recorded(monkeypatch, graph, x, steps, chunk=steps)
    for name, k in sent.items():
        y = trains[name]
        before = torch.cat([torch.zeros_like(y[:1]), y.cumsum(0)[:-1]])
        mean = before / torch.arange(steps).clamp_min(1).view(-1, 1, 1, 1, 1)
        assert torch.allclose(y - mean, k, rtol=0, atol=1e-9), name
        assert torch.equal((y - mean).round(), k), name
        bits = sum(k.abs().long() >> level & 1 for level in range(levels))
        assert torch.equal(chunk.spikes[name].long(), bits.flatten(2).sum(2)), name
        assert k.min() < 0 < k.max() and (levels == 1 or k.max() > 1), name
    assert chunk.outputs.dtype == torch.float64
    assert torch.allclose(chunk.outputs, answers, rtol=0, atol=1e-9)
    parts = torch.cat([part.outputs for part in graph.stream(x, steps, 5)])
    assert torch.equal(parts, chunk.outputs)


def test_differential_neurons_reach_what_one_step_cannot_send():
    """Their mean climbs beyond ``most`` thresholds, where the same neurons without it are clipped at every T."""
    graph, x = differential_network(3), images(3, 8, seed=7).double()
    plain = []
    for n in graph.nodes:
        spiking = isinstance(n.op, Neuron)
        plain.append(replace(n, op=replace(n.op, spikes=power_of_two(n.op.spikes.amplitudes, True))) if spiking else n)
    want = graph.run(x) + 2 * lacking(graph, x)
    errors = []
    for kind in (graph, replace(graph, nodes=tuple(plain))):
        answers = simulate(kind, x, 64, at=(4, 16, 64)).outputs
        errors.append([float((answer - want).abs().mean() / want.abs().mean()) for answer in answers])
    differential, others = errors
    assert differential[2] < differential[1] < differential[0] and differential[2] < 0.003
    assert min(others) > 0.1


def lacking(graph, x):
    """What the correction of n1 adds to the classifier's mean current, by hand."""
    n0 = F.conv2d(x, *V["stem"], padding=1).relu()
    na = F.conv2d(n0, *V["a1"], padding=1).relu()
    z = F.conv2d(na, *V["a2"], padding=1) + SHORT * n0
    with_it, without = ((z + more).relu() for more in (STEADY.view(-1, 1, 1), 0.0))
    return F.linear(F.avg_pool2d(with_it - without, 4).flatten(1), V["fc"][0])


# ---- as every network ----


def everything(result):
    memory = {(name, i): part for name, parts in result.state.memory.items() for i, part in enumerate(parts)}
    return {"outputs": result.outputs, **result.spikes, **memory}


def float32(graph):
    return graph.to(torch.float32)


def some_network(name):
    if name == "multilevel":
        return network(PLANS[name], weighed=True), pictures(4)
    return float32(differential_network(2)), images(4, 8, seed=7)


@pytest.mark.parametrize("name", ["multilevel", "differential"])
def test_neither_chunk_nor_interruption_changes_anything(name):
    graph, x = some_network(name)
    whole = everything(simulate(graph, x, 11, SimulationSettings(chunk=11)))
    for chunk in (1, 4, None):
        other = everything(simulate(graph, x, 11, SimulationSettings(chunk=chunk)))
        assert all(torch.equal(value, other[key]) for key, value in whole.items()), chunk
    half = simulate(graph, x, 4)
    kept = {key: value.clone() for key, value in everything(half).items()}
    rest = simulate(graph, x, 7, SimulationSettings(chunk=3), state=half.state)
    assert torch.equal(rest.outputs, whole["outputs"])
    assert all(torch.equal(half.spikes[n] + rest.spikes[n], whole[n]) for n in half.spikes)
    assert all(torch.equal(value, kept[key]) for key, value in everything(half).items()), "the state was changed"


@pytest.mark.parametrize("name", ["multilevel", "differential"])
def test_images_that_stop_leave_the_others_as_they_are(name):
    graph, x = some_network(name)
    x = torch.cat([x, 2 * x, -x])
    found = simulate_with_early_exit(graph, x, 16, 0.6 if name == "multilevel" else 0.4, SimulationSettings(chunk=3))
    assert len(set(found.steps.tolist())) > 1
    every = simulate(graph, x, 16, at=range(1, 17))
    for image, step in enumerate(found.steps.tolist()):
        assert torch.allclose(found.outputs[image], every.outputs[step - 1, image], rtol=1e-5, atol=1e-6)
        for neuron, count in found.spikes.items():
            assert count[image] == every.spikes[neuron][step - 1, image]


def test_the_alphabet_in_words():
    said = {name: network(PLANS[name]).alphabet for name in PLANS}
    assert said == {
        "phased": "binary",
        "lagged": "binary",
        "signed": "signed",
        "multilevel": "signed, 4 levels",
        "phased levels": "2 levels",
        "lagged levels": "signed, 3 levels",
        "mixed": "signed, 4 levels",
    }
    assert differential_network(3).alphabet == "signed, 3 levels, differential"
