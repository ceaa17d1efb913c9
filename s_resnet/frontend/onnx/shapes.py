"""ONNX's operators that move values: reshapes, slices, padding, concatenations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .node import OnnxNode, Value, constant, permuted

Whole = Tensor | Sequence[int]  # a list of whole numbers, known or computed from sizes


# ---- shapes ----


def transpose(node: OnnxNode) -> Value:
    """``Transpose``: of an activation only its order in the file changes."""
    (order,) = node.attributes(perm=())
    (x,) = node.inputs(1, 1)
    rank = len(x.axes)
    order = tuple(order) or tuple(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        raise node.refuse(f"perm {order[:8]} for {x.shape}", "each axis once")
    if x.is_activation:
        return Value(x.example, x.step, tuple(x.axes[axis] for axis in order))
    return node.step(torch.permute, x, order)


def shape(node: OnnxNode) -> Value:
    start, end = node.attributes(start=0, end=2**31)
    (x,) = node.inputs(1, 1)
    return node.step(_shape, x, x.axes, start, end)


def _shape(x: Tensor, axes: tuple[int, ...], start: int, end: int) -> Tensor:
    return torch.tensor([x.shape[axis] for axis in axes][start:end], dtype=torch.int64)


def size(node: OnnxNode) -> Value:
    node.attributes()
    (x,) = node.inputs(1, 1)
    return node.step(_count, x)


def _count(x: Tensor) -> Tensor:
    return torch.tensor(math.prod(x.shape))


def reshape(node: OnnxNode) -> Value:
    """``Reshape``; a size of 0 keeps the old one, unless ``allowzero`` is set."""
    (zeros,) = node.attributes(allowzero=0)
    x, sizes = node.inputs(2, 2)
    batch = node.reading.batch if x.is_activation else None
    return node.step(_reshaped, x, x.axes, listed(node, sizes), bool(zeros), batch)


def _reshaped(x: Tensor, axes: tuple[int, ...], sizes: Whole, zeros: bool, batch: int | None) -> Tensor:
    """A reshape; where the file is for ``batch`` images alone, it is one for as many as come."""
    wanted = whole(sizes)
    if not zeros:
        wanted = [x.shape[axes[at]] if n == 0 else n for at, n in enumerate(wanted)]
    if batch is not None and wanted and wanted[0] == batch:
        wanted[0] = x.shape[axes[0]]
    return permuted(x, axes, wanted)


def flatten(node: OnnxNode) -> Value:
    (axis,) = node.attributes(axis=1)
    (x,) = node.inputs(1, 1)
    rank = len(x.axes)
    at = axis if axis == rank else node.axis(axis, rank)
    return node.step(_flattened, x, x.axes, at)


def _flattened(x: Tensor, axes: tuple[int, ...], at: int) -> Tensor:
    sizes = [x.shape[axis] for axis in axes]
    return permuted(x, axes, [math.prod(sizes[:at]), math.prod(sizes[at:])])


def squeeze(node: OnnxNode) -> Value:
    """``Squeeze``, by default of every axis of size 1."""
    x, axes = _with_axes(node)
    rank = len(x.axes)
    dims = tuple(node.axis(axis, rank) for axis in axes) or tuple(i for i, n in enumerate(x.shape) if n == 1)
    if any(x.shape[axis] != 1 for axis in dims):
        raise node.refuse(f"Squeeze of {x.shape} along {dims}", "axes of size 1")
    return node.step(_squeezed, x, x.axes, dims)


def _squeezed(x: Tensor, axes: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    return permuted(x, axes, [x.shape[axis] for at, axis in enumerate(axes) if at not in dims])


def unsqueeze(node: OnnxNode) -> Value:
    x, axes = _with_axes(node)
    rank = len(x.axes) + len(axes)
    return node.step(_unsqueezed, x, x.axes, tuple(sorted(node.axis(axis, rank) for axis in axes)))


def _unsqueezed(x: Tensor, axes: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    sizes = [x.shape[axis] for axis in axes]
    for axis in dims:
        sizes.insert(axis, 1)
    return permuted(x, axes, sizes)


def expand(node: OnnxNode) -> Value:
    """``Expand``: a broadcast to a shape."""
    node.attributes()
    x, sizes = node.inputs(2, 2)
    if not x.is_activation:
        node.take_room(math.prod(max(1, n) for n in numbers_of(node, sizes)))
    return node.step(_expanded, node.in_order(x), listed(node, sizes))


def _expanded(x: Tensor, sizes: Whole) -> Tensor:
    shape: torch.Size = torch.broadcast_shapes(x.shape, whole(sizes))  # type: ignore[no-untyped-call]
    return x.expand(shape)


def reduce(node: OnnxNode) -> Value:
    """``ReduceMean`` and ``ReduceSum``; their axes become an operand with opset 18 and 13."""
    kept, nothing, axes = node.attributes(keepdims=1, noop_with_empty_axes=0, axes=())
    x, given = node.inputs(1, 2)
    axes = node.whole(given, "axes") if given is not None else tuple(axes)
    if not axes and nothing:
        return x  # type: ignore[no-any-return]
    rank = len(x.axes)
    dims = tuple(node.axis(axis, rank) for axis in axes) or tuple(range(rank))
    over = tuple(x.axes[axis] for axis in dims)
    left = x.axes if kept else tuple(axis for at, axis in enumerate(x.axes) if at not in dims)
    order = left if kept else tuple(sorted(left).index(axis) for axis in left)
    function = torch.mean if node.proto.op_type == "ReduceMean" else torch.sum
    return node.step(function, x, over, bool(kept), axes=order)


# ---- parts ----


def slice_(node: OnnxNode) -> Value:
    """``Slice``; its limits are settings up to opset 9, and operands from then on."""
    if node.opset < 10:
        starts, ends, axes = node.attributes(starts=(), ends=(), axes=())
        (x,) = node.inputs(1, 1)
        steps: tuple[int, ...] = ()
        begin, end, dims = starts, ends, tuple(axes)
    else:
        node.attributes()
        x, starts, ends, over, by = node.inputs(3, 5)
        begin, end = listed(node, starts), listed(node, ends)
        dims = () if over is None else node.whole(over, "axes")
        steps = () if by is None else node.whole(by, "steps")

    count, rank = len(numbers_of(node, begin)), len(x.axes)
    dims = tuple(node.axis(axis, rank) for axis in dims) or tuple(range(count))
    steps = steps or (1,) * count
    if not len(dims) == len(steps) == count <= rank or 0 in steps or (x.is_activation and min(steps, default=1) < 0):
        raise node.refuse(f"a slice along {dims} of {x.shape}", "one start, end and positive step for each axis")
    placed_at = tuple(x.axes[axis] for axis in dims)
    return node.step(_sliced, x, begin, end, placed_at, steps, axes=x.axes)


def _sliced(x: Tensor, starts: Whole, ends: Whole, dims: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    key = [slice(None)] * x.ndim
    for axis, start, end, step in zip(dims, whole(starts), whole(ends), steps, strict=True):
        if step < 0:
            chosen = list(range(x.shape[axis]))[slice(start, end if end >= -x.shape[axis] else None, step)]
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
        else:
            key[axis] = slice(start, end, step)
    return x[tuple(key)]


def split(node: OnnxNode) -> tuple[Value, ...]:
    """``Split`` along an axis, by sizes or in equal parts, of which the last may be smaller."""
    axis, parts, count = node.attributes(axis=0, split=(), num_outputs=0)
    x, given = node.inputs(1, 2)
    at = x.axes[node.axis(axis, len(x.axes))]
    sizes = node.whole(given, "sizes") if given is not None else tuple(parts)
    if not sizes:
        whole, count = x.example.shape[at], count or len(node.proto.output)
        each = -(-whole // count)
        sizes = tuple(min(each, whole - each * i) for i in range(count))
    found = node.results(torch.split, (x, list(sizes), at))
    return tuple(Value(part.example, part.step, x.axes) for part in found)


def gather(node: OnnxNode) -> Value:
    """``Gather``: of an activation by a constant index or list, of a constant by any indices."""
    (axis,) = node.attributes(axis=0)
    x, numbers = node.inputs(2, 2)
    at = node.axis(axis, len(x.axes))
    if not x.is_activation:
        node.take_room(x.example.numel() // max(1, x.shape[at]) * numbers.example.numel())
        return node.step(_gathered, x, numbers, at)
    chosen = node.known(numbers, "an index")
    if chosen.ndim == 0:
        return node.step(_picked, node.in_order(x), int(chosen), at)
    if chosen.ndim > 1:
        raise node.refuse(f"a selection by indices {tuple(chosen.shape)}", "a list of channels")
    chosen = torch.where(chosen < 0, chosen + x.shape[at], chosen)
    return node.step(torch.index_select, x, x.axes[at], constant(chosen), axes=x.axes)


def _gathered(x: Tensor, numbers: Tensor, axis: int) -> Tensor:
    chosen = torch.where(numbers < 0, numbers + x.shape[axis], numbers)
    rows = x.index_select(axis, chosen.flatten())
    return rows.reshape(*x.shape[:axis], *numbers.shape, *x.shape[axis + 1 :])


def _picked(x: Tensor, number: int, axis: int) -> Tensor:
    key: list[slice | int] = [*[slice(None)] * axis, number]
    return x[tuple(key)]


def concatenate(node: OnnxNode) -> Value:
    """``Concat``; beside activations, constants are repeated for each image."""
    (axis,) = node.attributes(axis=0)
    parts = node.inputs(1, max(1, len(node.operands)))
    activations = [value for value in parts if value.is_activation]
    if not activations:
        return node.step(_joined, list(parts), node.axis(axis, len(parts[0].axes)))
    order = activations[0].axes
    if any(value.axes != order for value in activations):
        parts, order = tuple(node.in_order(value) for value in parts), tuple(range(len(order)))
    at, aligned = order[node.axis(axis, len(order))], [placed(node, value, order) for value in parts]
    return node.step(_joined, aligned, at, activations[0], axes=order)


def _joined(parts: Sequence[Tensor], axis: int, like: Tensor | None = None) -> Tensor:
    """A concatenation; constants are repeated for each image of ``like``."""
    if like is not None:
        parts = [p if len(p) == len(like) else p.expand(len(like), *p.shape[1:]) for p in parts]
    return torch.cat(tuple(parts), axis)


def pad(node: OnnxNode) -> Value:
    """``Pad``; what it adds is a setting up to opset 10, and an operand from then on."""
    if node.opset < 11:
        mode, sizes, value = node.attributes(mode="constant", pads=(), value=0.0)
        (x,) = node.inputs(1, 1)
        axes: tuple[int, ...] = ()
    else:
        (mode,) = node.attributes(mode="constant")
        x, given, filled, over = node.inputs(2, 4)
        sizes, axes = node.whole(given, "pads"), () if over is None else node.whole(over, "axes")
        value = 0.0 if filled is None else float(node.known(filled, "a value").item())
    rank = len(x.axes)
    dims = tuple(node.axis(axis, rank) for axis in axes) or tuple(range(rank))
    if mode != "constant" or len(sizes) != 2 * len(dims) or any(not 0 <= size < 2**16 for size in sizes):
        raise node.refuse(f"padding in mode {mode[:40]!r} by {tuple(sizes)[:8]}", "zeros, two sizes for each axis")
    both = [(0, 0)] * rank
    for axis, begin, end in zip(dims, sizes[: len(dims)], sizes[len(dims) :], strict=True):
        both[x.axes[axis]] = (begin, end)
    if not any(map(any, both)):
        return x  # type: ignore[no-any-return]
    if not x.is_activation:
        node.take_room(math.prod(n + sum(pair) for n, pair in zip(x.example.shape, both, strict=True)))
    while both[0] == (0, 0):
        both.pop(0)
    flat = [size for pair in reversed(both) for size in pair]
    return node.step(F.pad, x, flat, "constant", value, axes=x.axes)


# ---- lists of whole numbers ----


def _with_axes(node: OnnxNode) -> tuple[Value, tuple[int, ...]]:
    """The operand, and the axes: a setting up to opset 12, an operand from then on."""
    if node.opset < 13:
        (axes,) = node.attributes(axes=())
        (x,) = node.inputs(1, 1)
        return x, tuple(axes)
    node.attributes()
    x, axes = node.inputs(1, 2)
    return x, () if axes is None else node.whole(axes, "axes")


def listed(node: OnnxNode, value: Value) -> Any:
    """A list of whole numbers as an argument: the numbers, or what computes them from the sizes of the images."""
    numbers = numbers_of(node, value)
    return numbers if value.step is None else value


def numbers_of(node: OnnxNode, value: Any) -> tuple[int, ...]:
    """A list of whole numbers, on the example."""
    if isinstance(value, tuple):
        return value
    found = value.example
    if value.is_activation or found.is_floating_point() or found.ndim > 1 or found.numel() > 64:
        raise node.refuse("sizes that depend on the images, or are none", "a short list of whole numbers")
    return tuple(int(number) for number in found.flatten())


def whole(sizes: Whole) -> list[int]:
    """Whole numbers that are known, or that a tensor holds."""
    return [int(number) for number in (sizes.flatten().tolist() if isinstance(sizes, Tensor) else sizes)]


def placed(node: OnnxNode, value: Value, order: tuple[int, ...]) -> Value:
    """A constant, or what depends on sizes, with its axes where an activation of this order has them."""
    if value.is_activation or order == tuple(range(len(order))) or not value.example.ndim:
        return value
    return node.step(_turned, value, order)


def _turned(x: Tensor, order: tuple[int, ...]) -> Tensor:
    full = x.reshape((1,) * (len(order) - x.ndim) + tuple(x.shape))
    return full.permute([order.index(axis) for axis in range(len(order))])
