"""What a training run is: its settings, the learning rate at every step, and its optimizer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InvalidData, message
from ..runtime.display import Displayed

OPTIMIZERS = ("sgd", "adamw")
ACTIVATIONS = ("relu", "qcfs")
SCHEDULES = ("cosine", "step", "constant")
AUGMENTATIONS = ("crop", "resized-crop", "flip", "autoaugment")


@dataclass(frozen=True, repr=False)
class Training(Displayed):
    """Everything that, with the architecture and the data, repeats a run.

    optimizer: ``"sgd"`` with ``momentum``, or ``"adamw"`` (momenta 0.9 and 0.999). schedule: see
    :func:`learning_rate`. batch_size: of all processes together. amp: 16-bit autocast. recompute: residual blocks are
    computed again in the backward pass in place of being stored. augmentation: of ``crop`` (padded by an eighth of the
    side), ``resized-crop``, ``flip``, ``autoaugment``; None: what suits the data. timesteps, size, width: of the
    network; None: the architecture's own, the images' own. limit, test_limit: so many images, seeded, over all classes.
    validation: so many training images are kept apart and reported on. activation: ``"qcfs"`` trains an ANN that is
    ready for conversion (:class:`s_resnet.frontend.QCFSModule`) with so many ``levels``. Raises InvalidData for values
    without sense.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    step_epochs: int = 40
    gamma: float = 0.1
    warmup: int = 0
    epochs: int = 100
    batch_size: int = 128
    label_smoothing: float = 0.0
    amp: bool = False
    recompute: bool = False
    seed: int = 0
    augmentation: tuple[str, ...] | None = None
    timesteps: int | None = None
    size: int | None = None
    width: int | None = None
    normalize_input: bool = False
    limit: int | None = None
    test_limit: int | None = None
    validation: int = 0
    activation: str = "relu"
    levels: int = 8

    def __post_init__(self) -> None:
        for name, among in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in among:
                raise _invalid(name, repr(getattr(self, name)), " or ".join(among))
        for name in ("epochs", "batch_size", "step_epochs", "levels"):
            _whole(name, getattr(self, name), 1)
        for name in ("timesteps", "size", "width", "limit", "test_limit"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for name in ("warmup", "validation", "seed"):
            _whole(name, getattr(self, name), 0)
        if self.warmup > self.epochs:
            raise _invalid("warmup", self.warmup, f"at most the {self.epochs} epochs")
        if not 0 < self.lr < math.inf:
            raise _invalid("lr", self.lr, "a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise _invalid("weight_decay", self.weight_decay, "a number >= 0")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise _invalid(name, getattr(self, name), "0 <= number < 1")
        if not 0 < self.gamma <= 1:
            raise _invalid("gamma", self.gamma, "0 < number <= 1")
        for name in self.augmentation or ():
            if name not in AUGMENTATIONS:
                raise _invalid("augmentation", repr(name), f"some of {', '.join(AUGMENTATIONS)}")


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _invalid(name, value, f"a whole number >= {least}")


def _invalid(name: str, got: object, expected: str) -> InvalidData:
    return InvalidData(message("train", name, got, expected, "Change it"))


def learning_rate(settings: Training, step: int, steps: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0 on) where an epoch has ``steps``.

    Over the first ``warmup`` epochs of n steps it is ``lr (step + 1) / n``. Then, with p the share of the other steps
    that is done, cosine: ``lr (1 + cos(pi p)) / 2`` (arXiv:1608.03983, equation 5, without restarts); step:
    ``lr gamma^(epoch // step_epochs)``, epochs counted from the start of the run; constant: ``lr``.
    """
    rising = settings.warmup * steps
    if step < rising:
        return settings.lr * (step + 1) / rising
    if settings.schedule == "cosine":
        done = (step - rising) / max(1, settings.epochs * steps - rising)
        return settings.lr * (1 + math.cos(math.pi * done)) / 2
    if settings.schedule == "step":
        return settings.lr * float(settings.gamma ** (step // steps // settings.step_epochs))
    return settings.lr


def make_optimizer(settings: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer; weight decay reaches every parameter, as in the papers' code."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def derive_seed(*parts: object) -> int:
    """A seed below 2^63 from what is drawn for: (seed, "image", epoch, index), ...: equal on every platform."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
