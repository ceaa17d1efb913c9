"""The membrane update on the CPU in C++ (``membrane.cpp``): one pass over memory for a whole chunk of steps."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .. import check
from ..build import compiler
from ..layout import in_step
from . import layer
from .layer import TYPES
from .update import Update, wrong


def missing(device: torch.device) -> str | None:
    """Why it does not run on ``device``; None where it does."""
    if device.type != "cpu":
        return f"device {device}"
    library, how = compiler.compiled()
    return how if library is None else None


def takes(current: Tensor, v: Tensor, update: Update) -> bool:
    """Whether it does this update.

    It takes membranes in float32 or int32 that are contiguous or channels_last; currents, shortcuts and spikes in
    float32, bfloat16, uint8, int8 or int32; thresholds, biases and scales for the layer or per channel; and results
    that lie as the membrane does.
    """
    return current.dtype in TYPES and layer.takes(v, update)


def integrate_and_fire(current: Tensor, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does, with its errors.

    Raises:
        InvalidData: also where :func:`takes` says no.
    """
    check.membrane(current, v, update)
    if not takes(current, v, update):
        raise wrong("cpp", "an update that it does not take", "one that it does", "Use kernels.integrate_and_fire")
    ready = layer.prepare(len(current), v, update)
    library, reason = compiler.compiled()
    assert library is not None, reason
    current = in_step(current, v)
    ready.layer.current = current.data_ptr()
    ready.layer.current_type = TYPES[current.dtype]
    ready.layer.current_step = current.stride(0) if len(current) > 1 else 0
    run = library.sresnet_update_float if v.dtype == torch.float32 else library.sresnet_update_int
    run(ctypes.byref(ready.layer))
    return ready.spikes, ready.after
