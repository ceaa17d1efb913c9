"""Checks of a kernel's arguments before it touches memory: shapes, devices and settings, whoever calls it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from .membrane.update import Update, wrong


def membrane(current: Tensor | int, v: Tensor, update: Update) -> None:
    """Check the arguments of a membrane update.

    Args:
        current: ``[T, B, *]``, or only T if the currents are not in memory.
        v: ``[B, *]``.
        update: what the layer does, with the other tensors.

    Raises:
        InvalidData: shapes, types, devices or settings do not fit.
    """
    if v.ndim < 1:
        raise wrong("membrane", "a number", "[B, *]", "Reshape it")
    if v.dtype == torch.int32 and update.decay != 1.0:
        raise wrong("decay", f"{update.decay} with an int32 membrane", "1", "Use float32")
    steps = current if isinstance(current, int) else current.shape[0] if current.ndim else 0
    full = (steps, *v.shape)
    in_time = {"current": None if isinstance(current, int) else current, "shortcut": update.shortcut}
    spread = {"threshold": update.threshold, "bias": update.bias, "shortcut_scale": update.shortcut_scale}
    for name, value in in_time.items():
        if value is not None and tuple(value.shape) != full:
            raise wrong(name, list(value.shape), f"{list(full)}, as the membrane", "Reshape it")
    for name, value in spread.items():
        if value is not None and not _spreads(value.shape, full[1:] if value.ndim <= v.ndim else full):
            raise wrong(name, list(value.shape), f"a shape that broadcasts to {list(v.shape)}", "Reshape it")
    counts = update.counts
    rows = (update.answers(steps), v.shape[0])  # not len(v), which fixes the batch of an exported program
    if counts is not None and tuple(counts.shape) != rows:
        raise wrong("counts", list(counts.shape), list(rows), "Allocate them with torch.empty")
    if min(rows[0], steps) < 0 or (steps == 0 and not update.whole):
        raise wrong("current", f"{steps} steps of a window in chunks", "one at least", "Leave the chunk out")
    for name, value in (*in_time.items(), *spread.items(), ("emitted", update.emitted), ("counts", counts)):
        if value is not None and value.device != v.device and value.ndim:
            raise wrong(name, f"a tensor on {value.device}", f"one on {v.device}, as the membrane", "Move it there")
    if update.bias is not None and update.by_step(v) and len(update.bias) != steps:
        got = f"{list(update.bias.shape)} for {steps} steps of a membrane {list(v.shape)}"
        raise wrong("bias", got, f"one row per step, [{steps}, 1, C, 1, ...]", "Give the rows of these steps")
    if not update.binary:
        _alphabet(v, update)
    for name, value in (("after", update.after), ("emitted_after", update.emitted_after)):
        if value is not None:
            _result(name, value, v)


def _alphabet(v: Tensor, update: Update) -> None:
    """Check that the memory is like the membrane, and that the type of the spikes holds what may be emitted."""
    emitted, dtype = update.emitted, update.spike_dtype or v.dtype
    if emitted is not None and (emitted.shape != v.shape or emitted.dtype != v.dtype):
        got = f"{emitted.dtype} {list(emitted.shape)}"
        raise wrong("emitted", got, f"the membrane's {v.dtype} {list(v.shape)}", "Convert it")
    if not dtype.is_floating_point and (
        dtype == torch.bool
        or torch.iinfo(dtype).max < update.most
        or (emitted is not None and torch.iinfo(dtype).min == 0)
    ):
        got = f"{dtype} for {update.alphabet}"
        raise wrong("spikes", got, "a type that holds them", "Use the membrane's")


def _result(name: str, value: Tensor, v: Tensor) -> None:
    """Check that a membrane or a memory can be written into ``value``."""
    if (value.shape, value.dtype, value.device) != (v.shape, v.dtype, v.device):
        got = f"{value.dtype} {list(value.shape)} on {value.device}"
        like = f"the membrane's {v.dtype} {list(v.shape)} on {v.device}"
        raise wrong(name, got, like, "Allocate it with torch.empty_like")
    if any(size > 1 and stride == 0 for size, stride in zip(value.shape, value.stride(), strict=True)):
        got = f"strides {value.stride()}"
        raise wrong(name, got, "a place for each neuron", "Allocate it with torch.empty_like")


def results(v: Tensor, spikes: Tensor, after: Tensor) -> None:
    """Check that spikes ``[T, B, *]`` and the membrane after them have the memory layout of the membrane ``v``.

    Raises:
        InvalidData: they have not.
    """
    _same("after", after, v)
    if spikes.device != v.device or spikes.shape[1:] != v.shape or (len(spikes) > 1 and spikes.stride(0) != v.numel()):
        raise wrong("spikes", list(spikes.shape), f"steps of {list(v.shape)} on {v.device}", "Use layout.empty_steps")
    _dense("after", after, v)
    if len(spikes):
        _dense("spikes", spikes[0], v)


def _spreads(shape: Sequence[int], full: Sequence[int]) -> bool:
    if len(shape) > len(full):
        return False
    return all(size in (1, want) for size, want in zip(reversed(shape), reversed(full), strict=False))


def quantizer(x: Tensor, threshold: Tensor, levels: int) -> None:
    """Check the arguments of a quantizer.

    Raises:
        InvalidData: the threshold does not broadcast to ``x``, or there are no levels.
    """
    if not _spreads(threshold.shape, x.shape):
        expected = f"a shape that broadcasts to {list(x.shape)}"
        raise wrong("qcfs: threshold", list(threshold.shape), expected, "Reshape it")
    if levels < 1:
        raise wrong("qcfs: levels", levels, "at least 1", "Use 4 or 8, as usual")


def firing(
    current: Tensor,
    grad: Tensor | None,
    out: Tensor,
    affine: tuple[Tensor, Tensor] | None,
    types: Collection[torch.dtype],
) -> None:
    """Check the memory layout of the steps ``[T, B, *]`` of neurons in training.

    Steps are dense and have one memory order. Those of ``out`` are adjacent; those of the others are adjacent, or all
    are the same memory.

    Args:
        current: ``[T, B, *]``.
        grad: the gradient of the spikes, or None.
        out: what is written.
        affine: scale and shift, ``[C]`` each, at least float32.
        types: the types that the kernel takes.

    Raises:
        InvalidData: the layout, a shape, a type or a device does not fit.
    """
    if current.dtype not in types:
        raise wrong("fire: current", current.dtype, f"one of {', '.join(map(str, types))}", "Convert it")
    if current.ndim < 2 or current.numel() == 0:
        raise wrong("fire: current", list(current.shape), "[T, B, *], not empty", "Reshape it")
    for name, other in (("gradient", grad), ("result", out)):
        if other is not None:
            _same(f"fire: {name}", other, current)
            _dense(f"fire: {name}", other[0], current[0])
    _dense("fire: current", current[0], current[0])
    for name, value, steps in (("current", current, (0, 1)), ("gradient", grad, (0, 1)), ("result", out, (1,))):
        if value is not None and len(value) > 1 and value.stride(0) not in [n * value[0].numel() for n in steps]:
            raise wrong(
                f"fire: {name}", f"strides {value.stride()}", "steps that follow each other", "Call .contiguous()"
            )
    if affine is not None:
        if current.ndim < 3:
            raise wrong("fire: current", list(current.shape), "[T, B, C, *] with scales", "Reshape it")
        _plain("fire: current", current[0])
        wide = torch.promote_types(current.dtype, torch.float32)
        for vector in affine:
            _vector("fire: scale and shift", vector, (current.shape[2],), current, wide)


def normalizing(p: Tensor, q: Tensor, others: Mapping[str, Tensor]) -> None:
    """Check the arguments of normalization in C++.

    Args:
        p: ``[B, C, *]``.
        q: like p.
        others: by name: ``sums`` float64 ``[2, C]``, ``coefficients`` ``[4, C]``, ``out`` like p.

    Raises:
        InvalidData: the layout, a shape, a type or a device does not fit.
    """
    if p.ndim < 2 or p.numel() == 0 or p.dtype not in (torch.float32, torch.float64) or p.device.type != "cpu":
        got = f"{p.dtype} {list(p.shape)} on {p.device}"
        raise wrong("normalize: values", got, "float32 or float64 [B, C, *] on the CPU", "Convert them")
    _plain("normalize: values", p)
    for name, other in {"second values": q, "result": others.get("out", p)}.items():
        _same(f"normalize: {name}", other, p)
        _dense(f"normalize: {name}", other, p)
    for name, rows, dtype in (("sums", 2, torch.float64), ("coefficients", 4, p.dtype)):
        if name in others:
            _vector(f"normalize: {name}", others[name], (rows, p.shape[1]), p, dtype)


def _same(where: str, value: Tensor, like: Tensor) -> None:
    if (value.shape, value.dtype, value.device) != (like.shape, like.dtype, like.device):
        got = f"{value.dtype} {list(value.shape)} on {value.device}"
        raise wrong(where, got, f"{like.dtype} {list(like.shape)} on {like.device}", "Move and convert it")


def _vector(where: str, value: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> None:
    right = value.dtype == dtype and value.device == like.device and value.is_contiguous()
    if not right or tuple(value.shape) != shape:
        got = f"{value.dtype} {list(value.shape)} on {value.device}"
        raise wrong(where, got, f"contiguous {dtype} {list(shape)} on {like.device}", "Give one per channel")


def _plain(where: str, step: Tensor) -> None:
    """Check that ``[B, C, *]`` is contiguous or channels_last."""
    if not (step.is_contiguous() or step.movedim(1, -1).is_contiguous()):
        raise wrong(where, f"strides {step.stride()}", "contiguous or channels_last memory", "Call .contiguous()")


def _dense(where: str, step: Tensor, like: Tensor) -> None:
    """Check that the numbers are dense, without gaps or overlaps, in the memory order of ``like``."""
    expected = 1
    for stride, size in sorted(zip(step.stride(), step.shape, strict=True)):
        if size > 1 and stride != expected:
            raise wrong(where, f"strides {step.stride()}", "numbers that lie together", "Call .contiguous()")
        expected *= size
    for size, mine, its in zip(step.shape, step.stride(), like.stride(), strict=True):
        if size > 1 and mine != its:
            raise wrong(where, f"strides {step.stride()}", f"{like.stride()}", "Copy it into that layout")
