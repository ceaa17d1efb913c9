"""Opening labeled data by name: folders, torchvision's data sets, digits, arrays, event recordings."""

import contextlib
import math
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidData, message
from .arguments import check_kind
from .events import EVENT_BINS, Binning, EventData, EventLoader, open_events
from .folders import open_directory
from .imagenet import open_imagenet
from .images import ImageData, Pixels, Preprocessing, choose, reason
from .loader import ImageLoader, Loader

_TORCHVISION = ("cifar10", "cifar100", "mnist")
_SETS = (*_TORCHVISION, "imagenet", *EVENT_BINS)
_FORMS = f"a directory of class folders, an .npz file, digits, or {':DIR, '.join(_SETS)}:DIR"
_PACKED = (".tar", ".tar.gz", ".tgz")
_MAX_CLASSES = 100_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MUCH, _DENSEST = 2**28, 100  # bytes that are always accepted, and the highest ratio of compression beyond them


def open_data(spec: str, split: str, download: bool = False) -> ImageData | EventData:
    """Open labeled images or event recordings by name.

    ``spec`` is one of these:

    * a directory of class folders; it has no splits, and gives every image for either;
    * an ``.npz`` with ``x`` uint8 ``[B, H, W, 3]``, or gray ``[B, H, W]``, and ``y`` integer ``[B]``; no splits either;
    * a directory with ``train/`` and one of ``test/``, ``val/``, ``validation/``, which hold class folders;
    * ``cifar10:DIR``, ``cifar100:DIR`` or ``mnist:DIR``, as torchvision stores them in DIR;
    * ``imagenet:DIR``, ILSVRC 2012: archives unpacked, Kaggle's layout, or class folders
      (:func:`s_resnet.data.imagenet.open_imagenet`);
    * ``cifar10dvs:DIR`` or ``dvsgesture:DIR``, event recordings as tonic stores them in DIR;
    * ``digits``: scikit-learn's 1797 images of 8 x 8 pixels; write ``./digits`` for a directory.

    Calibration needs no labels: for it a directory may hold the images themselves, and an ``.npz`` may lack ``y``. The
    classes are then empty and every label is -1.

    Classes are numbered in the order of their names as text, as torchvision's ImageFolder does;
    :func:`s_resnet.data.match_classes` gives them the numbers of a network. Folders named with a leading dot are
    ignored.

    Args:
        spec: the name of the data.
        split: ``"calibration"`` (training images) or ``"evaluation"`` (held-out images).
        download: fetch what is missing; for CIFAR, MNIST and event recordings only.

    Raises:
        InvalidData: the data are missing, incomplete or of another form.
        BackendUnavailable: event recordings without tonic.
    """
    where = f"data {spec!r}"
    check_kind(spec, str, where, "name", "Pass the name as text: str(path) for a path")
    if split not in ("calibration", "evaluation"):
        raise InvalidData(message(where, "split", repr(split), "'calibration' or 'evaluation'", "Pass one of the two"))
    if spec == "digits":
        return _open_digits(split)
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in _SETS:
        if not rest:
            raise InvalidData(message(where, "directory", "none", f"{prefix}:DIR", "Write it after the colon"))
        if prefix in EVENT_BINS:
            return open_events(prefix, _path(where, rest), split, download)
        if prefix == "imagenet":
            return open_imagenet(_path(where, rest), split, download)
        return _open_torchvision(prefix, _path(where, rest), split, download)
    path = _path(where, spec)
    if spec and path.is_dir():
        return open_directory(path, split)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _open_npz(path, split)
    foreign = colon and len(prefix) > 1 and os.sep not in prefix  # a single letter is a drive of Windows
    got = f"unknown prefix {prefix!r}" if foreign else "a file" if spec and path.exists() else "nothing there"
    remedy = "Name data that exist"
    if path.is_file() and path.name.lower().endswith(_PACKED):
        remedy = f"Unpack it (mkdir DIR && tar -xf {path.name} -C DIR) and name DIR"
    raise InvalidData(message(where, "path", got, _FORMS, remedy))


def _path(where: str, text: str) -> Path:
    try:
        path = Path(text).expanduser().resolve()
        path.exists()  # raises where the name is too long or a folder above may not be entered
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidData(message(where, "path", reason(error), _FORMS, "Name data that exist")) from error
    return path


def _open_torchvision(kind: str, root: Path, split: str, download: bool) -> ImageData:
    from torchvision import datasets

    spec, train, advice = (
        f"{kind}:{root}",
        split == "calibration",
        "Name the directory that holds it, or pass download=True",
    )
    try:
        dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}[kind]
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results; some versions of torchvision write to it
            stored = dataset(str(root), train=train, download=download)
    except (RuntimeError, OSError, ValueError, AssertionError, ImportError) as error:
        got = f"an incomplete one or none ({reason(error)})"
        expected = f"the files of {kind} as torchvision stores them"
        raise InvalidData(message(f"data '{spec}'", "dataset", got, expected, advice)) from error
    pixels, labels = np.ascontiguousarray(stored.data), tuple(int(label) for label in stored.targets)
    return _from_pixels(spec, "train" if train else "test", tuple(stored.classes), pixels, labels)


