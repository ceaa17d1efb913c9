"""The CUDA membrane kernel without a GPU: its source run on the CPU, its plans, its operator. NVRTC: test_nvrtc.py."""

import contextlib
import itertools
import re
from dataclasses import replace
from functools import partial

import cuda_on_cpu
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from membrane_cases import ALPHABETS, CASES, EVERY, FLOATS, SCHEDULED, SHAPES, STEPS, Case, make, plain, run, same
from torch import library as operators
from torch._subclasses.fake_tensor import FakeTensorMode

from s_resnet import kernels
from s_resnet.errors import BackendUnavailable, InvalidData
from s_resnet.kernels import Update, fallback
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.membrane import cuda, reference

needs_compiler = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="no C++ compiler (g++ or $CXX)")
PARTS = 6  # of the cases; a worker of the tests takes one at a time


# ---- the source itself, on the CPU ----


@needs_compiler
@pytest.mark.parametrize("part", range(PARTS))
def test_the_source_on_the_cpu_equals_the_reference_bit_for_bit(part):
    """Every case; every shape with half of the steps, the other half in the next case.

    A part is compiled at once: to begin takes as long as five instances do.
    """
    inputs = []
    for turn in range(part, len(EVERY), PARTS):
        pairs = itertools.product(enumerate(SHAPES), enumerate(STEPS))
        taken = [(shape, steps) for (i, shape), (j, steps) in pairs if (i + j + turn) % 2]
        inputs.append([make(EVERY[turn], shape, steps, seed) for seed, (shape, steps) in enumerate(taken)])
    plans = [cuda_on_cpu.prepare(current, v, Update(**options))[0] for of in inputs for current, v, options in of]
    cuda_on_cpu.kernels([plan.instance for plan in plans])
    for case, of in zip(EVERY[part::PARTS], inputs, strict=True):
        fired = total = 0
        for current, v, options in of:
            got = run(cuda_on_cpu.integrate_and_fire, current, v, options)
            want = run(reference.integrate_and_fire, current, v, options)
            assert same(got, want), (str(case), current.shape, current.stride())
            assert all(step.stride() == v.stride() for step in got[0]) and got[1].stride() == v.stride(), str(case)
            fired, total = fired + (want[0] != 0).sum(), total + want[0].numel()
        assert 0.05 < fired / total < 0.95, str(case)  # both cases are there


@needs_compiler
@pytest.mark.parametrize("case", [*CASES[::6], *ALPHABETS[::3], *SCHEDULED[::5]], ids=str)
def test_rounding_is_the_references_too(case):
    """Not dyadic: every operation rounds, in the reference's order."""
    current, v, options = make(case, (2, 8, 3, 5), 16, dyadic=False)
    got = run(cuda_on_cpu.integrate_and_fire, current, v, options)
    assert same(got, run(reference.integrate_and_fire, current, v, options))


@needs_compiler
@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.sampled_from(
        [Case(), Case(torch.float16, torch.int8, torch.uint8, bias="one"), Case(threshold="each", last=False)]
    ),
    st.tuples(*(st.integers(1, 9),) * 4),
    st.integers(1, 70),
    st.integers(0, 99),
)
def test_any_size(case, shape, steps, seed):
    current, v, options = make(case, shape, steps, seed)
    got = run(cuda_on_cpu.integrate_and_fire, current, v, options)
    assert same(got, run(reference.integrate_and_fire, current, v, options))


@needs_compiler
@pytest.mark.parametrize("arch", [None, 800])
def test_warps_add_up_by_shuffles_and_by_one_instruction(arch):
    current, v, options = make(Case(), (2, 16, 9, 9), 40)
    _, _, counts = run(partial(cuda_on_cpu.integrate_and_fire, arch=arch), current, v, options)
    spikes, _, want = run(reference.integrate_and_fire, current, v, options)
    assert torch.equal(counts, want) and torch.equal(counts - 3, spikes.flatten(2).sum(2).int())


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_every_16_bit_number_is_read_as_torch_reads_it(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, -1)
    theta = torch.tensor(torch.finfo(torch.float32).max)
    for width in (0, 1):  # as vectors, and one by one
        current = every[..., width:]
        v = torch.zeros(current.shape[1:])
        got = cuda_on_cpu.integrate_and_fire(current, v, Update(threshold=theta))
        want = reference.integrate_and_fire(current, v, Update(threshold=theta))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_a_chunk_of_a_longer_run_and_a_batch_that_is_one_image():
    """Strides in time and over images that are neither dense nor 0."""
    current, v, options = make(replace(Case(), constant=False, shortcut="none"), (2, 8, 3, 5), 12)
    for part in (current[3:10], current[::2], current[:, :1].expand_as(current)):
        given = {**options, "counts": options["counts"][: len(part)]}
        got = run(cuda_on_cpu.integrate_and_fire, part, v, given)
        assert same(got, run(reference.integrate_and_fire, part, v, given))


