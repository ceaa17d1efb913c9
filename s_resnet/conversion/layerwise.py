"""Fit neuron layers one after the other, each on all images, one part of them at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..graph.engine import arithmetic
from ..graph.forms import synapse
from ..graph.graph import Graph
from ..graph.neuron import Neuron
from ..graph.ops import Conv2d, Input, Linear, Node, Op
from ..graph.readout import Readout
from ..runtime import memory
from ..runtime.processes import all_gather, rank_and_world_size
from ..runtime.progress import Progress
from ..simulation.lockstep import EventDriven, Pair, arriving, fire, fire_mean, mean_of_steps, passed, steps_of
from .kept import Kept, Shown, Values, in_bits
from .portions import check_layers
from .spill import Spill

# Values of the largest layer, over all steps and images, that are held in memory: of all images, or else of one part.
ROOM, PART = 2**24, 2**23
# If there are several groups of images, at least and at most so many; each has one part or more.
PARTS, GROUPS = 8, 32
SPARE = 16  # times the values of a part must stay free beside what is kept, for the work on them


class Pairs:
    """Two values for all images of this process, a part of them at a time, in any number of iterations.

    What the first iteration computes stays in memory while there is room; the rest is computed anew in each.

    Args:
        groups: the images in groups, and each group in the parts that fit in memory. Where several processes share the
            images a group may have none in this one.
        of: the values of a part.
        limit: bytes that the process may hold together with what is kept.
    """

    def __init__(
        self, groups: Sequence[Sequence[slice]], of: Callable[[slice], tuple[Tensor, Tensor]], limit: float
    ) -> None:
        self._groups, self._of, self._limit = groups, of, limit
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """The number of groups."""
        return len(self._groups)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (pair for group in self.groups() for pair in group)

    def groups(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """The values by group."""
        return (map(self._pair, group) for group in self._groups)

    def _pair(self, part: slice) -> tuple[Tensor, Tensor]:
        if part.start in self._kept:
            return self._kept[part.start]
        pair = self._of(part)
        taken = SPARE * sum(value.untyped_storage().nbytes() for value in pair)
        if taken <= self._limit and memory.held(pair[0].device) + taken <= self._limit:
            self._kept[part.start] = pair
        return pair


Fit = Callable[[Node, Pairs], Op]


def fit_layers(
    graph: Graph, images: Tensor | Spill, timesteps: int, fit: Fit, refit: Fit | None = None, progress: str = ""
) -> Graph:
    """Run both networks on all images, and fit the neuron layers one after the other.

    S is T, or 1 if the network is order-free (:func:`s_resnet.simulation.lockstep.order_free`): currents are then means
    over T, and spikes are mean rates.

    If the images do not all fit in memory, the spikes of the neuron layers and the source's activations are kept in
    temporary files, and the values in between are computed again for each part. Memory thus does not depend on the
    number of images; time and disk space do.

    Args:
        graph: a network with its neurons.
        images: ``[N, C, H, W]``.
        timesteps: T.
        fit: called as ``fit(node, pairs)`` for every neuron layer in execution order; returns the layer to use. Each
            pair is of a part of the images: the currents ``[S, B, *]`` per step, without the layer's own correction,
            from layers that are already final; and the source's activation ``[B, *]``.
        refit: called likewise, and earlier, for every convolution and linear layer that only neuron layers read. A pair
            is then the inputs ``[B, *]``, the mean over the steps, and what the mean output should be: the source's
            value, plus, with a single reader, the shortfall of the reader's other inputs where already computed.
        progress: a label for a bar; empty for none.

    Returns:
        The graph with the layers that ``fit`` and ``refit`` returned.
    """
    with torch.no_grad(), arithmetic(images[:1], tf32=False):
        values = _Values(graph, images, timesteps, refit is not None)
        refitted = [node.op for node in graph.nodes if refit is not None and _fires(graph, node)]
        check_layers(graph, values.largest, refitted)
        bar = Progress(graph.nodes, desc=progress, unit="node", shown=bool(progress))
        for index, node in enumerate(bar):
            if refit is not None and _fires(graph, node):
                node = replace(node, op=refit(node, values.synapse(node)))
            elif isinstance(node.op, Neuron):
                arrived = values.neuron(node)
                node = replace(node, op=fit(node, arrived))
                values.fire(index, node, arrived)
                del arrived  # what it keeps of this layer would stay while the next synapse is refitted
            values.finish(index, node)
        fitted = replace(graph, nodes=tuple(values.done.values()))
    if isinstance(graph.nodes[-1].op, Readout):
        _left[fitted] = Left(images, timesteps, values.readout)
    return fitted


@dataclass(frozen=True, eq=False)
class Left:
    """What :func:`fit_layers` leaves of its work: the readout's currents and target on a part of the images."""

    images: Tensor | Spill
    timesteps: int
    readout: Callable[[slice], tuple[Tensor, Tensor]]


