"""Event recordings: CIFAR10-DVS and DVS-Gesture in the layout of the ``tonic`` library, binned into frames."""

import contextlib
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BackendUnavailable, InvalidData, message
from ..files import opened
from ..runtime.display import Displayed
from .classes import by_number
from .images import BROKEN, LabeledData, is_count, reason
from .loader import Loader

Size = tuple[int, int]
_PER_CLASS, _TRAIN = 1000, 900  # recordings of CIFAR10-DVS
_HEADER = 2**20  # bytes of a header that are read
_NEEDS = {"cifar10dvs": ("tonic", "aedat"), "dvsgesture": ("tonic",)}


@dataclass(frozen=True, eq=False, repr=False)
class Events(Displayed):
    """One recording of N events.

    Attributes:
        t: time in microseconds, integers ``[N]`` in any order; :class:`EventData` counts it from the first event.
        x: column on the sensor, integers ``[N]``.
        y: row on the sensor, integers ``[N]``.
        p: polarity, 0 (darker) or 1 (brighter), integers or bool ``[N]``.
        sensor: height and width of the sensor in pixels.
    """

    t: Tensor
    x: Tensor
    y: Tensor
    p: Tensor
    sensor: Size


@dataclass(frozen=True, repr=False)
class Binning(Displayed):
    """How a recording becomes frames: see :func:`bin_events`. ``Binning(**json.loads(text))`` works.

    Attributes:
        bins: T, the number of frames, at least 1.
        microseconds: length of a bin, at least 1.
        size: height and width of the frames.

    Raises:
        InvalidData: a value is out of range.
    """

    bins: int
    microseconds: int
    size: Size

    def __post_init__(self) -> None:
        for name in ("bins", "microseconds"):
            if not is_count(getattr(self, name), 1):
                got = getattr(self, name)
                raise InvalidData(message("binning", name, got, "a whole number >= 1", "Pass one such as 10"))
        size = tuple(self.size) if isinstance(self.size, list | tuple) else ()
        if len(size) != 2 or not all(is_count(side, 1) for side in size):
            raise InvalidData(message("binning", "size", self.size, "height and width >= 1", "Pass two whole numbers"))
        object.__setattr__(self, "size", size)

    def __call__(self, events: Events) -> Tensor:
        """The recording as float32 ``[T, 2, H, W]``, by :func:`bin_events`."""
        return bin_events(events, self)

    def outside(self, events: Events) -> int:
        """How many events come before the first bin or after the last."""
        return int(((events.t < 0) | (events.t >= self.bins * self.microseconds)).sum())


EVENT_BINS = {"cifar10dvs": Binning(10, 10_000, (42, 42)), "dvsgesture": Binning(40, 30_000, (32, 32))}
"""The bins of each event data set: those of the released code of Feng et al., IJCAI 2022 (arXiv:2210.06386)."""


def bin_events(events: Events, binning: Binning) -> Tensor:
    """The events counted per bin, polarity and pixel: ``[T, 2, H, W]`` float32, T = ``binning.bins``.

    With the sensor's height and width ``H_s`` and ``W_s``, and integer division that rounds down::

        frames[k, c, i, j] = number of events n with  t_n // microseconds = k,  p_n = c,
                                                      y_n * H // H_s = i,       x_n * W // W_s = j

    Counts of the sensor's pixels that fall on one pixel are summed. Bin k holds the events from ``k * microseconds`` up
    to but not including ``(k + 1) * microseconds``; those before t = 0 and after the last bin are left out.

    Args:
        events: a recording.
        binning: number, length and size of the frames; the size is at most the sensor's.

    Raises:
        InvalidData: tensors of different shapes, values that are not integers, events outside the sensor, or frames
            larger than it.
    """
    _check_events(events)
    (rows, columns), (height, width) = events.sensor, binning.size
    if height > rows or width > columns:
        expected = f"at most the sensor's {rows} x {columns}"
        raise InvalidData(message("bin_events", "frames of", f"{height} x {width}", expected, "Pass a smaller size"))
    k = torch.div(events.t.long(), binning.microseconds, rounding_mode="floor")
    i, j = events.y.long() * height // rows, events.x.long() * width // columns
    cell = ((k * 2 + events.p.long()) * height + i) * width + j
    counts = torch.bincount(cell[(k >= 0) & (k < binning.bins)], minlength=binning.bins * 2 * height * width)
    return counts.view(binning.bins, 2, height, width).to(torch.float32)


def _check_events(events: Events) -> None:
    """InvalidData where a recording's tensors do not fit each other or the sensor."""
    t, x, y, p = events.t, events.x, events.y, events.p
    if any(part.shape != t.shape or part.ndim != 1 or part.is_floating_point() for part in (t, x, y, p)):
        got = ", ".join(f"{part.dtype} {list(part.shape)}" for part in (t, x, y, p))
        raise InvalidData(message("bin_events", "t, x, y, p", got, "integers [N]", "Pass one of each per event"))
    for name, part, limit in (("x", x, events.sensor[1]), ("y", y, events.sensor[0]), ("p", p, 2)):
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < limit:
            got = f"{int(part.min())} to {int(part.max())}"
            remedy = "Pass the sensor's height and width, and the columns in the order t, x, y, p"
            raise InvalidData(message("bin_events", name, got, f"0 to {limit - 1}", remedy))


