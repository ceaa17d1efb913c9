"""Fan-out: how many outputs of an operation each input position reaches, counted exactly, borders and strides included.

Windows are rectangles, so the count of a position is the product of its row's and its column's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...graph.ops import AdaptiveAvgPool2d, AvgPool2d, Conv2d, Linear, MaxPool2d, Op
from ...graph.readout import SpikingMaxPool2d

Shape = tuple[int, ...]


def fan_out(op: Op, before: Shape, after: Shape) -> Tensor:
    """Synapses that leave each input position of one channel: int64 ``[H, W]``, 0-dimensional if all are equal.

    For a convolution, with p the input position, i that of the output, k that of the kernel, s stride, a padding and d
    dilation::

        fan_out[p] = C_out / groups * rows[p_h] * columns[p_w],  rows[p] = #{(i, k): i s - a + k d = p}

    In a pool a position reaches the windows that hold it, in a linear layer all outputs, elsewhere one output.

    Args:
        op: the operation.
        before: the shape of its input for one image, without the batch: ``[C, H, W]`` or ``[features]``.
        after: the shape of its output likewise.
    """
    if isinstance(op, Linear):
        return torch.tensor(op.weight.shape[0])
    if isinstance(op, AdaptiveAvgPool2d):
        rows, columns = (_adaptive(size, out) for size, out in zip(before[-2:], after[-2:], strict=True))
        return torch.outer(rows, columns)
    if not isinstance(op, Conv2d | AvgPool2d | MaxPool2d | SpikingMaxPool2d):
        return torch.tensor(1)
    kernel = (op.weight.shape[2], op.weight.shape[3]) if isinstance(op, Conv2d) else op.kernel
    dilation = (1, 1) if isinstance(op, AvgPool2d) else op.dilation
    rows, columns = (
        _windows(*sizes) for sizes in zip(before[-2:], after[-2:], kernel, op.stride, op.padding, dilation, strict=True)
    )
    each = op.weight.shape[0] // op.groups if isinstance(op, Conv2d) else 1
    return each * torch.outer(rows, columns)


def synapses(op: Op, before: Shape, after: Shape) -> int:
    """All synapses of an operation; padding has none."""
    each = fan_out(op, before, after)
    positions = each.numel() if each.ndim else 1
    return int(each.sum()) * (torch.Size(before).numel() // positions)


def _windows(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """For each of ``size`` positions on an axis the number of windows that hold it, int64."""
    starts = torch.arange(outputs) * stride - padding
    held = (starts[:, None] + torch.arange(kernel) * dilation).flatten()
    return torch.bincount(held[(held >= 0) & (held < size)], minlength=size)


def _adaptive(size: int, outputs: int) -> Tensor:
    """The same for adaptive windows: output i holds floor(i size / outputs) up to ceil((i + 1) size / outputs)."""
    counts = torch.zeros(size, dtype=torch.int64)
    for i in range(outputs):
        counts[i * size // outputs : -(-(i + 1) * size // outputs)] += 1
    return counts
