"""The CUDA source of neurons that are trained: run on the CPU, compiled for GPUs without one, and on a GPU if there is.

The oracle is the reference: bit for bit in the spikes, and in gradients wherever plain torch adds in the same order.
"""

import ctypes
import io
import itertools
import re

import cuda_on_cpu
import pytest
import torch
from test_surrogate import MLF, MS_RESNET, SURROGATES, THRESHOLDS, gradient, make

from s_resnet.kernels import cuda, nvrtc, surrogate_cuda
from s_resnet.kernels.surrogate import Firing, fire, fire_reference

needs_compiler = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="no C++ compiler (g++ or $CXX)")
needs_nvrtc = pytest.mark.skipif(nvrtc.compiler()[0] is None, reason=nvrtc.compiler()[1])
ARGUMENTS = ("const void*", "const void*", "void*", *["double"] * 12, *["int"] * 3)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def prepared(current, grad, firing):
    """The plan of a launch on CPU tensors, its result, and the check of its guards."""
    out, check = cuda_on_cpu.guarded(torch.empty_like(current, memory_format=torch.contiguous_format))
    return surrogate_cuda.plan(current, grad, out, firing, cuda_on_cpu.BLOCK), out, check


def launch(plan, out, check, source=None):
    (run,) = cuda_on_cpu.kernels([plan.instance], None, source, surrogate_cuda.FILE, ARGUMENTS)
    kinds = {"d": ctypes.c_double, "i": ctypes.c_int}
    given = [ctypes.c_void_p(None if p is None else p.data_ptr()) for p in plan.arguments[:3]]
    given += [kinds[kind[0]](value) for kind, value in zip(ARGUMENTS[3:], plan.arguments[3:], strict=True)]
    assert not run(plan.blocks, *given)
    check()
    return out


def neurons(levels, i=0):
    """Every kind of neuron of some levels; dyadic decay, width and membrane."""
    for j, (kind, reset, detach) in enumerate(itertools.product(SURROGATES, ("subtract", "zero"), (True, False)), i):
        yield Firing(
            THRESHOLDS[:levels], (0.25, 1.0)[j % 2], reset, kind, (1.0, 2.0)[j % 2], detach, (0.0, 0.25)[j % 2]
        )


def settings_of(firing):
    return dict(vars(firing))


# Type, levels, steps, shape of a step: vectors of 16 bytes, of fewer since membranes would not fit, and single ones.
CASES = [
    (torch.float32, 1, 4, (2, 8, 4, 4)),
    (torch.float32, 3, 7, (2, 8, 4, 4)),
    (torch.float16, 1, 4, (1, 600)),
    (torch.bfloat16, 3, 4, (2, 8, 5, 4)),
    (torch.float32, 1, 1, (3, 67)),
    (torch.float16, 3, 20, (1, 130)),
]


@needs_compiler
@pytest.mark.parametrize(("dtype", "levels", "steps", "shape"), CASES, ids=str)
def test_the_source_on_the_cpu_equals_the_reference(dtype, levels, steps, shape):
    current, grad = (x.to(dtype) for x in make((steps, *shape), torch.float32, dyadic=True))
    chosen = list(neurons(levels))[:: 1 if dtype == torch.float32 and steps == 4 else 3]
    plans = [prepared(current, g, firing) for firing in chosen for g in (None, grad)]
    cuda_on_cpu.kernels([plan.instance for plan, *_ in plans], None, None, surrogate_cuda.FILE, ARGUMENTS)
    for firing, forward, backward in zip(chosen, plans[::2], plans[1::2], strict=True):
        neuron = settings_of(firing)
        want = fire_reference(current, **neuron)
        assert torch.equal(launch(*forward), want) and want.unique().numel() == levels + 1
        oracle = gradient(fire_reference, current.double(), grad.double(), **neuron)
        error, plain = ((x.double() - oracle).norm() for x in (
            launch(*backward), gradient(fire_reference, current, grad, **neuron)))  # fmt: skip
        assert oracle.norm() > 1 and error <= 2 * plain + 1e-6 * oracle.norm(), neuron


