"""Rules of arithmetic: sums of activations, and constants per channel, which are affine maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph import ops
from .activation import Activation, Value
from .network import Call

GATE = "Attention, squeeze-and-excitation and other gates have no spiking form here: use a network without them"


def add(call: Call) -> Value:
    x, other, alpha = call.take(other=None, alpha=1)
    return _sum(call, x, other, 1, alpha)


def subtract(call: Call) -> Value:
    x, other, alpha = call.take(other=None, alpha=1)
    return _sum(call, x, other, 1, -alpha)


def subtract_from(call: Call) -> Value:
    x, other, alpha = call.take(other=None, alpha=1)
    return _sum(call, x, other, -alpha, 1)


def negative(call: Call) -> Value:
    (x,) = call.take()
    return affine(call, x, -1, 0)


def multiply(call: Call) -> Value | None:
    """A factor per channel; None for the factor zero, which makes a constant."""
    x, other = call.take(other=None)
    if isinstance(x, Activation) and isinstance(other, Activation):
        raise call.refuse("a product of two activations", "a factor that does not depend on the images", GATE)
    x, factor = (x, other) if isinstance(x, Activation) else (other, x)
    if not call.changed and bool((torch.as_tensor(factor) == 0).all()):
        return None
    return affine(call, x, factor, 0)


def divide(call: Call) -> Value:
    x, other, rounding = call.take(other=None, rounding_mode=None)
    if isinstance(other, Activation) or rounding is not None:
        raise call.refuse("a division by an activation, or one that rounds", "a plain division by a constant", GATE)
    return affine(call, x, 1 / torch.as_tensor(other, dtype=torch.float64), 0)


def _sum(call: Call, x: Any, other: Any, a: float, b: float) -> Value:
    """``a x + b other``, where at least one of the two is an activation."""
    if not isinstance(x, Activation):
        x, other, a, b = other, x, b, a
    if not isinstance(other, Activation):
        return affine(call, x, a, b * torch.as_tensor(other, dtype=torch.float64))
    first, second = call.of(x), call.of(other)
    if x.shape != other.shape or first.shape != second.shape:
        got = f"an addition of {tuple(x.shape)} and {tuple(other.shape)}"
        raise call.refuse(got, "two activations of one shape")
    first, second = affine(call, x, a, 0, "scale"), affine(call, other, b, 0, "scale")
    return call.add(ops.Add(), first, second, shape=first.shape)


def affine(call: Call, x: Any, factor: Any, shift: Any, part: str = "") -> Value:
    """``factor x + shift`` with constants; the value itself where they are 1 and 0."""
    value = call.of(x)
    weight, bias = (per_channel(call, constant, x, value.shape[1]) for constant in (factor, shift))
    if bool((weight == 1).all()) and bool((bias == 0).all()):
        return value
    return call.add(ops.Affine(weight, bias), value, shape=value.shape, part=part)


def per_channel(call: Call, constant: Any, x: Tensor, channels: int) -> Tensor:
    """``constant``, as broadcast against the activation ``x``, in the form ``[C]``.

    Raises:
        UnsupportedModel: it differs within a channel.
    """
    numbers = torch.as_tensor(constant, dtype=torch.float64).detach()
    shape = tuple(numbers.shape)
    if numbers.ndim > x.ndim or any(n not in (1, m) for n, m in zip(shape[::-1], tuple(x.shape)[::-1], strict=False)):
        raise call.refuse(f"a constant of shape {shape} for an activation of {tuple(x.shape)}", "one per channel")
    every = numbers.reshape((1,) * (x.ndim - numbers.ndim) + shape).transpose(0, 1).flatten(1)
    if not bool((every == every[:, :1]).all()):
        raise call.refuse("a constant that differs from pixel to pixel or image to image", "one per channel")
    return every[:, 0].expand(channels).to(x.dtype, copy=True)


def concatenate(call: Call) -> Value:
    """A concatenation of channels, as a sum of activations that are padded with zero channels."""
    tensors, dim = call.take(dim=0)
    if dim not in (1, 1 - call.result.ndim):
        raise call.refuse(f"a concatenation along axis {dim}", "one along the channels, axis 1")
    begin, channels, found = 0, call.result.shape[1], []
    for x in tensors:
        if isinstance(x, Activation):
            found.append((x.value, begin))
        elif bool((x != 0).any()):
            raise call.refuse("a concatenation with a constant other than zero", "activations, or zeros")
        begin += x.shape[1]
    # Flattened maps lie beside each other as their channels do.
    values = [(value, begin) for value, begin in found if value is not None]
    sizes = {value.shape[2:] for value, _ in values}
    if len(sizes) > 1 or () in sizes:
        raise call.refuse("a concatenation of features behind a linear layer, or of maps of several sizes", "one size")
    (size,) = sizes
    pixels = size[0] * size[1] if call.result.ndim == 2 else 1
    channels, shape = channels // pixels, (call.result.shape[0], channels // pixels, *size)
    padded = []
    for value, begin in values:
        before = begin // pixels
        pad = ops.Pad((0, 0, 0, 0, before, channels - before - value.shape[1]))
        padded.append(call.add(pad, value, shape=shape, part="pad" if len(values) > 1 else ""))
    return call.named(padded[0] if len(padded) == 1 else call.add(ops.Add(), *padded, shape=shape))
