"""The C++ membrane update against the specification, bit for bit: number types, memory layouts, tails, counts."""

import itertools

import pytest
import torch
from conftest import case
from hypothesis import given, settings
from hypothesis import strategies as st

from s_resnet import kernels
from s_resnet.errors import InvalidData
from s_resnet.kernels import Update
from s_resnet.kernels.build import compiler
from s_resnet.kernels.layout import in_step
from s_resnet.kernels.membrane import cpp, eager, reference

pytestmark = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])

TYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int32)
MEMBRANES = (torch.float32, torch.int32)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def dyadic(seed, *shape, low=-160, high=256):
    """Multiples of 2^-8 in [-0.625, 1): exact in bfloat16, and sums of them in float32."""
    return torch.randint(low, high, shape, generator=seeded(seed)) / 256


def numbers(seed, dtype, *shape):
    """What ``dtype`` holds of currents: fractions only where it has them, and signs where it has them."""
    if dtype.is_floating_point:
        return dyadic(seed, *shape).to(dtype)
    return torch.randint(0 if dtype == torch.uint8 else -3, 5, shape, generator=seeded(seed)).to(dtype)


def some_spikes(seed, dtype, *shape):
    return torch.randint(0, 2, shape, generator=seeded(seed)).to(dtype)


def parameters(v, seed=90):
    """A threshold, a bias and a scale for each channel, in the membrane's type."""
    channels, whole = v.shape[1] if v.ndim > 1 else 1, not v.dtype.is_floating_point
    made = []
    for i, (low, high) in enumerate(((1, 6), (-2, 3), (-2, 4))):
        value = torch.randint(low, high, (channels,), generator=seeded(seed + i)).to(v.dtype)
        made.append((value if whole else value / 4).view(-1, *(1,) * max(0, v.ndim - 2)))
    return dict(zip(("threshold", "bias", "shortcut_scale"), made, strict=True))


def agree(current, v, counts=False, kernel=cpp, **arguments):
    """Run a kernel and the specification, hold one to the other, and give back the spikes."""
    given = [tensor for tensor in (current, v, *arguments.values()) if isinstance(tensor, torch.Tensor)]
    kept = [tensor.clone() for tensor in given]
    start = torch.randint(0, 9, (len(current), len(v)), dtype=torch.int32, generator=seeded(91))
    counted = [start.clone() if counts else None for _ in range(2)]
    spikes, after = kernel.integrate_and_fire(current, v, Update(counts=counted[0], **arguments))
    want, want_v = reference.integrate_and_fire(current, v, Update(counts=counted[1], **arguments))
    assert spikes.dtype == want.dtype and spikes.shape == want.shape and after.dtype == want_v.dtype
    assert torch.equal(spikes, want) and torch.equal(after, want_v)
    assert all(map(torch.equal, given, kept)), "an argument was changed"
    if counts:
        assert torch.equal(*counted)
        assert torch.equal(counted[0] - start, want.float().flatten(2).sum(2).int())
    return want.float()


# ---- number types ----


@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("current_type", TYPES, ids=str)
def test_every_type_of_current_shortcut_and_spike(membrane, current_type):
    shape, fired = (2, 5, 3, 3), []
    v = numbers(1, membrane, *shape)
    current = numbers(2, current_type, 4, *shape)
    for shortcut_type, spike_type in itertools.product((None, *TYPES), (None, *TYPES)):
        settings = parameters(v)
        if shortcut_type is None:
            settings.pop("shortcut_scale")
        else:
            settings["shortcut"] = numbers(3, shortcut_type, 4, *shape)
        fired.append(agree(current, v, counts=True, spike_dtype=spike_type, **settings).mean())
    assert min(fired) > 0.05 and max(fired) < 0.99  # both cases are there


