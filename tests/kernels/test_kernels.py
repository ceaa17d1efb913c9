"""Kernels against loops over single numbers, the gated max-pool against loops over windows, the readout by hand."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from s_resnet import kernels
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron, Readout, SpikingMaxPool2d
from s_resnet.kernels import Update, describe, fastest, select
from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import cpp, eager, reference

COMPILED = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])
KERNELS = pytest.mark.parametrize(
    "kernel", [reference, eager, pytest.param(cpp, marks=COMPILED)], ids=["reference", "cpu", "host"]
)
THRESHOLDS = {
    "one": torch.tensor(1.0),
    "scalar": torch.tensor(0.75),
    "per-channel": torch.tensor([0.5, 1.0, 2.25]).view(3, 1, 1),
}
SCALES = {"none": None, "scalar": torch.tensor(0.375), "per-channel": torch.tensor([0.5, -0.25, 1.5]).view(3, 1, 1)}
SETTINGS = list(itertools.product(("subtract", "zero"), (1.0, 0.5), THRESHOLDS, SCALES))


def dyadic(seed, *shape, low=-512, high=640):
    """Multiples of 2^-8 in [-2, 2.5): sums and halves of them are exact in float32."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)) / 256


def some_spikes(seed, *shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def loop(current, v, threshold, decay, reset, shortcut=None, scale=None):
    """The equation of the reference's docstring, one Python float at a time."""
    steps = len(current)
    theta = threshold.expand_as(v).double().flatten().tolist()
    weight = None if scale is None else scale.expand_as(v).double().flatten().tolist()
    flat = current.double().reshape(steps, -1).tolist()
    branch = None if shortcut is None else shortcut.double().reshape(steps, -1).tolist()
    membrane = v.double().flatten().tolist()
    spikes = []
    for t in range(steps):
        for i in range(len(membrane)):
            u = decay * membrane[i] + flat[t][i]
            if branch is not None:
                u += weight[i] * branch[t][i]
            fired = 1.0 if u >= theta[i] else 0.0
            spikes.append(fired)
            membrane[i] = u - theta[i] * fired if reset == "subtract" else (0.0 if fired else u)
    return torch.tensor(spikes).view(current.shape), torch.tensor(membrane, dtype=torch.float64).view(v.shape)


def run(kernel, current, v, settings, shortcut):
    reset, decay, threshold, scale = settings
    return kernel.integrate_and_fire(
        current,
        v,
        Update(
            threshold=THRESHOLDS[threshold],
            decay=decay,
            reset=reset,
            shortcut=None if SCALES[scale] is None else shortcut,
            shortcut_scale=SCALES[scale],
        ),
    )


# ---- by hand ----

TRACES = {
    # name: (currents, v0, threshold, decay, reset, spikes, membrane after each step)
    "equality fires": ([1.0, 0.5, 0.5], 0.0, 1.0, 1.0, "subtract", [1, 0, 1], [0.0, 0.5, 0.0]),
    "just below stays": ([1 - 2**-8, 2**-8], 0.0, 1.0, 1.0, "subtract", [0, 1], [1 - 2**-8, 0.0]),
    "one spike a step": ([3.5, 0.0, 0.0, 0.0], 0.0, 1.0, 1.0, "subtract", [1, 1, 1, 0], [2.5, 1.5, 0.5, 0.5]),
    "hard reset forgets": ([3.5, 0.0, 0.75, 0.5], 0.0, 1.0, 1.0, "zero", [1, 0, 0, 1], [0.0, 0.0, 0.75, 0.0]),
    "no lower clamp": ([-2.0, -2.0, 1.5, 3.0, 0.5], 0.0, 1.0, 1.0, "subtract", [0, 0, 0, 0, 1], [-2, -4, -2.5, 0.5, 0]),
    "hard, no clamp": ([-2.0, 1.5, 1.5], 0.0, 1.0, 1.0, "zero", [0, 0, 1], [-2.0, -0.5, 0.0]),
    "start": ([0.5, 0.5], 0.5, 1.0, 1.0, "subtract", [1, 0], [0.0, 0.5]),
    "decay": ([0.75, 0.75, 0.75], 0.0, 1.0, 0.5, "subtract", [0, 1, 0], [0.75, 0.125, 0.8125]),
    "decay of the start": ([0.5], 1.0, 1.0, 0.5, "subtract", [1], [0.0]),
    "threshold 0.25": ([0.25, 0.5, -0.125], 0.0, 0.25, 1.0, "subtract", [1, 1, 0], [0.0, 0.25, 0.125]),
    "threshold 2, leaky, hard": ([1.5, 1.25, 1.0], 0.0, 2.0, 0.5, "zero", [0, 1, 0], [1.5, 0.0, 1.0]),
}


@KERNELS
@pytest.mark.parametrize("name", TRACES)
def test_a_hand_computed_trace(kernel, name):
    currents, v0, theta, decay, reset, fired, membranes = TRACES[name]
    current = torch.tensor(currents).view(-1, 1, 1)
    settings = {"threshold": torch.tensor(theta), "decay": decay, "reset": reset}
    v = torch.full((1, 1), v0)
    for t in range(len(currents)):
        spikes, after = kernel.integrate_and_fire(current[: t + 1], v, Update(**settings))
        assert spikes.flatten().tolist() == fired[: t + 1]
        assert after.item() == membranes[t]


@KERNELS
def test_each_channel_has_its_threshold(kernel):
    spikes, v = kernel.integrate_and_fire(
        torch.ones(4, 1, 3, 1, 1),
        torch.zeros(1, 3, 1, 1),
        Update(threshold=torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)),
    )
    assert spikes.view(4, 3).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert not v.any()


