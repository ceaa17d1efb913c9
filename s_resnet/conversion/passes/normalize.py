"""Pass: the paper's conversion model. Every neuron gets threshold 1 and every synapse carries the ratio of scales."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConversionError, message
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import (
    UNIT_PRESERVING,
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Scale,
    propagate_unit,
)
from ...graph.readout import Readout, SpikingMaxPool2d
from ..calibrate import Calibration
from ..context import Context


def normalize(graph: Graph, context: Context) -> Graph:
    """Threshold 1 everywhere: ``W * lambda_in / lambda_out``, ``b / lambda_out``, and the shortcut conversion model.

    lambda_out of a synapse is the threshold of the neuron that integrates it (for the last convolution of a residual
    branch and for a projection: of the neuron after the sum), lambda_in the threshold of the neuron that feeds it. An
    identity branch becomes an explicit synapse of weight ``lambda_in / lambda_out``, also where that is 1. The
    classifier is divided by the scale of the logits, which the readout multiplies back. Each neuron keeps lambda as its
    ``scale``.

    Spikes are preserved: identical when all thresholds are powers of two, up to rounding otherwise. The analog run
    is preserved up to rounding.

    Args:
        graph: a network with its neurons and readout.
        context: the scale of the logits.

    Raises:
        ConversionError: an operation has no units.

    Source: arXiv:1805.01352 (Hu, Tang, Pan): data-based normalization and shortcut conversion model.
    """
    if not graph.neurons:
        return graph
    work = _Work(graph, context.calibration)
    for node in graph.nodes:
        work.rewrite(node)
    return replace(graph, nodes=tuple(work.nodes))


class _Work:
    """The rewrite in progress: ``unit[name]`` is what one unit of a value is worth, 0-dimensional or ``[C]``."""

    def __init__(self, graph: Graph, calibration: Calibration) -> None:
        self.graph, self.calibration = graph, calibration
        self.nodes: list[Node] = []
        self.unit: dict[str, Tensor] = {}
        self.one = torch.ones((), device=graph.device)

    def rewrite(self, node: Node) -> None:
        op, inputs = node.op, node.inputs
        if isinstance(op, Neuron):
            target = op.threshold
            inputs = tuple(self.branch(node, name, target) for name in inputs)
            correction = None if op.correction is None else op.correction / target
            limit = None if op.limit is None else op.limit / target
            op, unit = replace(op, threshold=self.one, correction=correction, scale=target, limit=limit), target
        elif isinstance(op, Readout):
            unit = self.unit[inputs[0]]
            op = replace(op, scale=op.scale * unit)
        elif isinstance(op, Conv2d | Linear):
            unit = self.wanted(node)
            op = _rescaled(op, self.unit[inputs[0]], unit)
        elif isinstance(op, Scale):
            unit = self.wanted(node)
            op = replace(op, weight=op.weight * self.unit[inputs[0]] / unit)
        elif isinstance(op, Add):
            unit = self.wanted(node)
            inputs = tuple(self.branch(node, name, unit) for name in inputs)
        elif isinstance(op, (*UNIT_PRESERVING, SpikingMaxPool2d)):
            unit = propagate_unit(op, self.unit[inputs[0]])
        elif isinstance(op, Input):
            unit = self.one
        else:
            got, remedy = f"{type(op).__name__}, which has no units", "Run fold_batchnorm and relu_to_neuron before"
            raise ConversionError(message(node.name, "", got, "synapses, pools and neurons", remedy))
        self.unit[node.name] = unit
        self.nodes.append(Node(node.name, op, inputs))

    def wanted(self, node: Node) -> Tensor:
        """The unit of a synapse's output: the threshold of the one neuron that integrates it, else 1, as in the ANN."""
        users = self.graph.users[node.name]
        if len(users) == 1:
            user = self.graph[users[0]]
            if isinstance(user.op, Neuron):
                return user.op.threshold
            if isinstance(user.op, Readout):
                return self.one * self.calibration.scales.get(node.name, 1.0)
            if isinstance(user.op, (*_CHANNELWISE, Add, Flatten)):
                unit = self.wanted(user)
                return unit if unit.ndim == 0 or not isinstance(user.op, Flatten) else self.one
        return self.one

    def branch(self, node: Node, name: str, target: Tensor) -> str:
        """The name that ``node`` reads instead of ``name``, in units of ``target``; may add a shortcut synapse."""
        source = name
        while isinstance(self.graph[source].op, _CHANNELWISE):
            source = self.graph[source].inputs[0]
        synaptic = isinstance(self.graph[source].op, _SYNAPTIC)
        if torch.equal(self.unit[name], target) and (synaptic or len(node.inputs) == 1):
            return name
        label = f"{node.name}.shortcut"
        taken = sum(n.name.startswith(label) for n in self.nodes)
        synapse = Node(label if taken == 0 else f"{label}_{taken}", Scale(self.unit[name] / target), (name,))
        self.nodes.append(synapse)
        return synapse.name


_SYNAPTIC = (Conv2d, Linear, Scale, Add)
# Operations between a synapse and its neuron that do not mix channels.
_CHANNELWISE = (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d)


def _rescaled(op: Conv2d | Linear, unit_in: Tensor, unit_out: Tensor) -> Conv2d | Linear:
    """``W * lambda_in / lambda_out`` and ``b / lambda_out``."""
    weight, spiking = _in_units(op, op.weight, unit_in, unit_out), op.spiking
    if spiking is not None and spiking.weight is not None:
        spiking = replace(spiking, weight=_in_units(op, spiking.weight, unit_in, unit_out))
    return replace(op, weight=weight, spiking=spiking, bias=None if op.bias is None else op.bias / unit_out)


def _in_units(op: Conv2d | Linear, weight: Tensor, unit_in: Tensor, unit_out: Tensor) -> Tensor:
    if unit_in.ndim:
        groups = op.groups if isinstance(op, Conv2d) else 1
        per_input = unit_in.repeat_interleave(weight.shape[1] * groups // len(unit_in)).view(groups, 1, -1)
        shape = (groups, weight.shape[0] // groups, weight.shape[1], -1)
        weight = (weight.view(shape) * per_input.unsqueeze(-1)).view(weight.shape)
    else:
        weight = weight * unit_in
    return weight / unit_out.view(-1, *(1,) * (weight.ndim - 1))