@pytest.mark.parametrize("current_type", [torch.float32, torch.bfloat16], ids=str)
def test_an_integer_membrane_cuts_fractions_off(current_type):
    current = torch.tensor([[-1.5, -0.5, 0.5, 1.5, 2.75]]).to(current_type).expand(3, 1, 5)
    v = torch.zeros(1, 5, dtype=torch.int32)
    one = torch.tensor(2, dtype=torch.int32)
    spikes = agree(current, v, threshold=one)
    assert spikes.sum(0).flatten().tolist() == [0, 0, 0, 1, 3]


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.25])
def test_every_setting(reset, decay):
    branches = ("none", "plain", "scalar", "channel")
    for theta, biased, branch in itertools.product(("scalar", "one", "channel"), (False, True), branches):
        v, current = dyadic(4, 3, 5, 7), dyadic(5, 7, 3, 5, 7)
        made = parameters(v)
        scale = {"scalar": torch.tensor(0.375), "channel": made["shortcut_scale"]}.get(branch)
        shortcut = {} if branch == "none" else {"shortcut": dyadic(6, 7, 3, 5, 7), "shortcut_scale": scale}
        threshold = {"scalar": torch.tensor(0.75), "one": torch.tensor([1.0]), "channel": made["threshold"]}[theta]
        bias = made["bias"] if biased else None
        with case(theta, biased, branch):
            spikes = agree(current, v, True, threshold=threshold, decay=decay, reset=reset, bias=bias, **shortcut)
            assert 0 < spikes.mean() < 1


# ---- memory layouts and sizes ----

SHAPES = [
    *((3, channels) for channels in (1, 3, 5, 17, 64, 1025, 2100)),
    *((2, channels, length) for channels, length in ((1, 1), (3, 7), (17, 5), (2, 1500))),
    *((2, channels, 3, 5) for channels in (1, 3, 5, 17, 64)),
    *((1, 5, 1, 1), (2, 64, 1, 1), (1, 3, 33, 33), (1, 1030, 1, 3), (2, 17, 11, 9), (1, 1, 1, 1)),
    *((2, 3, 2, 3, 5), (1, 5, 1, 1, 1)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_shape_and_tail(shape, steps):
    layouts = [torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])]
    for layout, membrane in itertools.product(layouts, MEMBRANES):
        v = numbers(7, membrane, *shape).contiguous(memory_format=layout)
        current, shortcut = numbers(8, membrane, steps, *shape), some_spikes(9, torch.uint8, steps, *shape)
        agree(current, v, True, shortcut=shortcut, spike_dtype=torch.uint8, **parameters(v))


def test_one_neuron_an_image():
    agree(dyadic(10, 3, 4), dyadic(11, 4), threshold=torch.tensor([0.25]), bias=torch.tensor(0.125))


def channels_last(x):
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape)


