"""The membrane update on the CPU in C++ (``membrane.cpp``): one pass over memory for a whole chunk of steps."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import cpu, native

# As in membrane.cpp.
TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.uint8: 3, torch.int32: 4}
MEMBRANES = (torch.float32, torch.int32)


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "images", "neurons", "channels", "inner")),
        *((name, ctypes.c_int64) for name in ("current_step", "shortcut_step")),
        *((name, ctypes.c_int32) for name in ("current_type", "shortcut_type", "spike_type", "hard", "threads")),
        ("decay", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("current", "v", "threshold", "bias", "shortcut", "scale")),
        *((name, ctypes.c_void_p) for name in ("v_after", "spikes", "counts")),
    ]


def integrate_and_fire(
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
) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.reference.integrate_and_fire` does, with its arguments and results.

    Membranes in float32 or int32, currents and spikes in float32, bfloat16, uint8 or int32, and thresholds, biases and
    scales for the layer or per channel go through the C++; :mod:`s_resnet.kernels.cpu` takes everything else.
    """
    dtype = spike_dtype or v.dtype
    vectors = [_per_channel(value, v) for value in (threshold, bias, shortcut_scale)]
    given = [value for value in (current, shortcut) if value is not None]
    if (
        v.dtype not in MEMBRANES
        or any(value.dtype not in TYPES for value in given)
        or dtype not in TYPES
        or [vector is None for vector in vectors] != [value is None for value in (threshold, bias, shortcut_scale)]
        or (counts is not None and not (counts.dtype == torch.int32 and counts.is_contiguous()))
        or v.numel() == 0
    ):
        return cpu.integrate_and_fire(
            *(current, v),
            threshold=threshold,
            decay=decay,
            reset=reset,
            bias=bias,
            shortcut=shortcut,
            shortcut_scale=shortcut_scale,
            spike_dtype=spike_dtype,
            counts=counts,
        )
    library, reason = native.library()
    assert library is not None, reason
    v = _dense(v)
    current = _in_step(current, v)
    shortcut = None if shortcut is None else _in_step(shortcut, v)
    spikes = cpu.empty_steps(len(current), v, dtype)
    after = torch.empty_like(v)
    last = v.ndim == 4 and v.is_contiguous(memory_format=torch.channels_last)
    layer = _Layer(
        *(len(current), len(v), v[0].numel(), v.shape[1] if v.ndim > 1 else 1),
        1 if last or v.ndim < 3 else v[0, 0].numel(),
        current.stride(0) if len(current) > 1 else 0,
        0 if shortcut is None or len(shortcut) == 1 else shortcut.stride(0),
        *(TYPES[current.dtype], 0 if shortcut is None else TYPES[shortcut.dtype], TYPES[dtype]),
        *(reset == "zero", torch.get_num_threads(), decay),
        *map(_pointer, (current, v, vectors[0], vectors[1], shortcut, vectors[2], after, spikes, counts)),
    )
    update = library.sresnet_update_float if v.dtype == torch.float32 else library.sresnet_update_int
    update(ctypes.byref(layer))
    return spikes, after


def _per_channel(value: Tensor | None, v: Tensor) -> Tensor | None:
    """``value`` as ``[C]`` in the membrane's dtype; None when it is None or differs within a channel."""
    if value is None:
        return None
    channels = v.shape[1] if v.ndim > 1 else 1
    if value.numel() != 1 and (value.numel() != channels or value.ndim != max(1, v.ndim - 1) or len(value) != channels):
        return None
    return value.reshape(-1).to(v.dtype).expand(channels).contiguous()


def _dense(v: Tensor) -> Tensor:
    """``v`` in the layout that empty_like gives: channels_last where it is so, else contiguous."""
    return v if v.stride() == torch.empty_like(v).stride() else torch.empty_like(v).copy_(v)


def _in_step(values: Tensor, v: Tensor) -> Tensor:
    """``[T, B, *]`` whose every step lies in memory as ``v`` does; steps that are one tensor stay one."""
    if values.shape[1:] == v.shape and values.stride()[1:] == v.stride():
        return values
    constant = values.stride(0) == 0
    steps = values[:1] if constant else values
    copy = cpu.empty_steps(len(steps), v, values.dtype).copy_(steps)
    return copy.expand(values.shape) if constant else copy


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
