"""Neurons that emit several thresholds at a time, and take back: by hand, number by number, and what always holds."""

import itertools
from fractions import Fraction

import cuda_on_cpu
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s_resnet import InvalidData
from s_resnet.kernels import cpu, events, host, native, reference

COMPILED = pytest.mark.skipif(native.compiled()[0] is None, reason=native.compiled()[1])
KERNELS = pytest.mark.parametrize(
    "kernel", [reference, cpu, pytest.param(host, marks=COMPILED)], ids=["reference", "cpu", "host"]
)
FAST = pytest.mark.parametrize("kernel", [cpu, pytest.param(host, marks=COMPILED)], ids=["cpu", "host"])
ALPHABETS = [
    (levels, signed) for levels in (1, 2, 3, 7, 8) for signed in (False, True) if (levels, signed) != (1, False)
]
MEMBRANES = (torch.float32, torch.int32)
TYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int32)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def numbers(seed, dtype, *shape, low=-700, high=800):
    """Multiples of 2^-7 that bfloat16 holds, or whole numbers: sums of either are exact in float32."""
    drawn = torch.randint(low, high, shape, generator=seeded(seed))
    if dtype.is_floating_point:
        return (drawn / 128).to(torch.bfloat16).to(dtype)
    whole = drawn // 64
    return (whole.clamp(min=0) if dtype == torch.uint8 else whole).to(dtype)


def parameters(v, seed=90):
    """A threshold, a bias and a scale for each channel, in the membrane's type."""
    made = []
    for i, (low, high) in enumerate(((1, 9), (-3, 4), (-2, 4))):
        value = torch.randint(low, high, (v.shape[1],), generator=seeded(seed + i)).to(v.dtype)
        made.append((value / 4 if v.dtype.is_floating_point else value).view(-1, *(1,) * (v.ndim - 2)))
    return dict(zip(("threshold", "bias", "shortcut_scale"), made, strict=True))


def memory(v, signed, seed=80):
    """What signed neurons have emitted before: nothing, some, or much."""
    return torch.randint(0, 3, v.shape, generator=seeded(seed)).pow(4).to(v.dtype) if signed else None


def holds(dtype, levels, signed):
    """Whether spikes of a type can be an alphabet's."""
    return not ((signed and dtype == torch.uint8) or (levels == 8 and dtype == torch.int8))


def agree(kernel, current, v, levels, signed, **arguments):
    """Run a kernel and the specification, hold one to the other, and give back the spikes."""
    emitted = memory(v, signed)
    given = [tensor for tensor in (current, v, emitted, *arguments.values()) if isinstance(tensor, torch.Tensor)]
    kept = [tensor.clone() for tensor in given]
    counts = [torch.full((len(current), len(v)), 5, dtype=torch.int32) for _ in range(2)]
    results = []
    for each, counted in zip((kernel, reference), counts, strict=True):
        results.append(each.integrate_and_fire(current, v, levels=levels, emitted=emitted, counts=counted, **arguments))
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)
    assert torch.equal(*counts)
    assert not results[1][0].any() or (counts[0] > 5).any()
    assert all(map(torch.equal, given, kept)), "an argument was changed"
    return results[1][0].double()


@pytest.fixture
def compiled(monkeypatch):
    """The C++ alone may answer in its own name: plain torch would be right as well."""

    def refuse(*_, **__):
        raise AssertionError("plain torch was asked")

    monkeypatch.setattr(host, "cpu", type("cpu", (), {**vars(cpu), "integrate_and_fire": refuse}))


# ---- by hand ----

