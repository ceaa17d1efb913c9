"""A neuron layer as the C++ kernels take it (``layer.h``), with its currents or without."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import empty_steps, in_step
from .update import SCHEDULES, Update

# As in layer.h.
TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.uint8: 3, torch.int32: 4, torch.int8: 5}
MEMBRANES = (torch.float32, torch.int32)
SUBTRACT, ZERO, LEVELS, SIGNED = range(4)  # as in membrane.h


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("steps", "images", "neurons", "channels", "inner", "wait", "answers")),
        *((name, ctypes.c_int64) for name in ("current_step", "shortcut_step", "bias_step")),
        *((name, ctypes.c_int32) for name in ("current_type", "shortcut_type", "spike_type")),
        *((name, ctypes.c_int32) for name in ("rule", "schedule", "most", "threads")),
        ("decay", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("current", "v", "threshold", "bias", "shortcut", "scale")),
        *((name, ctypes.c_void_p) for name in ("emitted", "v_after", "emitted_after", "spikes", "counts")),
    ]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A neuron layer in the form that the C++ takes, the tensors it writes, and those that must live as long."""

    layer: Layer
    spikes: Tensor
    after: Tensor
    kept: tuple[Tensor | None, ...]


def takes(v: Tensor, update: Update) -> bool:
    """Whether the C++ takes such a layer: its types, its parameters per layer or channel, and how its tensors lie."""
    counts = update.counts
    return (
        v.dtype in MEMBRANES
        and v.numel() > 0
        and (v.is_contiguous() or _channels_last(v))
        and (update.spike_dtype or v.dtype) in TYPES
        and (update.shortcut is None or update.shortcut.dtype in TYPES)
        and _is_per_channel(update.threshold, v)
        and (_is_rows(update.bias, v) if update.by_step(v) else _is_per_channel(update.bias, v))
        and _is_per_channel(update.shortcut_scale, v)
        and all(result is None or result.stride() == v.stride() for result in (update.after, update.emitted_after))
        and (counts is None or (counts.dtype == torch.int32 and counts.is_contiguous()))
    )


def prepare(steps: int, v: Tensor, update: Update) -> Prepared:
    """The layer without its currents, of an update that was checked and that the C++ takes."""
    shortcut, emitted, rows = update.shortcut, update.emitted, update.by_step(v)
    branch = None if shortcut is None else in_step(shortcut, v)
    spikes = empty_steps(update.answers(steps), v, update.spike_dtype or v.dtype)
    after = torch.empty_like(v) if update.after is None else update.after
    channels = _channels(v)
    layer = Layer(
        steps=steps,
        images=len(v),
        neurons=v[0].numel(),
        channels=channels,
        inner=1 if _channels_last(v) or v.ndim < 3 else v[0, 0].numel(),
        wait=update.wait(steps),
        answers=len(spikes),
        shortcut_step=0 if branch is None or len(branch) == 1 else branch.stride(0),
        bias_step=channels if rows else 0,
        shortcut_type=0 if branch is None else TYPES[branch.dtype],
        spike_type=TYPES[spikes.dtype],
        rule=_rule(update),
        schedule=SCHEDULES.index(update.schedule),
        most=update.most,
        threads=torch.get_num_threads(),
        decay=update.decay,
    )
    kept = {
        "v": v,
        "threshold": _per_channel(update.threshold, v),
        "bias": _rows(update.bias, v) if rows else _per_channel(update.bias, v),
        "shortcut": branch,
        "scale": _per_channel(update.shortcut_scale, v),
        "emitted": None if emitted is None else in_step(emitted[None], v),
        "v_after": after,
        "emitted_after": update.emitted_after,
        "spikes": spikes,
        "counts": update.counts,
    }
    for name, tensor in kept.items():
        setattr(layer, name, None if tensor is None else tensor.data_ptr())
    return Prepared(layer, spikes, after, tuple(kept.values()))


def _rule(update: Update) -> int:
    if update.emitted is not None:
        return SIGNED
    if update.levels > 1:
        return LEVELS
    return ZERO if update.reset == "zero" else SUBTRACT


def _channels_last(v: Tensor) -> bool:
    return v.ndim == 4 and v.is_contiguous(memory_format=torch.channels_last)


def _channels(v: Tensor) -> int:
    return v.shape[1] if v.ndim > 1 else 1


def _is_per_channel(value: Tensor | None, v: Tensor) -> bool:
    """Whether it is nothing, or one number for the layer or for each channel."""
    if value is None or value.numel() == 1:
        return True
    channels = _channels(v)
    return value.numel() == channels and value.ndim == max(1, v.ndim - 1) and len(value) == channels


def _is_rows(bias: Tensor | None, v: Tensor) -> bool:
    """Whether a row ``[T, 1, C, 1, ...]`` for each step has one number for the layer or for each channel."""
    if bias is None:
        return True
    channels, numbers = _channels(v), bias.shape[1:].numel()
    return numbers == 1 or (numbers == channels and bias.shape[1:3] == (1, channels))


def _per_channel(value: Tensor | None, v: Tensor) -> Tensor | None:
    """``[C]`` in the membrane's dtype."""
    return None if value is None else value.reshape(-1).to(v.dtype).expand(_channels(v)).contiguous()


def _rows(bias: Tensor | None, v: Tensor) -> Tensor | None:
    """``[T, C]`` in the membrane's dtype."""
    return None if bias is None else bias.flatten(1).to(v.dtype).expand(-1, _channels(v)).contiguous()
