"""Which kernel runs where."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..errors import BackendUnavailable, InvalidData, message
from . import events, fallback
from .build import compiler
from .membrane import cpp, cuda, eager, fused, reference
from .membrane.update import Update
from .pending import Currents


class Kernel(Protocol):
    """A module that does the membrane update; no kernel calls another."""

    def missing(self, device: torch.device) -> str | None:
        """Why it does not run on ``device``; None where it does."""

    def takes(self, current: Tensor, v: Tensor, update: Update) -> bool:
        """Whether it does this update on a device that it runs on."""

    def integrate_and_fire(self, current: Tensor, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does."""


KERNELS: dict[str, Kernel] = {"cuda": cuda, "cpu-native": cpp, "cpu": eager, "reference": reference}
"""The membrane kernels by name, the fastest first; the last one takes everything everywhere."""


def integrate_and_fire(current: Tensor | Currents, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does, by the fastest kernel."""
    if isinstance(current, events.Currents) and events.takes(current, v, update):
        return events.integrate_and_fire(current, v, update)
    if isinstance(current, fused.Currents) and fused.takes(current, v, update):
        return fused.integrate_and_fire(current, v, update)
    if isinstance(current, Currents):
        current, update = current.in_memory(update)
    return select(current, v, update).integrate_and_fire(current, v, update)


def select(current: Tensor, v: Tensor, update: Update, name: str | None = None) -> Kernel:
    """The kernel for an update: the fastest that runs on the membrane's device and takes it, or the one asked for.

    Where a CUDA device gets the reference because the CUDA kernel is not there, one warning says what that costs.

    Raises:
        InvalidData: there is no kernel of that name.
        BackendUnavailable: the kernel asked for by name does not run on this device or machine.
    """
    if name is not None:
        return _named(name, v.device)
    for each, kernel in KERNELS.items():
        if not kernel.takes(current, v, update):
            continue
        reason = kernel.missing(v.device)
        if reason is None:
            return kernel
        if each == "cuda" and v.is_cuda:
            fallback.warn(v.device, reason)
    return reference


def fastest(device: torch.device) -> str:
    """The name of the fastest kernel that runs on ``device``; it warns as :func:`select` does."""
    name = next(each for each, kernel in KERNELS.items() if kernel.missing(device) is None)
    if device.type == "cuda" and name != "cuda":
        fallback.warn(device, str(KERNELS["cuda"].missing(device)))
    return name


def _named(name: str, device: torch.device) -> Kernel:
    if name not in KERNELS:
        expected, remedy = f"one of {', '.join(KERNELS)}", "Leave the name out for the fastest kernel"
        raise InvalidData(message("kernel", "", repr(name), expected, remedy))
    reason = KERNELS[name].missing(device)
    if reason is not None:
        raise BackendUnavailable(
            message(f"kernel {name}", "", reason, "a device that it runs on", "Choose another kernel")
        )
    return KERNELS[name]


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
