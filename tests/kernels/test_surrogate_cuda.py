"""The CUDA source of neurons that are trained: run on the CPU, compiled for GPUs without one, and on a GPU if there is.

The oracle is the reference: bit for bit in the spikes, and in gradients wherever plain torch adds in the same order.
"""

import ctypes
import itertools
import re

import by_nvrtc
import cuda_on_cpu
import pytest
import torch
from by_nvrtc import needs_nvrtc
from test_surrogate import MLF, MS_RESNET, SURROGATES, THRESHOLDS, gradient, last_of, make, saved_bytes

from s_resnet.kernels import fallback
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.membrane import cuda
from s_resnet.kernels.surrogate import cuda as surrogate_cuda
from s_resnet.kernels.surrogate.fire import fire
from s_resnet.kernels.surrogate.normalize import Normalization, normalize_and_fire
from s_resnet.kernels.surrogate.reference import Firing, fire_reference

needs_compiler = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="no C++ compiler (g++ or $CXX)")
POINTERS = 5
ARGUMENTS = ("const void*", "const void*", "void*", "const void*", "const void*", *["double"] * 12, *["int"] * 6)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def prepared(current, grad, firing, affine=None):
    """The plan of a launch on CPU tensors, its result, and the check of its guards."""
    constant = current.stride(0) == 0
    out, check = cuda_on_cpu.guarded(torch.empty_like(current.contiguous() if constant else current))
    return surrogate_cuda.plan(current, grad, out, firing, affine, cuda_on_cpu.BLOCK), out, check


def launch(plan, out, check, source=None):
    (run,) = cuda_on_cpu.kernels([plan.instance], None, source, surrogate_cuda.FILE, ARGUMENTS)
    kinds = {"d": ctypes.c_double, "i": ctypes.c_int}
    given = [ctypes.c_void_p(None if p is None else p.data_ptr()) for p in plan.arguments[:POINTERS]]
    given += [
        kinds[kind[0]](value) for kind, value in zip(ARGUMENTS[POINTERS:], plan.arguments[POINTERS:], strict=True)
    ]
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
        want = fire_reference(current, Firing(**neuron))
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
    assert plan.arguments[-5:-3] == (int(not constant), int(not one))
    want = gradient(fire, current.contiguous(), grad, **settings_of(firing))
    assert torch.equal(launch(plan, *rest), want)


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 6, 3, 5), (1, 5, 2, 6), (3, 12), (2, 1, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_currents_that_are_made_by_scale_and_shift(shape, dtype):
    """Vectors within a channel, across channels, across images; channels in the middle and innermost."""
    firing = Firing((0.5,), 0.25, "zero", "triangle")
    affine = (torch.arange(1.0, shape[1] + 1) / 4, torch.arange(shape[1]) / -8)
    for last in (False, True) if len(shape) == 4 else (False,):
        current, grad = ((last_of(x) if last else x).to(dtype) for x in make((4, *shape), torch.float32, dyadic=True))
        made = current.float() * affine[0].view(-1, *(1,) * (len(shape) - 2))
        made = made + affine[1].view(-1, *(1,) * (len(shape) - 2))
        want = fire_reference(made, firing)
        assert torch.equal(launch(*prepared(current, None, firing, affine)), want.to(dtype))
        got = launch(*prepared(current, grad, firing, affine))
        assert torch.equal(got, gradient(fire, made, grad.float(), **vars(firing)).to(dtype))


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


def compiled(arch, firing, dtype, steps, scaled=False):
    """What the assembler says of forward and backward of a layer."""
    x = torch.zeros(steps, 1, 256, dtype=dtype)
    affine = (torch.ones(256), torch.ones(256)) if scaled else None
    plans = [surrogate_cuda.plan(x, grad, x, firing, affine) for grad in (None, x)]
    names = [plan.instance for plan in plans]
    _, log = by_nvrtc.compiled("CUBIN", names, arch, "--ptxas-options=-v", file=surrogate_cuda.FILE)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    stacks = [int(n) for n in re.findall(r"(\d+) bytes stack frame", log)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
    assert len(registers) == len(stacks) == 2 and len(spilled) == 4
    return registers, stacks, spilled


@needs_nvrtc
def test_membranes_stay_in_registers():
    """Each neuron is compiled for one of the architectures, and each length for another."""
    sigmoid = Firing((1.0,), surrogate="sigmoid")
    for i, (firing, steps) in enumerate(itertools.product((Firing(**MS_RESNET), Firing(**MLF), sigmoid), (4, 6, 10))):
        arch = ("sm_75", "sm_80", "sm_90", "sm_100")[i % 4]
        registers, stacks, spilled = compiled(arch, firing, FLOATS[i % 3], steps, scaled=i % 2 == 1)
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
    monkeypatch.setattr(fallback, "_warned", set())
    assert not surrogate_cuda.takes(torch.empty(4, 8, device=meta, dtype=torch.float64), firing)  # without a word
    with pytest.warns(UserWarning, match="reference kernel.*no NVRTC"):
        assert not surrogate_cuda.takes(torch.empty(4, 8, device=meta), firing)
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
            spikes = fire(current.cuda(), Firing(**neuron))
            assert torch.equal(spikes.cpu(), fire_reference(current, Firing(**neuron)))
            assert spikes.stride() == current.stride()
            want, got = (gradient(fire, current.to(d), grad.to(d), **neuron).double().cpu() for d in ("cpu", "cuda"))
            assert (got - want).norm() <= (1e-10 if dtype == torch.float64 else 1e-6) * want.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("outside", [False, True])
def test_normalized_on_a_gpu_as_on_the_cpu(dtype, outside):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(4 * 6, 24, 9, 8, generator=generator).to(dtype) for _ in range(2))
    firing = Firing((0.4,), 0.25, "zero", "sigmoid", 2.0)  # smooth: a membrane at its threshold changes little
    for last in (False, True):
        x = x.to(memory_format=torch.channels_last) if last else x
        found = []
        for device in ("cpu", "cuda"):
            leaf = x.to(device).requires_grad_()
            parts = [torch.linspace(0.5, 1, 24, device=device, requires_grad=True) for _ in range(2)]
            spikes, (mean, var, count) = normalize_and_fire(leaf, *parts, firing, 4, Normalization(eps_outside=outside))
            grads = torch.autograd.grad(spikes, [leaf, *parts], grad.to(device))
            found.append([each.double().cpu() for each in (mean, var, count, *grads)])
            assert (
                grads[0].stride() == x.stride()
                and saved_bytes(lambda y, parts=parts: normalize_and_fire(y, *parts, firing, 4)[0], leaf.detach())
                < 1.1 * x.numel() * x.element_size()
            )
        for mine, theirs in zip(*found, strict=True):
            assert (mine - theirs).norm() <= (1e-9 if dtype == torch.float64 else 0.02) * theirs.norm()
