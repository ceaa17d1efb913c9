"""How tensors lie in memory, and how the numbers of a channel are shaped."""

from __future__ import annotations

import torch
from torch import Tensor


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """``values``, 0-dimensional or ``[C]``, shaped to broadcast over ``[B, C, *]`` of ``ndim`` dimensions."""
    return values if values.ndim == 0 else values.view(-1, *(1,) * (ndim - 2))


def empty_steps(steps: int, v: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized ``[T, B, *]`` whose every step has the memory layout of ``v``."""
    # empty_like is dense even where v is not (expanded, or a slice); its strides are all that is wanted of it.
    strides = torch.empty_like(v).stride()
    return v.new_empty(steps * v.numel(), dtype=dtype).as_strided((steps, *v.shape), (v.numel(), *strides))


def in_step(values: Tensor, v: Tensor) -> Tensor:
    """``[T, B, *]`` whose every step lies in memory as ``v`` does; steps that are one tensor stay one."""
    if values.shape[1:] == v.shape and values.stride()[1:] == v.stride():
        return values
    constant = values.stride(0) == 0
    steps = values[:1] if constant else values
    copy = empty_steps(len(steps), v, values.dtype).copy_(steps)
    return copy.expand(values.shape) if constant else copy


def inner_of(step: Tensor) -> int:
    """How many numbers of one channel lie together in a dense ``[B, C, *]``; 1 where channels are innermost."""
    return 1 if step.movedim(1, -1).is_contiguous() else step[0, 0].numel()
