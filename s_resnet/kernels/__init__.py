"""Membrane kernels: tensors in, tensors out. ``reference`` is the specification, the others do the same faster."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from . import cpu, reference


class Kernel(Protocol):
    """The signature of :func:`s_resnet.kernels.reference.integrate_and_fire`."""

    def __call__(
        self,
        current: Tensor,
        v: Tensor,
        *,
        threshold: Tensor,
        decay: float = 1.0,
        reset: str = "subtract",
        shortcut: Tensor | None = None,
        shortcut_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def select(device: torch.device) -> tuple[str, Kernel]:
    """The name and the function of the kernel that runs on ``device``."""
    if device.type == "cpu":
        return "cpu", cpu.integrate_and_fire
    return "reference", reference.integrate_and_fire
