"""The file of a checkpoint: read whole, as data alone, and only what its own checksums and sizes bear out."""

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

from ..errors import InvalidCheckpoint, message
from .opcodes import Excess, scan

SAVE = "save its weights with torch.save(model.state_dict(), path)"
LARGEST = 2**33  # bytes of a file
PART = 2**20  # bytes read at a time
OPTIONS = 2**26  # bytes of the pickle in a zip, beside its tensors
LEGACY = 5  # pickles one after the other in what torch.save wrote before it wrote zips


def damaged(where: str) -> InvalidCheckpoint:
    """The error of a file that ends too soon, or is none of ours."""
    remedy = f"Copy or download the file again, or {SAVE}"
    return InvalidCheckpoint(
        message(where, "cannot be read", "truncated, damaged or foreign data", "a whole checkpoint", remedy)
    )


def first(names: Iterable[str]) -> str:
    """The first few of these names."""
    names = list(names)
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def read(path: Path) -> tuple[object, str]:
    """What the file holds, and its sha256. Raises `InvalidCheckpoint` where it cannot be read."""
    where = str(path)
    try:
        if not path.exists():
            raise InvalidCheckpoint(
                message(where, "checkpoint", "no such file", "a file that exists", "Check the path")
            )
        if not path.is_file():
            got = "a directory" if path.is_dir() else "no regular file"
            raise InvalidCheckpoint(
                message(where, "checkpoint", got, "a .pth or .safetensors file", "Name the file itself")
            )
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST:
                raise InvalidCheckpoint(
                    message(where, "size", f"{size} bytes", f"at most {LARGEST}", f"Load it in Python and {SAVE}")
                )
            sha256 = hashlib.sha256()
            while chunk := file.read(PART):
                sha256.update(chunk)
            _check_format(path, file, where)
            file.seek(0)
            return _deserialize(path, file, where), sha256.hexdigest()
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise InvalidCheckpoint(
            message(where, "cannot be opened", got, "a readable file", "Check its permissions")
        ) from None


def _check_format(path: Path, file: BinaryIO, where: str) -> None:
    """Turn away by their first bytes the files that `torch.load` would warn or write paragraphs about."""
    file.seek(0)
    head = file.read(16)
    expected = "a file that torch.save or safetensors wrote"
    if not head:
        raise InvalidCheckpoint(message(where, "empty file", "0 bytes", expected, "Copy or download it again"))
    if path.suffix == ".safetensors":
        return
    if head.startswith(b"\x89HDF"):
        remedy = "Take the network's PyTorch weights, or train it in PyTorch"
        raise InvalidCheckpoint(message(where, "not a PyTorch file", "HDF5 (TensorFlow, Keras)", expected, remedy))
    if head.startswith(b"PK\x03\x04"):
        _check_zip(file, where)
    elif head.startswith(b"\x80"):  # begins a binary pickle, which is torch.save's older format
        _check_legacy(file, where)
    else:
        got = f"a file beginning with {head!r}"
        raise InvalidCheckpoint(message(where, "not a checkpoint", got, expected, f"Check the path, or {SAVE}"))


def _check_zip(file: BinaryIO, where: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = {member.filename.partition("/")[2] or member.filename for member in members}
            if "constants.pkl" not in names and "data.pkl" in names:
                _check_members(archive, members, file, where)
    except InvalidCheckpoint:
        raise
    except Exception:  # a damaged directory fails as BadZipFile, and in the decoding of its names; a flipped bit as CRC
        raise damaged(where) from None
    if "constants.pkl" in names:
        got, remedy = "a program with its weights", f"Load it with torch.jit.load and {SAVE}"
        raise InvalidCheckpoint(message(where, "TorchScript file", got, "a state dict: tensors by name", remedy))
    if "data.pkl" not in names:
        got, remedy = f"a zip archive of {first(sorted(names))}", f"Check the path, or {SAVE}"
        raise InvalidCheckpoint(message(where, "not a checkpoint", got, "a file that torch.save wrote", remedy))


def _check_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], file: BinaryIO, where: str) -> None:
    """The sizes of a zip against the file's, its checksums, and what its pickle says of its storages."""
    size = os.fstat(file.fileno()).st_size
    unpacked = sum(member.file_size for member in members)
    if unpacked > 2 * size:  # torch.save does not compress
        raise _excess(where, f"{unpacked} bytes packed into {size}")
    # torch looks names up without regard to case, below the folder of the first.
    folder = members[0].filename.partition("/")[0]
    sizes = {member.filename.lower(): member.file_size for member in members}
    if len(sizes) != len(members) or sizes.get(f"{folder}/data.pkl".lower(), OPTIONS + 1) > OPTIONS:
        raise damaged(where)
    checked = any(member.CRC for member in members)  # torch.save can be told to leave checksums out
    for member in members:
        if not checked:
            member.CRC = None  # type: ignore[assignment]  # nor does zipfile ask for them then
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
        raise InvalidCheckpoint(
            message(where, "byte order", "big-endian numbers", "little-endian ones", f"Load it in Python and {SAVE}")
        )


class _Within:
    """A file that is never asked for more than it has: Python makes room for what it is asked for."""

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
        except ValueError:  # the reader, which comes to the same place, says what is wrong
            return


def _scanned(pickled: Any, where: str) -> dict[str, int]:
    try:
        return scan(pickled)
    except Excess as error:
        raise _excess(where, str(error)) from None


def _excess(where: str, got: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        message(where, "unfolds to too much", got, "weights and a few settings", f"Load it in Python and {SAVE}")
    )


def _deserialize(path: Path, file: BinaryIO, where: str) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(file.read())
        # Training scripts, torchvision's among them, save their options too: plain attributes, no code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # what torch remarks on an old format does not concern the user
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
    except Exception:  # a damaged file can make the readers fail in any way
        raise damaged(where) from None
