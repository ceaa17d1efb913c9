"""The activation of an ANN that is trained for conversion: the values that T = L steps of a neuron can express."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import check


def qcfs(x: Tensor, threshold: Tensor, levels: int) -> Tensor:
    """Quantization-clip-floor-shift, with L levels and the threshold lambda::

        h(x) = lambda * clip(floor(x L / lambda + 1/2) / L, 0, 1)

    This is the mean output over T = L steps of a neuron of threshold lambda that starts at lambda / 2 and receives the
    current x. In the backward pass the floor is the identity: with ``u = x L / lambda + 1/2``::

        dh/dx = 1 where 0 <= u < L, else 0
        dh/dlambda = (h - x) / lambda where 0 <= u < L, 1 above, 0 below

    Args:
        x: ``[B, *]``; types of 16 bits are computed in float32, and come back as they were.
        threshold: positive, broadcastable to x.
        levels: L >= 1.

    Raises:
        InvalidData: the threshold has another shape, or there are no levels.

    Source: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks",
    ICLR 2022 (arXiv:2303.04347).
    """
    check.quantizer(x, threshold, levels)
    wide = torch.promote_types(x.dtype, torch.float32)
    return _QCFS.apply(x.to(wide), threshold.to(wide), levels).to(x.dtype)  # type: ignore[no-any-return]


class _QCFS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.levels = levels
        return _counts(x, threshold, levels).clamp(0, levels) * (threshold / levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold = ctx.saved_tensors
        counts = _counts(x, threshold, ctx.levels)  # u, floored
        inside = (counts >= 0) & (counts < ctx.levels)
        slope = torch.where(inside, counts / ctx.levels - x / threshold, (counts >= ctx.levels).to(x.dtype))
        return grad * inside, (grad * slope).sum_to_size(threshold.shape), None


def _counts(x: Tensor, threshold: Tensor, levels: int) -> Tensor:
    return torch.floor(x * (levels / threshold) + 0.5)
