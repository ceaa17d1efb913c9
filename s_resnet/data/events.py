"""Event recordings: CIFAR10-DVS and DVS-Gesture as the ``tonic`` library stores and reads them, binned into frames."""

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

from ..errors import BackendUnavailable, InvalidData
from ..files import opened
from ..runtime.display import Displayed
from .classes import by_number
from .images import BROKEN, LabeledData, Loader, invalid, is_count, reason

Size = tuple[int, int]
_PER_CLASS, _TRAIN = 1000, 900  # recordings of CIFAR10-DVS
_HEADER = 2**20  # bytes of a header that are looked at
_NEEDS = {"cifar10dvs": ("tonic", "aedat"), "dvsgesture": ("tonic",)}


@dataclass(frozen=True, eq=False, repr=False)
class Events(Displayed):
    """One recording: ``t`` in microseconds from the first event on, ``x``, ``y`` and polarity ``p`` 0 or 1, int64 [N].

    ``sensor`` is height and width in pixels.
    """

    t: Tensor
    x: Tensor
    y: Tensor
    p: Tensor
    sensor: Size


@dataclass(frozen=True, repr=False)
class Binning(Displayed):
    """How a recording becomes frames: T = ``bins`` of ``microseconds`` from its first event on, as in `bin_events`.

    ``size`` is height and width of the frames. ``Binning(**json.loads(text))`` works.
    Raises InvalidData for values that make no sense.
    """

    bins: int
    microseconds: int
    size: Size

    def __post_init__(self) -> None:
        for name in ("bins", "microseconds"):
            if not is_count(getattr(self, name), 1):
                got = getattr(self, name)
                raise invalid("binning", name, got, "a whole number >= 1", "Give the papers' or one of yours")
        size = tuple(self.size) if isinstance(self.size, list | tuple) else ()
        if len(size) != 2 or not all(is_count(side, 1) for side in size):
            raise invalid("binning", "size", self.size, "height and width >= 1", "Give two whole numbers")
        object.__setattr__(self, "size", size)

    def __call__(self, events: Events) -> Tensor:
        """Return the recording as float32 [T, 2, H, W]; what comes after the last bin is left out."""
        settings = {"bins": self.bins, "microseconds": self.microseconds, "sensor": events.sensor, "size": self.size}
        return bin_events(events.t, events.x, events.y, events.p, **settings)  # type: ignore[arg-type]

    def outside(self, events: Events) -> int:
        """How many events come before the first bin or after the last."""
        return int(((events.t < 0) | (events.t >= self.bins * self.microseconds)).sum())


EVENT_BINS = {"cifar10dvs": Binning(10, 10_000, (42, 42)), "dvsgesture": Binning(40, 30_000, (32, 32))}
"""The bins of each event data set: those of the released code of Feng et al., IJCAI 2022 (arXiv:2210.06386)."""


def bin_events(
    t: Tensor, x: Tensor, y: Tensor, p: Tensor, *, bins: int, microseconds: int, sensor: Size, size: Size
) -> Tensor:
    """Count events per bin, polarity and pixel: ``[T, 2, H, W]`` float32, T = ``bins``.

    With the sensor's height and width H_s and W_s, and integer division that rounds down::

        frames[k, c, i, j] = number of events n with  t_n // microseconds = k,  p_n = c,
                                                      y_n * H // H_s = i,       x_n * W // W_s = j

    Counts of the sensor's pixels that fall on one pixel are summed. Bin k holds the events from ``k * microseconds`` up
    to but not including ``(k + 1) * microseconds``; those before t = 0 and after the last bin are left out.

    Args:
        t: microseconds, integers [N] in any order.
        x: column on the sensor, integers [N].
        y: row on the sensor, integers [N].
        p: polarity, 0 (darker) or 1 (brighter), integers or bool [N].
        bins: T >= 1.
        microseconds: length of a bin, >= 1.
        sensor: height and width of the sensor (H_s, W_s).
        size: height and width of the frames (H, W), at most the sensor's.

    Raises:
        InvalidData: shapes that differ, values that are no integers, events beside the sensor, settings out of range.
    """
    _check_events(t, x, y, p, sensor)
    (rows, columns), (height, width) = sensor, size
    if min(bins, microseconds, height, width) < 1 or height > rows or width > columns:
        got = f"{bins} of {microseconds} us in {height} x {width}"
        raise invalid("bin_events", "bins", got, f"1 or more of 1 or more, up to {rows} x {columns}", "Change them")
    k = torch.div(t.long(), microseconds, rounding_mode="floor")
    i, j = y.long() * height // rows, x.long() * width // columns
    place = ((k * 2 + p.long()) * height + i) * width + j
    counts = torch.bincount(place[(k >= 0) & (k < bins)], minlength=bins * 2 * height * width)
    return counts.view(bins, 2, height, width).to(torch.float32)


