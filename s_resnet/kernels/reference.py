"""The specification of the membrane update: a loop over time in plain torch.

Every other kernel has this signature and is compared with this function.
"""

from __future__ import annotations

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
    """Integrate ``T`` steps of current into the membrane and fire.

    For t = 1 ... T, with ``I[t] = current[t] + shortcut_scale * shortcut[t]``::

        u[t] = decay * v[t-1] + I[t]
        s[t] = 1 if u[t] >= threshold else 0
        v[t] = u[t] - threshold * s[t]      reset = "subtract"
        v[t] = u[t] * (1 - s[t])            reset = "zero"

    At most one spike per step; the membrane is not clamped below. With ``decay = 1`` and
    ``reset = "subtract"`` charge is conserved: ``sum(I) = v[T] - v[0] + threshold * sum(s)``.

    Args:
        current: ``[T, B, *]``, charge per step, in the units of the threshold. The bias is part of it.
        v: ``[B, *]``, membrane potential before the first step; left as it is.
        threshold: positive, 0-dimensional or broadcastable to ``[B, *]``.
        decay: factor on the membrane per step; 1 is the integrate-and-fire neuron.
        reset: ``"subtract"`` (soft) or ``"zero"`` (hard).
        shortcut: ``[T, B, *]``, spikes of the shortcut branch, or None.
        shortcut_scale: weight of the shortcut synapse, broadcastable to ``[B, *]``; needed with ``shortcut``.

    Returns:
        spikes ``[T, B, *]`` in {0, 1} and of the membrane's dtype, and the membrane ``[B, *]`` after step T.

    Source: the If layer of the released code of Hu, Tang and Pan, "Spiking Deep Residual Network"
    (arXiv:1805.01352): reset by subtraction, firing at ``>=``, no lower clamp.
    """
    spikes = current.new_empty(current.shape, dtype=v.dtype)
    for t in range(current.shape[0]):
        v = decay * v + current[t]
        if shortcut is not None:
            assert shortcut_scale is not None, "a shortcut needs its shortcut_scale"
            v = v + shortcut[t] * shortcut_scale
        fired = v >= threshold
        v = v - threshold * fired if reset == "subtract" else v * ~fired
        spikes[t] = fired
    return spikes, v