# ---- the specification against the loop ----


@KERNELS
def test_kernels_equal_a_loop_over_single_numbers(kernel):
    current, v, shortcut = dyadic(1, 7, 3, 3, 3, 5), dyadic(2, 3, 3, 3, 5), some_spikes(3, 7, 3, 3, 3, 5)
    for settings in SETTINGS:
        spikes, after = run(kernel, current, v, settings, shortcut)
        reset, decay, threshold, scale = settings
        used = None if SCALES[scale] is None else shortcut
        want, want_v = loop(current, v, THRESHOLDS[threshold], decay, reset, used, SCALES[scale])
        assert 0.1 < want.mean() < 0.9, settings  # both cases are there
        assert spikes.dtype == after.dtype == torch.float32
        assert torch.equal(spikes, want) and torch.equal(after.double(), want_v), settings


# ---- the fast kernel against the specification ----


def as_it_is(x):
    return x.contiguous()


def channels_last(x):
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape)


def sliced(x):
    """Every second element of a larger tensor."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 99.0)
    wide[..., ::2] = x
    return wide[..., ::2]


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def expanded(x):
    """The same current at every step, without a copy: stride 0 in time."""
    return x[:1].expand_as(x)


LAYOUTS = [as_it_is, channels_last, sliced, transposed, expanded]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 3, 5, 7), (3, 3, 1, 1)], ids=str)
def test_cpu_equals_reference_bit_for_bit(layout, steps, shape):
    current, shortcut = layout(dyadic(4, steps, *shape)), layout(some_spikes(5, steps, *shape))
    kept = current.clone(), shortcut.clone()
    plain = dyadic(6, *shape)
    starts = [
        plain,
        plain.contiguous(memory_format=torch.channels_last),
        sliced(plain),
        plain[:, :1, :1, :1].expand(shape),
    ]
    for v, settings in itertools.product(starts, SETTINGS):
        before = v.clone()
        spikes, after = run(eager, current, v, settings, shortcut)
        want, want_v = run(reference, current.contiguous(), v.contiguous(), settings, shortcut.contiguous())
        assert torch.equal(spikes, want) and torch.equal(after, want_v), settings
        assert spikes.shape == current.shape and spikes.dtype == want.dtype
        assert torch.equal(v, before)
    assert torch.equal(current, kept[0]) and torch.equal(shortcut, kept[1])


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 17), (2, 1000)], ids=str)
def test_cpu_equals_reference_on_vectors(shape):
    current, v, shortcut = dyadic(7, 7, *shape), dyadic(8, *shape), some_spikes(9, 7, *shape)
    theta, scale = dyadic(10, shape[1], low=64, high=512), dyadic(11, shape[1])
    for reset, decay in itertools.product(("subtract", "zero"), (1.0, 0.5)):
        settings = {"threshold": theta, "decay": decay, "reset": reset}
        for extra in ({}, {"shortcut": shortcut, "shortcut_scale": scale}):
            got = eager.integrate_and_fire(current, v, Update(**settings, **extra))
            want = reference.integrate_and_fire(current, v, Update(**settings, **extra))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("steps", [1, 5])
def test_spikes_keep_the_layout_of_the_membrane(steps):
    v = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    current = torch.ones(steps, 2, 3, 4, 5)
    spikes, _ = eager.integrate_and_fire(current, v, Update(threshold=torch.tensor(1.0)))
    assert all(step.is_contiguous(memory_format=torch.channels_last) for step in spikes)
    spikes, _ = eager.integrate_and_fire(current, v.contiguous(), Update(threshold=torch.tensor(1.0)))
    assert all(step.is_contiguous() for step in spikes)


@KERNELS
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_result_shares_no_memory_with_the_arguments(kernel, steps, decay):
    current, v = dyadic(12, steps, 2, 5), dyadic(13, 2, 5)
    kept = current.clone(), v.clone()
    spikes, after = kernel.integrate_and_fire(current, v, Update(threshold=torch.tensor(1.0), decay=decay))
    spikes.fill_(7), after.fill_(7)
    assert torch.equal(current, kept[0]) and torch.equal(v, kept[1])


# ---- rounding and drift ----


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s)))
def test_cpu_rounds_no_worse_than_plain_torch(settings):
    generator = torch.Generator().manual_seed(14)
    current = torch.randn(20, 3, 3, 4, 5, generator=generator) * 0.7 + 0.2
    v, shortcut = torch.rand(3, 3, 4, 5, generator=generator), some_spikes(15, 20, 3, 3, 4, 5)
    reset, decay, threshold, scale = settings
    scale = None if SCALES[scale] is None else SCALES[scale] * 0.7

    def plain(dtype):
        membrane, theta, out = v.to(dtype), THRESHOLDS[threshold].to(dtype), []
        for t in range(len(current)):
            membrane = membrane * decay + current[t].to(dtype)
            if scale is not None:
                membrane = membrane + shortcut[t].to(dtype) * scale.to(dtype)
            fired = (membrane >= theta).to(dtype)
            membrane = membrane - fired * theta if reset == "subtract" else membrane * (1 - fired)
            out.append(fired)
        return torch.stack(out), membrane

    branch = {} if scale is None else {"shortcut": shortcut, "shortcut_scale": scale}
    true_spikes, true_v = plain(torch.float64)
    rounded_spikes, rounded_v = plain(torch.float32)
    spikes, after = eager.integrate_and_fire(
        current, v, Update(threshold=THRESHOLDS[threshold], decay=decay, reset=reset, **branch)
    )
    assert torch.equal(rounded_spikes.double(), true_spikes), "choose another seed: a membrane grazes its threshold"
    assert torch.equal(spikes.double(), true_spikes)
    bound = 2 * (rounded_v - true_v).abs().max()
    assert 0 < bound < 1e-4
    assert (after - true_v).abs().max() <= bound


@KERNELS
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_charge_is_conserved(kernel, threshold):
    current, v, shortcut = dyadic(16, 50, 3, 3, 4, 5), dyadic(17, 3, 3, 4, 5), some_spikes(18, 50, 3, 3, 4, 5)
    theta, scale = THRESHOLDS[threshold], SCALES["per-channel"]
    spikes, after = kernel.integrate_and_fire(
        current, v, Update(threshold=theta, shortcut=shortcut, shortcut_scale=scale)
    )
    charge = current.double().sum(0) + (shortcut.double() * scale).sum(0)
    assert spikes.sum() > 0
    assert torch.equal(charge, after.double() - v.double() + theta.double() * spikes.double().sum(0))


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_thousand_steps_do_not_drift(kernel, dtype):
    """The spikes of a constant current are ``floor((v0 + T I) / threshold)``, by fractions; half currents too."""
    kernel = kernels if kernel is cpp and dtype == torch.float16 else kernel  # the C++ takes no halves
    steps, theta = 1024, Fraction(3, 4)
    currents = torch.tensor([[0.1, 0.3, 0.7, 1 / 3, 2**-8, 0.75, 0.0, -0.5]]).to(dtype)
    exact = [Fraction(value) for value in currents[0].tolist()]
    spikes, after = kernel.integrate_and_fire(
        currents.expand(steps, *currents.shape), torch.full((1, 8), 0.5), Update(threshold=torch.tensor(float(theta)))
    )
    assert after.dtype == torch.float32
    for i, current in enumerate(exact):
        charge = Fraction(1, 2) + steps * current
        count = int(spikes[:, 0, i].sum())
        grazing = charge % theta < Fraction(1, 1000)
        assert max(0, math.floor(charge / theta)) - count in ((0, 1) if grazing else (0,))
        assert abs(after[0, i].item() - float(charge - theta * count)) < 2e-4


@KERNELS
def test_a_shortcut_without_its_scale_is_a_current(kernel):
    spikes, v = kernel.integrate_and_fire(
        torch.ones(2, 1, 1), torch.zeros(1, 1), Update(threshold=torch.tensor(4.0), shortcut=torch.full((2, 1, 1), 1.5))
    )
    assert spikes.flatten().tolist() == [0, 1] and v.item() == 1.0


def test_the_cpu_runs_the_compiled_kernel_or_says_why_not(monkeypatch):
    compiled, how = compiler.compiled()
    v = torch.zeros(1, 3)
    given = (v[None], v, Update(torch.tensor(1.0)))
    name, kernel = ("cpu", eager) if compiled is None else ("cpu-native", cpp)
    assert fastest(torch.device("cpu")) == name and select(*given) is kernel
    assert how in describe()
    monkeypatch.setattr(compiler, "compiled", lambda: (None, "no C++ compiler: nothing found"))
    assert fastest(torch.device("cpu")) == "cpu" and select(*given) is eager
    assert "cpu (no C++ compiler" in describe()


# ---- the gated max-pool ----

POOLS = [
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 2), (2, 1), (1, 0), (1, 1), False),
    ((2, 2), (1, 2), (0, 0), (2, 2), False),
    ((3, 3), (2, 2), (0, 0), (1, 1), True),
]


def gate_by_loops(spikes, kernel, stride, padding, dilation, ceil_mode):
    """The paper's gate, window by window: o = max(s); C_in += s; z = max(C_in); o = 0 where z <= C_out; C_out += o."""
    steps, batch, channels, height, width = spikes.shape
    sizes = []
    for n, k, s, p, d in zip((height, width), kernel, stride, padding, dilation, strict=True):
        span = n + 2 * p - d * (k - 1) - 1
        size = (math.ceil(span / s) if ceil_mode else span // s) + 1
        sizes.append(size - 1 if ceil_mode and (size - 1) * s >= n + p else size)
    out = torch.zeros(steps, batch, channels, *sizes)
    for b, c, y, x in itertools.product(*map(range, (batch, channels, *sizes))):
        rows = [y * stride[0] - padding[0] + i * dilation[0] for i in range(kernel[0])]
        columns = [x * stride[1] - padding[1] + i * dilation[1] for i in range(kernel[1])]
        window = [(i, j) for i in rows for j in columns if 0 <= i < height and 0 <= j < width]
        counts, fired = dict.fromkeys(window, 0.0), 0.0
        for t in range(steps):
            for i, j in window:
                counts[i, j] += spikes[t, b, c, i, j].item()
            o = max(spikes[t, b, c, i, j].item() for i, j in window)
            if max(counts.values()) <= fired:
                o = 0.0
            fired += o
            out[t, b, c, y, x] = o
    return out


@pytest.mark.parametrize("settings", POOLS, ids=str)
def test_the_pool_equals_a_loop_over_windows(settings):
    spikes = some_spikes(19, 9, 2, 2, 6, 7) * torch.tensor([0.5, 1.0]).view(2, 1, 1)  # an amplitude per channel
    want = gate_by_loops(spikes, *settings)
    pool = SpikingMaxPool2d(*settings)
    got, memory = pool.advance([spikes], None)
    assert torch.equal(got, want)
    plain = torch.stack([torch.nn.functional.max_pool2d(s, *settings) for s in spikes])
    assert 0 < got.sum() < plain.sum()  # the gate closes somewhere, and not everywhere
    first, half = pool.advance([spikes[:4]], None)
    kept = [part.clone() for part in half]
    second, end = pool.advance([spikes[4:]], half)
    assert torch.equal(torch.cat([first, second]), want)
    assert all(torch.equal(a, b) for a, b in zip(half, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(end, memory, strict=True))


def test_the_pool_gives_as_many_spikes_as_its_busiest_input():
    """Two inputs that take turns: a plain max would fire at every step, the gate fires as often as one of them."""
    spikes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]).view(4, 1, 1, 1, 2)
    out, _ = SpikingMaxPool2d((1, 2), (1, 2)).advance([spikes], None)
    assert out.flatten().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_pool_keeps_the_layout_of_the_spikes(layout):
    spikes = some_spikes(21, 10, 3, 6, 6).contiguous(memory_format=layout).unflatten(0, (5, 2))
    out, _ = SpikingMaxPool2d((2, 2), (2, 2)).advance([spikes], None)
    assert out.shape == (5, 2, 3, 3, 3) and out.flatten(0, 1).is_contiguous(memory_format=layout)


