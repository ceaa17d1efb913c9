"""ONNX's operators that are layers: convolutions, matrix products, BatchNorm, rectifiers and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import BATCH_NORM
from .node import GATHERED, OnnxNode, Value, constant

SAME = ("SAME_UPPER", "SAME_LOWER")
Sizes = tuple[int, ...]


def convolution(node: OnnxNode) -> Value:
    """``Conv`` over one or two axes; padding that is not the same on both sides is a step before it."""
    settings = node.attributes(auto_pad="NOTSET", dilations=(), group=1, kernel_shape=(), pads=(), strides=())
    auto, dilations, group, shape, pads, strides = settings
    x, weight, bias = node.inputs(2, 3)
    kernel = node.weights(weight, "a weight")
    bias = None if bias is None else constant(node.weights(bias, "a bias"))
    spatial = kernel.ndim - 2
    if spatial not in (1, 2) or (shape and tuple(shape) != tuple(kernel.shape[2:])):
        raise node.refuse(f"a convolution with weights {tuple(kernel.shape)}", "one over one axis, or height and width")
    x = _maps(node, x, spatial)
    strides, dilations = _sizes(node, strides, spatial), _sizes(node, dilations, spatial)
    borders = _borders(node, auto, pads, tuple(kernel.shape[2:]), strides, dilations)
    padding: Sizes = (0,) * spatial
    if isinstance(borders, tuple) and borders[:spatial] == borders[spatial:]:
        padding = borders[:spatial]
    else:
        x = node.step(_padded, x, tuple(kernel.shape[2:]), strides, dilations, borders, part="pad")
    return node.step(_CONVOLUTIONS[spatial], x, weight, bias, strides, padding, dilations, group)


def product(node: OnnxNode) -> Value:
    """``MatMul``, of constants too where it is small."""
    node.attributes()
    x, weight = node.inputs(2, 2)
    if x.step is None and weight.step is None:
        count = math.prod(x.example.shape) * (weight.example.shape[-1] if weight.example.ndim > 1 else 1)
        if count > GATHERED:
            raise node.refuse("a large product of constants", "one that was computed before the export")
    x, weight = node.in_order(x), node.in_order(weight)
    if x.is_activation and len(x.shape) == 2 and weight.step is None and weight.example.ndim == 2:
        return node.step(F.linear, x, constant(node.weights(weight, "a matrix").T.contiguous()))
    return node.step(torch.matmul, x, weight)


def linear(node: OnnxNode) -> Value:
    """``Gemm``: ``alpha A B + beta C``."""
    alpha, beta, flipped, turned = node.attributes(alpha=1.0, beta=1.0, transA=0, transB=0)
    x, weight, bias = node.inputs(2, 3)
    matrix = node.weights(weight, "a matrix B")
    if not x.is_activation or flipped or matrix.ndim != 2:
        raise node.refuse("a matrix product that is no linear layer", "[B, features] times a constant matrix")
    matrix = alpha * (matrix if turned else matrix.T)
    if bias is not None:
        given = node.weights(bias, "a bias C")
        if given.numel() not in (1, len(matrix)):
            raise node.refuse(f"a bias of {tuple(given.shape)}", "one number for each output")
        bias = constant((beta * given.flatten()).expand(len(matrix)).contiguous())
    return node.step(F.linear, node.in_order(x), constant(matrix.contiguous()), bias)


def batch_norm(node: OnnxNode) -> Value:
    """``BatchNormalization`` with its running statistics."""
    eps, _, training, spatial = node.attributes(epsilon=1e-5, momentum=0.9, training_mode=0, spatial=1)
    x, *tensors = node.inputs(5, 5)
    if training or not spatial or len([name for name in node.proto.output if name]) > 1:
        remedy = "Export the network in evaluation mode (model.eval())"
        raise node.refuse("BatchNormalization in training mode", "one with constant statistics", remedy)
    weight, bias, mean, var = (node.weights(value, "a statistic") for value in tensors)
    if bool((var < 0).any()):
        got, remedy = f"{int((var < 0).sum())} of {var.numel()} variances negative", "Export a network that is trained"
        raise node.refuse(got, "variances from 0 on", remedy)
    numbers = [constant(tensor) for tensor in (mean, var, weight, bias)]
    return node.step(F.batch_norm, node.in_order(x), *numbers, False, 0.0, eps)


def no_statistics(node: OnnxNode) -> Value:
    """Normalization with statistics of each image."""
    raise node.refuse("", *BATCH_NORM)


# ---- rectifiers ----


def relu(node: OnnxNode) -> Value:
    node.attributes()
    (x,) = node.inputs(1, 1)
    return node.step(torch.relu, x, axes=x.axes)


def leaky_relu(node: OnnxNode) -> Value:
    (slope,) = node.attributes(alpha=0.01)
    (x,) = node.inputs(1, 1)
    return node.step(F.leaky_relu, x, slope, axes=x.axes)


def clip(node: OnnxNode) -> Value:
    """``Clip``; its limits are settings up to opset 10, and operands from then on."""
    if node.opset < 11:
        low, high = node.attributes(min=-math.inf, max=math.inf)
        (x,) = node.inputs(1, 1)
    else:
        node.attributes()
        x, *limits = node.inputs(1, 3)
        low, high = (None if value is None else node.known(value, "a limit").item() for value in limits)
    ends = (None if end is None or abs(end) > 3.4e38 else end for end in (low, high))
    low, high = ends
    return x if low is None and high is None else node.step(torch.clamp, x, low, high, axes=x.axes)


# ---- pools ----


def max_pool(node: OnnxNode) -> Value:
    names = {"auto_pad": "NOTSET", "ceil_mode": 0, "dilations": (), "kernel_shape": (), "pads": (), "storage_order": 0}
    auto, ceil, dilations, kernel, pads, _, strides = node.attributes(**names, strides=())
    (x,) = node.inputs(1, 1)
    if len([name for name in node.proto.output if name]) > 1:
        raise node.refuse("MaxPool that also gives indices", "a plain max-pool")
    return _pool(node, _max_pooled, x, (auto, kernel, strides, pads, dilations), bool(ceil))


def avg_pool(node: OnnxNode) -> Value:
    names = {"auto_pad": "NOTSET", "ceil_mode": 0, "count_include_pad": 0, "dilations": (), "kernel_shape": ()}
    auto, ceil, counted, dilations, kernel, pads, strides = node.attributes(**names, pads=(), strides=())
    (x,) = node.inputs(1, 1)
    if any(size != 1 for size in dilations):
        raise node.refuse(f"AveragePool with dilations {tuple(dilations)}", "a plain average")
    return _pool(node, _avg_counted if counted else _avg_pooled, x, (auto, kernel, strides, pads, ()), bool(ceil))


def _pool(node: OnnxNode, function: Any, x: Value, windows: tuple[Any, ...], ceil: bool) -> Value:
    auto, kernel, strides, pads, dilations = windows
    spatial = len(kernel)
    if spatial not in (1, 2):
        raise node.refuse(f"a pool over {spatial} axes", "one over one axis, or height and width")
    strides, dilations = _sizes(node, strides, spatial), _sizes(node, dilations, spatial)
    borders = _borders(node, auto, pads, kernel, strides, dilations)
    return node.step(function, _maps(node, x, spatial), tuple(kernel), strides, dilations, borders, ceil)


def global_avg_pool(node: OnnxNode) -> Value:
    node.attributes()
    (x,) = node.inputs(1, 1)
    spatial = len(x.shape) - 2
    if spatial not in (1, 2):
        raise node.refuse(f"a global pool of {x.shape}", "one over one axis, or height and width")
    pool = F.adaptive_avg_pool1d if spatial == 1 else F.adaptive_avg_pool2d
    return node.step(pool, _maps(node, x, spatial), 1)


def _max_pooled(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, borders: Sizes | str, ceil: bool) -> Tensor:
    pool = F.max_pool1d if len(kernel) == 1 else F.max_pool2d
    begin, end = _halves(x, kernel, stride, dilation, borders)
    if begin == end and all(2 * size <= k for size, k in zip(begin, kernel, strict=True)):
        return pool(x, kernel, stride, begin, dilation, ceil)
    if _runs_over(x, kernel, stride, dilation, (begin, end)):
        return pool(x, kernel, stride, 0, dilation, True)
    return pool(_bordered(x, begin, end, -math.inf), kernel, stride, 0, dilation, ceil)


def _avg_pooled(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, borders: Sizes | str, ceil: bool) -> Tensor:
    """An average over the pixels of a window that are in the image."""
    pool = F.avg_pool1d if len(kernel) == 1 else F.avg_pool2d
    begin, end = _halves(x, kernel, stride, dilation, borders)
    if begin == end and all(2 * size <= k for size, k in zip(begin, kernel, strict=True)):
        return pool(x, kernel, stride, begin, ceil, not any(begin))
    if _runs_over(x, kernel, stride, dilation, (begin, end)):
        return pool(x, kernel, stride, 0, True, False)
    inside = torch.ones(1, *x.shape[1:], dtype=x.dtype, device=x.device)
    inside, x = (_bordered(part, begin, end, 0.0) for part in (inside, x))
    return pool(x, kernel, stride, 0, ceil) / pool(inside, kernel, stride, 0, ceil)


def _avg_counted(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, borders: Sizes | str, ceil: bool) -> Tensor:
    """An average in which pixels of the border count as zeros."""
    pool = F.avg_pool1d if len(kernel) == 1 else F.avg_pool2d
    begin, end = _halves(x, kernel, stride, dilation, borders)
    if begin == end and all(2 * size <= k for size, k in zip(begin, kernel, strict=True)):
        return pool(x, kernel, stride, begin, ceil, True)
    return pool(_bordered(x, begin, end, 0.0), kernel, stride, 0, ceil)


def _runs_over(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, borders: tuple[Sizes, Sizes]) -> bool:
    """Whether the windows are those without a border of which the last ones may run over the end of the image."""
    begin, end = borders
    if any(begin):
        return False
    for size, k, s, d, more in zip(x.shape[2:], kernel, stride, dilation, end, strict=True):
        room = size - d * (k - 1) - 1
        last = -(-room // s)
        if room < 0 or (room + more) // s != (last - 1 if last * s >= size else last):
            return False
    return True


# ---- sizes ----


def _maps(node: OnnxNode, x: Value, spatial: int) -> Value:
    """An operand ``[B, C, *]`` with so many axes behind the channels, in this order."""
    if len(x.shape) != spatial + 2 or not x.is_activation:
        raise node.refuse(f"operator {node.kind} of {x.shape}", f"{spatial + 2} axes, behind the images")
    return node.in_order(x)


def _sizes(node: OnnxNode, values: Sequence[int], spatial: int) -> Sizes:
    found = tuple(values) or (1,) * spatial
    if len(found) != spatial or any(not 1 <= size < 2**16 for size in found):
        raise node.refuse(f"sizes {found}", f"{spatial} positive ones")
    return found


def _borders(
    node: OnnxNode, auto: str, pads: Sequence[int], kernel: Sequence[int], stride: Sizes, dilation: Sizes
) -> Sizes | str:
    """How much to add before each axis, then behind each; or the word for what depends on the size of the images."""
    spatial, pads = len(kernel), tuple(pads) or (0,) * (2 * len(kernel))
    if any(not 1 <= size < 2**16 for size in kernel) or len(pads) != 2 * spatial or len(stride) != spatial:
        raise node.refuse(f"a window of {tuple(kernel)} with pads {pads}", "positive sizes, and two pads for each")
    if auto in ("NOTSET", "", "VALID"):
        if any(not 0 <= size < 2**16 for size in pads):
            raise node.refuse(f"pads {pads}", "sizes from 0 on")
        return (0,) * (2 * spatial) if auto == "VALID" else pads
    if auto not in SAME:
        raise node.refuse(f"auto_pad {auto[:40]!r}", "NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(size != 1 for size in stride):
        return auto
    return _divided(total, auto)


def _divided(total: Sequence[int], auto: str) -> Sizes:
    small, large = tuple(size // 2 for size in total), tuple(size - size // 2 for size in total)
    return (*small, *large) if auto == "SAME_UPPER" else (*large, *small)


def _halves(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, borders: Sizes | str) -> tuple[Sizes, Sizes]:
    """How much to add before each axis and behind it, for images of this size."""
    if isinstance(borders, str):
        total = []
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
            total.append(max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0))
        borders = _divided(total, borders)
    return borders[: len(kernel)], borders[len(kernel) :]


def _padded(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, borders: Sizes | str) -> Tensor:
    return _bordered(x, *_halves(x, kernel, stride, dilation, borders), 0.0)


def _bordered(x: Tensor, begin: Sizes, end: Sizes, value: float) -> Tensor:
    if not any(begin) and not any(end):
        return x
    return F.pad(x, [size for pair in zip(begin[::-1], end[::-1], strict=True) for size in pair], value=value)


_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d}
