"""Where a network runs: which device, its peak memory, and images on their way to it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..errors import BackendUnavailable


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name, such as ``"cuda:1"``; ``"auto"`` takes a GPU if there is one. Or BackendUnavailable."""
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise BackendUnavailable(f"device: got {name!r}; expected auto, cpu, cuda or cuda:N. Choose one of them.")
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(name[5:] or 0) >= usable:
        raise BackendUnavailable(
            f"device: got {name!r} on a machine with {usable} usable CUDA devices; expected one that is there. "
            'Use device="cpu" or device="auto".'
        )
    return torch.device(name)


def prefetch(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on ``device``; a GPU gets the next one while it works on this one."""
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
    """The most memory in use so far: the GPU's tensors, or the whole process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
