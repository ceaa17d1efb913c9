"""The membrane update on the CPU: the reference's arithmetic in as few passes over memory as plain torch allows."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check
from ..layout import empty_steps
from .reference import amplitudes
from .update import Update


def missing(device: torch.device) -> str | None:
    """Why it does not run on ``device``; None where it does."""
    return None if device.type == "cpu" else f"device {device}"


def takes(current: Tensor, v: Tensor, update: Update) -> bool:
    """Whether it does this update: it does all."""
    return True


def integrate_and_fire(current: Tensor, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does, with its errors.

    Three passes per step (integrate, compare, reset), one more each for a bias, a shortcut and counts; more for an
    alphabet that is not binary. The spikes take the memory layout of the membrane (channels_last stays channels_last):
    the next convolution need not reorder them.
    """
    check.membrane(current, v, update)
    steps, theta = len(current), update.threshold
    wait, answers = update.wait(steps), update.answers(steps)
    # The first addition leaves the caller's membrane alone; the others work in place.
    before, v = v, torch.empty_like(v) if update.after is None else update.after
    if wait + answers == 0:
        v.copy_(before)
    memory = update.emitted
    if memory is not None:
        memory = memory.clone() if update.emitted_after is None else update.emitted_after.copy_(memory)
    unit = theta.numel() == 1 and float(theta) == 1.0
    spikes = empty_steps(answers, v, update.spike_dtype or v.dtype)
    fired = spikes if spikes.dtype == v.dtype else None
    for now in range(wait + answers):
        if now < steps:
            _integrate(current[now], before, v, update, now)
            before = v
        t = now - wait
        if t < 0:
            continue
        s = torch.empty_like(v) if fired is None else fired[t]
        if not update.binary:
            _emit(v, theta.to(v.dtype), update.most, memory, s)
        else:
            torch.ge(v, theta, out=s)
            if update.reset == "zero":
                v.addcmul_(v, s, value=-1)
            elif unit:
                v.sub_(s)
            else:
                v.addcmul_(s, theta.to(v.dtype), value=-1)
        if fired is None:
            spikes[t] = s
        if update.counts is not None:
            each = s if update.binary else amplitudes(s, update.levels)
            update.counts[t] += each.sum(tuple(range(1, s.ndim))).to(torch.int32)
    return spikes, v


def _integrate(current: Tensor, before: Tensor, v: Tensor, update: Update, now: int) -> None:
    """The membrane ``before`` and the terms of step ``now``, into ``v``."""
    bias = update.bias[now] if update.bias is not None and update.by_step(v) else update.bias
    branch = None if update.shortcut is None else update.shortcut[now]
    if update.schedule == "streaming":
        torch.add(before if update.decay == 1.0 else before * update.decay, current.to(v.dtype), out=v)
        _add(v, bias)
        _add_branch(v, branch, update.shortcut_scale)
    else:
        charge = current.to(v.dtype, copy=True)
        _add_branch(charge, branch, update.shortcut_scale)
        _add(charge, bias)
        torch.add(before, charge, out=v)


def _add(v: Tensor, bias: Tensor | None) -> None:
    if bias is not None:
        v.add_(bias)


def _add_branch(v: Tensor, branch: Tensor | None, scale: Tensor | None) -> None:
    if branch is None:
        return
    if scale is None:
        v.add_(branch.to(v.dtype))
    else:
        v.addcmul_(branch.to(v.dtype), scale.to(v.dtype))


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
