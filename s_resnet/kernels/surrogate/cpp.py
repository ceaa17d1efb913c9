"""Neurons that are trained, on the CPU in C++ (``surrogate.cpp``): every number is read and written once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...errors import InvalidData, message
from .. import check
from ..build import compiler
from ..layout import inner_of
from .reference import LEVELS, SURROGATES, Affine, Firing

TYPES = (torch.float32, torch.float64)


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "neurons", "current_step", "grad_step", "channels", "inner")),
        *((name, ctypes.c_int32) for name in ("levels", "hard", "detached", "surrogate", "threads")),
        ("thresholds", ctypes.c_double * LEVELS),
        *((name, ctypes.c_double) for name in ("decay", "initial", "inside", "height")),
        *((name, ctypes.c_void_p) for name in ("current", "grad", "scale", "shift", "out")),
    ]


def takes(current: Tensor) -> bool:
    """Whether the kernel is there and takes this current, converted to float32 or wider."""
    return current.device.type == "cpu" and compiler.compiled()[0] is not None


def run(current: Tensor, grad: Tensor | None, out: Tensor, firing: Firing, affine: Affine | None) -> None:
    """Write the spikes into ``out``; or, given the gradient of the spikes, the gradient of the current.

    Args:
        current: float32 or float64 ``[T, B, *]``, with dense steps.
        grad: the gradient of the spikes in the same type, shape and memory order; None to run forward.
        out: likewise, with adjacent steps.
        firing: what the neurons do.
        affine: scale and shift ``[C]`` of that type, which turn the given values into the current; then steps are
            contiguous or channels_last.

    Raises:
        InvalidData: the arguments do not fit, or are not on the CPU.
    """
    if current.device.type != "cpu":
        got = f"a current on {current.device}"
        raise InvalidData(message("kernel", "fire", got, "one on the CPU", "Move it there"))
    check.firing(current, grad, out, affine, TYPES)
    library, reason = compiler.compiled()
    assert library is not None, reason
    inside, height = firing.shape()
    channels, inner = (1, 1) if affine is None else (current.shape[2], inner_of(current[0]))
    scale, shift = affine or (None, None)
    layer = Layer(
        steps=len(current),
        neurons=current[0].numel(),
        current_step=current.stride(0),
        grad_step=0 if grad is None else grad.stride(0),
        channels=channels,
        inner=inner,
        levels=len(firing.thresholds),
        hard=firing.reset == "zero",
        detached=firing.detach_reset,
        surrogate=SURROGATES.index(firing.surrogate),
        threads=torch.get_num_threads(),
        thresholds=(ctypes.c_double * LEVELS)(*firing.thresholds),
        decay=firing.decay,
        initial=firing.initial,
        inside=inside,
        height=height,
        current=current.data_ptr(),
        grad=None if grad is None else grad.data_ptr(),
        scale=None if scale is None else scale.data_ptr(),
        shift=None if shift is None else shift.data_ptr(),
        out=out.data_ptr(),
    )
    fire = library.sresnet_fire_float if current.dtype == torch.float32 else library.sresnet_fire_double
    fire(ctypes.byref(layer))


class Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "channels", "inner")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("p", "q", "sums", "coefficients", "out")),
    ]


def sums(p: Tensor, q: Tensor) -> Tensor:
    """The sums of ``p`` and ``p * q`` in each channel of ``[B, C, *]``, float64 ``[2, C]``; both have one layout."""
    found = torch.empty(2, p.shape[1], dtype=torch.float64)
    _normalize("sums", p, q, sums=found)
    return found


def normalized_gradient(p: Tensor, q: Tensor, coefficients: Tensor) -> Tensor:
    """Write ``scale * (p - p0 - slope * (q - q0))`` over ``p``; ``coefficients``: ``[4, C]`` scale, p0, q0, slope."""
    _normalize("gradient", p, q, coefficients=coefficients.to(p.dtype).contiguous(), out=p)
    return p


def _normalize(what: str, p: Tensor, q: Tensor, **others: Tensor) -> None:
    library, reason = compiler.compiled()
    assert library is not None, reason
    check.normalizing(p, q, others)
    inner = inner_of(p)
    norm = Norm(
        p.numel() // p.shape[1] // inner, p.shape[1], inner, torch.get_num_threads(), p.data_ptr(), q.data_ptr()
    )
    for name, tensor in others.items():
        setattr(norm, name, tensor.data_ptr())
    getattr(library, f"sresnet_{what}_{'float' if p.dtype == torch.float32 else 'double'}")(ctypes.byref(norm))
