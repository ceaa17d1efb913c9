"""What travels on each edge of a spiking network, and how often: spikes, graded values or constants."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidData, message
from ...graph.alphabet import Copies, Differential, MultiThreshold
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import (
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Pad,
    Scale,
    Slice,
)
from ...graph.readout import Readout, SpikingMaxPool2d
from ...kernels.membrane.reference import amplitudes

_MOVED = (Flatten, Pad, Slice)  # operations that only move spikes to other positions
_SUMMED = (Conv2d, Linear, Scale, AvgPool2d, AdaptiveAvgPool2d, Add)
_SUMS = (Neuron, Add, Readout)
KNOWN = (Input, MaxPool2d, SpikingMaxPool2d, *_MOVED, *_SUMMED, *_SUMS)


class SpikeFlow:
    """What travels on the edges of a network.

    Attributes:
        graph: the network.
        constant: nodes whose value is the same at every step, under a constant input current.
        alphabet: nodes that carry spikes, with the neurons whose alphabet they have. Everything else is graded.
        units: those of them that carry numbers of spikes of amplitude 1: multi-threshold firing, copies, and sums of
            neurons' spikes. All of these are sent one by one, since a synapse treats them alike.
        keepers: nodes that keep the running mean of what differential neurons send them.

    Raises:
        InvalidData: an operation cannot be counted; the message names it.
    """

    def __init__(self, graph: Graph, constant: frozenset[str]) -> None:
        self.graph, self.constant = graph, constant
        self.alphabet: dict[str, Neuron] = {}
        self.units: set[str] = set()
        self.keepers: set[str] = set()
        means: set[str] = set()  # nodes that carry increments of a mean
        for node in graph.nodes:
            self._check(node)
            op = node.op
            if isinstance(op, Neuron):
                self.alphabet[node.name] = op
            elif self._passes_spikes(node):
                self.alphabet[node.name] = self.alphabet[node.inputs[0]]
            if self._counts(node):
                self.units.add(node.name)
            users = [graph[user] for user in graph.users[node.name]]
            passes = node.name in self.alphabet or (bool(users) and all(self.free(node.name, user) for user in users))
            if any(name in means for name in node.inputs):
                if passes and not isinstance(op, Neuron):
                    means.add(node.name)
                else:
                    self.keepers.add(node.name)
            if isinstance(op, Neuron) and isinstance(op.spikes, Differential):
                means.add(node.name)

    def _check(self, node: Node) -> None:
        op, kind = node.op, type(node.op).__name__
        if not isinstance(op, KNOWN):
            got = f"{kind}, whose operations are not known"
            raise InvalidData(message(node.name, "", got, "a converted network", "Call convert first"))
        if isinstance(op, SpikingMaxPool2d) and not self._binary_or_signed(node.inputs[0]):
            got = f"{kind} over values that are not spikes"
            expected, remedy = "spikes that are not differential", "Convert with a recipe without differential spikes"
            raise InvalidData(message(node.name, "", got, expected, remedy))
        if isinstance(op, Neuron) and not op.binary and op.integer is None and not op.emits_unit_spikes:
            got = f"{kind} of threshold {op.threshold.flatten()[0].item():g}"
            raise InvalidData(message(node.name, "", got, "1 for signed and multi-level spikes", "Run normalize"))

    def _passes_spikes(self, node: Node) -> bool:
        if isinstance(node.op, Add | MaxPool2d):
            return all(name in self.alphabet and self.alphabet[name].amplitude == 1 for name in node.inputs)
        return isinstance(node.op, (*_MOVED, SpikingMaxPool2d)) and node.inputs[0] in self.alphabet

    def _counts(self, node: Node) -> bool:
        """Whether a value is a number of spikes, 0 or more."""
        if isinstance(node.op, Neuron):
            return isinstance(node.op.spikes, MultiThreshold | Copies)
        summed = isinstance(node.op, Add) and node.name in self.alphabet
        return summed or (node.name in self.alphabet and node.inputs[0] in self.units)

    def _binary_or_signed(self, name: str) -> bool:
        return name in self.alphabet and not isinstance(self.alphabet[name].spikes, Differential)

    def free(self, name: str, reader: Node) -> bool:
        """Whether ``name`` forms its sum where ``reader`` needs it, so that reading costs nothing."""
        return name not in self.constant and name not in self.alphabet and self.in_place(name, reader)

    def in_place(self, name: str, reader: Node) -> bool:
        """The same for the source network, in which nothing is constant."""
        summed = isinstance(self.graph[name].op, _SUMMED) and isinstance(reader.op, _SUMS)
        return summed and self.graph.users[name] == (reader.name,)

    def copies(self, node: Node) -> int:
        """How many times a value is formed: once for each copy of the neurons that alone read it in place."""
        if isinstance(node.op, Neuron):
            return node.op.copies
        readers = [self.graph[name] for name in self.graph.users[node.name]]
        return self.copies(readers[0]) if readers and self.free(node.name, readers[0]) else 1

    def has_bias(self, node: Node) -> bool:
        """Whether the node's operation adds a bias."""
        return isinstance(node.op, Conv2d | Linear) and node.op.bias is not None and bool(node.op.bias.any())

    def folds_bias(self, name: str) -> bool:
        """Whether the bias of ``name`` is added together with the other constants of the neurons that read it."""
        return all(isinstance(self.graph[user].op, Neuron | Readout) for user in self.graph.users[name])

    def bits(self, name: str, size: int) -> int:
        """Bits of an address event: which of ``size`` neurons, or of their copies, fired, with which sign and level."""
        op = self.alphabet[name]
        sign = op.spikes.signed or isinstance(op.spikes, Differential)
        levels = op.spikes.amplitudes if op.copies == 1 else 1
        return (size * op.copies - 1).bit_length() + int(sign) + (levels - 1).bit_length()


