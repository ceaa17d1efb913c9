"""Memory: how much is free, how much this process may hold, and how many images fit in what is left.

Work on many images takes them in parts that fit. No result depends on how they were split.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from ..errors import InvalidData, message
from .processes import processes_here

UNITS = {"": 1, **{unit + end: 1000**power for power, unit in enumerate("KMGT", 1) for end in ("", "B")}, "B": 1}
BINARY = {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", 1)}
ASSUMED = 4 * 2**30  # bytes free where the system does not say
UNLIMITED = 2**60  # control groups without a limit give a number above this one

_limit: ContextVar[str | int | None] = ContextVar("limit", default=None)


def free(device: torch.device | None = None, root: Path = Path("/")) -> int | None:
    """The bytes that can be allocated now; None where the system does not say, as on macOS.

    On a CPU this is ``MemAvailable``, or less if this process or one of its parents is in a control group (v1 or v2)
    with a lower limit, as in a container; file caches count as free.

    Args:
        device: a GPU, or by default the CPU.
        root: the folder with ``proc`` and ``sys``.
    """
    if device is not None and device.type == "cuda":
        return free_on_gpu(device)
    found = [*_available(root), *_left_in_groups(root)]
    return max(0, min(found)) if found else None


def free_on_gpu(device: torch.device) -> int:
    """The bytes of a GPU's memory that are free, or that torch keeps without using them."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def held(device: torch.device | None = None, root: Path = Path("/")) -> int:
    """The bytes that this process holds now: of main memory, or of a GPU's; 0 where the system does not say."""
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    if importlib.util.find_spec("resource") is None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the system tells the peak alone
    return peak if sys.platform == "darwin" else peak * 1024


def release() -> None:
    """Give freed memory back to the system, where the C library keeps it for later, as glibc does."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # another C library has none
        if trim is not None:
            trim(0)


def budget(asked: str | int | None = None, device: torch.device | None = None) -> int:
    """The bytes that this process may hold in all, with everything that it holds now.

    Args:
        asked: a size such as ``"4GB"``, ``"500MB"`` or ``"3GiB"``, a number of bytes, or a share of what the process
            holds and what is free, such as ``"50%"``. None: the :func:`memory_limit` around the call; without one,
            what the process holds and half of what is free. Processes on the same machine share what is free.
        device: a GPU, whose memory is then meant, or by default the CPU.

    Raises:
        InvalidData: it is none of these, not above zero, or a share where the system does not say what is free.
    """
    if asked is None:
        asked = _limit.get()
    if asked is None:
        known = free(device)
        return held(device) + (ASSUMED if known is None else known) // 2 // processes_here()
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        return asked
    share = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*%\s*", asked) if isinstance(asked, str) else None
    size = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", asked) if isinstance(asked, str) else None
    if share and 0 < float(share[1]) <= 100:
        known = free(device)
        if known is None:
            got, expected = f"{asked!r} on a system that does not say what is free", "a size"
            raise InvalidData(message("memory", "", got, expected, "Pass one such as 4GB"))
        return int((held(device) + known // processes_here()) * float(share[1]) / 100)
    unit = (UNITS | BINARY).get(size[2].upper()) if size else None
    if size is None or unit is None or int(float(size[1]) * unit) < 1:
        expected = "a size such as 4GB or 500MB, or a share such as 50%"
        raise InvalidData(message("memory", "", repr(asked), expected, "Pass one of these"))
    return int(float(size[1]) * unit)


def limit() -> str | int | None:
    """The :func:`memory_limit` around the call, as it was asked for; None without one."""
    return _limit.get()


def room(device: torch.device | None = None) -> int:
    """The bytes that work may still take: the :func:`budget` less what the process holds; 0 if that is more."""
    return max(0, budget(None, device) - held(device))


@contextmanager
def memory_limit(asked: str | int | None) -> Iterator[int]:
    """Let everything in the block, such as convert or evaluate, keep this process below so much memory.

    ::

        with s_resnet.runtime.memory_limit("4GB"):
            snn = s_resnet.convert(model, batches)

    The limit is for this process as a whole, and for each of several processes. It is kept by working on fewer images
    at a time, which is slower if they become very few; results do not depend on it. On a GPU it is for the GPU's
    memory.

    Args:
        asked: as in :func:`budget`; None sets no limit, and keeps one from around the block.

    Yields:
        The limit in bytes.

    Raises:
        InvalidData: it is not a size.
    """
    limit = budget(asked)
    before = _limit.set(_limit.get() if asked is None else asked)
    try:
        yield limit
    finally:
        _limit.reset(before)


def images_in(left: int, each: int, where: str, device: torch.device | None = None, least: int = 1) -> int:
    """How many images fit in ``left`` bytes if each takes ``each``: at least ``least``.

    Args:
        left: as :func:`room` gives it.
        each: in bytes.
        where: what is done with the images, for the error.
        device: as in :func:`budget`.
        least: how many have to go together.

    Raises:
        InvalidData: fewer than ``least`` fit, and a :func:`memory_limit` says so.
    """
    count = left // max(1, each)
    if count < least and _limit.get() is not None:
        taken = least * each
        needed = written(max(held(device), budget(None, device) - left) + taken)  # it may hold more than the limit
        together = "one image takes" if least == 1 else f"{least} images, which go together, take"
        got = f"a limit of {written(budget(None, device))}, where {together} {written(taken)}"
        remedy = f'Pass memory_limit("{needed}"), or smaller images'
        raise InvalidData(message(where, "", got, f"{needed} at least", remedy))
    return max(least, count)


def written(size: int) -> str:
    """A number of bytes in MB or GB, rounded up."""
    return f"{math.ceil(size / 1e6)}MB" if size < 1e9 else f"{math.ceil(size / 1e8) / 10:g}GB"


def _available(root: Path) -> list[int]:
    """What the system says is available."""
    lines = _read(root / "proc/meminfo").splitlines()
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left of the limit of each control group that this process is in."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            folders = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            folders = ["sys/fs/cgroup/memory"]
        else:
            continue
        # In a container the group's own path is often hidden, and its files lie at the top.
        own = Path(path.lstrip("/"))
        for folder in folders:
            for group in (own, *own.parents):
                yield from _left_in(root / folder / group, names)


def _left_in(group: Path, names: tuple[str, str, str]) -> Iterator[int]:
    limit, used = (_read(group / name).strip() for name in names[:2])
    if not limit.isdigit() or not used.isdigit() or int(limit) >= UNLIMITED:
        return
    statistics = (line.split() for line in _read(group / "memory.stat").splitlines())
    caches = sum(int(line[1]) for line in statistics if len(line) == 2 and line[0] == names[2])
    yield int(limit) - int(used) + caches


def _read(path: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    if not os.path.isfile(path):
        return ""
    try:
        return path.read_text()
    except OSError:  # a group that has just been removed, or is another user's
        return ""
