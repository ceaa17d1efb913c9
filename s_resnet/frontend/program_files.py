"""Files that say themselves which network they hold, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import InvalidCheckpoint, message
from .exported import file as exported_program
from .loaded import Checkpoint
from .onnx import file as onnx_file

# By the suffix of the file's name; a reader raises InvalidCheckpoint or UnsupportedModel.
READERS: dict[str, Callable[[Path], Checkpoint]] = {".onnx": onnx_file.load}


def load_program(path: Path, arch: str | None) -> Checkpoint | None:
    """The network of such a file; None where the file holds weights alone.

    Raises:
        InvalidCheckpoint: the file cannot be read, or an architecture was asked for although the file says its own.
        UnsupportedModel: the file holds an operation that cannot be converted; the message names its node.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None and exported_program.is_exported_program(path):  # its name can end in anything
        reader = exported_program.load
    if reader is None:
        return None
    if arch is not None:
        got, expected = f"arch {arch!r}", "none, since this file says which network it holds"
        raise InvalidCheckpoint(message(str(path), "architecture", got, expected, "Leave out arch"))
    return reader(path)
