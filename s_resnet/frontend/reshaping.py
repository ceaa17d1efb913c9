"""Rules for calls that only move values: reshapes, slices, padding, copies of channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedModel
from ..graph import ops
from .activation import Activation, Value
from .network import Call

Part = tuple[int | None, int | None, int | None]
WHOLE: Part = (None, None, None)


def reshape(call: Call) -> Value:
    """``view``, ``reshape``, ``flatten``, ``squeeze`` and ``unsqueeze``, by their effect on the example's shape."""
    value = _input(call)
    if call.result.dtype != torch.float32 and call.result.dtype != torch.float64:
        raise call.refuse(f"a view as {call.result.dtype}", "floating point throughout")
    return _reshaped(call, value, tuple(call.result.shape))


def _input(call: Call) -> Value:
    """The input as it is in the Graph, flattened or not, whatever the other arguments."""
    x = call.args[0] if call.args else call.kwargs.get("input", call.kwargs.get("self"))
    if not isinstance(x, Activation) or x.value is None:
        raise call.refuse("a reshape by what depends on the images", "one by sizes")
    return x.value


def _reshaped(call: Call, value: Value, shape: tuple[int, ...]) -> Value:
    """The value in the shape that the module sees. The order of numbers is kept, so equal sizes are equal axes."""
    before = value.shape
    pixels = 1 if len(before) == 2 else before[2] * before[3]
    same = shape == before
    flat = len(shape) == 2 and shape == (before[0], before[1] * pixels)
    line = len(before) == 4 and shape == (*before[:2], pixels)
    if not (same or flat or line):
        x = tuple((call.args[0] if call.args else call.kwargs["input"]).shape)
        raise call.refuse(f"a reshape of {x} to {shape}", "[B, *] to [B, features]")
    return call.named(value) if flat and not same else value


def index(call: Call) -> Value:
    """Slices, single indices, and lists of channels."""
    x, key = call.take(index=None)
    key = key if isinstance(key, tuple) else (key,)
    if len(key) > 1 and isinstance(key[1], list | Tensor) and all(_is_whole(part) for part in (key[0], *key[2:])):
        return _chosen(call, key[1])
    plain = [part for part in key if part is not None and part is not Ellipsis]
    numbers = all(isinstance(part, int | slice) and not isinstance(part, bool) for part in plain)
    at = [position for position, part in enumerate(key) if part is Ellipsis] or [len(key)]
    if not numbers or len(at) > 1:
        raise _no_slices(call, key)
    rest: tuple[Any, ...] = (slice(None),) * (x.ndim - len(plain))
    parts = [part for part in (*key[: at[0]], *rest, *key[at[0] + 1 :]) if part is not None]
    slices = [_slice(part, size) for part, size in zip(parts, x.shape, strict=True)]
    if slices[0] != WHOLE:
        raise _no_slices(call, key)
    try:
        return _reshaped(call, _sliced(call, x, slices[1:]), tuple(call.result.shape))
    except UnsupportedModel:
        raise _no_slices(call, key) from None


def _is_whole(part: Any) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


def _no_slices(call: Call, key: Any) -> UnsupportedModel:
    return call.refuse(f"the index {key}", "slices that keep the batch, as in x[:, :, ::2, ::2]")


def _slice(part: int | slice, size: int) -> Part:
    if isinstance(part, int):
        return (part % size, part % size + 1, None)
    return (part.start, part.stop, part.step)


def _sliced(call: Call, x: Tensor, slices: list[Part]) -> Value:
    """A slice for each axis after the batch; trailing whole ones are left out."""
    if all(part == WHOLE for part in slices):
        return _input(call)
    value = call.of(x)
    if x.ndim == 3:
        slices = [slices[0], WHOLE, slices[1]] if call.along(x) == 3 else [slices[0], slices[1], WHOLE]
    sizes = [len(range(size)[slice(*part)]) for size, part in zip(value.shape[1:], slices, strict=True)]
    while len(slices) > 1 and slices[-1] == WHOLE:
        slices.pop()
    return call.add(ops.Slice(tuple(slices)), value, shape=(value.shape[0], *sizes))


def split(call: Call) -> tuple[Value, ...]:
    """``chunk`` and ``split``: a slice for each part."""
    x = call.args[0] if call.args else call.kwargs["input"]
    axis = call.kwargs.get("dim", call.args[2] if len(call.args) > 2 else 0) % x.ndim
    if axis == 0:
        raise call.refuse("a split of the batch", "one of channels or space")
    ends = list(itertools.accumulate(part.shape[axis] for part in call.result))
    found = []
    for begin, end in zip((0, *ends), ends, strict=False):
        slices = [WHOLE] * (x.ndim - 1)
        slices[axis - 1] = (begin, end, None)
        found.append(_sliced(call, x, slices))
    return tuple(found)


def pad(call: Call) -> Value:
    """Padding with zeros, or with copies of rows and columns (reflect, replicate, circular)."""
    x, padding, mode, value = call.take(pad=None, mode="constant", value=None)
    padding = tuple(int(p) for p in padding)
    if mode != "constant" and x.ndim in (3, 4):
        return _copied_around(call, x, padding, mode)
    if mode != "constant" or value not in (None, 0, 0.0):
        raise call.refuse(f"padding_mode={mode!r}, value={value}", "zeros")
    if len(padding) > 2 * (x.ndim - 1):
        raise call.refuse("padding of the batch", "padding of channels or space")
    given = call.of(x)
    shape = tuple(call.result.shape)
    if x.ndim == 3:
        along = call.along(x)
        padding = (*padding[:2], 0, 0, *padding[2:]) if along == 3 else (0, 0, *padding)
        shape = (*shape[:2], 1, shape[2]) if along == 3 else (*shape, 1)
    return call.add(ops.Pad(padding), given, shape=shape)