def sliced(x):
    """Every second element of a larger tensor."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 99)
    wide[..., ::2] = x
    return wide[..., ::2]


VIEWS = {
    "as it is": lambda x: x,
    "channels last": channels_last,
    "sliced": sliced,
    "every second step": lambda x: x.repeat_interleave(2, 0)[::2],
    "steps of a longer run": lambda x: channels_last(torch.cat((x + 1, x, x + 1)))[len(x) : 2 * len(x)],
    "time last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "batch before time": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "width before height": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
    "constant": lambda x: x[:1].expand_as(x),
    "constant, channels last": lambda x: channels_last(x)[:1].expand_as(x),
    "constant, sliced": lambda x: sliced(x)[:1].expand_as(x),
    "one image for all": lambda x: x[:, :1].expand_as(x),
    "one pixel for all": lambda x: x[..., :1, :1].expand_as(x),
    "one number for all": lambda x: x[:1, :1, :1, :1, :1].expand_as(x),
}


@pytest.mark.parametrize("view", VIEWS)
def test_currents_and_shortcuts_may_lie_anywhere(view):
    shape, layouts = (2, 3, 5, 4), (torch.contiguous_format, torch.channels_last)
    for branch, steps, layout in itertools.product(VIEWS, (1, 5), layouts):
        current = VIEWS[view](dyadic(12, steps, *shape))
        shortcut = VIEWS[branch](numbers(13, torch.uint8, steps, *shape))
        v = dyadic(14, *shape).contiguous(memory_format=layout)
        with case(branch, steps, layout):
            agree(current, v, True, shortcut=shortcut, spike_dtype=torch.uint8, **parameters(v))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_currents_in_the_layout_of_the_membrane_are_not_copied(layout):
    v, run = dyadic(15, 2, 3, 5, 4).contiguous(memory_format=layout), dyadic(16, 6, 2, 3, 5, 4)
    run = channels_last(run) if layout == torch.channels_last else run
    for current in (run, run[2:4], run[::2], run[:1].expand_as(run)):
        assert in_step(current, v) is current
    other = channels_last(run) if layout == torch.contiguous_format else run.contiguous()
    assert in_step(other, v) is not other


@pytest.mark.parametrize("steps", [1, 3])
def test_spikes_and_membrane_keep_the_layout_of_the_membrane(steps):
    for layout in (torch.contiguous_format, torch.channels_last):
        v = dyadic(17, 2, 3, 4, 5).contiguous(memory_format=layout)
        spikes, after = cpp.integrate_and_fire(dyadic(18, steps, 2, 3, 4, 5), v, Update(threshold=torch.tensor(1.0)))
        assert all(step.is_contiguous(memory_format=layout) for step in spikes)
        assert after.is_contiguous(memory_format=layout) and after.data_ptr() != v.data_ptr()


MEMBRANE_VIEWS = {
    "channels before batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "height before channels": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "width before height": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": sliced,
    "one pixel for all": lambda x: x[..., :1, :1].expand_as(x),
    "one image for all": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("view", MEMBRANE_VIEWS)
def test_membranes_may_lie_anywhere(view):
    """Dense is not enough: a channel's parameters are found by where a neuron lies."""
    v = MEMBRANE_VIEWS[view](dyadic(19, 2, 3, 4, 5))
    shortcut = some_spikes(20, torch.uint8, 3, 2, 3, 4, 5)
    spikes = agree(dyadic(21, 3, 2, 3, 4, 5), v, True, kernels, shortcut=shortcut, **parameters(v))
    assert 0 < spikes.mean() < 1
    deep = dyadic(22, 2, 3, 2, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    agree(dyadic(23, 3, 2, 3, 2, 4, 5), deep, True, kernels, **{**parameters(deep), "shortcut_scale": None})


def test_nothing_to_do():
    agree(dyadic(24, 0, 2, 3), dyadic(25, 2, 3), True, kernels, threshold=torch.tensor(1.0))
    agree(torch.zeros(3, 0, 2), torch.zeros(0, 2), True, kernels, threshold=torch.tensor(1.0))


@pytest.mark.parametrize("shape", [(3, 17), (3, 17, 9, 9)], ids=str)
def test_the_threads_change_nothing(shape):
    before, results = torch.get_num_threads(), []
    current, v = torch.randn(5, *shape, generator=seeded(26)), torch.rand(shape, generator=seeded(27))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            counts = torch.zeros(5, 3, dtype=torch.int32)
            out = cpp.integrate_and_fire(current, v, Update(counts=counts, threshold=torch.tensor(0.7), decay=0.9))
            results.append((*out, counts))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results)) and results[0][2].any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_layer(data):
    """Any shape, any types, any mixture of terms and any layouts, as the specification has it."""

    def pick(*choices):
        return data.draw(st.sampled_from(choices))

    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=5)))
    steps, membrane = data.draw(st.integers(1, 8)), pick(*MEMBRANES)
    v = numbers(28, membrane, *shape)
    if len(shape) == 4 and pick(False, True):
        v = v.contiguous(memory_format=torch.channels_last)
    views = list(VIEWS) if len(shape) == 4 else ["as it is", "sliced", "time last", "constant", "one image for all"]
    current = VIEWS[pick(*views)](numbers(29, pick(*TYPES), steps, *shape))
    settings = parameters(v)
    settings["reset"] = pick("subtract", "zero")
    settings["decay"] = pick(1.0, 0.5) if membrane == torch.float32 else 1.0
    if pick(False, True):
        settings["threshold"] = settings["threshold"].flatten()[0]
    if pick(False, True):
        settings["bias"] = None
    if pick(False, True):
        settings["shortcut"] = VIEWS[pick(*views)](numbers(30, pick(*TYPES), steps, *shape))
    if pick(False, True):
        settings["shortcut_scale"] = None
    agree(current, v, pick(False, True), kernels, spike_dtype=pick(None, *TYPES), **settings)


