"""Where and how work runs: devices, several processes, progress bars."""

from .device import find_device
from .processes import all_gather, first_process_first, process_group, shard
from .progress import Progress

__all__ = [
    "Progress",
    "all_gather",
    "find_device",
    "first_process_first",
    "process_group",
    "shard",
]
