"""The warning when a GPU runs the reference kernel because the CUDA kernel is not available."""

from __future__ import annotations

import torch

from .. import errors

_warned: set[int] = set()


def warn(device: torch.device, reason: str) -> None:
    """Warn once for each CUDA device that plain torch does the kernel's work, what this costs, and why."""
    index = device.index
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    if index in _warned:
        return
    _warned.add(index)
    errors.warn(
        f"cuda:{index}: got the reference kernel, several torch operations for each neuron layer and step; expected "
        f"the CUDA kernel, one launch for many steps, which is far faster. It is not available: {reason}.",
        UserWarning,
    )
