"""Spikes that are worth an amount: signed and multi-level ones as events, and neurons of such alphabets."""

import itertools
from dataclasses import replace

import pytest
import torch
from test_events import convolve, dyadic, exact, pytestmark, seeded, threads  # noqa: F401

from s_resnet import kernels
from s_resnet.errors import InvalidData
from s_resnet.kernels import Update, events
from s_resnet.kernels.membrane import cpp, eager, reference

STEPS, BATCH = 4, 2


def amounts(seed, *shape, rate=0.3, most=15, signed=True):
    """Bytes of -most ... most, or 0 ... most, most of them 0."""
    low = -most if signed else 0
    values = torch.randint(low, most + 1, shape, generator=seeded(seed))
    fired = torch.rand(shape, generator=seeded(seed + 1)) < rate
    return (values * fired).to(torch.int8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 2, 3), (2, 8, 3, 1), (1, 37, 1, 5), (1, 130, 2, 7)], ids=str)
def test_find_lists_every_amount_beside_its_place(shape):
    n, c, h, w = shape
    for rate, most in ((0.0, 1), (0.4, 1), (1.0, 127)):
        spikes = amounts(1, *shape, rate=rate, most=most)
        spikes[0, 0, 0, 0] = -128  # the lowest byte, which no network sends
        found = events.find(spikes)
        ids, worth = (value.view(n, h, w * c + events.ROOM) for value in (found.ids, found.amounts))
        start = found.start.view(n, h, w + 1)
        for image, y in itertools.product(range(n), range(h)):
            line = spikes[image, :, y].T.flatten()
            places = line.nonzero().flatten()
            assert ids[image, y, : len(places)].tolist() == places.tolist()
            assert torch.equal(worth[image, y, : len(places)], line[places])
            assert start[image, y].tolist() == [int((places < x * c).sum()) for x in range(w + 1)]


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
def test_signs_name_negative_rows(precision):
    """The same sums as products with -1 and 1."""
    for channels, out_channels, kernel, stride in ((3, 8, 3, 1), (16, 16, 3, 1), (20, 40, 1, 2), (40, 200, 3, 2)):
        weight = dyadic(3, out_channels, channels, kernel, kernel)
        weight = (weight * 100).to(torch.int8) if precision == "int8" else weight
        spikes = amounts(5, 2, channels, 7, 8, most=1, rate=0.5)
        settings = ((stride, stride), (kernel // 2,) * 2, (7, 8), "exact" if precision == "int8" else precision)
        plain, signed = (events.pack(weight, *settings, signed=signed) for signed in (False, True))
        assert signed.signed and len(signed.rows) == 2 * len(plain.rows) - 1
        want = events.conv2d(events.find(spikes), plain)
        assert torch.equal(events.conv2d(events.find(spikes, 1), signed), want) and want.min() < 0 < want.max()
        with pytest.raises(InvalidData, match="up to 127"):
            events.conv2d(events.find(spikes), signed)
    large = events.pack(torch.ones(4, 3650, 3, 3), (1, 1), (1, 1), (2, 2), signed=True)
    assert not large.signed  # twice the rows are more than sixteen bits can name


@pytest.mark.parametrize("case", [(3, 8, 3), (16, 16, 3), (16, 40, 1), (5, 130, 3), (64, 200, 3), (3, 24, 7)], ids=str)
def test_dyadic_amounts_give_the_dense_convolution_bit_for_bit(case):
    channels, out_channels, kernel = case
    weight = dyadic(3, out_channels, channels, kernel, kernel)
    for stride, size, most in itertools.product((1, 2), ((7, 8), (9, 7), (1, 3)), (1, 15, 127)):
        spikes, padding = amounts(5, 2, channels, *size, most=most), (kernel // 2,) * 2
        got = convolve(spikes, weight, (stride, stride), padding)
        assert torch.equal(got.double(), exact(spikes, weight, stride, padding))
        plain = spikes.abs().clamp(max=1)
        assert torch.equal(
            convolve(plain, weight, (stride, stride), padding),
            convolve(plain.to(torch.uint8), weight, (stride, stride), padding),
        )


@pytest.mark.parametrize("value", [127, -128])
@pytest.mark.parametrize("out_channels", [1, 33, 130, 300])
def test_whole_numbers_times_amounts_do_not_overflow(value, out_channels):
    weight = torch.full((out_channels, 65, 3, 3), value, dtype=torch.int8)
    spikes = torch.full((1, 65, 5, 8), 127, dtype=torch.int8)
    got = convolve(spikes, weight, (1, 1), (1, 1))
    assert torch.equal(got.double(), exact(spikes, weight, 1, 1)) and int(got.abs().max()) == 585 * 127 * abs(value)
    mixed = torch.randint(-128, 128, weight.shape, generator=seeded(7)).to(torch.int8)
    spikes = amounts(8, 2, 65, 5, 8, rate=0.6, most=127)
    assert torch.equal(convolve(spikes, mixed, (1, 1), (1, 1)).double(), exact(spikes, mixed, 1, 1))


@pytest.mark.parametrize("out_channels", [8, 24, 130, 300])
def test_fast_amounts_are_sums_of_the_rounded_weights(out_channels):
    """Whole numbers times steps of the weights: no more is lost than the weights lose."""
    weight = torch.randn(out_channels, 20, 3, 3, generator=seeded(9))
    spikes = amounts(10, 2, 20, 5, 8, rate=0.7)
    packed = events.pack(weight, (1, 1), (1, 1), (5, 8), "fast")
    worth = packed.step[:out_channels].view(-1, 1, 1, 1)
    rounded = (weight / worth).round().double() * worth.double()
    got = events.conv2d(events.find(spikes), packed)
    want = exact(spikes, rounded, 1, 1)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_real_amounts_give_the_same_bits_in_any_batch_and_with_any_threads(threads, precision):  # noqa: F811
    spikes, weight = amounts(11, 6, 40, 9, 8), torch.randn(200, 40, 3, 3, generator=seeded(13))
    results = []
    for count, parts in itertools.product((1, 2), ((6,), (1, 5), (4, 2))):
        threads(count)
        results.append(torch.cat([convolve(s, weight, (1, 1), (1, 1), precision) for s in spikes.split(parts)]))
    assert all(torch.equal(results[0], other) for other in results[1:])
    if precision == "exact":
        truth = exact(spikes, weight, 1, 1)
        plain = torch.conv2d(spikes.float(), weight, None, 1, 1)
        assert (results[0] - truth).abs().max() <= 4 * (plain - truth).abs().max()


# ---- neurons that take the currents as they arise ----


def current_of(spikes, weight, precision="exact", stride=(1, 1)):
    padding = (weight.shape[2] // 2,) * 2
    packed = events.pack(weight, stride, padding, spikes.shape[2:], precision)
    return events.Currents(events.find(spikes), packed, STEPS)


def right(current, update):
    """The fused neurons and those of the equation; gives the spikes."""
    integer = current.packed.integer
    v = dyadic(21, *current.shape, low=0).contiguous(memory_format=torch.channels_last)
    v = (v * 256).to(torch.int32) if integer else v
    if update.levels > 1 or update.spike_dtype == torch.int8:
        memory = (
            torch.randint(0, 4, current.shape, generator=seeded(22)).to(v).contiguous(memory_format=torch.channels_last)
        )
        update = replace(update, emitted=memory, emitted_after=torch.empty_like(memory))
    rows = update.answers(STEPS)
    results = []
    for fused in (True, False):
        after = None if update.emitted is None else torch.full_like(update.emitted, 7)
        told = replace(update, counts=torch.ones(rows, BATCH, dtype=torch.int32), emitted_after=after)
        if fused:
            assert events.takes(current, v, told)
            results.append((*kernels.integrate_and_fire(current, v, told), told.counts, after))
        else:
            told = replace(told, shortcut=update.shortcut if current.branch is None else current.branch.tensor())
            results.append((*reference.integrate_and_fire(current.tensor(), v, told), told.counts, after))
    assert all(a is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in zip(*results, strict=True))
    assert len(results[0][0]) == rows
    return results[0][0]


@pytest.mark.parametrize("schedule", ["streaming", "lagged", "phased"])
@pytest.mark.parametrize("channels", [8, 40, 130])
def test_neurons_of_every_alphabet_take_currents_line_by_line(schedule, channels):
    weight, theta = dyadic(23, channels, 12, 3, 3, low=-256), dyadic(24, channels, 1, 1, low=64)
    rows = dyadic(25, STEPS, 1, channels, 1, 1)
    for height, width in ((5, 8), (2, 280)):
        spikes = amounts(26, STEPS * BATCH, 12, height, width, most=3)
        branch = amounts(28, STEPS * BATCH, channels, height, width, most=3).view(STEPS, BATCH, channels, height, width)
        other = current_of(amounts(30, STEPS * BATCH, 6, height, width, most=7), dyadic(31, channels, 6, 3, 3))
        for levels, threshold in ((1, theta), (4, torch.tensor(1.0))):
            told = Update(threshold=threshold, schedule=schedule, levels=levels, spike_dtype=torch.int8, bias=rows)
            fired = right(
                current_of(spikes, weight), replace(told, shortcut=branch, shortcut_scale=dyadic(32, channels, 1, 1))
            )
            assert fired.min() < 0 < fired.max()
            right(replace(current_of(spikes, weight), branch=other), told)
            right(current_of(spikes.abs().clamp(max=1).to(torch.uint8), weight), told)
        right(current_of(spikes, weight), Update(threshold=theta, schedule=schedule, spike_dtype=torch.uint8))


def test_neurons_of_whole_numbers_and_amounts():
    weight = torch.randint(-127, 128, (40, 24, 3, 3), generator=seeded(33)).to(torch.int8)
    current = current_of(amounts(34, STEPS * BATCH, 24, 4, 8), weight)
    for levels, schedule in ((1, "lagged"), (4, "streaming")):
        threshold = torch.tensor(700, dtype=torch.int32)
        fired = right(current, Update(threshold=threshold, schedule=schedule, levels=levels, spike_dtype=torch.int8))
        assert fired.min() < 0 < fired.max()


# ---- a lagged window in chunks ----


@pytest.mark.parametrize("alphabet", ["binary", "signed", "levels"])
def test_a_lagged_window_in_chunks_is_the_whole_one(alphabet):
    """In every kernel of the CPU, and behind a convolution."""
    current = current_of(amounts(35, STEPS * BATCH, 12, 5, 8, most=2), dyadic(37, 10, 12, 3, 3, low=-256))
    dense, v = current.tensor(), dyadic(38, *current.shape).contiguous(memory_format=torch.channels_last)
    signed = alphabet != "binary"
    memory = torch.zeros_like(v) if signed else None
    told = Update(torch.tensor(0.75), schedule="lagged", levels=3 if alphabet == "levels" else 1, emitted=memory)
    whole, end = reference.integrate_and_fire(dense, v, told)
    assert whole.any()
    for kernel, cuts in itertools.product((reference, eager, cpp, None), ((1, 4), (3, 4), (1, 2, 3, 4))):
        parts, now, kept, first = [], v, memory, 0
        for last in cuts:
            room = None if kept is None else torch.empty_like(kept)
            steps = last - first
            part = replace(told, emitted=kept, emitted_after=room, begins=first == 0, ends=last == STEPS)
            part = replace(part, counts=torch.zeros(part.answers(steps), BATCH, dtype=torch.int32))
            if kernel is None:
                spikes = amounts(35, STEPS * BATCH, 12, 5, 8, most=2)[first * BATCH : last * BATCH]
                fired, now = events.integrate_and_fire(
                    events.Currents(events.find(spikes), current.packed, steps), now, part
                )
            else:
                fired, now = kernel.integrate_and_fire(dense[first:last], now, part)
            parts.append(fired)
            kept, first = room, last
        assert torch.equal(torch.cat(parts), whole) and torch.equal(now, end), (kernel, cuts)


def test_counts_of_a_part_have_a_row_for_each_answer():
    current, v = torch.ones(2, 1, 3), torch.zeros(1, 3)
    told = Update(torch.tensor(1.0), schedule="lagged", ends=False, counts=torch.zeros(2, 1, dtype=torch.int32))
    with pytest.raises(InvalidData, match="counts"):
        cpp.integrate_and_fire(current, v, told)
    with pytest.raises(InvalidData, match="one at least"):
        reference.integrate_and_fire(current[:0], v, replace(told, begins=False, counts=None))


def test_amounts_that_do_not_fit_their_places_are_refused():
    found = events.find(amounts(39, 1, 4, 5, 6))
    packed = events.pack(torch.ones(8, 4, 3, 3), (1, 1), (1, 1), (5, 6))
    for wrong in (found.amounts[:-1], found.amounts.to(torch.uint8), found.amounts.repeat(2)[::2]):
        with pytest.raises(InvalidData, match="amounts"):
            events.conv2d(replace(found, amounts=wrong), packed)
    with pytest.raises(InvalidData, match="uint8 or int8"):
        events.find(torch.zeros(1, 1, 2, 2))
