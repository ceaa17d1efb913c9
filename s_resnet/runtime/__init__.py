"""Where and how work runs: devices, memory, several processes, progress bars."""

from .device import find_device
from .memory import memory_limit
from .processes import all_gather, first_process_first, is_first, process_group, shard
from .progress import Progress

__all__ = [
    "Progress",
    "all_gather",
    "find_device",
    "first_process_first",
    "is_first",
    "memory_limit",
    "process_group",
    "shard",
]
