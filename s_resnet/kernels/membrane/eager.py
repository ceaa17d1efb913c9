"""The membrane update on the CPU: the reference's arithmetic in as few passes over memory as plain torch allows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check
from .reference import amplitudes, by_step, check_alphabet, check_results, delay


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

    Three passes per step (integrate, compare, reset), one more each for a bias, a shortcut and counts; more for an
    alphabet that is not binary. The spikes take the memory layout of the membrane (channels_last stays channels_last):
    the next convolution need not reorder them.
    """
    spread = {"threshold": threshold, "bias": bias, "shortcut_scale": shortcut_scale}
    check.update(current, v, shortcut, spread, counts, (decay, reset))
    binary = check_alphabet(v, levels, emitted, reset, spike_dtype)
    check_results(v, after, emitted, emitted_after)
    steps = len(current)
    wait, rows = delay(schedule, steps, decay), by_step(bias, v, steps)
    # The first addition leaves the caller's membrane alone; the others work in place.
    before, v = v, torch.empty_like(v) if after is None else after
    if steps == 0:
        v.copy_(before)
    memory = None
    if emitted is not None:
        memory = emitted.clone() if emitted_after is None else emitted_after.copy_(emitted)
    unit = threshold.numel() == 1 and float(threshold) == 1.0
    spikes = empty_steps(steps, v, spike_dtype or v.dtype)
    fired = spikes if spikes.dtype == v.dtype else None
    for now in range(steps + wait):
        if now < steps:
            constant = bias[now] if bias is not None and rows else bias
            branch = None if shortcut is None else (shortcut[now], shortcut_scale)
            if schedule == "streaming":
                torch.add(before if decay == 1.0 else before * decay, current[now].to(v.dtype), out=v)
                _add(v, constant)
                _add_branch(v, branch)
            else:
                charge = current[now].to(v.dtype, copy=True)
                _add_branch(charge, branch)
                _add(charge, constant)
                torch.add(before, charge, out=v)
            before = v
        t = now - wait
        if t < 0:
            continue
        s = torch.empty_like(v) if fired is None else fired[t]
        if not binary:
            _emit(v, threshold.to(v.dtype), 2**levels - 1, memory, s)
        else:
            torch.ge(v, threshold, out=s)
            if reset == "zero":
                v.addcmul_(v, s, value=-1)
            elif unit:
                v.sub_(s)
            else:
                v.addcmul_(s, threshold.to(v.dtype), value=-1)
        if fired is None:
            spikes[t] = s
        if counts is not None:
            each = s if binary else amplitudes(s, levels)
            counts[t] += each.sum(tuple(range(1, s.ndim))).to(torch.int32)
    return spikes, v


def _add(v: Tensor, constant: Tensor | None) -> None:
    if constant is not None:
        v.add_(constant)


def _add_branch(v: Tensor, branch: tuple[Tensor, Tensor | None] | None) -> None:
    if branch is None:
        return
    shortcut, scale = branch
    if scale is None:
        v.add_(shortcut.to(v.dtype))
    else:
        v.addcmul_(shortcut.to(v.dtype), scale.to(v.dtype))


def _emit(v: Tensor, threshold: Tensor, most: int, memory: Tensor | None, k: Tensor) -> None:
    """What neurons of an alphabet that is not binary emit, into ``k``; membrane and memory follow, in place."""
    if v.dtype == torch.int32:
        torch.div(v, threshold, rounding_mode="floor", out=k)
    else:
        torch.div(v, threshold, out=k).floor_()
    low = v.new_zeros(()) if memory is None else memory.clamp(max=most).neg_()
    torch.fmax(k, low, out=k).clamp_(max=most)
    v.sub_(k * threshold)
    if memory is not None:
        memory.add_(k)


def empty_steps(steps: int, v: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialized ``[T, B, *]`` whose every step has the memory layout of ``v``."""
    # empty_like is dense even where v is not (expanded, or a slice); its strides are all that is wanted of it.
    strides = torch.empty_like(v).stride()
    return v.new_empty(steps * v.numel(), dtype=dtype).as_strided((steps, *v.shape), (v.numel(), *strides))
