"""A Graph under construction, and a call of torch as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import UnsupportedModel
from ..graph.ops import UNIT_PRESERVING, Add, Flatten, Input, Node, Op, ReLU
from .activation import Activation, Value, parts

# Arguments without effect here: where the result goes, what only training reads, the memory format.
IDLE = frozenset({"inplace", "momentum", "_stacklevel", "memory_format"})
OPERANDS = frozenset({"other", "mat1"})  # arguments that may depend on the images; the rule says which one does


class Network:
    """The nodes so far, in order, each under its own name.

    Attributes:
        flattened: the Flatten of a node, by the node's name.
        pooled: what a mean over height or width is of, by the name of the mean's node.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.flattened: dict[str, Value] = {}
        self.pooled: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def rectified(self, name: str) -> bool:
        """Whether a value is a ReLU's, or pools, sums or pieces of such, and so never negative."""
        node = self[name]
        if isinstance(node.op, (Add, *UNIT_PRESERVING)):
            return all(self.rectified(name) for name in node.inputs)
        return isinstance(node.op, ReLU)

    def start(self, shape: tuple[int, ...]) -> Value:
        """The node of the images."""
        return self.add("input", Input(), (), shape)

    def add(self, label: str, op: Op, inputs: tuple[Value, ...], shape: tuple[int, ...]) -> Value:
        """A new node; the second one of the same label is named ``label_1``."""
        name, count = label, 0
        while name in self.taken:
            count += 1
            name = f"{label}_{count}"
        self.taken.add(name)
        self.nodes.append(Node(name, op, tuple(value.node for value in inputs)))
        return Value(name, shape)

    def flat(self, value: Value) -> Value:
        """The value as ``[B, F]``; its readers share one Flatten."""
        if len(value.shape) == 2:
            return value
        if value.node not in self.flattened:
            features = value.shape[1] * value.shape[2] * value.shape[3]
            self.flattened[value.node] = self.add(value.flat, Flatten(), (value,), (value.shape[0], features))
        return self.flattened[value.node]

    def reaching(self, output: str) -> tuple[Node, ...]:
        """The nodes on which the output depends, the output last."""
        needed = {output, self.nodes[0].name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        kept = [node for node in self.nodes if node.name in needed]
        return tuple(sorted(kept, key=lambda node: node.name == output))


@dataclass(frozen=True)
class Call:
    """A call of torch with activations, and its result on the example.

    Attributes:
        network: the nodes so far.
        function: what was called.
        args: its arguments by position.
        kwargs: its arguments by name.
        result: its result on the example.
        label: the name for its node.
        changed: whether it changed an activation in place.
        refuse: builds the error of a call that cannot be converted, from what was got, what is expected and, instead of
            the usual advice, what to do.
    """

    network: Network
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    label: str
    changed: bool
    refuse: Callable[..., UnsupportedModel]

    def take(self, **defaults: Any) -> tuple[Any, ...]:
        """The input and the other arguments of the call, in the order of ``defaults``.

        Raises:
            UnsupportedModel: an argument is not in ``defaults``, or depends on the images and is no operand.
        """
        names = ("input", *defaults)
        values: dict[str, Any] = {"input": None, **defaults}
        given = {"input" if name in ("self", "tensors") else name: value for name, value in self.kwargs.items()}
        given |= dict(zip(names, self.args, strict=False))
        unknown = [name for name in given if name not in values and name not in IDLE]
        if unknown or len(self.args) > len(names):
            raise self.refuse(f"the argument {unknown[0] if unknown else self.args[len(names)]!r}", "a call without it")
        values |= {name: value for name, value in given.items() if name in values}
        for name in defaults:
            if name not in OPERANDS and any(isinstance(part, Activation) for part in parts(values[name])):
                raise self.refuse(f"{name} that depends on the images", "a constant")
        return tuple(values[name] for name in names)

    def of(self, x: Any) -> Value:
        """The value of an operand as the module sees it: flattened where that is ``[B, F]``."""
        if not isinstance(x, Activation):
            raise self.refuse(f"the operand {_said(x)}", "an activation of the network")
        assert x.value is not None
        return self.network.flat(x.value) if x.ndim == 2 else x.value

    def along(self, x: Tensor) -> int:
        """Which axis of the Graph's ``[B, C, H, W]`` is the last one of ``[B, C, L]``.

        Raises:
            UnsupportedModel: it is both height and width.
        """
        shape = self.of(x).shape
        if len(shape) != 4 or (shape[2] != 1 and shape[3] != 1):
            raise self.refuse(f"an operation along height and width in one, {tuple(x.shape)}", "maps [B, C, H, W]")
        return 3 if shape[2] == 1 else 2

    def add(self, op: Op, *inputs: Value, shape: tuple[int, ...] | None = None, part: str = "") -> Value:
        """A new node of this call; ``part`` is appended to its name where it is not the result."""
        shape = tuple(self.result.shape) if shape is None else shape
        return self.network.add(f"{self.label}.{part}" if part else self.label, op, inputs, shape)

    def named(self, value: Value) -> Value:
        """The same value, whose Flatten is named after this call."""
        return replace(value, flat=self.label)


def _said(x: Any) -> str:
    return f"a constant of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
