"""Event-driven convolution against torch in float64, and its neurons against convolution and specification apart."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from s_resnet import kernels
from s_resnet.kernels import Update, events
from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import reference

pytestmark = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def dyadic(seed, *shape, low=-160, high=256):
    """Multiples of 2^-8: sums of a few thousand of them are exact in float32, in any order."""
    return torch.randint(low, high, shape, generator=seeded(seed)) / 256


def some_spikes(seed, *shape, rate=0.3):
    """Bytes 0 and 1 as the neuron layers write them."""
    fired = torch.rand(shape, generator=seeded(seed)) < rate
    return fired.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def convolve(spikes, weight, stride=(1, 1), padding=(0, 0), precision="exact"):
    return events.conv2d(events.find(spikes), events.pack(weight, stride, padding, spikes.shape[2:], precision))


def exact(spikes, weight, stride=(1, 1), padding=(0, 0)):
    return F.conv2d(spikes.double(), weight.double(), None, stride, padding)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- the events ----


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 5, 2, 3), (2, 8, 3, 1), (1, 16, 2, 4), (2, 37, 1, 5), (1, 130, 2, 7)], ids=str
)
def test_find_lists_every_spike_once_in_order(shape, rate):
    n, c, h, w = shape
    spikes = some_spikes(1, *shape, rate=rate)
    found = events.find(spikes)
    assert found.shape == shape
    ids, start = found.ids.view(n, h, w * c + events.ROOM), found.start.view(n, h, w + 1)
    for image, y in itertools.product(range(n), range(h)):
        bounds = start[image, y].tolist()
        assert bounds[0] == 0
        for x in range(w):
            want = [x * c + channel for channel in range(c) if spikes[image, channel, y, x]]
            assert ids[image, y, bounds[x] : bounds[x + 1]].tolist() == want


def test_find_counts_positions_in_sixteen_unsigned_bits():
    spikes = some_spikes(2, 1, 1000, 1, 65, rate=0.01)
    found = events.find(spikes)
    ids = found.ids[: int(found.start[-1])].to(torch.int64) % 2**16
    assert torch.equal(ids, spikes.permute(0, 2, 3, 1).flatten().nonzero().flatten()) and ids.max() > 2**15


@pytest.mark.parametrize("layout", ["contiguous", "one channel", "one pixel", "sliced"])
def test_spikes_may_lie_anywhere(layout):
    shape = {"one channel": (2, 1, 5, 6), "one pixel": (2, 7, 1, 1)}.get(layout, (2, 7, 5, 6))
    spikes = some_spikes(3, *shape).contiguous()
    if layout == "sliced":
        spikes = some_spikes(3, 2, 7, 10, 12)[:, :, ::2, ::2]
    weight = dyadic(4, 5, shape[1], 1, 1)
    assert torch.equal(convolve(spikes, weight).double(), exact(spikes, weight))


# ---- the convolution, exact ----

KERNELS = [(1, 1), (3, 3), (7, 7), (3, 1), (1, 3), (2, 4)]
CHANNELS = [1, 3, 8, 10, 16, 24, 40, 64, 96, 130, 200]
WIDTHS = [(7, 7), (9, 8), (8, 16), (7, 12), (8, 9)]


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_kernel_stride_and_padding(kernel, stride, padding):
    for (channels, out_channels), size in itertools.product([(3, 8), (10, 16), (16, 40), (5, 130)], WIDTHS):
        spikes = some_spikes(5, 2, channels, *size)
        weight = dyadic(6, out_channels, channels, *kernel)
        got = convolve(spikes, weight, (stride, stride), (padding, padding))
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got.double(), exact(spikes, weight, stride, padding))


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_number_of_channels(channels):
    for out_channels, (rate, width) in itertools.product(CHANNELS, ((0.0, 8), (0.3, 8), (1.0, 7))):
        weight = dyadic(7, out_channels, channels, 3, 3)
        spikes = some_spikes(8, 1, channels, 5, width, rate=rate)
        got = convolve(spikes, weight, (1, 1), (1, 1))
        assert got.dtype == torch.float32 and got.any() == (rate > 0), (out_channels, rate)
        assert torch.equal(got.double(), exact(spikes, weight, 1, 1)), (out_channels, rate)


@pytest.mark.parametrize("case", [((1, 2), (0, 3)), ((3, 1), (1, 0)), ((2, 3), (2, 1))], ids=str)
def test_height_and_width_have_their_own_stride_and_padding(case):
    stride, padding = case
    for width, out_channels in itertools.product((7, 8, 12, 16), (8, 24, 70)):
        spikes, weight = some_spikes(9, 3, 6, 9, width), dyadic(10, out_channels, 6, 3, 4)
        assert torch.equal(convolve(spikes, weight, stride, padding).double(), exact(spikes, weight, stride, padding))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)], ids=str)
def test_images_smaller_than_the_kernel(size):
    spikes, weight = some_spikes(11, 2, 12, *size, rate=0.7), dyadic(12, 20, 12, 5, 5)
    got = convolve(spikes, weight, (1, 1), (2, 2))
    assert got.shape[2:] == size and torch.equal(got.double(), exact(spikes, weight, 1, 2))


def test_narrow_layers_do_several_pixels_at_once():
    """What the sizes above are chosen for."""
    packs = {
        (out_channels, width): events.pack(torch.ones(out_channels, 3, 3, 3), (1, 1), (1, 1), (8, width)).group
        for out_channels, width in itertools.product((8, 16, 24, 40, 200), (7, 8, 12))
    }
    assert {group for (_, width), group in packs.items() if width == 7} == {1}
    assert [packs[8, 8], packs[16, 8], packs[24, 8], packs[40, 8], packs[200, 8]] == [8, 4, 2, 1, 1]
    assert [packs[8, 12], packs[16, 12]] == [4, 4]


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_real_weights_give_the_same_bits_in_any_batch_and_with_any_threads(threads, precision):
    for channels, out_channels in ((64, 200), (40, 16), (16, 10)):
        spikes = some_spikes(13, 6, channels, 9, 8, rate=0.4)
        weight = torch.randn(out_channels, channels, 3, 3, generator=seeded(14))
        results = []
        for count in (1, 2):
            threads(count)
            results.append(convolve(spikes, weight, (1, 1), (1, 1), precision))
            for parts in ((1, 5), (1, 1, 1, 1, 1, 1), (4, 2)):
                results.append(torch.cat([convolve(s, weight, (1, 1), (1, 1), precision) for s in spikes.split(parts)]))
        assert all(torch.equal(results[0], other) for other in results[1:])
        plain = F.conv2d(spikes.float(), weight, None, 1, 1)
        truth = exact(spikes, weight, 1, 1)
        if precision == "exact":
            assert (results[0] - truth).abs().max() <= 4 * (plain - truth).abs().max()


# ---- whole numbers ----


@pytest.mark.parametrize("value", [127, -127, -128, 1, 0])
@pytest.mark.parametrize("out_channels", [1, 8, 33, 130, 300])
def test_sums_of_large_whole_numbers_do_not_overflow(value, out_channels):
    """576 weights of 127 are 73152: more than twice what 16 bits hold."""
    spikes = some_spikes(15, 2, 64, 6, 8, rate=1.0)
    weight = torch.full((out_channels, 64, 3, 3), value, dtype=torch.int8)
    got = convolve(spikes, weight, (1, 1), (1, 1))
    assert got.dtype == torch.int32
    assert torch.equal(got.double(), exact(spikes, weight, 1, 1)) and int(got.abs().max()) == 576 * abs(value)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("sign", ["any", "plus", "minus", "ordered"])
def test_whole_numbers_are_summed_exactly(rate, sign):
    for channels, out_channels, width in ((130, 40, 9), (200, 8, 8), (96, 128, 6)):
        weight = torch.randint(-128, 128, (out_channels, channels, 3, 3), generator=seeded(16))
        if sign in ("plus", "minus"):
            weight = weight.abs().clamp(max=127) * (1 if sign == "plus" else -1)
        elif sign == "ordered":  # all that is positive comes first: partial sums are far from the total
            weight = weight.flatten(1).sort(dim=1, descending=True).values.view_as(weight)
        spikes = some_spikes(17, 2, channels, 5, width, rate=rate)
        got = convolve(spikes, weight.to(torch.int8), (1, 1), (1, 1))
        unfolded = F.unfold(spikes.double(), 3, padding=1).to(torch.int64)
        want = (weight.flatten(1) @ unfolded).view(got.shape)
        assert torch.equal(got.to(torch.int64), want)


# ---- fixed point ----


def worth(packed):
    """What one unit of each output channel's weights is worth."""
    return packed.step[: packed.out_channels].double()


