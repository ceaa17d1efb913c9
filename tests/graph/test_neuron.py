"""What a neuron is made of: every variant comes back from its file and fires the same, and no other can be built."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

import s_resnet
from s_resnet.errors import InvalidData
from s_resnet.graph import Graph, Neuron, Node, Readout, ops
from s_resnet.graph.alphabet import (
    Amplitudes,
    Binary,
    Copies,
    Differential,
    MultiThreshold,
    Signed,
    Surrogate,
    power_of_two,
)
from s_resnet.graph.parts import mapped, tensors
from s_resnet.kernels.membrane.update import SCHEDULES

ALPHABETS = {
    "binary": Binary(),
    "signed": Signed(),
    "amplitudes": Amplitudes(2),
    "signed amplitudes": Amplitudes(8, True),
    "differential": Differential(),
    "differential amplitudes": Differential(3),
    "thresholds": MultiThreshold(torch.tensor([0.5, 1.0, 1.75])),
    "copies": Copies(7),
}
SINGLE = ("binary", "thresholds")  # what may be reset to zero
TIMESTEPS = 6


def dyadic(seed, *shape, scale=16):
    return torch.randint(-scale, scale + 1, shape, generator=torch.Generator().manual_seed(seed)) / 16


def network(neuron):
    rows = [
        ("input", ops.Input()),
        ("conv", ops.Conv2d(dyadic(1, 3, 2, 3, 3), dyadic(2, 3)), "input"),
        ("first", replace(neuron, schedule="streaming"), "conv"),
        ("second", ops.Conv2d(dyadic(3, 3, 3, 1, 1), None), "first"),
        ("neuron", neuron, "second", "first"),
        ("pool", ops.AdaptiveAvgPool2d((1, 1)), "neuron"),
        ("flat", ops.Flatten(), "pool"),
        ("fc", ops.Linear(dyadic(4, 4, 3), None), "flat"),
        ("readout", Readout(torch.tensor(2.0)), "fc"),
    ]
    return Graph(tuple(Node(name, op, tuple(reads)) for name, op, *reads in rows)).validate()


def variants():
    """Every neuron that there is, by its parts."""
    for (name, spikes), schedule, reset in itertools.product(ALPHABETS.items(), SCHEDULES, ("subtract", "zero")):
        waits = schedule != "streaming"
        if (reset == "zero" and name not in SINGLE) or (waits and name == "thresholds"):
            continue
        leaks = () if waits or name.startswith(("differential", "copies")) else (0.5,)
        for decay, surrogate in itertools.product((1.0, *leaks), (None, Surrogate("arctan", 2.0, False))):
            neuron = Neuron(torch.tensor(0.5), 0.25, reset, decay, schedule, spikes, surrogate=surrogate)
            label = f"{name}, {schedule}, {reset}, {decay}{', trained' if surrogate else ''}"
            yield pytest.param(neuron, id=label)


def same(one, other):
    """Two dataclasses, part for part and tensor for tensor."""
    assert type(one) is type(other)
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        elif hasattr(a, "__dataclass_fields__"):
            same(a, b)
        else:
            assert (type(a), a) == (type(b), b), field.name


@pytest.mark.parametrize("neuron", list(variants()))
def test_every_variant_comes_back_from_its_file_and_fires_the_same(tmp_path, neuron):
    snn, images = network(neuron), dyadic(5, 3, 2, 5, 5, scale=24)
    s_resnet.save(snn, tmp_path / "a.snn")
    again = s_resnet.load(tmp_path / "a.snn")
    for old, new in zip(snn.nodes, again.nodes, strict=True):
        same(old.op, new.op)
    (before,), (after,) = (list(graph.stream(images, TIMESTEPS, TIMESTEPS)) for graph in (snn, again))
    assert torch.equal(before.outputs, after.outputs)
    for name, count in before.spikes.items():
        assert int(count.sum()) > 0 and torch.equal(count, after.spikes[name])


def test_every_kind_of_spikes_is_among_them():
    assert {type(variant.values[0].spikes) for variant in variants()} == set(s_resnet.graph.alphabet.SPIKES)


@pytest.mark.parametrize("name", ALPHABETS)
def test_what_a_step_sends_is_what_its_alphabet_says(name):
    """Driven hard both ways, a neuron reaches the ends of its alphabet and nothing beyond."""
    spikes = ALPHABETS[name]
    neuron = Neuron(torch.tensor(0.5), spikes=spikes)
    current = torch.tensor([300.0, 300.0, -900.0, 0.0, 300.0]).view(-1, 1, 1, 1, 1)
    sent = neuron.advance([current], None)[0].flatten()
    if isinstance(spikes, Differential):  # it stands for the mean so far and what it emits
        sent = torch.stack([y - sent[:t].sum() / max(1, t) for t, y in enumerate(sent)])
    most = {"binary": 1, "signed": 1, "amplitudes": 3, "signed amplitudes": 255, "thresholds": 3}.get(
        name, 2**spikes.amplitudes - 1
    )
    assert neuron.max_emission == most == sent.max()
    assert bool((sent < 0).any()) == (spikes.signed or isinstance(spikes, Differential))


ILLEGAL = {
    "spikes in a text": {"spikes": "binary"},
    "a kind for spikes": {"spikes": Binary},
    "signed, reset to zero": {"spikes": Signed(), "reset": "zero"},
    "amplitudes, reset to zero": {"spikes": Amplitudes(2), "reset": "zero"},
    "means, reset to zero": {"spikes": Differential(), "reset": "zero"},
    "means with a decay": {"spikes": Differential(), "decay": 0.5},
    "copies with a decay": {"spikes": Copies(3), "decay": 0.5},
    "copies, reset to zero": {"spikes": Copies(3), "reset": "zero"},
    "a wait with a decay": {"schedule": "phased", "decay": 0.5},
    "thresholds that wait": {"spikes": ALPHABETS["thresholds"], "schedule": "lagged"},
    "thresholds by channel": {"spikes": ALPHABETS["thresholds"], "threshold": torch.ones(3)},
    "a reset that there is not": {"reset": "hard"},
    "a schedule that there is not": {"schedule": "later"},
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_no_kernel_has_cannot_be_built(name):
    with pytest.raises(InvalidData, match=r"^neuron: .*got .*; expected"):
        Neuron(**{"threshold": torch.tensor(1.0), **ILLEGAL[name]})
    assert Neuron(torch.tensor(1.0)).binary


PARTS = {
    "one amplitude": lambda: Amplitudes(1),
    "nine amplitudes": lambda: Amplitudes(9),
    "two copies": lambda: Copies(2),
    "true copies": lambda: Copies(True),
    "copies in a text": lambda: Copies("3"),
    "half an amplitude": lambda: Amplitudes(2.5),
    "true amplitudes": lambda: power_of_two(True),
    "a sign of one": lambda: Amplitudes(2, 1),
    "no mean": lambda: Differential(0),
    "no thresholds": lambda: MultiThreshold(torch.empty(0)),
    "nine thresholds": lambda: MultiThreshold(torch.arange(1.0, 10.0)),
    "thresholds by channel": lambda: MultiThreshold(torch.ones(2, 2)),
    "thresholds in a list": lambda: MultiThreshold([1.0, 2.0]),
    "another surrogate": lambda: Surrogate("boxcar"),
    "no surrogate": lambda: Surrogate(None),
    "no width": lambda: Surrogate("arctan", 0.0),
    "a width without end": lambda: Surrogate("arctan", float("inf")),
    "a detached text": lambda: Surrogate("arctan", 1.0, "yes"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_there_are_not(name):
    with pytest.raises(InvalidData, match=r"^neuron: .*got .*; expected"):
        PARTS[name]()


def test_one_power_of_two_is_plain_spikes():
    assert [power_of_two(n, signed) for n in (1, 3) for signed in (False, True)] == [
        Binary(),
        Signed(),
        Amplitudes(3),
        Amplitudes(3, True),
    ]


def test_tensors_of_parts_move_with_the_network():
    snn = network(Neuron(torch.tensor(0.5), spikes=ALPHABETS["thresholds"]))
    assert {name for name, _ in tensors(snn["neuron"].op)} == {"threshold", "spikes.thresholds"}
    wide = snn.to(torch.float64)
    assert wide["neuron"].op.spikes.thresholds.dtype == torch.float64
    assert snn["neuron"].op.spikes.thresholds.dtype == torch.float32
    doubled = mapped(snn["neuron"].op, lambda value: 2 * value)
    assert torch.equal(doubled.spikes.thresholds, 2 * ALPHABETS["thresholds"].thresholds) and doubled.threshold == 1.0


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("threshold", 1.0, "1.0; expected a tensor"),
        ("scale", "1", "'1'; expected a tensor"),
        ("correction", [0.0], r"\[0.0\]; expected a tensor"),
        ("decay", "0.5", "'0.5'; expected a number"),
        ("initial_potential", torch.tensor([1.0, 2.0]), ".*; expected a number"),
        ("surrogate", "arctan", "'arctan'; expected a Surrogate"),
        ("spikes", "binary", "'binary'; expected one of Binary, "),
    ],
)
def test_a_setting_of_another_type_is_refused_where_the_neuron_is_built(setting, value, said):
    """Not in the middle of the first simulation."""
    with pytest.raises(InvalidData, match=rf"neuron: {setting}, got {said}"):
        Neuron(**{"threshold": torch.tensor(1.0), setting: value})
