"""What a run is said to take, against the tensors that are there; and that images go in parts which a limit holds."""

import weakref
from dataclasses import replace

import pytest
import torch
from test_chunks import runs  # noqa: F401
from test_schedules import PLANS
from test_schedules import network as waiting
from test_simulate import network, pictures
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s_resnet import evaluate
from s_resnet.errors import InvalidData
from s_resnet.graph import StreamSettings
from s_resnet.graph.engine import Whole, at_once, chunks, footprint
from s_resnet.graph.shapes import shapes
from s_resnet.runtime import memory, memory_limit

MANY = 400  # images, so that small tensors that are not counted do not matter
STEPS = 6


class Living(TorchDispatchMode):
    """The bytes of the tensors that operations made and that live, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.note(value.untyped_storage())
        return result

    def note(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key):
        self.now -= self.known.pop(key)


def images(seed=3):
    return torch.rand(MANY, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5


def plain():
    return network()


CASES = {"gated pool and shortcuts": plain, **{name: lambda name=name: waiting(PLANS[name]) for name in PLANS}}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dense", [False, True], ids=["events", "dense"])
def test_a_run_takes_no_more_than_is_said_and_not_much_less(name, dense, monkeypatch):
    monkeypatch.setattr("s_resnet.graph.engine.run.DENSE", -1.0 if dense else 2.0)
    snn, x = CASES[name](), images()
    settings = StreamSettings(whole=Whole(state=False))
    list(snn.stream(x[:1], STEPS, settings=settings))  # lays out the weights
    monkeypatch.setattr(chunks, "WINDOW", 2**60)
    together = at_once(snn.nodes, snn.device)
    monkeypatch.setattr(chunks, "LAGGED", 2)
    steps = STEPS if together else 2
    with Living() as living:
        list(snn.stream(x, STEPS, None if snn.windowed else 2, settings=settings))
    said = footprint.spiking(snn._plan("exact"), shapes(snn.nodes, x.shape[1:]), len(x), steps)
    assert living.most <= said <= 5 * living.most


@pytest.mark.parametrize("name", ["lagged", "signed", "lagged levels", "multilevel"])
def test_only_answers_and_counts_grow_with_steps(name, monkeypatch):
    monkeypatch.setattr(chunks, "LAGGED", 4)
    monkeypatch.setattr(chunks, "WINDOW", 2**60)
    snn, x, most = CASES[name](), images(), []
    settings = StreamSettings(whole=Whole(state=False))
    list(snn.stream(x[:1], STEPS, settings=settings))  # lays out the weights
    for steps in (16, 64):  # from a window on that is longer than the network is deep
        with Living() as living:
            for part in snn.stream(x, steps, None if snn.windowed else 4, settings=settings):
                each = part.outputs[0].numel() + len(part.spikes) * len(x)
        most.append(living.most)
    assert most[1] - most[0] <= 2 * 4 * each * (64 - 16)  # once more while they are joined


def test_an_analog_run_takes_no_more_than_is_said_and_not_much_less():
    snn, x = network(), images()
    with Living() as living:
        snn.run(x)
    said = footprint.analog(snn.nodes, shapes(snn.nodes, x.shape[1:]), 4) * len(x)
    assert living.most <= said <= 3 * living.most


# ---- parts ----


@pytest.fixture
def held(monkeypatch):
    """What the process is said to hold: 100 MB."""
    monkeypatch.setattr(memory, "held", lambda device=None: 100 * 10**6)


@pytest.mark.parametrize("name", ["gated pool and shortcuts", "mixed", "multilevel"])
def test_an_evaluation_in_parts_is_the_same(name, held, runs):  # noqa: F811
    snn, x = CASES[name](), pictures(8)
    labels = torch.arange(8) % snn.run(x[:1]).shape[1]
    want = evaluate(replace(snn), [(x, labels)], STEPS, device="cpu")
    assert max(size for size, _ in runs) == 8
    each = footprint.spiking(snn._plan("exact"), shapes(snn.nodes, x.shape[1:]), 1, STEPS)
    runs.clear()
    with memory_limit(100 * 10**6 + 3 * each):
        got = evaluate(replace(snn), [(x, labels)], STEPS, device="cpu")
    assert 1 <= max(size for size, _ in runs) <= 4
    assert (got.snn, got.ann, got.images) == (want.snn, want.ann, want.images)


@pytest.mark.parametrize("name", ["gated pool and shortcuts", "mixed"])
def test_one_image_that_does_not_fit_is_an_error_that_says_what_would_do(name, held, monkeypatch):
    snn, x = CASES[name](), images()[:2]
    labels = torch.zeros(2, dtype=torch.int64)
    short = memory_limit(100 * 10**6 + 1000)
    with short, pytest.raises(InvalidData, match=r"one image takes \S+; expected \S+ at least") as no:
        evaluate(replace(snn), [(x, labels)], STEPS, device="cpu")
    enough = str(no.value).split(" at least")[0].split()[-1]
    for _ in range(2):  # the ANN's share may be said first, then that of the simulation
        try:
            with memory_limit(enough):
                assert evaluate(replace(snn), [(x, labels)], STEPS, device="cpu").images == 2
        except InvalidData as more:
            enough = str(more).split(" at least")[0].split()[-1]
        else:
            break
    else:
        pytest.fail("what was said to be enough was not")


def test_a_part_is_no_larger_however_much_memory_there_is(monkeypatch):
    """So that the answers of two machines are rounded alike, and large batches stay in bounds."""
    snn, x = network(), images()
    monkeypatch.setattr(memory, "free", lambda *_: 2**50)
    whole = replace(snn).portions(x, STEPS)
    assert whole == [len(x)]
    monkeypatch.setattr(chunks, "PART", footprint.spiking(snn._plan("exact"), shapes(snn.nodes, x.shape[1:]), 10, 1))
    assert replace(snn).portions(x, STEPS) == [10] * 40
    monkeypatch.setattr(chunks, "PART", 1000)
    with memory_limit("4GB"):  # which holds an image that is larger than a part
        assert replace(snn).portions(x[:3], STEPS) == replace(snn).portions(x[:3]) == [1] * 3
