"""Images and labels: which of them are used, and how they become tensors."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InvalidData
from ..files import opened
from ..runtime.display import Displayed, Table

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean of ImageNet's training images, for pixels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation of ImageNet's training images, for pixels in [0, 1]."""

# What is opened, whatever a file's name says: of others (EPS) Pillow starts programs that run what is in the file.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
THIN = 64  # sides of an image to each other: one that is thinner unfolds to gigabytes where its short side is resized
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
FEW = 64  # samples that are decoded sooner than processes start for them

# What Pillow raises on damaged JPEG, PNG, BMP, TIFF, WebP and PPM files, found by damaging them at random.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def invalid(where: str, what: str, got: object, expected: str, advice: str) -> InvalidData:
    """The error of that text, in one line."""
    return InvalidData(" ".join(f"{where}: {what}, got {got}; expected {expected}. {advice}.".splitlines()))


def is_count(value: object, least: int) -> bool:
    """Whether it is a whole number from ``least`` on; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def reason(error: BaseException) -> str:
    """What went wrong, for the ``got`` of an error."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's own text holds an object's address
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.rstrip(".")


@dataclass(frozen=True, repr=False)
class Preprocessing(Displayed):
    """How an image becomes the network's input: resize, center crop, scale to [0, 1], normalize.

    ``size`` is the side of the square crop, ``resize`` the shorter side before it, in pixels; ``mean`` and
    ``std`` are per channel (R, G, B), for images in [0, 1]; ``gray`` makes one channel of them, with the mean of the
    three numbers. ``Preprocessing(**json.loads(text))`` works. Raises InvalidData for values that make no sense.
    """

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    gray: bool = False

    def __post_init__(self) -> None:
        where, expected = "preprocessing", f"a whole number >= {self.size}, the size"
        if not is_count(self.size, 1):
            raise invalid(where, "size", self.size, "a whole number >= 1", "Give the network's input size")
        if not is_count(self.resize, self.size):
            raise invalid(where, "resize", self.resize, expected, "Resize to at least what is cropped")
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean, "from 0 to 1", lambda x: 0 <= x <= 1))
        object.__setattr__(self, "std", _three_numbers("std", self.std, "above 0, at most 1", lambda x: 0 < x <= 1))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``image`` as float32 [3, size, size], gray [1, size, size]; resized bilinearly with antialiasing."""
        from torchvision.transforms import functional

        try:
            image = to_rgb(_not_thin(image))
        except ValueError as error:
            expected = f"8 or 16 bits per channel, and a side at most {THIN} times the other"
            raise invalid("preprocessing", "image", error, expected, "Convert it first") from error
        image = functional.resize(image, [self.resize])
        image = functional.center_crop(image, [self.size, self.size])
        numbers = torch.tensor((self.mean, self.std), dtype=torch.float32)
        if self.gray:
            image, numbers = image.convert("L"), numbers.mean(1, keepdim=True)
        pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).contiguous()
        mean, std = numbers[:, :, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def _three_numbers(name: str, values: Any, expected: str, fits: Callable[[float], bool]) -> tuple[float, ...]:
    numbers: tuple[float, ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(map(fits, numbers)):
        advice = "Give it for images scaled to [0, 1]"
        if len(numbers) == 3 and all(0 <= number <= 255 for number in numbers) and max(numbers) > 1:
            advice = f"Divide by 255, if it is for pixels from 0 to 255: {','.join(f'{n / 255:.4g}' for n in numbers)}"
        raise invalid("preprocessing", name, values, f"three numbers (R, G, B) {expected}", advice)
    return numbers


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB of 8 bits; of 16-bit gray the upper 8 bits, as Pillow takes them of 16-bit color.

    Raises ValueError for pixels of 32 bits, whose range nobody knows.
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
    """Return the usual evaluation at ``size``: from 128 pixels on cropped from size / 0.875 (256 -> 224)."""
    resize = round(size / 0.875) if is_count(size, 128) else size
    return Preprocessing(size, resize, tuple(mean), tuple(std), gray)


@dataclass(frozen=True, eq=False, repr=False)
class LabeledData(Displayed):
    """Labeled samples, decoded when asked for; picklable, so that worker processes can hold them.

    ``spec`` names the data with its absolute path, however it was written; ``split`` says which of its samples
    these are ("train", "test", "val", "validation" or "all"). ``names`` are unique and stable: the path below
    ``root`` with forward slashes, or the index as text. ``labels`` index ``classes``. ``skipped`` says what else lies
    there and is no sample, in words with their counts.
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
        """How many events a sample has, and how many of them lie outside the bins; images have none."""
        return 0, 0

    def decode(self, index: int) -> Any:
        """Return one sample; raises one of ``BROKEN`` where its file is gone or damaged."""
        raise NotImplementedError