@needs_compiler
def test_the_source_on_the_cpu_equals_the_host_bit_for_bit():
    """One header has the arithmetic of both, the exponential too."""
    current, grad = make((4, 2, 8, 4, 4), torch.float32)
    for firing in neurons(1):
        got = launch(*prepared(current, grad, firing))
        assert torch.equal(got, gradient(fire, current, grad, **settings_of(firing)))


@needs_compiler
@pytest.mark.parametrize(("constant", "one"), [(True, False), (False, True)])
def test_steps_that_are_one_tensor(constant, one):
    current, grad = make((4, 2, 8, 4, 4), torch.float32)
    current = current[:1].expand(current.shape) if constant else current
    grad = grad[:1].expand(grad.shape) if one else grad
    firing = next(neurons(1))
    plan, *rest = prepared(current, grad, firing)
    assert plan.arguments[-2:] == (int(not constant), int(not one))
    want = gradient(fire, current.contiguous(), grad, **settings_of(firing))
    assert torch.equal(launch(plan, *rest), want)


@needs_compiler
@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_every_number_is_rounded_as_torch_rounds_it(dtype):
    """The gradient of one step under a flat triangle is that of its spikes: what is read is what is written."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    grad = bits.view(dtype)[None]
    grad = grad[:, grad[0].isfinite()].contiguous()
    # 5/8 of a number needs up to three bits more than there are: ties and subnormals are among them.
    firing = Firing((0.5,), surrogate="rectangle", width=1.6)
    current = torch.full_like(grad, 0.5)
    want = (grad.float() * 0.625).to(dtype)
    assert torch.equal(launch(*prepared(current, grad, firing)), want)


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("t * current_time * n", "t * n"),
        ("if (first >= n) return;", ""),
        ("w[k][j] = 0.0f;", ";"),
        ("(float)decay * here", "here"),
        ("for (int t = STEPS - 1; t >= 0; t--)", "for (int t = 0; t < STEPS; t++)"),
    ],
)
def test_the_comparison_sees_a_mistake(old, new, tmp_path):
    text = (nvrtc.HERE / surrogate_cuda.FILE).read_text()
    assert old in text
    (tmp_path / "broken.cu").write_text(text.replace(old, new))
    current, grad = make((4, 2, 41), torch.float32)
    firing = Firing((0.5,), 0.25, "zero", "triangle")
    for x, g in ((current, grad), (current[:1].expand_as(current), grad)):
        want = gradient(fire_reference, x, grad, **settings_of(firing))
        try:
            got = launch(*prepared(x, g, firing), source=str(tmp_path / "broken.cu"))
        except AssertionError:
            return
        if not torch.allclose(got, want, rtol=1e-4):
            return
    pytest.fail("no difference")


# ---- compiled for GPUs ----


def compiled(arch, firing, dtype, steps):
    """What the assembler says of forward and backward of a layer."""
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    x, log = torch.zeros(steps, 1, 256, dtype=dtype), io.StringIO()
    plans = [surrogate_cuda.plan(x, grad, x, firing) for grad in (None, x)]
    options = core.ProgramOptions(
        arch=arch, std="c++17", fma=False, define_macro=("SRESNET_BLOCK", str(nvrtc.BLOCK)),
        include_path=str(nvrtc.HERE), ptxas_options="-v",
    )  # fmt: skip
    source = (nvrtc.HERE / surrogate_cuda.FILE).read_text()
    core.Program(source, "c++", options).compile(
        "cubin", name_expressions=tuple(plan.instance for plan in plans), logs=log
    )
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log.getvalue())]
    stacks = [int(n) for n in re.findall(r"(\d+) bytes stack frame", log.getvalue())]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", log.getvalue())]
    assert len(registers) == len(stacks) == 2 and len(spilled) == 4
    return registers, stacks, spilled


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_membranes_stay_in_registers(arch):
    sigmoid = Firing((1.0,), surrogate="sigmoid")
    for i, (firing, steps) in enumerate(itertools.product((Firing(**MS_RESNET), Firing(**MLF), sigmoid), (4, 6, 10))):
        registers, stacks, spilled = compiled(arch, firing, FLOATS[i % 3], steps)
        assert 10 < max(registers) <= 128 and not any(stacks) and not any(spilled), (firing, steps)


@needs_nvrtc
def test_many_steps_take_local_memory_and_the_check_of_it_sees_that():
    registers, stacks, _ = compiled("sm_90", Firing(**MLF), torch.float32, 40)
    assert sorted(stacks) == [0, 480] and max(registers) < 64


@needs_nvrtc
def test_the_binary_on_disk_is_of_this_file():
    x = torch.zeros(4, 1, 256)
    symbol, code = nvrtc.binary(surrogate_cuda.plan(x, x, x, Firing((0.5,))).instance, "sm_90", surrogate_cuda.FILE)
    assert "surrogate_backward" in symbol and symbol.encode() in code and code.startswith(b"\x7fELF")


# ---- plans ----


def test_vectors_are_as_wide_as_membranes_and_alignment_allow():
    def width(dtype, steps, levels, n=256, grad=True):
        x = torch.zeros(steps, 1, n, dtype=dtype)
        plan = surrogate_cuda.plan(x, x if grad else None, x, Firing((0.5,) * levels))
        return int(plan.instance.split(", ")[1]), plan.blocks

    assert width(torch.float32, 4, 1) == (4, 1) and width(torch.float16, 4, 1) == (8, 1)
    assert width(torch.float16, 4, 3) == (2, 1) and width(torch.float16, 4, 3, grad=False) == (8, 1)
    assert width(torch.float32, 40, 1) == (1, 2) and width(torch.float32, 4, 1, n=258) == (1, 3)
    odd = torch.zeros(4 * 256 + 1)[1:].view(4, 1, 256)
    assert "f32, 1," in surrogate_cuda.plan(odd, None, odd, Firing((0.5,))).instance


def test_what_the_kernel_does_not_take(monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda device: None)
    firing, meta = Firing((0.5,)), torch.device("meta")
    assert surrogate_cuda.takes(torch.empty(4, 8, device=meta), firing)
    assert not surrogate_cuda.takes(torch.empty(4, 8, device=meta, dtype=torch.float64), firing)
    assert not surrogate_cuda.takes(torch.empty(513, 8, device=meta), firing)
    assert not surrogate_cuda.takes(torch.empty(1, 2**16, 2**15, device=meta), firing)
    monkeypatch.setattr(cuda, "unavailable", lambda device: "no NVRTC")
    assert not surrogate_cuda.takes(torch.empty(4, 8, device=meta), firing)


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_on_a_gpu_as_on_the_cpu(dtype, steps):
    for levels, last in itertools.product((1, 3), (False, True)):
        current, grad = (x.to(dtype) for x in make((steps, 2, 24, 9, 8), torch.float32, dyadic=True))
        if last:
            current = current.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        for firing in list(neurons(levels, levels))[::3]:
            neuron = settings_of(firing)
            assert surrogate_cuda.takes(current.cuda(), firing) == (dtype != torch.float64)
            spikes = fire(current.cuda(), **neuron)
            assert torch.equal(spikes.cpu(), fire_reference(current, **neuron))
            assert spikes.stride() == current.stride()
            want, got = (gradient(fire, current.to(d), grad.to(d), **neuron).double().cpu() for d in ("cpu", "cuda"))
            assert (got - want).norm() <= (1e-10 if dtype == torch.float64 else 1e-6) * want.norm()
