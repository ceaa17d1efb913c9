"""The shapes of a network's values, found without computing them, to check inputs, sizes and states.

A shape is that of one image: ``(C, H, W)``, or ``(N,)`` after a Flatten. None stands for an unknown size, as a file
need not say for which images a network was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidData, message
from .alphabet import Differential, MultiThreshold
from .forms import GridConv2d, GridInput
from .neuron import Memory, Neuron
from .ops import (
    QCFS,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Op,
    Pad,
    ReLU,
    Scale,
    Slice,
)
from .provenance import Provenance
from .readout import STATEFUL, Readout, SpikingMaxPool2d

Shape = tuple[int | None, ...]
# The most values that all layers together may have for one image: so many, or so many for each pixel of a larger image.
# A ResNet-152 has 460 for each pixel; the CIFAR network of 482 layers 5 million in all.
MOST, PER_PIXEL = 2**25, 2**11


def shapes(nodes: Sequence[Node], image: Sequence[int | None]) -> dict[str, Shape]:
    """The shape of every node's value for an image ``(C, H, W)``.

    Raises:
        InvalidData: an operation cannot take its inputs or has an empty output, or all values together are too many;
            the message names the node.
    """
    found: dict[str, Shape] = {}
    total = 0
    pixels = numbers(image[1:])
    for node in nodes:
        if isinstance(node.op, Input | GridInput):
            found[node.name] = tuple(image)
        else:
            given = [found[name] for name in node.inputs]
            found[node.name] = _shape(node.name, node.op, given)
        if any(size is not None and size < 1 for size in found[node.name]):
            raise _invalid(node.name, f"a value of shape {_said(found[node.name])}", "at least one number")
        total += numbers(found[node.name])
        if total > max(MOST, PER_PIXEL * pixels):
            got = f"{total} values up to here for an image of {_said(image)}"
            raise _invalid(node.name, got, f"at most {max(MOST, PER_PIXEL * pixels)}")
    return found


def numbers(shape: Sequence[int | None]) -> int:
    """How many numbers a value of this shape has; an unknown size counts as 1."""
    return math.prod(size or 1 for size in shape)


def image_of(nodes: Sequence[Node], provenance: Provenance) -> Shape:
    """The images that a network was made for: as its provenance says, else with what its convolutions say."""
    channels = next((_channels(node.op) for node in nodes if nodes[0].name in node.inputs), None)
    said = provenance.input_shape
    return said if said and max(said) < 2**16 else (channels, None, None)


def _channels(op: Op) -> int | None:
    return op.weight.shape[1] * op.groups if isinstance(op, Conv2d) else None


def check_state(
    nodes: Sequence[Node], found: Mapping[str, Shape], memory: Mapping[str, Memory], batch: int, device: torch.device
) -> None:
    """Check that a memory is that of this network over ``batch`` such images on ``device``.

    Raises:
        InvalidData: it is not.
    """
    for node in nodes:
        if not isinstance(node.op, STATEFUL):
            continue
        held = memory.get(node.name)
        if held is None:
            raise _other(f"none of {node.name}", "one for every layer with memory")
        expected = [None if one is None else (batch, *one) for one in _memory(node, found)]
        got = [tuple(part.shape) if part.ndim else None for part in held]
        if got != expected and [one and one[1:] for one in got] == [one and one[1:] for one in expected]:
            other = next(one[0] for one in got if one is not None)
            got_both, remedy = f"{batch} images and a state of {other}", "Pass state=None for new images"
            raise InvalidData(message("simulate", "", got_both, "equal numbers", remedy))
        if got != expected:
            raise _other(f"a memory of shapes {got} at {node.name}", str(expected))
        for part in held:
            dtype = _dtype(node.op) or part.dtype
            if part.device != device or (part.ndim and part.dtype != dtype) or part.dtype == torch.bool:
                raise _other(f"a memory of {part.dtype} on {part.device} at {node.name}", f"{dtype} on {device}")


def _memory(node: Node, found: Mapping[str, Shape]) -> list[Shape | None]:
    """The shapes that a node remembers, None being one number for all images."""
    op, own = node.op, found[node.name]
    if isinstance(op, Neuron):
        match op.spikes:
            case Differential():
                return [own, own, None]
            case MultiThreshold(thresholds):
                return [own] * len(thresholds)
        return [own] * (2 if op.spikes.signed else 1)
    if isinstance(op, SpikingMaxPool2d):
        return [found[node.inputs[0]], own]
    return [None, own, own, None]


def _dtype(op: Op) -> torch.dtype | None:
    if isinstance(op, Neuron):
        return torch.int32 if op.integer is not None else op.membrane_dtype
    return torch.float64 if isinstance(op, Readout) else None


def _other(got: str, expected: str) -> InvalidData:
    own = f"{expected}: that of this network and these images"
    return InvalidData(message("simulate", "state", got, own, "Pass state=None"))


# ---- one rule for each operation ----


def _shape(name: str, op: Op, given: Sequence[Shape]) -> Shape:
    rule = _RULES.get(type(op))
    if rule is not None:
        if len(given) != 1:
            raise _invalid(name, f"{len(given)} inputs", "one")
        return rule(name, op, given[0])
    shape = _one(name, given)
    if isinstance(op, Neuron):
        for what in ("threshold", "scale", "limit"):
            _vector(name, what, getattr(op, what), shape)
        _rows(name, "correction", op.correction, shape)
        if op.integer is not None:
            _vector(name, "integer threshold", op.integer.threshold, shape)
            _rows(name, "integer correction", op.integer.correction, shape)
    return shape


def _one(name: str, given: Sequence[Shape]) -> Shape:
    """The one shape that all of these are."""
    if not given:
        raise _invalid(name, "no inputs", "at least one")
    shape = given[0]
    for other in given[1:]:
        if len(shape) != len(other) or any(None not in (a, b) and a != b for a, b in zip(shape, other, strict=True)):
            raise _invalid(name, f"inputs of {_said(shape)} and {_said(other)}", "one shape")
        shape = tuple(b if a is None else a for a, b in zip(shape, other, strict=True))
    return shape


def _kept(name: str, op: Op, shape: Shape) -> Shape:
    return shape


def _rectified(name: str, op: ReLU, shape: Shape) -> Shape:
    _vector(name, "limit", op.limit, shape)
    return shape


def _conv(name: str, op: Conv2d, shape: Shape) -> Shape:
    _planar(name, shape)
    out, channels, *kernel = op.weight.shape
    if shape[0] not in (None, channels * op.groups):
        raise _invalid(name, f"{shape[0]} channels", f"{channels * op.groups}, those of its weight")
    if out % op.groups:
        raise _invalid(name, f"{out} output channels in {op.groups} groups", "as many in each")
    _vector(name, "bias", op.bias, (out,))
    if op.integer is not None:
        _vector(name, "integer bias", op.integer.bias, (out,))
    return out, *_windows(name, shape, _Window(tuple(kernel), op.stride, op.padding, op.dilation))


def _linear(name: str, op: Linear, shape: Shape) -> Shape:
    out, features = op.weight.shape
    if shape[-1] not in (None, features):
        raise _invalid(name, f"{shape[-1]} features", f"{features}, those of its weight")
    _vector(name, "bias", op.bias, (out,))
    return *shape[:-1], out


def _scale(name: str, op: Scale, shape: Shape) -> Shape:
    _vector(name, "weight", op.weight, shape)
    for what, part in (("spiking weight", op.spiking), ("integer weight", op.integer)):
        _vector(name, what, None if part is None else part.weight, shape)
    return shape


def _normalization(name: str, op: BatchNorm2d, shape: Shape) -> Shape:
    for what in ("weight", "bias", "mean", "var"):
        _vector(name, what, getattr(op, what), shape)
    return shape


def _affine(name: str, op: Affine, shape: Shape) -> Shape:
    for what in ("weight", "bias"):
        _vector(name, what, getattr(op, what), shape)
    return shape


def _pool(name: str, op: MaxPool2d | AvgPool2d | SpikingMaxPool2d, shape: Shape) -> Shape:
    _planar(name, shape)
    dilation = (1, 1) if isinstance(op, AvgPool2d) else op.dilation
    if any(2 * p > d * (k - 1) + 1 for p, k, d in zip(op.padding, op.kernel, dilation, strict=True)):
        raise _invalid(name, f"padding {op.padding} of windows {op.kernel}", "at most half a window")
    return shape[0], *_windows(name, shape, _Window(op.kernel, op.stride, op.padding, dilation), op.ceil_mode)


def _adaptive(name: str, op: AdaptiveAvgPool2d, shape: Shape) -> Shape:
    _planar(name, shape)
    return shape[0], *op.output_size


def _flatten(name: str, op: Flatten, shape: Shape) -> Shape:
    return (None if None in shape else numbers(shape),)


def _pad(name: str, op: Pad, shape: Shape) -> Shape:
    if len(op.padding) % 2 or len(op.padding) > 2 * len(shape):
        raise _invalid(name, f"padding {op.padding} of a value {_said(shape)}", "two for each of its last dimensions")
    sizes = list(shape)
    for index in range(len(op.padding) // 2):
        size = sizes[-1 - index]
        sizes[-1 - index] = None if size is None else size + op.padding[2 * index] + op.padding[2 * index + 1]
    return tuple(sizes)


def _slice(name: str, op: Slice, shape: Shape) -> Shape:
    if len(op.slices) > len(shape):
        raise _invalid(name, f"{len(op.slices)} slices of a value {_said(shape)}", "at most one for each dimension")
    parts = zip(shape, op.slices, strict=False)
    return *(n if n is None else len(range(n)[slice(*part)]) for n, part in parts), *shape[len(op.slices) :]


def _readout(name: str, op: Readout, shape: Shape) -> Shape:
    _vector(name, "scale", op.scale, shape[-1:])
    _vector(name, "correction", op.correction, shape[-1:])
    return shape


_RULES: dict[type, Callable[[str, Any, Shape], Shape]] = {
    Conv2d: _conv,
    GridConv2d: lambda name, op, shape: _conv(name, op.convolution, shape),
    Linear: _linear,
    Scale: _scale,
    Affine: _affine,
    BatchNorm2d: _normalization,
    MaxPool2d: _pool,
    AvgPool2d: _pool,
    SpikingMaxPool2d: _pool,
    AdaptiveAvgPool2d: _adaptive,
    Flatten: _flatten,
    Pad: _pad,
    Slice: _slice,
    Readout: _readout,
    ReLU: _rectified,
    QCFS: _kept,
}


class _Window(NamedTuple):
    """The windows of a convolution or pool, each field for rows and columns."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