# ---- the readout ----


def test_the_current_readout_is_the_mean_current():
    current = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]], [[-1.0, 5.0]], [[0.0, 1.0]]])
    out, _ = Readout(torch.tensor(2.0)).advance([current], None)
    assert out[:, 0].tolist() == [[2.0, -4.0], [4.0, -2.0], [2.0, 2.0], [1.5, 2.0]]


def test_the_spike_readout_counts_spikes_and_breaks_ties_by_softmax():
    """Membranes by hand from 0.5: both fire, one at equality; then none; then the second."""
    current = torch.tensor([[[0.75, 0.5]], [[0.5, 0.5]], [[-1.0, 1.0]]])
    out, _ = Readout(torch.tensor(3.0), "spikes", 0.5).advance([current], None)
    counts = [(1, 1), (1, 1), (1, 2)]
    membranes = [(0.25, 0.0), (0.75, 0.5), (-0.25, 0.5)]
    for t, (count, membrane) in enumerate(zip(counts, membranes, strict=True), 1):
        total = sum(math.exp(u) for u in membrane)
        for i in range(2):
            assert out[t - 1, 0, i].item() == pytest.approx(
                3 / t * (count[i] + math.exp(membrane[i]) / total), rel=1e-6
            )


@pytest.mark.parametrize("mode", ["current", "spikes"])
def test_the_readout_does_not_depend_on_the_chunk(mode):
    current, readout = dyadic(20, 7, 3, 5), Readout(torch.tensor(0.3), mode, 0.25)
    whole, end = readout.advance([current], None)
    memory, parts = None, []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        kept = None if memory is None else [part.clone() for part in memory]
        before = memory
        part, memory = readout.advance([current[start:stop]], memory)
        parts.append(part)
        assert before is None or all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    assert torch.equal(torch.cat(parts), whole) and whole.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(memory, end, strict=True))


def test_unknown_settings_are_named():
    with pytest.raises(InvalidData, match="'hard'"):
        Neuron(torch.tensor(1.0), reset="hard")
    with pytest.raises(InvalidData, match="'rate'"):
        Readout(torch.tensor(1.0), "rate")
