"""The settings of a training run, its learning rate at every step, and its optimizer."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..data.arguments import real_number
from ..data.events import Binning
from ..data.images import Preprocessing
from ..errors import InvalidData, message
from ..runtime.display import Displayed

OPTIMIZERS = ("sgd", "adamw")
ACTIVATIONS = ("relu", "qcfs")
SCHEDULES = ("cosine", "step", "constant")
AUGMENTATIONS = ("crop", "resized-crop", "flip", "autoaugment")


@dataclass(frozen=True, repr=False)
class Training(Displayed):
    """The settings that, with the architecture and the data, determine a run.

    Attributes:
        optimizer: ``"sgd"`` with ``momentum``, or ``"adamw"`` (momenta 0.9 and 0.999).
        lr: the learning rate after the warm-up.
        momentum: of SGD.
        weight_decay: of all parameters.
        schedule: ``"cosine"``, ``"step"`` or ``"constant"``; see :func:`learning_rate`.
        step_epochs: epochs between drops, of schedule ``"step"``.
        gamma: the factor of a drop, of schedule ``"step"``.
        warmup: epochs of rising learning rate.
        epochs: how often the network sees every image.
        batch_size: images per step, of all processes together.
        label_smoothing: of the cross entropy.
        amp: compute in 16 bits where autocast does.
        recompute: compute residual blocks again in the backward pass instead of storing them.
        seed: of weights, order, augmentation, dropout and choices of images.
        augmentation: some of ``"crop"`` (padded by an eighth of the side), ``"resized-crop"``, ``"flip"`` and
            ``"autoaugment"``; None for what suits the data.
        timesteps: T of a spiking network; None for the architecture's own.
        size: side of the images in pixels; None for that of the data.
        width: channels of the first stage; None for the architecture's own.
        normalize_input: as in :func:`s_resnet.models.build`.
        limit: train on so many images, a seeded choice over all classes; None for all.
        test_limit: test on so many images; None for all.
        validation: hold out so many training images, and report the accuracy on them.
        activation: ``"relu"``, or ``"qcfs"`` for an ANN that is ready for conversion
            (:class:`s_resnet.frontend.QCFSModule`).
        levels: L of ``"qcfs"``, the T to convert for.
        preprocessing: how a sample becomes an input; None for the usual way at ``size``.

    Raises:
        InvalidData: a value is out of range.
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
    preprocessing: Preprocessing | Binning | None = None

    def stored(self) -> dict[str, Any]:
        """The settings as a checkpoint keeps them: all but the preprocessing, which has an entry of its own."""
        return {name: value for name, value in asdict(self).items() if name != "preprocessing"}

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
        if not 0 < real_number(self.lr) < math.inf:
            raise _invalid("lr", repr(self.lr), "a number above 0")
        if not 0 <= real_number(self.weight_decay) < math.inf:
            raise _invalid("weight_decay", repr(self.weight_decay), "a number >= 0")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= real_number(getattr(self, name)) < 1:
                raise _invalid(name, repr(getattr(self, name)), "0 <= number < 1")
        if not 0 < real_number(self.gamma) <= 1:
            raise _invalid("gamma", repr(self.gamma), "0 < number <= 1")
        if isinstance(self.augmentation, str):
            raise _invalid("augmentation", repr(self.augmentation), f"a tuple such as ({self.augmentation!r},)")
        for name in self.augmentation or ():
            if name not in AUGMENTATIONS:
                raise _invalid("augmentation", repr(name), f"some of {', '.join(AUGMENTATIONS)}")


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _invalid(name, repr(value), f"a whole number >= {least}")


def _invalid(name: str, got: object, expected: str) -> InvalidData:
    return InvalidData(message("train", name, got, expected, f"Pass such a value as {name}"))


@dataclass(frozen=True, repr=False)
class Execution(Displayed):
    """How a run is carried out and reported. A checkpoint does not depend on it, except on the kind of device.

    Attributes:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` and so on.
        workers: processes that decode images; None for a usual number.
        progress: show progress bars.
        on_epoch: is called in the first process with each new entry of the history.
        on_note: is called in the first process with remarks about the run.
        tensorboard: the folder for curves; None for no curves.
    """

    device: str = "auto"
    workers: int | None = None
    progress: bool = False
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None
    on_note: Callable[[str], None] | None = None
    tensorboard: str | os.PathLike[str] | None = None


def learning_rate(settings: Training, step: int, steps: int) -> float:
    """The learning rate of an optimizer step.

    With n steps in the first ``warmup`` epochs, p the finished share of the other steps, and epochs counted from the
    start of the run::

        lr (step + 1) / n                     during the warm-up, then
        lr (1 + cos(pi p)) / 2                for "cosine"
        lr gamma^(epoch // step_epochs)       for "step"
        lr                                    for "constant"

    Args:
        settings: the run's settings.
        step: the number of the step, from 0 on.
        steps: how many steps an epoch has.

    Source: arXiv:1608.03983, equation 5, without restarts, for "cosine".
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
    """The optimizer; weight decay applies to every parameter, as in the papers' code."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def derive_seed(*parts: object) -> int:
    """A seed below 2^63 for one random draw, the same on every platform.

    Args:
        *parts: what is drawn, such as ``seed, "image", epoch, index``.
    """
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
