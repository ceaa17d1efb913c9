"""Pass: an integer network with weights in int8, thresholds and membranes in int32; equal spikes on every device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConversionError, message
from ...graph.alphabet import Copies, Differential, MultiThreshold
from ...graph.forms import synapse
from ...graph.graph import Graph
from ...graph.neuron import IntegerNeuron, Neuron
from ...graph.ops import GRID, LARGEST_PIXEL, Conv2d, Input, IntegerWeights, Linear, MaxPool2d, Node, Op, Scale
from ...graph.readout import SpikingMaxPool2d
from ..context import Context

LARGEST = 127  # int8 is used symmetrically
THRESHOLDS = 2**15  # the largest threshold: int8 weights are not finer
EXACT = 2**24  # smaller sums of whole numbers are exact in float32, in any order


def quantize_weights(graph: Graph, context: Context) -> Graph:
    """Give every synapse integer weights beside its own, for spiking runs; the analog run is unchanged.

    For output channel k the threshold becomes ``theta_k = floor(127 / max |c W_k|)``, with the maximum over all
    convolutions that the neuron layer sums, and in units of ``1 / theta_k``::

        W_q = round(theta_k c W)  int8        b_q = round(theta_k b)  int32        shortcut: round(theta_k c w)  int32

    Here c is the compensation and W the weight of spiking runs. The neuron's equation thus holds unchanged, in whole
    numbers. Corrections are rounded as biases are. The first convolution reads the images in steps of 1/64 (coarser if
    its sums would not fit 24 bits), and its currents are rounded once. The classifier's weights are int8 with one
    common step; its currents and the answer stay floating point.

    Spikes are the same on every device, bit for bit; ``evaluate`` shows the distance to the unquantized network.

    Args:
        graph: a normalized network with spikes of 0 and 1.
        context: not used.

    Raises:
        ConversionError: a convolution reads anything but spikes or the images, or is read by anything but one neuron
            layer; neurons send means, or have several thresholds or copies; or thresholds are not 1 (run normalize
            before).
    """
    if not graph.neurons:
        return graph
    theta = {node.name: _threshold(graph, node) for node in graph.neurons}
    grid = min((_grid(graph, node, theta) for node in graph.nodes if _reads_images(graph, node)), default=GRID)
    nodes = tuple(replace(node, op=_quantized(graph, node, theta, grid)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _threshold(graph: Graph, node: Node) -> Tensor:
    """The neuron layer's thresholds ``[C]``, int32."""
    assert isinstance(node.op, Neuron)
    if not bool((node.op.threshold == 1).all()) or node.op.decay != 1.0:
        got, expected = "a threshold other than 1, or a decay", "a normalized integrate-and-fire network"
        raise _refused(node, got, expected, "Run normalize before")
    if isinstance(node.op.spikes, Differential | MultiThreshold | Copies):
        raise _refused(node, f"{node.op.alphabet} spikes", "binary, signed or multi-level ones")
    largest: Tensor | None = None
    for name in node.inputs:
        op = graph[_source(graph, name)].op
        if isinstance(op, Conv2d):
            peak = synapse(op).weight.abs().flatten(1).amax(1)
            largest = peak if largest is None else torch.maximum(largest, peak)
        elif not isinstance(op, Scale):
            got = f"current from {name}, {type(op).__name__}"
            remedy = "Choose a recipe without neurons after pools and the classifier, such as s-resnet"
            raise _refused(node, got, "convolutions and shortcut synapses", remedy)
    if largest is None:
        raise _refused(node, "no convolution among its inputs", "one")
    finest = torch.where(largest > 0, LARGEST / largest.clamp_min(LARGEST / THRESHOLDS), THRESHOLDS)
    if bool((finest < 1).any()):
        got = f"a weight {float(largest.max()):g} times the threshold"
        raise _refused(node, got, f"at most {LARGEST}", "Calibrate on images like those it was trained on")
    return finest.floor().to(torch.int32)


def _source(graph: Graph, name: str) -> str:
    """The synapse before pools that do not mix channels (the max-pool of a stem, moved before the neuron)."""
    while isinstance(graph[name].op, MaxPool2d):
        name = graph[name].inputs[0]
    return name


def _reads_images(graph: Graph, node: Node) -> bool:
    return isinstance(node.op, Conv2d) and isinstance(graph[node.inputs[0]].op, Input)


def _grid(graph: Graph, node: Node, theta: dict[str, Tensor]) -> int:
    """The finest power of two up to 64 for which the sums over images within +-8 are exact."""
    assert isinstance(node.op, Conv2d)
    weight = _whole_weight(node.op, theta[_neuron(graph, node)])
    reach = int(weight.abs().to(torch.int64).flatten(1).sum(1).max()) * LARGEST_PIXEL
    fitting = [grid for grid in (1, 2, 4, 8, 16, 32, GRID) if reach * grid < EXACT]
    if not fitting:
        raise _refused(node, f"weights whose sums reach {reach}", f"below {EXACT}")
    return fitting[-1]


def _neuron(graph: Graph, node: Node) -> str:
    """The one neuron layer that a synapse feeds."""
    users = graph.users[node.name]
    while len(users) == 1 and isinstance(graph[users[0]].op, MaxPool2d):
        users = graph.users[users[0]]
    if len(users) != 1 or not isinstance(graph[users[0]].op, Neuron):
        raise _refused(node, f"readers {', '.join(users)}", "one neuron layer")
    return users[0]


def _quantized(graph: Graph, node: Node, theta: dict[str, Tensor], grid: int) -> Op:
    op = node.op
    if isinstance(op, Neuron):
        own, correction = theta[node.name], op.correction
        whole = None if correction is None else (correction * own).round().to(torch.int32)
        return replace(op, integer=IntegerNeuron(own, whole))
    if isinstance(op, Input):
        return replace(op, grid=grid)
    if isinstance(op, Linear):
        weight = synapse(op).weight
        step = float(weight.abs().max()) / LARGEST or 1.0
        return replace(op, integer=IntegerWeights((weight / step).round().to(torch.int8), step=step))
    if isinstance(op, Scale):
        own = theta[_neuron(graph, node)]
        return replace(op, integer=IntegerWeights((synapse(op).weight * own).round().to(torch.int32)))
    if not isinstance(op, Conv2d):
        return op
    own = theta[_neuron(graph, node)]
    images = _reads_images(graph, node)
    if not images and not isinstance(graph[node.inputs[0]].op, Neuron | SpikingMaxPool2d):
        got = f"input from {node.inputs[0]}, {type(graph[node.inputs[0]].op).__name__}"
        raise _refused(node, got, "spikes or the images")
    bias = None if op.bias is None else (op.bias * own).round().to(torch.int32)
    return replace(op, integer=IntegerWeights(_whole_weight(op, own), bias, grid=grid if images else 0))


def _whole_weight(op: Conv2d, theta: Tensor) -> Tensor:
    return (synapse(op).weight * theta.view(-1, 1, 1, 1)).round().to(torch.int8)


def _refused(node: Node, got: str, expected: str, remedy: str = "Leave weights as they are") -> ConversionError:
    return ConversionError(message(node.name, "", got, expected, remedy))
