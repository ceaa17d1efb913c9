"""Operations of one node: what it computes and moves per image, from the spikes that reach it and their true fan-out.

The counting model, for one image and T steps:

* ``acs``: an accumulation for each spike and each synapse that it reaches; borders, strides and groups are taken into
  account. A spike of amplitude 2^k is a shift and one accumulation; a neuron that emits a sum of n powers of two in a
  step sends n spikes; a negative spike costs as much as a positive one. A shortcut is a synapse, with or without a
  scale. A pool adds a spike to every window that holds it; a max-pool gate counts it, compares it in every window, and
  counts what it sends on. Multi-threshold firing sends 0 ... K spikes per step; a sum of trained neurons' spikes is
  all of them, one by one. An analog current with several readers (a sum in the membrane domain) is added by each of
  them, whenever it is not 0.
* ``macs``: a multiplication wherever a synapse reads something other than spikes: once for the constant image, and at
  each step for every graded value (means of a pool, sums of currents, Poisson input, whose amplitude is the image's)
  that is not 0. A readout multiplies by its scale once and by its weights, if it has any, at every step; so does a
  decay, unless it is a power of two and thus a shift.
* ``updates``: a neuron is updated in each step in which it integrates or may fire: T, lagged T + 1, phased 2 T; with
  multi-threshold firing, each of its K membranes.
* ``additions``: one for each neuron and step, for everything constant: the current of the stem, biases and corrections
  together; and, once, the additions and comparisons of pools and sums before the first neuron.

Where n plain neurons stand for one (:class:`s_resnet.graph.Copies`), all n are there: each receives every current by
synapses of its own, is updated and has its constants added, and its spikes are sent one by one, under addresses of all
n. So a spike counts at each of the n copies of every neuron it reaches, n times in each synapse, pool or sum that these
copies alone read in place. The copies of a layer share its weights and what is computed once from the images; pools and
the classifier read the spikes of all copies.

Traffic is event-driven and without reuse: each synaptic event fetches its weight; each update reads and writes all of a
neuron's state; each neuron reads the constant current of a stem at each step; spikes are address events, written
once and read once by each reader. Some chips form the sum of a neuron's currents not in a register, as assumed for the
ANN, but in memory, spike by spike. Then each event also reads and writes the sum that it reaches; this is counted
separately.

For the source network ``dense_macs`` is the usual count, which includes products with the zeros of the padding;
``macs`` leaves them out, as the fan-out of spikes does. Its BatchNorm is folded, its identity shortcuts have no scale.
A directly trained network has no source: the same counts are then those of one dense pass through its own layers, as an
ANN of that architecture would make it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...graph.alphabet import Differential
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
from ...runtime.display import Displayed
from .fan_out import Shape, fan_out, synapses
from .spike_flow import SpikeCounter, SpikeFlow

_POOLS = (AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, SpikingMaxPool2d)


@dataclass(frozen=True, repr=False)
class Traffic(Displayed):
    """What is moved per image.

    Attributes:
        weight_reads: words of weights read.
        value_reads: words of graded values and stored currents read.
        value_writes: words of them written.
        state_reads: words of neurons' state read.
        state_writes: words of it written.
        sum_reads: words of sums read, if sums are formed in memory.
        sum_writes: words of them written.
        spike_bits_written: bits of spikes written.
        spike_bits_read: bits of spikes read.
    """

    weight_reads: float = 0.0
    value_reads: float = 0.0
    value_writes: float = 0.0
    state_reads: float = 0.0
    state_writes: float = 0.0
    sum_reads: float = 0.0
    sum_writes: float = 0.0
    spike_bits_written: float = 0.0
    spike_bits_read: float = 0.0


@dataclass(frozen=True, repr=False)
class SourceOperations(Displayed):
    """What the source network computes at one node per image. Each MAC reads a weight and a value.

    Attributes:
        macs: multiply-accumulates without the zeros of the padding.
        dense_macs: the usual count, which includes them.
        additions: biases, residual sums, windows of pools, and a comparison for each ReLU, two with a limit.
        value_reads: words of values read.
        value_writes: words of values written.
        from_image: whether no activation comes before the node, so that it reads the image.
    """

    macs: int = 0
    dense_macs: int = 0
    additions: int = 0
    value_reads: int = 0
    value_writes: int = 0
    from_image: bool = False


@dataclass(frozen=True, repr=False)
class LayerOperations(Displayed):
    """What one node computes per image; the module defines what is counted.

    Attributes:
        name: the node.
        op: the kind of its operation.
        inputs: number of values that it reads.
        outputs: number of values that it gives.
        state: words that its neurons keep.
        parameters: number of weights and biases.
        spikes: spikes that it emits.
        acs: accumulations.
        macs: multiply-accumulates.
        updates: updates of neurons.
        additions: additions of constants.
        traffic: what is moved.
        ann: what the source network computes here.
        copies: how many times each value is formed, for as many neurons in place of one; ``outputs`` leaves it out, all
            else holds it.
    """

    name: str
    op: str
    inputs: int
    outputs: int
    state: int
    parameters: int
    spikes: float
    acs: float
    macs: float
    updates: float
    additions: float
    traffic: Traffic
    ann: SourceOperations
    copies: int = 1


class _Tally:
    """The integer sums of one node over all images."""

    def __init__(self) -> None:
        self.spikes = self.acs = self.macs = self.updates = self.additions = 0
        self.weight_reads = self.value_reads = self.value_writes = 0
        self.state_reads = self.state_writes = self.sum_reads = self.sum_writes = 0
        self.spike_bits_written = self.spike_bits_read = 0

    def events(self, count: int, graded: bool, weighted: bool) -> None:
        """Count values that arrive at sums."""
        if graded and weighted:
            self.macs += count
        else:
            self.acs += count
        self.weight_reads += count if weighted else 0
        self.sum_reads += count
        self.sum_writes += count


class OperationCounter:
    """Turns the spikes that were counted into the operations of each node."""

    def __init__(
        self, flow: SpikeFlow, seen: SpikeCounter, shapes: dict[str, Shape], timesteps: int, images: int
    ) -> None:
        self.flow, self.seen, self.shapes, self.graph = flow, seen, shapes, flow.graph
        self.timesteps, self.images = timesteps, images

    def size(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def reached(self, node: Node, name: str) -> int:
        """The synapses that the values of an input reached."""
        each = fan_out(node.op, self.shapes[name], self.shapes[node.name])
        return int((self.positions(name) * each).sum())

    def positions(self, name: str) -> Tensor:
        return self.seen.positions(name)

    def layer(self, node: Node) -> LayerOperations:
        tally = _Tally()
        if node.name in self.flow.constant:
            self._once(node, tally)
        else:
            self._spiking(node, tally)
        means = {name: value / self.images for name, value in vars(tally).items()}
        op, copies = node.op, self.flow.copies(node)
        tensors = [op.weight, op.bias] if isinstance(op, Conv2d | Linear) else []
        return LayerOperations(
            name=node.name,
            op=type(op).__name__,
            inputs=sum(self.size(name) for name in node.inputs),
            outputs=self.size(node.name),
            state=self._words(node) * self.size(node.name) * copies,
            parameters=sum(tensor.numel() for tensor in tensors if tensor is not None),
            **{name: means.pop(name) for name in ("spikes", "acs", "macs", "updates", "additions")},
            traffic=Traffic(**means),
            ann=self._source(node),
            copies=copies,
        )

    def _once(self, node: Node, tally: _Tally) -> None:
        """Count what the constant input costs before the first neuron."""
        op, size = node.op, self.size(node.name)
        if isinstance(op, Conv2d | Linear | Scale):
            tally.macs = self.images * self._synapses(node)
            tally.additions = self.images * size if self.flow.has_bias(node) else 0
            tally.weight_reads = tally.value_reads = tally.macs
        elif isinstance(op, Add):
            tally.additions = self.images * size * (len(node.inputs) - 1)
            tally.value_reads = self.images * size * len(node.inputs)
        elif isinstance(op, _POOLS):
            tally.additions = tally.value_reads = self.images * self._synapses(node)
        tally.value_writes = self.images * size if tally.value_reads else 0

    def _spiking(self, node: Node, tally: _Tally) -> None:
        """Count what T steps cost."""
        op, every = node.op, self.images * self.timesteps * self.size(node.name) * self.flow.copies(node)
        pooled = isinstance(op, MaxPool2d) and node.name in self.flow.alphabet  # pools spikes without a gate
        if isinstance(op, MaxPool2d) and not pooled:  # changing currents, as under Poisson coding: all windows
            tally.additions = tally.value_reads = self.images * self.timesteps * self._synapses(node)
            tally.value_writes = every
        elif not isinstance(op, Input | Flatten | Pad | Slice) and not self._relays(node):
            self._arrivals(node, tally)
        if isinstance(op, SpikingMaxPool2d):
            arrived, left = (int(self.positions(name).sum()) for name in (node.inputs[0], node.name))
            tally.acs += arrived + left
            tally.sum_reads += arrived + left
            tally.sum_writes = arrived + left
        if isinstance(op, Neuron | SpikingMaxPool2d) or pooled:
            tally.spikes = int(self.positions(node.name).sum())
            tally.spike_bits_written = tally.spikes * self.flow.bits(node.name, self.size(node.name))
        if self._constants(node):
            tally.additions += every
        if isinstance(op, Neuron | Add) and any(name in self.flow.constant for name in node.inputs):
            tally.value_reads += every
        if isinstance(op, Neuron | Readout):
            self._update(node, op, tally, every)
        if node.name in self.flow.keepers:  # e[t] = e[t-1] + W k[t] / t, and e is state as well
            tally.macs += every
            tally.additions += every

    def _relays(self, node: Node) -> bool:
        """Whether the node is a sum of spikes that its readers form themselves."""
        return isinstance(node.op, Add) and node.name in self.flow.alphabet

    def _arrivals(self, node: Node, tally: _Tally) -> None:
        copies = self.flow.copies(node)
        for name in node.inputs:
            if name in self.flow.constant or self.flow.free(name, node):
                continue
            spikes, seen = name in self.flow.alphabet, int(self.positions(name).sum()) * copies
            tally.events(self.reached(node, name) * copies, not spikes, isinstance(node.op, Conv2d | Linear | Scale))
            if spikes:
                tally.spike_bits_read += seen * self.flow.bits(name, self.size(name))
            else:
                tally.value_reads += seen

    def _update(self, node: Node, op: Neuron | Readout, tally: _Tally, every: int) -> None:
        lag = op.delay(self.timesteps) if isinstance(op, Neuron) else 0
        updated = every // self.timesteps * (self.timesteps + lag)
        membranes = len(op.thresholds) if isinstance(op, Neuron) else 1
        tally.updates = updated * membranes
        tally.state_reads += updated * self._words(node)
        tally.state_writes += updated * self._words(node)
        if isinstance(op, Neuron) and op.decay and math.frexp(op.decay)[0] != 0.5:  # not a power of two (1 is one)
            tally.macs += every * membranes
        if isinstance(op, Readout):
            tally.macs += every // self.timesteps + (every if op.weights is not None else 0)
            tally.additions += every // self.timesteps if op.correction is not None else 0

    def _constants(self, node: Node) -> bool:
        """Whether something constant is added at each step; all of it together is one addition."""
        op = node.op
        if isinstance(op, Conv2d | Linear):
            return self.flow.has_bias(node) and not self.flow.folds_bias(node.name)
        if not isinstance(op, Neuron | Readout | Add):
            return False
        if isinstance(op, Neuron) and op.correction is not None and bool(op.correction.any()):
            return True
        folded = (name for name in node.inputs if not isinstance(op, Add) and self.flow.folds_bias(name))
        return any(name in self.flow.constant for name in node.inputs) or any(
            self.flow.has_bias(self.graph[name]) for name in folded
        )

    def _words(self, node: Node) -> int:
        """Words of state per neuron: membranes, a signed neuron's count, a differential neuron's sum, a mean."""
        op = node.op
        own = len(op.thresholds) if isinstance(op, Neuron) else int(isinstance(op, Readout | SpikingMaxPool2d))
        more = isinstance(op, Neuron) and (op.spikes.signed or isinstance(op.spikes, Differential))
        return own + int(more) + int(node.name in self.flow.keepers)

    def _synapses(self, node: Node) -> int:
        return synapses(node.op, self.shapes[node.inputs[0]], self.shapes[node.name])

    def _source(self, node: Node) -> SourceOperations:
        op, size, image = node.op, self.size(node.name), node.name in self.graph.static
        read = [name for name in node.inputs if not self.flow.in_place(name, node)]
        users = [self.graph[name] for name in self.graph.users[node.name]]
        written = 0 if all(self.flow.in_place(node.name, user) for user in users) else size
        if isinstance(op, Conv2d | Linear):
            macs, bias = self._synapses(node), size if self.flow.has_bias(node) else 0
            return SourceOperations(macs, size * op.weight[0].numel(), bias, macs, written, image)
        if isinstance(op, _POOLS):
            inside = self._synapses(node)
            return SourceOperations(additions=inside, value_reads=inside, value_writes=written, from_image=image)
        if isinstance(op, Neuron | Add):
            ends = (1 + (op.limit is not None)) if isinstance(op, Neuron) else 0
            additions = size * (len(node.inputs) - 1 + ends)
            return SourceOperations(0, 0, additions, sum(self.size(name) for name in read), written, image)
        if isinstance(op, Readout):
            return SourceOperations(value_writes=size)
        return SourceOperations(from_image=image and not isinstance(op, Input))