@needs_compiler
def test_parameters_may_lie_anyhow():
    current, v, options = make(Case(), (2, 8, 3, 5), 7)
    spread = {**options, "bias": torch.full((1, 1, 1), 0.25).expand(8, 1, 1)}
    for name in ("threshold", "shortcut_scale"):
        spread[name] = torch.arange(1.0, 17.0).div(8)[::2].view(8, 1, 1)
    got = run(cuda_on_cpu.integrate_and_fire, current, v, spread)
    assert same(got, run(reference.integrate_and_fire, current, v, spread))


def test_a_chunk_is_read_ahead_and_a_single_step_is_not():
    for steps, ahead in ((1, 1), (2, cuda.AHEAD), (40, cuda.AHEAD)):
        current, v, options = make(Case(), (2, 8, 3, 5), steps)
        assert cuda_on_cpu.prepare(current, v, Update(**options))[0].instance.endswith(f", {ahead}>")


MUTANTS = {
    "no tail": ("first < (unsigned)neurons", "true"),
    "images run on": ("current_image * n * image + first", "first"),
    "time stands still": ("out += out_step;", ""),
    "reads too late": ("in += AHEAD * in_step;", "in += (AHEAD - 1) * in_step;"),
    "another step's shortcut": ("in_branch += branch_step;", ""),
    "channels do not wrap": ("channel + 1 == span ? 0 : channel + 1", "channel"),
    "parameters as vectors always": ("if (LAST && whole)", "if (LAST)"),
    "no bias": ("if (BIAS != NONE)", "if (false)"),
    "one lane of counts": ("lane == t % LANES ? sum : mine", "lane == t ? sum : mine"),
    "counts leave early": ("t % LANES == LANES - 1 ||", ""),
    "a half of the warp": ("distance = LANES / 2", "distance = LANES / 4"),
    "never fires at the threshold": (
        "fire<V, RULE == ZERO>(v[k], theta.get(k))",
        "fire<V, RULE == ZERO>(v[k], theta.get(k) + 0.0625f)",
    ),
    "threads leave before the collective": ("int fired = 0;", "int fired = 0; if (!active) continue;"),
    "no barrier": ("__syncthreads();\n    if (warp == 0", "if (warp == 0"),
    "the last neuron is not written": (
        "k < WIDTH; k++) bits.word[k] = Memory<V>::write(v[k])",
        "k < WIDTH - 1; k++) bits.word[k] = Memory<V>::write(v[k])",
    ),
}
ROWS = Case(current=torch.float16, branch=torch.int8, bias="rows")
LAGGED, PHASED = (replace(ROWS, schedule=schedule, results="in place") for schedule in ("lagged", "phased"))
MEMORY = replace(LAGGED, spikes=torch.int8, signed=True, results="given")
WAITING_MUTANTS = {
    "the first row always": (ROWS, "(long long)now * row", "0"),
    "the row of the answer": (LAGGED, "(long long)now * row", "(long long)(t < 0 ? 0 : t) * row"),
    "one bias for all channels of a row": (ROWS, "value[N == 1 ? 0 : k]", "value[0]"),
    "a bias that is never read": (ROWS, "if (BIAS == ROWS) constant.set", "if (now == 0) constant.set"),
    "lagged does not wait": (LAGGED, "steps : SCHEDULE == LAGGED", "steps : 0"),
    "phased waits for one step": (PHASED, "SCHEDULE == PHASED ? steps", "SCHEDULE == PHASED ? 1"),
    "the last current comes again": (LAGGED, "(SCHEDULE == STREAMING || now < steps)", "true"),
    "it answers before it may": (LAGGED, "if (SCHEDULE != STREAMING && t < 0) continue;", ""),
    "nothing is answered after the last current": (PHASED, "if (t >= steps) break;", "if (now >= steps) break;"),
    "the memory is not written": (MEMORY, "if (emitted_after) store", "if (false) store"),
    "the memory goes to another image": (MEMORY, "(emitted_after) + at * 4", "(emitted_after) + first * 4"),
}


