"""Held-out data: which images or recordings a network has been made with, wherever their files have moved to."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from .data import ImageData, LabeledData
from .files import opened

LARGEST = 2**32  # bytes of a file that are gone through: no image or recording has as many


def fingerprints(data: LabeledData, indices: Iterable[int]) -> list[str]:
    """Size and hash of each image's stored bytes: they tell an image again wherever its file has moved to."""
    return [f"{_stored_size(data, index)}-{_stored_hash(data, index)}" for index in indices]


def seen(data: LabeledData, marks: Collection[str]) -> set[str]:
    """Return the names of the images whose fingerprint is among ``marks``: those that a network was made with."""
    marks = frozenset(marks)
    sizes = {mark.partition("-")[0] for mark in marks}  # hashing a data set takes minutes, asking for sizes not
    alike = [index for index in range(len(data)) if str(_stored_size(data, index)) in sizes]
    return {data.names[i] for i, mark in zip(alike, fingerprints(data, alike), strict=True) if mark in marks}


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
