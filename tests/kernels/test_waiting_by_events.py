"""Neurons that take currents as they arise where they wait, have a bias for each step, or read a second branch."""

import itertools
from dataclasses import replace

import pytest
import torch
from test_events import dyadic, pytestmark, seeded, some_spikes, threads  # noqa: F401

from s_resnet import kernels
from s_resnet.errors import InvalidData
from s_resnet.kernels import Update, events
from s_resnet.kernels.membrane import reference

SCHEDULES = ("streaming", "lagged", "phased")
STEPS, BATCH = 5, 2


def currents(spikes, weight, stride=(1, 1), precision="exact"):
    padding = (weight.shape[2] // 2,) * 2
    packed = events.pack(weight, stride, padding, spikes.shape[2:], precision)
    return events.Currents(events.find(spikes), packed, STEPS)


def right(current, update, fused=True):
    """The fused neurons and those of the equation, whose currents are in memory; gives the spikes."""
    v = dyadic(1, *current.shape, low=0).to(current.packed.dtype).contiguous(memory_format=torch.channels_last)
    kept, counts = v.clone(), [torch.zeros(STEPS, BATCH, dtype=torch.int32) for _ in range(2)]
    assert events.takes(current, v, update) == fused
    got = kernels.integrate_and_fire(current, v, replace(update, counts=counts[0]))
    shortcut = update.shortcut if current.branch is None else current.branch.tensor()
    told = replace(update, counts=counts[1], shortcut=shortcut)
    want = reference.integrate_and_fire(current.tensor(), v, told)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and torch.equal(*counts)
    assert torch.equal(v, kept), "the membrane that was passed in was changed"
    assert 0 < want[0].float().mean() < 1
    inside = v.clone()
    after = kernels.integrate_and_fire(current, inside, replace(update, after=inside))[1]
    assert after is inside and torch.equal(inside, want[1])
    return want[0]


def branch_of(channels, height, width):
    return some_spikes(2, STEPS * BATCH, channels, height, width).view(STEPS, BATCH, channels, height, width)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("channels", [8, 10, 40, 130, 200])
def test_every_schedule_with_biases_by_step_and_a_shortcut(schedule, channels):
    """Widths of one tile and of two, alone and several pixels together, and lines of more than one block."""
    weight, theta = dyadic(3, channels, 12, 3, 3, low=-256), dyadic(4, channels, 1, 1, low=64)
    scale, rows = dyadic(5, channels, 1, 1), dyadic(6, STEPS, 1, channels, 1, 1)
    for (height, width), reset in itertools.product(((5, 8), (3, 7), (2, 280)), ("subtract", "zero")):
        current = currents(some_spikes(7, STEPS * BATCH, 12, height, width), weight)
        plain = Update(threshold=theta, schedule=schedule, reset=reset)
        right(current, plain)
        right(current, replace(plain, bias=rows, spike_dtype=torch.uint8))
        told = replace(plain, bias=rows, shortcut=branch_of(channels, height, width), shortcut_scale=scale)
        right(current, told)
        right(current, replace(told, bias=rows[0, 0], spike_dtype=torch.bfloat16))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("channels", [8, 40, 200])
def test_a_second_convolution_comes_as_the_shortcut(schedule, channels):
    """Of other spikes, with another kernel and stride, as at the start of a stage."""
    first = currents(some_spikes(8, STEPS * BATCH, 12, 6, 8), dyadic(9, channels, 12, 3, 3, low=-256))
    second = currents(some_spikes(10, STEPS * BATCH, 20, 12, 16), dyadic(11, channels, 20, 1, 1, low=-256), (2, 2))
    for bias in (None, dyadic(12, channels, 1, 1), dyadic(13, STEPS, 1, channels, 1, 1)):
        update = Update(threshold=torch.tensor(1.25), schedule=schedule, bias=bias)
        assert not torch.equal(right(replace(first, branch=second), update), right(first, update))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_real_weights_are_added_in_the_order_of_the_equation(schedule, precision):
    weights = [torch.randn(200, 20, size, size, generator=seeded(14 + size)) / 5 for size in (3, 1)]
    first, second = (currents(some_spikes(17, STEPS * BATCH, 20, 9, 16), w, precision=precision) for w in weights)
    rows = torch.randn(STEPS, 1, 200, 1, 1, generator=seeded(18)) / 5
    for branch in (None, second):
        right(replace(first, branch=branch), Update(threshold=torch.tensor(1.0), schedule=schedule, bias=rows))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whole_numbers_wait_and_branch_too(schedule):
    first, second = (
        currents(
            some_spikes(19, STEPS * BATCH, 24, 4, 8),
            torch.randint(-127, 128, (40, 24, size, size), generator=seeded(size)).to(torch.int8),
        )
        for size in (3, 1)
    )
    update = Update(threshold=torch.tensor(300, dtype=torch.int32), schedule=schedule)
    right(first, update)
    right(replace(first, branch=second), update)


def test_two_convolutions_that_do_not_go_together_go_through_memory():
    """Where neighboring pixels are grouped in one of them alone, or a shortcut comes as well."""
    spikes = some_spikes(20, STEPS * BATCH, 6, 5, 8)
    first = currents(spikes, dyadic(21, 8, 6, 3, 3, low=-256))
    other = currents(spikes, dyadic(22, 8, 6, 1, 1, low=-256))
    alone = replace(other.packed, group=1)
    v = torch.zeros(first.shape).contiguous(memory_format=torch.channels_last)
    update = Update(threshold=torch.tensor(1.0))
    assert first.packed.group > 1 and events.takes(replace(first, branch=other), v, update)
    assert not events.takes(replace(first, branch=replace(other, packed=alone)), v, update)
    assert not events.takes(
        replace(first, branch=currents(spikes, dyadic(22, 8, 6, 1, 1, low=-256), precision="fast")), v, update
    )
    assert not events.takes(replace(first, branch=other), v, replace(update, shortcut=branch_of(8, 5, 8)))


def test_a_branch_of_another_shape_is_refused():
    first = currents(some_spikes(23, STEPS * BATCH, 6, 5, 8), dyadic(24, 8, 6, 3, 3))
    other = currents(some_spikes(25, STEPS * BATCH, 6, 4, 8), dyadic(26, 8, 6, 3, 3))
    v = torch.zeros(first.shape).contiguous(memory_format=torch.channels_last)
    for branch in (other, replace(first, steps=1)):
        with pytest.raises(InvalidData, match="branch"):
            events.integrate_and_fire(replace(first, branch=branch), v, Update(threshold=torch.tensor(1.0)))


def test_a_branch_gives_the_same_bits_with_any_threads(threads):  # noqa: F811
    first = currents(some_spikes(27, STEPS * BATCH, 16, 9, 8), torch.randn(200, 16, 3, 3, generator=seeded(28)))
    second = currents(some_spikes(29, STEPS * BATCH, 32, 9, 8), torch.randn(200, 32, 1, 1, generator=seeded(30)))
    results = []
    for count in (1, 2):
        threads(count)
        v = torch.zeros(first.shape).contiguous(memory_format=torch.channels_last)
        counts = torch.zeros(STEPS, BATCH, dtype=torch.int32)
        told = Update(threshold=torch.tensor(1.0), schedule="lagged", counts=counts)
        results.append((*events.integrate_and_fire(replace(first, branch=second), v, told), counts))
    assert all(map(torch.equal, *results)) and results[0][2].any()
