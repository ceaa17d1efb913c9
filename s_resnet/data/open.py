"""Opening labeled data by name: folders, torchvision's data sets, digits, arrays, event recordings."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidData, message
from .arguments import check_kind
from .arrays import ArrayData, ArrayLoader, AsStored
from .events import EVENT_BINS, Binning, EventData, EventLoader, open_events
from .folders import open_directory
from .imagenet import open_imagenet
from .images import ImageData, Pixels, Preprocessing, choose, reason
from .loader import ImageLoader, Loader
from .npz import open_npz

_TORCHVISION = ("cifar10", "cifar100", "mnist")
_SETS = (*_TORCHVISION, "imagenet", *EVENT_BINS)
_FORMS = f"a directory of class folders, an .npz file, digits, or {':DIR, '.join(_SETS)}:DIR"
_PACKED = (".tar", ".tar.gz", ".tgz")


def open_data(spec: str, split: str, download: bool = False) -> ImageData | ArrayData | EventData:
    """Open labeled images, signals or event recordings by name.

    ``spec`` is one of these:

    * a directory of class folders; it has no splits, and gives every image for either;
    * an ``.npz`` with ``x`` uint8 ``[B, H, W, 3]``, or gray ``[B, H, W]``, and ``y`` integer ``[B]``; no splits either.
      ``x`` in floating point is taken as it is: signals ``[B, C, L]``, or images ``[B, C, H, W]``, both prepared;
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
        return open_npz(path, split)
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


def loader_for(
    data: ImageData | ArrayData | EventData,
    indices: Sequence[int],
    preprocessing: Preprocessing | AsStored | Binning,
    batch_size: int,
    workers: int | None = None,
    total: int | None = None,
) -> Loader:
    """An :class:`ImageLoader`, :class:`ArrayLoader` or :class:`EventLoader`, whichever fits; arguments are the same.

    Raises:
        InvalidData: the preprocessing is of another kind than the data.
    """
    if isinstance(data, EventData) and isinstance(preprocessing, Binning):
        return EventLoader(data, indices, preprocessing, batch_size, workers, total)
    if isinstance(data, ArrayData) and isinstance(preprocessing, AsStored):
        return ArrayLoader(data, indices, preprocessing, batch_size, workers, total)
    if isinstance(data, ImageData) and isinstance(preprocessing, Preprocessing):
        return ImageLoader(data, indices, preprocessing, batch_size, workers, total)
    kinds = {ImageData: "images", ArrayData: "arrays that are prepared already", EventData: "event recordings"}
    wanted = {Preprocessing: ImageData, AsStored: ArrayData, Binning: EventData}[type(preprocessing)]
    expected = f"{kinds[wanted]}, for which the network was made"
    raise InvalidData(message(f"data '{data.spec}'", "samples", kinds[type(data)], expected, "Pass data of that kind"))


def read_preprocessing(settings: Mapping[str, Any]) -> Preprocessing | AsStored | Binning:
    """The preprocessing that a network's provenance keeps.

    It is that of images, under ``arrays`` that of data that are prepared, and under ``events`` that of recordings.

    Raises:
        InvalidData: ``settings`` are none of them.
    """
    try:
        if "arrays" in settings:
            return AsStored(**settings["arrays"])
        return Binning(**settings["events"]) if "events" in settings else Preprocessing(**settings)
    except TypeError as error:  # a key too many or too few
        got, expected = (
            f"{', '.join(map(str, settings)) or 'nothing'}",
            "size, resize, mean and std, or arrays or events",
        )
        raise InvalidData(message("preprocessing", "settings", got, expected, "Convert the network again")) from error


def stored_preprocessing(preprocessing: Preprocessing | AsStored | Binning) -> dict[str, Any]:
    """The plain values that :func:`read_preprocessing` reads."""
    settings = asdict(preprocessing)
    if not isinstance(preprocessing, Preprocessing):
        return {"events" if isinstance(preprocessing, Binning) else "arrays": settings}
    return settings if preprocessing.gray else {name: value for name, value in settings.items() if name != "gray"}
