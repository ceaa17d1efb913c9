"""Opening labeled arrays in an ``.npz``: images of 8 bits, or signals and images in floating point."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidData, message
from .arrays import ArrayData
from .images import ImageData, reason

_MAX_CLASSES = 100_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MUCH, _DENSEST = 2**28, 100  # bytes that are always accepted, and the highest ratio of compression beyond them
_ADVICE = "Save it with numpy.savez(path, x=images, y=labels)"
_FORMS = (
    "uint8 images [B, H, W, 3] or [B, H, W], or prepared numbers in floating point: signals [B, C, L] or images "
    "[B, C, H, W]; not empty"
)


def open_npz(path: Path, split: str) -> ImageData | ArrayData:
    """The samples ``x`` and labels ``y`` in an ``.npz``; for calibration ``y`` may be missing.

    Raises:
        InvalidData: the file is no such archive, or its arrays have other shapes or types.
    """
    where = f"data '{path}'"
    found = _arrays(path, where)
    x, y = found.get("x"), found.get("y")
    if x is not None and x.ndim and y is None and split == "calibration":
        y = np.full(len(x), -1)
    if x is None or y is None:
        raise InvalidData(message(where, "arrays", ", ".join(found) or "none", "x and y", _ADVICE))
    if x.ndim == 4 and x.shape[3] == 1 and x.dtype == np.uint8:
        x = x[..., 0]  # gray, as [B, H, W]
    _check_samples(x, where)
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise InvalidData(message(where, "y", f"{y.dtype} {list(y.shape)}", f"integer [{len(x)}] as x", _ADVICE))
    if "y" in found and (y.min() < 0 or y.max() >= _MAX_CLASSES):
        got, expected = y.min() if y.min() < 0 else y.max(), f"0 to {_MAX_CLASSES - 1}"
        raise InvalidData(message(where, "label", got, expected, "Number the classes from 0 on"))
    classes, names = tuple(map(str, range(int(y.max()) + 1))), tuple(map(str, range(len(y))))
    labels = tuple(int(label) for label in y)
    if x.dtype == np.uint8:
        return ImageData(str(path), "all", classes, names, labels, pixels=x)
    with np.errstate(over="ignore"):  # what float32 cannot hold is found where numbers are checked
        return ArrayData(str(path), "all", classes, names, labels, numbers=x.astype(np.float32))


def _arrays(path: Path, where: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays in the file by name: ``x`` and ``y`` as they are, the others empty."""
    try:
        if not zipfile.is_zipfile(path):  # otherwise NumPy takes it for a bare array or a pickle
            raise zipfile.BadZipFile("no archive")
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] if name in ("x", "y") else np.empty(0) for name in sorted(file)}
    except Exception as error:  # on a damaged archive the readers can fail in any way
        raise InvalidData(message(where, "file", reason(error), "an .npz archive of plain arrays", _ADVICE)) from error
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def _check_samples(x: npt.NDArray[Any], where: str) -> None:
    color = x.shape[3:] == (3,) if x.ndim != 3 else x.shape[2] == 3  # [H, W, 3] is one image, not several gray ones
    images = x.dtype == np.uint8 and x.ndim in (3, 4) and color == (x.ndim == 4)
    numbers = x.dtype.kind == "f" and x.dtype.itemsize <= 8 and x.ndim in (3, 4)
    numbers = numbers and not (x.shape[3:] in ((1,), (3,)) and x.shape[1] > 4)  # [B, H, W, C] in another order
    if x.size == 0 or not (images or numbers):
        raise InvalidData(message(where, "x", f"{x.dtype} {list(x.shape)}", _FORMS, _ADVICE))


def _check_sizes(path: Path) -> None:
    """ValueError where the header of x or y claims more than is stored, or the archive unpacks as images never do."""
    unpacked = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename not in ("x.npy", "y.npy"):
                continue
            with archive.open(member) as stored:
                version = np.lib.format.read_magic(stored)
                if version not in _HEADERS:
                    raise ValueError(f"{member.filename} of format {version}")
                shape, _, dtype = _HEADERS[version](stored)
            unpacked += member.file_size
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} of {member.file_size} bytes for {dtype} {list(shape)}")
    packed = path.stat().st_size
    if unpacked > max(_MUCH, _DENSEST * packed):
        raise ValueError(f"{unpacked} bytes packed into {packed}")
