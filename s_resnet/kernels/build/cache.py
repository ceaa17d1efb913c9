"""Compiled kernels on disk: built once for each source, compiler and processor, written whole or not at all.

What is loaded from there runs, so it must be this user's: files and folder belong to them, and nobody else can write
there or put something else in its place.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from ...files import scratch

WRITABLE = stat.S_IWGRP | stat.S_IWOTH


@cache
def folder() -> Path:
    """``$XDG_CACHE_HOME/s_resnet`` or ``~/.cache/s_resnet``; where that will not do, one of this user's for all runs.

    It will not do where it cannot be written, or others can. The last resort is a folder for this process alone.
    """
    for place in _places():
        with suppress(OSError):
            _make(place)
            with tempfile.TemporaryFile(dir=place):
                if _private(place):
                    return place
    place = Path(tempfile.mkdtemp(prefix="s_resnet-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _places() -> Iterator[Path]:
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the XDG specification has others ignored
        yield Path(named, "s_resnet")
    else:
        with suppress(RuntimeError):  # a user without a home
            if (home := Path.home()).is_absolute():
                yield home / ".cache" / "s_resnet"
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    yield Path(tempfile.gettempdir(), f"s_resnet-{user}")


def _make(place: Path) -> None:
    """Make a folder and those above it, for this user alone."""
    if not place.parent.is_dir():
        _make(place.parent)
    place.mkdir(mode=0o700, exist_ok=True)


def _private(place: Path) -> bool:
    """Whether a folder is this user's, and no other can write there or rename what leads there."""
    if not hasattr(os, "getuid"):
        return True
    if not _own(place, stat.S_ISDIR):
        return False
    trusted = (0, os.geteuid(), os.stat("/").st_uid)  # whoever owns the root owns everything
    for above in Path(os.path.realpath(place)).parents:
        status = os.stat(above)
        sticky = status.st_mode & stat.S_ISVTX  # there nobody renames what is not theirs
        if status.st_uid not in trusted or (_open_to_others(status) and not sticky):
            return False
    return True


def _own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether this is no link, of that kind, this user's, and nobody else's to write."""
    if not hasattr(os, "getuid"):
        return path.exists()
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & WRITABLE


def _open_to_others(status: os.stat_result) -> bool:
    """Whether others than its owner can write a folder; the group that a user has alone, as many systems give, is none.

    Such a group has the user's name, and no member besides.
    """
    if not status.st_mode & stat.S_IWGRP or status.st_mode & stat.S_IWOTH:
        return bool(status.st_mode & WRITABLE)
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(status.st_gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return True
    return (group.gr_gid, group.gr_name) != (user.pw_gid, user.pw_name) or not {user.pw_name} >= set(group.gr_mem)


def built(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """A file from the cache, built if it is not there.

    A cached file that does not have the digest noted beside it, or that somebody else can write, is built again.

    Args:
        name: the name of the file, with its suffix.
        key: everything that the result depends on.
        build: writes the file to the path that it is given.
    """
    stem, suffix = os.path.splitext(name)
    path = folder() / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"
    note = path.with_name(path.name + ".sha256")
    ours = _own(path, stat.S_ISREG) and _own(note, stat.S_ISREG)
    if ours and note.read_bytes() == _digest(path).encode():
        return path
    with scratch(folder()) as work:
        fresh = work / name
        build(fresh)
        fresh_note = work / "digest"
        fresh_note.write_text(_digest(fresh))
        fresh.chmod(0o700)
        fresh_note.chmod(0o600)
        os.replace(fresh, path)
        os.replace(fresh_note, note)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
