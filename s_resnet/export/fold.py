"""Folding: the operations between two layers as one convolution, built from their effect and checked."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidData, message
from ..graph.ops import AdaptiveAvgPool2d, AvgPool2d, Conv2d, Linear, Op, Scale, Slice

Shape = tuple[int, ...]
_POOLS = (AvgPool2d, AdaptiveAvgPool2d)


def is_identity(op: Op) -> bool:
    return isinstance(op, Scale) and bool((op.weight == 1).all())


def ungrouped(op: Conv2d) -> Conv2d:
    """The same convolution as one group, with zeros between groups: readers take the second axis for all channels."""
    if op.groups == 1:
        return op
    out, part, *kernel = op.weight.shape
    weight = op.weight.new_zeros(out, part * op.groups, *kernel)
    for group in range(op.groups):
        rows = slice(group * out // op.groups, (group + 1) * out // op.groups)
        weight[rows, group * part : (group + 1) * part] = op.weight[rows]
    return replace(op, weight=weight, groups=1)


def squared(op: Conv2d, shape: Shape) -> Conv2d | None:
    """The same convolution on maps ``shape`` with a square kernel, padded with zeros; None if there is none.

    Padding is equal on both sides. If height and width of the kernel differ by an odd number, this takes an axis with
    one output only, or a stride that leaves no room for another output.
    """
    kernel = op.weight.shape[2:]
    side = max(kernel)
    if min(kernel) == side:
        return op
    padding, stride, around = [], [], []
    for axis, (k, p, s, d) in enumerate(zip(kernel, op.padding, op.stride, op.dilation, strict=True)):
        after = (side - k) // 2
        before = side - k - after
        room = shape[1 + axis] + 2 * p - d * (k - 1) - 1
        more = room + d * (before - after)
        if more // s != room // s:
            if room // s:
                return None
            s = more + 1
        padding.append(p + d * before)
        stride.append(s)
        around += [before, after]
    weight = F.pad(op.weight, (*around[2:], *around[:2]))
    return replace(op, weight=weight, stride=(stride[0], stride[1]), padding=(padding[0], padding[1]))


def affine(chain: tuple[Op, ...], shape: Shape) -> tuple[Tensor, Tensor]:
    """The weight ``[N, C, H, W]`` and the bias ``[N]`` of an affine map of feature maps ``shape``."""
    (last,) = (op for op in chain if isinstance(op, Linear))
    x = torch.zeros(1, *shape, dtype=last.weight.dtype, requires_grad=True)
    with torch.enable_grad():
        y = _run(chain, x)[0]
        rows = [torch.autograd.grad(value, x, retain_graph=True)[0][0] for value in y]
    return torch.stack(rows), y.detach()


def as_convolution(chain: tuple[Op, ...], shape: Shape) -> Conv2d | None:
    """One convolution equal to a chain of pool, subsampling, zero padding and gain; None if there is none.

    It is built from the chain's effect on channels and from its one pool or stride, then checked on a feature map.
    """
    channels, *size = shape
    kernel, stride, padding = (1, 1), (1, 1), (0, 0)
    for op in chain:
        if isinstance(op, AdaptiveAvgPool2d):
            kernel, stride, padding = (size[0], size[1]), (1, 1), (0, 0)
        elif isinstance(op, AvgPool2d):
            kernel, stride, padding = op.kernel, op.stride, op.padding
        elif isinstance(op, Slice):
            steps = [part[2] or 1 for part in op.slices[1:]]
            stride = (stride[0] * steps[0], stride[1] * steps[1]) if len(steps) == 2 else stride
    across = tuple(op for op in chain if not isinstance(op, _POOLS))
    dtype = next((op.weight.dtype for op in chain if isinstance(op, Scale)), torch.float32)
    mixing = _run(across, torch.eye(channels, dtype=dtype).view(channels, channels, 1, 1))
    if mixing.ndim != 4 or mixing.shape[2:] != (1, 1):
        return None
    weight = mixing.transpose(0, 1) / (kernel[0] * kernel[1])
    found = Conv2d(weight.expand(-1, -1, *kernel).contiguous(), None, stride, padding)
    probe = torch.arange(channels * size[0] * size[1], dtype=dtype).remainder(251).view(1, *shape)
    expected, got = _run(chain, probe), found.run(probe)
    return found if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-4) else None


def _run(chain: tuple[Op, ...], x: Tensor) -> Tensor:
    for op in chain:
        # The neurons of a linear layer are [N, 1, 1] here.
        x = op.run(x.flatten(1) if isinstance(op, Linear) else x)
    return x


def shape_after(op: Conv2d, shape: Shape) -> Shape:
    """The output shape of a convolution on ``shape``, found by running it on one channel of zeros."""
    if op.weight.shape[1] != shape[0]:
        got = f"{shape[0]} channels for a convolution of {op.weight.shape[1]}"
        remedy = "Pass the input_shape that the network was converted for"
        raise InvalidData(message("export", "", got, "equal numbers", remedy))
    sizes = zip(shape[1:], op.weight.shape[2:], op.stride, op.padding, op.dilation, strict=True)
    return (op.weight.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))
