"""Held-out data: which images or recordings a network has been made with, wherever their files have moved to."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidData
from ..files import opened
from ..runtime.display import plain
from .events import Binning
from .images import ImageData, LabeledData, Loader, Preprocessing
from .open import stored_preprocessing

LARGEST = 2**32  # bytes of a file that are gone through: no image or recording has as many


def fingerprints(data: LabeledData, indices: Iterable[int]) -> list[str]:
    """Size and hash of each image's stored bytes: they tell an image again wherever its file has moved to."""
    return [f"{_stored_size(data, index)}-{_stored_hash(data, index)}" for index in indices]


def used_for_calibration(data: LabeledData, known: Collection[str]) -> set[str]:
    """Return the names of the images whose fingerprint is among ``known``: those that a network was made with."""
    known = frozenset(known)
    sizes = {mark.partition("-")[0] for mark in known}  # hashing a data set takes minutes, asking for sizes not
    alike = [index for index in range(len(data)) if str(_stored_size(data, index)) in sizes]
    return {data.names[i] for i, mark in zip(alike, fingerprints(data, alike), strict=True) if mark in known}


def origin(batches: Any, classes: int) -> dict[str, Any]:
    """What a network's provenance says of the batches that it was converted with, for a network of so many classes.

    Of a :class:`s_resnet.data.ImageLoader` or EventLoader which images they are, how they were prepared and the names
    of their classes. Of a DataLoader whose data set is transformed as torchvision's weights say, how they were
    prepared.
    """
    if isinstance(batches, Loader):
        data = batches.data
        images = {"images": len(batches.indices), "fingerprints": fingerprints(data, batches.indices)}
        known: dict[str, Any] = {"data": {"spec": data.spec, "split": data.split, **images}}
        if isinstance(batches.preprocessing, Preprocessing | Binning):
            known["preprocessing"] = plain(stored_preprocessing(batches.preprocessing))
        return known | ({"classes": list(data.classes)} if len(data.classes) == classes else {})
    transform: Any = getattr(getattr(batches, "dataset", None), "transform", None)
    try:  # torchvision.transforms._presets.ImageClassification, without importing torchvision
        size, resize = transform.crop_size[0], transform.resize_size[0]
        settings = Preprocessing(size, resize, tuple(transform.mean), tuple(transform.std))
    except (AttributeError, LookupError, TypeError, InvalidData):
        return {}
    return {"preprocessing": plain(stored_preprocessing(settings))}


def _stored_size(data: LabeledData, index: int) -> int:
    if isinstance(data, ImageData) and data.pixels is not None:
        return int(data.pixels[index].nbytes)
    try:
        return Path(data.root, data.names[index]).stat().st_size
    except OSError:  # gone or not ours to read: the loader names it
        return -1


def _stored_hash(data: LabeledData, index: int) -> str:
    if isinstance(data, ImageData) and data.pixels is not None:
        return hashlib.blake2b(np.ascontiguousarray(data.pixels[index]).tobytes(), digest_size=8).hexdigest()
    try:
        with opened(Path(data.root, data.names[index]), LARGEST) as file:
            return hashlib.file_digest(file, _blake2b).hexdigest()
    except OSError:
        return _blake2b().hexdigest()


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


def image_fingerprints(images: Tensor) -> list[int]:
    """A number per image, or recording of events, that tells it again in whatever order a loader brings it."""
    images = images.mean(0) if images.ndim == 5 else images
    keys = ordered_key(images).view(len(images), -1).long()
    found: list[int] = (keys * torch.arange(1, keys.shape[1] + 1, device=keys.device)).sum(1).tolist()
    return found


def ordered_key(x: Tensor) -> Tensor:
    """The bits of float32 values as int32 that sort as the values do."""
    bits = x.float().flatten().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
