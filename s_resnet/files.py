"""Files that are written whole or not at all, under temporary names that no other writer uses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors

from .errors import SResNetError, message

__all__ = [
    "opened",
    "read",
    "reason",
    "replacing",
    "save_json",
    "scratch",
    "sweep",
]

DAY = 86_400  # seconds


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file beside ``path``, which is synced and renamed to ``path`` at the end of the block.

    No other thread, process or machine uses the same temporary name. Temporary files that killed writers have left for
    ``path`` are removed first.

    Args:
        path: the file to write or replace.

    Raises:
        SResNetError: the file cannot be written (disk full, no permission); an existing file stays as it was.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{_own()}.tmp"
    try:
        sweep(path.parent, f".{path.name}.")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # that of any new file here; safetensors would leave one that only the owner can read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        expected, remedy = _wanted(cause, path)
        raise SResNetError(message(f"{path}", "cannot be written", reason(cause), expected, remedy)) from error
    finally:
        with suppress(OSError):  # the error is already on its way
            temporary.unlink(missing_ok=True)


def save_json(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """Write plain JSON values, whole or not at all.

    Raises:
        SResNetError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(entry, indent=1, allow_nan=False) + "\n")


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """Give a temporary folder in ``place`` for the block; folders that killed processes have left there are removed."""
    sweep(place, ".scratch.")
    folder = place / f".scratch.{_own()}.tmp"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the next call sweeps what stays


def _wanted(cause: BaseException, path: Path) -> tuple[str, str]:
    """What was expected of the place of a file that cannot be written, and what to do."""
    number = cause.errno if isinstance(cause, OSError) else None
    if number == errno.ENOENT:
        return "a folder that exists", f"Create {path.parent}, or write to another folder"
    if number == errno.ENOTDIR:
        return "a file in a folder", f"{path.parent} is a file: write to another folder"
    if os.path.isdir(path):  # False for a name that is too long
        return "the name of a file", "Add a name to the folder"
    return "a writable folder with room", "Free some space, or write to another folder"


def _cause(error: BaseException) -> BaseException | None:
    """The system's error behind a RuntimeError of a writer in another language, such as torch's; None without one."""
    if not isinstance(error, RuntimeError):
        return error
    return next((one for one in (error.__cause__, error.__context__) if isinstance(one, OSError)), None)


def read(path: Path, most: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more than ``most`` bytes.
    """
    with opened(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # Python allocates what it is asked for


def opened(path: str | os.PathLike[str], most: int | None = None) -> BufferedReader:
    """A regular file, opened for reading.

    Raises:
        OSError: it cannot be opened, is a pipe or a device, or has more than ``most`` bytes.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # the caller closes it
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than {most}")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer


def sweep(folder: Path, start: str) -> None:
    """Remove temporary files in ``folder`` whose name begins with ``start`` and whose writer no longer runs.

    Whether a writer on another machine or in another container runs is unknown: its files are removed once they are a
    day old.
    """
    known = re.compile(re.escape(start) + r"([0-9a-f]{8})-(\d+)-[0-9a-f]+\.tmp")
    for name in os.listdir(folder) if folder.is_dir() else ():
        if (found := known.fullmatch(name)) is None:
            continue
        left = folder / name
        with suppress(OSError):  # another process may be sweeping too, or may be the only one with the right to
            over = not _running(int(found[2])) if found[1] == _machine() else time.time() - left.lstat().st_mtime > DAY
            if over and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif over:
                left.unlink()


def _own() -> str:
    """A part of a name that no other writer has."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def reason(error: BaseException) -> str:
    """What went wrong, in one line, for the "got" of an error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@cache
def _machine() -> str:
    """An identifier of this machine, its boot and its container, among those that share a folder."""
    known = [platform.node()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))  # process numbers count within it
    return hashlib.blake2b("\n".join(known).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def _running(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or not a process number
        return True
    return True