TRACES = {
    # name: (currents, v0, threshold, decay, levels, emitted, emissions, membrane after each step, spikes of each step)
    "floor": ([2.75, 0.25, 0.5], 0.0, 1.0, 1.0, 2, None, [2, 1, 0], [0.75, 0.0, 0.5], [1, 1, 0]),
    "at most L": ([9.5, 0.0, 0.0, 0.0], 0.0, 1.0, 1.0, 2, None, [3, 3, 3, 0], [6.5, 3.5, 0.5, 0.5], [2, 2, 2, 0]),
    "nothing is taken back": ([-2.5, 1.5, 4.0], 0.0, 1.0, 1.0, 2, None, [0, 0, 3], [-2.5, -1.0, 0.0], [0, 0, 2]),
    "in thresholds": ([2.0, 3.5], 0.25, 0.75, 1.0, 3, None, [3, 4], [0.0, 0.5], [2, 1]),
    "decay of a rest": ([1.5, 1.5], 0.0, 1.0, 0.5, 2, None, [1, 1], [0.5, 0.75], [1, 1]),
    "255 in a step": ([300.0, 0.0], 0.0, 1.0, 1.0, 8, None, [255, 45], [45.0, 0.0], [8, 4]),
    "gives and takes back": (
        [1.0, -0.5, -0.5, 0.5],
        0.0,
        1.0,
        1.0,
        1,
        0,
        [1, -1, 0, 0],
        [0, 0.5, 0, 0.5],
        [1, 1, 0, 0],
    ),
    "only what it gave": ([-3.0, 1.0, 2.5], 0.0, 1.0, 1.0, 1, 0, [0, 0, 0], [-3.0, -2.0, 0.5], [0, 0, 0]),
    "what it gave before": ([-3.0, 0.0, 0.0], 0.0, 1.0, 1.0, 1, 2, [-1, -1, 0], [-2.0, -1.0, -1.0], [1, 1, 0]),
    "as far as it gave": ([6.5, -9.0, 0.0], 0.0, 1.0, 1.0, 3, 0, [6, -6, 0], [0.5, -2.5, -2.5], [2, 2, 0]),
    "no more than L back": ([-7.0, 0.0, 0.0], 0.0, 1.0, 1.0, 2, 5, [-3, -2, 0], [-4.0, -2.0, -2.0], [2, 1, 0]),
    "down, not to zero": ([-0.25, -0.75], 0.0, 0.5, 1.0, 2, 9, [-1, -1], [0.25, 0.0], [1, 1]),
}


@KERNELS
@pytest.mark.parametrize("name", TRACES)
def test_a_hand_computed_trace(kernel, name):
    currents, v0, theta, decay, levels, emitted, emissions, membranes, spikes = TRACES[name]
    v = torch.full((1, 1), v0)
    for t in range(len(currents)):
        counts = torch.zeros(t + 1, 1, dtype=torch.int32)
        got, after = kernel.integrate_and_fire(
            torch.tensor(currents[: t + 1]).view(-1, 1, 1), v, threshold=torch.tensor(theta), decay=decay,
            levels=levels, emitted=None if emitted is None else torch.full_like(v, emitted), counts=counts,
        )  # fmt: skip
        assert got.flatten().tolist() == emissions[: t + 1]
        assert after.item() == membranes[t]
        assert counts.flatten().tolist() == spikes[: t + 1]


@KERNELS
def test_each_channel_has_its_threshold_and_each_neuron_its_memory(kernel):
    spikes, v = kernel.integrate_and_fire(
        torch.tensor([7.0, -7.0]).view(2, 1, 1, 1).expand(2, 1, 3, 2), torch.zeros(1, 3, 2), levels=3,
        threshold=torch.tensor([1.0, 2.0, 4.0]).view(3, 1), emitted=torch.tensor([[[0.0, 1], [0, 1], [0, 1]]]),
    )  # fmt: skip
    assert spikes[0, 0].tolist() == [[7, 7], [3, 3], [1, 1]]
    assert spikes[1, 0].tolist() == [[-7, -7], [-3, -3], [-1, -1]]
    assert v[0].tolist() == [[0, 0], [0, 0], [0, 0]]


# ---- the specification against a loop over single numbers ----


