"""Images and labels: where they come from, which of them are used, and how they become tensors."""

import contextlib
import hashlib
import math
import os
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import InvalidData

Pixels = npt.NDArray[np.uint8]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TORCHVISION = ("cifar10", "cifar100", "mnist", "imagenet")
_FORMS = f"a directory of class folders, an .npz file, digits, or {':DIR, '.join(_TORCHVISION)}:DIR"
_HOLDOUTS = ("test", "val", "validation")
_MAX_CLASSES = 100_000
# What Pillow raises on damaged JPEG, PNG, BMP, TIFF, WebP and PPM files, found by damaging them at random.
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_BROKEN_ARCHIVE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def _invalid(where: str, what: str, got: object, expected: str, advice: str) -> InvalidData:
    return InvalidData(" ".join(f"{where}: {what}, got {got}; expected {expected}. {advice}.".splitlines()))


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's own text holds an object's address
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.rstrip(".")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: resize, center crop, scale to [0, 1], normalize.

    ``size`` is the side of the square crop, ``resize`` the shorter side before it, in pixels; ``mean`` and
    ``std`` are per channel (R, G, B), for images in [0, 1]. ``Preprocessing(**json.loads(text))`` works.
    Raises InvalidData for values that make no sense.
    """

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        where, expected = "preprocessing", f"a whole number >= {self.size}, the size"
        if not _is_count(self.size, 1):
            raise _invalid(where, "size", self.size, "a whole number >= 1", "Give the network's input size")
        if not _is_count(self.resize, self.size):
            raise _invalid(where, "resize", self.resize, expected, "Resize to at least what is cropped")
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean, above=-math.inf))
        object.__setattr__(self, "std", _three_numbers("std", self.std, above=0))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``image`` as float32 [3, size, size]; resized bilinearly with antialiasing."""
        from torchvision.transforms import functional

        image = functional.resize(image if image.mode == "RGB" else image.convert("RGB"), [self.resize])
        image = functional.center_crop(image, [self.size, self.size])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        mean, std = torch.tensor((self.mean, self.std), dtype=torch.float32)[:, :, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def _three_numbers(name: str, values: Any, above: float) -> tuple[float, ...]:
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(above < number < math.inf for number in numbers):
        expected = "three numbers (R, G, B)" + (" above 0" if above == 0 else "")
        raise _invalid("preprocessing", name, values, expected, "Give it for images scaled to [0, 1]")
    return numbers


def preprocessing_for(
    size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Preprocessing:
    """Return the usual evaluation at ``size``: from 128 pixels on cropped from size / 0.875 (256 -> 224)."""
    resize = round(size / 0.875) if _is_count(size, 128) else size
    return Preprocessing(size, resize, tuple(mean), tuple(std))


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labeled images, decoded when asked for; picklable, so that worker processes can hold it.

    ``spec`` names the data with its absolute path, however it was written; ``split`` says which of its images
    these are ("train", "test", "val", "validation" or "all"). ``names`` are unique and stable: the path below
    the directory in ``spec`` with forward slashes, or the index as text. ``labels`` index ``classes``.
    """

    spec: str
    split: str
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: Sequence[int]
    root: str = ""
    pixels: Pixels | None = None  # [B, H, W, 3] or gray [B, H, W]; None: files below root

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """Return one image in RGB; raises InvalidData where its file is gone or cannot be decoded."""
        where = f"image {self.names[index]!r}"
        try:
            return self._decode(index)
        except _BROKEN_IMAGE as error:
            raise _invalid(where, "file", _reason(error), "an image", "Repair or remove it") from error

    def _decode(self, index: int) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index]).convert("RGB")
        with open(os.path.join(self.root, self.names[index]), "rb") as file:
            return Image.open(file).convert("RGB")  # decodes to the end, so that a truncated file raises here


def open_data(spec: str, split: str, download: bool = False) -> ImageData:
    """Open what ``spec`` names, for ``split`` "calibration" (training images) or "evaluation" (held out).

    ``spec`` is one of the following; the first two have no splits and give every image for either. A directory of class
    folders. An ``.npz`` with ``x`` uint8 [B, H, W, 3] and ``y`` integer [B]. A directory with ``train/`` and one of
    ``test/``, ``val/``, ``validation/`` that hold class folders. ``cifar10:DIR``, ``cifar100:DIR``, ``mnist:DIR``,
    ``imagenet:DIR`` as torchvision stores them; ``download`` fetches the first three where absent, and means nothing
    elsewhere. ``digits``: scikit-learn's 1797 images of 8 x 8; write ``./digits`` for a directory. Folders whose name
    begins with a dot are no classes.
    Raises InvalidData where the data are missing, incomplete or of another form.
    """
    where = f"data {spec!r}"
    if split not in ("calibration", "evaluation"):
        raise _invalid(where, "split", repr(split), "'calibration' or 'evaluation'", "Name one of the two")
    if spec == "digits":
        return _open_digits(split)
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in _TORCHVISION:
        if not rest:
            raise _invalid(where, "directory", "none", f"{prefix}:DIR", "Write it after the colon")
        return _open_torchvision(prefix, _place(where, rest), split, download)
    path = _place(where, spec)
    if spec and path.is_dir():
        return _open_directory(path, split)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _open_npz(path)
    foreign = colon and len(prefix) > 1 and os.sep not in prefix  # a single letter is a drive
    got = f"unknown prefix {prefix!r}" if foreign else "a file" if spec and path.exists() else "nothing there"
    raise _invalid(where, "path", got, _FORMS, "Check the path")


def _place(where: str, text: str) -> Path:
    try:
        path = Path(text).expanduser().resolve()
        path.exists()  # raises where the name is too long or a folder on the way may not be entered
    except (OSError, RuntimeError, ValueError) as error:
        raise _invalid(where, "path", _reason(error), _FORMS, "Check the path") from error
    return path


def _open_directory(path: Path, split: str) -> ImageData:
    where = f"data '{path}'"
    try:
        folders = _class_names(path)
        nested = [name for name in ("train", *_HOLDOUTS) if name in folders and _class_names(path / name)]
        if len(nested) > 1 and nested[0] == "train":
            return _open_folders(path, "train" if split == "calibration" else nested[1])
        if nested and {"train", *_HOLDOUTS}.issuperset(folders):  # taken for classes they give wrong labels
            got = f"class folders in {nested[0]}/ only"
            expected = "train/ and one of test/, val/, validation/"
            raise _invalid(where, "splits", got, expected, f"Add the other, or name '{path / nested[0]}'")
        return _open_folders(path, None)
    except OSError as error:
        raise _invalid(where, "path", _reason(error), "a readable directory", "Check its rights") from error


def _class_names(path: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(path) if item.is_dir() and not item.name.startswith("."))


def _open_folders(root: Path, split: str | None) -> ImageData:
    """Read class folders in ``root``, or in ``root/split`` with the labels that ``root/train`` gives them."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    folder = root / split if split else root
    where, present = f"data '{folder}'", _class_names(folder)
    classes = _class_names(root / "train") if split else present
    if not present:
        raise _invalid(where, "class folders", "none", "one for each class", "Sort the images into folders")
    if unknown := sorted(set(present) - set(classes)):
        got = f"{unknown[0]!r}, which train/ has not"
        raise _invalid(where, "class folders", got, "the classes of train/", "Rename or remove the folder")
    wanted = {name: label for label, name in enumerate(classes) if name in present}
    samples = make_dataset(str(folder), wanted, extensions=IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in samples}
    if empty := [name for name, label in wanted.items() if label not in filled]:
        got, expected = f"none in class folder {empty[0]!r}", f"files named {' '.join(IMG_EXTENSIONS)}"
        raise _invalid(where, "images", got, expected, "Fill or remove the folder")
    return _from_files(str(root), split or "all", tuple(classes), str(root), samples)


def _from_files(
    spec: str, split: str, classes: tuple[str, ...], root: str, samples: Sequence[tuple[str, int]]
) -> ImageData:
    start = os.path.join(root, "")
    names = tuple(path.removeprefix(start).replace(os.sep, "/") for path, _ in samples)
    return ImageData(spec, split, classes, names, tuple(label for _, label in samples), root=root)


def _open_torchvision(kind: str, root: Path, split: str, download: bool) -> ImageData:
    from torchvision import datasets

    spec, train, advice = f"{kind}:{root}", split == "calibration", "Check the directory, or pass --download"
    if kind == "imagenet":
        advice = "Put the archives from image-net.org there, or name a directory of class folders"
        if download:
            expected = "a dataset that can be downloaded; its license has to be accepted first"
            raise _invalid(f"data '{spec}'", "download", kind, expected, advice)
    try:
        if kind == "imagenet":
            part = "train" if train else "val"
            images = datasets.ImageNet(str(root), split=part)
            classes = tuple(", ".join(synonyms) for synonyms in images.classes)
            return _from_files(spec, part, classes, str(root), images.samples)
        dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}[kind]
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results; some torchvision versions chat
            stored = dataset(str(root), train=train, download=download)
    except (RuntimeError, OSError, ValueError, AssertionError, ImportError) as error:
        got = f"an incomplete one or none ({_reason(error).splitlines()[0]})"
        expected = f"the files of {kind} as torchvision stores them"
        raise _invalid(f"data '{spec}'", "dataset", got, expected, advice) from error
    pixels, labels = np.ascontiguousarray(stored.data), tuple(int(label) for label in stored.targets)
    return _from_pixels(spec, "train" if train else "test", tuple(stored.classes), pixels, labels)


def _from_pixels(spec: str, split: str, classes: tuple[str, ...], pixels: Pixels, labels: tuple[int, ...]) -> ImageData:
    return ImageData(spec, split, classes, tuple(map(str, range(len(labels)))), labels, pixels=pixels)


def _open_digits(split: str) -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        advice = "Run: pip install 's-resnet[demo]'"
        raise _invalid("data 'digits'", "scikit-learn", "no such package", "it installed", advice) from error
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = tuple(int(label) for label in digits.target)
    every = _from_pixels("digits", "all", tuple("0123456789"), pixels, labels)
    held_out = set(choose(every, 500))  # 50 of each digit
    kept = [index for index in range(len(every)) if (index in held_out) == (split == "evaluation")]
    part, names = "test" if split == "evaluation" else "train", tuple(str(index) for index in kept)
    return ImageData("digits", part, every.classes, names, tuple(labels[i] for i in kept), pixels=pixels[kept])


def _open_npz(path: Path) -> ImageData:
    where, advice = f"data '{path}'", "Save it with numpy.savez(path, x=images, y=labels)"
    try:
        if not zipfile.is_zipfile(path):  # else NumPy would take it for one bare array, or a pickle
            raise zipfile.BadZipFile("no archive")
        with np.load(path, allow_pickle=False) as file:
            found = sorted(file)
            x, y = (file[name] if name in found else None for name in "xy")
    except _BROKEN_ARCHIVE as error:
        raise _invalid(where, "file", _reason(error), "an .npz archive of plain arrays", advice) from error
    if x is None or y is None:
        raise _invalid(where, "arrays", ", ".join(found) or "none", "x and y", advice)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or x.size == 0:
        raise _invalid(where, "x", f"{x.dtype} {list(x.shape)}", "uint8 [B, H, W, 3], not empty", advice)
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise _invalid(where, "y", f"{y.dtype} {list(y.shape)}", f"integer [{len(x)}] as x", advice)
    if y.min() < 0 or y.max() >= _MAX_CLASSES:
        got, expected = y.min() if y.min() < 0 else y.max(), f"0 to {_MAX_CLASSES - 1}"
        raise _invalid(where, "label", got, expected, "Number the classes from 0 on")
    return _from_pixels(str(path), "all", tuple(map(str, range(int(y.max()) + 1))), x, tuple(y.tolist()))


def choose(data: ImageData, limit: int | None, seed: int = 0, exclude: Collection[str] = ()) -> list[int]:
    """Return the indices of ``limit`` random images (None: all) in random order, none named in ``exclude``.

    Classes take turns, so while they last their counts differ by one at most. Chance is a hash of seed and
    name: the same images in every run, on every platform, for every order of the files.
    Raises InvalidData where no image is left.
    """
    if limit is not None and not _is_count(limit, 1):
        raise _invalid("choose", "limit", limit, "a whole number >= 1", "Ask for at least one image")
    excluded = frozenset(exclude)
    luck = {i: _hash(f"{seed}:{name}") for i, name in enumerate(data.names) if name not in excluded}
    if not luck:
        where, got = f"data '{data.spec}' ({data.split})", f"none of {len(data)}, {len(excluded)} excluded"
        advice = "If every image was used for calibration, name other data, or calibrate with fewer images"
        raise _invalid(where, "images left", got, "at least one", advice)
    mixed = sorted(luck, key=luck.__getitem__)
    taken: Counter[int] = Counter()
    turn = {}
    for index in mixed:
        turn[index] = taken[data.labels[index]]
        taken[data.labels[index]] += 1
    chosen = set(sorted(mixed, key=turn.__getitem__)[:limit])
    return [index for index in mixed if index in chosen]


def _hash(text: str) -> bytes:
    # Not NumPy's generators, whose streams may change between versions. File names need not be UTF-8.
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


@dataclass(frozen=True)
class _Batches(Dataset[tuple[Tensor, Tensor, list[str]]]):
    """Item ``i`` is batch ``i``, whole, and what could not be read of it; used in worker processes."""

    data: ImageData
    batches: tuple[tuple[int, ...], ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[str]]:
        images, labels, unreadable = [], [], []
        for index in self.batches[number]:
            try:
                image = self.data._decode(index)
            except _BROKEN_IMAGE as error:
                unreadable.append(f"{self.data.names[index]} ({_reason(error)})")
                continue
            images.append(self.preprocessing(image))
            labels.append(self.data.labels[index])
        stacked = torch.stack(images) if images else torch.empty(0)
        return stacked, torch.tensor(labels, dtype=torch.int64), unreadable


class ImageLoader:
    """The images at ``indices``, in order, as batches (images [B, 3, H, W] float32, labels [B] int64).

    Iterate as often as you like. ``workers`` processes of one thread each decode ahead (None: 2, or 1 on one
    core; 0: decode in this process). An image that cannot be read is left out of its batch; a batch without
    any is not yielded. Raises InvalidData for senseless settings, and after a pass that could read nothing.
    ``total``: how many there are where ``indices`` are a shard, which may be empty or hold nothing readable.
    ``images`` is the number of indices; ``unreadable``: name and reason of what the last pass left out.
    """

    def __init__(
        self,
        data: ImageData,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
    ) -> None:
        if not _is_count(batch_size, 1):
            raise _invalid("loader", "batch size", batch_size, "a whole number >= 1", "Give a larger one")
        if workers is not None and not _is_count(workers, 0):
            raise _invalid("loader", "workers", workers, "a whole number >= 0", "Give 0 for no processes")
        if not (total or len(indices)) or min(indices, default=0) < 0 or max(indices, default=0) >= len(data):
            got = f"{min(indices)} to {max(indices)}" if len(indices) else "none"
            raise _invalid("loader", "indices", got, f"some of 0 to {len(data) - 1}", "Use choose()")
        batches = tuple(tuple(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size))
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = min(2, cores)
        self.data, self.images, self._total = data, len(indices), len(indices) if total is None else total
        self.unreadable: tuple[str, ...] = ()
        self._batches = _Batches(data, batches, preprocessing)
        self._workers = min(workers, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.unreadable = ()
        own = torch.Generator()  # else DataLoader draws from the global one, and changes the caller's numbers
        batches = DataLoader(self._batches, batch_size=None, num_workers=self._workers, generator=own)
        for images, labels, unreadable in batches:
            self.unreadable += tuple(unreadable)
            if len(labels):
                yield images, labels
        if len(self.unreadable) == self._total:
            got = f"none of {self.images}: {', '.join(self.unreadable[:3])}"
            raise _invalid("loader", "readable images", got, "at least one", "Check that the files are whole")
