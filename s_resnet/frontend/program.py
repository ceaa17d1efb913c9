"""A network that a file describes operation by operation, as a module that ``trace`` follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidData, SResNetError, message
from ..files import reason

WITHOUT = "Export the network without it"
SIGNALS = "/signals"  # the name of signals as they come; no reader gives a result such a name


@dataclass(frozen=True)
class Earlier:
    """In the arguments of a step: the result of an earlier one, or the images, by name."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation of a file.

    Attributes:
        name: what the file calls it; the node of the Graph has this name.
        kind: the operator as the file has it, for messages.
        function: what computes it, a function of torch.
        args: its arguments: ``Earlier``, constant tensors and plain values, also in tuples and lists.
        kwargs: those by name.
        result: the name under which later steps find the result; by default ``name``.
    """

    name: str
    kind: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""


@dataclass(frozen=True)
class _Held:
    """In the arguments of an operation: its buffer of this name, or the value at this place in its inputs."""

    at: str | int


class Operation(nn.Module):
    """A step as a module; its constants are buffers, so that they follow casts and copies.

    Attributes:
        label: the name of the step.
        kind: its operator.
        inputs: the names of the earlier results that it takes.
        result: the name of its own.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.label, self.kind, self.function = step.name, step.kind, step.function
        self.result = step.result or step.name
        self.inputs: list[str] = []
        self.args, self.kwargs = self._held(tuple(step.args)), self._held(dict(step.kwargs))

    def _held(self, tree: Any) -> Any:
        """The arguments with constants and earlier results replaced by where they are."""
        if isinstance(tree, Earlier):
            if tree.name not in self.inputs:
                self.inputs.append(tree.name)
            return _Held(self.inputs.index(tree.name))
        if isinstance(tree, Tensor):
            name = f"constant{len(self._buffers)}"
            self.register_buffer(name, tree)
            return _Held(name)
        return _mapped(self._held, tree)

    def forward(self, *values: Any) -> Any:
        """Compute the step from the earlier results that it takes.

        Raises:
            InvalidData: they do not fit it; the message names the step.
        """

        def given(tree: Any) -> Any:
            if isinstance(tree, _Held):
                return values[tree.at] if isinstance(tree.at, int) else self._buffers[tree.at]
            return _mapped(given, tree)

        try:
            return self.function(*given(self.args), **given(self.kwargs))
        except SResNetError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in values if isinstance(value, Tensor))
            got, expected = f"{reason(error)} for inputs of {shapes}", "inputs that fit it"
            remedy = "Pass images of the size and channels that the network was exported for"
            raise InvalidData(message(f"node {self.label}", self.kind, got, expected, remedy)) from error

    def extra_repr(self) -> str:
        """The name and operator, for ``repr``."""
        return f"{self.label}: {self.kind}"


class Program(nn.Module):
    """The steps of a file in their order: ``[B, C, H, W] -> [B, num_classes]``.

    Results are let go once no later step needs them.

    Args:
        steps: the operations, each after those whose results it takes.
        images: the name under which they find the images.
        answer: the name of the result that is the network's.
        shape: of what the file was made for: ``(C, H, W)`` of images, or ``(C, L)`` of signals, which then come as
            images of height 1.

    Attributes:
        image_shape: ``(C, H, W)``.
    """

    def __init__(self, steps: Sequence[Step], images: str, answer: str, shape: Sequence[int]) -> None:
        super().__init__()
        channels, *sides = shape
        height, width = sides if len(sides) == 2 else (1, *sides)
        self.image_shape = (channels, height, width)
        if len(sides) == 1:
            steps = [Step("signals", "squeeze", torch.squeeze, (Earlier(SIGNALS), 2), result=images), *steps]
            images = SIGNALS
        self.steps = nn.ModuleList(Operation(step) for step in steps)
        self.images, self.answer = images, answer
        last = {name: at for at, step in enumerate(self.operations()) for name in step.inputs}
        self.last_uses: dict[int, list[str]] = {}
        for name, at in last.items():
            if name != answer:
                self.last_uses.setdefault(at, []).append(name)

    def operations(self) -> Iterator[Operation]:
        """Its operations in order."""
        for step in self.steps:
            assert isinstance(step, Operation)
            yield step

    def forward(self, images: Tensor) -> Any:
        """The result of the last step on the images."""
        known: dict[str, Any] = {self.images: images}
        for at, step in enumerate(self.operations()):
            known[step.result] = step(*(known[name] for name in step.inputs))
            for name in self.last_uses.get(at, ()):
                del known[name]
        return known[self.answer]


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with its leaves changed; tuples, lists, slices and dicts are branches."""
    if isinstance(tree, tuple | list):
        return type(tree)(change(part) for part in tree)
    if isinstance(tree, Mapping):
        return {name: change(part) for name, part in tree.items()}
    if isinstance(tree, slice):
        return slice(change(tree.start), change(tree.stop), change(tree.step))
    return tree
