"""The graph of an exported program, read from its JSON: what goes in, what comes out, and its operations in order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as by_default
from typing import Any

from ...errors import UnsupportedModel, message
from ..program import WITHOUT
from ..program_limits import CHANNELS, SIDE, logits_among
from . import aten
from .archive import Malformed, Shape, field, only, whole

NODES = 20_000
LISTED = 4096  # numbers or tensors in one argument
DEEPEST = 4  # graphs within graphs
NAME = re.compile(r"[A-Za-z_]\w{0,199}", re.ASCII)
PATH = re.compile(r"[\w.\-]{1,300}")
LAYERS = ("torch.nn.modules.", "torch.nn.utils.parametrize.Parametrized")
GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"


@dataclass(frozen=True)
class Node:
    """An operation of the file.

    Attributes:
        name: the name of its first result.
        target: the operator.
        label: what trace would call the module or function.
        inputs: its arguments by name, as in the file.
        outputs: the names of its results; several in a list are those of a list.
    """

    name: str
    target: str
    label: str
    inputs: dict[str, Any]
    outputs: tuple[str | tuple[str, ...] | None, ...]

    @property
    def names(self) -> Iterator[str]:
        """Every name that it defines."""
        for output in self.outputs:
            yield from (output,) if isinstance(output, str) else output or ()

    @property
    def in_place(self) -> bool:
        """Whether it changes its first argument."""
        packet = self.target.removeprefix(aten.PREFIX).partition(".")[0]
        return packet.endswith("_") and packet != "detach_"


@dataclass
class Signature:
    """What goes into a program and comes out.

    Attributes:
        images: the name of the images.
        tensors: where every other input comes from: its kind (``"weights"`` or ``"constants"``) and name there.
        outputs: the names of the results.
        changed: the names of weights that running it changes.
    """

    images: str = ""
    tensors: dict[str, tuple[str, str]] = by_default(default_factory=dict)
    outputs: list[str] = by_default(default_factory=list)
    changed: list[str] = by_default(default_factory=list)


class ExportedGraph:
    """The graph of an exported program.

    Args:
        module: the part ``graph_module`` of the file's JSON.
        where: the file's name, for messages.

    Raises:
        Malformed: it is not as torch writes it.
        UnsupportedModel: it takes or returns something else than images and logits.
    """

    def __init__(self, module: Any, where: str) -> None:
        self.where = where
        graph = field(module, "graph", dict)
        self.values: dict[str, Any] = field(graph, "tensor_values", dict)
        self.signature = _signature(field(module, "signature", dict), where)
        self.answer = self._answer(module)
        shape = Shape.of(field(self.values, self.signature.images, dict))
        fits = len(shape.sizes) in (3, 4) and shape.sizes[1] <= CHANNELS and max(shape.sizes[2:]) <= SIDE
        if not fits or 0 in shape.sizes or not shape.dtype.is_floating_point:
            got = f"a program for {shape.dtype} {list(shape.sizes)}"
            remedy = "Export it for a batch of images"
            raise self.refuse(self.signature.images, got, "floating-point images [B, C, H, W]", remedy)
        self.images = shape
        self.batch = self.images_in(self.signature.images)
        inputs = {self.signature.images, *self.signature.tensors}
        self.nodes = list(_nodes(field(graph, "nodes", list), inputs, self.values, 0))
        if len(self.nodes) > NODES:
            raise Malformed(f"{len(self.nodes)} operations")

    def images_in(self, name: str) -> int | None:
        """The size of a value's first axis; None where it is free or not said."""
        sizes = field(self.values[name], "sizes", list) if name in self.values else []
        return whole(sizes[0]) if sizes and "as_int" in sizes[0] else None

    def refuse(self, node: str, got: str, expected: str, remedy: str = WITHOUT) -> UnsupportedModel:
        """The error for a node that cannot be converted."""
        return UnsupportedModel(message(f"{self.where}: node {node}", "cannot be converted", got, expected, remedy))

    def _answer(self, module: Any) -> str:
        """The name of the logits."""
        outputs = self.signature.outputs
        at = _position_of_logits(module) if len(outputs) > 1 else None
        if at is not None and at < len(outputs):
            return outputs[at]
        axes = [len(field(self.values[name], "sizes", list)) if name in self.values else 0 for name in outputs]
        found = logits_among(list(zip(outputs, axes, strict=True)))
        if found is not None:
            return found
        got = f"{len(outputs)} outputs: {', '.join(outputs[:5])}" if outputs else "no output that is a tensor"
        remedy = "Export a module that returns the logits alone"
        raise self.refuse("output", got, "one [B, N], or a dict with the entry logits", remedy)


