"""Lowering: express a spiking network by what other engines have, images, convolutions with bias, and neurons.

In the result a neuron emits plain spikes whatever its threshold and reads the sum of its inputs, and every value is
``[C, H, W]`` (an answer ``[N, 1, 1]``). Nodes are in topological order, a main branch before its shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..data.arguments import as_maps
from ..errors import ConversionError, message
from ..graph.alphabet import MultiThreshold
from ..graph.engine import constants, prepare
from ..graph.fold import folded
from ..graph.forms import GridInput
from ..graph.graph import Graph
from ..graph.neuron import Neuron
from ..graph.ops import (
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Op,
    Pad,
    Scale,
    Slice,
)
from ..graph.readout import Readout, SpikingMaxPool2d
from .copies import split_copies
from .fold import Shape, affine, as_convolution, is_identity, shape_after, ungrouped

# Operations without a node of their own: they are folded into a convolution next to them.
_FOLDED = (Scale, Slice, Pad, AvgPool2d, AdaptiveAvgPool2d, Flatten)


@dataclass(frozen=True)
class Lowered:
    """The lowered network.

    Attributes:
        nodes: Input, Conv2d (with bias, groups 1, nothing left to multiply in) and Neuron only; inputs are summed.
        shapes: the shape ``(C, H, W)`` of each node's output.
        readout: ``"current"``: the answer is the mean of the last node's output over the steps, in the units of the
            source's logits. ``"spikes"``: the last node is a neuron layer, and the answer is its spike counts.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    readout: str


@dataclass(frozen=True)
class _Value:
    """The sum of the nodes ``sources`` (each of ``shape``), with ``chain`` still to be applied."""

    sources: tuple[str, ...]
    shape: Shape
    chain: tuple[Op, ...] = ()


def lower(snn: Graph, input_shape: Shape, bare_shortcuts: bool = False, split_maxpool: bool = False) -> Lowered:
    """Express a network by images, convolutions and neurons, with the same spikes.

    Convolutions have the weights of spiking runs (:meth:`s_resnet.Graph.spiking`), with batch normalization folded. A
    constant correction becomes part of a bias. The readers of an addition read its operands instead (convolutions of
    sums of currents, too). A shortcut's gain, zero padding and subsampling become one strided 1x1 convolution (none if
    the gain is 1), average pools a convolution, and pool, flatten, classifier and the readout's scale one convolution
    whose kernel is the feature map. Neurons that stand for several are written one by one
    (:func:`s_resnet.export.split_copies`).

    Args:
        snn: a spiking network.
        input_shape: ``(C, H, W)`` of one image.
        bare_shortcuts: a neuron that reads an identity shortcut of gain g gets the threshold ``1 / g`` instead of 1,
            and its other synapses and its bias are divided by g, so that the shortcut needs no synapse. Spikes stay the
            same.
        split_maxpool: start after a max-pool whose value is the same at every step, with that value
            (:func:`host_input`).

    Raises:
        ConversionError: something cannot be expressed this way; the message names the node.
    """
    if not snn.neurons:
        got, remedy = "a network without neurons", "Call convert first"
        raise ConversionError(message("export", "", got, "a converted one", remedy))
    if snn.is_integer:
        expected = "float32 weights, as the format has no integer arithmetic"
        remedy = 'Convert with recipe.with_weights("float32")'
        raise ConversionError(message("export", "", "an integer network", expected, remedy))
    if split_maxpool and not any(_splits(snn, node) for node in snn.nodes):
        raise _no_pool()
    snn = split_copies(folded(snn)).spiking()
    work = _Lowering(snn, input_shape, bare_shortcuts, split_maxpool)
    for node in snn.nodes:
        work.visit(node)
    return work.result()


def host_input(snn: Graph, images: Tensor) -> Tensor:
    """The input for a network that was split at its max-pool: the pooled currents of images ``[B, C, H, W]``.

    Raises:
        ConversionError: the network has no max-pool whose value is the same at every step.
    """
    pools = [node.name for node in snn.nodes if _splits(snn, node)]
    if not pools:
        raise _no_pool()
    images = as_maps(images)
    next(iter(snn.activations(images)))  # checks the images
    with torch.no_grad():
        return constants(prepare(snn, "exact"), images)[pools[-1]]


def _no_pool() -> ConversionError:
    got, expected = "no max-pool over currents that are the same at every step", "one in the stem to split at"
    return ConversionError(message("export", "", got, expected, "Export without split_maxpool"))


def _splits(snn: Graph, node: Node) -> bool:
    return isinstance(node.op, MaxPool2d) and node.name in snn.static


