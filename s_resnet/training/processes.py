"""Several processes that train one network: gradients averaged, statistics of batch normalization shared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..runtime.processes import rank_and_world_size

# A process that fails within a step keeps the others waiting for so long.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """The processes of a run; ``group`` is that of tensors, None where there is one process.

    apart: whether batch normalization has each process's own statistics, those of the first being kept.
    """

    group: Any = None
    apart: bool = False

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics."""
        if self.group is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0, group=self.group)

    def leave(self) -> None:
        """Leave the group of tensors."""
        if self.group is not None:
            dist.destroy_process_group(self.group)


def parallel(model: nn.Module, device: torch.device) -> tuple[Processes, nn.Module]:
    """The processes of this run, and the model as they train it together; the model itself alone.

    Layers with a method ``sync`` share their statistics on any device; torch's own share them on GPUs alone.
    """
    if rank_and_world_size()[1] == 1:
        return Processes(), model
    group = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    apart = _synchronize(model, group, device)
    ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    wrapped = nn.parallel.DistributedDataParallel(model, ids, process_group=group)
    return Processes(group, apart), wrapped


def _synchronize(model: nn.Module, group: Any, device: torch.device) -> bool:
    """Have normalization layers share statistics; whether some cannot."""
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
