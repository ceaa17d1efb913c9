"""Lowering: a spiking network as images, convolutions with bias and neurons alone, which is what other engines know.

In the result a neuron emits plain spikes whatever its threshold, reads the sum of its inputs, and every value is
``[C, H, W]`` (an answer ``[N, 1, 1]``). Nodes are in topological order, a main branch before its shortcut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import ConversionError
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
from .fold import Shape, affine, as_convolution, is_identity, shape_after, ungrouped

# What has no node of its own: it is folded into one convolution with what it is next to.
_FOLDED = (Scale, Slice, Pad, AvgPool2d, AdaptiveAvgPool2d, Flatten)


@dataclass(frozen=True)
class Lowered:
    """The lowered network.

    nodes: Input, Conv2d (with bias, groups 1, nothing left to multiply in) and Neuron only; inputs are summed.
    shapes: of each node's output, ``(C, H, W)``.
    readout: ``"current"``: the mean of the last node's output over the steps is the answer, in the units of the
        source's logits. ``"spikes"``: the last node is a neuron layer, and its spike counts are.
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
    """The same spikes from images, convolutions and neurons alone.

    Convolutions are taken as spiking runs use them (:meth:`s_resnet.Graph.spiking`), batch normalization is
    folded, a constant correction goes into a bias, an addition into all that read it, which read its operands instead
    (so do convolutions of sums of currents), a shortcut's gain, zero padding and
    subsampling into one strided 1x1 convolution (none where the gain is 1), average pools into a convolution, and pool,
    flatten, classifier and the readout's scale into one whose kernel is the feature map.

    bare_shortcuts: a neuron that reads an identity shortcut of gain g gets the threshold ``1 / g`` in place of 1 and
    its other synapses and bias are divided by g, so that the shortcut needs no synapse. Spikes stay the same.
    split_maxpool: begin behind a max-pool whose value is the same at every step, with that value (:func:`host_input`).

    Raises ConversionError, by the node's name, for what cannot be said this way.
    """
    if not snn.neurons:
        raise ConversionError("export: got a network without neurons; expected a converted one. Call convert first.")
    if snn.is_integer:
        raise ConversionError(
            "export: got an integer network; expected float32 weights, as the format has no integer arithmetic. "
            'Convert with recipe.with_weights("float32").'
        )
    if split_maxpool and not any(_splits(snn, node) for node in snn.nodes):
        raise _no_pool()
    snn = folded(snn).spiking()
    work = _Lowering(snn, input_shape, bare_shortcuts, split_maxpool)
    for node in snn.nodes:
        work.visit(node)
    return work.result()


def host_input(snn: Graph, images: Tensor) -> Tensor:
    """What a network that was split at its max-pool takes for ``images`` ``[B, C, H, W]``: the pooled currents.

    Raises ConversionError for a network without a max-pool whose value is the same at every step.
    """
    pools = [node.name for node in snn.nodes if _splits(snn, node)]
    if not pools:
        raise _no_pool()
    next(iter(snn.activations(images)))  # says what is wrong with the images
    with torch.no_grad():
        return constants(prepare(snn, "exact"), images)[pools[-1]]


