"""How much goes through a layer at a time: results do not depend on it, shapes repeat, memory is bounded."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from graphs_on_cpu import claimed, gpu  # noqa: F401
from test_anytime import by_brute_force
from test_anytime import network as branching
from test_anytime import pictures as dark_to_bright
from test_engine import by_steps, network, pictures, right, run, same
from test_schedules import NEURONS, PLANS
from test_schedules import network as waiting
from test_schedules import pictures as windows

from s_resnet import Graph, evaluate, simulate
from s_resnet.graph import Neuron, StreamSettings
from s_resnet.graph.engine import Whole, chunks
from s_resnet.graph.engine.run import Run
from s_resnet.simulation import SimulationSettings, features, simulate_with_early_exit

WAITING = [name for name in PLANS if name != "multilevel"]
PHASED = [name for name, plan in PLANS.items() if any(schedule == "phased" for schedule, *_ in plan.values())]
LAGGED = {name: PLANS[name] for name in WAITING if name not in PHASED}
# A delay at every third layer, so that shortcuts wait for branches that are later by other amounts.
LAGGED["some"] = {neuron: PLANS[("lagged", "multilevel", "signed")[i % 3]][neuron] for i, neuron in enumerate(NEURONS)}


@pytest.fixture
def runs(monkeypatch):
    """(images, steps) of everything that goes through the layers."""
    seen, advance = [], Run.advance

    def noted(self, steps):
        seen.append((self.batch, steps))
        return advance(self, steps)

    monkeypatch.setattr(Run, "advance", noted)
    return seen


# ---- steps at a time ----


@pytest.mark.parametrize(
    ("total", "most", "parts"),
    [
        (64, 20, [16] * 4),
        (64, 32, [32, 32]),
        (64, 64, [64]),
        (7, 3, [3, 3, 1]),
        (63, 20, [16, 16, 16, 15]),
        (1, 9, [1]),
    ],
)
def test_as_few_equal_parts_as_there_must_be(total, most, parts):
    assert chunks.equal(total, most) == parts


@pytest.mark.parametrize("most", range(1, 14))
def test_equal_parts_of_any_size(most):
    for total in range(1, 60):
        parts = chunks.equal(total, most)
        assert sum(parts) == total and max(parts) <= most and len(parts) == -(-total // most)
        assert set(parts[:-1]) <= {parts[0]} and 0 < parts[-1] <= parts[0]


def test_chunks_are_equal_by_default_and_as_asked_for_else(runs, monkeypatch):
    """The stem gives 512 numbers for each of 3 images."""
    snn, images = replace(network("three inputs")), pictures(3)
    for name in ("EVENTS", "CURRENTS"):
        monkeypatch.setattr(chunks, name, 512 * 3 * 9 + 1)
    want = by_steps(snn, images, 13)
    for chunk, lengths in ((None, [7, 6]), (9, [9, 4]), (4, [4, 4, 4, 1])):
        runs.clear()
        right(run(snn, images, 13, chunk), want)
        assert runs == [(3, length) for length in lengths]


def test_what_torch_keeps_counts_as_free_and_a_shape_stays_as_it_was(gpu, runs, monkeypatch):  # noqa: F811
    """A quarter of the memory for eight tensors in float32, of 512 numbers for each of 3 images and step."""
    step = 512 * 3 * 4 * 8 * 4
    snn, images = replace(network("three inputs")), claimed(pictures(3))
    gpu.free = 2 * step
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * step)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * step)
    list(snn.stream(images, 10))
    gpu.free = 1
    list(snn.stream(images, 10))
    assert runs == [(3, 5)] * 4
    runs.clear()
    list(snn.stream(images[:1], 10))  # of a third of the size, with three steps' worth of memory
    assert runs == [(1, 5)] * 2
    gpu.free = 2**50
    assert chunks.on_gpu(images.device, 4) == chunks.GPU


# ---- cuDNN's algorithms ----


@pytest.fixture
def tuned(monkeypatch):
    """Whether cuDNN was to look for algorithms, of every chunk."""
    seen = []

    class Noted:
        def __init__(self, images, tf32, autotune=None):
            seen.append(autotune)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("s_resnet.graph.engine.steps.arithmetic", Noted)
    return seen


@pytest.mark.parametrize(
    ("steps", "chunk", "repeats", "want"),
    [
        (12, 4, 1, [False] * 3),
        (10, 1, 1, [True] * 10),
        (21, 2, 1, [True] * 10 + [False]),
        (12, 4, 4, [True] * 3),
        (13, 4, 4, [True] * 3 + [False]),
    ],
)
def test_cudnn_looks_for_algorithms_where_a_shape_comes_often(tuned, steps, chunk, repeats, want):
    snn, images = replace(network("three inputs")), pictures(2)
    for whole in (Whole(repeats=repeats), None, Whole(repeats=1000)):  # what was decided stays
        list(snn.stream(images, steps, chunk, settings=StreamSettings(whole=whole)))
        assert tuned == want
        tuned.clear()
    list(snn.stream(images[:1], steps, chunk, settings=StreamSettings(whole=Whole(repeats=1000))))
    assert all(tuned)


def test_an_evaluation_says_how_many_batches_of_the_first_size_it_expects(monkeypatch):
    told, stream = [], type(network("three inputs")).stream

    def noted(self, images, *rest, settings, **named):
        told.append((len(images), settings.whole))
        return stream(self, images, *rest, settings=settings, **named)

    monkeypatch.setattr(type(network("three inputs")), "stream", noted)
    batches = [(pictures(size), torch.zeros(size, dtype=torch.int64)) for size in (3, 3, 2)]
    evaluate(network("three inputs"), batches, 4, device="cpu")
    assert told == [(3, Whole(False, 3)), (3, Whole(False, 3)), (2, Whole(False, 1))]
    told.clear()
    evaluate(network("three inputs"), iter(batches), 4, device="cpu")  # which does not say
    assert {whole for _, whole in told} <= {Whole(False, 3), Whole(False, 1)}


# ---- memory that may change in place ----


@pytest.mark.parametrize("name", ["three inputs", "thresholds by channel", "gated pool"])
def test_a_whole_run_keeps_the_last_state_alone_and_what_was_given(name, monkeypatch):
    """And from the second chunk on it writes membranes where they are."""
    told, advance = [], Neuron.advance

    def noted(self, currents, memory, *rest, **settings):
        told.append(rest[-1].in_place)
        return advance(self, currents, memory, *rest, **settings)

    monkeypatch.setattr(Neuron, "advance", noted)
    snn = network(name)
    images = pictures(3, snn["stem"].op.weight.shape[1])
    want = run(snn, images, 13, 3)
    assert not any(told)
    begun = run(snn, images, 4, 4)
    kept = {name: [part.clone() for part in parts] for name, parts in begun.state.memory.items()}
    for state, step in ((None, 0), (begun.state, 4)):
        told.clear()
        parts = list(snn.stream(images, 13 - step, 3, state, StreamSettings(whole=Whole())))
        assert [bool(part.state.memory) for part in parts] == [False] * (len(parts) - 1) + [True]
        assert [part.state.step for part in parts][-1] == 13
        spikes = {name: torch.cat([part.spikes[name] for part in parts]) for name in parts[0].spikes}
        rest = {name: count[step:] for name, count in want.spikes.items()}
        outputs = torch.cat([part.outputs for part in parts])
        same(SimpleNamespace(outputs=outputs, spikes=spikes, state=parts[-1].state),
             SimpleNamespace(outputs=want.outputs[step:], spikes=rest, state=want.state))  # fmt: skip
        layers = len(snn.neurons)
        assert told == [False] * layers + [True] * (len(told) - layers)
    assert all(torch.equal(a, b) for name, p in kept.items() for a, b in zip(begun.state.memory[name], p, strict=True))
    parts = list(snn.stream(images, 13, 3, settings=StreamSettings(whole=Whole(state=False))))
    assert not any(part.state.memory for part in parts) and torch.equal(parts[-1].outputs, want.outputs[-1:])


def test_states_that_were_yielded_stay(monkeypatch):
    snn, images = network("three inputs"), pictures(3)
    states = [part.state for part in snn.stream(images, 13, 4)]
    for state in states:
        alone = run(snn, images, state.step, 4).state
        for name, parts in alone.memory.items():
            assert all(map(torch.equal, parts, state.memory[name])), name


# ---- images at a time ----


@pytest.mark.parametrize("name", LAGGED)
@pytest.mark.parametrize("case", ["images", "poisson", "events"])
def test_chunks_of_a_lagged_window_change_nothing(name, case, monkeypatch):
    """Answers, spikes and the last memory; the answers of a chunk come with the spikes of the same steps."""
    snn, x, steps = waiting(LAGGED[name], weighed=True), windows(3), 7
    frames = windows(3 * steps, seed=7).view(steps, 3, 3, 12, 12)

    def run(chunk):
        done = 0

        def encode(steps):
            nonlocal done
            done += steps
            return frames[done - steps : done]

        given = frames if case == "events" else x
        settings = StreamSettings(encode=encode if case == "poisson" else None)
        return list(snn.stream(given, steps, chunk, settings=settings))

    (want,) = run(steps)
    monkeypatch.setattr(chunks, "LAGGED", 3)
    (by_default,) = run(None)
    same(by_default, want)
    for chunk in (1, 2, 3, 6):
        parts = run(chunk)
        assert len(parts) > 1 and all(len(part.outputs) == len(n) for part in parts for n in part.spikes.values())
        assert [bool(part.state.memory) for part in parts] == [False] * (len(parts) - 1) + [True]
        spikes = {node: torch.cat([part.spikes[node] for part in parts]) for node in want.spikes}
        assert list(parts[0].spikes) == list(want.spikes)
        outputs = torch.cat([part.outputs for part in parts])
        same(SimpleNamespace(outputs=outputs, spikes=spikes, state=parts[-1].state), want)


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize("case", ["images", "poisson", "events"])
def test_portions_of_the_images_change_nothing(name, case, runs, monkeypatch):
    """Where layers wait: answers, spikes and memory of all, in the order of the images. 4 x 12 x 12 numbers a step."""
    snn, x, steps = waiting(PLANS[name], weighed=True), windows(5), 6
    frames = windows(5 * steps, seed=7).view(steps, 5, 3, 12, 12)

    def parts():
        if case == "events":
            return list(replace(snn).stream(frames, steps))
        encode = None if case == "images" else lambda steps: frames[:steps]
        return list(replace(snn).stream(x, steps, settings=StreamSettings(encode=encode)))

    (want,) = parts()
    assert runs == [(5, steps)]
    for room, sizes in ((1, [1] * 5), (4 * 12 * 12 * steps * 2, [2, 2, 1]), (4 * 12 * 12 * steps * 4, [3, 2])):
        runs.clear()
        monkeypatch.setattr(chunks, "WINDOW", room)
        (got,) = parts()
        assert runs == [(size, steps) for size in sizes]
        same(got, want)


def test_answers_and_features_in_portions(runs, monkeypatch):
    snn, x = waiting(PLANS["mixed"]), windows(5)
    names = ["n0", "a2", "gate", "fc", "readout"]
    want, seen = features(replace(snn), x, 4, names), {}
    answer = replace(snn)(x, 4)
    runs.clear()
    monkeypatch.setattr(chunks, "WINDOW", 4 * 12 * 12 * 4 * 2)
    fresh = replace(snn)
    got = features(fresh, x, 4, names)
    assert list(got) == names and all(torch.equal(got[name], want[name]) for name in names)
    assert torch.equal(fresh(x, 4), answer) and torch.equal(features(fresh, x, 4, ["readout"])["readout"], answer)
    assert runs == [(2, 4), (2, 4), (1, 4)] * 3
    runs.clear()
    list(
        fresh.stream(x, 4, settings=StreamSettings(observe=lambda name, value: seen.update({name: len(value)})))
    )  # sees all at once
    assert runs == [(5, 4)] and set(seen.values()) == {20}


def test_portions_on_a_gpu_follow_its_memory(gpu, runs):  # noqa: F811
    snn, x = waiting(PLANS["mixed"]), windows(5)
    want = replace(snn)(x, 6)
    runs.clear()
    gpu.free = 4 * 12 * 12 * 6 * 2 * 4 * 8 * 4
    assert torch.equal(replace(snn)(claimed(x), 6), want)
    assert runs == [(2, 6), (2, 6), (1, 6)]


# ---- images that leave ----


def test_on_a_gpu_batches_shrink_to_powers_of_two(gpu, runs, monkeypatch):  # noqa: F811
    """So that few shapes come; who has stopped and is still there changes nothing."""
    images, graph = dark_to_bright(19), branching()
    want = by_brute_force(graph, images, 24, 0.8)
    runs.clear()
    begun, stream = [], Graph.stream
    monkeypatch.setattr(Graph, "stream", lambda *given, **named: begun.append(1) or stream(*given, **named))
    got = simulate_with_early_exit(graph, claimed(images), 24, 0.8, SimulationSettings(chunk=1))
    assert got.steps.tolist() == [t for t, _, _ in want]
    assert torch.equal(got.outputs, torch.stack([answer for _, answer, _ in want]))
    assert {name: count.tolist() for name, count in got.spikes.items()} == {
        name: [spikes[name] for _, _, spikes in want] for name in got.spikes
    }
    batches = [batch for batch, _ in runs]
    assert batches == sorted(batches, reverse=True) and set(batches) <= {19, 16, 8, 4, 2, 1} and len(set(batches)) >= 3
    assert len(begun) == len(set(batches))
    left = [sum(t > done for t, _, _ in want) for done in range(len(batches))]
    assert all(batch < 2 * count or batch == 19 for batch, count in zip(batches, left, strict=True))


def test_spikes_of_all_layers_up_to_each_step():
    snn, images = network("three inputs"), pictures(3)
    result = simulate(snn, images, 13, SimulationSettings(chunk=4), at=(2, 5, 13))
    counts = by_steps(snn, images, 13)[1]
    assert list(result.spikes) == [node.name for node in snn.neurons]
    for name, count in counts.items():
        assert torch.equal(result.spikes[name], count.cumsum(0)[[1, 4, 12]])
