"""Membrane kernels: tensors in, tensors out. ``reference`` is the specification, the others do the same faster."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from . import cpu, host, native, reference


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
        bias: Tensor | None = None,
        shortcut: Tensor | None = None,
        shortcut_scale: Tensor | None = None,
        spike_dtype: torch.dtype | None = None,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def select(device: torch.device) -> tuple[str, Kernel]:
    """The name and the function of the kernel that runs on ``device``."""
    if device.type == "cpu":
        return (
            ("cpu", cpu.integrate_and_fire) if native.library()[0] is None else ("cpu-native", host.integrate_and_fire)
        )
    return "reference", reference.integrate_and_fire


def narrow_dtype(device: torch.device) -> torch.dtype | None:
    """The 16-bit type in which ``device`` multiplies faster than in float32, or None."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if native.has_bf16() else None


def describe() -> str:
    """Which kernels this installation runs, in words."""
    gpu = f"reference on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no CUDA device"
    compiled, how = native.library()
    host_kernel = "cpu" if compiled is None else "cpu-native"
    return f"torch {torch.__version__}, membrane kernel: {host_kernel} ({how}); {gpu}"


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """``values``, 0-dimensional or ``[C]``, shaped to broadcast over ``[B, C, *]`` of ``ndim`` dimensions."""
    return values if values.ndim == 0 else values.view(-1, *(1,) * (ndim - 2))