def differs(case, old, new, folder):
    """Whether the kernel with another text in it fails, or gives something else than the reference."""
    text = (nvrtc.HERE / "membrane.cu").read_text()
    text = text.replace('#include "vectors.cuh"', (nvrtc.HERE / "vectors.cuh").read_text().replace("#pragma once", ""))
    assert old in text
    broken = folder / "broken.cu"
    broken.write_text(text.replace(old, new))
    current, v, options = make(case, (3, 6, 8, 12), 40)
    try:
        got = run(partial(cuda_on_cpu.integrate_and_fire, source=broken), current, v, options)
    except AssertionError:
        return True
    return not same(got, run(reference.integrate_and_fire, current, v, options))


@needs_compiler
@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_sees_a_broken_kernel(name, tmp_path):
    assert differs(Case(current=torch.float16, branch=torch.int8), *MUTANTS[name], tmp_path)


@needs_compiler
@pytest.mark.parametrize("name", WAITING_MUTANTS)
def test_the_comparison_sees_a_broken_schedule(name, tmp_path):
    assert differs(*WAITING_MUTANTS[name], tmp_path)


@needs_compiler
@pytest.mark.parametrize("case", [ROWS, LAGGED, PHASED, MEMORY], ids=str)
def test_what_is_broken_above_is_whole(case, tmp_path):
    assert not differs(case, "namespace sresnet {", "namespace sresnet {", tmp_path)


# ---- what is chosen, and what is refused ----