_left: WeakKeyDictionary[Graph, Left] = WeakKeyDictionary()


def at_readout(graph: Graph, images: Tensor | Spill, timesteps: int) -> Callable[[slice], tuple[Tensor, Tensor]] | None:
    """The readout's currents ``[S, B, *]`` and target ``[B, *]`` by part of the images, as lockstep would give them.

    None unless :func:`fit_layers` has just made the graph on these images: the last layer's spikes are then still
    there, and the network need not run again. They are given once.
    """
    left = _left.pop(graph, None)
    return left.readout if left is not None and left.images is images and left.timesteps == timesteps else None


def largest(graph: Graph, images: Tensor | Spill, steps: int) -> int:
    """Values of the largest layer over all steps, for one image."""
    return max(value.numel() * (1 if name in graph.static else steps) for name, value in graph.activations(images[:1]))


def in_memory(graph: Graph, images: Tensor | Spill, steps: int, room: int) -> int:
    """How many images have at most ``room`` values in the largest layer over all steps; at least one."""
    return max(1, room // largest(graph, images, steps))


def parts_of(graph: Graph, images: Tensor | Spill, steps: int, room: int | None = None) -> tuple[slice, ...]:
    """All images in parts with at most ``room`` values in the largest layer, by default PART."""
    return _parts(len(images), in_memory(graph, images, steps, PART if room is None else room))


def _parts(count: int, size: int) -> tuple[slice, ...]:
    """Parts of equal size, but for the last one."""
    number = -(-count // size)
    return tuple(slice(count * part // number, count * (part + 1) // number) for part in range(number))


def _groups(counts: Sequence[int], each: int) -> list[list[slice]]:
    """This process's images in groups that all processes share, and each group in parts that fit in memory.

    How the images fall into groups depends on how many there are in all and how large, not on memory or processes.

    Args:
        counts: the images of each process.
        each: values of the largest layer for one image.
    """
    (rank, world), total, most = rank_and_world_size(), sum(counts), max(1, PART // each)
    if total * each <= ROOM:
        return [[slice(0, counts[rank])]]
    size = max(min(most, max(1, total // PARTS)), -(-total // GROUPS))
    groups = []
    for group in _parts(total, size):
        first, end = (-(-(place - rank) // world) for place in (group.start, group.stop))
        parts = _parts(end - first, most) if end > first else ()
        groups.append([slice(first + part.start, first + part.stop) for part in parts])
    return groups


def _fires(graph: Graph, node: Node) -> bool:
    """Whether the node is a synapse that only neuron layers read."""
    readers = graph.users[node.name]
    return (
        isinstance(node.op, Conv2d | Linear)
        and bool(readers)
        and all(isinstance(graph[name].op, Neuron) for name in readers)
    )


class _Values:
    """The values of finished nodes on all images: stored for neuron layers, computed from these for other nodes."""

    def __init__(self, graph: Graph, images: Tensor | Spill, timesteps: int, refitted: bool) -> None:
        self.graph, self.images, self.timesteps, self.steps = graph, images, timesteps, steps_of(graph, timesteps)
        each, most = largest(graph, images, self.steps), memory.budget(None, graph.device)
        counts = all_gather(len(images))
        self.groups = _groups(counts, each)
        self.at_once = len(self.groups) == 1  # whether all images are in memory
        self.limit = math.inf if self.at_once else most
        self.largest = each * max(part.stop - part.start for group in self.groups for part in group)  # of a part
        self.done: dict[str, Node] = {}
        self.kept: dict[str, Values] = {}
        self.at_hand: dict[str, Pair] = {}  # values in memory, if all images are
        self.driven: dict[str, EventDriven] = {}  # the convolutions of stored spikes
        self.last: dict[str, int] = {}  # index of the last node that needs a value
        for index, node in reversed(list(enumerate(graph.nodes))):
            fitted = isinstance(node.op, Neuron) or (refitted and _fires(graph, node))
            fitted = fitted or isinstance(node.op, Readout)
            use = max(index if fitted else -1, -1 if isinstance(node.op, Neuron) else self.last.get(node.name, -1))
            for name in node.inputs:
                self.last[name] = max(use, self.last.get(name, -1))

    def synapse(self, node: Node) -> Pairs:
        """The mean inputs and the target outputs of a synapse."""
        assert isinstance(node.op, Conv2d | Linear)
        op, readers = node.op, self.graph.users[node.name]
        beside = self.graph[readers[0]].inputs if len(readers) == 1 else ()

        def pair(part: slice) -> tuple[Tensor, Tensor]:
            found = self._found()
            entering = self._value(node.inputs[0], part, found)
            wanted = op.run(entering.analog)
            for name in beside:
                if name in self.done:
                    other = self._value(name, part, found)
                    wanted = wanted + (other.analog - mean_of_steps(other.spiking, not self.at_once))
            return mean_of_steps(entering.spiking, not self.at_once), wanted

        return Pairs(self.groups, pair, 0)  # looked at once

    def neuron(self, node: Node) -> Pairs:
        """The currents and source activations of a neuron layer."""

        def pair(part: slice) -> tuple[Tensor, Tensor]:
            assert isinstance(node.op, Neuron)
            found = self._found()
            inputs = [self._value(name, part, found) for name in node.inputs]
            return arriving(node.op, inputs, own=not self.at_once)

        return Pairs(self.groups, pair, self.limit)

    def readout(self, part: slice) -> tuple[Tensor, Tensor]:
        """The currents of the readout, the last node, and its target, before its scale."""
        with torch.no_grad(), arithmetic(self.images[:1], tf32=False):
            value = self._value(self.graph.nodes[-1].inputs[0], part, {})
        return value.spiking, value.analog

    def fire(self, index: int, node: Node, arrived: Pairs) -> None:
        """Let a finished neuron layer fire at what arrives, if anything needs what it sends."""
        assert isinstance(node.op, Neuron)
        op = node.op
        if self.last.get(node.name, -1) <= index:
            return
        as_bits = not self.at_once and in_bits(op, self.steps, self.timesteps)
        outputs = (
            Pair(fire(op, currents) if as_bits else fire_mean(op, currents, self.timesteps), target)
            for currents, target in arrived
        )
        self.kept[node.name] = next(outputs) if self.at_once else Kept(op, self.timesteps, outputs)

    def finish(self, index: int, node: Node) -> None:
        """Add a finished node; drop values that nothing needs any more."""
        self.done[node.name] = node
        if isinstance(node.op, Input):
            self.kept[node.name] = Shown(node.op, self.images, self.steps)
        if isinstance(node.op, Readout):
            return  # what it reads is left for the next pass
        for name in [name for name, last in self.last.items() if last <= index]:
            self.kept.pop(name, None)
            self.at_hand.pop(name, None)
            self.driven.pop(name, None)
        memory.release()  # else what was kept of this layer counts as held in the next

    def _found(self) -> dict[str, Pair]:
        return self.at_hand if self.at_once else {}

    def _value(self, name: str, part: slice, found: dict[str, Pair]) -> Pair:
        """A node's value on some images; ``found`` holds those already computed."""
        if name not in found:
            node = self.done[name]
            if name in self.kept:
                found[name] = self.kept[name][part]
            else:
                found[name] = self._by_events(node, part) or self._passed(node, part, found)
        return found[name]

    def _passed(self, node: Node, part: slice, found: dict[str, Pair]) -> Pair:
        inputs = [self._value(before, part, found) for before in node.inputs]
        return passed(node.op, inputs, self.done[node.inputs[0]].op)

    def _by_events(self, node: Node, part: slice) -> Pair | None:
        """The value of a convolution of stored spikes of plain neurons, which are not made numbers of; else None."""
        source = self.kept.get(node.inputs[0])
        if not isinstance(node.op, Conv2d) or not isinstance(source, Kept):
            return None
        spikes = source.spikes(part)
        if spikes is None or spikes.device.type != "cpu" or self.steps == 1:
            return None
        sender = self.done[node.inputs[0]].op
        assert isinstance(sender, Neuron)
        if node.name not in self.driven:
            self.driven[node.name] = EventDriven(synapse(node.op), sender)
        currents = self.driven[node.name].run(spikes)
        if currents is None:
            return None
        return Pair(currents.view(self.steps, -1, *currents.shape[1:]), node.op.run(source.analog(part)))
