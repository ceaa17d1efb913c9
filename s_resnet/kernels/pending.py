"""Convolutions of spikes that are not computed yet, so that neurons can take their currents as they arise."""

from __future__ import annotations

from . import events
from .membrane import fused

Currents = events.Currents | fused.Currents
"""On a CPU by events, line by line; on a CUDA device in one kernel with the neurons."""


def joined(first: Currents, second: Currents) -> Currents | None:
    """Two that arrive at the same neurons as one, where a kernel takes both together."""
    if isinstance(first, events.Currents) and isinstance(second, events.Currents):
        return first.joined(second)
    if isinstance(first, fused.Currents) and isinstance(second, fused.Currents):
        return first.joined(second)
    return None
