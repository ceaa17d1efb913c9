"""Batch normalization and the neurons behind it as one operation for training, which keeps one tensor less."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from ...errors import InvalidData, message
from . import cpp
from .fire import run
from .reference import Affine, Firing

Statistics = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Normalization:
    """How values are divided by the root of their variance, and whose values.

    Attributes:
        eps: what is added to the variance.
        eps_outside: whether it is added to the root instead.
        group: processes that share their statistics; None: this one alone.
    """

    eps: float = 1e-5
    eps_outside: bool = False
    group: distributed.ProcessGroup | None = None


PLAIN = Normalization()


def normalize_and_fire(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    firing: Firing,
    timesteps: int,
    how: Normalization = PLAIN,
) -> tuple[Tensor, Statistics]:
    """Normalize by the statistics of the batch, then fire: what training does after a convolution.

    With mean and var of each channel over ``T * B`` and space, of all processes of ``how.group``::

        I = weight * (x - mean) / sqrt(var + eps) + bias            or, eps_outside: / (sqrt(var) + eps)
        spikes = fire(I), see s_resnet.kernels.surrogate

    Between forward and backward ``x`` is kept and vectors of a channel's length; ``I`` is computed again.

    Args:
        x: ``[T * B, C, *]``, time outermost.
        weight: ``[C]``.
        bias: ``[C]``.
        firing: what the neurons do.
        timesteps: T.
        how: eps, and the processes that share their statistics.

    Returns:
        spikes ``[T * B, C, *]``; and mean ``[C]``, biased var ``[C]`` and the number of values in a channel, which have
        no gradient.

    Raises:
        InvalidData: T does not divide the images, weight and bias are not ``[C]``, or as ``fire`` says.
    """
    if x.ndim < 2 or timesteps < 1 or len(x) == 0 or len(x) % timesteps:
        got = f"{list(x.shape)} with {timesteps} steps"
        raise InvalidData(message("normalize_and_fire", "x", got, "[T * B, C, *]", "Reshape it"))
    if weight.shape != bias.shape or list(weight.shape) != [x.shape[1]]:
        got = f"{list(weight.shape)} and {list(bias.shape)}"
        raise InvalidData(message("normalize_and_fire", "weight and bias", got, f"[{x.shape[1]}]", "Reshape them"))
    firing.check(_in_time(x, timesteps))
    spikes, *found = _NormFire.apply(x, weight, bias, (firing, timesteps), how)
    return spikes, (found[0], found[1], found[2])


def normalize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    how: Normalization = PLAIN,
) -> tuple[Tensor, Statistics]:
    """The current ``I`` of :func:`normalize_and_fire` in the type of ``x``, and the statistics; arguments as there."""
    current, *found = _Norm.apply(x, weight, bias, how)
    return current, (found[0], found[1], found[2])


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: Normalization) -> tuple[Tensor, ...]:
        wide, affine, statistics = _standardized(ctx, x, weight, bias, how)
        scale, shift = _over_channels(affine, x)
        return (wide * scale + shift).to(x.dtype), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: recomputing allows no more
        return *_backward(ctx, saved, torch.empty_like(_wide(saved[0])).copy_(grad)), None


class _NormFire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, fired: tuple[Firing, int], how: Normalization
    ) -> tuple[Tensor, ...]:
        wide, affine, statistics = _standardized(ctx, x, weight, bias, how)
        firing, steps = ctx.firing, ctx.steps = fired
        return run(_in_time(wide, steps), None, firing, affine).flatten(0, 1).to(x.dtype), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, *_, scale, shift = saved
        arrived = _in_time(_wide(grad), ctx.steps)
        g = run(_in_time(_wide(x), ctx.steps), arrived, ctx.firing, (scale, shift)).flatten(0, 1)
        return *_backward(ctx, saved, g), None, None


def _standardized(
    ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: Normalization
) -> tuple[Tensor, Affine, Statistics]:
    """``x`` as it is computed with, what makes I of it, and the statistics; keeps what goes back needs."""
    x = _placed(x)
    wide = _wide(x)
    mean, var, count = _shared(*_moments(wide), how.group)
    root = (var if how.eps_outside else var + how.eps).sqrt()
    inverse = 1 / (root + how.eps if how.eps_outside else root)
    scale = weight.to(mean.dtype) * inverse
    affine = (scale, bias.to(mean.dtype) - mean * scale)
    ctx.save_for_backward(x, mean, inverse, torch.where(root > 0, inverse / root, 0.0), count, *affine)
    ctx.group, ctx.types = how.group, (weight.dtype, bias.dtype)
    ctx.mark_non_differentiable(mean, var, count)
    return wide, affine, (mean, var, count)


def _backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias from g, that of I, which is written over.

    With ``scale = weight / s``, s the root, that of x is
    ``scale * (g - mean(g) - (x - mean) * mean(g (x - mean)) / (s r))`` with r the root without an eps outside of it.
    """
    x, mean, inverse, slope, count, scale, _ = saved
    wide = _wide(x)
    sums = _sums(g, wide, mean)
    of_weight, of_bias = (sums[1] * inverse).to(ctx.types[0]), sums[0].to(ctx.types[1])
    if ctx.group is not None:
        sums = sums.clone()  # what is returned stays this process's own part
        distributed.all_reduce(sums, group=ctx.group)
    means = sums / count
    gradient = _gradient(g, wide, torch.stack([scale, means[0], mean, means[1] * slope]))
    return gradient.to(x.dtype), of_weight, of_bias


