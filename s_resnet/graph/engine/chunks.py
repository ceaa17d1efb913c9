"""How much goes through a layer at a time: steps of one batch, or images where all steps go through together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels import events
from ...runtime.memory import free_on_gpu, images_in
from ...runtime.memory import room as room_for
from ..ops import Node
from ..shapes import Shape, numbers, shapes
from . import footprint
from .plan import Plan, Portion

# Neurons times steps of the largest layer that go through at a time: on a CPU what the caches hold (dense convolutions
# also keep their currents), on a GPU what keeps it busy. And steps at most, since answers come once in a chunk.
EVENTS, CURRENTS, GPU, LONGEST = 2**21, 2**20, 2**28, 32
# Bytes of the values of a run on a CPU: more images at a time are no faster, however much memory there is.
PART = 2**29
# Numbers times steps on a CPU where all steps of an image go through together: measured, docs/explanation/simulator.md.
WINDOW = 2**23
# Steps that go through a lagged layer at a time: more rounds at the end of a window cost more than fewer steps save.
LAGGED = 16


def equal(total: int, most: int) -> list[int]:
    """``total`` in as few parts of at most ``most`` as possible, all equal but the last, so that shapes repeat."""
    size = -(-total // -(-total // most))
    return [min(size, total - done) for done in range(0, total, size)]


def together(images: int, largest: int, steps: int, room: int) -> int:
    """How many of the images may be in memory with all their steps, if a layer may have ``room`` numbers.

    Args:
        images: how many there are.
        largest: numbers of the largest layer for one image and step.
        steps: T.
        room: numbers.
    """
    return min(images, max(1, room // (largest * steps)))


def portion(plan: Plan, images: Tensor, timesteps: int) -> Portion:
    """What of these images and their steps goes through a layer at a time.

    Raises:
        InvalidData: a memory limit cannot hold one image.
    """
    sizes = shapes(plan.nodes, images.shape[-3:])
    counts = {name: numbers(shape) for name, shape in sizes.items()}
    width = 1 if plan.one_kernel else 4  # bytes of a spike, or of its current
    if plan.at_once or plan.lagged:
        steps = timesteps if plan.at_once else min(timesteps, LAGGED)
        largest = max(counts.values())
        room = on_gpu(images.device, width) if images.is_cuda else WINDOW
        some = together(len(images), largest, steps, room)
        return Portion(_fitting(plan, images, sizes, some, steps), steps, largest)
    stem = max(counts[name] for name in plan.kept)  # the size of its output
    room = on_gpu(images.device, width) if images.is_cuda else EVENTS if events.available() else CURRENTS
    steps = max(1, min(LONGEST, room // (len(images) * stem)))
    some = _fitting(plan, images, sizes, len(images), 1)
    part = _part(_left(plan, images.device), images.device)
    while steps > 1 and footprint.spiking(plan, sizes, some, steps) > part:
        steps = -(-steps // 2)
    return Portion(some, steps, stem)


def analog_portions(nodes: tuple[Node, ...], images: Tensor) -> list[int]:
    """How many of the images go through an analog run together.

    Raises:
        InvalidData: a memory limit cannot hold one image.
    """
    # Twice, for what a library takes, and for what the caller holds beside.
    each = 2 * footprint.analog(nodes, shapes(nodes, images.shape[-3:]), images.element_size())
    left = room_for(images.device)
    held = images_in(left, each, "run", images.device)
    return equal(len(images), min(len(images), held, max(1, _part(left, images.device) // each)))


def _fitting(plan: Plan, images: Tensor, sizes: Mapping[str, Shape], some: int, steps: int) -> int:
    """How many of ``some`` images memory holds."""
    left = _left(plan, images.device)
    images_in(left, footprint.spiking(plan, sizes, 1, steps), "simulate", images.device)  # one at least
    counts = range(1, some + 1)
    part = _part(left, images.device)
    return max(1, bisect_right(counts, part, key=lambda count: footprint.spiking(plan, sizes, count, steps)))


def _left(plan: Plan, device: torch.device) -> int:
    """Bytes for the values of a run, beside the weights that it has yet to lay out."""
    return max(0, room_for(device) - (footprint.packed(plan) if device.type == "cpu" and not plan.packed else 0))


def _part(left: int, device: torch.device) -> int:
    """So many of the bytes that are left are for a part of the images."""
    return min(PART, left) if device.type == "cpu" else left


def on_gpu(device: torch.device, width: int) -> int:
    """Numbers of a layer that go through a GPU at a time, in a quarter of the memory that is free or torch's to give.

    About eight such tensors live at a time, of ``width`` bytes a number.
    """
    return min(GPU * 4 // width, free_on_gpu(device) // 4 // (8 * width))
