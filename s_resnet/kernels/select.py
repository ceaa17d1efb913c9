"""Which kernel runs where."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..errors import BackendUnavailable, InvalidData
from . import fallback
from .build import compiler
from .membrane import cpp, cuda, eager, reference


class Kernel(Protocol):
    """The signature of :func:`s_resnet.kernels.membrane.reference.integrate_and_fire`."""

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
        levels: int = 1,
        emitted: Tensor | None = None,
        schedule: str = "streaming",
        after: Tensor | None = None,
        emitted_after: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


KERNELS: dict[str, Kernel] = {
    "cuda": cuda.integrate_and_fire,
    "cpu-native": cpp.integrate_and_fire,
    "cpu": eager.integrate_and_fire,
    "reference": reference.integrate_and_fire,
}
"""The membrane kernels by name, the fastest first."""


def select(device: torch.device, name: str | None = None) -> tuple[str, Kernel]:
    """The name and the function of the kernel for ``device``: the fastest that runs there, or the one asked for.

    Where a CUDA device gets the reference without being asked to, one warning says what that costs.

    Raises:
        InvalidData: there is no kernel of that name.
        BackendUnavailable: the kernel asked for by name does not run on this device or machine.
    """
    if name is None:
        name = next(each for each in KERNELS if _missing(each, device) is None)
        if device.type == "cuda" and name != "cuda":
            fallback.warn(device, str(cuda.unavailable(device)))
    if name not in KERNELS:
        raise InvalidData(f"kernel: got {name!r}; expected one of {', '.join(KERNELS)}. Choose one of them.")
    reason = _missing(name, device)
    if reason is not None:
        raise BackendUnavailable(f"kernel {name}: got {reason}; expected a device it runs on. Choose another kernel.")
    return name, KERNELS[name]


def _missing(name: str, device: torch.device) -> str | None:
    """Why a kernel does not run on ``device``; None when it does."""
    if name != "reference" and device.type != name.split("-")[0]:
        return f"device {device}"
    if name == "cuda":
        return cuda.unavailable(device)
    compiled, how = compiler.compiled() if name == "cpu-native" else (True, "")
    return how if compiled is None else None


def narrow_dtype(device: torch.device) -> torch.dtype | None:
    """The 16-bit type in which ``device`` multiplies faster than in float32, or None."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if compiler.has_bf16() else None


def describe() -> str:
    """Which kernels this installation runs, in words."""
    gpu = "no CUDA device"
    if torch.cuda.is_available():
        gpu = f"{cuda.path(torch.device('cuda'))} on {torch.cuda.get_device_name()}"
    compiled, how = compiler.compiled()
    host_kernel = "cpu" if compiled is None else "cpu-native"
    return f"torch {torch.__version__}, membrane kernel: {host_kernel} ({how}); {gpu}"


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """``values``, 0-dimensional or ``[C]``, shaped to broadcast over ``[B, C, *]`` of ``ndim`` dimensions."""
    return values if values.ndim == 0 else values.view(-1, *(1,) * (ndim - 2))