def loop(current, v, levels, emitted, threshold, decay, bias=None, shortcut=None, scale=None):
    """The equation of the reference's docstring by fractions; arguments are tensors but for levels and decay."""
    wide = [None if x is None else x.expand_as(v).flatten().tolist() for x in (threshold, bias, scale, emitted)]
    theta, constant, weight, before = wide
    membrane, most, memory = [Fraction(x) for x in v.flatten().tolist()], 2**levels - 1, before and list(before)
    spikes, counts = [], []
    for t, now in enumerate(current.flatten(1).tolist()):
        branch = None if shortcut is None else shortcut[t].flatten().tolist()
        for i, charge in enumerate(now):
            u = Fraction(decay) * membrane[i] + Fraction(charge) + Fraction(constant[i] if constant else 0)
            if branch is not None:
                u += Fraction(branch[i]) * Fraction(weight[i] if weight else 1)
            low = 0 if memory is None else max(-most, -int(memory[i]))
            k = min(max(u // Fraction(theta[i]), low), most)
            membrane[i] = u - Fraction(theta[i]) * k
            if memory is not None:
                memory[i] += k
            spikes.append(k)
            counts.append(bin(abs(k)).count("1"))
    counted = torch.tensor(counts).view(len(current), len(v), -1).sum(2)
    return torch.tensor(spikes).view(current.shape), torch.tensor([float(x) for x in membrane]).view(v.shape), counted


@KERNELS
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_kernels_equal_a_loop_over_single_numbers(kernel, levels, signed, membrane):
    v, current = numbers(1, membrane, 2, 5, 3), numbers(2, membrane, 9, 2, 5, 3)
    made, emitted = parameters(v), memory(v, signed)
    shortcut = torch.randint(-9 if signed else 0, 9, current.shape, generator=seeded(3))
    for extra, decay in itertools.product((False, True), (1.0,) if membrane == torch.int32 else (1.0, 0.5)):
        more = {"bias": made["bias"], "shortcut": shortcut.to(torch.int8)} if extra else {}
        want, want_v, want_counts = loop(
            current, v, levels, emitted, made["threshold"], decay, more.get("bias"), more.get("shortcut"),
            made["shortcut_scale"] if extra else None,
        )  # fmt: skip
        counts = torch.zeros(9, 2, dtype=torch.int32)
        got, after = kernel.integrate_and_fire(
            current, v, threshold=made["threshold"], decay=decay, levels=levels, emitted=emitted, counts=counts,
            shortcut_scale=made["shortcut_scale"] if extra else None, **more,
        )  # fmt: skip
        assert got.dtype == after.dtype == membrane
        assert torch.equal(got, want.to(membrane)) and torch.equal(after, want_v.to(membrane))
        assert torch.equal(counts, want_counts.int())
        assert want.max() == min(2**levels - 1, want.max()) > 0 and (want.min() < 0) == signed


# ---- the fast kernels against the specification ----


@FAST
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("current_type", TYPES, ids=str)
def test_every_type_of_current_shortcut_and_spike(compiled, kernel, membrane, current_type):
    shape = (2, 5, 3, 3)
    v, current = numbers(4, membrane, *shape), numbers(5, current_type, 4, *shape)
    for (levels, signed), shortcut_type in itertools.product(ALPHABETS, (None, *TYPES)):
        made = parameters(v)
        if shortcut_type is None:
            made.pop("shortcut_scale")
        else:
            made["shortcut"] = numbers(6, shortcut_type, 4, *shape)
        for spike_type in (None, *(each for each in TYPES if holds(each, levels, signed))):
            spikes = agree(kernel, current, v, levels, signed, spike_dtype=spike_type, **made)
            assert spikes.max() > 0 and (spikes.min() < 0) <= signed


def channels_last(x):
    return x.flatten(0, x.ndim - 4).contiguous(memory_format=torch.channels_last).view(x.shape)


def sliced(x):
    """Every second element of a larger tensor."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 99)
    wide[..., ::2] = x
    return wide[..., ::2]


VIEWS = {
    "as it is": lambda x: x,
    "channels last": channels_last,
    "sliced": sliced,
    "constant": lambda x: x[:1].expand_as(x),
    "one image for all": lambda x: x[..., :1, :, :, :].expand_as(x),
}
SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 17, 1, 1), (2, 64, 3, 5), (1, 3, 33, 33), (1, 1030, 1, 3)]


@FAST
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels,signed", [(1, True), (3, False), (3, True)])
def test_every_shape_and_layout(compiled, kernel, shape, levels, signed):
    for membrane, last, view, branch in itertools.product(MEMBRANES, (False, True), VIEWS, VIEWS):
        v = numbers(7, membrane, *shape)
        v = channels_last(v) if last else v
        shortcut = VIEWS[branch](numbers(9, torch.int8, 3, *shape))
        agree(
            kernel, VIEWS[view](numbers(8, membrane, 3, *shape)), v, levels, signed, shortcut=shortcut, **parameters(v)
        )


@FAST
@pytest.mark.parametrize("view", ["channels last", "sliced", "expanded"])
def test_the_memory_may_lie_anywhere(compiled, kernel, view):
    current, v = numbers(10, torch.float32, 4, 2, 3, 4, 5), numbers(11, torch.float32, 2, 3, 4, 5)
    emitted = memory(v, True)
    emitted = emitted[:, :1].expand_as(v) if view == "expanded" else VIEWS[view](emitted)
    settings = {"threshold": torch.tensor(0.75), "levels": 2}
    got = kernel.integrate_and_fire(current, v, emitted=emitted, **settings)
    want = reference.integrate_and_fire(current, v, emitted=emitted.contiguous(), **settings)
    assert all(map(torch.equal, got, want)) and got[0].min() < 0


@FAST
@pytest.mark.parametrize("shape", [(3, 1), (2, 17), (2, 1000), (2, 7, 5), (1, 5, 2, 3, 2)], ids=str)
def test_vectors_and_volumes(compiled, kernel, shape):
    v, current = numbers(12, torch.float32, *shape), numbers(13, torch.float32, 5, *shape)
    for levels, signed in ALPHABETS:
        agree(kernel, current, v, levels, signed, **parameters(v), shortcut=numbers(14, torch.uint8, 5, *shape))


@FAST
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_rounding_is_the_references_too(kernel, levels, signed):
    """Not dyadic: quotient, product and difference round, and leave the same bits."""
    shape = (3, 5, 6, 7)
    current, v = torch.randn(30, *shape, generator=seeded(15)) * 2 + 0.3, torch.rand(shape, generator=seeded(16))
    theta, bias = (torch.rand(5, 1, 1, generator=seeded(seed)) + 0.01 for seed in (17, 18))
    agree(kernel, current, v, levels, signed, threshold=theta, bias=bias, decay=0.9)
    agree(kernel, current, v, levels, signed, threshold=torch.tensor(0.1), bias=bias)


@FAST
@pytest.mark.parametrize("signed", [False, True])
def test_quotients_next_to_whole_numbers(compiled, kernel, signed):
    """u one unit in the last place around k * threshold: what the division makes of it is what counts."""
    theta = torch.rand(1, 400, generator=seeded(19)) + 0.25
    near = torch.arange(1.0, 256.0).view(-1, 1, 1) * theta
    for current in (near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(torch.inf))):
        current = torch.cat((current, -current))[:, 0].unsqueeze(0)
        v = torch.zeros(current.shape[1:])
        agree(kernel, current, v, 8, signed, threshold=theta.flatten())


@FAST
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_the_largest_whole_numbers(compiled, kernel, levels, signed):
    edge = 2**31 - 1
    current = torch.tensor([edge, -edge, -edge - 1, edge - 1, 2**24 + 1, -(2**24) - 1], dtype=torch.int32).view(
        1, 1, -1
    )
    for theta in (1, 3, 7919, 2**23, 8421505):
        v = torch.zeros(1, 6, dtype=torch.int32)
        agree(kernel, current, v, levels, signed, threshold=torch.tensor(theta, dtype=torch.int32))


@KERNELS
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_not_a_number_never_gives(kernel, signed):
    current = torch.tensor([torch.nan, torch.inf, -torch.inf]).expand(2, 1, 3)
    v = torch.zeros(1, 3)
    spikes, _ = kernel.integrate_and_fire(
        current, v, threshold=torch.tensor(1.0), levels=2, emitted=torch.ones_like(v) if signed else None
    )
    assert spikes[0].tolist() == [[-1.0, 3.0, -1.0] if signed else [0.0, 3.0, 0.0]]


@FAST
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_spikes_and_membrane_keep_the_layout_of_the_membrane(compiled, kernel, layout):
    v = numbers(20, torch.float32, 2, 3, 4, 5).contiguous(memory_format=layout)
    for levels, signed in ALPHABETS:
        spikes, after = kernel.integrate_and_fire(
            numbers(21, torch.float32, 3, 2, 3, 4, 5), v, threshold=torch.tensor(0.5), levels=levels,
            emitted=memory(v, signed), spike_dtype=torch.bfloat16,
        )  # fmt: skip
        assert all(step.is_contiguous(memory_format=layout) for step in spikes)
        assert after.is_contiguous(memory_format=layout) and after.data_ptr() != v.data_ptr()


@COMPILED
def test_the_threads_change_nothing():
    before, results = torch.get_num_threads(), []
    current, v = torch.randn(5, 3, 17, 9, 9, generator=seeded(22)), torch.rand(3, 17, 9, 9, generator=seeded(23))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            counts = torch.zeros(5, 3, dtype=torch.int32)
            out = host.integrate_and_fire(
                current, v, counts=counts, threshold=torch.tensor(0.3), levels=3, emitted=torch.ones_like(v)
            )
            results.append((*out, counts))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results)) and results[0][2].any()


@COMPILED
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_layer(data):
    """Any shape, any types, any alphabet and any mixture of terms, as the specification has it."""

    def pick(*choices):
        return data.draw(st.sampled_from(choices))

    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=5)))
    steps, membrane, (levels, signed) = data.draw(st.integers(1, 8)), pick(*MEMBRANES), pick(*ALPHABETS)
    v = numbers(24, membrane, *shape)
    made = parameters(v)
    made["decay"] = pick(1.0, 0.5) if membrane == torch.float32 else 1.0
    made["spike_dtype"] = pick(None, *(each for each in TYPES if holds(each, levels, signed)))
    for name in ("bias", "shortcut_scale"):
        if pick(False, True):
            made[name] = None
    if pick(False, True):
        made["shortcut"] = numbers(25, pick(*TYPES), steps, *shape)
    current = numbers(26, pick(*TYPES), steps, *shape)
    results = []
    for kernel in (host, cpu, reference):
        counts = torch.zeros(steps, shape[0], dtype=torch.int32)
        out = kernel.integrate_and_fire(current, v, levels=levels, emitted=memory(v, signed), counts=counts, **made)
        results.append((*out, counts))
    for got in results[:2]:
        assert all(map(torch.equal, got, results[2]))


@COMPILED
@pytest.mark.parametrize("levels,signed", [(1, True), (2, False), (3, True)])
@pytest.mark.parametrize("integer", [False, True])
def test_the_neurons_of_an_event_driven_convolution(levels, signed, integer):
    spikes = (torch.rand(6, 5, 4, 8, generator=seeded(27)) < 0.4).to(torch.uint8)
    weight = torch.randint(-9, 12, (7, 5, 3, 3), generator=seeded(28))
    packed = events.pack(weight.to(torch.int8) if integer else weight / 8, (1, 1), (1, 1), (4, 8))
    currents = events.Currents(events.find(spikes), packed, 3)
    v = torch.zeros_like(currents.empty())
    given = {"threshold": torch.ones((), dtype=v.dtype), "levels": levels, "emitted": memory(v, signed)}
    for kind in ({}, {"spike_dtype": torch.int8}):
        got = events.integrate_and_fire(currents, v, **given, **kind)
        want = reference.integrate_and_fire(currents.tensor(), v, **given, **kind)
        assert all(map(torch.equal, got, want)) and (want[0].min() < 0) == signed and want[0].max() > 0


@FAST
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_binary_neurons_take_signed_bytes_and_give_them(compiled, kernel, membrane, reset):
    v = numbers(29, membrane, 2, 5, 3, 4)
    made = parameters(v)
    for current_type, shortcut_type in itertools.product((torch.int8, membrane), (torch.int8, torch.uint8)):
        current = numbers(30, current_type, 4, 2, 5, 3, 4)
        shortcut = numbers(31, shortcut_type, 4, 2, 5, 3, 4)
        spikes = agree(kernel, current, v, 1, False, shortcut=shortcut, spike_dtype=torch.int8, reset=reset, **made)
        assert set(spikes.unique().tolist()) == {0, 1}


# ---- what always holds ----


@KERNELS
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_charge_is_conserved_and_no_sum_falls_below_zero(kernel, membrane, levels, signed):
    v, current = numbers(32, membrane, 3, 5, 4), numbers(33, membrane, 50, 3, 5, 4)
    made, emitted, shortcut = parameters(v), memory(v, signed), numbers(34, torch.int8, 50, 3, 5, 4)
    spikes, after = kernel.integrate_and_fire(
        current, v, levels=levels, emitted=emitted, shortcut=shortcut, **made, spike_dtype=torch.float32
    )
    charge = (current.double() + made["bias"] + shortcut * made["shortcut_scale"].double()).sum(0)
    assert torch.equal(charge, after.double() - v.double() + made["threshold"].double() * spikes.double().sum(0))
    assert spikes.abs().max() <= 2**levels - 1
    if signed:
        sums = emitted + spikes.cumsum(0)
        assert sums.min() == 0 and spikes.min() < 0  # the guard was needed, and held


@KERNELS
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_results_do_not_depend_on_the_chunk(kernel, levels, signed):
    current, start = numbers(35, torch.float32, 21, 2, 5, 3), numbers(36, torch.float32, 2, 5, 3)
    shortcut, made = numbers(37, torch.int8, 21, 2, 5, 3), parameters(start)
    results = []
    for chunk in (21, 1, 4, 20):
        v, emitted, parts, counts = start, memory(start, signed), [], torch.zeros(21, 2, dtype=torch.int32)
        for at in range(0, 21, chunk):
            part = slice(at, at + chunk)
            spikes, v = kernel.integrate_and_fire(
                current[part], v, levels=levels, emitted=emitted, shortcut=shortcut[part], counts=counts[part],
                spike_dtype=torch.bfloat16, **made,
            )  # fmt: skip
            emitted = None if emitted is None else emitted + spikes.sum(0, dtype=emitted.dtype)
            parts.append(spikes)
        results.append((torch.cat(parts), v, counts, *([emitted] if signed else [])))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@KERNELS
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    levels=st.integers(1, 4),
    theta=st.sampled_from([0.5, 0.75, 1.0, 2.25]),
    currents=st.lists(st.integers(-900, 900), min_size=1, max_size=12),
    start=st.integers(-300, 300),
    order=st.randoms(use_true_random=False),
)
def test_signed_neurons_settle_to_the_relu_whatever_the_order(kernel, levels, theta, currents, start, order):
    """Once the currents stop, the sum goes to clip(floor((v0 + sum I) / threshold), 0): a ReLU on a grid."""
    charges = [charge / 128 for charge in currents]
    order.shuffle(charges)
    rest = int((sum(map(abs, charges)) + abs(start / 128)) / theta) + 2
    current = torch.tensor([*charges, *[0.0] * rest]).view(-1, 1, 1)
    v = torch.full((1, 1), start / 128)
    spikes, after = kernel.integrate_and_fire(
        current, v, threshold=torch.tensor(theta), levels=levels, emitted=torch.zeros_like(v)
    )
    total = Fraction(start, 128) + sum(map(Fraction, charges))
    assert spikes.sum() == max(0, total // Fraction(theta))
    assert Fraction(after.item()) == total - Fraction(theta) * int(spikes.sum())
    assert spikes.cumsum(0).min() >= 0


def test_unsigned_neurons_do_depend_on_the_order():
    """What the sign is for: the same currents, and another sum."""
    sums = []
    for currents, emitted in itertools.product(([2.0, -2.0], [-2.0, 2.0]), (None, torch.zeros(1, 1))):
        current = torch.tensor([*currents, 0.0]).view(-1, 1, 1)
        spikes, _ = reference.integrate_and_fire(
            current, torch.zeros(1, 1), threshold=torch.tensor(1.0), levels=2, emitted=emitted
        )
        sums.append(spikes.sum().item())
    assert sums == [2, 0, 0, 0]


# ---- wrong arguments ----


@pytest.mark.parametrize("kernel", [reference, cpu, host, cuda_on_cpu, events], ids=lambda k: k.__name__.split(".")[-1])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"levels": 0}, "levels, got 0; expected 1 to 8"),
        ({"levels": -1}, "levels, got -1"),
        ({"levels": 9}, "levels, got 9"),
        ({"levels": 2, "reset": "zero"}, "reset, got 'zero' with 2 levels; expected 'subtract'"),
        ({"reset": "zero", "emitted": torch.zeros(2, 3)}, "reset, got 'zero' with 1 levels and signs"),
        ({"emitted": torch.zeros(2, 4)}, r"emitted, got torch.float32 \[2, 4\]; expected .* \[2, 3\]"),
        ({"emitted": torch.zeros(3)}, r"emitted, got torch.float32 \[3\]"),
        ({"emitted": torch.zeros(2, 3, dtype=torch.int32)}, "emitted, got torch.int32"),
        ({"emitted": torch.zeros(2, 3), "spike_dtype": torch.uint8}, "spikes, got torch.uint8 for 1 levels and signs"),
        ({"levels": 2, "spike_dtype": torch.bool}, "spikes, got torch.bool"),
        ({"levels": 8, "spike_dtype": torch.int8}, "spikes, got torch.int8 for 8 levels"),
        ({"levels": 8, "spike_dtype": torch.int8, "emitted": torch.zeros(2, 3)}, "spikes, got torch.int8"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_there_is_not_is_refused(kernel, change, match):
    current = torch.zeros(4, 2, 3)
    if kernel is events:
        if not events.available():
            pytest.skip(native.compiled()[1])
        packed = events.pack(torch.ones(3, 1, 1, 1), (1, 1), (0, 0), (1, 1))
        current = events.Currents(events.find(torch.ones(8, 1, 1, 1, dtype=torch.uint8)), packed, 4)
        change = {name: x.view(*x.shape, 1, 1) if isinstance(x, torch.Tensor) else x for name, x in change.items()}
        match = match.split(r"\[")[0]
    v = torch.zeros(2, 3, 1, 1) if kernel is events else torch.zeros(2, 3)
    with pytest.raises(InvalidData, match=match):
        kernel.integrate_and_fire(current, v, **{"threshold": torch.tensor(1.0), **change})
