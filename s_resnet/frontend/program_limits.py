"""What a program from a file may ask for, found out from shapes alone before anything is computed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidCheckpoint, SResNetError, message
from ..files import reason
from .activation import parts
from .program import Operation, Program

SIDE, CHANNELS = 2**16, 2**10  # of images
VALUES = 2**28  # numbers in all results that exist at once
WORK = 2**41  # multiplications
USES = 8  # times the file's size: what all operations may hold of constants
SMALLEST = 2**24  # bytes of constants that are always allowed
IMAGES = 2  # as trace runs it


def answer_shape(program: Program, where: str, size: int) -> tuple[int, ...]:
    """The shape of a program's answer to two images of the file's size.

    Args:
        program: the program; it is not run.
        where: the file's name, for messages.
        size: bytes of the file.

    Raises:
        InvalidCheckpoint: it would need too much memory or work, fails, or has no tensor as answer; the message names
            the node.
    """
    held = sum(buffer.numel() * 4 for step in program.operations() for buffer in step.buffers())
    if held > USES * size + SMALLEST:
        raise _refused(where, "constants", f"{held} bytes", f"at most {USES} times the file's {size}")
    known: dict[str, Any] = {program.images: torch.empty(IMAGES, *program.image_shape, device="meta")}
    alive, work = _numbers(known[program.images]), 0.0
    for at, step in enumerate(program.operations()):
        values = [known[name] for name in step.inputs]
        try:
            with torch.device("meta"):  # for constants without arguments
                known[step.result] = _without_numbers(step)(*values)
        except SResNetError as error:
            got, remedy = f"{step.kind}: {reason(error.__cause__ or error)}", "Export the network again"
            raise InvalidCheckpoint(message(where, f"node {step.label}", got, "arguments that fit", remedy)) from None
        alive += _numbers(known[step.result])
        work += _work(step, values, known[step.result])
        if alive > VALUES or work > WORK or not _short(known[step.result]):
            got = f"{alive} numbers at once and {work:.3g} multiplications for {IMAGES} images {program.image_shape}"
            raise _refused(where, f"node {step.label}", got, f"at most {VALUES} and {WORK}")
        for name in program.last_uses.get(at, ()):
            alive -= _numbers(known.pop(name))
    answer = known[program.answer]
    if not isinstance(answer, Tensor):
        raise _refused(where, "output", type(answer).__name__, "one tensor of logits")
    return tuple(answer.shape)


def logits_among(outputs: Sequence[tuple[str, int | None]]) -> str | None:
    """The name of the logits: the only output, or the only one that may be ``[B, N]``; None where none or several are.

    Args:
        outputs: their names and numbers of axes, None where the file does not say it.
    """
    flat = [name for name, axes in outputs if len(outputs) == 1 or axes in (None, 2)]
    return flat[0] if len(flat) == 1 else None


def _refused(where: str, what: str, got: str, expected: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(message(where, what, got, expected, "Export the network again, for smaller images"))


def _without_numbers(step: Operation) -> Operation:
    """The operation with constants that have a shape alone."""
    twin = copy.copy(step)
    vars(twin)["_buffers"] = {name: buffer.to("meta") for name, buffer in step.named_buffers()}
    return twin


def _numbers(result: Any) -> int:
    return sum(part.numel() for part in parts(result) if isinstance(part, Tensor))


def _short(result: Any) -> bool:
    """Whether sizes in the result have at most 63 bits: with products of products they could grow without end."""
    return all(abs(part) < 2**63 for part in parts(result) if isinstance(part, int))


def _work(step: Operation, values: Sequence[Any], result: Any) -> float:
    """About how many multiplications or comparisons an operation takes."""
    made, kind = float(_numbers(result)), step.kind.lower()
    if "pool" in kind:
        window = [part for part in parts(step.args[1:2]) if isinstance(part, int)]
        return made * math.prod(window)
    if "conv" in kind or "linear" in kind or "mm" in kind or "mul" in kind:
        held = [*step.buffers(), *(value for value in values[1:] if isinstance(value, Tensor))]
        return made * max((part.numel() / max(1, len(part)) for part in held if part.ndim > 1), default=1)
    return made
