"""What a network is given to run on: images that fit it, and frames of events one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.arguments import check_finite
from ..errors import InvalidData
from .ops import Conv2d, Node
from .provenance import Provenance
from .shapes import Shape, shapes


def check_images(nodes: Sequence[Node], images: Tensor, where: str) -> dict[str, Shape]:
    """The shape of every node for these images.

    InvalidData where the network cannot take them or, off a GPU, where they are not finite: a GPU would have to be
    waited for. Of such images its answers are no numbers, which :func:`marked` sees to.
    """
    for node in nodes[1:]:
        op = node.op
        if isinstance(op, Conv2d) and nodes[0].name in node.inputs:
            got = (images.shape[-3] if images.ndim in (4, 5) else None, images.dtype, images.device)
            expected = (op.weight.shape[1] * op.groups, op.weight.dtype, op.weight.device)
            if got != expected:
                raise InvalidData(
                    f"{node.name}: got images of shape {tuple(images.shape)}, {got[1]} on {got[2]}; expected "
                    f"{expected[0]} channels, {expected[1]} on {expected[2]}. Preprocess them as for the source model."
                )
    if images.ndim not in (4, 5):
        raise InvalidData(
            f"{where}: got images of shape {tuple(images.shape)}; expected [B, C, H, W], or events [T, B, C, H, W]. "
            "Reshape them."
        )
    found = shapes(nodes, images.shape[-3:])
    if not images.is_cuda:
        check_finite(images, where)
    return found


def check_size(provenance: Provenance, size: Sequence[int], where: str) -> None:
    """InvalidData where a network is its source for images of one size only, and these have another."""
    fixed = provenance.fixed_size
    if fixed is not None and list(size) != list(fixed):
        got, own = (" x ".join(map(str, pair)) for pair in (size, fixed))
        raise InvalidData(
            f"{where}: got images of {got} for a network of images of {own}, as its source has sizes of its own that "
            f"were taken at {own}; expected that size. Resize the images, or convert the source with some of {got}."
        )


def marked(outputs: Tensor, images: Tensor) -> Tensor:
    """Answers ``[S, B, *]``, NaN where the image is not finite: a membrane that is NaN just never fires.

    Nothing is read back, so that nothing waits for a GPU.
    """
    sound = images.isfinite().flatten(-3).all(-1)
    sound = sound if images.ndim == 4 else sound.all(0)
    return torch.where(sound.view(-1, *[1] * (outputs.ndim - 2)), outputs, torch.nan)


def finite_answers(answers: Tensor, where: str) -> Tensor:
    """The answers; InvalidData where one off a GPU is NaN or infinite: a number that is none must not be ranked."""
    if not answers.is_cuda and not bool(answers.isfinite().all()):
        raise InvalidData(
            f"{where}: got answers that are NaN or infinite; expected finite numbers. The weights are too large for "
            "their type, or the images are: check both."
        )
    return answers


def presented(events: Tensor, done: int) -> Callable[[int], Tensor]:
    """The function that gives the next S frames of events ``[T, B, *]``, of which ``done`` were given before."""
    frames: Iterator[Tensor] = iter(events[done:])

    def present(steps: int) -> Tensor:
        return torch.stack([next(frames) for _ in range(steps)])

    return present
