"""Reading the file of a checkpoint: as data only, and only as far as its checksums and sizes agree."""

import argparse
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from ...errors import InvalidCheckpoint, message
from .foreign_files import EXPECTED, UNMISTAKABLE, kind_of, kind_of_zip, refusal
from .opcodes import Excess, scan

SAVE = "save its weights with torch.save(model.state_dict(), path)"
RESAVE = f"Load it in Python and {SAVE}"
LARGEST = 2**33  # bytes of a file
PART = 2**20  # bytes read at a time
OPTIONS = 2**26  # bytes of the pickle in a zip, beside its tensors
LEGACY = 5  # consecutive pickles in the format that torch.save wrote before zip archives


def damaged(where: str) -> InvalidCheckpoint:
    """The error for a file that is truncated, or of another kind."""
    remedy = f"Copy or download the file again, or {SAVE}"
    return InvalidCheckpoint(
        message(where, "cannot be read", "truncated, damaged or foreign data", "a whole checkpoint", remedy)
    )


def first(names: Iterable[str]) -> str:
    """The first few of these names, in words."""
    names = list(names)
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def read(path: Path) -> tuple[object, str]:
    """The content of the file, and its SHA-256.

    Raises:
        InvalidCheckpoint: the file cannot be read.
    """
    where = str(path)
    try:
        if not path.exists():
            raise InvalidCheckpoint(
                message(where, "checkpoint", "no such file", "a file that exists", "Pass the path of one")
            )
        if not path.is_file():
            got = "a directory" if path.is_dir() else "no regular file"
            raise InvalidCheckpoint(message(where, "checkpoint", got, EXPECTED, "Name the file itself"))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                raise InvalidCheckpoint(message(where, "size", f"{size} bytes", f"at most {LARGEST}", RESAVE))
            sha256 = hashlib.sha256()
            while chunk := file.read(PART):
                sha256.update(chunk)
            _check_format(path, file, where)
            file.seek(0)
            return _deserialize(path, file, where), sha256.hexdigest()
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise InvalidCheckpoint(
            message(where, "cannot be opened", got, "a readable file", "Change its permissions so that you can read it")
        ) from None


def _check_format(path: Path, file: BinaryIO, where: str) -> None:
    """Refuse, by its first bytes, a file about which ``torch.load`` would warn or write paragraphs."""
    file.seek(0)
    head = file.read(512)
    if not head:
        raise InvalidCheckpoint(message(where, "empty file", "0 bytes", EXPECTED, "Copy or download it again"))
    if path.suffix == ".safetensors":
        return
    unknown = f"a file beginning with {head[:16]!r}", f"Pass another file, or {SAVE}"
    if path.suffix.lower() in UNMISTAKABLE:
        raise refusal(where, kind_of(head, path) or unknown)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(file, where)
    elif head.startswith(b"\x80"):  # the beginning of a binary pickle, torch.save's older format
        _check_legacy(file, where)
    else:
        raise refusal(where, kind_of(head, path) or unknown)


def _check_zip(file: BinaryIO, where: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = {member.filename.partition("/")[2] or member.filename for member in members}
            if "constants.pkl" not in names and "data.pkl" in names:
                _check_members(archive, members, file, where)
    except InvalidCheckpoint:
        raise
    except Exception:  # a damaged directory can fail in any way, a flipped bit by its checksum
        raise damaged(where) from None
    if "constants.pkl" in names:
        got, remedy = "a program with its weights", f"Load it with torch.jit.load and {SAVE}"
        raise InvalidCheckpoint(message(where, "TorchScript file", got, "a state dict: tensors by name", remedy))
    if "data.pkl" not in names:
        unknown = f"a zip archive of {first(sorted(names))}", f"Pass another file, or {SAVE}"
        raise refusal(where, kind_of_zip(names) or unknown)


def _check_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], file: BinaryIO, where: str) -> None:
    """Check the sizes in a zip archive against the file's, its checksums, and the sizes that its pickle claims."""
    size = os.fstat(file.fileno()).st_size
    unpacked = sum(member.file_size for member in members)
    if unpacked > 2 * size:  # torch.save does not compress
        raise _excess(where, f"{unpacked} bytes packed into {size}")
    # torch ignores case in names, and looks for them in the folder of the first member.
    folder = members[0].filename.partition("/")[0]
    sizes = {member.filename.lower(): member.file_size for member in members}
    if len(sizes) != len(members) or sizes.get(f"{folder}/data.pkl".lower(), OPTIONS + 1) > OPTIONS:
        raise damaged(where)
    checked = any(member.CRC for member in members)  # torch.save can leave checksums out
    for member in members:
        if not checked:
            member.CRC = None  # type: ignore[assignment]  # so that zipfile does not check it
            continue
        with archive.open(member) as part:
            while part.read(PART):
                pass
    claimed = _scanned(archive.read(f"{folder}/data.pkl"), where)
    for key, bytes_ in claimed.items():
        if bytes_ > sizes.get(f"{folder}/data/{key}".lower(), 0):
            raise damaged(where)
    order = f"{folder}/byteorder"
    if order.lower() in sizes and archive.read(order) != b"little":
        raise InvalidCheckpoint(message(where, "byte order", "big-endian numbers", "little-endian ones", RESAVE))


class _Within:
    """A file that is never asked for more bytes than it has, since Python would allocate them."""

    def __init__(self, file: BinaryIO) -> None:
        self.size, self.tell, self.readline = os.fstat(file.fileno()).st_size, file.tell, file.readline
        self._read = file.read

    def read(self, count: int) -> bytes:
        return self._read(min(count, self.size - self.tell()))


def _check_legacy(file: BinaryIO, where: str) -> None:
    file.seek(0)
    within = _Within(file)
    for _ in range(LEGACY):
        try:
            _scanned(within, where)
        except ValueError:  # the reader fails at the same place, and says why
            return


def _scanned(pickled: Any, where: str) -> dict[str, int]:
    try:
        return scan(pickled)
    except Excess as error:
        raise _excess(where, str(error)) from None


def _excess(where: str, got: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(message(where, "unfolds to too much", got, "weights and a few settings", RESAVE))


def _deserialize(path: Path, file: BinaryIO, where: str) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(file.read())
        # Training scripts such as torchvision's also save their options, a Namespace of plain values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # remarks about old formats do not concern the user
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise damaged(where) from None
        what = "holds Python objects or code (such as a whole pickled module), which are never loaded"
        remedy = f"If you trust its author, load it in Python and {SAVE}"
        raise InvalidCheckpoint(
            message(where, what, first([refused[1]]), "a state dict: tensors by name", remedy)
        ) from None
    except Exception:  # on a damaged file the readers can fail in any way
        raise damaged(where) from None
