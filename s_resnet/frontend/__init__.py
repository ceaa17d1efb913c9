"""The frontend: from a file or a module of PyTorch to a Graph."""

from .checkpoint import load_checkpoint
from .loaded import Checkpoint
from .program import Program
from .qcfs import QCFSModule
from .trace import trace

__all__ = [
    "Checkpoint",
    "Program",
    "QCFSModule",
    "load_checkpoint",
    "trace",
]