def _windows(name: str, shape: Shape, window: _Window, up: bool = False) -> Iterable[int | None]:
    """Height and width of the output of windows over ``shape``; with ``up`` a window that is cut off counts too."""
    sizes: list[int | None] = []
    for size, k, s, p, d in zip(shape[1:], *window, strict=True):
        if size is None:
            sizes.append(None)
            continue
        room = size + 2 * p - d * (k - 1) - 1
        if room < 0:
            got = f"windows of {d * (k - 1) + 1} over {size} pixels padded by {p}"
            raise _invalid(name, got, "windows that fit into the image; give larger images")
        count = (-(-room // s) if up else room // s) + 1
        sizes.append(count - 1 if up and (count - 1) * s >= size + p else count)
    return sizes


def _planar(name: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise _invalid(name, f"a value of {_said(shape)}", "channels, height and width")


def _vector(name: str, what: str, value: Tensor | None, shape: Shape) -> None:
    """That ``value`` is one number or one for each channel."""
    if value is None or value.ndim == 0:
        return
    if value.ndim != 1 or shape[0] not in (None, len(value)):
        raise _invalid(name, f"{what} {list(value.shape)} for {shape[0]} channels", "one number, or one per channel")


def _rows(name: str, what: str, value: Tensor | None, shape: Shape) -> None:
    """The same, or a row of them for each step."""
    if value is not None and value.ndim == 2:
        if len(value) < 1 or shape[0] not in (None, value.shape[1]):
            raise _invalid(name, f"{what} {list(value.shape)} for {shape[0]} channels", "one per step and channel")
        return
    _vector(name, what, value, shape)


def _said(shape: Sequence[int | None]) -> str:
    return " x ".join("?" if size is None else str(size) for size in shape)


def _invalid(name: str, got: str, expected: str) -> InvalidData:
    return InvalidData(message(name, "", got, expected, "Check the images, or the network"))
