"""Reading a network from an ONNX file."""

from __future__ import annotations

from pathlib import Path

from .loaded import Checkpoint


def load(path: Path) -> Checkpoint:
    """The network in an ONNX file."""
    raise NotImplementedError(path)
