"""Normalization and firing as one operation, against batch normalization in plain torch and the reference's loop."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from test_surrogate import MLF, MS_RESNET, last_of, needs_compiler, saved_bytes

from s_resnet.errors import InvalidData
from s_resnet.kernels.build import compiler
from s_resnet.kernels.surrogate import cpp, normalize
from s_resnet.kernels.surrogate.fire import fire
from s_resnet.kernels.surrogate.normalize import PLAIN, Normalization, normalize_and_fire
from s_resnet.kernels.surrogate.reference import Firing, fire_reference

T = 4


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(compiler, "compiled", lambda: (None, "no compiler, for a test"))
    elif compiler.compiled()[0] is None:
        pytest.skip(compiler.compiled()[1])
    return request.param


def make(shape, dtype=torch.float64, seed=0, last=False):
    """A convolution's output whose channels differ in mean and width, the gradient of its spikes, weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    wide, mean, weight, bias = torch.rand(4, channels, generator=generator, dtype=torch.float64).add(0.3)
    x = x * wide.view(-1, *(1,) * (x.ndim - 2)) + mean.view(-1, *(1,) * (x.ndim - 2))
    made = [each.to(dtype) for each in (x, grad, weight, bias - 0.5)]
    if last:
        made[:2] = (each.to(memory_format=torch.channels_last) for each in made[:2])
    return made


def oracle(x, weight, bias, firing, timesteps, how=PLAIN, loop=fire_reference):
    if not how.eps_outside:
        current = F.batch_norm(x, None, None, weight, bias, True, 0.0, how.eps)
    else:
        dims, shape = [0, *range(2, x.ndim)], (-1, *(1,) * (x.ndim - 2))
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        current = (x - mean) / (var.sqrt() + how.eps) * weight.view(shape) + bias.view(shape)
    return loop(current.unflatten(0, (timesteps, -1)), firing).flatten(0, 1)


def gradients(function, made, firing, how=PLAIN):
    x, grad, *others = made
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in (x, *others)]
    found = function(*leaves, firing, T, how)
    spikes = found[0] if isinstance(found, tuple) else found
    return spikes, *torch.autograd.grad(spikes, leaves, grad)


SHAPES = [(4 * 3, 5, 6, 7), (4 * 2, 32, 4, 4), (4, 3, 1, 1), (4 * 9, 6), (4 * 5, 1, 3, 3)]


def test_gradients_are_those_of_autograd_through_both(path):
    both = (Firing(**MS_RESNET), Firing(**MLF, surrogate="triangle", width=1.5), Firing((0.4,), surrogate="arctan"))
    for i, (shape, firing, outside) in enumerate(itertools.product(SHAPES, both, (False, True))):
        made = make(shape, seed=i, last=i % 3 == 1 and len(shape) == 4)
        how = Normalization((1e-5, 0.1)[i % 2], outside)
        want, got = (gradients(f, made, firing, how) for f in (oracle, normalize_and_fire))
        assert torch.equal(got[0], want[0]) and got[1].norm() > 0
        for mine, theirs in zip(got, want, strict=True):
            assert (mine - theirs).norm() <= 1e-10 * theirs.norm().clamp_min(1e-3), (shape, firing, outside)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_types_are_as_near_as_plain_torch(path, dtype, last):
    """Gradients of inputs are of their type; spikes that differ are few: those whose membrane is at its threshold."""
    firing = Firing((0.4,), 0.25, "zero", "sigmoid", 2.0)
    made = make((4 * 8, 16, 6, 6), torch.float32, last=last)
    made[:2] = (each.to(dtype) for each in made[:2])
    exact = gradients(oracle, [each.double() for each in made], firing)
    got, plain = (gradients(f, made, firing) for f in (normalize_and_fire, oracle))
    assert [each.dtype for each in got] == [each.dtype for each in plain]
    assert (got[0] != exact[0]).double().mean() <= 2 * (plain[0] != exact[0]).double().mean() + 1e-4
    for mine, theirs, true in zip(got[1:], plain[1:], exact[1:], strict=True):
        assert (mine - true).norm() <= 2 * (theirs - true).norm() + 1e-4 * true.norm()
        assert mine.stride() == true.stride()


def test_statistics_are_those_of_the_batch(path):
    for last in (False, True):
        x, _, weight, bias = make((4 * 3, 5, 6, 7), last=last)
        _, (mean, var, count) = normalize_and_fire(x, weight, bias, Firing(**MS_RESNET), T)
        assert torch.allclose(mean, x.mean((0, 2, 3)), rtol=1e-13) and count == 12 * 42
        assert torch.allclose(var, x.var((0, 2, 3), correction=0), rtol=1e-12) and not var.requires_grad


@needs_compiler
def test_a_large_mean_costs_no_digits():
    """Sums of squares are in float64: a mean of 1000 deviations leaves float32 as good as it was."""
    x, _, weight, bias = make((4 * 8, 5, 6, 7), torch.float32)
    shifted = x + 1000
    _, (_, var, _) = normalize_and_fire(shifted, weight, bias, Firing(**MS_RESNET), T)
    assert torch.allclose(var.double(), shifted.double().var((0, 2, 3), correction=0), rtol=1e-5)


