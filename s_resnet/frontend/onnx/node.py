"""A node of an ONNX file while the network is read, and what is known of its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ...errors import UnsupportedModel, message
from ...files import reason
from ..program import WITHOUT, Earlier, Step
from ..rules import EXPECTED
from .tensors import Tensors, short

if TYPE_CHECKING:
    from onnx import NodeProto

EXAMPLE = 7  # images of the example; a size that nothing else is likely to have
LARGEST = 2**26  # numbers of one image's activation, and of all constants that are computed from the file's
GATHERED = 2**28  # products of a matrix product of constants

T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """A tensor of the file.

    The Graph's images are ``[B, C, H, W]``. Where the file has ``[B, H, W, C]`` between two transposes, the values keep
    the Graph's order, and know the file's.

    Attributes:
        example: the tensor itself where it is a constant; its numbers on the example where it depends on the sizes of
            the images alone; else a tensor of the example's shape on the meta device.
        step: the result of which step it is; None for a constant.
        axes: for each axis in the file, which axis of ``example`` it is.
    """

    example: Tensor
    step: str | None
    axes: tuple[int, ...]

    @property
    def is_activation(self) -> bool:
        """Whether it depends on the images themselves, and not only on their sizes."""
        return self.example.is_meta

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape on the example, in the file's order."""
        return tuple(self.example.shape[axis] for axis in self.axes)

    @property
    def plain(self) -> bool:
        """Whether the file has its axes in the order of the Graph."""
        return self.axes == tuple(range(self.example.ndim))


def constant(tensor: Tensor) -> Value:
    """A constant of the file."""
    return Value(tensor, None, tuple(range(tensor.ndim)))


@dataclass
class Reading:
    """What was read of a file so far.

    Attributes:
        where: the file, for messages.
        tensors: reads its tensors.
        opset: the version of its operators.
        batch: how many images the file takes; None where it takes any number.
        steps: the operations so far.
        room: how many more numbers may be computed from constants.
    """

    where: str
    tensors: Tensors
    opset: int
    batch: int | None
    steps: list[Step] = field(default_factory=list)
    room: int = LARGEST


@dataclass(frozen=True)
class OnnxNode:
    """A node and its operands, for the function that makes steps of its operator."""

    reading: Reading
    proto: NodeProto
    operands: tuple[Value | None, ...]

    @property
    def name(self) -> str:
        """Its name, or where it has none that of its first output."""
        return short(self.proto.name or next(iter(self.proto.output), ""))

    @property
    def kind(self) -> str:
        """Its operator, with the domain where that is not ONNX's own."""
        domain = self.proto.domain if self.proto.domain not in ("", "ai.onnx") else ""
        return short(f"{domain}::{self.proto.op_type}" if domain else self.proto.op_type)

    @property
    def opset(self) -> int:
        """The version of its operator."""
        return self.reading.opset

    def refuse(self, got: str = "", expected: str = EXPECTED, remedy: str = WITHOUT) -> UnsupportedModel:
        """The error for a node that cannot be converted."""
        where, got = f"{self.reading.where}: node {self.name}", got or f"operator {self.kind}"
        return UnsupportedModel(message(where, "cannot be converted", got, expected, remedy))

    def attributes(self, **defaults: T) -> Any:
        """The node's settings, in the order of ``defaults``, which say their types too: an empty tuple for a list.

        Raises:
            UnsupportedModel: it has another setting, or one of another type.
        """
        values: dict[str, Any] = dict(defaults)
        for said in self.proto.attribute:
            kind, read = _ATTRIBUTES.get(said.type, (object, None))
            if read is None or said.name not in values or not isinstance(values[said.name], kind):
                got = f"operator {self.kind} with the setting {short(said.name)!r} of type {said.type}"
                raise self.refuse(got, f"only {', '.join(defaults) or 'none'}")
            values[said.name] = read(said)
        return tuple(values.values())

    def inputs(self, least: int, most: int) -> tuple[Any, ...]:
        """Its operands: at least ``least`` that are there, then others or None, ``most`` in all."""
        given = self.operands
        if len(given) > most or len(given) < least or any(value is None for value in given[:least]):
            expected = f"{least} to {most}" if least < most else f"{least}"
            raise self.refuse(f"operator {self.kind} with {len(given)} inputs", expected)
        return (*given, *(None,) * (most - len(given)))

    def known(self, value: Value | None, what: str) -> Tensor:
        """The tensor of a constant operand.

        Raises:
            UnsupportedModel: it depends on the images.
        """
        if value is None or value.step is not None:
            raise self.refuse(f"operator {self.kind} with {what} that depends on the images", "a constant")
        return value.example

    def weights(self, value: Value | None, what: str) -> Tensor:
        """The tensor of a constant operand that has floating-point numbers.

        Raises:
            UnsupportedModel: it has none, or depends on the images.
        """
        found = self.known(value, what)
        if not found.is_floating_point():
            raise self.refuse(f"operator {self.kind} with {what} of whole numbers", "floating-point numbers")
        return found

    def whole(self, value: Value | None, what: str) -> tuple[int, ...]:
        """The numbers of a constant list of whole numbers."""
        found = self.known(value, what)
        if found.is_floating_point() or found.ndim > 1 or found.numel() > 64:
            raise self.refuse(f"{what} of {tuple(found.shape)}, {found.dtype}", "a short list of whole numbers")
        return tuple(int(number) for number in found.flatten())

    def axis(self, axis: int, rank: int) -> int:
        """An axis of the file from the front.

        Raises:
            UnsupportedModel: there is none.
        """
        if not -rank <= axis < rank:
            raise self.refuse(f"operator {self.kind} along axis {axis} of {rank}", "an axis that is there")
        return axis % rank

    def step(
        self, function: Callable[..., Any], *args: Any, axes: tuple[int, ...] | None = None, part: str = ""
    ) -> Value:
        """The result of a function on these arguments; a constant where all of them are.

        Args:
            function: of torch, or of this package.
            args: values and plain settings, also in lists.
            axes: the order of the result's axes in the file; by default as they are.
            part: what to append to the node's name where the result is not its output.
        """
        (found,) = self.results(function, args, part)
        return found if axes is None else Value(found.example, found.step, axes)

    def results(self, function: Callable[..., Any], args: tuple[Any, ...], part: str = "") -> tuple[Value, ...]:
        """The results of a function that may return several; see :meth:`step`."""
        reading, values = self.reading, list(_values(args))
        from_images = any(value.is_activation for value in values)
        try:
            with torch.no_grad():
                found = function(*(_examples(arg, from_images) for arg in args))
        except UnsupportedModel:
            raise
        except Exception as error:
            shapes = ", ".join(str(value.shape) for value in values)
            got = f"operator {self.kind} of {shapes}: {reason(error)[:300]}"
            remedy = f"The file was read with {EXAMPLE} images: export the network with a dynamic batch axis, or again"
            raise self.refuse(got, "shapes that fit each other", remedy) from error
        parts = found if isinstance(found, tuple) else (found,)
        for tensor in parts:
            self._check(tensor, tensor.is_meta)
        if all(value.step is None for value in values):
            return tuple(constant(tensor.contiguous()) for tensor in parts)
        name = str(len(reading.steps))
        label = f"{self.name}.{part}" if part else self.name
        reading.steps.append(Step(label, self.kind, function, tuple(_given(arg) for arg in args), result=name))
        if not isinstance(found, tuple):
            return (Value(found, name, tuple(range(found.ndim))),)
        picked = [
            Step(label, self.kind, getitem, (Earlier(name), at), result=f"{name}.{at}") for at in range(len(parts))
        ]
        reading.steps.extend(picked)
        return tuple(
            Value(tensor, step.result, tuple(range(tensor.ndim))) for tensor, step in zip(parts, picked, strict=True)
        )

    def _check(self, tensor: Tensor, is_activation: bool) -> None:
        """Check that a result is not too large, and that its first axis is that of the images."""
        if is_activation:
            if tensor.ndim < 1 or tensor.shape[0] != EXAMPLE:
                got = f"operator {self.kind} that makes {tuple(tensor.shape)} of {EXAMPLE} images"
                remedy = "Export the network with a dynamic batch axis"
                raise self.refuse(got, "the images along the first axis", remedy)
            if tensor.numel() > EXAMPLE * LARGEST:
                raise self.refuse(f"an activation of {tuple(tensor.shape)}", f"at most {LARGEST} numbers an image")
            return
        self.take_room(tensor.numel())

    def take_room(self, numbers: int) -> None:
        """Make sure that constants with so many more numbers may be computed.

        Raises:
            UnsupportedModel: the file makes more of its constants than a network needs.
        """
        self.reading.room -= numbers
        if self.reading.room + 4 * self.reading.tensors.numbers < 0:
            raise self.refuse(f"operator {self.kind} that makes {numbers} numbers", "constants of the size of weights")

    def in_order(self, value: Value) -> Value:
        """The value with its axes in the file's order: as it is, or behind a step that moves them."""
        return value if value.plain else self.step(permuted, value, value.axes, part="transpose")


