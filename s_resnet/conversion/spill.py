"""Values of many images in a temporary file, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..data.arguments import Batches, class_numbers, images_of
from ..errors import ConversionError, message

ROOM = 2**28  # bytes to keep in memory before using a file

_Row = tuple["Spill", slice, Tensor | None]  # a batch: its file, its rows there, its labels


class Spill:
    """Rows ``[n, *]``, one per image, in a temporary file that is deleted once nothing refers to it.

    It is indexed like a tensor, by slices or by a tensor of row numbers, and returns rows on the device that they came
    from. The file is in the folder for temporary files (TMPDIR).
    """

    def __init__(self) -> None:
        self._rows, self._shape, self._dtype, self._device = 0, torch.Size(), torch.float32, torch.device("cpu")
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        except OSError as error:
            raise self._full(error, 0) from error
        weakref.finalize(self, self._file.close)

    def append(self, rows: Tensor) -> None:
        """Add rows ``[n, *]``, all of one shape and type.

        Raises:
            ConversionError: the file cannot be written.
        """
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
            got = f"fewer bytes from a temporary file in {_place()} than were written"
            remedy = "Free space on the disk, and convert again"
            raise ConversionError(message("calibration", "", got, "all of them", remedy))

    def _full(self, error: OSError, missing: int) -> ConversionError:
        what = f"cannot write {missing:,} more bytes after {self._rows * self._size:,} in {_place()}"
        remedy = "Set TMPDIR to a folder on a larger disk, or calibrate on fewer images"
        expected = "room for what the layers send on all images"
        return ConversionError(message("calibration", what, error.strerror, expected, remedy))


def _place() -> str:
    """The folder for temporary files, or a description if there is none."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "a folder for temporary files"


def _bytes(value: Tensor) -> memoryview:
    return value.flatten().view(torch.uint8).numpy().data


class Once:
    """Batches that are read once from where they come, and then from temporary files.

    Images are decoded and prepared once in this way, however often they are looked at. The first reading gives each
    batch as it comes; later ones give (images, labels), or the images alone.
    """

    def __init__(self, batches: Batches) -> None:
        self._source = iter(batches)
        self._files: dict[tuple[torch.Size, torch.dtype], Spill] = {}
        self._read = list[_Row]()
        self._latest: object = None  # the batch that came last, as long as nobody has asked for the next one

    def __iter__(self) -> Iterator[object]:
        place = 0
        while True:
            if place < len(self._read):
                file, rows, labels = self._read[place]
                yield file[rows] if labels is None else (file[rows], labels)
            else:
                if self._latest is None:
                    self._latest = next(self._source, None)
                if self._latest is None:
                    return
                yield self._latest
            place += 1
            if place > len(self._read):
                self._keep(self._latest)

    def _keep(self, batch: object) -> None:
        """Store the latest batch, which the one who asks for the next could use."""
        images = images_of(batch, "calibrate")
        kind = (images.shape[1:], images.dtype)
        if kind not in self._files:
            self._files[kind] = Spill()
        file = self._files[kind]
        first = len(file)
        file.append(images)
        self._read.append((file, slice(first, len(file)), class_numbers(batch, len(images))))
        self._latest = None


def gather(parts: Iterable[Tensor]) -> Tensor | Spill:
    """All rows of ``parts`` ``[n, *]``: a tensor if they fit in ROOM bytes, else a file."""
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
    if spill is not None:
        return spill
    return torch.cat(waiting) if waiting else torch.empty(0)
