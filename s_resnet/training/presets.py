"""The papers' settings, by architecture and data set, as in their released code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.images import LabeledData
from ..errors import InvalidData, message
from ..runtime.display import Displayed
from .settings import Training


@dataclass(frozen=True, repr=False)
class Preset(Displayed):
    """A paper's settings for some architectures on a data set.

    Attributes:
        about: the paper, and the main settings.
        architectures: a regular expression for their names.
        data: the data set, as in :func:`s_resnet.data.open_data`.
        settings: fields of :class:`Training`.
    """

    about: str
    architectures: str
    data: str
    settings: Mapping[str, Any]


# All of them use SGD with momentum 0.9 and an initial learning rate of 0.1.
_DS = {"schedule": "step", "step_epochs": 40, "gamma": 0.1, "lr": 0.1, "momentum": 0.9}
_MS = {"schedule": "cosine", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-5, "label_smoothing": 0.1, "amp": True}

PRESETS: tuple[Preset, ...] = (
    Preset(
        "MS-ResNet, arXiv:2112.08954, released code: T = 6, 125 epochs, AutoAugment without mirroring",
        r"ms_resnet(18|34|104)",
        "imagenet",
        {
            **_MS,
            "epochs": 125,
            "batch_size": 256,
            "seed": 445,
            "augmentation": ("resized-crop", "autoaugment"),
            "timesteps": 6,
            "size": 224,
        },
    ),
    Preset(
        "DS-ResNet, arXiv:2210.06386, released code: T = 4, 110 epochs",
        r"ds_resnet(14|20|32|44|68)",
        "cifar10",
        {
            **_DS,
            "epochs": 110,
            "batch_size": 64,
            "weight_decay": 1e-4,
            "augmentation": ("crop", "flip"),
            "timesteps": 4,
            "size": 32,
            "width": 64,
        },
    ),
    Preset(
        "DS-ResNet, arXiv:2210.06386, released code: T = 10 of 10 ms, 100 epochs",
        r"ds_resnet14",
        "cifar10dvs",
        {
            **_DS,
            "epochs": 100,
            "batch_size": 32,
            "weight_decay": 1e-3,
            "augmentation": (),
            "timesteps": 10,
            "size": 42,
            "width": 32,
        },
    ),
    Preset(
        "DS-ResNet, arXiv:2210.06386, released code: T = 40 of 30 ms, 120 epochs",
        r"ds_resnet20",
        "dvsgesture",
        {
            **_DS,
            "epochs": 120,
            "batch_size": 28,
            "weight_decay": 1e-4,
            "augmentation": (),
            "timesteps": 40,
            "size": 32,
            "width": 16,
            "normalize_input": True,
        },
    ),
)
"""The settings of the papers' released code, by network and data set."""
_CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}


def preset(arch: str, data: LabeledData) -> Training:
    """The settings with which the paper of an architecture trained it, as far as its released code tells.

    Args:
        arch: the name of the architecture.
        data: the data. Class folders with the ten names of CIFAR-10 count as CIFAR-10.

    Raises:
        InvalidData: no settings are known for this pair.
    """
    kind = "cifar10" if set(data.classes) == _CIFAR10 and ":" not in data.spec else data.spec.partition(":")[0]
    for known in PRESETS:
        if re.fullmatch(known.architectures, arch) and known.data == kind:
            return Training(**known.settings)
    there = ", ".join(f"{_plain(known.architectures)} on {known.data}" for known in PRESETS)
    got = f"{arch} on data {data.spec!r}, whose recipe we do not know"
    raise InvalidData(message("preset paper", "", got, f"one of: {there}", "Pass settings of your own"))


def _plain(pattern: str) -> str:
    return re.sub(r"\((.*)\)", lambda numbers: numbers[1].replace("|", "/"), pattern)
