"""Arguments from callers: batches of any loader, and numbers, accepted in every usual form or refused in one line."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidData, message

# Keys of images and labels in batches that are dicts, as in data sets of Hugging Face and others.
IMAGES = ("pixel_values", "images", "image", "img", "x", "inputs", "input")
LABELS = ("labels", "label", "y", "targets", "target")
FORMS = "a tensor, (images, labels, ...) or a dict with pixel_values or images, and labels"

Batches = Iterable[Any]  # of images [B, C, H, W], alone or as (images, labels)


def whole_number(value: object, where: str, name: str, least: int = 1) -> int:
    """``value`` as an int; NumPy integers and tensors of one integer count too.

    Raises:
        InvalidData: ``value`` is something else, or less than ``least``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers, or of floats
        number = None
    if number is None or number < least:
        expected = "a whole number" if number is None else f"at least {least}"
        raise InvalidData(message(where, "", f"{name}={value!r}", expected, f"Pass one such as {max(least, 8)}"))
    return number


def real_number(value: object) -> float:
    """``value`` as a float; NumPy numbers and tensors of one number count too, and anything else gives NaN."""
    if isinstance(value, str | bytes | bool) or value is None:
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # no number, or several
        return math.nan


def probability(value: object, where: str, name: str) -> float:
    """``value`` as a float.

    Raises:
        InvalidData: it is not above 0 and below 1.
    """
    number = real_number(value)
    if not 0 < number < 1:
        raise InvalidData(message(where, "", f"{name}={value!r}", "0 < P < 1", "Pass one such as 0.8"))
    return number


def check_kind(value: object, kind: type | tuple[type, ...], where: str, what: str, remedy: str) -> None:
    """Check the type of an argument.

    Raises:
        InvalidData: it has another one.
    """
    if not isinstance(value, kind):
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise InvalidData(message(where, what, f"a value of type {_name(value)}", expected, remedy))


def check_batches(batches: object, where: str) -> None:
    """Check that ``batches`` can be iterated over, and is not one tensor, array, dict or text.

    Raises:
        InvalidData: it is not a loader.
    """
    if isinstance(batches, Tensor | np.ndarray):
        got, remedy = f"one {_name(batches)} of shape {tuple(batches.shape)}", "Pass [images], or [(images, labels)]"
    elif isinstance(batches, str | os.PathLike):
        got, remedy = repr(batches), "Open the data with s_resnet.data.open_data, and pass an s_resnet.data.ImageLoader"
    elif isinstance(batches, Mapping):
        got, remedy = f"one {_name(batches)}", "Pass a list of such batches, or a DataLoader"
    elif batches is None or isinstance(batches, Iterable) or hasattr(batches, "__getitem__"):
        return
    else:
        got, remedy = f"a value of type {_name(batches)}", "Pass [images], or a DataLoader"
    raise InvalidData(message(where, "batches", got, "a list of batches or a DataLoader", remedy))


def check_dense(images: object, where: str) -> None:
    """Check that ``images`` is a tensor with strided storage.

    Raises:
        InvalidData: it is something else: an array, a sparse or nested tensor, one on the meta device.
    """
    if not isinstance(images, Tensor):
        remedy = "Pass torch.as_tensor(images)" if isinstance(images, np.ndarray) else "Pass images [B, C, H, W]"
        raise InvalidData(message(where, "", f"images of type {type(images).__name__}", "a tensor", remedy))
    if images.is_meta or images.is_nested or images.layout != torch.strided:
        kind = "on the meta device" if images.is_meta else "nested" if images.is_nested else f"{images.layout}"
        raise InvalidData(message(where, "", f"images {kind}", "a dense tensor", "Pass images [B, C, H, W]"))


def given_images(batch: Any) -> Any:
    """The entry of a batch that holds the images, unchecked; None where there is none."""
    return _part(batch, IMAGES, 0)


def as_maps(images: Tensor) -> Tensor:
    """Signals ``[B, C, L]`` as images of height 1, ``[B, C, 1, L]``; anything else as it is, checked or not."""
    signals = isinstance(images, Tensor) and images.layout == torch.strided and not images.is_nested
    return images.unsqueeze(2) if signals and images.ndim == 3 else images