Labeled = TypeVar("Labeled", bound=LabeledData)


@dataclass(frozen=True, eq=False, repr=False)
class ImageData(LabeledData):
    """Labeled images: in files below ``root``, or ``pixels`` [B, H, W, 3] or gray [B, H, W] in memory."""

    pixels: Pixels | None = None

    def image(self, index: int) -> Image.Image:
        """Return one image in RGB; raises InvalidData where its file is gone or cannot be decoded."""
        where = f"image {self.names[index]!r}"
        try:
            return self.decode(index)
        except BROKEN as error:
            raise invalid(where, "file", reason(error), "an image", "Repair or remove it") from error

    def decode(self, index: int) -> Image.Image:
        if self.pixels is not None:
            return to_rgb(_not_thin(Image.fromarray(self.pixels[index])))
        with opened(os.path.join(self.root, self.names[index])) as file:
            image = _not_thin(Image.open(file, formats=_formats()))
            image.load()  # to the end, so that a truncated file raises here
            return to_rgb(image)


@cache
def _formats() -> tuple[str, ...]:
    """Those of them that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _not_thin(image: Image.Image) -> Image.Image:
    if max(image.size) > THIN * min(image.size):
        raise ValueError("{} x {} pixels, one side more than {} times the other".format(*image.size, THIN))
    return image


def without_labels(data: Labeled) -> Labeled:
    """The same data without classes: every label is -1, for none."""
    return replace(data, classes=(), labels=(-1,) * len(data))


def choose(data: LabeledData, limit: int | None, seed: int = 0, exclude: Collection[str] = ()) -> list[int]:
    """Return the indices of ``limit`` random images (None: all) in random order, none named in ``exclude``.

    Classes take turns, so while they last their counts differ by one at most. Chance is a hash of seed and
    name: the same images in every run, on every platform, for every order of the files.
    Raises InvalidData where no image is left.
    """
    if limit is not None and not is_count(limit, 1):
        raise invalid("choose", "limit", limit, "a whole number >= 1", "Ask for at least one image")
    excluded = frozenset(exclude)
    luck = {i: _hash(f"{seed}:{name}") for i, name in enumerate(data.names) if name not in excluded}
    if not luck:
        where, got = f"data '{data.spec}' ({data.split})", f"none of {len(data)}, {len(excluded)} excluded"
        advice = "If every image was used for calibration, name other data, or calibrate with fewer images"
        raise invalid(where, "images left", got, "at least one", advice)
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
class _Batches(Dataset[tuple[Tensor, Tensor, list[str], tuple[int, int]]]):
    """Item ``i`` is batch ``i``, whole, and what of it was left out; used in worker processes."""

    data: LabeledData
    batches: tuple[tuple[int, ...], ...]
    preprocessing: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[str], tuple[int, int]]:
        samples, labels, unreadable = [], [], []
        events = outside = 0
        for index in self.batches[number]:
            try:
                sample = self.data.decode(index)
            except BROKEN as error:
                unreadable.append(f"{self.data.names[index]} ({reason(error)})")
                continue
            samples.append(self.preprocessing(sample))
            labels.append(self.data.labels[index])
            found, left_out = self.data.events_outside(sample, self.preprocessing)
            events, outside = events + found, outside + left_out
        stacked = torch.stack(samples) if samples else torch.empty(0)
        return stacked, torch.tensor(labels, dtype=torch.int64), unreadable, (events, outside)


def forks() -> bool:
    """Whether worker processes are forked; asking does not settle how."""
    method = multiprocessing.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


def started(loader: DataLoader[T]) -> Iterator[T]:
    """The loader's batches, once its worker processes are there; signals to stop are held back until then.

    What a signal raises while a process is forked is lost, since Python cannot pass it on from there.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are handled there
        return iter(loader)
    came: list[tuple[Callable[[int, FrameType | None], object], int, FrameType | None]] = []
    usual = {number: handler for number in STOPPING if callable(handler := signal.getsignal(number))}
    for number, handler in usual.items():
        signal.signal(number, lambda *got, handler=handler: came.append((handler, *got)))
    try:
        return iter(loader)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for handler, number, frame in came[:1]:
            handler(number, frame)


