"""The frontend: from a checkpoint or a module of PyTorch to a Graph."""

from .checkpoint import Checkpoint, load_checkpoint
from .qcfs import QCFSModule
from .trace import trace

__all__ = [
    "Checkpoint",
    "QCFSModule",
    "load_checkpoint",
    "trace",
]