def images_of(batch: Any, where: str) -> Tensor:
    """The images of a batch, in floating point.

    They are ``[B, C, H, W]``, of signals ``[B, C, 1, L]``, or events ``[T, B, C, H, W]``.

    Args:
        batch: a tensor, a NumPy array, a tuple or list that begins with one, or a dict with one of the keys ``IMAGES``.
        where: the caller, for the error.

    Raises:
        InvalidData: ``batch`` is none of these, or its images are integers or not finite.
    """
    images = given_images(batch)
    if isinstance(images, np.ndarray) and images.dtype.kind in "fiu":
        floating = images.dtype.kind == "f"
        images = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32 if floating else None))
    if isinstance(images, Tensor):
        check_dense(images, where)
        images = as_maps(images)
    if not isinstance(images, Tensor) or images.ndim not in (4, 5):
        got = f"images of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a batch of {_name(batch)}"
        raise InvalidData(
            message(where, "", got, f"images [B, C, H, W] in {FORMS}", "Have the loader yield one of these")
        )
    if not images.is_floating_point():
        got = f"images of {str(images.dtype).removeprefix('torch.')}"
        expected = "floating point, preprocessed as for the source model"
        raise InvalidData(message(where, "", got, expected, "Divide by 255 and normalize as in its training"))
    check_finite(images, where)
    return images


def check_finite(images: Tensor, where: str) -> None:
    """Check that images ``[B, C, H, W]``, or events ``[T, B, C, H, W]``, are finite.

    Raises:
        InvalidData: some are not; the message names the first of these images.
    """
    finite = torch.isfinite(images)
    if bool(finite.all()):
        return
    sound = finite.flatten(-3).all(-1)
    bad = (~(sound if images.ndim == 4 else sound.all(0))).nonzero().flatten().tolist()
    where_bad = f"in {len(bad)} of {images.shape[-4]} images (first: image {bad[0]})"
    got = f"{int((~finite).sum()):,} of {images.numel():,} values NaN or infinite {where_bad}"
    remedy = "Look for a division by zero where they are normalized"
    raise InvalidData(message(where, "", f"images that are not finite, {got}", "numbers", remedy))


def class_numbers(batch: Any, count: int) -> Tensor | None:
    """The labels of a batch of ``count`` images, int64 ``[B]``; None where they are missing or not class numbers."""
    labels = _part(batch, LABELS, 1)
    try:
        labels = None if labels is None else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):  # names, say
        return None
    if labels is None or labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.to(torch.int64)


def labels_of(batch: Any, images: Tensor, where: str) -> Tensor | None:
    """The class numbers of a batch, one per image, int64 ``[B]``; None where it has no labels at all.

    Raises:
        InvalidData: the labels are of another kind or number, or the batch has no images.
    """
    count, given = images.shape[-4], _part(batch, LABELS, 1)
    if count == 0:
        raise InvalidData(message(where, "", "no images", "at least one", "Drop empty batches in the loader"))
    labels = class_numbers(batch, count)
    if given is None or labels is not None:
        return labels
    kind = f"labels of {_name(given)}"
    if isinstance(given, Tensor | np.ndarray):
        kind = f"labels of shape {tuple(given.shape)}, {str(given.dtype).removeprefix('torch.')}"
    raise InvalidData(
        message(where, "", f"{count} images with {kind}", "one class number for each", "Have the loader yield those")
    )


def labeled(batches: Iterable[Any], where: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and class numbers of every batch.

    Raises:
        InvalidData: a batch lacks images or labels; the message names it.
    """
    for number, batch in enumerate(batches, 1):
        here = f"{where}: batch {number}"
        images = images_of(batch, here)
        labels = labels_of(batch, images, here)
        if labels is None:
            got, expected = f"{images.shape[-4]} images without labels", "(images, labels, ...) or a dict with labels"
            remedy = "Have the loader yield them; verify and snn(images, timesteps) do without"
            raise InvalidData(message(here, "", got, expected, remedy))
        yield images, labels


def _part(batch: Any, names: tuple[str, ...], position: int) -> Any:
    """The images or labels of a batch, unchecked; None where it has none."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in names if name in batch), None)
    if isinstance(batch, tuple | list):
        return batch[position] if len(batch) > position else None
    return batch if position == 0 else None


def _name(value: object) -> str:
    """The type of ``value`` in a word or two."""
    if isinstance(value, Mapping):
        return f"dict with {', '.join(map(str, list(value)[:4])) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value[:3]) or 'nothing'}"
    return type(value).__name__
