"""Fit neuron layers one after the other, each on all images, one part of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..graph.engine import arithmetic
from ..graph.graph import Graph
from ..graph.neuron import Neuron
from ..graph.ops import Conv2d, Input, Linear, Node, Op
from ..runtime.progress import Progress
from ..simulation.lockstep import Pair, arriving, fire_mean, passed, steps_of
from .kept import Kept, Shown, Values
from .spill import Spill

# Values of the largest layer, over all steps and images, that are held in memory: of all images, or else of one part.
ROOM, PART = 2**24, 2**23
PARTS = 8  # at least so many, if there are several


@dataclass(frozen=True)
class Each:
    """A function's values for every part of the images, computed anew in each iteration."""

    parts: tuple[slice, ...]
    of: Callable[[slice], tuple[Tensor, Tensor]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.of, self.parts)

    def __len__(self) -> int:
        return len(self.parts)


Pairs = Sequence[tuple[Tensor, Tensor]] | Each
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
        fit: called as ``fit(node, parts)`` for every neuron layer in execution order; returns the layer to use. The
            parts can be iterated over any number of times. Each is a pair: the currents ``[S, B, *]`` per step, without
            the layer's own correction, from layers that are already final; and the source's activation ``[B, *]``.
        refit: called likewise, and earlier, for every convolution and linear layer that only neuron layers read. A pair
            is then the inputs ``[B, *]``, the mean over the steps, and what the mean output should be: the source's
            value, plus, with a single reader, the shortfall of the reader's other inputs where already computed.
        progress: a label for a bar; empty for none.

    Returns:
        The graph with the layers that ``fit`` and ``refit`` returned.
    """
    with torch.no_grad(), arithmetic(images[:1], tf32=False):
        values = _Values(graph, images, timesteps, refit is not None)
        bar = Progress(graph.nodes, desc=progress, unit="node", shown=bool(progress))
        for index, node in enumerate(bar):
            if refit is not None and _fires(graph, node):
                node = replace(node, op=refit(node, values.synapse(node)))
            elif isinstance(node.op, Neuron):
                node = replace(node, op=fit(node, values.neuron(node)))
            values.finish(index, node)
        return replace(graph, nodes=tuple(values.done.values()))


def in_memory(graph: Graph, images: Tensor | Spill, steps: int, room: int) -> int:
    """How many images have at most ``room`` values in the largest layer over all steps; at least one."""
    sizes = [value.numel() * (1 if name in graph.static else steps) for name, value in graph.activations(images[:1])]
    return max(1, room // max(sizes))


def parts_of(graph: Graph, images: Tensor | Spill, steps: int, room: int | None = None) -> tuple[slice, ...]:
    """All images in parts with at most ``room`` values in the largest layer, by default PART."""
    return _parts(len(images), in_memory(graph, images, steps, PART if room is None else room))


def _parts(count: int, size: int) -> tuple[slice, ...]:
    """Parts of equal size, but for the last one."""
    number = -(-count // size)
    return tuple(slice(count * part // number, count * (part + 1) // number) for part in range(number))


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
        self.parts = parts_of(graph, images, self.steps, ROOM)
        if len(self.parts) > 1:
            size = min(in_memory(graph, images, self.steps, PART), max(1, len(images) // PARTS))
            self.parts = _parts(len(images), size)
        self.done: dict[str, Node] = {}
        self.kept: dict[str, Values] = {}
        self.at_hand: dict[str, Pair] = {}  # values in memory, if there is only one part
        self.last: dict[str, int] = {}  # index of the last node that needs a value
        for index, node in reversed(list(enumerate(graph.nodes))):
            fitted = isinstance(node.op, Neuron) or (refitted and _fires(graph, node))
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
                    wanted = wanted + (other.analog - other.spiking.mean(0))
            return entering.spiking.mean(0), wanted

        return self._pairs(pair)

    def neuron(self, node: Node) -> Pairs:
        """The currents and source activations of a neuron layer."""

        def pair(part: slice) -> tuple[Tensor, Tensor]:
            assert isinstance(node.op, Neuron)
            found = self._found()
            return arriving(node.op, [self._value(name, part, found) for name in node.inputs])

        return self._pairs(pair)

    def _pairs(self, pair: Callable[[slice], tuple[Tensor, Tensor]]) -> Pairs:
        return [pair(self.parts[0])] if len(self.parts) == 1 else Each(self.parts, pair)

    def finish(self, index: int, node: Node) -> None:
        """Add a finished node and let it fire; drop values that nothing needs any more."""
        self.done[node.name] = node
        needed = self.last.get(node.name, -1) > index
        if isinstance(node.op, Input):
            self.kept[node.name] = Shown(node.op, self.images, self.steps)
        elif isinstance(node.op, Neuron) and needed:
            outputs = (
                Pair(fire_mean(node.op, currents, self.timesteps), target) for currents, target in self.neuron(node)
            )
            if len(self.parts) == 1:
                self.kept[node.name] = next(outputs)
            else:
                self.kept[node.name] = Kept(node.op, self.timesteps, outputs)
        for name in [name for name, last in self.last.items() if last <= index]:
            self.kept.pop(name, None)
            self.at_hand.pop(name, None)

    def _found(self) -> dict[str, Pair]:
        return self.at_hand if len(self.parts) == 1 else {}

    def _value(self, name: str, part: slice, found: dict[str, Pair]) -> Pair:
        """A node's value on some images; ``found`` holds those already computed."""
        if name not in found:
            node = self.done[name]
            if name in self.kept:
                found[name] = self.kept[name][part]
            else:
                inputs = [self._value(before, part, found) for before in node.inputs]
                found[name] = passed(node.op, inputs, self.done[node.inputs[0]].op)
        return found[name]
