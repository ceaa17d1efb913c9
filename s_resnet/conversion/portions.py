"""How many images go through a network at a time, so that memory stays within the budget of the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..graph.graph import Graph
from ..graph.inputs import check_images
from ..graph.ops import Conv2d, Linear, Op
from ..graph.shapes import numbers
from ..runtime import memory

ANALOG = 2**23  # values of the largest layer at a time: with more a CPU is no faster
# Values of the largest layer that live at a time, for each value of one image: what the layer reads, sends and is
# counted by in an analog run; currents, spikes and what is computed from them in a spiking run.
RUNNING, FIRING = 12, 8
VALUE = 4  # bytes


def _sizes(graph: Graph, images: Tensor, where: str) -> dict[str, int]:
    """The number of values of every node for one of these images ``[B, C, H, W]``."""
    first = images[:1].to(graph.device).expand(images.shape)  # the shape of all, for what an error says
    shapes = check_images(graph.nodes, first, where)
    return {name: numbers(shape) for name, shape in shapes.items()}


def analog_images(graph: Graph, images: Tensor, where: str) -> int:
    """How many images ``[B, C, H, W]`` go through the source network at a time.

    Raises:
        InvalidData: the memory limit does not hold one.
    """
    largest = max(_sizes(graph, images, where).values())
    fitting = memory.images_in(memory.room(graph.device), RUNNING * VALUE * largest, where, graph.device)
    return max(1, min(ANALOG // largest, fitting))


def analog_parts(graph: Graph, images: Tensor, where: str) -> Iterator[Tensor]:
    """Images ``[B, C, H, W]`` in parts that go through the source network at a time."""
    yield from torch.split(images, analog_images(graph, images, where))


def spiking_images(graph: Graph, images: Tensor, where: str) -> int:
    """How many images ``[B, C, H, W]`` can be simulated at a time: all layers keep their membranes.

    Raises:
        InvalidData: the memory limit does not hold one.
    """
    sizes = _sizes(graph, images, where)
    each = VALUE * (2 * sum(sizes.values()) + RUNNING * max(sizes.values()))
    return memory.images_in(memory.room(graph.device), each, where, graph.device)


def trained_images(graph: Graph, images: Tensor, steps: int) -> int:
    """How many images ``[B, C, H, W]`` of so many steps go through all layers while these are trained.

    Raises:
        InvalidData: the memory limit does not hold one.
    """
    sizes = _sizes(graph, images, "reconstruct")
    each = VALUE * (4 * sum(sizes.values()) + FIRING * steps * max(sizes.values()))
    return memory.images_in(memory.room(graph.device), each, "reconstruct", graph.device)


def check_together(graph: Graph, images: Tensor, count: int, where: str) -> None:
    """Check that ``count`` images like these ``[B, C, H, W]`` fit the network, and go through it with their gradients.

    Raises:
        InvalidData: the network does not take them, or the memory limit does not hold them.
    """
    each = VALUE * 2 * sum(_sizes(graph, images, where).values())
    memory.images_in(memory.room(graph.device), each, where, graph.device, count)


def check_layers(graph: Graph, values: int, refitted: Sequence[Op]) -> None:
    """Check that layers can be fitted one after the other within the memory limit.

    Args:
        graph: the network.
        values: of the largest layer in a part of the images, over all steps.
        refitted: the synapses whose weights are fitted: K weights per output take 44 K^2 bytes per group.

    Raises:
        InvalidData: they cannot.
    """
    synapses = [op for op in refitted if isinstance(op, Conv2d | Linear)]
    squares = [44 * op.weight[0].numel() ** 2 * (op.groups if isinstance(op, Conv2d) else 1) for op in synapses]
    each = FIRING * VALUE * values + max(squares, default=0)
    memory.images_in(memory.room(graph.device), each, "calibrate_neurons", graph.device)
