"""Files that are written whole or not at all, under names that no other writer has."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import safetensors

from .errors import SResNetError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``; what is written there takes ``path``'s place at the end, synced, or not at all.

    The name is this writer's alone, whatever other threads, processes and machines write there. What writers that were
    killed have left for ``path`` is removed first. Raises SResNetError when the file cannot be written (disk full, no
    permission); an old file then survives.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        sweep(path)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # that of any new file here; safetensors would leave one for the owner's eyes only
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise SResNetError(
            f"{path}: cannot be written, got {reason(error)}; expected a writable folder with room. "
            "Free some space or choose another place."
        ) from error
    finally:
        with suppress(OSError):  # the reason is already on its way
            temporary.unlink(missing_ok=True)


def read(path: Path, most: int) -> bytes:
    """The whole of a regular file of at most ``most`` bytes; OSError otherwise."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, more than {most}")
        return file.read(status.st_size)  # Python makes room for what it is asked for


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would have it wait for a writer


def sweep(path: Path) -> None:
    """Remove what writers of this machine that no longer run have left beside ``path``."""
    prefix = f".{path.name}.{_machine()}-"
    for name in os.listdir(path.parent) if path.parent.is_dir() else ():
        if name.startswith(prefix) and name.endswith(".tmp"):
            number = name.removeprefix(prefix).partition("-")[0]
            if number.isdecimal() and not _running(int(number)):
                (path.parent / name).unlink(missing_ok=True)


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
