"""Neurons in training: they fire as others do, and pass a surrogate gradient back through their spikes.

:func:`fire_reference` is the specification, differentiated by autograd; :func:`fire` does the same in one pass forward
and one back, and keeps only the current between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpp, cuda
from .reference import Affine, Firing, fire_reference


def fire(current: Tensor, firing: Firing) -> Tensor:
    """Do what :func:`fire_reference` does, with its arguments, results and errors, fused over time.

    Between forward and backward nothing is kept but the current, whatever T and K: the membranes are computed again.
    The spikes and the gradient take the memory layout of the current's steps (channels_last stays channels_last). A
    gradient of the gradient is refused.

    float32 and float64 on the CPU go through C++, types of 16 bits as float32; all but float64 on a CUDA device through
    a kernel compiled at first use for this T and these levels. Where there is no compiler, plain torch does the same.
    """
    firing.check(current)
    spikes: Tensor = _Fire.apply(current, firing)
    return spikes


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, firing: Firing) -> Tensor:
        ctx.save_for_backward(current)
        ctx.firing = firing
        return run(current, None, firing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (current,) = ctx.saved_tensors
        return run(current, grad, ctx.firing), None


def run(current: Tensor, grad: Tensor | None, firing: Firing, affine: Affine | None = None) -> Tensor:
    """The spikes; or, given the gradient of the spikes, the gradient of the current.

    Args:
        current: ``[T, B, *]``.
        grad: the gradient of the spikes; None to run forward.
        firing: what the neurons do.
        affine: ``[C]`` each, for ``[T, B, C, *]``: the current is then ``affine[0] * current + affine[1]``, and the
            gradient is that of the result.
    """
    if cpp.takes(current):
        wide = current if current.dtype == torch.float64 else current.float()
        wide_grad = None if grad is None else grad.to(wide.dtype)
        return _fused(cpp.run, wide, wide_grad, firing, affine).to(current.dtype)
    if current.device.type == "cuda" and cuda.takes(current, firing):
        return _fused(cuda.run, current, grad, firing, affine)
    if affine is not None:
        scale, shift = (value.view(-1, *(1,) * (current.ndim - 3)) for value in affine)
        return run((current * scale + shift).to(current.dtype), grad, firing)
    if grad is None:
        return fire_reference(current, firing)
    with torch.enable_grad():
        again = current.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(fire_reference(again, firing), again, grad)
    return gradient


Run = Callable[[Tensor, Tensor | None, Tensor, Firing, Affine | None], None]


def _fused(how: Run, current: Tensor, grad: Tensor | None, firing: Firing, affine: Affine | None) -> Tensor:
    # empty_like is dense even where the step is not (expanded, or a slice); its strides are all that is wanted of it.
    first = torch.empty_like(current[0])
    if affine is not None and not first.movedim(1, -1).is_contiguous():
        first = first.contiguous()
    out = _steps(current, first.stride())
    if out.numel():
        placed = _in_step(current, first.stride())
        how(placed, None if grad is None else _in_step(grad, first.stride()), out, firing, affine)
    return out


def _steps(like: Tensor, strides: tuple[int, ...]) -> Tensor:
    """An uninitialized tensor like ``like``, whose steps follow each other and lie in memory as ``strides`` say."""
    return torch.empty_strided(like.shape, (like[0].numel(), *strides), dtype=like.dtype, device=like.device)


def _in_step(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``[T, B, *]`` whose steps follow each other and lie as ``strides`` say; steps that are one tensor stay one."""
    inside = zip(values.shape[1:], values.stride()[1:], strides, strict=True)
    if values.stride(0) in (0, values[0].numel()) and all(size == 1 or got == want for size, got, want in inside):
        return values
    steps = values[:1] if values.stride(0) == 0 else values
    return _steps(steps, strides).copy_(steps).expand(values.shape)
