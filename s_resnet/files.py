"""Files that are written whole or not at all, under names that no other writer has."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator

__all__ = [
    "opened",
    "read",
    "reason",
    "replacing",
    "scratch",
    "sweep",
]
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path

import safetensors

from .errors import SResNetError

DAY = 86_400  # seconds


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``; what is written there takes ``path``'s place at the end, synced, or not at all.

    The name is this writer's alone, whatever other threads, processes and machines write there. What writers that were
    killed have left for ``path`` is removed first. Raises SResNetError when the file cannot be written (disk full, no
    permission); an old file then survives.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{_own()}.tmp"
    try:
        sweep(path.parent, f".{path.name}.")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # that of any new file here; safetensors would leave one for the owner's eyes only
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise SResNetError(
            f"{path}: cannot be written, got {reason(cause)}; expected a writable folder with room. "
            "Free some space or choose another place."
        ) from error
    finally:
        with suppress(OSError):  # the reason is already on its way
            temporary.unlink(missing_ok=True)


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A folder for a while in ``place``, this process's alone; what killed processes have left there is removed."""
    sweep(place, ".scratch.")
    folder = place / f".scratch.{_own()}.tmp"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what stays is swept by the next


def _cause(error: BaseException) -> BaseException | None:
    """The system's error that a writer in another language, as torch's, has turned into one of its own."""
    if not isinstance(error, RuntimeError):
        return error
    return next((one for one in (error.__cause__, error.__context__) if isinstance(one, OSError)), None)


def read(path: Path, most: int) -> bytes:
    """The whole of a regular file of at most ``most`` bytes; OSError otherwise."""
    with opened(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # Python makes room for what it is asked for


def opened(path: str | os.PathLike[str], most: int | None = None) -> BufferedReader:
    """A regular file of at most ``most`` bytes, to be read; OSError for a pipe, a device or a larger one."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # the caller closes it
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than {most}")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would have it wait for a writer


def sweep(folder: Path, start: str) -> None:
    """Remove what writers that no longer run have left in ``folder`` under names with that start.

    Of another machine's, or a container's, nobody can tell: they are gone once nothing was written for a day.
    """
    known = re.compile(re.escape(start) + r"([0-9a-f]{8})-(\d+)-[0-9a-f]+\.tmp")
    for name in os.listdir(folder) if folder.is_dir() else ():
        if (found := known.fullmatch(name)) is None:
            continue
        left = folder / name
        with suppress(OSError):  # another may be sweeping as well, or may be the only one who is allowed to
            over = not _running(int(found[2])) if found[1] == _machine() else time.time() - left.lstat().st_mtime > DAY
            if over and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif over:
                left.unlink()


def _own() -> str:
    """A part of a name that is this writer's alone."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def reason(error: BaseException) -> str:
    """What went wrong, in one line, for the ``got`` of an error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@cache
def _machine() -> str:
    """What tells this machine, since it was started, and this container from others that share a folder."""
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
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True