def _check_events(t: Tensor, x: Tensor, y: Tensor, p: Tensor, sensor: Size) -> None:
    if any(part.shape != t.shape or part.ndim != 1 or part.is_floating_point() for part in (t, x, y, p)):
        got = ", ".join(f"{part.dtype} {list(part.shape)}" for part in (t, x, y, p))
        raise invalid("bin_events", "t, x, y, p", got, "integers [N]", "Give one of each per event")
    for name, part, limit in (("x", x, sensor[1]), ("y", y, sensor[0]), ("p", p, 2)):
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < limit:
            got = f"{int(part.min())} to {int(part.max())}"
            raise invalid("bin_events", name, got, f"0 to {limit - 1}", "Check the sensor's size and the columns")


@dataclass(frozen=True, eq=False, repr=False)
class EventData(LabeledData):
    """Labeled event recordings, in files below ``root``; ``source`` is tonic's data set, in the order of ``names``."""

    source: Sequence[tuple[Any, int]] = ()
    sensor: Size = (128, 128)

    @property
    def binning(self) -> Binning:
        """The papers' bins for these data."""
        return EVENT_BINS[self.spec.partition(":")[0]]

    def events(self, index: int) -> Events:
        """Return one recording; raises InvalidData where its file is gone or damaged."""
        try:
            return self.decode(index)
        except BROKEN as error:
            where = f"recording {self.names[index]!r}"
            raise invalid(where, "file", reason(error), "events as tonic stores them", "Repair or remove it") from error

    def decode(self, index: int) -> Events:
        if self.root:
            _check_file(Path(self.root, self.names[index]))
        try:
            recording = self.source[index][0]
        except BaseException as error:  # what tonic raises is a plain Exception, what its decoder panics with is none
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise ValueError(reason(error)) from error
            raise
        t, x, y, p = (torch.from_numpy(recording[name].astype(np.int64)) for name in "txyp")
        if not len(t):
            raise ValueError("no events")
        try:
            _check_events(t, x, y, p, self.sensor)
        except InvalidData as error:
            raise ValueError(str(error)) from error
        return Events(t - t.min(), x, y, p, self.sensor)

    def events_outside(self, sample: Events, preprocessing: Callable[[Any], Tensor]) -> tuple[int, int]:
        return len(sample.t), preprocessing.outside(sample) if isinstance(preprocessing, Binning) else 0


