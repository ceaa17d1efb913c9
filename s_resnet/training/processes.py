"""Several processes that train one network: they average gradients and share statistics of batch normalization."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..runtime.processes import rank_and_world_size

# How long a process that fails within a step keeps the others waiting.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        group: the process group for tensors; None where there is one process.
        apart: whether each process has its own statistics of batch normalization; those of the first are kept.
    """

    group: Any = None
    apart: bool = False

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics of the first."""
        if self.group is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0, group=self.group)

    def leave(self) -> None:
        """Leave the group of tensors."""
        if self.group is not None:
            dist.destroy_process_group(self.group)


def parallel(model: nn.Module, device: torch.device) -> tuple[Processes, nn.Module]:
    """The processes of this run, and the model as they train it together; with one process the model itself.

    Layers with a method ``sync`` share their statistics on any device; torch's own layers only on GPUs.
    """
    if rank_and_world_size()[1] == 1:
        return Processes(), model
    group = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    apart = _synchronize(model, group, device)
    ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    wrapped = nn.parallel.DistributedDataParallel(model, ids, process_group=group)
    return Processes(group, apart), wrapped


def _synchronize(model: nn.Module, group: Any, device: torch.device) -> bool:
    """Have normalization layers share their statistics; True where some cannot."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d)
    apart = False
    for module in list(model.modules()):
        if (sync := getattr(module, "sync", None)) is not None:
            sync(group)
        for name, child in list(module.named_children()):
            if type(child) in plain and device.type == "cuda":
                shared = nn.SyncBatchNorm.convert_sync_batchnorm(child, group)  # type: ignore[no-untyped-call]
                setattr(module, name, shared)
            apart |= type(child) in plain and device.type != "cuda"
    return apart
