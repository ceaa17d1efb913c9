"""Devices: finding one, copying batches to it, and its peak memory."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..errors import BackendUnavailable, message


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` and so on; ``"auto"`` takes a GPU if there is one.

    Raises:
        BackendUnavailable: there is no such device.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise BackendUnavailable(message("device", "", f"{name!r}", "auto, cpu, cuda or cuda:N", 'Pass "auto" for any'))
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(name[5:] or 0) >= usable:
        got = f"{name!r} on a machine with {usable} usable CUDA devices"
        raise BackendUnavailable(message("device", "", got, "one that is there", 'Use device="cpu" or device="auto"'))
    return torch.device(name)


def prefetch(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on ``device``; the next one is copied to a GPU while it works on this one."""
    if device.type != "cuda":
        for images, labels in batches:
            yield images.to(device), labels.to(device)
        return
    copies, waiting = torch.cuda.Stream(device), None  # type: ignore[no-untyped-call]
    for images, labels in batches:
        with torch.cuda.stream(copies):
            pinned = (part if part.is_cuda else part.pin_memory() for part in (images, labels))
            ready = tuple(part.to(device, non_blocking=True) for part in pinned)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copies)
        for part in ready:
            part.record_stream(torch.cuda.current_stream(device))
        waiting = (ready[0], ready[1])
    if waiting is not None:
        yield waiting


def peak_memory(device: torch.device) -> int:
    """The peak memory so far, in bytes: of the GPU's tensors or of the whole process; 0 where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