def _signature(tree: Any, where: str) -> Signature:
    found, images = Signature(), []
    for spec in field(tree, "input_specs", list):
        kind, entry = only(spec)
        if kind == "user_input":
            shape, value = only(field(entry, "arg", dict))
            images += [field(value, "name", str)] if shape == "as_tensor" else []
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = field(field(entry, "arg", dict), "name", str)
            if name in found.tensors:
                raise Malformed(f"two inputs {name!r:.80}")
            kept = kind == "parameter" or (kind == "buffer" and field(entry, "persistent", bool))
            found.tensors[name] = ("weights" if kept else "constants", field(entry, f"{kind}_name", str))
    if len(images) != 1:
        got, expected = f"{len(images)} inputs: {', '.join(images[:5])}", "one batch of images"
        remedy = "Export a module that takes the images alone"
        raise UnsupportedModel(message(f"{where}: inputs", "cannot be converted", got, expected, remedy))
    found.images = images[0]
    for spec in field(tree, "output_specs", list):
        kind, entry = only(spec)
        if kind == "user_output":
            shape, value = only(field(entry, "arg", dict))
            found.outputs += [field(value, "name", str)] if shape == "as_tensor" else []
        elif kind in ("buffer_mutation", "parameter_mutation"):
            found.changed.append(field(entry, kind.replace("mutation", "name"), str))
    return found


def _position_of_logits(module: Any) -> int | None:
    """Which of the outputs is the entry ``logits`` of a dict; None where the result is no such dict."""
    try:
        (outermost, *_) = field(module, "module_call_graph", list)
        text = field(field(outermost, "signature", dict), "out_spec", str)
        _, spec = json.loads(text) if len(text) < 2**16 else (None, None)
        names = json.loads(field(spec, "context", str))
        leaves = [field(part, "children_spec", list) == [] for part in field(spec, "children_spec", list)]
        return names.index("logits") if all(leaves) and len(names) == len(leaves) else None
    except (Malformed, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _nodes(trees: list[Any], known: set[str], values: dict[str, Any], depth: int) -> Iterator[Node]:
    """The nodes in order; those of a graph that only switches gradients off are among them."""
    if depth > DEEPEST:
        raise Malformed(f"graphs {depth} deep")
    for tree in trees:
        target, inputs = field(tree, "target", str), field(tree, "inputs", list)
        outputs = tuple(_output(part) for part in field(tree, "outputs", list))
        if target == GRAD:
            yield from _within(inputs, outputs, known, values, depth)
            continue
        # Arguments of Python's operators have no names.
        arguments = {field(part, "name", str) or str(at): field(part, "arg", dict) for at, part in enumerate(inputs)}
        if len(arguments) != len(inputs):
            raise Malformed(f"two arguments of one name for {target!r:.80}")
        name = next((name for name in Node("", "", "", {}, outputs).names), "")
        node = Node(name, target, _label(tree, name, target), arguments, outputs)
        for name in node.names:
            if name in known or not NAME.fullmatch(name):
                raise Malformed(f"a value {name!r:.80}, which there is already or is no name")
            known.add(name)
        yield node


def _within(
    inputs: list[Any], outputs: tuple[Any, ...], known: set[str], values: dict[str, Any], depth: int
) -> Iterator[Node]:
    """The nodes of an inner graph. Its inputs have the names that they have outside; its outputs get theirs."""
    if len(inputs) < 2:
        raise Malformed("no graph in a graph")
    inner = field(field(field(inputs[1], "arg", dict), "as_graph", dict), "graph", dict)
    given = [_output(field(part, "arg", dict)) for part in inputs[2:]]
    inside = [_output(part) for part in field(inner, "inputs", list)]
    if given != inside:
        raise Malformed("a graph whose inputs have other names inside")
    values |= field(inner, "tensor_values", dict)
    yield from _nodes(field(inner, "nodes", list), known, values, depth + 1)
    results = [_output(part) for part in field(inner, "outputs", list)]
    names = outputs[0] if len(outputs) == 1 and isinstance(outputs[0], tuple) else outputs
    if len(names) != len(results):
        raise Malformed("a graph with other results inside")
    for name, result in zip(names, results, strict=True):
        if not isinstance(name, str) or not isinstance(result, str) or name in known or not NAME.fullmatch(name):
            raise Malformed("a graph that returns something else than tensors")
        known.add(name)
        yield Node(name, f"{aten.PREFIX}alias.default", name, {"self": {"as_tensor": {"name": result}}}, (name,))


def _output(tree: Any) -> str | tuple[str, ...] | None:
    kind, value = only(tree)
    if kind == "as_tensor":
        return field(value, "name", str)
    if kind == "as_sym_int":
        return field(value, "as_name", str)
    if kind == "as_tensors" and isinstance(value, list) and len(value) <= LISTED:
        return tuple(field(part, "name", str) for part in value)
    return None


def _label(tree: Any, name: str, target: str) -> str:
    """What ``trace`` would call it in the module: its path, and unless that is a layer the name of the function."""
    metadata = tree.get("metadata")
    said = metadata if isinstance(metadata, Mapping) else {}
    stack, function = said.get("nn_module_stack"), said.get("torch_fn")
    if not isinstance(stack, str) or stack.count(",") < 2:
        return name
    _, path, kind = stack.rpartition(";")[2].split(",", 2)
    if (path and not PATH.fullmatch(path)) or path.startswith("_empty_nn_module_stack"):
        return name
    if path and kind.startswith(LAYERS) and not kind.startswith("torch.nn.modules.container."):
        return path
    packet = target.removeprefix(aten.PREFIX).partition(".")[0].strip("_")
    called = function.rpartition(".")[2].strip("_") if isinstance(function, str) else packet
    if packet in ("slice", "select", "index"):
        called = "getitem"
    called = called if PATH.fullmatch(called) else packet
    return f"{path}.{called}" if path else called