@dataclass(frozen=True, eq=False, repr=False)
class EventData(LabeledData):
    """Labeled event recordings in files below ``root``; see :class:`LabeledData` for the other fields.

    Attributes:
        source: tonic's data set, in the order of ``names``.
        sensor: height and width of the sensor in pixels.
    """

    source: Sequence[tuple[Any, int]] = ()
    sensor: Size = (128, 128)

    @property
    def binning(self) -> Binning:
        """The binning that the papers use for these data."""
        return EVENT_BINS[self.spec.partition(":")[0]]

    def events(self, index: int) -> Events:
        """One recording.

        Raises:
            InvalidData: its file is gone or damaged.
        """
        try:
            return self.decode(index)
        except BROKEN as error:
            where = f"recording {self.names[index]!r}"
            raise InvalidData(
                message(where, "file", reason(error), "events as tonic stores them", "Repair or remove it")
            ) from error

    def decode(self, index: int) -> Events:
        if self.root:
            _check_file(Path(self.root, self.names[index]))
        try:
            recording = self.source[index][0]
        except BaseException as error:  # tonic raises plain Exceptions; a panic of its decoder is a BaseException
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise ValueError(reason(error)) from error
            raise
        t, x, y, p = (torch.from_numpy(recording[name].astype(np.int64)) for name in "txyp")
        if not len(t):
            raise ValueError("no events")
        events = Events(t - t.min(), x, y, p, self.sensor)
        try:
            _check_events(events)
        except InvalidData as error:
            raise ValueError(str(error)) from error
        return events

    def events_outside(self, sample: Events, preprocessing: Callable[[Any], Tensor]) -> tuple[int, int]:
        return len(sample.t), preprocessing.outside(sample) if isinstance(preprocessing, Binning) else 0


def _check_file(path: Path) -> None:
    """Check a recording for what tonic does not survive.

    That is a pipe (OSError), on which it waits forever, and an AEDAT 4 header whose description is not text
    (ValueError), over which its decoder ends the program. The file begins with 14
    bytes of magic and the header's size; a flatbuffer follows, whose third field is the description.
    """
    with opened(path) as file:
        if path.suffix != ".aedat4":
            return
        file.seek(14)
        content = file.read(min(int.from_bytes(file.read(4), "little"), _HEADER))
    try:
        (table,) = struct.unpack_from("<I", content)
        vtable = table - struct.unpack_from("<i", content, table)[0]
        last = struct.unpack_from("<H", content, vtable)[0] if vtable >= 0 else 0
        slot = struct.unpack_from("<H", content, vtable + 8)[0] if last > 8 else 0
        if slot:
            text = table + slot + struct.unpack_from("<I", content, table + slot)[0]
            content[text + 4 : text + 4 + struct.unpack_from("<I", content, text)[0]].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError("a damaged header") from error


class EventLoader(Loader):
    """A :class:`Loader` of recordings: events ``[T, B, 2, H, W]`` float32, time outermost, and labels ``[B]`` int64."""

    def __init__(
        self,
        data: EventData,
        indices: Sequence[int],
        binning: Binning,
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
    ) -> None:
        if max(size - most for size, most in zip(binning.size, data.sensor, strict=True)) > 0:
            got, most = "{} x {}".format(*binning.size), "{} x {}".format(*data.sensor)
            raise InvalidData(
                message("loader", "frames of", got, f"at most the sensor's {most}", "Pass a smaller size")
            )
        super().__init__(data, indices, binning, batch_size, workers, total)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for frames, labels in super().__iter__():
            yield frames.transpose(0, 1).contiguous(), labels


