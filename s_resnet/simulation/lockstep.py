"""A spiking network and its source network side by side, layer by layer, on images that fit in memory.

For every neuron layer a visitor gets the currents of all T steps and the source's activation, and returns the layer to
use, which then fires. For more images than fit in memory see :func:`s_resnet.conversion.layerwise.fit_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InvalidData, message
from ..graph.alphabet import Differential
from ..graph.engine import arithmetic, together
from ..graph.engine.run import DENSE
from ..graph.execution import Execution
from ..graph.forms import spiking, synapse
from ..graph.graph import Graph
from ..graph.inputs import count_images
from ..graph.neuron import Neuron
from ..graph.ops import SYNAPSES, Conv2d, Input, Node, Op
from ..graph.readout import Readout, SpikingMaxPool2d
from ..kernels import events, per_channel
from ..runtime.memory import images_in, room
from ..runtime.progress import Progress

# Values of the largest layer, over all steps and images, in memory at a time.
ROOM = 2**26
# So many such values live at once: what arrives at a layer and at those that read what it sends, and their sums.
LIVE = 8
# Convolutions over more images than this at a time are no faster, and take more memory.
PART = 2048


@dataclass(frozen=True, eq=False)
class Pair:
    """A value in both networks: spiking ``[S, B, *]`` (constant ones expanded), analog ``[B, *]``."""

    spiking: Tensor
    analog: Tensor

    @property
    def constant(self) -> bool:
        return len(self.spiking) > 1 and self.spiking.stride(0) == 0

    def __len__(self) -> int:
        return len(self.analog)

    def __getitem__(self, images: slice | Tensor) -> Pair:
        """The values of some images; constant ones stay expanded."""
        spiking = self.spiking[:1] if self.constant else self.spiking
        return Pair(spiking[:, images].expand(len(self.spiking), -1, *self.analog.shape[1:]), self.analog[images])


Visit = Callable[[Node, Tensor, Tensor], Op]


def lockstep(graph: Graph, images: Tensor, timesteps: int, visit: Visit, progress: str = "") -> Graph:
    """Run both networks on images, and return the graph with the operations that ``visit`` chose.

    S is T, or 1 if the network is order-free (:func:`order_free`): currents are then means over T and spikes are mean
    rates, which is exact and T times cheaper.

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``; or events ``[T, B, C, H, W]``, where the spiking network receives a frame per step and
            the source network their mean.
        timesteps: T.
        visit: called as ``visit(node, currents, target)`` for every neuron layer and the readout, in execution order,
            with the currents ``[S, B, *]`` per step without the layer's own correction, and the source network's value
            ``[B, *]`` (for a readout: before its scale).
        progress: a label for a bar; empty for none.
    """
    seen = spiking(graph.nodes[0].op).run(images)
    if images.ndim == 5:
        if len(images) < timesteps:
            got = f"{len(images)} frames of events for {timesteps} steps"
            raise InvalidData(message("lockstep", "", got, "one for each step", "Lower T"))
        start = {graph.nodes[0].name: Pair(seen[:timesteps], images.mean(0))}
    else:
        start = {graph.nodes[0].name: Pair(seen.expand(steps_of(graph, timesteps), *images.shape), images)}
    with torch.no_grad(), arithmetic(images, tf32=False):
        nodes = propagate_both(graph.nodes, start, timesteps, visit, progress)[0]
    return replace(graph, nodes=nodes)


def steps_of(graph: Graph, timesteps: int) -> int:
    """The number of steps to compute one by one: 1 if only the counts matter."""
    return 1 if order_free(graph) else timesteps


def order_free(graph: Graph) -> bool:
    """Whether spike counts depend only on the total charge, so that one pass over mean currents gives them.

    This holds if every neuron layer is phased, or streaming under a constant current, with reset by subtraction, no
    decay, no time-indexed correction and no differential coding.
    """
    return bool(graph.neurons) and all(_order_free(graph, node) for node in graph.neurons)


def _order_free(graph: Graph, node: Node) -> bool:
    op = node.op
    assert isinstance(op, Neuron)
    constant = all(name in graph.static for name in node.inputs)
    plain = op.reset == "subtract" and op.decay == 1.0 and not isinstance(op.spikes, Differential)
    unindexed = op.correction is None or op.correction.ndim == 1
    return plain and unindexed and (op.schedule == "phased" or constant)


def nearly_order_free(graph: Graph) -> bool:
    """Whether one pass over mean currents gives almost all spike counts: every layer is signed, or order-free.

    A signed layer one step behind has emitted its whole charge at the end of its window, unless more than one
    threshold of it arrived with the last step.
    """

    def settles(node: Node) -> bool:
        op = node.op
        assert isinstance(op, Neuron)
        taken_back = op.spikes.signed and op.schedule == "lagged"
        return _order_free(graph, replace(node, op=replace(op, schedule="phased")) if taken_back else node)

    return bool(graph.neurons) and all(settles(node) for node in graph.neurons)


def images_that_fit(graph: Graph, images: Tensor, steps: int) -> int:
    """How many images fit in memory with so many steps at once.

    Raises:
        InvalidData: a memory limit cannot hold one.
    """
    one = images[:, :1] if images.ndim == 5 else images[:1]
    sizes = [value[0].numel() for _, value in graph.activations(one)]
    each = LIVE * max(sizes) * steps * images.element_size()
    held = images_in(room(images.device), each, "verify", images.device)
    return min(held, together(count_images(images), max(sizes), steps, ROOM))


def propagate_both(
    nodes: Iterable[Node],
    values: Mapping[str, Pair],
    timesteps: int,
    visit: Visit,
    progress: str = "",
) -> tuple[tuple[Node, ...], dict[str, Pair]]:
    """Run ``nodes`` on ``values``; returns the nodes as visited, and the values that none of them read."""
    nodes = tuple(nodes)
    values = dict(values)
    last = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    done: dict[str, Node] = {}
    bar = Progress(nodes, desc=progress, unit="node", shown=bool(progress))
    for index, node in enumerate(bar):
        if not isinstance(node.op, Input):
            inputs = [values[name] for name in node.inputs]
            sender = done[node.inputs[0]].op if node.inputs[0] in done else None
            op, values[node.name] = _through(node, inputs, timesteps, visit, sender)
            node = replace(node, op=op)
        done[node.name] = node
        for name in [name for name in values if last.get(name, len(nodes)) <= index]:
            del values[name]
    return tuple(done.values()), values


def _through(node: Node, inputs: list[Pair], timesteps: int, visit: Visit, sender: Op | None) -> tuple[Op, Pair]:
    if isinstance(node.op, Neuron):
        currents, analog = arriving(node.op, inputs)
        op = visit(node, currents, analog)
        assert isinstance(op, Neuron)
        return op, Pair(fire_mean(op, currents, timesteps), analog)
    if isinstance(node.op, Readout):
        analog = node.op.run(inputs[0].analog)
        return visit(node, inputs[0].spiking, inputs[0].analog), Pair(inputs[0].spiking, analog)
    return node.op, passed(node.op, inputs, sender)


def arriving(op: Neuron, inputs: list[Pair], own: bool = False) -> tuple[Tensor, Tensor]:
    """The currents of a neuron layer ``[S, B, *]`` without its correction, and the source's activation ``[B, *]``.

    Args:
        op: the layer.
        inputs: the values that it reads.
        own: whether nobody else reads them, so that they may be overwritten: large new tensors take time.
    """
    currents = inputs[0].spiking
    for other in inputs[1:]:
        in_place = own and not inputs[0].constant and currents.dtype == other.spiking.dtype
        currents = currents.add_(other.spiking) if in_place else currents + other.spiking
    return currents, op.run(*(value.analog for value in inputs))


def passed(op: Op, inputs: list[Pair], sender: Op | None) -> Pair:
    """The output of an operation without neurons in both networks; ``sender`` is the source of its first input."""
    spiking = propagate(op, [value.spiking for value in inputs], sender)
    return Pair(spiking, op.run(*(value.analog for value in inputs)))


class EventDriven:
    """A convolution of what plain neurons send, on the CPU, at the cost of their spikes; its weight is laid out once.

    Args:
        op: the convolution, as spiking runs use it.
        sender: the neurons.
    """

    def __init__(self, op: Conv2d, sender: Neuron) -> None:
        self.op, self.sender = op, sender
        self.packed: events.Packed | None = None

    def run(self, spikes: Tensor) -> Tensor | None:
        """The convolution of uint8 spikes ``[N, C, H, W]`` in {0, 1}; None where the dense one is faster."""
        op, size = self.op, (spikes.shape[-2], spikes.shape[-1])
        if not events.usable(op.weight, op.groups, op.dilation, size):
            return None
        if int(spikes.count_nonzero()) > DENSE * spikes.numel():
            return None
        if self.packed is None:
            one = self.sender.scale_output(torch.ones(1, spikes.shape[1], 1, 1, dtype=op.weight.dtype))
            self.packed = events.pack(op.weight * one, op.stride, op.padding, size)
        found = events.conv2d(events.find(spikes), self.packed)
        return found if op.bias is None else found.add_(op.bias.view(-1, 1, 1))


def propagate(op: Op, inputs: list[Tensor], sender: Op | None = None) -> Tensor:
    """Run an operation without neurons on spiking values ``[S, B, *]``; constant ones are computed once.

    If the sender is a layer of plain neurons that fire rarely, a convolution on the CPU costs only their spikes.
    """
    steps, batch = inputs[0].shape[:2]
    if isinstance(op, SpikingMaxPool2d):
        if steps == 1:
            return op.run(inputs[0][0])[None]
        return op.advance(inputs, None)[0]
    if isinstance(op, SYNAPSES):
        op = synapse(op)
    if steps > 1 and all(value.stride(0) == 0 for value in inputs):
        out = op.run(*(value[0] for value in inputs))
        return out.expand(steps, *out.shape)
    folded = [value.reshape(steps * batch, *value.shape[2:]) for value in inputs]
    if steps > 1 and isinstance(op, Conv2d) and isinstance(sender, Neuron) and sender.binary:
        sparse = EventDriven(op, sender).run((folded[0] != 0).to(torch.uint8))
        if sparse is not None:
            return sparse.view(steps, batch, *sparse.shape[1:])
    parts = zip(*(torch.split(value, PART) for value in folded), strict=True)
    out = torch.cat([op.run(*part) for part in parts])
    return out.view(steps, batch, *out.shape[1:])


def fire_mean(op: Neuron, currents: Tensor, timesteps: int) -> Tensor:
    """What a neuron layer sends, ``[S, B, *]``, for currents without its correction; mean rates for S = 1 < T."""
    bias = op.bias_current(0, len(currents), currents.ndim)
    if len(currents) == 1 < timesteps:
        mean = currents[0] if bias is None else currents[0] + bias
        return op.scale_output(op.quantize(mean * timesteps, timesteps) / timesteps)[None]
    spikes, _ = op.advance([currents], None, bias=bias)
    return emitted(op, spikes.flatten(0, 1)).view(spikes.shape)


def fire(op: Neuron, currents: Tensor) -> Tensor:
    """The spikes ``[S, B, *]`` of plain neurons in uint8, for currents without their correction."""
    bias = op.bias_current(0, len(currents), currents.ndim)
    return op.advance([currents], None, bias=bias, how=Execution(spike_dtype=torch.uint8))[0]


def emitted(op: Neuron, spikes: Tensor) -> Tensor:
    """What a layer sends on, as :meth:`s_resnet.graph.Neuron.scale_output` has it; overwrites the spikes ``[N, *]``."""
    scale = op.threshold if op.amplitude is None else torch.full_like(op.threshold, op.amplitude)
    if scale.dtype != spikes.dtype or spikes.requires_grad or scale.requires_grad:
        return op.scale_output(spikes)
    return spikes.mul_(per_channel(scale, spikes.ndim))


def mean_of_steps(value: Tensor, large: bool = True) -> Tensor:
    """The mean over the steps of ``[S, B, *]``.

    Args:
        value: where channels lie behind pixels, torch's own mean takes many times as long if it is not told so. The two
            may differ by the rounding of their sums.
        large: whether it is worth it.
    """
    if (
        not large
        or value.ndim != 5
        or value.stride(0) == 0
        or not value[0].is_contiguous(memory_format=torch.channels_last)
    ):
        return value.mean(0)
    return value.permute(0, 1, 3, 4, 2).mean(0).permute(0, 3, 1, 2)


def blocks(graph: Graph) -> list[tuple[Node, ...]]:
    """The nodes in blocks that end at a neuron layer through which everything passes, and the nodes after the last."""
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    found: list[tuple[Node, ...]] = []
    begin = 0
    for index, node in enumerate(graph.nodes):
        alone = all(last.get(before.name, 0) <= index for before in graph.nodes[:index])
        if isinstance(node.op, Neuron) and alone:
            found.append(graph.nodes[begin : index + 1])
            begin = index + 1
    return [*found, graph.nodes[begin:]] if begin < len(graph.nodes) else found
