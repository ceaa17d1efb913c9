"""The specification of the membrane update: a loop over time in plain torch.

Every other kernel has this signature and is compared with this function.
"""

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
    bias: Tensor | None = None,
    shortcut: Tensor | None = None,
    shortcut_scale: Tensor | None = None,
    spike_dtype: torch.dtype | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Integrate ``T`` steps of current into the membrane and fire.

    For t = 1 ... T, with ``I[t] = current[t] + bias + shortcut_scale * shortcut[t]``::

        u[t] = decay * v[t-1] + I[t]
        s[t] = 1 if u[t] >= threshold else 0
        v[t] = u[t] - threshold * s[t]      reset = "subtract"
        v[t] = u[t] * (1 - s[t])            reset = "zero"

    At most one spike per step; the membrane is not clamped below. With ``decay = 1`` and
    ``reset = "subtract"`` charge is conserved: ``sum(I) = v[T] - v[0] + threshold * sum(s)``.

    All terms are converted to the membrane's dtype first: float32, whatever the narrower dtype of the currents; or
    int32 in an integer network, where every term is a whole number and ``decay`` is 1.

    Args:
        current: ``[T, B, *]``, charge per step, in the units of the threshold.
        v: ``[B, *]``, membrane potential before the first step; left as it is.
        threshold: positive, 0-dimensional or broadcastable to ``[B, *]``.
        decay: factor on the membrane per step; 1 is the integrate-and-fire neuron.
        reset: ``"subtract"`` (soft) or ``"zero"`` (hard).
        bias: constant current per step, broadcastable to ``[B, *]``, or None.
        shortcut: ``[T, B, *]``, the shortcut branch: spikes, or a current when it comes without a scale; or None.
        shortcut_scale: weight of the shortcut synapse, broadcastable to ``[B, *]``; None is 1.
        spike_dtype: of the spikes; by default the membrane's.
        counts: int32 ``[T, B]``; the number of spikes of each step and image is added to it.

    Returns:
        spikes ``[T, B, *]`` in {0, 1}, and the membrane ``[B, *]`` after step T.

    Source: the If layer of the released code of Hu, Tang and Pan, "Spiking Deep Residual Network"
    (arXiv:1805.01352): reset by subtraction, firing at ``>=``, no lower clamp.
    """
    spikes = current.new_empty(current.shape, dtype=spike_dtype or v.dtype)
    for t in range(current.shape[0]):
        v = (v if decay == 1.0 else decay * v) + current[t].to(v.dtype)
        if bias is not None:
            v = v + bias
        if shortcut is not None:
            branch = shortcut[t].to(v.dtype)
            v = v + (branch if shortcut_scale is None else branch * shortcut_scale)
        fired = v >= threshold
        v = v - threshold * fired if reset == "subtract" else v * ~fired
        spikes[t] = fired
        if counts is not None:
            counts[t] += fired.flatten(1).sum(1)
    return spikes, v
