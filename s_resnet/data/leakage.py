"""Guards against leakage: was a network calibrated or trained on the images that it is evaluated on?

There are two fingerprints. :func:`fingerprints` are of stored files, and tell an image before it is decoded, wherever
its file has moved. :func:`image_fingerprints` are of tensors, and tell an image from any loader that prepares it in the
same way. A network keeps the first as ``data.fingerprints`` and the second as ``calibration.marks``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import opened
from .arrays import ArrayData, Numbers
from .images import ImageData, LabeledData, Pixels

LARGEST = 2**32  # bytes of a file that is hashed: no image or recording is larger


def fingerprints(data: LabeledData, indices: Iterable[int]) -> list[str]:
    """Size and hash of the stored bytes of each sample, as ``"<size>-<hash>"``; they do not depend on its path."""
    return [f"{_stored_size(data, index)}-{_stored_hash(data, index)}" for index in indices]


def used_for_calibration(data: LabeledData, known: Collection[str]) -> set[str]:
    """The names of the samples whose fingerprint is among ``known``.

    Args:
        data: the samples to look through.
        known: the :func:`fingerprints` of the samples that a network was made with.
    """
    known = frozenset(known)
    sizes = {one.partition("-")[0] for one in known}  # hashing a data set takes minutes, asking for sizes does not
    alike = [index for index in range(len(data)) if str(_stored_size(data, index)) in sizes]
    return {data.names[i] for i, one in zip(alike, fingerprints(data, alike), strict=True) if one in known}


def _in_memory(data: LabeledData, index: int) -> Pixels | Numbers | None:
    """A sample of arrays; None of one in a file."""
    held: Pixels | Numbers | None = None
    if isinstance(data, ArrayData):
        held = data.numbers[index]
    elif isinstance(data, ImageData) and data.pixels is not None:
        held = data.pixels[index]
    return held


def _stored_size(data: LabeledData, index: int) -> int:
    held = _in_memory(data, index)
    if held is not None:
        return held.nbytes
    try:
        return os.stat(os.path.join(data.root, data.names[index])).st_size
    except OSError:  # gone or not readable: the loader reports it
        return -1


def _stored_hash(data: LabeledData, index: int) -> str:
    held = _in_memory(data, index)
    if held is not None:
        return hashlib.blake2b(np.ascontiguousarray(held).tobytes(), digest_size=8).hexdigest()
    try:
        with opened(Path(data.root, data.names[index]), LARGEST) as file:
            return hashlib.file_digest(file, _blake2b).hexdigest()
    except OSError:
        return _blake2b().hexdigest()


def _blake2b() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


def image_fingerprints(images: Tensor) -> list[int]:
    """A fingerprint per image, which does not depend on the order of the images.

    Args:
        images: ``[B, C, H, W]``, or events ``[T, B, C, H, W]``, of which the mean over time counts.

    Returns:
        B numbers of 64 bits.
    """
    images = images.mean(0) if images.ndim == 5 else images
    keys = ordered_key(images).view(len(images), -1).long()
    found: list[int] = (keys * torch.arange(1, keys.shape[1] + 1, device=keys.device)).sum(1).tolist()
    return found


def ordered_key(x: Tensor) -> Tensor:
    """The bits of float32 values as int32, flat, in an order that is that of the values."""
    bits = x.float().flatten().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
