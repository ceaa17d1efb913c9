"""Values of many images in a temporary file, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import ConversionError, message

ROOM = 2**28  # bytes that are kept in memory before a file is made


class Spill:
    """Rows ``[n, *]``, one per image, in a temporary file that is gone once nothing refers to it.

    It is read by slices, or by a tensor of row numbers, as a tensor is, and gives rows on the device that they came
    from. The file lies in the folder for temporary files (TMPDIR).
    """

    def __init__(self) -> None:
        self._rows, self._shape, self._dtype, self._device = 0, torch.Size(), torch.float32, torch.device("cpu")
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        except OSError as error:
            raise self._full(error, 0) from error
        weakref.finalize(self, self._file.close)

    def append(self, rows: Tensor) -> None:
        """Add rows ``[n, *]``, all of one shape and type. Raises ConversionError when the disk is full."""
        self._shape, self._dtype, self._device = rows.shape[1:], rows.dtype, rows.device
        try:
            self._file.seek(self._rows * self._size)
            self._file.write(_bytes(rows.detach().cpu().contiguous()))
            self._file.flush()
        except OSError as error:
            raise self._full(error, rows.nbytes) from error
        self._rows += len(rows)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, Tensor):
            found = torch.empty(len(index), *self._shape, dtype=self._dtype)
            for place, row in zip(found, index.tolist(), strict=True):
                self._read(place, row)
        else:
            start, stop, step = index.indices(self._rows)
            if step != 1:
                return self[torch.arange(start, stop, step)]
            found = torch.empty(max(0, stop - start), *self._shape, dtype=self._dtype)
            self._read(found, start)
        return found.to(self._device)

    @property
    def _size(self) -> int:
        """Bytes of a row."""
        return self._shape.numel() * self._dtype.itemsize

    def _read(self, into: Tensor, row: int) -> None:
        self._file.seek(row * self._size)
        if self._file.readinto(_bytes(into)) != into.nbytes:
            raise ConversionError(
                message(
                    "calibration",
                    "",
                    f"fewer bytes from a temporary file in {_place()} than were written",
                    "all of them",
                    "Check the disk, and repeat the command",
                )
            )

    def _full(self, error: OSError, missing: int) -> ConversionError:
        return ConversionError(
            f"calibration: cannot write {missing:,} more bytes after {self._rows * self._size:,} in "
            f"{_place()}, got {error.strerror}; expected room for what the layers send on all images. "
            "Set TMPDIR to a folder on a larger disk, or calibrate on fewer images."
        )


def _place() -> str:
    """The folder for temporary files, or what there is none of."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "a folder for temporary files"


def _bytes(value: Tensor) -> memoryview:
    return value.flatten().view(torch.uint8).numpy().data


def gather(parts: Iterable[Tensor]) -> Tensor | Spill:
    """All rows of ``parts`` ``[n, *]``: a tensor where they fit in ROOM bytes, else a file."""
    waiting: list[Tensor] = []
    spill: Spill | None = None
    for part in parts:
        if spill is None:
            waiting.append(part)
            if sum(rows.nbytes for rows in waiting) > ROOM:
                spill = Spill()
                for rows in waiting:
                    spill.append(rows)
                waiting = []
        else:
            spill.append(part)
    return torch.cat(waiting) if spill is None else spill
