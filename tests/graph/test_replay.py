"""Simulations recorded as CUDA graphs, without a GPU: each replay gives what a run in float64, step by step, gives."""

import copy
import threading
from dataclasses import dataclass, replace

import every_recipe
import pytest
import torch
from graphs_on_cpu import claimed, gpu  # noqa: F401
from test_engine import NETWORKS, by_steps, network, pictures
from test_schedules import PLANS
from test_schedules import network as waiting
from test_schedules import pictures as windows
from torch._subclasses.fake_tensor import FakeTensorMode

from s_resnet import Graph, simulate
from s_resnet.graph import Neuron, Node, StreamSettings
from s_resnet.graph.engine import Whole, replay, steps
from s_resnet.simulation import SimulationSettings, features, simulate_with_early_exit
from s_resnet.simulation.simulate import answers

T = 10


def images(name, seed):
    snn = network(name)
    channels = snn["stem"].op.weight.shape[1] if "stem" in snn.users else 3
    return pictures(3, channels, seed=seed)


def fresh(snn):
    """The same network without what it has prepared or recorded."""
    return replace(snn)


def right(result, snn, x, at):
    wanted, counts = by_steps(snn, x, T)
    for row, step in enumerate(at):
        assert torch.equal(result.outputs[row], wanted[step - 1].float())
        for name, count in counts.items():
            assert torch.equal(result.spikes[name][row], count[:step].sum(0)), name


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_run_of_a_shape_is_right_and_from_the_second_on_it_is_a_replay(gpu, name):  # noqa: F811
    snn, at = fresh(network(name)), (1, 4, T)
    for turn in range(4):
        x = images(name, 30 + turn)
        right(simulate(snn, claimed(x), T, SimulationSettings(chunk=3), at=at), snn, x, at)
        assert [one.replays for one in gpu.recordings] == ([] if turn == 0 else [turn])


@pytest.mark.parametrize("name", PLANS)
def test_networks_that_wait_and_their_corrections_of_each_step(gpu, name):  # noqa: F811
    """Rows of a correction belong to steps, and the recording is of the steps from the first on."""
    snn = fresh(waiting(PLANS[name], weighed=True))
    for turn in range(3):
        x = windows(seed=80 + turn)
        want = list(fresh(snn).stream(x, 7))
        got = simulate(snn, claimed(x), 7)
        assert torch.equal(got.outputs[0], want[-1].outputs[-1])
        for layer, count in got.spikes.items():
            assert torch.equal(count[0], sum(part.spikes[layer].double().sum(0) for part in want))
    assert [one.replays for one in gpu.recordings] == [2]


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", every_recipe.NETWORKS)
def test_every_recipe_and_trained_networks(gpu, name, precision):  # noqa: F811
    """Nothing that they run is read back, and a replay is the run itself."""
    snn = fresh(every_recipe.network(name))
    for turn in range(3):
        x = pictures(3, seed=turn) / 2
        want = list(fresh(snn).stream(claimed(x), every_recipe.STEPS, settings=StreamSettings(precision=precision)))
        got = simulate(snn, claimed(x), every_recipe.STEPS, SimulationSettings(precision=precision))
        assert torch.equal(got.outputs[0], want[-1].outputs[-1])
        for layer, count in got.spikes.items():
            assert torch.equal(count[0], sum(part.spikes[layer].double().sum(0) for part in want)), layer
    assert [one.replays for one in gpu.recordings] == [2] and sum(count.sum() for count in got.spikes.values()) > 0


def test_what_was_returned_stays_and_a_state_can_be_gone_on_from(gpu):  # noqa: F811
    snn = fresh(network("three inputs"))
    x, y = images("three inputs", 30), images("three inputs", 31)
    simulate(snn, claimed(x), T)
    first = simulate(snn, claimed(x), T)
    kept = {name: [part.clone() for part in parts] for name, parts in first.state.memory.items()}
    outputs, spikes = first.outputs.clone(), {name: count.clone() for name, count in first.spikes.items()}
    (chunk,) = snn.stream(claimed(x), T, settings=StreamSettings(whole=Whole()))
    called = snn(claimed(x), T)
    simulate(snn, claimed(y), T)
    assert gpu.recordings[0].replays == 4
    assert torch.equal(called, outputs[0]) and torch.equal(chunk.outputs[-1], outputs[0])
    assert all(torch.equal(count.double().sum(0), spikes[name][0]) for name, count in chunk.spikes.items())
    assert torch.equal(first.outputs, outputs)
    assert all(torch.equal(first.spikes[name], count) for name, count in spikes.items())
    assert all(torch.equal(a, b) for name, p in kept.items() for a, b in zip(first.state.memory[name], p, strict=True))
    further = simulate(snn, x, 3, state=first.state)
    assert torch.equal(further.outputs, simulate(snn, x, T + 3).outputs)


def test_a_call_and_an_evaluation_take_no_copy_of_the_state(gpu):  # noqa: F811
    snn = fresh(network("shortcut B"))
    x = images("shortcut B", 30)
    want = simulate(snn, x, T).outputs[0]
    for _ in range(3):
        assert torch.equal(snn(claimed(x), T), want)
        found = answers(snn, claimed(x), (4, T), "exact", 1)
        assert found.steps == (4, T) and found.state.memory == {} and torch.equal(found.outputs[1], want)
    assert [one.replays for one in gpu.recordings] == [5]  # of six runs of one shape


def run_thrice(act):
    for _ in range(3):
        act()


