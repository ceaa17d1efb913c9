"""Batches for training, whose order and augmentation follow from seed, epoch and index alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.events import Binning, EventData, EventLoader
from ..data.images import ImageData, Preprocessing
from ..data.loader import forks, started
from ..errors import InvalidData, message
from .settings import Training, derive_seed

SMALL = 64  # pixels per side: larger images are cropped from a random part, smaller ones with padding


def usual_augmentation(spec: str, size: int) -> tuple[str, ...]:
    """The usual augmentation for data: digits are not mirrored, and large photos are cropped from a random part."""
    if spec == "digits" or spec.startswith("mnist:"):
        return ("crop",)
    return ("crop", "flip") if size <= SMALL else ("resized-crop", "flip")


def make_transform(names: Sequence[str], preprocessing: Preprocessing) -> Any:
    """The augmentation of a decoded RGB image of 8 bits, with a result of the network's size."""
    from torchvision.transforms import v2

    size, steps = preprocessing.size, []
    if "resized-crop" in names:
        steps = [v2.RandomResizedCrop(size, antialias=True)]
    else:
        steps = [v2.Resize([preprocessing.resize], antialias=True)]
        steps.append(v2.RandomCrop(size, padding=max(1, size // 8)) if "crop" in names else v2.CenterCrop(size))
    if "flip" in names:
        steps.append(v2.RandomHorizontalFlip())
    if "autoaugment" in names:
        policy = v2.AutoAugmentPolicy.CIFAR10 if size <= SMALL else v2.AutoAugmentPolicy.IMAGENET
        steps.append(v2.AutoAugment(policy))
    return v2.Compose(steps)


@dataclass(frozen=True)
class _Augmented(Dataset[tuple[Tensor, Tensor, str]]):
    """Item ``i`` is the whole of batch ``i``, or why it could not be made; used in worker processes."""

    data: ImageData
    batches: tuple[tuple[int, ...], ...]
    transform: Any
    preprocessing: Preprocessing
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, str]:
        try:
            images = torch.stack([self._draw(index) for index in self.batches[number]])
        except InvalidData as error:  # raised in a worker, it would include the worker's traceback
            return torch.empty(0), torch.empty(0), str(error)
        labels = torch.tensor([self.data.labels[index] for index in self.batches[number]])
        return images, labels, ""

    def _draw(self, index: int) -> Tensor:
        image: Image.Image = self.data.image(index)
        before = torch.default_generator.get_state()  # the only generator that torchvision's transforms use
        torch.default_generator.manual_seed(derive_seed(self.seed, "image", self.epoch, index))
        try:
            return self.preprocessing.normalized(self.transform(image))
        finally:
            torch.default_generator.set_state(before)


def epoch_order(indices: Sequence[int], settings: Training, epoch: int, world: int = 1) -> list[list[int]]:
    """The batches of an epoch, shuffled by seed and epoch, all of the same size; the last images are left out.

    Args:
        indices: the images.
        settings: the batch size and the seed. A batch is smaller only where there are fewer images.
        epoch: the number of the epoch, from 0 on.
        world: the number of processes, which divides the size of the batches.

    Raises:
        InvalidData: a batch has fewer images than there are processes.
    """
    size = min(settings.batch_size, len(indices)) // world * world
    if not size:
        got = f"{min(settings.batch_size, len(indices))} images for {world} processes"
        remedy = "Use a larger batch_size, more images, or fewer processes"
        raise InvalidData(message("train", "batch", got, "at least one for each", remedy))
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "order", epoch))
    order = [indices[at] for at in torch.randperm(len(indices), generator=generator).tolist()]
    return [order[at : at + size] for at in range(0, len(order) - size + 1, size)]


class _EpochLoader:
    """The batches of ``items``, loaded by ``workers`` processes.

    Raises:
        InvalidData: an image cannot be decoded; the message names the file.
    """

    def __init__(self, items: _Augmented, workers: int) -> None:
        self._items, self._workers = items, min(workers, len(items))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        own = torch.Generator()  # otherwise DataLoader draws from the global generator
        batches = DataLoader(self._items, batch_size=None, num_workers=self._workers, generator=own)
        for images, labels, error in started(batches):
            if error:
                raise InvalidData(error)
            yield images, labels


def epoch_loader(
    data: ImageData | EventData,
    batches: Sequence[Sequence[int]],
    preprocessing: Preprocessing | Binning,
    settings: Training,
    epoch: int,
    workers: int,
) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches of an epoch: augmented images ``[B, 3, H, W]``, or events ``[T, B, 2, H, W]`` without augmentation.

    Args:
        data: the images or events.
        batches: the indices of each batch of this process.
        preprocessing: size, mean and standard deviation, or bins.
        settings: augmentation and seed.
        epoch: the number of the epoch.
        workers: processes that decode.
    """
    if isinstance(data, EventData):
        assert isinstance(preprocessing, Binning)
        return _events(data, batches, preprocessing, workers)
    assert isinstance(preprocessing, Preprocessing)
    transform, parts = make_transform(settings.augmentation or (), preprocessing), tuple(map(tuple, batches))
    return _EpochLoader(_Augmented(data, parts, transform, preprocessing, settings.seed, epoch), workers)


def _events(
    data: EventData, batches: Sequence[Sequence[int]], binning: Binning, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if not batches or not batches[0]:
        return
    indices = [index for batch in batches for index in batch]  # all batches are of one size
    loader = EventLoader(data, indices, binning, len(batches[0]), workers)
    for frames, labels in loader:
        if loader.unreadable:
            got, expected = loader.unreadable[0], "events as tonic stores them"
            raise InvalidData(message("train", "recording", got, expected, "Repair or remove it"))
        yield frames, labels


def usual_workers(device: torch.device) -> int:
    """The usual number of processes that decode: up to 8 for a GPU, which waits for them, else up to 2.

    It is 0 where processes are spawned: each would run the caller's script again, unless that has a main guard.
    """
    if not forks():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8 if device.type == "cuda" else 2, cores)
