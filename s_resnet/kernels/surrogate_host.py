"""Neurons that are trained, on the CPU in C++ (``surrogate.cpp``): every number is read and written once."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import native

if TYPE_CHECKING:
    from .surrogate import Firing

LEVELS = 8  # as in surrogate.cpp
SURROGATES = ("rectangle", "triangle", "arctan", "sigmoid")  # in the order of surrogate.h


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "neurons", "current_step", "grad_step")),
        *((name, ctypes.c_int32) for name in ("levels", "hard", "detached", "surrogate", "threads")),
        ("thresholds", ctypes.c_double * LEVELS),
        *((name, ctypes.c_double) for name in ("decay", "initial", "inside", "height")),
        *((name, ctypes.c_void_p) for name in ("current", "grad", "out")),
    ]


def run(current: Tensor, grad: Tensor | None, out: Tensor, firing: Firing) -> None:
    """Write the spikes into ``out``; or, given the gradient of the spikes, the gradient of the current.

    current, grad, out: float32 or float64 ``[T, B, *]`` alike, whose steps are dense and lie in one order; the steps of
    ``out`` follow each other.
    """
    library, reason = native.compiled()
    assert library is not None, reason
    inside, height = firing.shape()
    layer = Layer(
        *(len(current), current[0].numel(), current.stride(0), 0 if grad is None else grad.stride(0)),
        *(len(firing.thresholds), firing.reset == "zero", firing.detach_reset, SURROGATES.index(firing.surrogate)),
        torch.get_num_threads(),
        (ctypes.c_double * LEVELS)(*firing.thresholds),
        *(firing.decay, firing.initial, inside, height),
        *(current.data_ptr(), None if grad is None else grad.data_ptr(), out.data_ptr()),
    )
    fire = library.sresnet_fire_float if current.dtype == torch.float32 else library.sresnet_fire_double
    fire(ctypes.byref(layer))
