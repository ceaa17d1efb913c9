"""Differential coding on a signed, multi-level neuron: only changes of the running mean are sent."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import amplitudes

Memory = tuple[Tensor, ...]


def integrate_and_fire(
    current: Tensor, memory: Memory, *, threshold: Tensor, levels: int, counts: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """Integrate ``S`` steps of current into the membrane and emit differential spikes.

    For t = 1 ... T, with ``m[t]`` the mean of ``y[1] ... y[t]``, ``m[0] = 0`` and ``L = 2^levels - 1``::

        u[t] = v[t-1] + current[t] - threshold * m[t-1]
        k[t] = floor(u[t] / threshold) within -L ... L, and such that sum(y) stays at or above 0
        v[t] = u[t] - threshold * k[t]
        y[t] = m[t-1] + k[t],  so that  m[t] = m[t-1] + k[t] / t

    Only k is sent: whoever receives it keeps the mean ``e[t] = e[t-1] + W k[t] / t`` of its current and integrates
    ``e[t-1] + W k[t]``, which is ``W y[t]``. Here y itself is handed on, which is the same arithmetic. The nearer
    the mean is, the less needs to be sent, and the grid of the means is finer than ``threshold / T``.

    Args:
        current: ``[S, B, *]``.
        memory: the membrane ``[B, *]``, the sum of y ``[B, *]`` in thresholds, and the steps so far, 0-dimensional.
        threshold: positive, broadcastable to ``[B, *]``.
        levels: power-of-two amplitudes.
        counts: int32 ``[S, B]``; the number of spikes (bits of ``|k|``) is added to it.

    Returns:
        y ``[S, B, *]`` in thresholds, and the memory after the last step.

    Source: differential coding, Huang et al., ICML 2025 (multi-threshold neuron with spike increments over t).
    """
    v, total, step = memory
    most = 2**levels - 1
    sent, emitted = [], []
    for now in current.unbind():
        mean = total / step.clamp_min(1)
        u = v + now - threshold * mean
        k = torch.floor(u / threshold).clamp(-most, most)
        k = torch.maximum(k, torch.ceil(-(total + mean)))
        v = u - threshold * k
        y = mean + k
        total, step = total + y, step + 1
        sent.append(y)
        emitted.append(k)
    if not sent:  # the first step of a lagged window alone
        return current, memory
    if counts is not None:
        counts.add_(amplitudes(torch.stack(emitted), levels).flatten(2).sum(2, dtype=torch.int32))
    return torch.stack(sent), (v, total, step)
