"""The membrane update on the CPU: the reference's arithmetic in as few passes over memory as plain torch allows."""

from __future__ import annotations

import torch
from torch import Tensor


def integrate_and_fire(
    current: Tensor,
    v: Tensor,
    *,
    threshold: Tensor,
    decay: float = 1.0,
    reset: str = "subtract",
    shortcut: Tensor | None = None,
    shortcut_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.reference.integrate_and_fire` does, with its arguments and results.

    Three passes per step (integrate, compare, reset), one more with a shortcut. The spikes take the memory
    layout of the membrane (channels_last stays channels_last), so the next convolution need not reorder them.
    """
    steps = current.shape[0]
    unit = threshold.numel() == 1 and float(threshold) == 1.0
    spikes = _empty_steps(steps, v)
    for t in range(steps):
        s = spikes[t]
        # The first addition allocates, so that the caller's membrane survives; the others work in place.
        leaked = v if decay == 1.0 else v * decay
        v = torch.add(leaked, current[t]) if t == 0 else torch.add(leaked, current[t], out=v)
        if shortcut is not None:
            assert shortcut_scale is not None, "a shortcut needs its shortcut_scale"
            v.addcmul_(shortcut[t], shortcut_scale)
        torch.ge(v, threshold, out=s)
        if reset == "zero":
            v.addcmul_(v, s, value=-1.0)
        elif unit:
            v.sub_(s)
        else:
            v.addcmul_(s, threshold, value=-1.0)
    return spikes, v


def _empty_steps(steps: int, v: Tensor) -> Tensor:
    """An uninitialized ``[T, B, *]`` whose every step has the memory layout of ``v``."""
    # empty_like is dense even where v is not (expanded, or a slice); its strides are all that is wanted of it.
    strides = torch.empty_like(v).stride()
    return v.new_empty(steps * v.numel()).as_strided((steps, *v.shape), (v.numel(), *strides))
