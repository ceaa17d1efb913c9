"""Compiled kernels on disk: built once for each source, compiler and processor, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def folder() -> Path:
    """``$XDG_CACHE_HOME/s_resnet`` or ``~/.cache/s_resnet``; where that cannot be written, one for this process."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        (home / "s_resnet").mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home / "s_resnet"):
            return home / "s_resnet"
    except OSError:
        return Path(tempfile.mkdtemp(prefix="s_resnet-"))


def built(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The file that ``build`` writes to the path it is given, from the cache when it is there and whole.

    name: of the file, with its suffix. key: everything that the result depends on. A cached file that does not have
    the digest noted beside it is built again.
    """
    stem, suffix = os.path.splitext(name)
    path = folder() / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"
    note = path.with_name(path.name + ".sha256")
    if path.is_file() and note.is_file() and note.read_bytes() == _digest(path).encode():
        return path
    with tempfile.TemporaryDirectory(dir=folder()) as work:
        fresh = Path(work) / name
        build(fresh)
        fresh_note = Path(work) / "digest"
        fresh_note.write_text(_digest(fresh))
        os.replace(fresh, path)
        os.replace(fresh_note, note)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