def _over_channels(vectors: Iterable[Tensor], x: Tensor) -> Iterator[Tensor]:
    """Vectors ``[C]`` as ``[C, 1, ...]``, to go with ``[B, C, *]``."""
    return (vector.view(-1, *(1,) * (x.ndim - 2)) for vector in vectors)


def _in_time(x: Tensor, steps: int) -> Tensor:
    return x.reshape(steps, len(x) // steps, *x.shape[1:])


def _placed(x: Tensor) -> Tensor:
    """Contiguous or channels_last, as it is if it can be."""
    return x if x.movedim(1, -1).is_contiguous() else x.contiguous()


def _wide(x: Tensor) -> Tensor:
    """As it is computed with: a GPU's kernels read 16 bits themselves."""
    return x if x.device.type == "cuda" else x.to(torch.promote_types(x.dtype, torch.float32))


def _moments(x: Tensor) -> Statistics:
    """Mean and biased variance of each channel, and how many values they are of, in float32 or float64."""
    count = x.new_tensor(x.numel() // x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    if cpp.takes(x):
        mean, square = cpp.sums(x, x) / count.double()
        return mean.to(x.dtype), (square - mean * mean).clamp_min_(0).to(x.dtype), count
    if x.device.type == "cuda":
        mean, inverse = torch.batch_norm_stats(x, 0.0)
        return mean, torch.where(inverse > 0, inverse.pow(-2), 0.0), count
    mean, var = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
    return mean, var, count


def _shared(mean: Tensor, var: Tensor, count: Tensor, group: Any) -> Statistics:
    """The statistics of all processes of a group, from those of each."""
    if group is None:
        return mean, var, count
    total = torch.cat([mean * count, count[None]])
    distributed.all_reduce(total, group=group)
    everywhere, counts = total[:-1] / total[-1], total[-1]
    spread = (var + (mean - everywhere).square()) * count
    distributed.all_reduce(spread, group=group)
    return everywhere, spread / counts, counts


def _sums(g: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """``[2, C]``: the sums of g, and of g times what x is above its mean."""
    if cpp.takes(x):
        of_g, of_both = cpp.sums(g, x)
        return torch.stack([of_g, of_both - mean.double() * of_g]).to(mean.dtype)
    ones = torch.ones_like(mean)
    _, both, of_g = torch.ops.aten.native_batch_norm_backward(
        g, x, ones, None, None, mean, ones, True, 0.0, [False, True, True]
    )
    return torch.stack([of_g, both])


def _gradient(g: Tensor, x: Tensor, coefficients: Tensor) -> Tensor:
    if cpp.takes(x):
        return cpp.normalized_gradient(g, x, coefficients)
    scale, g0, x0, slope = _over_channels(coefficients, x)
    gradient: Tensor = ((g - g0) - (x - x0) * slope) * scale
    return gradient.to(x.dtype)