def _no_pool() -> ConversionError:
    return ConversionError(
        "export: got no max-pool over currents that are the same at every step; expected one in the stem to split at. "
        "Export without split_maxpool."
    )


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
            raise ConversionError(
                f"{name}: got {lost[0]!r}, which stays at the host, besides the pooled input; expected the pool alone. "
                "Export without the split."
            )
        self.nodes[name] = Node(name, op, inputs)
        self.shapes[name] = shape
        self.values[name] = _Value((name,), shape)

    def convolve(self, name: str, op: Conv2d, inputs: tuple[str, ...]) -> None:
        bias = torch.zeros_like(op.weight[:, 0, 0, 0]) if op.bias is None else op.bias
        op = replace(op, bias=bias)
        self.emit(name, op, inputs, shape_after(op, self.shapes[inputs[0]]))

    def sources(self, name: str) -> tuple[str, ...]:
        """The nodes whose sum is the value ``name``; what is to be folded becomes a convolution of that name."""
        value = self.values[name]
        chain = tuple(op for op in value.chain if not is_identity(op))
        if not chain:
            return value.sources
        op = as_convolution(chain, value.shape)
        if op is None:
            raise ConversionError(
                f"{name}: got {' and '.join(type(op).__name__ for op in chain)}, which is no convolution; expected "
                "subsampling from the first pixel, channels of zeros, or an average over whole windows. "
                "Change the model there."
            )
        self.convolve(name, op, value.sources)
        return (name,)

    def classify(self, node: Node, op: Linear) -> None:
        """A linear layer over a whole feature map, with the pools before it, is a convolution of one position."""
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
        """Whether the branch ``name`` of a neuron is a convolution of that name, and the neuron alone reads it."""
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
        """All nodes of several branches; a second edge between two nodes would be lost, so there may be none."""
        names = tuple(name for branch in branches for name in branch)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConversionError(
                f"{node.name}: got {twice!r} twice in one sum; expected it once, as the format has one edge between "
                "two nodes. Multiply it by two in the model."
            )
        return names

    def answer(self, node: Node, op: Readout) -> None:
        """The readout's scale and correction go into the classifier; its spikes become a neuron layer."""
        if op.weights is not None:
            raise ConversionError(
                f"{node.name}: got a weight for every step; expected all steps to count alike, as the format does not "
                'know the step. Convert with recipe="calibrated-streaming" or recipe="s-resnet".'
            )
        self.readout = op.mode
        (last,) = node.inputs
        names = self.sources(last) if isinstance(self.snn[last].op, Conv2d | Linear) else ()
        if not self.private(node, last, names):
            raise ConversionError(
                f"{node.name}: got the answer of {type(self.snn[last].op).__name__}; expected a linear layer or a "
                "convolution of its own. End the model in one."
            )
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

    Sorted by the longest way to the output, then by the longest way from the input: a main branch is the longer one.
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
    """ConversionError for a neuron that is not integrate-and-fire of spikes 1, or leaky with a reset to zero."""
    again = 'Convert with recipe="calibrated-streaming" or recipe="s-resnet".'
    wrong = ""
    if isinstance(op.spikes, MultiThreshold):
        wrong = f"{op.max_emission} firing levels"
        again = "Save it as an artifact, or train with one threshold (ms_resnet)."
    elif not op.emits_unit_spikes:
        wrong, again = f"threshold {float(op.threshold.max()):g}", "Run passes.normalize on the network."
    elif op.waits:
        wrong = f"schedule {op.schedule!r}"
    elif not op.binary:
        wrong = f"{op.alphabet} spikes"
    elif op.decay != 1.0 and op.reset != "zero":
        wrong, again = f"decay {op.decay:g} and reset by subtraction", "Convert without decay."
    elif op.correction is not None and op.correction.ndim > 1:
        wrong, again = "a correction for every step", "Convert with time_indexed=False in calibrate_neurons."
    if wrong:
        raise ConversionError(
            f"{node.name}: got a neuron with {wrong}; expected integrate-and-fire of threshold 1, or leaky with a "
            "reset to zero, a spike of 1 at most per step, the same currents at every step: the format has no more. "
            f"{again}"
        )


def _refused(node: Node) -> ConversionError:
    if isinstance(node.op, MaxPool2d | SpikingMaxPool2d):
        return ConversionError(
            f"{node.name}: got a max-pool; expected convolutions, average pools and neurons, as the format has no "
            "max-pool. Export with split_maxpool=True where it is in the stem (the part up to it stays at the host, "
            "exactly), or train the model with average pooling."
        )
    return ConversionError(
        f"{node.name}: got {type(node.op).__name__}; expected convolutions, linear layers, average pools, shortcuts "
        "and neurons. Convert the model with a recipe first."
    )
