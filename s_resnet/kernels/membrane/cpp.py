"""The membrane update on the CPU in C++ (``membrane.cpp``): one pass over memory for a whole chunk of steps."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import check
from ..build import compiler
from . import eager
from .reference import SCHEDULES, by_step, check_alphabet, check_results, delay

# As in layer.h.
TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.uint8: 3, torch.int32: 4, torch.int8: 5}
MEMBRANES = (torch.float32, torch.int32)
SUBTRACT, ZERO, LEVELS, SIGNED = range(4)  # as in membrane.h


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "images", "neurons", "channels", "inner")),
        *((name, ctypes.c_int64) for name in ("current_step", "shortcut_step", "bias_step")),
        *((name, ctypes.c_int32) for name in ("current_type", "shortcut_type", "spike_type")),
        *((name, ctypes.c_int32) for name in ("rule", "schedule", "most", "threads")),
        ("decay", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("current", "v", "threshold", "bias", "shortcut", "scale")),
        *((name, ctypes.c_void_p) for name in ("emitted", "v_after", "emitted_after", "spikes", "counts")),
    ]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A neuron layer as the C++ takes it, the tensors it writes, and those that must live as long."""

    layer: Layer
    spikes: Tensor
    after: Tensor
    kept: tuple[Tensor | None, ...]


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
    levels: int = 1,
    emitted: Tensor | None = None,
    schedule: str = "streaming",
    after: Tensor | None = None,
    emitted_after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does, with its arguments and results.

    Membranes in float32 or int32 that are contiguous or channels_last, currents and spikes in float32, bfloat16, uint8,
    int8 or int32, and thresholds, biases and scales for the layer or per channel go through the C++, and so do results
    that lie as the membrane does; :mod:`s_resnet.kernels.cpu` takes everything else.
    """
    spread = {"threshold": threshold, "bias": bias, "shortcut_scale": shortcut_scale}
    check.update(current, v, shortcut, spread, counts, (decay, reset))
    rest = (threshold, decay, reset, bias, shortcut, shortcut_scale, spike_dtype, counts, levels, emitted)
    ready = prepare(len(current), v, *rest, schedule, after, emitted_after) if current.dtype in TYPES else None
    if ready is None:
        return eager.integrate_and_fire(
            *(current, v),
            threshold=threshold,
            decay=decay,
            reset=reset,
            bias=bias,
            shortcut=shortcut,
            shortcut_scale=shortcut_scale,
            spike_dtype=spike_dtype,
            counts=counts,
            levels=levels,
            emitted=emitted,
            schedule=schedule,
            after=after,
            emitted_after=emitted_after,
        )
    library, reason = compiler.compiled()
    assert library is not None, reason
    current = _in_step(current, v)
    ready.layer.current = current.data_ptr()
    ready.layer.current_type = TYPES[current.dtype]
    ready.layer.current_step = current.stride(0) if len(current) > 1 else 0
    update = library.sresnet_update_float if v.dtype == torch.float32 else library.sresnet_update_int
    update(ctypes.byref(ready.layer))
    return ready.spikes, ready.after


def prepare(
    steps: int,
    v: Tensor,
    threshold: Tensor,
    decay: float,
    reset: str,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_scale: Tensor | None,
    spike_dtype: torch.dtype | None,
    counts: Tensor | None,
    levels: int = 1,
    emitted: Tensor | None = None,
    schedule: str = "streaming",
    after: Tensor | None = None,
    emitted_after: Tensor | None = None,
) -> Prepared | None:
    """The layer without its currents; None where the C++ does not take it."""
    check_alphabet(v, levels, emitted, reset, spike_dtype)
    check_results(v, after, emitted, emitted_after)
    delay(schedule, steps, decay)
    dtype = spike_dtype or v.dtype
    last = v.ndim == 4 and v.is_contiguous(memory_format=torch.channels_last)
    given = (threshold, bias, shortcut_scale)
    rows = by_step(bias, v, steps)
    vectors = [_per_channel(threshold, v), (_rows if rows else _per_channel)(bias, v), _per_channel(shortcut_scale, v)]
    if (
        v.dtype not in MEMBRANES
        or v.numel() == 0
        or not (last or v.is_contiguous())
        or dtype not in TYPES
        or (shortcut is not None and shortcut.dtype not in TYPES)
        or [vector is None for vector in vectors] != [value is None for value in given]
        or any(result is not None and result.stride() != v.stride() for result in (after, emitted_after))
        or (counts is not None and not (counts.dtype == torch.int32 and counts.is_contiguous()))
        or (counts is not None and counts.shape != (steps, len(v)))
    ):
        return None
    branch = None if shortcut is None else _in_step(shortcut, v)
    spikes, after = eager.empty_steps(steps, v, dtype), torch.empty_like(v) if after is None else after
    channels = v.shape[1] if v.ndim > 1 else 1
    layer = Layer(
        *(steps, len(v), v[0].numel(), channels),
        inner=1 if last or v.ndim < 3 else v[0, 0].numel(),
        shortcut_step=0 if branch is None or len(branch) == 1 else branch.stride(0),
        bias_step=channels if rows else 0,
        shortcut_type=0 if branch is None else TYPES[branch.dtype],
        spike_type=TYPES[dtype],
        rule=SIGNED if emitted is not None else LEVELS if levels > 1 else ZERO if reset == "zero" else SUBTRACT,
        schedule=SCHEDULES.index(schedule),
        most=2**levels - 1,
        threads=torch.get_num_threads(),
        decay=decay,
    )
    memory = None if emitted is None else _in_step(emitted[None], v)
    kept = {"v": v, "emitted": memory, "shortcut": branch, "spikes": spikes, "counts": counts}
    kept |= {"v_after": after, "emitted_after": emitted_after}
    kept |= dict(zip(("threshold", "bias", "scale"), vectors, strict=True))
    for name, tensor in kept.items():
        setattr(layer, name, None if tensor is None else tensor.data_ptr())
    return Prepared(layer, spikes, after, tuple(kept.values()))


def _per_channel(value: Tensor | None, v: Tensor) -> Tensor | None:
    """``value`` as ``[C]`` in the membrane's dtype; None when it is None or differs within a channel."""
    if value is None:
        return None
    channels = v.shape[1] if v.ndim > 1 else 1
    if value.numel() != 1 and (value.numel() != channels or value.ndim != max(1, v.ndim - 1) or len(value) != channels):
        return None
    return value.reshape(-1).to(v.dtype).expand(channels).contiguous()


def _rows(bias: Tensor | None, v: Tensor) -> Tensor | None:
    """A row ``[T, 1, C, 1, ...]`` for each step as ``[T, C]``; None when it is None or differs within a channel."""
    if bias is None:
        return None
    channels, numbers = v.shape[1] if v.ndim > 1 else 1, bias.shape[1:].numel()
    if numbers != 1 and (numbers != channels or bias.shape[1:3] != (1, channels)):
        return None
    return bias.flatten(1).to(v.dtype).expand(-1, channels).contiguous()


def _in_step(values: Tensor, v: Tensor) -> Tensor:
    """``[T, B, *]`` whose every step lies in memory as ``v`` does; steps that are one tensor stay one."""
    if values.shape[1:] == v.shape and values.stride()[1:] == v.stride():
        return values
    constant = values.stride(0) == 0
    steps = values[:1] if constant else values
    copy = eager.empty_steps(len(steps), v, values.dtype).copy_(steps)
    return copy.expand(values.shape) if constant else copy
