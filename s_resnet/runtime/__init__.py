"""The runtime: devices and processes."""

from .device import find_device
from .processes import exchange, first_process_first, process_group, shard
from .progress import Progress

__all__ = [
    "Progress",
    "exchange",
    "find_device",
    "first_process_first",
    "process_group",
    "shard",
]