def test_vectors_only_where_they_fit():
    def width(shape, dtype=torch.float16, offset=0, **options):
        case = Case(current=dtype, shortcut="none", **options)
        current, v, given = make(case, shape, 2)
        if offset:
            current = torch.zeros(current.numel() + offset, dtype=dtype)[offset:].view(current.shape)
        plan = cuda_on_cpu.prepare(current, v, Update(**given))[0]
        return int(plan.instance.split(", ")[4]), plan.arguments[cuda_on_cpu.POINTERS + 6]

    assert width((2, 8, 3, 5)) == (8, 1)
    assert width((2, 8, 3, 5), torch.float32) == (4, 1)
    assert width((2, 8, 3, 5), last=False) == (8, 0)
    assert width((3, 6, 2, 4)) == (8, 0)  # 48 neurons, 6 channels
    assert width((2, 40)) == width((2, 40, 1, 1), last=False) == (8, 1)
    assert width((3, 6, 1, 2)) == (1, 1)  # 12 neurons
    assert width((3, 6, 1, 2), torch.float32) == (4, 0)
    assert width((1, 3, 5, 7))[0] == 1
    assert width((2, 8, 3, 5), offset=4, last=False)[0] == 1
    assert width((2, 8, 3, 5), offset=8, last=False)[0] == 8


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c, v, o: (c.double(), v, o), "current, got torch.float64"),
        (lambda c, v, o: (c, v.half(), o), "membrane, got torch.float16"),
        (lambda c, v, o: (c[:, :1], v, o), r"current, got \[4, 1"),
        (lambda c, v, o: (c.contiguous(), v, o), "current, got strides"),
        (
            lambda c, v, o: (c.new_zeros(4 * 300).as_strided(c.shape, (300, 121, *c.stride()[2:])), v, o),
            "current, got s",
        ),
        (lambda c, v, o: (c, v.transpose(2, 3).contiguous().transpose(2, 3), o), "membrane, got .*strides"),
        (lambda c, v, o: (c, torch.zeros(2, 8, 3, 10)[..., ::2], o), "membrane, got .*strides"),
        (lambda c, v, o: (c, v[:1].expand_as(v), o), "membrane, got .*strides"),
        (lambda c, v, o: (c, v, {**o, "shortcut": o["shortcut"].bool()}), "shortcut, got torch.bool"),
        (lambda c, v, o: (c, v, {**o, "shortcut": o["shortcut"].contiguous()}), "shortcut, got strides"),
        (lambda c, v, o: (c, v, {**o, "shortcut": o["shortcut"][:3]}), r"shortcut, got \[3"),
        (lambda c, v, o: (c, v, {**o, "threshold": torch.ones(8)}), r"threshold, got \[8\]"),
        (lambda c, v, o: (c, v, {**o, "threshold": torch.ones(8, 3, 5)}), r"threshold, got \[8, 3, 5\]"),
        (lambda c, v, o: (c, v, {**o, "bias": torch.ones(4, 1, 1)}), r"bias, got \[4, 1, 1\]"),
        (
            lambda c, v, o: (c, v, {**o, "bias": torch.ones(8, 1, 1, device="meta")}),
            "a tensor on meta; expected one on cpu",
        ),
        (lambda c, v, o: (c, v.int(), {**o, "decay": 0.5}), "decay, got 0.5"),
        (lambda c, v, o: (c, v, {**o, "bias": torch.ones(4, 1, 4, 1, 1)}), r"bias, got \[4, 1, 4, 1, 1\]"),
        (lambda c, v, o: (c, v, {**o, "bias": torch.ones(4, 2, 8, 3, 5)}), r"bias, got \[2, 8, 3, 5\]"),
        (lambda c, v, o: (c, v, {**o, "after": v.contiguous()}), "after, got strides"),
        (lambda c, v, o: (c, v, {**o, "emitted": v, "emitted_after": v.contiguous()}), "emitted_after, got strides"),
        (lambda c, v, o: (c, v, {**o, "spike_dtype": torch.bool}), "spikes, got torch.bool"),
        (lambda c, v, o: (c, v, {**o, "emitted": v.to("meta")}), "a tensor on meta; expected one on cpu"),
        (lambda c, v, o: (c, v, {**o, "counts": o["counts"].long()}), "counts, got torch.int64"),
        (lambda c, v, o: (c, v, {**o, "counts": o["counts"][:3]}), "counts, got"),
        (lambda c, v, o: (c, v, {**o, "counts": o["counts"].t().contiguous().t()}), "counts, got .*strides"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(change, match):
    current, v, options = make(Case(), (2, 8, 3, 5), 4)
    with pytest.raises(InvalidData, match=f"kernel: .*{match}"):
        current, v, options = change(current, v, options)
        cuda_on_cpu.prepare(current, v, Update(**options))


def test_more_neurons_than_32_bits_count_are_refused():
    v = torch.empty(1, 2**31, device="meta")
    with pytest.raises(InvalidData, match="expected fewer"):
        cuda.plan(v[None], v, Update(v[0, 0], after=v), v[None])


def test_the_cuda_kernel_is_for_cuda_devices():
    v = torch.zeros(1, 4)
    with pytest.raises(InvalidData, match="membrane, got one on cpu"):
        cuda.integrate_and_fire(v[None], v, Update(threshold=torch.tensor(1.0)))
    with pytest.raises(InvalidData, match="reset, got 'hard'"):
        cuda.integrate_and_fire(v[None], v, Update(threshold=torch.tensor(1.0), reset="hard"))
    given = (v[None], v, Update(torch.tensor(1.0)))
    with pytest.raises(BackendUnavailable, match="kernel cuda: got device cpu"):
        kernels.select(*given, "cuda")
    with pytest.raises(InvalidData, match="'triton'"):
        kernels.select(*given, "triton")
    assert kernels.select(*given, "reference") is reference


def test_a_cuda_device_gets_the_cuda_kernel_or_the_reference_and_says_so(monkeypatch):
    device = torch.device("cuda:0")
    with FakeTensorMode():
        v = torch.empty(1, 4, device=device)
    given = (v, v, Update(v))
    monkeypatch.setattr(fallback, "_warned", set())
    monkeypatch.setattr(cuda, "unavailable", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert kernels.fastest(device) == "cuda" and kernels.select(*given) is cuda
    assert re.fullmatch(r"cuda \(.*, sm_90\)", cuda.path(device))
    monkeypatch.setattr(cuda, "unavailable", lambda device: "no NVRTC: gone")
    with pytest.warns(UserWarning, match="no NVRTC: gone"):
        assert kernels.select(*given) is reference
    assert kernels.fastest(device) == "reference"
    assert cuda.path(device) == "reference (no NVRTC: gone)"
    with pytest.raises(BackendUnavailable, match="no NVRTC: gone"):
        kernels.select(*given, "cuda")


def test_a_device_without_a_compiler_says_so(monkeypatch):
    monkeypatch.setattr(nvrtc, "compiler", lambda: (None, "no NVRTC: none"))
    assert cuda.unavailable(torch.device("cuda:7")) == "no NVRTC: none"
    with pytest.raises(BackendUnavailable, match="no NVRTC: none"):
        nvrtc.binary("a", "sm_80")


def test_a_kernel_that_is_new_while_a_graph_is_captured_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(BackendUnavailable, match="warm_up"):
        nvrtc.loaded("never seen", 0)
    # Asking whether the kernel is there neither compiles then nor remembers a no.
    monkeypatch.setattr(nvrtc, "compiler", lambda: (print, "NVRTC for a test"))
    assert cuda.unavailable(torch.device("cuda:7")) is None and torch.device("cuda:7") not in cuda._reasons


def test_a_device_that_cannot_load_the_kernel_says_why_once(monkeypatch):
    asked = []

    def refuse(instance, device):
        asked.append(instance)
        raise BackendUnavailable("cuda kernel: the driver refused the cubin")

    monkeypatch.setattr(nvrtc, "compiler", lambda: (print, "NVRTC for a test"))
    monkeypatch.setattr(nvrtc, "loaded", refuse)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 7)
    monkeypatch.setattr(cuda, "_reasons", {})
    for _ in range(2):
        assert "driver refused" in cuda.unavailable(torch.device("cuda:7"))
    assert asked == [cuda._instance(*cuda.PROBE)]


# ---- the operator ----


@pytest.fixture
def operator_on_cpu():
    """The operator with the CUDA source on the CPU behind it, for as long as a test takes."""
    registry = operators.Library("s_resnet", "IMPL")

    def implementation(current, v, *plain):
        spikes, _ = cuda_on_cpu.integrate_and_fire(current, v, Update(*plain))
        # A result that owns its memory, as the real operator's.
        return torch.empty_strided(spikes.shape, spikes.stride(), dtype=spikes.dtype).copy_(spikes)

    registry.impl("integrate_and_fire", implementation, "CPU")
    yield torch.ops.s_resnet.integrate_and_fire.default
    registry._destroy()


OPERATOR_CASES = [
    Case(),
    Case(torch.float16, torch.int8, torch.float16),
    Case(last=False, constant=True, shortcut="none"),
    Case(torch.float16, torch.int8, torch.int8, levels=2, signed=True),
    Case(torch.float16, bias="rows", schedule="phased", results="given"),
    Case(torch.float16, torch.int8, signed=True, schedule="lagged", results="given"),
    Case(torch.float16, torch.int8, signed=True, schedule="lagged", results="in place"),
]


@needs_compiler
@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_the_operator_keeps_its_word(case, operator_on_cpu):
    current, v, o = make(case, (2, 8, 3, 5), 4)
    o["after"] = torch.empty_like(v) if o["after"] is None else o["after"]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    operators.opcheck(operator_on_cpu, (current, v, *plain(o)), test_utils=checks)


@needs_compiler
@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_compiled_it_gives_the_same(case, operator_on_cpu):
    """Also what it writes to, and what is read after that."""

    def layer(current, v, counts, emitted, after, emitted_after):
        after = torch.empty_like(v) if after is None else after
        told = {**o, "counts": counts, "emitted": emitted, "after": after, "emitted_after": emitted_after}
        spikes = torch.ops.s_resnet.integrate_and_fire(current * 1.0, v, *plain(told))
        return spikes, after * 2, counts + 1, None if emitted_after is None else emitted_after + 1

    results = []
    for compiled in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        current, v, o = make(case, (2, 8, 3, 5), 4)
        written = [o[name] for name in ("counts", "after", "emitted_after")]
        out = compiled(current, v, o["counts"], o["emitted"], o["after"], o["emitted_after"])
        results.append((*out, v, o["emitted"], *written))
    assert same(*results)
    assert not torch.equal(results[0][-3], make(case, (2, 8, 3, 5), 4)[2]["counts"])
    assert results[1][0].stride() == results[0][0].stride()


def test_shapes_are_known_without_a_gpu():
    """The fake implementation, on tensors that claim to be on a GPU."""
    with FakeTensorMode():
        v = torch.empty(2, 8, 3, 5, device="cuda").contiguous(memory_format=torch.channels_last)
        spikes, after = cuda.integrate_and_fire(
            torch.empty(4, 2, 8, 3, 5, device="cuda"),
            v,
            Update(threshold=torch.empty((), device="cuda"), spike_dtype=torch.float16),
        )
    assert spikes.shape == (4, 2, 8, 3, 5) and spikes.dtype == torch.float16 and spikes.device.type == "cuda"
    assert spikes.stride() == (240, *v.stride()) and after.stride() == v.stride() and after.dtype == v.dtype