@pytest.mark.parametrize("outside", [False, True])
def test_a_constant_channel_is_no_division_by_zero(path, outside):
    made = make((8, 3, 4, 4))
    made[0][:, 1] = 2.0
    found = gradients(normalize_and_fire, made, Firing(**MS_RESNET), Normalization(eps_outside=outside))
    assert all(each.isfinite().all() for each in found)


def test_x_is_all_that_is_kept(path):
    x, _, weight, bias = make((8, 16, 8, 8), torch.float32)

    def fused(leaf):
        return normalize_and_fire(leaf, weight, bias, Firing(**MLF), T)[0]

    def apart(leaf):
        return oracle(leaf, weight, bias, Firing(**MLF), T, loop=fire)

    whole = x.numel() * 4
    assert whole < saved_bytes(fused, x) < whole + 16 * 4 * 8
    assert saved_bytes(apart, x) >= 2 * whole


class Pair:
    """A process group of two threads."""

    def __init__(self):
        self.barrier, self.given = threading.Barrier(2, timeout=60), {}

    def all_reduce(self, tensor, group):
        assert group is self
        self.given[threading.get_ident()] = tensor.clone()
        self.barrier.wait()
        total = sum(self.given.values())
        self.barrier.wait()
        tensor.copy_(total)


@pytest.mark.parametrize("outside", [False, True])
def test_processes_share_their_statistics(path, outside, monkeypatch):
    """Halves of a batch, of unlike sizes, in two processes: together what one process says of the whole."""
    pair, results = Pair(), {}
    monkeypatch.setattr(normalize.distributed, "all_reduce", pair.all_reduce)
    made = make((4 * 5, 6, 3, 4))
    want = gradients(normalize_and_fire, made, Firing(**MLF), Normalization(eps_outside=outside))

    def work(images):
        halves = [each.unflatten(0, (T, -1))[:, images].flatten(0, 1) for each in made[:2]]
        results[images.start] = gradients(
            normalize_and_fire, [*halves, *made[2:]], Firing(**MLF), Normalization(eps_outside=outside, group=pair)
        )

    threads = [threading.Thread(target=work, args=(images,)) for images in (slice(0, 2), slice(2, 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):  # spikes, and the gradient of x
        joined = torch.cat([results[start][i].unflatten(0, (T, -1)) for start in (0, 2)], 1).flatten(0, 1)
        assert torch.allclose(joined, want[i], rtol=1e-10, atol=1e-12)
    for i in (2, 3):  # weight and bias: a process's own part, which the training adds up
        assert torch.allclose(results[0][i] + results[2][i], want[i], rtol=1e-10, atol=1e-12)


def test_other_layouts(path):
    made = make((4 * 2, 6, 5, 4))
    want = gradients(oracle, made, Firing(**MLF))
    odd = make((4 * 2, 6, 5, 8))
    odd[0][..., ::2] = made[0]
    x, _, *others = (each.requires_grad_() for each in (odd[0][..., ::2].detach(), *made[1:]))
    spikes, _ = normalize_and_fire(x, *others, Firing(**MLF), T)
    found = torch.autograd.grad(spikes, [x, *others], last_of(made[1][None].detach())[0])
    for mine, theirs in zip((spikes, *found), want, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (1, 1, 4, 4), (40, 33, 1, 1), (2, 16, 4, 4), (17, 3, 2, 2)])
def test_sums_and_the_gradient_in_cpp(shape, monkeypatch):
    for last, dtype in itertools.product((False, True), (torch.float32, torch.float64)):
        p, q, *_ = make(shape, dtype, last=last)
        found = cpp.sums(p, q)
        want = torch.stack([p.double().sum((0, 2, 3)), (p.double() * q.double()).sum((0, 2, 3))])
        assert torch.allclose(found, want, rtol=1e-12, atol=1e-12)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert torch.equal(cpp.sums(p, q), found)
        monkeypatch.undo()
        a, b, c, d = coefficients = torch.randn(4, shape[1], dtype=dtype)
        shaped = [each.view(-1, 1, 1) for each in (a, b, c, d)]
        exact = shaped[0] * (p - shaped[1] - shaped[3] * (q - shaped[2]))
        assert torch.allclose(cpp.normalized_gradient(p.clone(), q, coefficients), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "weights", "steps", "match"),
    [
        ((8,), 8, 4, r"x, got \[8\] with 4 steps"),
        ((6, 3, 2, 2), 3, 4, r"x, got \[6, 3, 2, 2\] with 4 steps"),
        ((0, 3, 2, 2), 3, 4, r"x, got \[0, 3, 2, 2\]"),
        ((8, 3, 2, 2), 3, 0, "with 0 steps"),
        ((8, 3, 2, 2), 4, 4, r"weight and bias, got \[4\] and \[4\]; expected \[3\]"),
    ],
)
def test_bad_input(shape, weights, steps, match):
    with pytest.raises(InvalidData, match=match):
        normalize_and_fire(torch.ones(shape), torch.ones(weights), torch.ones(weights), Firing((0.5,)), steps)
    with pytest.raises(InvalidData, match="thresholds"):
        normalize_and_fire(torch.ones(8, 3), torch.ones(3), torch.ones(3), Firing((0.0,)), 4)
