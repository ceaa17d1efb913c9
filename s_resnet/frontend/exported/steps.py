"""From the graph of an exported program to the steps of a ``Program``: operators, arguments and constants.

A value has one name in the whole program and is defined before it is used. Operators without known meaning are refused
only where the answer depends on them.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..program import Earlier, Program, Step
from ..weights.state_dict import check_numbers
from . import aten
from .archive import DTYPES, Malformed, field, only
from .graph import LISTED, ExportedGraph, Node

BATCH = "/batch"  # the name of the number of images; no name of a file has a slash
EVAL = "Call model.eval(), and export the network again"
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
# Where a tensor is kept and how; here all are on the CPU.
PLACES = ("device", "layout", "pin_memory", "non_blocking")
STATISTICS = ("batch_norm", "_native_batch_norm", "native_batch_norm", "cudnn_batch_norm", "dropout", "native_dropout")


def program_of(graph: ExportedGraph, tensors: Mapping[str, Mapping[str, Tensor]]) -> Program:
    """The graph as a program on these tensors, given by kind and name.

    Raises:
        Malformed: a name is not defined, is defined twice, or an argument has another type.
        UnsupportedModel: an operator that the answer depends on is not known, or the program is for training.
    """
    return _Builder(graph, tensors).program()


class _Builder:
    """Steps of a graph with their constants.

    Attributes:
        known: what every name stands for so far: a constant, or the result of a step.
        activations: the names of results that depend on the images.
    """

    def __init__(self, graph: ExportedGraph, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.graph = graph
        signature = graph.signature
        self.known: dict[str, Tensor | Earlier] = {signature.images: Earlier(signature.images)}
        self.activations = {signature.images}
        for name, (kind, key) in signature.tensors.items():
            if key not in tensors[kind]:
                raise Malformed(f"no tensor {key!r:.80} among the {kind}")
            if name in self.known:
                raise Malformed(f"two inputs {name!r:.80}")
            tensor = _single(tensors[kind][key])
            check_numbers(key, tensor, graph.where)
            self.known[name] = tensor
        self.uses: Counter[str] = Counter()
        self.steps: list[Step] = []

    def program(self) -> Program:
        nodes, images = self.needed(), self.graph.signature.images
        if self.graph.batch is not None:
            self.steps.append(Step("batch", "size", aten.OPERATORS[f"{aten.PREFIX}sym_size.int"],
                                   (Earlier(images), 0), result=BATCH))  # fmt: skip
        for node in nodes:
            self.add(node)
        answer = self.known.get(self.graph.answer)
        if not isinstance(answer, Earlier) or self.graph.answer not in self.activations:
            got, expected = f"{self.graph.answer}, which does not depend on the images", "the logits"
            raise self.graph.refuse("output", got, expected, "Export a network")
        return Program(self.steps, images, answer.name, self.graph.images.sizes[1:])

    def needed(self) -> list[Node]:
        """The nodes on which the answer depends, and those that change a tensor; after a check of their operators."""
        wanted, kept = {self.graph.answer}, []
        for node in reversed(self.graph.nodes):
            if node.in_place or not wanted.isdisjoint(node.names):
                kept.append(node)
                wanted.update(_names(list(node.inputs.values())))
        kept.reverse()
        for node in kept:
            self.check(node)
        if self.graph.signature.changed:
            got = f"a program that changes {self.graph.signature.changed[0]}"
            raise self.graph.refuse("output", got, "a program for inference", EVAL)
        self.uses.update(name for node in kept for name in _names(list(node.inputs.values())))
        return kept

    def check(self, node: Node) -> None:
        """Refuse what is for training, and operators that are not known."""
        packet = node.target.removeprefix(aten.PREFIX)
        training = node.inputs.get("training", node.inputs.get("train"))
        if packet.startswith(STATISTICS) and (training == {"as_bool": True} or packet.endswith("no_stats")):
            got = f"{packet.partition('.')[0]} in training mode"
            raise self.graph.refuse(node.label, got, "a program for inference", EVAL)
        if node.target not in aten.OPERATORS:
            got = f"operator {node.target.removeprefix('torch.ops.')[:120]}"
            raise self.graph.refuse(node.label, got, "operators of a ResNet in inference")

    def add(self, node: Node) -> None:
        """The step of a node, and one for each of several results."""
        args, kwargs = self.bound(node)
        if node.in_place and not (args and isinstance(args[0], Earlier) and self.uses_activation(node, first=True)):
            raise self.graph.refuse(node.label, "an operation that changes a weight", "weights that stay", EVAL)
        (single, *more) = node.outputs or (None,)
        kind = node.target.removeprefix("torch.ops.")
        result = single if isinstance(single, str) and not more else f"{node.name}/all"
        self.steps.append(self.joined(Step(node.label, kind, aten.OPERATORS[node.target], args, kwargs, result)))
        uses = self.uses_activation(node)
        parts = single if isinstance(single, tuple) and not more else node.outputs
        for at, name in enumerate(parts if result.endswith("/all") else ()):
            if isinstance(name, str):
                self.steps.append(Step(node.label, kind, operator.getitem, (Earlier(result), at), result=name))
        for name in node.names:
            self.known[name] = Earlier(name)
            if uses:
                self.activations.add(name)

    def joined(self, step: Step) -> Step:
        """A slice of one axis, with the slices before it that are of other axes and used nowhere else."""
        if step.function is not aten.sliced_along or not all(type(part) in (int, type(None)) for part in step.args[1:]):
            return step
        x = step.args[0]
        parts: tuple[Any, ...] = ((*step.args[1:], *(0, None, None, 1)[len(step.args) - 1 :]),)
        last = self.steps[-1] if self.steps else step
        follows = last.function is aten.sliced and Earlier(last.result) == x and self.uses[last.result] == 1
        if follows and parts[0][0] not in [part[0] for part in last.args[1:]]:
            self.steps.pop()
            x, parts = last.args[0], (*last.args[1:], *parts)
        return Step(step.name, step.kind, aten.sliced, (x, *parts), {}, step.result)

    def uses_activation(self, node: Node, first: bool = False) -> bool:
        """Whether an argument, or the first one, depends on the images."""
        values = list(node.inputs.values())
        return not self.activations.isdisjoint(_names(values[:1] if first else values))

    def bound(self, node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a node, by position and by name, as the operator's own schema has them."""
        if node.target.startswith(aten.SIZES):
            return tuple(self.value(node, tree) for tree in node.inputs.values()), {}
        found = aten.overload(node.target.removeprefix(aten.PREFIX))
        left = dict(node.inputs)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        skipped: list[Any] = []  # defaults, needed only where another argument follows
        for argument in found._schema.arguments:
            given = argument.name in left
            value = self.value(node, left.pop(argument.name)) if given else argument.default_value
            if argument.kwarg_only:
                kwargs |= {argument.name: value} if given and argument.name not in PLACES else {}
            elif given:
                args += [*skipped, value]
                skipped = []
            elif argument.has_default_value():
                skipped.append(value)
            else:
                raise Malformed(f"no argument {argument.name} for {node.name!r:.80}")
        if left:
            raise Malformed(f"an argument {next(iter(left))!r:.80} for {node.name!r:.80}")
        return self.free_batch(node, args), kwargs

    def free_batch(self, node: Node, args: list[Any]) -> tuple[Any, ...]:
        """The arguments with the exported number of images replaced by that of the images.

        A reshape that keeps the first axis maps every image alike, so it means the same for any number of them.
        """
        at = 0 if node.target in aten.FILLED else 1
        if self.graph.batch is None or len(args) <= at or not isinstance(args[at], list) or len(args[at]) < 2:
            return tuple(args)
        first = next(iter(_names(list(node.inputs.values())[:1])), "")
        kept = (
            node.target in aten.RESHAPED
            and first in self.activations
            and self.graph.images_in(first) == self.graph.batch
        )
        if args[at][0] == self.graph.batch and (kept or node.target in aten.FILLED | aten.FRESH):
            args[at] = [Earlier(BATCH), *args[at][1:]]
        return tuple(args)

    def value(self, node: Node, tree: Any) -> Any:
        """An argument of a node."""
        kind, value = only(tree)
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor", "as_sym_int"):
            return self.one(kind, value)
        if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints"):
            return [self.one(kind.removesuffix("s"), part) for part in _listed(value)]
        if kind in ("as_int", "as_float", "as_bool", "as_string"):
            return _plain(kind, value)
        if kind in ("as_ints", "as_floats", "as_bools"):
            return [_plain(kind.removesuffix("s"), part) for part in _listed(value)]
        if kind == "as_scalar_type" and value in DTYPES:
            return self.cast(DTYPES[value])
        if kind == "as_memory_format" and value in FORMATS:
            return FORMATS[value]
        if kind in ("as_device", "as_layout"):
            return None
        got = f"an argument of kind {kind.removeprefix('as_')[:40]}"
        raise self.graph.refuse(node.label, got, "tensors and numbers")

    def one(self, kind: str, tree: Any) -> Any:
        """A tensor or size in an argument."""
        if kind == "as_sym_int":
            kind, tree = only(tree)
            return _plain(kind, tree) if kind == "as_int" else self.named(tree)
        if kind == "as_optional_tensor":
            kind, tree = only(tree)
            if kind == "as_none":
                return None
        return self.named(field(tree, "name", str))

    def named(self, name: Any) -> Tensor | Earlier:
        if not isinstance(name, str) or name not in self.known:
            raise Malformed(f"the value {name!r:.80}, which is not defined before it is used")
        return self.known[name]

    def cast(self, dtype: torch.dtype) -> torch.dtype:
        """The type that a cast to ``dtype`` is to: the program's own type is float32 here."""
        own = self.graph.images.dtype
        return torch.float32 if dtype in (own, torch.float64) else dtype


def _single(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is floating point."""
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > LISTED:
        raise Malformed(f"{type(value).__name__} as a list of at most {LISTED}")
    return value


def _plain(kind: str, value: Any) -> Any:
    wanted: Any = {"as_int": int, "as_bool": bool, "as_string": str}.get(kind, (int, float))
    if kind == "as_float" and isinstance(value, str) and value in NUMBERS:
        return NUMBERS[value]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "as_bool"):
        raise Malformed(f"{type(value).__name__} as {kind.removeprefix('as_')}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Malformed("a number of more than 64 bits")
    return float(value) if kind == "as_float" else value


def _names(trees: list[Any]) -> set[str]:
    """The names of values in arguments."""
    found: set[str] = set()
    for tree in trees:
        for kind, value in tree.items() if isinstance(tree, Mapping) else ():
            parts = value if isinstance(value, list) else [value]
            for part in parts:
                part = part.get("as_tensor", part) if isinstance(part, Mapping) else part
                name = part.get("name", part.get("as_name")) if isinstance(part, Mapping) else None
                found |= {name} if isinstance(name, str) and kind != "as_string" else set()
    return found