@pytest.mark.parametrize("channels,kernel", [(1, 1), (2, 1), (3, 1), (1, 3), (64, 1), (65, 1), (64, 3), (200, 3)])
def test_fast_is_wrong_by_half_a_step_for_each_spike_at_most(channels, kernel):
    for out_channels, width in ((8, 8), (40, 7), (130, 6)):
        weight = torch.randn(out_channels, channels, kernel, kernel, generator=seeded(18))
        spikes, padding = some_spikes(19, 2, channels, 5, width, rate=0.5), (kernel // 2,) * 2
        packed = events.pack(weight, (1, 1), padding, spikes.shape[2:], "fast")
        got = events.conv2d(events.find(spikes), packed)
        rows = exact(spikes, torch.ones_like(weight), 1, padding)
        error = (got.double() - exact(spikes, weight, 1, padding)).abs()
        bound = rows * worth(packed).view(-1, 1, 1) * (0.5 + 1e-3) + 1e-6 * got.double().abs()
        assert (error <= bound).all() and (error.any() or weight[0].numel() == 1)
        largest = weight.abs().flatten(1).amax(1)
        most = min(events.RUN, weight[0].numel())
        assert (worth(packed) <= largest * most / (2**15 - 1 - events.RUN) * 1.001).all(), (
            "the step is needlessly coarse"
        )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("out_channels", [8, 24, 64, 130, 300])
def test_fast_does_not_overflow_where_all_spikes_meet_the_largest_weights(sign, out_channels):
    """As many equal weights as can come, the largest alone, largest ones first: sums as large as they can get."""
    for channels, kernel, kind in itertools.product((1, 3, 64, 130), (1, 3), ("equal", "steep", "blocks")):
        size = channels * kernel * kernel
        row = torch.ones(size) if kind == "equal" else torch.full((size,), 1e-6)
        if kind == "steep":
            row[: max(1, size // 10)] = 1.0
        elif kind == "blocks":
            row = torch.linspace(3, -3, size) if size > 1 else row
        weight = sign * row.view(1, channels, kernel, kernel).expand(out_channels, -1, -1, -1)
        spikes, padding = some_spikes(20, 1, channels, 4, 8, rate=1.0), (kernel // 2,) * 2
        packed = events.pack(weight, (1, 1), padding, (4, 8), "fast")
        error = (events.conv2d(events.find(spikes), packed).double() - exact(spikes, weight, 1, padding)).abs()
        assert (error <= size * worth(packed).view(-1, 1, 1) * 0.51 + 1e-6 * size).all(), (channels, kernel, kind)


def test_fast_keeps_a_channel_of_zeros():
    weight = torch.randn(8, 4, 3, 3, generator=seeded(21))
    weight[3] = 0
    packed = events.pack(weight, (1, 1), (1, 1), (6, 8), "fast")
    assert (packed.step > 0).all()
    got = events.conv2d(events.find(some_spikes(22, 1, 4, 6, 8)), packed)
    assert got.isfinite().all() and not got[:, 3].any() and got[:, 2].any()


# ---- what it does not take ----


def test_usable_refuses_what_the_kernel_cannot_do(monkeypatch):
    weight, size = torch.ones(8, 4, 3, 3), (32, 32)
    assert events.usable(weight, 1, (1, 1), size)
    assert not events.usable(weight, 2, (1, 1), size)
    assert not events.usable(weight, 1, (2, 1), size) and not events.usable(weight, 1, (1, 2), size)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert not events.usable(weight.to(dtype), 1, (1, 1), size)
    assert not events.usable(weight.to("meta"), 1, (1, 1), size)
    wide, deep = torch.ones(1, 2048, 1, 1), torch.ones(1, 1344, 7, 7)
    assert events.usable(wide, 1, (1, 1), (900, 31)) and not events.usable(wide, 1, (1, 1), (1, 32))
    assert not events.usable(deep, 1, (1, 1), (1, 1)) and events.usable(deep[:, :1337], 1, (1, 1), (1, 1))
    monkeypatch.setattr(compiler, "compiled", lambda: (None, "no C++ compiler"))
    assert not events.usable(weight, 1, (1, 1), size)


@pytest.mark.parametrize("channels,kernel,width", [(1337, 7, 2), (2047, 1, 32), (7000, 3, 4)])
def test_the_largest_that_is_taken_is_right(channels, kernel, width):
    """Rows and positions up to the last that 16 bits hold; a group of pixels would need more rows and is given up."""
    weight = dyadic(23, 4, channels, kernel, kernel)
    assert events.usable(weight, 1, (1, 1), (2, width))
    spikes, padding = some_spikes(24, 1, channels, 2, width, rate=0.2), (kernel // 2,) * 2
    assert torch.equal(convolve(spikes, weight, (1, 1), padding).double(), exact(spikes, weight, 1, padding))


# ---- neurons that take the currents as they arise ----


def both(spikes, weight, steps, v=None, precision="exact", stride=(1, 1), padding=(1, 1), fused=True, **arguments):
    """The neurons of a convolution, line by line and from the convolution's result; gives the spikes."""
    packed = events.pack(weight, stride, padding, spikes.shape[2:], precision)
    currents = events.Currents(events.find(spikes), packed, steps)
    whole = currents.tensor()
    empty = currents.empty()
    assert whole.shape[1:] == empty.shape and whole.dtype == empty.dtype
    assert empty.is_contiguous(memory_format=torch.channels_last)
    if v is None:
        start = torch.randint(0, 3, empty.shape, generator=seeded(30))
        v = start.to(torch.int32) if packed.integer else start / 4
        v = v.contiguous(memory_format=torch.channels_last)
    kept, begin = v.clone(), torch.randint(0, 9, whole.shape[:2], dtype=torch.int32, generator=seeded(31))
    counts = begin.clone(), begin.clone()
    update = Update(counts=counts[0], **arguments)
    assert events.takes(currents, v, update) == fused
    got = (events if fused else kernels).integrate_and_fire(currents, v, update)
    want = reference.integrate_and_fire(whole, v, Update(counts=counts[1], **arguments))
    assert got[0].dtype == want[0].dtype and got[1].dtype == want[1].dtype
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and torch.equal(*counts)
    assert torch.equal(v, kept), "the membrane that was passed in was changed"
    assert not fused or got[0][0].is_contiguous(memory_format=torch.channels_last)
    return want[0].float()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("out_channels", [1, 8, 10, 12, 16, 40, 64, 130, 200])
def test_neurons_take_currents_line_by_line(out_channels, steps):
    weight = dyadic(32, out_channels, 12, 3, 3, low=-256)
    theta = torch.tensor([0.25, 0.5, 1.5]).repeat(67)[:out_channels].view(-1, 1, 1)
    bias, scale = dyadic(33, out_channels, 1, 1), dyadic(34, out_channels, 1, 1)
    for (height, width), reset in itertools.product(((5, 8), (3, 7), (2, 40)), ("subtract", "zero")):
        spikes = some_spikes(35, steps * 2, 12, height, width)
        shape = (steps, 2, out_channels, height, width)
        branch = some_spikes(36, 2 * steps, *shape[2:]).view(shape)
        longer = dyadic(37, 4 * steps, *shape[2:]).contiguous(memory_format=torch.channels_last)
        current = longer.view(2 * steps, *shape[1:])[::2]
        rest = {"threshold": theta, "reset": reset}
        fired = both(
            spikes, weight, steps, bias=bias, shortcut=branch, shortcut_scale=scale, spike_dtype=torch.uint8, **rest
        )
        assert 0 < fired.mean() < 1
        both(spikes, weight, steps, shortcut=current, decay=0.5, **rest)
        both(spikes, weight, steps, shortcut=current[:1].expand(shape), bias=bias, spike_dtype=torch.bfloat16, **rest)
        both(spikes, weight, steps, threshold=torch.tensor(0.75))


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1)], ids=str)
def test_neurons_of_real_weights_and_any_stride(stride, precision):
    for out_channels, kernel in itertools.product((8, 24, 200), (1, 3)):
        weight = torch.randn(out_channels, 20, kernel, kernel, generator=seeded(38)) / 9
        spikes = some_spikes(39, 6, 20, 9, 16)
        fired = both(
            *(spikes, weight, 3, None, precision, stride, (kernel // 2,) * 2),
            threshold=torch.tensor(1.0),
            bias=torch.randn(out_channels, 1, 1, generator=seeded(40)) / 5,
        )
        assert 0 < fired.mean() < 1


def test_neurons_of_whole_numbers():
    for out_channels in (8, 10, 40, 200):
        weight = torch.randint(-127, 128, (out_channels, 96, 3, 3), generator=seeded(41)).to(torch.int8)
        made = [
            torch.randint(low, high, (out_channels, 1, 1), dtype=torch.int32, generator=seeded(42))
            for low, high in ((300, 900), (-99, 99), (-50, 200))
        ]
        arguments = dict(zip(("threshold", "bias", "shortcut_scale"), made, strict=True))
        branch = some_spikes(43, 6, out_channels, 4, 8).view(3, 2, out_channels, 4, 8)
        fired = both(some_spikes(44, 6, 96, 4, 8), weight, 3, shortcut=branch, spike_dtype=torch.uint8, **arguments)
        assert 0 < fired.mean() < 1


def test_neurons_give_the_same_bits_with_any_threads(threads):
    spikes, weight, results = some_spikes(45, 8, 64, 9, 8), torch.randn(200, 64, 3, 3, generator=seeded(46)), []
    packed = events.pack(weight, (1, 1), (1, 1), (9, 8))
    for count in (1, 2):
        threads(count)
        v = torch.zeros(2, 200, 9, 8).contiguous(memory_format=torch.channels_last)
        counts = torch.zeros(4, 2, dtype=torch.int32)
        currents = events.Currents(events.find(spikes), packed, 4)
        results.append(
            (*events.integrate_and_fire(currents, v, Update(threshold=torch.tensor(1.0), counts=counts)), counts)
        )
    assert all(map(torch.equal, *results)) and results[0][2].any()


NOT_FUSED = {
    "elementwise threshold": {"threshold": torch.full((10, 5, 8), 0.5)},
    "threshold by column": {"threshold": torch.arange(1, 9) / 4},
    "float16 spikes": {"spike_dtype": torch.float16},
    "float16 shortcut": {"shortcut": torch.ones(3, 2, 10, 5, 8, dtype=torch.float16)},
    "membrane in another layout": {"v": dyadic(47, 2, 10, 5, 8).contiguous()},
    "float64 membrane": {"v": dyadic(47, 2, 10, 5, 8).double()},
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_what_cannot_be_fused_goes_through_memory(name):
    arguments = {"threshold": torch.tensor(0.5), **NOT_FUSED[name]}
    fired = both(some_spikes(48, 6, 12, 5, 8), dyadic(49, 10, 12, 3, 3), 3, fused=False, **arguments)
    assert 0 < fired.mean() < 1