def permuted(x: Tensor, axes: Sequence[int], shape: Sequence[int] | None = None) -> Tensor:
    """A tensor with its axes in another order, and then in another shape; axes of size 1 can be anywhere."""
    order = [axis for axis in axes if x.shape[axis] != 1]
    sizes = [x.shape[axis] for axis in axes] if shape is None else list(shape)
    return (x if order == sorted(order) else x.permute(tuple(axes))).reshape(sizes)


def broadcast(node: OnnxNode, values: Sequence[Value]) -> None:
    """Make sure that the result of an operation on constants, number by number, is not too large."""
    if not any(value.is_activation for value in values):
        shapes = [tuple(value.example.shape) for value in values]
        rank = max(map(len, shapes))
        padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
        count = math.prod(max(sizes) for sizes in zip(*padded, strict=True))
        if count > LARGEST:
            node.take_room(count)


def _values(args: Any) -> list[Value]:
    if isinstance(args, tuple | list):
        return [value for part in args for value in _values(part)]
    return [args] if isinstance(args, Value) else []


def _examples(arg: Any, from_images: bool) -> Any:
    """An argument for the example; numbers are on the meta device where the images are, whole ones are not."""
    if isinstance(arg, tuple | list):
        return type(arg)(_examples(part, from_images) for part in arg)
    if isinstance(arg, Value):
        return arg.example.to("meta") if from_images and arg.example.is_floating_point() else arg.example
    return arg


def _given(arg: Any) -> Any:
    """An argument for the program."""
    if isinstance(arg, tuple | list):
        return type(arg)(_given(part) for part in arg)
    if isinstance(arg, Value):
        return arg.example if arg.step is None else Earlier(arg.step)
    return arg


def _text(said: Any) -> str:
    return str(said.s.decode("utf-8", "replace"))


# By AttributeProto.AttributeType: what a setting's default is, and how it is read.
_ATTRIBUTES: dict[int, tuple[Any, Callable[[Any], Any] | None]] = {
    1: (float, lambda said: float(said.f)),
    2: (int, lambda said: int(said.i)),
    3: (str, _text),
    4: (type(None), lambda said: said.t),
    6: (tuple, lambda said: tuple(said.floats)),
    7: (tuple, lambda said: tuple(said.ints)),
}
