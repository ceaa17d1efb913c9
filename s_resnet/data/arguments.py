"""What callers pass: batches of any loader and whole numbers, taken as they are meant or refused in one line."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidData

# Names under which dict batches hold images and labels, as data sets of Hugging Face and others yield them.
IMAGES = ("pixel_values", "images", "image", "img", "x", "inputs", "input")
LABELS = ("labels", "label", "y", "targets", "target")
FORMS = "a tensor, (images, labels, ...) or a dict with pixel_values or images, and labels"

Batches = Iterable[Any]  # of images [B, C, H, W], alone or as (images, labels)


def whole_number(value: object, where: str, name: str, least: int = 1) -> int:
    """``value`` as an int, also of NumPy or a tensor. Raises InvalidData for anything else, or below ``least``."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers, or of floats
        number = None
    if number is None or number < least:
        expected = "a whole number" if number is None else f"at least {least}"
        raise InvalidData(f"{where}: got {name}={value!r}; expected {expected}. Pass one such as {max(least, 8)}.")
    return number


def real_number(value: object) -> float:
    """``value`` as a float, also of NumPy or a tensor; NaN for anything else."""
    if isinstance(value, str | bytes | bool) or value is None:
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # no number, or several
        return math.nan


def probability(value: object, where: str, name: str) -> float:
    """``value`` as a float; InvalidData unless it is above 0 and below 1."""
    number = real_number(value)
    if not 0 < number < 1:
        raise InvalidData(f"{where}: got {name}={value!r}; expected 0 < P < 1. Pass one such as 0.8.")
    return number


def check_dense(images: object, where: str) -> None:
    """Raise InvalidData for what is no tensor, or one that has no numbers side by side in memory."""
    if not isinstance(images, Tensor):
        remedy = "Pass torch.as_tensor(images)" if isinstance(images, np.ndarray) else "Pass images [B, C, H, W]"
        raise InvalidData(f"{where}: got images of type {type(images).__name__}; expected a tensor. {remedy}.")
    if images.is_meta or images.is_nested or images.layout != torch.strided:
        kind = "on the meta device" if images.is_meta else "nested" if images.is_nested else f"{images.layout}"
        raise InvalidData(f"{where}: got images {kind}; expected a dense tensor. Pass images [B, C, H, W].")


def given_images(batch: Any) -> Any:
    """What stands for the images in a batch, as it comes; None where nothing does."""
    return _part(batch, IMAGES, 0)


def images_of(batch: Any, where: str) -> Tensor:
    """The images of a batch: ``[B, C, H, W]``, or events ``[T, B, C, H, W]``, in floating point.

    A tensor, a NumPy array, the first of a tuple or list, or what a dict holds under one of ``IMAGES``. Raises
    InvalidData for what is none of these, for whole numbers, and for values that are not finite.
    """
    images = given_images(batch)
    if isinstance(images, np.ndarray) and images.dtype.kind in "fiu":
        floating = images.dtype.kind == "f"
        images = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32 if floating else None))
    if isinstance(images, Tensor):
        check_dense(images, where)
    if not isinstance(images, Tensor) or images.ndim not in (4, 5):
        got = f"images of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a batch of {_name(batch)}"
        raise InvalidData(
            f"{where}: got {got}; expected images [B, C, H, W] in {FORMS}. Have the loader yield one of these."
        )
    if not images.is_floating_point():
        raise InvalidData(
            f"{where}: got images of {str(images.dtype).removeprefix('torch.')}; expected floating point, preprocessed "
            "as for the source model. Divide by 255 and normalize as in its training."
        )
    check_finite(images, where)
    return images


def check_finite(images: Tensor, where: str) -> None:
    """Raise InvalidData where images ``[B, C, H, W]``, or events ``[T, B, C, H, W]``, are not finite."""
    finite = torch.isfinite(images)
    if bool(finite.all()):
        return
    sound = finite.flatten(-3).all(-1)
    bad = (~(sound if images.ndim == 4 else sound.all(0))).nonzero().flatten().tolist()
    raise InvalidData(
        f"{where}: got images that are not finite, {int((~finite).sum()):,} of {images.numel():,} values NaN or "
        f"infinite in {len(bad)} of {images.shape[-4]} images (first: image {bad[0]}); expected numbers. Look for a "
        "division by zero where they are normalized."
    )


def class_numbers(batch: Any, count: int) -> Tensor | None:
    """The labels of a batch of ``count`` images, int64 ``[B]``; None where it has none that are class numbers."""
    labels = _part(batch, LABELS, 1)
    try:
        labels = None if labels is None else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # names, say
        return None
    if labels is None or labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.to(torch.int64)


def labels_of(batch: Any, images: Tensor, where: str) -> Tensor | None:
    """The class numbers of a batch, one per image; None where it has no labels at all.

    Raises InvalidData for labels of another kind or number, and for a batch without images.
    """
    count, given = images.shape[-4], _part(batch, LABELS, 1)
    if count == 0:
        raise InvalidData(f"{where}: got no images; expected at least one. Check the loader.")
    labels = class_numbers(batch, count)
    if given is None or labels is not None:
        return labels
    kind = f"labels of {_name(given)}"
    if isinstance(given, Tensor | np.ndarray):
        kind = f"labels of shape {tuple(given.shape)}, {str(given.dtype).removeprefix('torch.')}"
    raise InvalidData(
        f"{where}: got {count} images with {kind}; expected one class number for each. Have the loader yield those."
    )


def labeled(batches: Iterable[Any], where: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and class numbers of every batch. Raises InvalidData, naming the batch, where one of them is missing."""
    for number, batch in enumerate(batches, 1):
        here = f"{where}: batch {number}"
        images = images_of(batch, here)
        labels = labels_of(batch, images, here)
        if labels is None:
            raise InvalidData(
                f"{here}: got {images.shape[-4]} images without labels; expected (images, labels, ...) or a dict with "
                "labels. Have the loader yield them; verify and snn(images, timesteps) do without."
            )
        yield images, labels


def _part(batch: Any, names: tuple[str, ...], place: int) -> Any:
    """Images or labels of a batch, as they come; None where it has none."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in names if name in batch), None)
    if isinstance(batch, tuple | list):
        return batch[place] if len(batch) > place else None
    return batch if place == 0 else None


def _name(value: object) -> str:
    """What something is, in a word or two."""
    if isinstance(value, Mapping):
        return f"dict with {', '.join(map(str, list(value)[:4])) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value[:3]) or 'nothing'}"
    return type(value).__name__
