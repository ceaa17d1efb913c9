"""TF32: float32 with 10 bits after the point, as the tensor cores of a GPU read it; and float32 as two of them."""

from __future__ import annotations

import torch
from torch import Tensor

DROPPED = 13  # bits of float32 that TF32 has not
LARGEST = 2.0**128 - 2.0**117


def rounded(x: Tensor) -> Tensor:
    """``x`` in float32, rounded to the nearest TF32 number, ties to even; larger values become the largest one.

    Infinities and NaN stay; below 2^-126 the grid has steps of 2^-136.
    """
    bits = x.view(torch.int32)
    odd = (bits >> DROPPED) & 1
    near = (bits + (2 ** (DROPPED - 1) - 1) + odd) & -(2**DROPPED)
    near = near.view(torch.float32).clamp(-LARGEST, LARGEST)
    return torch.where(x.isfinite(), near, x)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` in float32 as the sum of two TF32 numbers: ``high`` is ``x`` rounded, ``low`` what is left, rounded.

    ``|x - high - low|`` is at most ``2^-23 |x|``, below 2^-126 at most 2^-137. Tensor cores multiply both by whole
    numbers up to 2^11 exactly, so that what is lost is no more than float32 loses in a sum. Memory layouts are kept.
    """
    high = rounded(x)
    return high, rounded(torch.where(x.isfinite(), x - high, 0.0))