def _check_file(path: Path) -> None:
    """OSError for a pipe, on which tonic would wait; ValueError where an AEDAT 4 header's description is no text.

    Over that its decoder ends the program. Behind 14 bytes of magic and the header's size lies a flatbuffer, whose
    third field is the description.
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
    """A :class:`Loader` of recordings: (events [T, B, 2, H, W] float32, labels [B] int64), time outermost.

    ``mean``: yield the mean over T instead, [B, 2, H, W], which is what the source ANN of a converted network sees.
    """

    def __init__(
        self,
        data: EventData,
        indices: Sequence[int],
        binning: Binning,
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
        *,
        mean: bool = False,
    ) -> None:
        if max(size - most for size, most in zip(binning.size, data.sensor, strict=True)) > 0:
            got, most = "{} x {}".format(*binning.size), "{} x {}".format(*data.sensor)
            raise invalid("loader", "frames of", got, f"at most the sensor's {most}", "Choose a smaller size")
        super().__init__(data, indices, binning, batch_size, workers, total)
        self._mean = mean

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for frames, labels in super().__iter__():
            yield frames.mean(1) if self._mean else frames.transpose(0, 1).contiguous(), labels


def open_events(kind: str, root: Path, split: str, download: bool) -> EventData:
    """Open ``cifar10dvs`` or ``dvsgesture`` in ``root`` for ``split`` "calibration" or "evaluation".

    tonic's layout: ``root/CIFAR10DVS/<class>/<name>.aedat4`` and
    ``root/DVSGesture/ibmGesture{Train,Test}/user<number>_<light>/<label>.npy``.
    CIFAR10-DVS has no splits of its own: the first 900 recordings of each class by number are for training, the last
    100 for testing. Without ``download`` nothing is fetched or unpacked.
    """
    where, train = f"data '{kind}:{root}'", split == "calibration"
    datasets = _tonic(kind, where)
    open_kind: Callable[..., EventData] = _open_cifar10dvs if kind == "cifar10dvs" else _open_gestures
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results; tonic tells what it unpacks
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
        advice = f"Keep no other files in {root}, and unpack the archives again"
        if download:
            advice = "Check the connection, or put the archives there and pass download=True again"
        raise invalid(where, "data set", got, "the files of tonic and no others", advice) from error


def _tonic(kind: str, where: str) -> Any:
    try:
        for package in _NEEDS[kind]:
            __import__(package)
        from tonic import datasets
    except ImportError as error:
        raise BackendUnavailable(
            f"{where}: package, got no {error.name}; expected it installed. Run: pip install tonic aedat."
        ) from error
    return datasets


def _found(class_: Any, root: Path, fetch: bool, **settings: Any) -> Any:
    """tonic's data set of the files that are there: its constructor would fetch what it thinks is missing."""
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
            raise invalid(where, "recordings", got, f"{_PER_CLASS} .aedat4 files", _advice(folder / "CIFAR10DVS.zip"))
    _keep(dataset, [i for i in range(len(dataset.data)) if (i % _PER_CLASS < _TRAIN) == train])
    return _data(f"cifar10dvs:{root}", train, classes, root, dataset)


def _open_gestures(datasets: Any, where: str, root: Path, train: bool, fetch: bool) -> EventData:
    dataset = _found(datasets.DVSGesture, root, fetch, train=train)
    classes, folder = tuple(dataset.classes), root / "DVSGesture" / dataset.folder_name
    if unknown := sorted(set(dataset.targets) - set(range(len(classes)))):
        advice = f"Remove {unknown[0]}.npy from the folders in '{folder}'"
        raise invalid(where, "label", unknown[0], f"0 to {len(classes) - 1}", advice)
    if missing := [name for label, name in enumerate(classes) if label not in dataset.targets]:
        got = f"none of class {missing[0]!r} in '{folder}'"
        expected = ".npy files of every class in folders user<number>_<light>"
        raise invalid(where, "recordings", got, expected, _advice(folder.parent / f"{folder.name}.tar.gz"))
    return _data(f"dvsgesture:{root}", train, classes, root, dataset)


def _others(folder: Path) -> str:
    """What lies in a class folder instead of recordings, such as the .aedat files of other sites."""
    kinds = Counter(Path(item.name).suffix for item in os.scandir(folder)) if folder.is_dir() else Counter[str]()
    found = [f"{count} {kind or 'files without a suffix'}" for kind, count in kinds.most_common() if kind != ".aedat4"]
    return f" beside {', '.join(found)}" if found else ""


def _advice(archive: Path) -> str:
    return f"{f'Unpack {archive.name}' if archive.exists() else 'Check the directory'}, or pass download=True"


def _data(spec: str, train: bool, classes: tuple[str, ...], root: Path, dataset: Any) -> EventData:
    names = tuple(os.path.relpath(path, root).replace(os.sep, "/") for path in dataset.data)
    split = "train" if train else "test"
    return EventData(spec, split, classes, names, tuple(dataset.targets), str(root), dataset)
