"""What calibration images say channel by channel, for passes that look at no more than that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..graph.graph import Graph
from ..graph.neuron import Neuron
from ..graph.ops import Node
from ..runtime.processes import all_gather
from .portions import analog_images
from .spill import Spill

LEAST = 1e-3  # share of the layer's median threshold: an almost silent channel must not fire at mere noise


def channel_mean(value: Tensor) -> Tensor:
    """The mean per channel of ``[B, C, *]``."""
    return value.transpose(0, 1).flatten(1).mean(1)


def mean_of(parts: list[tuple[Tensor, int]]) -> Tensor:
    """The mean over the images of all parts and processes, of a mean and the number of images of each."""
    gathered = [part for own in all_gather([(value.cpu(), count) for value, count in parts]) for part in own]
    first, images = gathered[0]
    if len(gathered) == 1:
        return first
    total = first.double() * images
    for value, count in gathered[1:]:
        total, images = total + value.double() * count, images + count
    return (total / images).to(first.dtype)


def usable(full: Tensor, limit: Tensor | None) -> Tensor:
    """Full scales ``[C]``, 0 for silent channels, as a layer can have them.

    A silent channel gets the layer's median, none gets less than a thousandth of it or more than the limit of its ReLU.
    """
    active = full > 0
    middle = full[active].median() if bool(active.any()) else torch.ones_like(full[0])
    full = torch.where(active, full.clamp_min(LEAST * float(middle)), middle)
    return full if limit is None else torch.minimum(full, limit)


def source_currents(graph: Graph, images: Tensor | Spill, where: str) -> Iterator[tuple[Node, Tensor]]:
    """For some images at a time, each neuron layer with the source's current ``[B, C, *]`` before its ReLU.

    Args:
        graph: a network with its neurons.
        images: ``[N, C, H, W]``.
        where: the pass, for errors.
    """
    last = {name: node.name for node in graph.neurons for name in node.inputs}
    size = analog_images(graph, images[:1], where)
    for first in range(0, len(images), size):
        arrived: dict[str, Tensor] = {}
        for name, value in graph.activations(images[first : first + size]):
            node = graph[name]
            if isinstance(node.op, Neuron):
                current = arrived[node.inputs[0]]
                for other in node.inputs[1:]:
                    current = current + arrived[other]
                yield node, current
                arrived = {before: kept for before, kept in arrived.items() if last[before] != name}
            if name in last:
                arrived[name] = value


def with_step_currents(graph: Graph, images: Tensor | Spill, timesteps: int) -> Graph:
    """The graph whose neuron layers have a correction for every step, ``[T, C]``; what was the same stays so."""
    sizes = {name: value.shape[1] for name, value in graph.activations(images[:1])}

    def stepped(node: Node) -> Node:
        op = node.op
        if not isinstance(op, Neuron):
            return node
        now = torch.zeros_like(op.threshold) if op.correction is None else op.correction
        return replace(node, op=replace(op, correction=now.expand(timesteps, sizes[node.name]).clone()))

    return replace(graph, nodes=tuple(map(stepped, graph.nodes)))
