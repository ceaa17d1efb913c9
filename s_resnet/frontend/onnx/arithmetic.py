"""ONNX's operators that add and multiply, and those that only constants and sizes of images go through."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .node import LARGEST, OnnxNode, Value, broadcast, constant
from .shapes import Whole, listed, numbers_of, placed, whole
from .tensors import FLOATS


def identity(node: OnnxNode) -> Value:
    """``Identity``, and ``Dropout`` in evaluation mode."""
    if node.proto.op_type == "Identity":
        node.attributes()
        (x,) = node.inputs(1, 1)
        return x  # type: ignore[no-any-return]
    node.attributes(ratio=0.5, seed=0)
    x, _, training = node.inputs(1, 3)
    if len([name for name in node.proto.output if name]) > 1 or (training and bool(node.known(training, "a mode"))):
        remedy = "Export the network in evaluation mode (model.eval())"
        raise node.refuse("Dropout in training mode", "Dropout that does nothing", remedy)
    return x  # type: ignore[no-any-return]


def cast(node: OnnxNode) -> Value:
    """``Cast`` and ``CastLike``; activations and weights are float32 throughout."""
    if node.proto.op_type == "CastLike":
        node.attributes(saturate=1, round_mode="up")
        x, like = node.inputs(2, 2)
        floats, boolean = like.example.is_floating_point(), like.example.dtype == torch.bool
    else:
        kind, _, _ = node.attributes(to=0, saturate=1, round_mode="up")
        (x,) = node.inputs(1, 1)
        floats, boolean = kind in FLOATS, kind == 9
    if x.is_activation and not floats:
        raise node.refuse("a cast of an activation to whole numbers", "floating point throughout")
    dtype = torch.float32 if floats else torch.bool if boolean else torch.int64
    return x if x.is_activation else node.step(Tensor.to, x, dtype)


def elementwise(node: OnnxNode, function: Callable[..., Any]) -> Value:
    """An operation number by number of one operand or two."""
    node.attributes()
    values = node.inputs(1, 2) if len(node.operands) < 2 else node.inputs(2, 2)
    values = tuple(value for value in values if value is not None)
    broadcast(node, values)
    activations = [value for value in values if value.is_activation]
    if not activations:
        return node.step(function, *values)
    order = max((value.axes for value in activations), key=len)
    if any(value.axes != order for value in activations) or any(len(value.axes) > len(order) for value in values):
        values, order = tuple(node.in_order(value) for value in values), tuple(range(len(order)))
        aligned = list(values)
    else:
        aligned = [placed(node, value, order) for value in values]
    found = node.step(function, *aligned)
    return found if found.example.ndim != len(order) else Value(found.example, found.step, order)


def divide(x: Tensor, other: Tensor) -> Tensor:
    """A division; one of whole numbers goes toward zero."""
    whole = not x.is_floating_point() and not other.is_floating_point()
    return torch.div(x, other, rounding_mode="trunc") if whole else torch.div(x, other)


def extreme(node: OnnxNode) -> Value:
    """``Max`` and ``Min`` with constant limits, or of constants."""
    node.attributes()
    largest = node.proto.op_type == "Max"
    values = node.inputs(1, max(1, len(node.operands)))
    activations: list[Value] = [value for value in values if value.is_activation]
    if len(activations) == 1 and all(value.example.numel() == 1 for value in values if not value.is_activation):
        limits = [float(node.known(value, "a limit").item()) for value in values if not value.is_activation]
        if not limits:
            return activations[0]
        ends = (max(limits), None) if largest else (None, min(limits))
        return node.step(torch.clamp, activations[0], *ends, axes=activations[0].axes)
    broadcast(node, values)
    found: Value = values[0]
    for value in values[1:]:
        found = node.step(torch.maximum if largest else torch.minimum, node.in_order(found), node.in_order(value))
    return found


# ---- constants ----


def only_constant(node: OnnxNode, function: Callable[..., Any], count: int = 1) -> Value:
    """An operation that is computed where its operands are constants or sizes, and refused on activations."""
    node.attributes()
    values = node.inputs(count, count)
    if any(value.is_activation for value in values):
        raise node.refuse()
    broadcast(node, values)
    return node.step(function, *values)


def stored(node: OnnxNode) -> Value:
    """``Constant``."""
    names = [said.name for said in node.proto.attribute]
    node.inputs(0, 0)
    if names == ["value"]:
        (found,) = node.attributes(value=None)
        return constant(node.reading.tensors.read(found))
    settings = node.attributes(value_int=0, value_float=0.0, value_ints=(), value_floats=())
    kinds = {"value_int": torch.int64, "value_float": torch.float32, "value_ints": torch.int64}
    if len(names) != 1:
        raise node.refuse(f"operator Constant with {len(names)} values", "one")
    found = settings[("value_int", "value_float", "value_ints", "value_floats").index(names[0])]
    return constant(torch.tensor(found, dtype=kinds.get(names[0], torch.float32)))


def filled(node: OnnxNode) -> Value:
    """``ConstantOfShape``."""
    (said,) = node.attributes(value=None)
    (sizes,) = node.inputs(1, 1)
    number = torch.zeros(1) if said is None else node.reading.tensors.read(said)
    numbers = numbers_of(node, sizes)
    if number.numel() != 1 or any(n < 0 for n in numbers):
        raise node.refuse(f"a constant of shape {tuple(numbers[:8])}", "one number, and sizes from 0 on")
    node.take_room(math.prod(numbers))
    return node.step(_filled, listed(node, sizes), constant(number.reshape(())))


def _filled(sizes: Whole, number: Tensor) -> Tensor:
    return number.expand(whole(sizes)).clone()


def range_(node: OnnxNode) -> Value:
    node.attributes()
    ends = node.inputs(3, 3)
    first, last, by = (value.example.item() for value in ends)
    if any(value.is_activation for value in ends) or not by or (last - first) / by > LARGEST:
        raise node.refuse("a long range", "a short one")
    return node.step(_ranged, *ends)


def _ranged(first: Tensor, last: Tensor, by: Tensor) -> Tensor:
    return torch.arange(first.item(), last.item(), by.item())


_FUNCTIONS: dict[int, dict[str, Callable[..., Tensor]]] = {
    1: {
        "Abs": torch.abs,
        "Ceil": torch.ceil,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Log": torch.log,
        "Not": torch.logical_not,
        "Reciprocal": torch.reciprocal,
        "Round": torch.round,
        "Sign": torch.sign,
        "Sqrt": torch.sqrt,
    },
    2: {
        "And": torch.logical_and,
        "Equal": torch.eq,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Or": torch.logical_or,
        "Pow": torch.pow,
    },
    3: {"Where": torch.where},
}
CONSTANT = {
    name: partial(only_constant, function=function, count=count)
    for count, functions in _FUNCTIONS.items()
    for name, function in functions.items()
}
