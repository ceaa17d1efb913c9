"""Graph and simulation against a clock-driven loop in plain torch: one image layer after layer, one step at a time."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F

from s_resnet import Graph, simulate
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph import Neuron, Node, Readout, Scale, SpikingMaxPool2d
from s_resnet.graph.ops import (
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
    SpikingWeights,
)
from s_resnet.kernels import events
from s_resnet.simulation import SimulationSettings


def dyadic(seed, *shape, scale=16):
    """Multiples of 1 / scale in [-0.5, 0.56]: every sum of the networks below is exact in float32."""
    return torch.randint(-8, 10, shape, generator=torch.Generator().manual_seed(seed)) / scale


W = {
    "stem": (dyadic(1, 4, 3, 3, 3), dyadic(2, 4)),
    "a1": (dyadic(3, 4, 4, 3, 3), dyadic(4, 4)),
    "a2": (dyadic(5, 4, 4, 3, 3), dyadic(6, 4) + 0.25),
    "b1": (dyadic(7, 6, 4, 3, 3), dyadic(8, 6) + 0.25),
    "b2": (dyadic(9, 6, 6, 3, 3), dyadic(10, 6)),
    "p": (dyadic(11, 6, 4, 1, 1) + 0.25, dyadic(12, 6)),
    "c1": (dyadic(13, 6, 6, 3, 3), dyadic(14, 6) + 0.25),
    "c2": (dyadic(15, 10, 6, 3, 3), dyadic(16, 10) + 0.125),
    "fc": (dyadic(17, 5, 10), dyadic(18, 5)),
}
THETA_A = torch.tensor([0.5, 1.0, 2.0, 0.75])
SCALE_C = torch.arange(1, 11) / 8


def node(name, op, *inputs):
    return Node(name, op, inputs)


def graph(*nodes):
    return Graph((node("input", Input()), *nodes)).validate()


def conv(name, reads, stride=1, padding=1, gain=1.0):
    return node(name, Conv2d(*W[name], (stride, stride), (padding, padding), spiking=SpikingWeights(gain=gain)), reads)


def network(mode="current"):
    """Max-pool stem, identity shortcut, gated pool, projection, zero-padding shortcut, average pool, classifier."""
    return graph(
        conv("stem", "input", gain=1.25),
        node("pool", MaxPool2d((3, 3), (2, 2), (1, 1)), "stem"),
        node("n0", Neuron(torch.tensor(1.0), 0.5), "pool"),
        conv("a1", "n0"),
        node("na", Neuron(THETA_A, 0.25), "a1"),
        conv("a2", "na"),
        node("a.short", Scale(torch.tensor(0.5), SpikingWeights(gain=1.5)), "n0"),
        node("n1", Neuron(torch.tensor(2.0)), "a2", "a.short"),
        node("gate", SpikingMaxPool2d((3, 3), (1, 1), (1, 1)), "n1"),
        conv("b1", "gate", 2),
        node("nb", Neuron(torch.tensor(1.0), 0.5, "zero", 0.5), "b1"),
        conv("b2", "nb"),
        conv("p", "gate", 2, 0),
        node("n2", Neuron(torch.tensor(0.75)), "b2", "p"),
        conv("c1", "n2"),
        node("nc", Neuron(torch.tensor(1.0)), "c1"),
        conv("c2", "nc", 2),
        node("c.half", Slice(((None, None, None), (None, None, 2), (None, None, 2))), "n2"),
        node("c.pad", Pad((0, 0, 0, 0, 2, 2)), "c.half"),
        node("c.short", Scale(SCALE_C), "c.pad"),
        node("n3", Neuron(torch.tensor(1.0)), "c2", "c.short"),
        node("avg", AvgPool2d((2, 2), (2, 2)), "n3"),
        node("flat", Flatten(), "avg"),
        node("fc", Linear(*W["fc"], SpikingWeights(gain=2.0)), "flat"),
        node("readout", Readout(torch.tensor(4.0), mode), "fc"),
    )


def by_steps(images, steps, mode="current"):
    """The same network by hand in float64, step by step: answers ``[T, B, 5]`` and spikes per image ``[T, B]``."""
    w = {name: (weight.double(), bias.double()) for name, (weight, bias) in W.items()}
    x, v, answers, counts, total, count_in, count_out = images.double(), {}, [], {}, 0.0, 0.0, 0.0

    def fire(name, current, theta, start=0.0, hard=False, decay=1.0):
        u = decay * v.get(name, torch.zeros_like(current) + start * theta) + current
        s = (u >= theta).double()
        v[name] = u * (1 - s) if hard else u - theta * s
        counts.setdefault(name, []).append(s.flatten(1).sum(1))
        return s

    for t in range(1, steps + 1):
        stem = F.conv2d(x, 1.25 * w["stem"][0], w["stem"][1], 1, 1)
        n0 = fire("n0", F.max_pool2d(stem, 3, 2, 1), 1.0, 0.5)
        theta = THETA_A.double().view(4, 1, 1)
        na = theta * fire("na", F.conv2d(n0, *w["a1"], 1, 1), theta, 0.25)
        n1 = 2.0 * fire("n1", F.conv2d(na, *w["a2"], 1, 1) + 0.75 * n0, 2.0)
        count_in = count_in + n1
        gated = F.max_pool2d(n1, 3, 1, 1)
        gated[F.max_pool2d(count_in, 3, 1, 1) <= count_out] = 0
        count_out = count_out + gated
        nb = fire("nb", F.conv2d(gated, *w["b1"], 2, 1), 1.0, 0.5, True, 0.5)
        n2 = 0.75 * fire("n2", F.conv2d(nb, *w["b2"], 1, 1) + F.conv2d(gated, *w["p"], 2, 0), 0.75)
        nc = fire("nc", F.conv2d(n2, *w["c1"], 1, 1), 1.0)
        short = torch.zeros(len(x), 10, 2, 2, dtype=torch.float64)
        short[:, 2:8] = n2[:, :, ::2, ::2]
        n3 = fire("n3", F.conv2d(nc, *w["c2"], 2, 1) + SCALE_C.double().view(10, 1, 1) * short, 1.0)
        logits = F.linear(n3.mean((2, 3)), 2.0 * w["fc"][0], w["fc"][1])
        if mode == "current":
            total = total + logits
            answers.append(4.0 * total / t)
        else:
            total = total + fire("readout", logits, 1.0)
            answers.append(4.0 * (total + v["readout"].softmax(1)) / t)
    counts.pop("readout", None)
    return torch.stack(answers), {name: torch.stack(value).cumsum(0) for name, value in counts.items()}


def pictures(batch, seed=30):
    return dyadic(seed, batch, 3, 12, 12, scale=8)


def tiny(*ops):
    """input -> ops one after another, named op1, op2, ..."""
    names = ["input", *(f"op{i}" for i in range(1, len(ops) + 1))]
    return graph(*(node(name, op, reads) for reads, name, op in zip(names, names[1:], ops, strict=False)))


def flat(simulation):
    """Everything a Simulation holds, by name: answers, spikes and memory."""
    memory = {(name, i): part for name, parts in simulation.state.memory.items() for i, part in enumerate(parts)}
    assert simulation.spikes and memory
    return {"outputs": simulation.outputs, **simulation.spikes, **memory}


def same(a, b):
    """Two Simulations, bit for bit."""
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- against the loop ----


@pytest.mark.parametrize("mode", ["current", "spikes"])
@pytest.mark.parametrize("chunk", [1, 7, 12, None])
def test_every_answer_and_every_spike_count_is_that_of_the_loop(chunk, mode):
    images, steps = pictures(3), 12
    answers, counts = by_steps(images, steps, mode)
    result = simulate(network(mode), images, steps, SimulationSettings(chunk=chunk), at=range(1, steps + 1))
    assert result.steps == tuple(range(1, steps + 1))
    if mode == "current":
        assert torch.equal(result.outputs, answers.float())
    else:
        assert torch.allclose(result.outputs.double(), answers, rtol=1e-6, atol=0)
    assert set(result.spikes) == set(counts) == {"n0", "na", "n1", "nb", "n2", "nc", "n3"}
    for name, count in counts.items():
        assert torch.equal(result.spikes[name], count), name
        assert (count[-1] > 0).all(), f"{name} never fires: nothing was compared"
    assert answers[-1].std() > 0


@pytest.mark.parametrize("mode", ["current", "spikes"])
def test_the_chunk_changes_nothing(mode):
    snn, images = network(mode), pictures(2)
    results = [
        simulate(snn, images, 20, SimulationSettings(chunk=chunk), at=(1, 13, 20)) for chunk in (1, 7, 20, 64, None)
    ]
    assert all(same(results[0], other) for other in results[1:])


def test_the_batch_changes_nothing():
    snn, images = network(), pictures(32)
    together = simulate(snn, images, 9, SimulationSettings(chunk=4))
    for i in range(32):
        alone = simulate(snn, images[i : i + 1], 9, SimulationSettings(chunk=4))
        assert torch.equal(alone.outputs[:, 0], together.outputs[:, i])
        assert all(torch.equal(count[:, 0], together.spikes[name][:, i]) for name, count in alone.spikes.items())


def test_a_smaller_batch_after_a_larger_one_and_a_second_call_start_fresh():
    snn, images = network(), pictures(5)
    first = snn(images, timesteps=11)
    assert torch.equal(first, by_steps(images, 11)[0][-1].float())
    assert torch.equal(snn(images[:2], timesteps=11), first[:2])
    assert torch.equal(snn(images, timesteps=11), first)
    assert not first.requires_grad and first.shape == (5, 5)


def test_answers_of_one_pass_are_those_of_separate_runs():
    snn, images = network("spikes"), pictures(2)
    result = simulate(snn, images, 10, SimulationSettings(chunk=4), at=[10, 1, 4, 4, 5])
    assert result.steps == (1, 4, 5, 10)
    for row, steps in enumerate(result.steps):
        alone = simulate(snn, images, steps)
        assert torch.equal(alone.outputs[0], result.outputs[row])
        assert all(torch.equal(alone.spikes[name][0], result.spikes[name][row]) for name in alone.spikes)


@pytest.mark.parametrize("coding", ["direct", "poisson"])
@pytest.mark.parametrize("mode", ["current", "spikes"])
def test_going_on_from_a_state_is_one_long_simulation(coding, mode):
    snn, images = network(mode), pictures(2)
    whole = simulate(snn, images, 16, SimulationSettings(chunk=5, coding=coding))
    half = simulate(snn, images, 10, SimulationSettings(chunk=5, coding=coding))
    kept = {name: [part.clone() for part in memory] for name, memory in half.state.memory.items()}
    rest = simulate(snn, images, 6, SimulationSettings(chunk=4, coding=coding), state=half.state)
    assert (half.state.step, rest.state.step, whole.state.step) == (10, 16, 16)
    assert torch.equal(rest.outputs, whole.outputs)
    assert all(torch.equal(half.spikes[n] + rest.spikes[n], whole.spikes[n]) for n in whole.spikes)
    for name, memory in half.state.memory.items():
        assert all(torch.equal(a, b) for a, b in zip(memory, kept[name], strict=True)), "the state was changed"
    assert torch.equal(
        simulate(snn, images, 6, SimulationSettings(chunk=4, coding=coding), state=half.state).outputs, rest.outputs
    )


# ---- single parts ----


@pytest.mark.parametrize("start", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("theta", [1.0, 0.5, 4.0])
def test_a_neuron_starts_at_its_share_of_the_threshold_and_emits_threshold_times_spike(theta, start):
    """Mean output of a constant current x: ``theta floor(start + T x / theta) / T``."""
    images = torch.tensor([0.375, 0.5, 3.0, -1.0]).view(1, 1, 2, 2)
    snn = tiny(Neuron(torch.tensor(theta), start), Flatten(), Readout(torch.tensor(1.0)))
    result = simulate(snn, images, 16, SimulationSettings(chunk=5), at=range(1, 17))
    for t in range(1, 17):
        counts = [min(t, max(0, math.floor(start + t * x / theta))) for x in (0.375, 0.5, 3.0, -1.0)]
        assert result.outputs[t - 1, 0].tolist() == pytest.approx([theta * count / t for count in counts])
        assert result.spikes["op1"][t - 1].item() == sum(counts)


def test_gain_multiplies_weights_and_not_biases_and_only_in_spiking_runs():
    convolution = Conv2d(torch.ones(1, 1, 1, 1), torch.tensor([0.125]), spiking=SpikingWeights(gain=1.5))
    linear = Linear(torch.eye(4), torch.tensor([0.0, 0.25, 0.0, 0.0]), SpikingWeights(gain=2.0))
    snn = tiny(
        convolution, Scale(torch.tensor(0.5), SpikingWeights(gain=3.0)), Neuron(torch.tensor(1.0)), Flatten(), linear
    )
    images = torch.tensor([0.25, 0.5, 1.0, -1.0]).view(1, 1, 2, 2)
    analog = [(0.25 + 0.125) / 2, (0.5 + 0.125) / 2 + 0.25, (1 + 0.125) / 2, 0.0]
    assert snn.run(images)[0].tolist() == analog
    snn = graph(*snn.nodes[1:], node("readout", Readout(torch.tensor(1.0)), "op5"))
    assert snn.run(images)[0].tolist() == analog
    current = [1.5 * (1.5 * x + 0.125) for x in (0.25, 0.5, 1.0, -1.0)]
    rates = [min(8, max(0, math.floor(8 * i))) / 8 for i in current]
    assert snn(images, 8)[0].tolist() == [2 * rate + bias for rate, bias in zip(rates, (0, 0.25, 0, 0), strict=True)]


def test_the_analog_run_is_the_source_network():
    images, w = pictures(3), W
    n0 = F.max_pool2d(F.conv2d(images, *w["stem"], 1, 1), 3, 2, 1).relu()
    n1 = (F.conv2d(F.conv2d(n0, *w["a1"], 1, 1).relu(), *w["a2"], 1, 1) + 0.5 * n0).relu()
    gate = F.max_pool2d(n1, 3, 1, 1)
    n2 = F.conv2d(F.conv2d(gate, *w["b1"], 2, 1).relu(), *w["b2"], 1, 1) + F.conv2d(gate, *w["p"], 2, 0)
    short = F.pad(n2.relu()[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) * SCALE_C.view(10, 1, 1)
    n3 = (F.conv2d(F.conv2d(n2.relu(), *w["c1"], 1, 1).relu(), *w["c2"], 2, 1) + short).relu()
    assert torch.allclose(network().run(images), 4 * F.linear(n3.mean((2, 3)), *w["fc"]), rtol=1e-5, atol=1e-5)


def test_shortcut_synapses_wherever_they_stand():
    """Two into one neuron, one alone, one of the constant input, one read by a neuron and a sum."""
    one, half = torch.tensor(1.0), torch.tensor(0.5)
    snn = graph(
        node("from_input", Scale(torch.tensor(0.25)), "input"),
        node("a", Neuron(one), "input"),
        node("first", Scale(half), "a"),
        node("second", Scale(torch.tensor(0.25)), "a"),
        node("b", Neuron(half), "first", "second", "from_input"),
        node("alone", Scale(torch.tensor(2.0)), "b"),
        node("c", Neuron(one), "alone"),
        node("sum", Add(), "first", "c"),
        node("flat", Flatten(), "sum"),
        node("readout", Readout(one), "flat"),
    )
    images, steps = torch.tensor([0.25, 0.5, 0.875, -1.0]).view(1, 1, 2, 2), 13
    want, fired = [], [0, 0, 0]
    for x in images.flatten().tolist():
        a = b = c = total = 0.0
        for _ in range(steps):
            sa = (a + x) >= 1
            a += x - sa
            current = 0.5 * sa + 0.25 * sa + 0.25 * x
            sb = (b + current) >= 0.5
            b += current - 0.5 * sb
            sc = (c + 2.0 * 0.5 * sb) >= 1
            c += 2.0 * 0.5 * sb - sc
            total += 0.5 * sa + sc
            fired = [count + bool(s) for count, s in zip(fired, (sa, sb, sc), strict=True)]
        want.append(total / steps)
    for chunk in (1, 4, 13):
        result = simulate(snn, images, steps, SimulationSettings(chunk=chunk))
        assert result.outputs[0, 0].tolist() == pytest.approx(want)
        assert [int(result.spikes[name].item()) for name in "abc"] == fired


def test_poisson_spikes_have_the_image_as_their_mean_and_follow_the_seed():
    images = torch.stack([torch.tensor([-2.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 0.25, -0.125, 0.0]), torch.zeros(4)])
    images, steps = images.view(3, 1, 2, 2), 4000
    # The readout averages the input itself; the neuron is only there because a network must have one.
    snn = graph(
        node("quiet", Neuron(torch.tensor(1e9)), "input"),
        node("sum", Add(), "input", "quiet"),
        node("flat", Flatten(), "sum"),
        node("readout", Readout(torch.tensor(1.0)), "flat"),
    )
    runs = [
        simulate(snn, images, steps, SimulationSettings(chunk=chunk, coding="poisson", seed=3), at=(1, steps)).outputs
        for chunk in (500, 77)
    ]
    assert torch.equal(*runs)
    first, mean = runs[0]
    amplitude = images.abs().amax((1, 2, 3), keepdim=True).flatten(1)
    assert ((first == 0) | (first.abs() == amplitude)).all()
    probability = images.flatten(1).abs() / amplitude.clamp_min(1e-9)
    spread = amplitude * (probability * (1 - probability) / steps).sqrt()
    assert ((mean - images.flatten(1)).abs() <= 4 * spread + 1e-6).all()
    assert not torch.equal(simulate(snn, images, steps, SimulationSettings(coding="poisson", seed=4)).outputs[0], mean)
    assert torch.equal(simulate(snn, images, 1).outputs[0], images.flatten(1))  # direct coding is the image itself


# ---- what it costs ----


@pytest.mark.parametrize(("coding", "stem_calls"), [("direct", 1), ("poisson", 5)])
def test_the_constant_stem_is_computed_once(monkeypatch, coding, stem_calls):
    calls, plain = [], F.conv2d

    def counted(x, weight, *rest):
        calls.append(weight.shape[1])
        return plain(x, weight, *rest)

    def counted_events(current, *rest):
        calls.append(current.events.shape[1])
        return plain_events(current, *rest)

    plain_events = events._convolve
    monkeypatch.setattr(F, "conv2d", counted)
    monkeypatch.setattr(events, "_convolve", counted_events)
    simulate(network(), pictures(2), 14, SimulationSettings(chunk=3, coding=coding))  # chunks of 3, 3, 3, 3 and 2 steps
    assert calls.count(3) == stem_calls  # the stem alone reads three channels
    assert len(calls) == stem_calls + 5 * 7


def test_values_are_freed_after_their_last_reader_and_memory_does_not_grow_with_time(monkeypatch):
    batch, chunk, folded, total, plain = 7, 5, [], [], F.linear

    def watched(x, *rest):
        live = [y for y in gc.get_objects() if type(y) is torch.Tensor]
        total.append(len(live))
        folded.append(sum(y.ndim > 0 and y.shape[0] == batch * chunk for y in live))
        return plain(x, *rest)

    monkeypatch.setattr(F, "linear", watched)
    gc.collect()  # what other tests have left must not go away while we count
    simulate(network(), pictures(batch), 30, SimulationSettings(chunk=chunk))
    # At the classifier only its own input is left of what the chunk's layers gave; nothing is left of earlier chunks.
    assert len(folded) == 6 and max(folded) <= 2 and len(set(total[2:])) == 1


# ---- what does not fit ----

PLAIN, X = tiny(Neuron(torch.tensor(1.0)), Flatten(), Readout(torch.tensor(1.0))), torch.zeros(2, 1, 2, 2)
MISUSE = {
    "no steps": lambda: simulate(PLAIN, X, 0),
    "no steps called": lambda: PLAIN(X, timesteps=0),
    "chunk 0": lambda: simulate(PLAIN, X, 4, SimulationSettings(chunk=0)),
    "at 0": lambda: simulate(PLAIN, X, 4, at=[0, 2]),
    "at beyond": lambda: simulate(PLAIN, X, 4, at=[2, 5]),
    "at nothing": lambda: simulate(PLAIN, X, 4, at=[]),
    "two dimensions": lambda: simulate(PLAIN, X[0, 0], 4),
    "two dimensions, poisson": lambda: simulate(PLAIN, X[0, 0], 4, SimulationSettings(coding="poisson")),
    "no images": lambda: simulate(PLAIN, X[:0], 4),
    "no neurons": lambda: simulate(tiny(ReLU(), Flatten()), X, 4),
    "coding": lambda: simulate(PLAIN, X, 4, SimulationSettings(coding="rate")),
    "another batch's state": lambda: simulate(PLAIN, X, 4, state=simulate(PLAIN, X[:1], 2).state),
    "another network's state": lambda: simulate(network(), pictures(2), 4, state=simulate(PLAIN, X, 2).state),
    "channels": lambda: simulate(network(), torch.zeros(2, 1, 12, 12), 4),
    "channels, analog": lambda: network().run(torch.zeros(2, 1, 12, 12)),
    "bytes": lambda: simulate(network(), torch.zeros(2, 3, 12, 12, dtype=torch.uint8), 4),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_what_does_not_fit_is_refused_in_one_line(misuse):
    with pytest.raises(InvalidData) as caught:
        MISUSE[misuse]()
    assert "\n" not in str(caught.value) and "got" in str(caught.value)


A = ReLU()
BROKEN = {
    "twice": ([node("i", Input()), node("a", A, "i"), node("a", A, "a")], "'a' twice"),
    "from nowhere": ([node("i", Input()), node("a", A, "b")], "'b'"),
    "from later": ([node("i", Input()), node("a", Add(), "i", "b"), node("b", A, "a")], "'b'"),
    "itself": ([node("i", Input()), node("a", A, "a")], "'a'"),
    "lost": ([node("i", Input()), node("a", A, "i"), node("b", A, "i")], "a: got no reader"),
    "empty": ([], "no nodes"),
    "two inputs": ([node("i", Input()), node("x", Input()), node("a", Add(), "i", "x")], "^x: "),
    "no input": ([node("a", A)], "^a: "),
    "reads nothing": ([node("i", Input()), node("a", A), node("b", Add(), "i", "a")], "^a: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_graph_is_refused(name):
    nodes, message = BROKEN[name]
    with pytest.raises(ConversionError, match=message):
        Graph(tuple(nodes)).validate()


def test_to_keeps_everything_and_users_and_static_say_who_reads():
    snn = network()
    assert graph(*snn.nodes[1:-1], node("last", Scale(torch.tensor(2.0)), "fc"))(pictures(2), 1).shape == (2, 5)
    assert torch.equal(snn.to("cpu")(pictures(2), 5), snn(pictures(2), 5))
    assert snn.users["n0"] == ("a1", "a.short") and snn.users["readout"] == ()
    assert snn.static == {"input", "stem", "pool"}
    assert [node.name for node in snn.neurons] == ["n0", "na", "n1", "nb", "n2", "nc", "n3"]