@dataclass
class _Lowering:
    snn: Graph
    input_shape: Shape
    bare: bool
    split: bool
    nodes: dict[str, Node] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, _Value] = field(default_factory=dict)
    readout: str = ""

    def visit(self, node: Node) -> None:
        op = node.op
        if isinstance(op, Input | GridInput):
            self.emit(node.name, Input(), (), self.input_shape)
        elif isinstance(op, Conv2d):
            self.convolve(node.name, ungrouped(op), self.sources(node.inputs[0]))
        elif isinstance(op, Linear):
            self.classify(node, op)
        elif isinstance(op, _FOLDED):
            value = self.values[node.inputs[0]]
            self.values[node.name] = replace(value, chain=(*value.chain, op))
        elif isinstance(op, Add):
            sources = self.together(node, [self.sources(name) for name in node.inputs])
            self.values[node.name] = _Value(sources, self.shapes[sources[0]])
        elif isinstance(op, Neuron):
            self.fire(node, op)
        elif isinstance(op, Readout):
            self.answer(node, op)
        elif self.split and _splits(self.snn, node):
            (before,) = self.sources(node.inputs[0])
            shape = tuple(op.run(torch.zeros(1, *self.shapes[before])).shape[1:])
            self.nodes.clear()
            self.emit(node.name, Input(), (), shape)
        else:
            raise _refused(node)

    def emit(self, name: str, op: Op, inputs: tuple[str, ...], shape: Shape) -> None:
        lost = [before for before in inputs if before not in self.nodes]
        if lost:
            got = f"{lost[0]!r}, which stays at the host, besides the pooled input"
            raise ConversionError(message(name, "", got, "the pool alone", "Export without the split"))
        self.nodes[name] = Node(name, op, inputs)
        self.shapes[name] = shape
        self.values[name] = _Value((name,), shape)

    def convolve(self, name: str, op: Conv2d, inputs: tuple[str, ...]) -> None:
        bias = torch.zeros_like(op.weight[:, 0, 0, 0]) if op.bias is None else op.bias
        op = replace(op, bias=bias)
        self.emit(name, op, inputs, shape_after(op, self.shapes[inputs[0]]))

    def sources(self, name: str) -> tuple[str, ...]:
        """The nodes whose sum is the value ``name``; operations to fold become a convolution of that name."""
        value = self.values[name]
        chain = tuple(op for op in value.chain if not is_identity(op))
        if not chain:
            return value.sources
        op = as_convolution(chain, value.shape)
        if op is None:
            got = f"{' and '.join(type(op).__name__ for op in chain)}, which is not a convolution"
            expected = "subsampling from the first pixel, channels of zeros, or an average over whole windows"
            raise ConversionError(message(name, "", got, expected, "Use one of these in the model"))
        self.convolve(name, op, value.sources)
        return (name,)

    def classify(self, node: Node, op: Linear) -> None:
        """Turn a linear layer over a whole feature map, and the pools before it, into a convolution of one position."""
        value = self.values[node.inputs[0]]
        weight, bias = affine((*value.chain, op), value.shape)
        self.convolve(node.name, Conv2d(weight, bias), value.sources)

    def fire(self, node: Node, op: Neuron) -> None:
        _check_neuron(node, op)
        factor = torch.ones(())  # on threshold and currents
        bare = next((name for name in node.inputs if self.gain(name) is not None), None) if self.bare else None
        branches = [self.values[name].sources if name == bare else self.sources(name) for name in node.inputs]
        own = [n for n, names in zip(node.inputs, branches, strict=True) if n != bare and self.private(node, n, names)]
        if bare is not None and len(own) == len(node.inputs) - 1:
            gain = self.gain(bare)
            assert gain is not None
            factor = 1 / gain
            for name in own:
                self.scale(name, factor)
        elif bare is not None:
            branches = [self.sources(name) for name in node.inputs]
        inputs = self.together(node, branches)
        shape = self.shapes[inputs[0]]
        if op.correction is not None:
            inputs = self.corrected(node, inputs, own, op.correction * factor, shape)
        plain = Neuron(op.threshold * factor, op.initial_potential, op.reset, op.decay)
        self.emit(node.name, plain, inputs, shape)

    def gain(self, name: str) -> Tensor | None:
        """The gain of an identity shortcut that is positive and not 1, else None."""
        value = self.values[name]
        scales = [op.weight for op in value.chain if isinstance(op, Scale)]
        if not scales or len(scales) < len(value.chain):
            return None
        gain = torch.ones(())
        for weight in scales:
            gain = gain * weight
        return gain if bool((gain > 0).all()) and bool((gain != 1).any()) else None

    def private(self, node: Node, name: str, names: tuple[str, ...]) -> bool:
        """Whether the branch ``name`` of a neuron is a convolution of that name that only the neuron reads."""
        alone = names == (name,) and self.snn.users[name] == (node.name,) and node.inputs.count(name) == 1
        return alone and isinstance(self.nodes[name].op, Conv2d)

    def scale(self, name: str, factor: Tensor) -> None:
        node = self.nodes[name]
        op = node.op
        assert isinstance(op, Conv2d) and op.bias is not None
        weight = op.weight * (factor.view(-1, 1, 1, 1) if factor.ndim else factor)
        self.nodes[name] = replace(node, op=replace(op, weight=weight, bias=op.bias * factor))

    def corrected(
        self, node: Node, inputs: tuple[str, ...], own: list[str], correction: Tensor, shape: Shape
    ) -> tuple[str, ...]:
        """The inputs of a neuron with its correction in the bias of one of them."""
        correction = correction.expand(shape[0])
        if own:
            before = self.nodes[own[0]]
            assert isinstance(before.op, Conv2d) and before.op.bias is not None
            self.nodes[own[0]] = replace(before, op=replace(before.op, bias=before.op.bias + correction))
            return inputs
        name = f"{node.name}.correction"
        eye = torch.eye(shape[0], dtype=correction.dtype).view(shape[0], shape[0], 1, 1)
        self.convolve(name, Conv2d(eye, correction), inputs)
        return (name,)

    def together(self, node: Node, branches: list[tuple[str, ...]]) -> tuple[str, ...]:
        """All nodes of several branches; none may occur twice, as a second edge between two nodes would be lost."""
        names = tuple(name for branch in branches for name in branch)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            got, expected = f"{twice!r} twice in one sum", "it once, as the format has one edge between two nodes"
            raise ConversionError(message(node.name, "", got, expected, "Multiply it by two in the model"))
        return names

    def answer(self, node: Node, op: Readout) -> None:
        """Move the readout's scale and correction into the classifier; a readout of spikes becomes a neuron layer."""
        if op.weights is not None:
            expected = "all steps to count alike, as the format does not know the step"
            remedy = 'Convert with recipe="calibrated-constant" or recipe="s-resnet"'
            raise ConversionError(message(node.name, "", "a weight for every step", expected, remedy))
        self.readout = op.mode
        (last,) = node.inputs
        names = self.sources(last) if isinstance(self.snn[last].op, Conv2d | Linear) else ()
        if not self.private(node, last, names):
            got = f"the answer of {type(self.snn[last].op).__name__}"
            expected = "a linear layer or a convolution of its own"
            raise ConversionError(message(node.name, "", got, expected, "End the model in a linear layer"))
        if op.mode == "spikes":
            plain = Neuron(torch.ones(()), op.initial_potential)
            self.emit(node.name, plain, names, self.shapes[last])
            return
        self.scale(last, op.scale)
        if op.correction is not None:
            before = self.nodes[last]
            assert isinstance(before.op, Conv2d) and before.op.bias is not None
            self.nodes[last] = replace(before, op=replace(before.op, bias=before.op.bias + op.correction))

    def result(self) -> Lowered:
        order = _ordered(self.nodes)
        return Lowered(tuple(order), self.shapes, self.readout)