class SpikeCounter:
    """Counts the spikes (or non-zero graded values) of a simulation, per node and position.

    Its memory does not grow with steps or images.

    Attributes:
        seen: counts by node, int64 ``[H, W]``, summed over channels, steps and images; 0-dimensional if a value has no
            positions.
    """

    def __init__(self, flow: SpikeFlow) -> None:
        self.flow = flow
        self.seen: dict[str, Tensor] = {}
        self.totals: dict[str, tuple[Tensor, int]] = {}  # for differential spikes: the sum so far, and the steps
        graph = flow.graph
        self.wanted = {
            node.name
            for node in graph.nodes
            if node.name not in flow.constant
            and not isinstance(node.op, Scale)  # one-to-one, so its input has the same count
            and (
                isinstance(node.op, Neuron | SpikingMaxPool2d)
                or any(not flow.free(node.name, graph[user]) for user in graph.users[node.name])
            )
        }

    def begin(self, images: int) -> None:
        """Start with new images, whose differential neurons have sent nothing yet."""
        self.images, self.totals = images, {}

    def __call__(self, name: str, values: Tensor) -> None:
        """Count the values ``[S * B, *]`` of a node."""
        if name not in self.wanted:
            return
        op = self.flow.alphabet.get(name)
        if op is not None and isinstance(op.spikes, Differential):
            values = self._increments(name, values)
        several = op is not None and not op.binary
        if name in self.flow.units:
            events = values.round().to(torch.int32)
        else:
            whole = values.round()
            events = amplitudes(whole, op.spikes.amplitudes) if op and several else (values != 0).to(torch.uint8)
        kept = events.flatten(0, 1) if events.ndim == 4 else events.flatten()
        count = kept.sum(0, dtype=torch.int64)
        self.seen[name] = self.seen[name] + count if name in self.seen else count

    def _increments(self, name: str, values: Tensor) -> Tensor:
        """The increments that a differential neuron sends: k[t] = y[t] - mean(y[1] ... y[t-1])."""
        steps = values.view(-1, self.images, *values.shape[1:])
        total, done = self.totals.get(name, (torch.zeros_like(steps[0]), 0))
        sent = torch.empty_like(steps)
        for index, y in enumerate(steps):
            sent[index] = (y - total / max(1, done)).round()
            total, done = total + y, done + 1
        self.totals[name] = (total, done)
        return sent.flatten(0, 1)

    def positions(self, name: str) -> Tensor:
        """The counts of a node; a shortcut synapse passes on as many values as reach it."""
        while isinstance(self.flow.graph[name].op, Scale):
            name = self.flow.graph[name].inputs[0]
        return self.seen[name].cpu()
