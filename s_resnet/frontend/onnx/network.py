"""From the graph of an ONNX file to the steps of a program."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from ...errors import InvalidCheckpoint, SResNetError, UnsupportedModel, message
from ...files import reason
from ..program import WITHOUT
from ..rules import EXPECTED, HINTS
from . import arithmetic, layers, shapes
from .node import EXAMPLE, OnnxNode, Reading, Value, constant
from .tensors import AGAIN, short

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

NODES = 10_000  # of a network; ResNet-152 has some 500
Operator: TypeAlias = Callable[[OnnxNode], Value | tuple[Value, ...]]
OPERATORS: dict[str, Operator] = {
    "Add": partial(arithmetic.elementwise, function=torch.add),
    "AveragePool": layers.avg_pool,
    "BatchNormalization": layers.batch_norm,
    "Cast": arithmetic.cast,
    "CastLike": arithmetic.cast,
    "Clip": layers.clip,
    "Concat": shapes.concatenate,
    "Constant": arithmetic.stored,
    "ConstantOfShape": arithmetic.filled,
    "Conv": layers.convolution,
    "Div": partial(arithmetic.elementwise, function=arithmetic.divide),
    "Dropout": arithmetic.identity,
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
    "Gemm": layers.linear,
    "GlobalAveragePool": layers.global_avg_pool,
    "Identity": arithmetic.identity,
    "LeakyRelu": layers.leaky_relu,
    "MatMul": layers.product,
    "Max": arithmetic.extreme,
    "MaxPool": layers.max_pool,
    "Min": arithmetic.extreme,
    "Mul": partial(arithmetic.elementwise, function=torch.mul),
    "Neg": partial(arithmetic.elementwise, function=torch.neg),
    "Pad": shapes.pad,
    "Range": arithmetic.range_,
    "ReduceMean": shapes.reduce,
    "ReduceSum": shapes.reduce,
    "Relu": layers.relu,
    "Reshape": shapes.reshape,
    "Shape": shapes.shape,
    "Size": shapes.size,
    "Slice": shapes.slice_,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Sub": partial(arithmetic.elementwise, function=torch.sub),
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
    **arithmetic.CONSTANT,
    **dict.fromkeys(
        ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "LRN", "LpNormalization"),
        layers.no_statistics,
    ),
}
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
AT_END = {"Softmax", "LogSoftmax", "Sigmoid"}


@dataclass
class OnnxGraph:
    """The graph of a file, looked up by name.

    Attributes:
        where: the file, for messages.
        nodes: in the order of the file.
        tensors: its constants by name.
        inputs: names of the images, of which there should be one.
        outputs: names of what it computes.
        makers: which node makes a value, by the value's name.
    """

    where: str
    nodes: Sequence[NodeProto]
    tensors: dict[str, TensorProto]
    inputs: list[str]
    outputs: list[str]
    makers: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(where: str, proto: GraphProto) -> OnnxGraph:
        """The graph, after a check that every name has one maker.

        Raises:
            InvalidCheckpoint: a name has several, or there are too many nodes.
        """
        if len(proto.node) > NODES:
            remedy = "Simplify it with onnx-simplifier, or convert the network from Python"
            raise InvalidCheckpoint(message(where, "", f"{len(proto.node)} nodes", f"at most {NODES}", remedy))
        if proto.sparse_initializer:
            name = short(proto.sparse_initializer[0].values.name)
            raise InvalidCheckpoint(message(where, f"tensor {name}", "a sparse tensor", "dense weights", AGAIN))
        tensors = {tensor.name: tensor for tensor in proto.initializer}
        inputs = [given.name for given in proto.input if given.name not in tensors]
        graph = OnnxGraph(where, proto.node, tensors, inputs, [given.name for given in proto.output])
        taken = {*tensors, *inputs}
        double = len(tensors) < len(proto.initializer) or len(set(inputs)) < len(inputs)
        for at, node in enumerate(proto.node):
            for name in filter(None, node.output):
                double |= name in taken
                taken.add(name)
                graph.makers[name] = at
        if double:
            raise InvalidCheckpoint(message(where, "graph", "a name that two values have", "one for each value", AGAIN))
        return graph

    def ordered(self, answer: str) -> list[NodeProto]:
        """The nodes that a value needs, each after those whose results it takes.

        Raises:
            InvalidCheckpoint: they form a cycle.
        """
        needed, todo = set[int](), [answer]
        while todo:
            at = self.makers.get(todo.pop())
            if at is not None and at not in needed:
                needed.add(at)
                todo.extend(self.nodes[at].input)
        waits = {at: {self.makers[name] for name in self.nodes[at].input if name in self.makers} for at in needed}
        readers: dict[int, list[int]] = {}
        for at, before in waits.items():
            for other in before:
                readers.setdefault(other, []).append(at)
        left = {at: len(before) for at, before in waits.items()}
        ready, order = [at for at, count in left.items() if not count], list[int]()
        heapq.heapify(ready)
        while ready:
            order.append(heapq.heappop(ready))
            for at in readers.get(order[-1], ()):
                left[at] -= 1
                if not left[at]:
                    heapq.heappush(ready, at)
        if len(order) < len(needed):
            node = self.nodes[min(needed - set(order))]
            got = "a node that waits for its own result"
            where = f"{self.where}: node {short(node.name or next(iter(node.output), ''))}"
            raise InvalidCheckpoint(message(where, "", got, "a network without cycles", AGAIN))
        return [self.nodes[at] for at in order]

    def consumers(self, name: str) -> Iterable[NodeProto]:
        """The nodes that take a value."""
        return (node for node in self.nodes if name in node.input)


def convert_nodes(graph: OnnxGraph, reading: Reading, answer: str, images: Value, name: str) -> Value:
    """The value of the answer, with the steps that lead to it in ``reading``.

    Args:
        graph: the graph of the file.
        reading: what was read so far.
        answer: the name of the answer.
        images: the images on the example.
        name: what the file calls them.

    Raises:
        InvalidCheckpoint: a value comes from nowhere.
        UnsupportedModel: an operation cannot be converted; the message names its node.
    """
    known = {name: images}
    for proto in graph.ordered(answer):
        for wanted in filter(None, proto.input):
            if wanted in graph.tensors and wanted not in known:
                known[wanted] = constant(reading.tensors.read(graph.tensors[wanted]))
        missing = [wanted for wanted in proto.input if wanted and wanted not in known]
        if missing:
            where = f"{graph.where}: node {short(proto.name or proto.op_type)}"
            got = f"the input {short(missing[0])!r}, which nothing makes"
            raise InvalidCheckpoint(message(where, "", got, "one input of images, and constants", AGAIN))
        operands = tuple(known[wanted] if wanted else None for wanted in proto.input)
        node = OnnxNode(reading, proto, operands)
        found = _converted(node)
        for made, value in zip(proto.output, found, strict=False):
            known[made] = value
        if unknown := [made for made in list(proto.output)[len(found) :] if made]:
            raise node.refuse(f"operator {node.kind} with the output {short(unknown[0])!r}", f"{len(found)} outputs")
    if answer not in known:
        raise InvalidCheckpoint(message(graph.where, f"output {short(answer)}", "nothing", "what a node makes", AGAIN))
    return known[answer]


def _converted(node: OnnxNode) -> tuple[Value, ...]:
    """The results of a node."""
    _check(node)
    operator = OPERATORS.get(node.kind)
    try:
        if operator is None:
            raise _unknown(node)
        found = operator(node)
    except SResNetError:
        raise
    except Exception as error:  # what a file says can be wrong in any way
        got = f"operator {node.kind}: {reason(error)[:300]}"
        raise node.refuse(got, "settings and inputs as ONNX has them", AGAIN) from error
    return found if isinstance(found, tuple) else (found,)


def _check(node: OnnxNode) -> None:
    """Refuse what no operator of a ResNet has."""
    if any(said.HasField("g") or said.graphs for said in node.proto.attribute):
        remedy = "Export it for images of one size, or simplify the file with onnx-simplifier"
        raise node.refuse(f"operator {node.kind}, which has networks of its own", "no branches and loops", remedy)
    if any(said.ref_attr_name for said in node.proto.attribute):
        raise node.refuse("a setting of a function", "settings with their values", AGAIN)
    if node.proto.op_type in QUANTIZED or node.proto.op_type.startswith("QLinear"):
        remedy = (
            'Convert the file from before the quantization; recipe.with_weights("int8") makes an integer network of it'
        )
        raise node.refuse(f"operator {node.kind}, of a quantized network", "floating-point weights", remedy)


def _unknown(node: OnnxNode) -> UnsupportedModel:
    """The error for an operator without a rule."""
    if "::" in node.kind:
        remedy = (
            "Export the network with ONNX's own operators; of a function of the file make nodes with "
            "onnx.inliner.inline_local_functions"
        )
        return node.refuse(expected="an operator of ONNX itself", remedy=remedy)
    expected, remedy = HINTS.get(node.kind.lower(), (EXPECTED, ""))
    if node.kind in AT_END:
        first = short(next(iter(node.proto.input), ""))
        remedy = f"At the end cut it off: onnx.utils.extract_model(FILE, 'logits.onnx', [IMAGES], ['{first}'])"
    return node.refuse(expected=expected, remedy=remedy or WITHOUT)


def example_images(shape: Sequence[int], last: bool) -> Value:
    """Images on the meta device.

    Args:
        shape: ``(C, H, W)``, or ``(C, L)`` of signals.
        last: whether the file has the channels last.
    """
    tensor = torch.empty(EXAMPLE, *shape, device="meta")
    axes = tuple(range(tensor.ndim))
    return Value(tensor, "images", (0, *axes[2:], 1) if last else axes)
