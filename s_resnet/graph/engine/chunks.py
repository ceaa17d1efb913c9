"""How much goes through a layer at a time: steps of one batch, or images where all steps go through together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels import events
from .analog import activations
from .plan import Plan, Portion

# Neurons times steps of the largest layer that go through at a time: on a CPU what the caches hold (dense convolutions
# also keep their currents), on a GPU what keeps it busy. And steps at most, since answers come once in a chunk.
EVENTS, CURRENTS, GPU, LONGEST = 2**21, 2**20, 2**28, 32
# The same on a CPU where all steps of an image go through together: measured, docs/explanation/simulator.md.
WINDOW = 2**23


def equal(total: int, most: int) -> list[int]:
    """``total`` in as few parts of at most ``most`` as possible, all equal but the last, so that shapes repeat."""
    size = -(-total // -(-total // most))
    return [min(size, total - done) for done in range(0, total, size)]


def together(images: int, numbers: int, steps: int, room: int, least: int = 1) -> int:
    """How many of the images may be in memory with all their steps, if a layer may have ``room`` numbers."""
    return min(images, max(least, room // (numbers * steps)))


def steps_at_once(plan: Plan, images: Tensor, constant: Mapping[str, Tensor]) -> Portion:
    """Steps per layer visit, by the size of the stem's output; ``constant``: its values, of one image or more."""
    read_later = {name for node in plan.nodes if node.name not in constant for name in node.inputs}
    numbers = max(constant[name][0].numel() for name in read_later & constant.keys())
    room = on_gpu(images.device) if images.is_cuda else EVENTS if events.available() else CURRENTS
    return Portion(max(1, min(LONGEST, room // (len(images) * numbers))), numbers)


def images_at_once(plan: Plan, images: Tensor, steps: int) -> Portion:
    """Images whose ``steps`` all go through a layer together."""
    numbers = max(value[0].numel() for _, value in activations(plan.nodes, images[:1]))
    room = on_gpu(images.device) if images.is_cuda else WINDOW
    return Portion(together(len(images), numbers, steps, room), numbers)


def on_gpu(device: torch.device) -> int:
    """Numbers of a layer that go through a GPU at a time, in a quarter of the memory that is free or torch's to give.

    About eight such tensors live at a time, in float32.
    """
    free = torch.cuda.mem_get_info(device)[0]
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU, (free + kept) // 4 // (8 * 4))