class Loader(Displayed):
    """The samples at ``indices``, in order, as batches (samples [B, *], labels [B] int64).

    Iterate as often as you like. ``workers`` processes of one thread each decode ahead (None: 2, or 1 on one core, or 0
    for a few samples and where processes are spawned, not forked: a script without a main guard would be run again in
    each of them; 0: decode in this process). What cannot be read is left out of its batch; a batch without any is
    not yielded. Raises InvalidData for senseless settings, and after a pass that could read nothing.
    ``total``: how many there are where ``indices`` are a shard, which may be empty or hold nothing readable.
    ``images`` is the number of indices; ``unreadable``: name and reason of what the last pass left out; ``events``: how
    many events its recordings had, and how many of them lie outside the bins. ``excluded``, for whoever chose the
    indices to say: how many samples were left out since a network was made with them.
    """

    def __init__(
        self,
        data: LabeledData,
        indices: Sequence[int],
        preprocessing: Callable[[Any], Tensor],
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
    ) -> None:
        if not is_count(batch_size, 1):
            raise invalid("loader", "batch size", batch_size, "a whole number >= 1", "Give a larger one")
        if workers is not None and not is_count(workers, 0):
            raise invalid("loader", "workers", workers, "a whole number >= 0", "Give 0 for no processes")
        if not (total or len(indices)) or min(indices, default=0) < 0 or max(indices, default=0) >= len(data):
            got = f"{min(indices)} to {max(indices)}" if len(indices) else "none"
            raise invalid("loader", "indices", got, f"some of 0 to {len(data) - 1}", "Use choose()")
        batches = tuple(tuple(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size))
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = min(2, cores) if len(indices) >= FEW and forks() else 0
        self.data, self.images, self._total = data, len(indices), len(indices) if total is None else total
        self.unreadable: tuple[str, ...] = ()
        self.events = (0, 0)
        self.excluded = 0
        self.indices, self.preprocessing = tuple(indices), preprocessing
        self._batches = _Batches(data, batches, preprocessing)
        self._workers = min(workers, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def to_dict(self) -> dict[str, Any]:
        """Which samples these are, as plain JSON values."""
        known = {"data": self.data.spec, "split": self.data.split, "samples": self.images, "of": len(self.data)}
        return {
            **known,
            "batches": len(self),
            "left_out": {"made_with": self.excluded, "unreadable": list(self.unreadable)},
        }

    def _lines(self) -> Iterator[str]:
        samples = f"{self.images:,} of the {len(self.data):,} samples of {self.data.spec} ({self.data.split})"
        yield f"{type(self).__name__}: {samples} in {len(self)} batches"

    def _parts(self) -> Iterator[str | Table]:
        yield from self._lines()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.unreadable, self.events = (), (0, 0)
        own = torch.Generator()  # else DataLoader draws from the global one, and changes the caller's numbers
        batches = DataLoader(self._batches, batch_size=None, num_workers=self._workers, generator=own)
        for images, labels, unreadable, (events, outside) in started(batches):
            self.unreadable += tuple(unreadable)
            self.events = (self.events[0] + events, self.events[1] + outside)
            if len(labels):
                yield images, labels
        if len(self.unreadable) == self._total:
            got = f"none of {self.images}: {', '.join(self.unreadable[:3])}"
            raise invalid("loader", "readable images", got, "at least one", "Check that the files are whole")


class ImageLoader(Loader):
    """A :class:`Loader` of images, [B, 3, H, W] float32."""

    def __init__(
        self,
        data: ImageData,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
    ) -> None:
        super().__init__(data, indices, preprocessing, batch_size, workers, total)