class MeanFrameLoader(EventLoader):
    """An :class:`EventLoader` that yields the mean over time, ``[B, 2, H, W]``: the input of an ANN to be converted."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for frames, labels in super().__iter__():
            yield frames.mean(0), labels


def open_events(kind: str, root: Path, split: str, download: bool) -> EventData:
    """The recordings of ``cifar10dvs`` or ``dvsgesture`` in ``root``.

    They lie as tonic stores them: ``root/CIFAR10DVS/<class>/<name>.aedat4`` and
    ``root/DVSGesture/ibmGesture{Train,Test}/user<number>_<light>/<label>.npy``. CIFAR10-DVS has no splits of its own:
    the first 900 recordings of each class by number are for training, the last 100 for testing.

    Args:
        kind: ``"cifar10dvs"`` or ``"dvsgesture"``.
        root: tonic's folder.
        split: ``"calibration"`` (training recordings) or ``"evaluation"``.
        download: whether to fetch and unpack what is missing.

    Raises:
        InvalidData: recordings are missing, or other files lie there.
        BackendUnavailable: tonic is not installed.
    """
    where, train = f"data '{kind}:{root}'", split == "calibration"
    datasets = _tonic(kind, where)
    open_kind: Callable[..., EventData] = _open_cifar10dvs if kind == "cifar10dvs" else _open_gestures
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results; tonic reports what it unpacks
            try:
                return open_kind(datasets, where, root, train, fetch=False)
            except InvalidData:
                if not download:
                    raise
                return open_kind(datasets, where, root, train, fetch=True)
    except InvalidData:
        raise
    except Exception as error:  # a folder or file name that tonic does not know, or a download that failed
        got = f"one that tonic cannot open ({type(error).__name__}: {reason(error)})"
        advice = f"Remove other files from {root}, and unpack the archives again"
        if download:
            advice = "Repeat it with a connection, or put the archives there and pass download=True again"
        raise InvalidData(message(where, "data set", got, "the files of tonic and no others", advice)) from error


def _tonic(kind: str, where: str) -> Any:
    try:
        for package in _NEEDS[kind]:
            __import__(package)
        from tonic import datasets
    except ImportError as error:
        raise BackendUnavailable(
            message(where, "package", f"no {error.name}", "it installed", "Run: pip install tonic aedat")
        ) from error
    return datasets


def _found(class_: Any, root: Path, fetch: bool, **settings: Any) -> Any:
    """tonic's data set of the files that are there; by itself its constructor fetches what it thinks is missing."""
    dataset = class_.__new__(class_)
    dataset._check_exists = lambda: not fetch
    dataset.__init__(str(root), **settings)
    del dataset._check_exists  # a lambda is not picklable
    _keep(dataset, sorted(range(len(dataset.data)), key=lambda i: (dataset.targets[i], by_number(dataset.data[i]))))
    return dataset


def _keep(dataset: Any, indices: Sequence[int]) -> None:
    dataset.data, dataset.targets = [dataset.data[i] for i in indices], [dataset.targets[i] for i in indices]


def _open_cifar10dvs(datasets: Any, where: str, root: Path, train: bool, fetch: bool) -> EventData:
    dataset = _found(datasets.CIFAR10DVS, root, fetch)
    classes = tuple(sorted(dataset.classes, key=dataset.classes.get))
    counts = [dataset.targets.count(label) for label in range(len(classes))]
    folder = root / "CIFAR10DVS"
    for name, count in zip(classes, counts, strict=True):
        if count != _PER_CLASS:
            got = f"{count} of class {name!r} in '{folder}'{_others(folder / name)}"
            raise InvalidData(
                message(where, "recordings", got, f"{_PER_CLASS} .aedat4 files", _advice(folder / "CIFAR10DVS.zip"))
            )
    _keep(dataset, [i for i in range(len(dataset.data)) if (i % _PER_CLASS < _TRAIN) == train])
    return _data(f"cifar10dvs:{root}", train, classes, root, dataset)


def _open_gestures(datasets: Any, where: str, root: Path, train: bool, fetch: bool) -> EventData:
    dataset = _found(datasets.DVSGesture, root, fetch, train=train)
    classes, folder = tuple(dataset.classes), root / "DVSGesture" / dataset.folder_name
    if unknown := sorted(set(dataset.targets) - set(range(len(classes)))):
        advice = f"Remove {unknown[0]}.npy from the folders in '{folder}'"
        raise InvalidData(message(where, "label", unknown[0], f"0 to {len(classes) - 1}", advice))
    if missing := [name for label, name in enumerate(classes) if label not in dataset.targets]:
        got = f"none of class {missing[0]!r} in '{folder}'"
        expected = ".npy files of every class in folders user<number>_<light>"
        raise InvalidData(message(where, "recordings", got, expected, _advice(folder.parent / f"{folder.name}.tar.gz")))
    return _data(f"dvsgesture:{root}", train, classes, root, dataset)


def _others(folder: Path) -> str:
    """What lies in a class folder besides recordings, such as the .aedat files of other sites."""
    kinds = Counter(Path(item.name).suffix for item in os.scandir(folder)) if folder.is_dir() else Counter[str]()
    found = [f"{count} {kind or 'files without a suffix'}" for kind, count in kinds.most_common() if kind != ".aedat4"]
    return f" beside {', '.join(found)}" if found else ""


def _advice(archive: Path) -> str:
    return (
        f"{f'Unpack {archive.name}' if archive.exists() else 'Name the directory that holds it'}, or pass download=True"
    )


def _data(spec: str, train: bool, classes: tuple[str, ...], root: Path, dataset: Any) -> EventData:
    names = tuple(os.path.relpath(path, root).replace(os.sep, "/") for path in dataset.data)
    split = "train" if train else "test"
    return EventData(spec, split, classes, names, tuple(dataset.targets), str(root), dataset)
