"""Neuron layers fitted one after the other, each on all images, a part of them at a time."""

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

# Values of the largest layer, over all steps and images, up to which all images are kept in memory; of a part of more.
ROOM, PART = 2**24, 2**23
PARTS = 8  # at least, where there are several


@dataclass(frozen=True)
class Each:
    """What a function gives for every part of the images, computed whenever it is gone through."""

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
    """Run both networks on all of ``images`` ``[N, C, H, W]``; the graph with the neuron layers that ``fit`` chose.

    ``fit(node, parts)`` is called for every neuron layer in execution order. Each of the parts, which can be gone
    through any number of times, is a pair: currents ``[S, B, *]`` per step, without the layer's own correction, made by
    layers that are already final; and the source network's activation ``[B, *]``. S is T, or 1 where the network is
    order-free (:func:`s_resnet.simulation.lockstep.order_free`): the currents are then the mean over T and spikes are
    mean rates.

    ``refit(node, parts)`` is called before for every convolution and linear layer that only neuron layers read. Its
    pairs: inputs ``[B, *]``, the mean over the steps, and what its mean output should be: the source network's value,
    and for a single reader also what that one's other inputs, as far as they are there, lack against the source's.

    Where not all images fit in memory, what the neuron layers send is kept in temporary files, as bits, bytes or words
    beside the source's activations, and what lies between is computed again for each part. So memory does not depend
    on the number of images; time and the disk do.
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
    """How many images have no more than ``room`` values in the largest layer, over so many steps; at least one."""
    sizes = [value.numel() * (1 if name in graph.static else steps) for name, value in graph.activations(images[:1])]
    return max(1, room // max(sizes))


def parts_of(graph: Graph, images: Tensor | Spill, steps: int, room: int | None = None) -> tuple[slice, ...]:
    """All images in parts that fit in memory: no more than ``room`` values in the largest layer, by default PART."""
    return _parts(len(images), in_memory(graph, images, steps, PART if room is None else room))


def _parts(count: int, size: int) -> tuple[slice, ...]:
    """Of equal size, but for one."""
    number = -(-count // size)
    return tuple(slice(count * part // number, count * (part + 1) // number) for part in range(number))


def _fires(graph: Graph, node: Node) -> bool:
    """Whether it is a synapse that only neuron layers read."""
    readers = graph.users[node.name]
    return (
        isinstance(node.op, Conv2d | Linear)
        and bool(readers)
        and all(isinstance(graph[name].op, Neuron) for name in readers)
    )


class _Values:
    """What the finished nodes give on all images: kept for neuron layers, computed from those for what lies between."""

    def __init__(self, graph: Graph, images: Tensor | Spill, timesteps: int, refitted: bool) -> None:
        self.graph, self.images, self.timesteps, self.steps = graph, images, timesteps, steps_of(graph, timesteps)
        self.parts = parts_of(graph, images, self.steps, ROOM)
        if len(self.parts) > 1:
            size = min(in_memory(graph, images, self.steps, PART), max(1, len(images) // PARTS))
            self.parts = _parts(len(images), size)
        self.done: dict[str, Node] = {}
        self.kept: dict[str, Values] = {}
        self.at_hand: dict[str, Pair] = {}  # of the one part, where there is one
        self.last: dict[str, int] = {}  # the last node that is fitted with its help
        for index, node in reversed(list(enumerate(graph.nodes))):
            fitted = isinstance(node.op, Neuron) or (refitted and _fires(graph, node))
            use = max(index if fitted else -1, -1 if isinstance(node.op, Neuron) else self.last.get(node.name, -1))
            for name in node.inputs:
                self.last[name] = max(use, self.last.get(name, -1))

    def synapse(self, node: Node) -> Pairs:
        """Mean inputs and what is wanted of a synapse."""
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
        """Currents and source activations of a neuron layer."""

        def pair(part: slice) -> tuple[Tensor, Tensor]:
            assert isinstance(node.op, Neuron)
            found = self._found()
            return arriving(node.op, [self._value(name, part, found) for name in node.inputs])

        return self._pairs(pair)

    def _pairs(self, pair: Callable[[slice], tuple[Tensor, Tensor]]) -> Pairs:
        return [pair(self.parts[0])] if len(self.parts) == 1 else Each(self.parts, pair)

    def finish(self, index: int, node: Node) -> None:
        """Add a node as it is to be, and let it fire; forget what nobody needs any more."""
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
        """A node's value of some images; ``found`` has those that are known already."""
        if name not in found:
            node = self.done[name]
            if name in self.kept:
                found[name] = self.kept[name][part]
            else:
                inputs = [self._value(before, part, found) for before in node.inputs]
                found[name] = passed(node.op, inputs, self.done[node.inputs[0]].op)
        return found[name]