def _copied_around(call: Call, x: Tensor, padding: Sequence[int], mode: str) -> Value:
    """A border of copies, as a sum: the map in a border of zeros, and each copied row or column at its place."""
    value = call.of(x)
    axes = (3, 2) if x.ndim == 4 else (call.along(x),)
    for axis, left, right in zip(axes, padding[::2], padding[1::2], strict=False):
        size = value.shape[axis]
        places = F.pad(torch.arange(size, dtype=torch.float32).view(1, 1, -1), (left, right), mode=mode)
        source = [int(place) for place in places.flatten()]
        parts = [(0, size, left)]  # begin and end in the map, and the place of its copy
        for at, place in enumerate(source):
            if left <= at < left + size:
                continue
            begin, end, to = parts[-1]
            if to + end - begin == at and end == place and len(parts) > 1:
                parts[-1] = (begin, end + 1, to)
            else:
                parts.append((place, place + 1, at))
        value = _summed(call, value, axis, parts, len(source))
    return value


def _summed(call: Call, value: Value, axis: int, parts: Sequence[tuple[int, int, int]], total: int) -> Value:
    """The sum of stretches of a map along an axis, each in zeros at its place among ``total``."""
    shape, size = list(value.shape), value.shape[axis]
    found = []
    for begin, end, to in parts:
        piece = value
        if end - begin < size:
            shape[axis] = end - begin
            slices = (WHOLE,) * (axis - 1) + ((begin, end, None),)
            piece = call.add(ops.Slice(slices), value, shape=tuple(shape), part="copy")
        around = (0, 0) * (3 - axis) + (to, total - to - (end - begin))
        shape[axis] = total
        found.append(call.add(ops.Pad(around), piece, shape=tuple(shape), part="pad"))
    return found[0] if len(found) == 1 else call.add(ops.Add(), *found, shape=tuple(shape))


def unshuffle(call: Call) -> Value:
    """``pixel_unshuffle``, space to channels, as a convolution with a single 1 for each output."""
    x, factor = call.take(downscale_factor=None)
    value = call.of(x)
    if len(value.shape) != 4 or x.ndim != 4:
        raise call.refuse(f"pixel_unshuffle of {tuple(x.shape)}", "maps [B, C, H, W]")
    channels = value.shape[1]
    kernel = torch.zeros(channels * factor**2, channels, factor, factor, dtype=call.result.dtype)
    for out in range(len(kernel)):
        kernel[out, out // factor**2, out % factor**2 // factor, out % factor] = 1
    return call.add(ops.Conv2d(kernel, None, (factor, factor)), value)


def repeat(call: Call) -> Value:
    """``expand`` and ``repeat``: no change, or copies of a single channel, as of gray images for a network of three."""
    value, shape = _input(call), tuple(call.result.shape)
    if shape == value.shape:
        return value
    if len(value.shape) != 4 or value.shape[1] != 1 or (shape[0], *shape[2:]) != (value.shape[0], *value.shape[2:]):
        raise call.refuse(f"a repetition of {value.shape} to {shape}", "copies of a single channel")
    return call.add(ops.Conv2d(torch.ones(shape[1], 1, 1, 1, dtype=call.result.dtype), None), value)


def flip(call: Call) -> Value:
    """A reversed order of channels, as from BGR to RGB."""
    x, dims = call.take(dims=None)
    if [d % x.ndim for d in (dims if isinstance(dims, tuple | list) else (dims,))] != [1]:
        raise call.refuse(f"a flip of axes {dims}", "one of the channels, axis 1")
    return _chosen(call, range(x.shape[1] - 1, -1, -1))


def select(call: Call) -> Value:
    """Channels by their indices."""
    x, dim, numbers = call.take(dim=None, index=None)
    if dim % x.ndim != 1:
        raise call.refuse(f"a selection along axis {dim}", "one of channels, axis 1")
    return _chosen(call, numbers)


def shuffle(call: Call) -> Value:
    """A channel shuffle: one channel from each group in turn."""
    x, groups = call.take(groups=None)
    return _chosen(call, torch.arange(x.shape[1]).view(groups, -1).T.flatten())


def _chosen(call: Call, numbers: Any) -> Value:
    """The channels with these indices, as a 1x1 convolution with a single 1 for each output."""
    value, numbers = _input(call), torch.as_tensor(numbers)
    if len(value.shape) != 4 or numbers.ndim != 1 or numbers.dtype == torch.bool:
        raise call.refuse(f"a selection from {value.shape} by {tuple(numbers.shape)}", "numbers of channels of maps")
    kernel = torch.eye(value.shape[1], dtype=call.result.dtype)[numbers][:, :, None, None]
    return call.add(ops.Conv2d(kernel, None), value, shape=(value.shape[0], len(numbers), *value.shape[2:]))


def keep(call: Call) -> Value:
    """``clone``, ``detach`` and the like, which change nothing; casts to another dtype are refused."""
    x = call.args[0] if call.args else call.kwargs.get("input")
    if not isinstance(x, Activation) or x.value is None or call.result.dtype != x.dtype:
        raise call.refuse(f"a cast to {call.result.dtype}", "float32 throughout")
    return x.value


def dropout(call: Call) -> Value:
    """Dropout, which is the identity in evaluation mode."""
    x = call.args[0] if call.args else call.kwargs.get("input")
    on = call.kwargs.get("training", call.kwargs.get("train", call.args[2] if len(call.args) > 2 else True))
    if on or not isinstance(x, Activation) or x.value is None:
        raise call.refuse("dropout that is always on", "training=self.training")
    return x.value
