"""Images and labels: choosing them, decoding them, and turning them into tensors."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .. import files
from ..errors import InvalidData, message
from ..runtime.display import Displayed

Pixels = npt.NDArray[np.uint8]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean of ImageNet's training images, for pixels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation of ImageNet's training images, for pixels in [0, 1]."""

# Formats that are opened, whatever a file's name says. For others (EPS) Pillow starts programs that run the file.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
THIN = 64  # highest ratio of an image's sides: resizing the short side of a thinner one can take gigabytes

# What Pillow raises for damaged JPEG, PNG, BMP, TIFF, WebP and PPM files, found by damaging them at random.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def is_count(value: object, least: int) -> bool:
    """Whether ``value`` is an int of at least ``least``; a bool does not count as one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def reason(error: BaseException) -> str:
    """What went wrong, for the "got" of an error."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's own text contains the address of an object
    return files.reason(error)


@dataclass(frozen=True, repr=False)
class Preprocessing(Displayed):
    """How an image becomes the network's input: resize, center crop, scale to [0, 1], normalize.

    ``Preprocessing(**json.loads(text))`` works.

    Attributes:
        size: side of the square crop in pixels.
        resize: shorter side of the image before the crop, in pixels, at least ``size``.
        mean: mean per channel (R, G, B) of images in [0, 1].
        std: standard deviation per channel (R, G, B) of images in [0, 1].
        gray: make one channel, normalized with the mean of the three numbers.

    Raises:
        InvalidData: a value is out of range.
    """

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    gray: bool = False

    def __post_init__(self) -> None:
        where, expected = "preprocessing", f"a whole number >= {self.size}, the size"
        if not is_count(self.size, 1):
            raise InvalidData(message(where, "size", self.size, "a whole number >= 1", "Pass the network's input size"))
        if not is_count(self.resize, self.size):
            raise InvalidData(message(where, "resize", self.resize, expected, "Resize to at least what is cropped"))
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean, "from 0 to 1", lambda x: 0 <= x <= 1))
        object.__setattr__(self, "std", _three_numbers("std", self.std, "above 0, at most 1", lambda x: 0 < x <= 1))

    def __call__(self, image: Image.Image) -> Tensor:
        """``image`` as float32 ``[3, size, size]``, gray ``[1, size, size]``; resized bilinearly with antialiasing."""
        from torchvision.transforms import functional

        try:
            image = to_rgb(_not_thin(image))
        except ValueError as error:
            expected = f"8 or 16 bits per channel, and a side at most {THIN} times the other"
            raise InvalidData(
                message("preprocessing", "image", error, expected, "Convert it to 8 bits per channel, or crop it")
            ) from error
        image = functional.resize(image, [self.resize])
        image = functional.center_crop(image, [self.size, self.size])
        return self.normalized(image)

    def normalized(self, image: Image.Image) -> Tensor:
        """An image of the network's size in RGB as float32 ``[3, H, W]``, gray ``[1, H, W]``."""
        image = image.convert("L") if self.gray else image
        pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).contiguous()
        mean, std = self.per_channel()
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def per_channel(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the network's channels, ``[C, 1, 1]`` each."""
        numbers = torch.tensor((self.mean, self.std), dtype=torch.float32)
        numbers = numbers.mean(1, keepdim=True) if self.gray else numbers
        return numbers[0, :, None, None], numbers[1, :, None, None]


def _three_numbers(name: str, values: Any, expected: str, fits: Callable[[float], bool]) -> tuple[float, ...]:
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(map(fits, numbers)):
        advice = "Pass it for images scaled to [0, 1]"
        if len(numbers) == 3 and all(0 <= number <= 255 for number in numbers) and max(numbers) > 1:
            advice = f"Divide by 255, if it is for pixels from 0 to 255: {','.join(f'{n / 255:.4g}' for n in numbers)}"
        raise InvalidData(message("preprocessing", name, repr(values), f"three numbers (R, G, B) {expected}", advice))
    return numbers


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB of 8 bits; 16-bit gray gives its upper 8 bits, as Pillow does for 16-bit color.

    Raises:
        ValueError: the pixels have 32 bits, whose range is unknown.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # as Pillow opens them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode})")
    return image.convert("RGB")


def preprocessing_for(
    size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, gray: bool = False
) -> Preprocessing:
    """The usual preprocessing for evaluation: a crop of ``size``, from 128 pixels on out of ``size / 0.875`` (256).

    The arguments are those of :class:`Preprocessing`.
    """
    resize = round(size / 0.875) if is_count(size, 128) else size
    return Preprocessing(size, resize, tuple(mean), tuple(std), gray)


@dataclass(frozen=True, eq=False, repr=False)
class LabeledData(Displayed):
    """Labeled samples that are decoded on request; picklable, so that worker processes can hold them.

    Attributes:
        spec: the name of the data, with an absolute path however it was written.
        split: which samples these are: ``"train"``, ``"test"``, ``"val"``, ``"validation"`` or ``"all"``.
        classes: the names of the classes; empty without labels.
        names: the samples, unique and stable: the path below ``root`` with forward slashes, or the index as text.
        labels: indices into ``classes``; -1 without labels.
        root: the folder of the files; empty for arrays in memory.
        skipped: other files found there, as counts and kinds in words.
    """

    spec: str
    split: str
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: Sequence[int]
    root: str = ""
    skipped: tuple[str, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.names)

    def events_outside(self, sample: Any, preprocessing: Callable[[Any], Tensor]) -> tuple[int, int]:
        """How many events a sample has, and how many of them lie outside the bins; both are 0 for images."""
        return 0, 0

    def decode(self, index: int) -> Any:
        """One sample.

        Raises:
            BROKEN: one of these errors, where its file is gone or damaged.
        """
        raise NotImplementedError


Labeled = TypeVar("Labeled", bound=LabeledData)


@dataclass(frozen=True, eq=False, repr=False)
class ImageData(LabeledData):
    """Labeled images in files below ``root``, or in memory; see :class:`LabeledData` for the other fields.

    Attributes:
        pixels: uint8 ``[B, H, W, 3]``, or gray ``[B, H, W]``; None for images in files.
    """

    pixels: Pixels | None = None

    def image(self, index: int) -> Image.Image:
        """One image in RGB.

        Raises:
            InvalidData: its file is gone or cannot be decoded.
        """
        where = f"image {self.names[index]!r}"
        try:
            return self.decode(index)
        except BROKEN as error:
            raise InvalidData(message(where, "file", reason(error), "an image", "Repair or remove it")) from error

    def decode(self, index: int) -> Image.Image:
        if self.pixels is not None:
            return to_rgb(_not_thin(Image.fromarray(self.pixels[index])))
        with files.opened(os.path.join(self.root, self.names[index])) as file:
            image = _not_thin(Image.open(file, formats=_formats()))
            image.load()  # reads all of it, so that a truncated file raises here
            return to_rgb(image)


@cache
def _formats() -> tuple[str, ...]:
    """The ``FORMATS`` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _not_thin(image: Image.Image) -> Image.Image:
    if max(image.size) > THIN * min(image.size):
        raise ValueError("{} x {} pixels, one side more than {} times the other".format(*image.size, THIN))
    return image


def without_labels(data: Labeled) -> Labeled:
    """The same data without classes; every label is -1, which means none."""
    return replace(data, classes=(), labels=(-1,) * len(data))


def choose(data: LabeledData, limit: int | None, seed: int = 0, exclude: Collection[str] = ()) -> list[int]:
    """A random subset, balanced over the classes.

    Classes take turns, so their counts differ by at most one while they last. The order is that of a hash of seed and
    name: the same images in every run, on every platform, for every order of the files.

    Args:
        data: the samples to choose from.
        limit: how many to choose; None for all.
        seed: other seeds give other subsets.
        exclude: names of samples that must not be chosen.

    Returns:
        Indices into ``data``, in random order.

    Raises:
        InvalidData: no sample is left.
    """
    if limit is not None and not is_count(limit, 1):
        raise InvalidData(message("choose", "limit", limit, "a whole number >= 1", "Pass at least 1"))
    excluded = frozenset(exclude)
    left, hashes = [], bytearray()
    for index, name in enumerate(data.names):
        if name not in excluded:
            left.append(index)
            hashes += _hash(f"{seed}:{name}")
    if not left:
        where, got = f"data '{data.spec}' ({data.split})", f"none of {len(data)}, {len(excluded)} excluded"
        advice = "If every image was used for calibration, pass other data, or calibrate with fewer images"
        raise InvalidData(message(where, "images left", got, "at least one", advice))
    high, low = np.frombuffer(hashes, ">u8").reshape(-1, 2).T
    mixed = np.asarray(left)[np.lexsort((low, high))]
    turns = _turns(np.asarray(data.labels)[mixed])
    chosen = np.sort(np.argsort(turns, kind="stable")[:limit])
    return list(mixed[chosen].tolist())


def _turns(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many before each have the same label."""
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    turns = np.empty_like(by_label)
    turns[by_label] = np.arange(len(labels)) - np.repeat(starts, counts)
    return turns


def _hash(text: str) -> bytes:
    # A hash, since the streams of NumPy's generators may change between versions. File names need not be UTF-8.
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
