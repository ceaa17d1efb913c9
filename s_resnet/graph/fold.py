"""BatchNorm and constants per channel become part of the synapse before them, or a synapse of their own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConversionError, message
from .graph import Graph
from .ops import POOLS, Add, Affine, BatchNorm2d, Conv2d, Flatten, Input, Linear, Node, Op, Scale

WIDEST = 4096  # features that may get a matrix of their own


def folded(graph: Graph) -> Graph:
    """:func:`s_resnet.conversion.passes.fold_batchnorm`, which needs no calibration."""
    work = _Folding(graph)
    for node in graph.nodes:
        work.visit(node)
    if not any(isinstance(node.op, BatchNorm2d | Affine) for node in graph.nodes):
        return graph
    return replace(graph, nodes=tuple(work.found.values()))


class _Folding:
    """The nodes so far; ``renamed`` says which node has the value of a removed one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: dict[str, Node] = {}
        self.renamed: dict[str, str] = {}
        self.ahead: dict[str, tuple[Tensor, Tensor]] = {}  # maps that linear layers will take up

    def visit(self, node: Node) -> None:
        maps = [self.ahead[name] for name in node.inputs if name in self.ahead]
        node = replace(node, inputs=tuple(self.renamed.get(name, name) for name in node.inputs))
        if not isinstance(node.op, BatchNorm2d | Affine):
            self.found[node.name] = replace(node, op=_after(node.op, *maps[0])) if maps else node
            return
        factor, shift = _affine(node.op)
        (given,) = self.graph[node.name].inputs
        if self.alone(given, node.name) and self.into(node.inputs[0], factor, shift):
            self.renamed[node.name] = node.inputs[0]
        elif self.is_flat(node.inputs[0]) and self.only_linear(node.name):
            self.renamed[node.name] = node.inputs[0]
            self.ahead[node.name] = factor, shift
        else:
            self.found[node.name] = replace(node, op=self.synapse(node, factor, shift))

    def alone(self, name: str, reader: str) -> bool:
        return self.graph.users[name] == (reader,)

    def only_linear(self, name: str) -> bool:
        """Whether only linear layers read a value, and at least one."""
        users = self.graph.users[name]
        return bool(users) and all(isinstance(self.graph[user].op, Linear) for user in users)

    def into(self, name: str, factor: Tensor, shift: Tensor) -> bool:
        """Fold the map into the node if nothing else reads it; returns whether this was possible."""
        node = self.found[name]
        if isinstance(node.op, Conv2d | Linear):
            self.found[name] = replace(node, op=_fold(node.op, factor, shift))
            return True
        return isinstance(node.op, Add) and self.into_sum(node, factor, shift)

    def into_sum(self, node: Node, factor: Tensor, shift: Tensor) -> bool:
        """Scale the summands; the shift needs a convolution or linear layer among them."""
        own = [n for n in self.graph[node.name].inputs if self.alone(n, node.name)]
        layers = [n for n in (self.renamed.get(n, n) for n in own) if isinstance(self.found[n].op, Conv2d | Linear)]
        if not layers and bool((shift != 0).any()):
            return False
        del self.found[node.name]  # it is added again after its new inputs
        inputs = []
        for name in node.inputs:
            if name in layers:
                op = _fold(self.found[name].op, factor, shift if name == layers[0] else torch.zeros_like(shift))
                self.found[name] = replace(self.found[name], op=op)
                inputs.append(name)
                continue
            label = self.fresh(f"{node.name}.scale")
            self.found[label] = Node(label, Scale(_one(factor)), (name,))
            inputs.append(label)
        self.found[node.name] = replace(node, inputs=tuple(inputs))
        return True

    def fresh(self, label: str) -> str:
        """The label, with a number appended if a node has that name."""
        name, count = label, 0
        while name in self.found or name in self.graph.users:
            count += 1
            name = f"{label}_{count}"
        return name

    def synapse(self, node: Node, factor: Tensor, shift: Tensor) -> Op:
        """A layer that does nothing but this map."""
        if not bool((shift != 0).any()):
            return Scale(_one(factor))
        if not self.is_flat(node.inputs[0]):
            return Conv2d(factor.view(-1, 1, 1, 1), shift, groups=len(factor))
        if len(factor) > WIDEST:
            got, remedy = f"a scale for each of {len(factor)} features", "Put it after a convolution or linear layer"
            expected = f"at most {WIDEST} that no layer before takes up"
            raise ConversionError(message(node.name, "", got, expected, remedy))
        return Linear(torch.diag(factor), shift)

    def is_flat(self, name: str) -> bool:
        """Whether a value is ``[B, F]``."""
        op = self.found[name].op
        if isinstance(op, Flatten | Linear):
            return True
        return not isinstance(op, (Input, Conv2d, *POOLS)) and self.is_flat(self.found[name].inputs[0])


def _affine(op: BatchNorm2d | Affine) -> tuple[Tensor, Tensor]:
    """Factor and shift per channel."""
    if isinstance(op, Affine):
        return op.weight, op.bias
    factor = op.weight / torch.sqrt(op.var + op.eps)
    return factor, op.bias - op.mean * factor


def _one(factor: Tensor) -> Tensor:
    """One number if all channels have the same."""
    return factor[0] if bool((factor == factor[0]).all()) else factor


def _fold(op: Op, factor: Tensor, shift: Tensor) -> Conv2d | Linear:
    """The layer with the map after it folded in."""
    assert isinstance(op, Conv2d | Linear)
    weight = op.weight * factor.view(-1, *(1,) * (op.weight.ndim - 1))
    return replace(op, weight=weight, bias=shift if op.bias is None else op.bias * factor + shift)


def _after(op: Op, factor: Tensor, shift: Tensor) -> Linear:
    """The linear layer with the map before it folded in."""
    assert isinstance(op, Linear)
    bias = op.weight @ shift if op.bias is None else op.bias + op.weight @ shift
    return replace(op, weight=op.weight * factor, bias=bias)
