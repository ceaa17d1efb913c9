"""Threshold 1 everywhere: what a spike is worth goes into the synapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConversionError, message
from .neuron import Neuron
from .ops import (
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
from .readout import Readout, SpikingMaxPool2d


def normalized(nodes: Sequence[Node], logits: Mapping[str, float], device: torch.device) -> tuple[Node, ...]:
    """The nodes as :func:`s_resnet.conversion.passes.normalize` makes them.

    Args:
        nodes: with neurons and readout.
        logits: by what the classifiers' currents are divided, by their names; 1 of those that are not there.
        device: that of the tensors.

    Raises:
        ConversionError: an operation has no units.
    """
    work = _Work(nodes, logits, device)
    for node in nodes:
        work.rewrite(node)
    return tuple(work.nodes)


class _Work:
    """The rewrite in progress: ``unit[name]`` is what one unit of a value is worth, 0-dimensional or ``[C]``."""

    def __init__(self, nodes: Sequence[Node], logits: Mapping[str, float], device: torch.device) -> None:
        self.given, self.logits = {node.name: node for node in nodes}, logits
        self.users: dict[str, list[str]] = {node.name: [] for node in nodes}
        for node in nodes:
            for name in node.inputs:
                self.users[name].append(node.name)
        self.nodes: list[Node] = []
        self.unit: dict[str, Tensor] = {}
        self.one = torch.ones((), device=device)

    def rewrite(self, node: Node) -> None:
        op, inputs = node.op, node.inputs
        if isinstance(op, Neuron):
            target = op.threshold
            inputs = tuple(self.branch(node, name, target) for name in inputs)
            correction = None if op.correction is None else op.correction / target
            limit = None if op.limit is None else op.limit / target
            scale = target if op.scale is None else op.scale * target
            op, unit = replace(op, threshold=self.one, correction=correction, scale=scale, limit=limit), target
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
        users = self.users[node.name]
        if len(users) == 1:
            user = self.given[users[0]]
            if isinstance(user.op, Neuron):
                return user.op.threshold
            if isinstance(user.op, Readout):
                return self.one * self.logits.get(node.name, 1.0)
            if isinstance(user.op, (*_CHANNELWISE, Add, Flatten)):
                unit = self.wanted(user)
                return unit if unit.ndim == 0 or not isinstance(user.op, Flatten) else self.one
        return self.one

    def branch(self, node: Node, name: str, target: Tensor) -> str:
        """The name that ``node`` reads instead of ``name``, in units of ``target``; may add a shortcut synapse."""
        source = name
        while isinstance(self.given[source].op, _CHANNELWISE):
            source = self.given[source].inputs[0]
        synaptic = isinstance(self.given[source].op, _SYNAPTIC)
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