def _ordered(nodes: Mapping[str, Node]) -> list[Node]:
    """Topological order, a main branch before its shortcut, also among the inputs of a node.

    Sorted by the longest path to the output, then by the longest path from the input; that of a main branch is longer.
    """
    depth: dict[str, int] = {}
    height = dict.fromkeys(nodes, 0)
    for node in nodes.values():
        depth[node.name] = max((depth[name] + 1 for name in node.inputs), default=0)
    for node in reversed([*nodes.values()]):
        for name in node.inputs:
            height[name] = max(height[name], height[node.name] + 1)
    order = sorted(nodes.values(), key=lambda node: (-height[node.name], -depth[node.name]))
    return [replace(node, inputs=tuple(sorted(node.inputs, key=lambda name: -depth[name]))) for node in order]


def _check_neuron(node: Node, op: Neuron) -> None:
    """Check that a neuron is integrate-and-fire with spikes of 1, or leaky with a reset to zero.

    Raises:
        ConversionError: it is neither.
    """
    remedy = 'Convert with recipe="calibrated-constant" or recipe="s-resnet"'
    wrong = ""
    if isinstance(op.spikes, MultiThreshold):
        wrong = f"{op.max_emission} firing levels"
        remedy = "Save it as an artifact, or train with one threshold (ms_resnet)"
    elif not op.emits_unit_spikes:
        wrong, remedy = f"threshold {float(op.threshold.max()):g}", "Run passes.normalize on the network"
    elif op.waits:
        wrong = f"schedule {op.schedule!r}"
    elif not op.binary:
        wrong = f"{op.alphabet} spikes"
    elif op.decay != 1.0 and op.reset != "zero":
        wrong, remedy = f"decay {op.decay:g} and reset by subtraction", "Convert without decay"
    elif op.correction is not None and op.correction.ndim > 1:
        wrong = "a correction for every step"
    if wrong:
        expected = (
            "integrate-and-fire with threshold 1, or leaky with a reset to zero, at most one spike of 1 per step and "
            "the same currents at every step, as the format has nothing else"
        )
        raise ConversionError(message(node.name, "", f"a neuron with {wrong}", expected, remedy))


def _refused(node: Node) -> ConversionError:
    if isinstance(node.op, MaxPool2d | SpikingMaxPool2d):
        expected = "convolutions, average pools and neurons, as the format has no max-pool"
        remedy = (
            "Export with split_maxpool=True if it is in the stem (the part up to it stays at the host, exactly), or "
            "train the model with average pooling"
        )
        return ConversionError(message(node.name, "", "a max-pool", expected, remedy))
    expected = "convolutions, linear layers, average pools, shortcuts and neurons"
    remedy = "Convert the model with a recipe first"
    return ConversionError(message(node.name, "", type(node.op).__name__, expected, remedy))