# ---- rounding ----


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_the_kernel_rounds_no_worse_than_plain_torch(reset, decay):
    shape, steps = (3, 5, 4, 7), 30
    current, shortcut = (
        torch.randn(steps, *shape, generator=seeded(31)) * 0.6 + 0.1,
        some_spikes(32, torch.uint8, steps, *shape),
    )
    v = torch.rand(shape, generator=seeded(33))
    settings = {
        "threshold": torch.rand(5, 1, 1, generator=seeded(34)) + 0.4,
        "bias": torch.randn(5, 1, 1, generator=seeded(35)) / 9,
    }
    settings["shortcut_scale"] = torch.randn(5, 1, 1, generator=seeded(36)) / 3
    exact = {name: value.double() for name, value in settings.items()}
    rest = {"decay": decay, "reset": reset, "shortcut": shortcut}
    true_spikes, true_v = reference.integrate_and_fire(current.double(), v.double(), Update(**exact, **rest))
    plain_spikes, plain_v = reference.integrate_and_fire(current, v, Update(**settings, **rest))
    spikes, after = cpp.integrate_and_fire(current, v, Update(**settings, **rest))
    assert torch.equal(plain_spikes.double(), true_spikes), "choose another seed: a membrane grazes its threshold"
    assert torch.equal(spikes.double(), true_spikes)
    bound = 2 * (plain_v - true_v).abs().max()
    assert 0 < bound < 1e-4
    assert (after - true_v).abs().max() <= bound


# ---- what plain torch does ----

ODD = {
    "float64 membrane": lambda a: {**a, "v": a["v"].double(), "threshold": a["threshold"].double()},
    "float64 current": lambda a: {**a, "current": a["current"].double()},
    "float16 current": lambda a: {**a, "current": a["current"].half()},
    "float16 shortcut": lambda a: {**a, "shortcut": a["shortcut"].half()},
    "float16 spikes": lambda a: {**a, "spike_dtype": torch.float16},
    "bool spikes": lambda a: {**a, "spike_dtype": torch.bool},
    "elementwise threshold": lambda a: {**a, "threshold": dyadic(40, 2, 3, 4, 5, low=64)},
    "threshold of an image's size": lambda a: {**a, "threshold": dyadic(41, 3, 4, 5, low=64)},
    "threshold by column": lambda a: {**a, "threshold": dyadic(42, 5, low=64)},
    "threshold by row": lambda a: {**a, "threshold": dyadic(43, 4, 1, low=64)},
    "threshold with a batch dimension": lambda a: {**a, "threshold": dyadic(44, 1, 3, 1, 1, low=64)},
    "elementwise bias": lambda a: {**a, "bias": dyadic(45, 3, 4, 5)},
    "elementwise scale": lambda a: {**a, "shortcut_scale": dyadic(46, 3, 4, 5)},
}


def taken_by(current, v, **arguments):
    return kernels.select(current, v, Update(**arguments))


@pytest.mark.parametrize("name", ODD)
def test_plain_torch_takes_the_rest(name):
    v = dyadic(47, 2, 3, 4, 5)
    arguments = {"current": dyadic(48, 4, 2, 3, 4, 5), "v": v, "shortcut": dyadic(49, 4, 2, 3, 4, 5), **parameters(v)}
    assert taken_by(**arguments) is cpp
    agree(**arguments, counts=True)
    odd = ODD[name](arguments)
    assert taken_by(**odd) is eager
    agree(**odd, counts=True, kernel=kernels)
    with pytest.raises(InvalidData, match="an update that it does not take"):
        agree(**odd, counts=True)


def test_parameters_of_a_square_image_are_not_taken_for_channels():
    """As many columns, or rows, as channels: what counts is which dimension a threshold lies in."""
    v, current = dyadic(50, 2, 3, 3, 3), dyadic(51, 4, 2, 3, 3, 3)
    for shape in ((3,), (3, 1), (3, 1, 1), (1, 3, 1, 1), (1, 1, 3)):
        agree(current, v, kernel=kernels, threshold=torch.tensor([0.25, 0.5, 1.0]).view(shape))
    agree(dyadic(52, 4, 2, 3, 3), dyadic(53, 2, 3, 3), kernel=kernels, threshold=torch.tensor([0.25, 0.5, 1.0]))


def test_counts_that_are_a_view_or_wider():
    current, v, wide = dyadic(56, 4, 3, 5), dyadic(57, 3, 5), torch.full((4, 3), 2**40)
    spikes, _ = kernels.integrate_and_fire(current, v, Update(threshold=torch.tensor(0.5), counts=wide))
    assert torch.equal(wide, 2**40 + spikes.sum(2).long()) and spikes.any()
    wide = torch.full((4, 6), 7, dtype=torch.int32)
    current, v = dyadic(54, 4, 3, 5), dyadic(55, 3, 5)
    spikes, _ = kernels.integrate_and_fire(current, v, Update(threshold=torch.tensor(0.5), counts=wide[:, ::2]))
    assert torch.equal(wide[:, ::2], 7 + spikes.sum(2).int()) and (wide[:, 1::2] == 7).all()
