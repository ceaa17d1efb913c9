"""Other guesses about what a checkpoint does not say, compared by how well its BatchNorm statistics fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ..errors import InvalidData
from ..frontend.batchnorm_check import Moments
from ..frontend.checkpoint import load_checkpoint
from ..frontend.loaded import Checkpoint
from ..frontend.program import Program
from ..frontend.trace import trace
from ..runtime.display import Displayed

IMAGES = 32  # to try each guess on; half as many if they are large
SIZES = (32, 64, 224)
LARGE = 128  # pixels
BATCH = 16
# Mean and std that networks are trained with, besides ImageNet's: 0.5, none, and pixels from 0 to 255.
SCALES = (
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.0, 0.0, 0.0), (1 / 255,) * 3),
    (IMAGENET_MEAN, (1 / 255,) * 3),
)


@dataclass(frozen=True, repr=False)
class Alternative(Displayed):
    """Another guess about what a checkpoint does not say.

    Attributes:
        options: the options of ``sresnet convert`` that select it.
        score: the :attr:`Fit.score` of network and images with these options.
    """

    options: str
    score: float


def alternatives(
    path: str | os.PathLike[str], checkpoint: Checkpoint, images: Tensor, preprocessing: Preprocessing
) -> list[Alternative]:
    """Other mean and std, input sizes and variants of the architecture that fit the BatchNorm statistics, best first.

    One thing is changed at a time. Each alternative fits at least twice as well as the choice that was made.

    Args:
        path: the file of the checkpoint.
        checkpoint: what :func:`s_resnet.load_checkpoint` made of it.
        images: ``[B, 3, H, W]``.
        preprocessing: how they were prepared.
    """
    images = images[: IMAGES if preprocessing.size < LARGE else IMAGES // 2]
    chosen = _score(checkpoint.model, images)
    tried = list(_tried(path, checkpoint, images, preprocessing))
    return sorted(
        (one for one in tried if one.score <= 1 and one.score < chosen / 2), key=lambda alternative: alternative.score
    )


def _tried(
    path: str | os.PathLike[str], checkpoint: Checkpoint, images: Tensor, preprocessing: Preprocessing
) -> Iterator[Alternative]:
    for arch in checkpoint.variants:
        options = f"--arch {arch} --input-size {preprocessing.size}"
        yield Alternative(options, _score(load_checkpoint(path, arch, checkpoint.ema).model, images))
    for mean, std in SCALES:
        if (mean, std) != (preprocessing.mean, preprocessing.std):
            prepared = _rescaled(images, preprocessing, replace(preprocessing, mean=mean, std=std))
            yield Alternative(f"--mean {_written(mean)} --std {_written(std)}", _score(checkpoint.model, prepared))
    for size in SIZES if checkpoint.input_size > LARGE else SIZES[:2]:  # CIFAR networks take small images
        if size != preprocessing.size:
            some = images if size < LARGE else images[: IMAGES // 2]
            resized = F.interpolate(some, (size, size), mode="bilinear", antialias=True)
            if _takes(checkpoint.model, resized):
                yield Alternative(f"--input-size {size}", _score(checkpoint.model, resized))


def _takes(model: nn.Module, images: Tensor) -> bool:
    """Whether a network takes images of this size; one from a file may be made for its own size alone."""
    if not isinstance(model, Program):
        return True
    try:
        model(images[:2])
    except InvalidData:
        return False
    return True


def _score(model: nn.Module, images: Tensor) -> float:
    """How far network and images are from fitting; 0 is a perfect fit."""
    moments = Moments(trace(model, images[:2]))
    for part in torch.split(images, BATCH):
        for _ in moments.watch(part):
            pass
    return moments.fit().score


def _rescaled(images: Tensor, before: Preprocessing, after: Preprocessing) -> Tensor:
    """Images that were normalized with one mean and std, as if with another."""
    (mean, std), (new_mean, new_std) = (
        (torch.tensor(one.mean).view(3, 1, 1), torch.tensor(one.std).view(3, 1, 1)) for one in (before, after)
    )
    return (images * std + mean - new_mean) / new_std


def _written(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:.4g}" for number in numbers)
