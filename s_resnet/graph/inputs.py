"""The inputs of a network: images that fit it, and frames of events one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.arguments import check_dense, check_finite
from ..errors import InvalidData, message
from .ops import Conv2d, Node
from .provenance import Provenance
from .shapes import Shape, shapes


def check_images(nodes: Sequence[Node], images: Tensor, where: str) -> dict[str, Shape]:
    """The shape of every node for these images.

    On a GPU the check for finite numbers would stall the queue; there :func:`marked` makes the answers NaN.

    Raises:
        InvalidData: the network cannot take the images or, off a GPU, they are not finite.
    """
    for node in nodes[1:]:
        op = node.op
        if isinstance(op, Conv2d) and nodes[0].name in node.inputs:
            got = (images.shape[-3] if images.ndim in (4, 5) else None, images.dtype, images.device)
            expected = (op.weight.shape[1] * op.groups, op.weight.dtype, op.weight.device)
            if got != expected:
                given = f"images of shape {tuple(images.shape)}, {got[1]} on {got[2]}"
                own = f"{expected[0]} channels, {expected[1]} on {expected[2]}"
                remedy = "Preprocess them as for the source model"
                if images.ndim == 4 and images.shape[2] == 1 and len(images) == expected[0]:  # [C, H, W] as signals
                    remedy = "Of one image make a batch: x.unsqueeze(0)"
                raise InvalidData(message(node.name, "", given, own, remedy))
    if images.ndim not in (4, 5):
        given = f"images of shape {tuple(images.shape)}"
        raise InvalidData(message(where, "", given, "[B, C, H, W], or events [T, B, C, H, W]", "Reshape them"))
    found = shapes(nodes, images.shape[-3:])
    if not images.is_cuda:
        check_finite(images, where)
    return found


def check_shown(nodes: Sequence[Node], provenance: Provenance, images: Tensor, where: str) -> dict[str, Shape]:
    """The shape of every node for images that a network is shown.

    Raises:
        InvalidData: the network cannot take them.
    """
    check_dense(images, where)
    check_size(provenance, images.shape[-2:], where)
    return check_images(nodes, images, where)


def check_simulated(nodes: Sequence[Node], provenance: Provenance, images: Tensor, steps: int) -> dict[str, Shape]:
    """The same, where events need a frame for each of so many steps.

    Raises:
        InvalidData: the network cannot take them, or there are none, or too few frames.
    """
    check_dense(images, "simulate")
    if images.ndim not in (4, 5) or images.numel() == 0:
        got, expected = f"images of shape {tuple(images.shape)}", "[B, C, H, W], or events [T, B, C, H, W], with B >= 1"
        raise InvalidData(message("simulate", "", got, expected, "Reshape them, and leave empty batches out"))
    found = check_shown(nodes, provenance, images, "simulate")
    if images.ndim == 5 and steps > len(images):
        got, remedy = f"{len(images)} frames of events for {steps} steps", "Lower T, or bin the events into more frames"
        raise InvalidData(message("simulate", "", got, "one for each step", remedy))
    return found


def check_size(provenance: Provenance, size: Sequence[int], where: str) -> None:
    """Check the size of images for a network that equals its source at one size only.

    Raises:
        InvalidData: the images have another size.
    """
    fixed = provenance.fixed_size
    if fixed is not None and list(size) != list(fixed):
        got, own = (" x ".join(map(str, pair)) for pair in (size, fixed))
        given = f"images of {got} for a network of images of {own}, whose source has sizes that were traced at {own}"
        remedy = f"Resize the images, or convert the source with images of {got}"
        raise InvalidData(message(where, "", given, "that size", remedy))


def marked(outputs: Tensor, images: Tensor) -> Tensor:
    """Answers ``[S, B, *]``, NaN where the image is not finite, since a membrane that is NaN just never fires.

    Nothing is read back, so the GPU is not stalled.
    """
    sound = images.isfinite().flatten(-3).all(-1)
    sound = sound if images.ndim == 4 else sound.all(0)
    return torch.where(sound.view(-1, *[1] * (outputs.ndim - 2)), outputs, torch.nan)


def finite_answers(answers: Tensor, where: str) -> Tensor:
    """The answers, checked off a GPU, as NaN must not be ranked.

    Raises:
        InvalidData: one is NaN or infinite.
    """
    if not answers.is_cuda and not bool(answers.isfinite().all()):
        remedy = "The weights or the images are too large for their type: scale them down, or use a wider type"
        raise InvalidData(message(where, "", "answers that are NaN or infinite", "finite numbers", remedy))
    return answers


def presented(events: Tensor, done: int) -> Callable[[int], Tensor]:
    """The function that gives the next S frames of events ``[T, B, *]``, of which ``done`` were given before."""
    frames: Iterator[Tensor] = iter(events[done:])

    def present(steps: int) -> Tensor:
        return torch.stack([next(frames) for _ in range(steps)])

    return present


def count_images(images: Tensor) -> int:
    """B of images ``[B, C, H, W]`` or events ``[T, B, C, H, W]``."""
    return images.shape[1] if images.ndim == 5 else len(images)
