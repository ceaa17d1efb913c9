"""The nodes of a Graph in the making, and a call of torch as a rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import UnsupportedModel
from ..graph.ops import Flatten, Input, Node, Op
from .activation import Activation, Value, parts

# Settings of calls that change nothing here: where the result goes, what only training reads, how memory is laid out.
IDLE = frozenset({"inplace", "momentum", "_stacklevel", "memory_format"})


class Network:
    """Nodes in order, each under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.flattened: dict[str, Value] = {}  # a node -> its Flatten
        self.pooled: dict[str, Value] = {}  # a mean over height or width -> what it is of

    def start(self, shape: tuple[int, ...]) -> Value:
        """The images."""
        return self.add("input", Input(), (), shape)

    def add(self, label: str, op: Op, inputs: tuple[Value, ...], shape: tuple[int, ...]) -> Value:
        """A new node; a second one of the same label is ``label_1``."""
        name, count = label, 0
        while name in self.taken:
            count += 1
            name = f"{label}_{count}"
        self.taken.add(name)
        self.nodes.append(Node(name, op, tuple(value.node for value in inputs)))
        return Value(name, shape)

    def flat(self, value: Value) -> Value:
        """The value as ``[B, F]``, by a Flatten if need be: one for all who read it."""
        if len(value.shape) == 2:
            return value
        if value.node not in self.flattened:
            features = value.shape[1] * value.shape[2] * value.shape[3]
            self.flattened[value.node] = self.add(value.flat, Flatten(), (value,), (value.shape[0], features))
        return self.flattened[value.node]

    def reaching(self, output: str) -> tuple[Node, ...]:
        """The nodes that the output depends on, the output last; what a model computes and drops is left out."""
        needed = {output, self.nodes[0].name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        kept = [node for node in self.nodes if node.name in needed]
        return tuple(sorted(kept, key=lambda node: node.name == output))


@dataclass(frozen=True)
class Call:
    """A call of torch with activations, and what it gave on the example.

    label: what its node is to be called. changed: whether it changed an activation in place. refuse: makes the error of
    what cannot be converted from what was got, what is expected and, in place of the usual advice, what to do.
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
        """The input and the settings of the call, by position or name; those not given as in ``defaults``."""
        names = ("input", *defaults)
        values: dict[str, Any] = {"input": None, **defaults}
        given = {"input" if name in ("self", "tensors") else name: value for name, value in self.kwargs.items()}
        given |= dict(zip(names, self.args, strict=False))
        unknown = [name for name in given if name not in values and name not in IDLE]
        if unknown or len(self.args) > len(names):
            raise self.refuse(f"the argument {unknown[0] if unknown else self.args[len(names)]!r}", "none such")
        values |= {name: value for name, value in given.items() if name in values}
        for name in defaults:
            if name != "other" and any(isinstance(part, Activation) for part in parts(values[name])):
                raise self.refuse(f"{name} that depends on the images", "a constant")
        return tuple(values[name] for name in names)

    def of(self, x: Any) -> Value:
        """The value of an operand, as the module sees it: flattened if it is ``[B, F]`` there."""
        if not isinstance(x, Activation):
            raise self.refuse(f"the operand {_said(x)}", "an activation of the network")
        assert x.value is not None
        return self.network.flat(x.value) if x.ndim == 2 else x.value

    def along(self, x: Tensor) -> int:
        """Which axis of the Graph's ``[B, C, H, W]`` the last one of ``[B, C, L]`` is. Refuses H and W in one."""
        shape = self.of(x).shape
        if len(shape) != 4 or (shape[2] != 1 and shape[3] != 1):
            raise self.refuse(f"an operation along height and width in one, {tuple(x.shape)}", "maps [B, C, H, W]")
        return 3 if shape[2] == 1 else 2

    def add(self, op: Op, *inputs: Value, shape: tuple[int, ...] | None = None, part: str = "") -> Value:
        """A node of this call; ``part`` names it where it is not the result."""
        shape = tuple(self.result.shape) if shape is None else shape
        return self.network.add(f"{self.label}.{part}" if part else self.label, op, inputs, shape)

    def named(self, value: Value) -> Value:
        """The same value, whose Flatten would be named after this call."""
        return replace(value, flat=self.label)


def _said(x: Any) -> str:
    return f"a constant of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