NOT_RECORDED = {
    "a stream": lambda snn, x: list(snn.stream(x, T)),
    "anytime": lambda snn, x: simulate_with_early_exit(snn, x, T, 0.999999),
    "a state": lambda snn, x: simulate(snn, x, 3, state=simulate(snn, x.as_subclass(torch.Tensor), 2).state),
    "poisson": lambda snn, x: simulate(snn, x, T, SimulationSettings(coding="poisson")),
    "events": lambda snn, x: simulate(snn, x.expand(T, *x.shape), T),
    "observed": lambda snn, x: features(snn, x, T, ["n0"]),
    "on the CPU": lambda snn, x: simulate(snn, x.as_subclass(torch.Tensor), T),
}


@pytest.mark.parametrize("case", NOT_RECORDED)
def test_what_is_not_recorded(gpu, case):  # noqa: F811
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))
    run_thrice(lambda: NOT_RECORDED[case](snn, x))
    assert gpu.recordings == []


@pytest.mark.parametrize("bound", ["RECORDED", "CHUNKS"])
def test_a_run_in_which_python_is_not_the_limit_is_not_recorded(gpu, monkeypatch, bound):  # noqa: F811
    """The stem gives 8 x 8 x 8 numbers for each of 3 images, over chunks of 5 steps, of which there are two."""
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))
    just = {"RECORDED": 8 * 8 * 8 * 3 * 5, "CHUNKS": 2}[bound]
    for value, recordings in ((just - 1, 0), (just, 1)):
        monkeypatch.setattr(steps, bound, value)
        run_thrice(lambda: simulate(snn, x, T, SimulationSettings(chunk=5)))
        assert len(gpu.recordings) == recordings


def test_nothing_is_recorded_inside_a_recording_of_the_callers(gpu):  # noqa: F811
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))
    run_thrice(lambda: simulate(snn, x, T))
    gpu.capturing = True
    run_thrice(lambda: simulate(snn, x, T))
    assert [one.replays for one in gpu.recordings] == [2]


def test_each_shape_length_chunk_precision_and_stream_has_its_own(gpu):  # noqa: F811
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))

    def on_another_stream():
        gpu.stream = 1
        simulate(snn, x, T)
        gpu.stream = 0

    cases = [
        lambda: simulate(snn, x, T),
        lambda: simulate(snn, x[:2], T),
        lambda: simulate(snn, x, T - 1),
        lambda: simulate(snn, x, T, SimulationSettings(chunk=4)),
        lambda: simulate(snn, x, T, SimulationSettings(precision="fast")),
        on_another_stream,
    ]
    for number, act in enumerate(cases):
        run_thrice(act)
        assert [one.replays for one in gpu.recordings] == [2] * (number + 1)


def test_each_thread_has_its_own(gpu):  # noqa: F811
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))
    found = []

    def elsewhere():
        for _ in range(3):
            simulate(snn, x, T)
            found.append([one.replays for one in gpu.recordings])

    run_thrice(lambda: simulate(snn, x, T))
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [[2], [2, 1], [2, 2]]


def test_the_least_recently_used_goes_first_and_a_few_are_kept(gpu):  # noqa: F811
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))
    lengths = range(1, replay.KEPT + 1)
    for length in lengths:
        run_thrice(lambda: simulate(snn, x, length))  # noqa: B023
    assert [one.replays for one in gpu.recordings] == [2] * replay.KEPT
    simulate(snn, x, 1)
    assert gpu.recordings[0].replays == 3
    simulate(snn, x, 99)  # the oldest one is that of two steps now
    simulate(snn, x, 1)
    simulate(snn, x, 2)
    assert len(gpu.recordings) == replay.KEPT and gpu.recordings[0].replays == 4
    assert len(snn._plans["exact"].replays.kept) == replay.KEPT


def test_a_copy_of_a_network_has_no_recordings_and_makes_its_own(gpu):  # noqa: F811
    snn, x = fresh(network("three inputs")), claimed(images("three inputs", 30))
    run_thrice(lambda: simulate(snn, x, T))
    other = copy.deepcopy(snn)
    assert torch.equal(simulate(other, x, T).outputs, simulate(snn, x, T).outputs)
    assert [one.replays for one in gpu.recordings] == [3]


def test_it_is_captured_on_the_images_device_whatever_the_current_one(gpu, monkeypatch):  # noqa: F811
    """On tensors that claim to be on the second GPU; one of another device in between would be refused."""
    monkeypatch.setattr(
        Neuron, "emits_unit_spikes", property(lambda op: op.amplitude in (None, 1))
    )  # read while it is prepared
    monkeypatch.setattr("s_resnet.graph.validate.finite", lambda node: None)  # so are its numbers
    second, real = torch.device("cuda:1"), network("three inputs")
    with FakeTensorMode(allow_non_fake_inputs=True):
        snn, x = real.to(second), torch.empty(3, 3, 8, 8, device=second)
        run_thrice(lambda: simulate(snn, x, T))
    assert gpu.devices == [second, None] and gpu.recordings[0].replays == 2


@dataclass(frozen=True, eq=False)
class Reading:
    """An operation that asks for a value, as none may while a graph is captured."""

    def run(self, *inputs):
        return inputs[0] * float(inputs[0].sum() * 0 + 1)


def test_the_emulator_sees_a_value_that_is_read_back(gpu):  # noqa: F811
    nodes = list(network("three inputs").nodes)
    nodes[-2] = replace(nodes[-2], inputs=("reading",))
    snn = Graph((*nodes[:-2], Node("reading", Reading(), ("flat",)), *nodes[-2:])).validate()
    x = claimed(images("three inputs", 30))
    simulate(snn, x, T)
    with pytest.raises(AssertionError, match="Python reads a value"):
        simulate(snn, x, T)