def _from_pixels(spec: str, split: str, classes: tuple[str, ...], pixels: Pixels, labels: tuple[int, ...]) -> ImageData:
    return ImageData(spec, split, classes, tuple(map(str, range(len(labels)))), labels, pixels=pixels)


def _open_digits(split: str) -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        advice = "Run: pip install scikit-learn"
        raise InvalidData(
            message("data 'digits'", "scikit-learn", "no such package", "it installed", advice)
        ) from error
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = tuple(int(label) for label in digits.target)
    every = _from_pixels("digits", "all", tuple("0123456789"), pixels, labels)
    held_out = set(choose(every, 500))  # 50 of each digit
    kept = [index for index in range(len(every)) if (index in held_out) == (split == "evaluation")]
    part, names = "test" if split == "evaluation" else "train", tuple(str(index) for index in kept)
    return ImageData("digits", part, every.classes, names, tuple(labels[i] for i in kept), pixels=pixels[kept])


def _open_npz(path: Path, split: str) -> ImageData:
    where, advice = f"data '{path}'", "Save it with numpy.savez(path, x=images, y=labels)"
    try:
        if not zipfile.is_zipfile(path):  # otherwise NumPy takes it for a bare array or a pickle
            raise zipfile.BadZipFile("no archive")
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            found = sorted(file)
            x, y = (file[name] if name in found else None for name in "xy")
    except Exception as error:  # on a damaged archive the readers can fail in any way
        raise InvalidData(message(where, "file", reason(error), "an .npz archive of plain arrays", advice)) from error
    if isinstance(x, np.ndarray) and x.ndim and y is None and split == "calibration":
        y = np.full(len(x), -1)
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        raise InvalidData(message(where, "arrays", ", ".join(found) or "none", "x and y", advice))
    if x.ndim == 4 and x.shape[3] == 1:
        x = x[..., 0]  # gray, as [B, H, W]
    color = x.shape[3:] == (3,) if x.ndim != 3 else x.shape[2] == 3  # [H, W, 3] is one image, not several gray ones
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or color != (x.ndim == 4) or x.size == 0:
        raise InvalidData(
            message(where, "x", f"{x.dtype} {list(x.shape)}", "uint8 [B, H, W, 3] or [B, H, W], not empty", advice)
        )
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise InvalidData(message(where, "y", f"{y.dtype} {list(y.shape)}", f"integer [{len(x)}] as x", advice))
    if "y" in found and (y.min() < 0 or y.max() >= _MAX_CLASSES):
        got, expected = y.min() if y.min() < 0 else y.max(), f"0 to {_MAX_CLASSES - 1}"
        raise InvalidData(message(where, "label", got, expected, "Number the classes from 0 on"))
    return _from_pixels(str(path), "all", tuple(map(str, range(int(y.max()) + 1))), x, tuple(y.tolist()))


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


def loader_for(
    data: ImageData | EventData,
    indices: Sequence[int],
    preprocessing: Preprocessing | Binning,
    batch_size: int,
    workers: int | None = None,
    total: int | None = None,
) -> Loader:
    """An :class:`ImageLoader` or an :class:`EventLoader`, whichever fits the data; the arguments are the same.

    Raises:
        InvalidData: the preprocessing is of the other kind.
    """
    if isinstance(data, EventData) and isinstance(preprocessing, Binning):
        return EventLoader(data, indices, preprocessing, batch_size, workers, total)
    if isinstance(data, ImageData) and isinstance(preprocessing, Preprocessing):
        return ImageLoader(data, indices, preprocessing, batch_size, workers, total)
    kinds = {True: "event recordings", False: "images"}
    got, expected = kinds[isinstance(data, EventData)], kinds[isinstance(preprocessing, Binning)]
    expected = f"{expected}, for which the network was made"
    raise InvalidData(message(f"data '{data.spec}'", "samples", got, expected, "Pass data of that kind"))


def read_preprocessing(settings: Mapping[str, Any]) -> Preprocessing | Binning:
    """The preprocessing that a network's provenance keeps: of images, or under ``events`` of recordings.

    Raises:
        InvalidData: ``settings`` are neither.
    """
    try:
        return Binning(**settings["events"]) if "events" in settings else Preprocessing(**settings)
    except TypeError as error:  # a key too many or too few
        got, expected = f"{', '.join(map(str, settings)) or 'nothing'}", "size, resize, mean and std, or events"
        raise InvalidData(message("preprocessing", "settings", got, expected, "Convert the network again")) from error


def stored_preprocessing(preprocessing: Preprocessing | Binning) -> dict[str, Any]:
    """The plain values that :func:`read_preprocessing` reads."""
    settings = asdict(preprocessing)
    if isinstance(preprocessing, Binning):
        return {"events": settings}
    return settings if preprocessing.gray else {name: value for name, value in settings.items() if name != "gray"}
