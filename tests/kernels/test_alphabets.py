"""Neurons that emit several thresholds at a time, and take back: by hand, number by number, and what always holds."""

import itertools
from fractions import Fraction

import cuda_on_cpu
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s_resnet.errors import InvalidData
from s_resnet.kernels import Update, events
from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import cpp, eager, reference

COMPILED = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])
KERNELS = pytest.mark.parametrize(
    "kernel", [reference, eager, pytest.param(cpp, marks=COMPILED)], ids=["reference", "cpu", "host"]
)
ALPHABETS = [
    (levels, signed) for levels in (1, 2, 3, 7, 8) for signed in (False, True) if (levels, signed) != (1, False)
]
MEMBRANES = (torch.float32, torch.int32)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def numbers(seed, dtype, *shape, low=-700, high=800):
    """Multiples of 2^-7 that bfloat16 holds, or whole numbers: sums of either are exact in float32."""
    drawn = torch.randint(low, high, shape, generator=seeded(seed))
    if dtype.is_floating_point:
        return (drawn / 128).to(torch.bfloat16).to(dtype)
    return (drawn % 256 if dtype == torch.uint8 else drawn // 64).to(dtype)


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


# ---- by hand ----

TRACES = {
    # name: (currents, v0, threshold, decay, levels, emitted, emissions, membrane after each step, spikes of each step)
    "floor": ([2.75, 0.25, 0.5], 0.0, 1.0, 1.0, 2, None, [2, 1, 0], [0.75, 0.0, 0.5], [1, 1, 0]),
    "at most L": ([9.5, 0.0, 0.0, 0.0], 0.0, 1.0, 1.0, 2, None, [3, 3, 3, 0], [6.5, 3.5, 0.5, 0.5], [2, 2, 2, 0]),
    "nothing is taken back": ([-2.5, 1.5, 4.0], 0.0, 1.0, 1.0, 2, None, [0, 0, 3], [-2.5, -1.0, 0.0], [0, 0, 2]),
    "in thresholds": ([2.0, 3.5], 0.25, 0.75, 1.0, 3, None, [3, 4], [0.0, 0.5], [2, 1]),
    "decay of a rest": ([1.5, 1.5], 0.0, 1.0, 0.5, 2, None, [1, 1], [0.5, 0.75], [1, 1]),
    "255 in a step": ([300.0, 0.0], 0.0, 1.0, 1.0, 8, None, [255, 45], [45.0, 0.0], [8, 4]),
    "gives and takes back": ([1.0, -0.5, -0.5], 0.0, 1.0, 1.0, 1, 0, [1, -1, 0], [0.0, 0.5, 0.0], [1, 1, 0]),
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
            torch.tensor(currents[: t + 1]).view(-1, 1, 1),
            v,
            Update(
                threshold=torch.tensor(theta),
                decay=decay,
                levels=levels,
                emitted=None if emitted is None else torch.full_like(v, emitted),
                counts=counts,
            ),
        )
        assert got.flatten().tolist() == emissions[: t + 1]
        assert after.item() == membranes[t]
        assert counts.flatten().tolist() == spikes[: t + 1]


@KERNELS
def test_each_channel_has_its_threshold_and_each_neuron_its_memory(kernel):
    spikes, v = kernel.integrate_and_fire(
        torch.tensor([7.0, -7.0]).view(2, 1, 1, 1).expand(2, 1, 3, 2),
        torch.zeros(1, 3, 2),
        Update(
            levels=3,
            threshold=torch.tensor([1.0, 2.0, 4.0]).view(3, 1),
            emitted=torch.tensor([[[0.0, 1], [0, 1], [0, 1]]]),
        ),
    )
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
            current,
            v,
            Update(
                threshold=made["threshold"],
                decay=decay,
                levels=levels,
                emitted=emitted,
                counts=counts,
                shortcut_scale=made["shortcut_scale"] if extra else None,
                **more,
            ),
        )
        assert got.dtype == after.dtype == membrane
        assert torch.equal(got, want.to(membrane)) and torch.equal(after, want_v.to(membrane))
        assert torch.equal(counts, want_counts.int())
        assert 0 < want.max() <= 2**levels - 1 and (want.min() < 0) == signed


# ---- what always holds ----


@KERNELS
@pytest.mark.parametrize("membrane", MEMBRANES, ids=str)
@pytest.mark.parametrize("levels,signed", ALPHABETS)
def test_charge_is_conserved_and_no_sum_falls_below_zero(kernel, membrane, levels, signed):
    v, current = numbers(32, membrane, 3, 5, 4), numbers(33, membrane, 50, 3, 5, 4)
    made, emitted, shortcut = parameters(v), memory(v, signed), numbers(34, torch.int8, 50, 3, 5, 4)
    spikes, after = kernel.integrate_and_fire(
        current, v, Update(levels=levels, emitted=emitted, shortcut=shortcut, **made, spike_dtype=torch.float32)
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
                current[part],
                v,
                Update(
                    levels=levels,
                    emitted=emitted,
                    shortcut=shortcut[part],
                    counts=counts[part],
                    spike_dtype=torch.bfloat16,
                    **made,
                ),
            )
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
        current, v, Update(threshold=torch.tensor(theta), levels=levels, emitted=torch.zeros_like(v))
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
            current, torch.zeros(1, 1), Update(threshold=torch.tensor(1.0), levels=2, emitted=emitted)
        )
        sums.append(spikes.sum().item())
    assert sums == [2, 0, 0, 0]


@KERNELS
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_not_a_number_never_gives(kernel, signed):
    current = torch.tensor([torch.nan, torch.inf, -torch.inf]).expand(2, 1, 3)
    v = torch.zeros(1, 3)
    spikes, _ = kernel.integrate_and_fire(
        current, v, Update(threshold=torch.tensor(1.0), levels=2, emitted=torch.ones_like(v) if signed else None)
    )
    assert spikes[0].tolist() == [[-1.0, 3.0, -1.0] if signed else [0.0, 3.0, 0.0]]


# ---- wrong arguments ----


@pytest.mark.parametrize(
    "kernel", [reference, eager, cpp, cuda_on_cpu, events], ids=lambda k: k.__name__.split(".")[-1]
)
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
            pytest.skip(compiler.compiled()[1])
        packed = events.pack(torch.ones(3, 1, 1, 1), (1, 1), (0, 0), (1, 1))
        current = events.Currents(events.find(torch.ones(8, 1, 1, 1, dtype=torch.uint8)), packed, 4)
        change = {name: x.view(*x.shape, 1, 1) if isinstance(x, torch.Tensor) else x for name, x in change.items()}
        match = match.split(r"\[")[0]
    v = torch.zeros(2, 3, 1, 1) if kernel is events else torch.zeros(2, 3)
    with pytest.raises(InvalidData, match=match):
        kernel.integrate_and_fire(current, v, Update(**{"threshold": torch.tensor(1.0), **change}))
