"""Class names: their order, and matching the classes of data with the outputs of a network by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..errors import InvalidData, message
from ..files import read
from .images import LabeledData, reason
from .wordnet import CLASSES, are_imagenets, imagenet_ids, imagenet_output, plain

Data = TypeVar("Data", bound=LabeledData)

LARGEST = 2**24  # bytes that a file of names may have
NATURAL = "natural"
_ADVICE = "Rename the folders, or pass the names of the network's outputs in order"


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """The names sorted with the numbers in them as numbers: 2 before 10."""
    return tuple(sorted(names, key=by_number))


def by_number(name: str) -> list[str | int]:
    """A key that sorts 2 before 10."""
    return [int(part[:1000]) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names in a text file, one per line; empty lines are ignored.

    Raises:
        InvalidData: the file cannot be read, has no names, or has a name twice.
    """
    where, expected = f"classes '{path}'", "a text file with one class name per line"
    try:
        lines = read(Path(path), LARGEST).decode().splitlines()
    except (OSError, ValueError) as error:
        raise InvalidData(message(where, "file", reason(error), expected, "Name a text file that exists")) from error
    names = tuple(name for line in lines if (name := line.strip()))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise InvalidData(
            message(where, "names", f"{twice[0]!r} twice" if twice else "none", expected, "Write each name once")
        )
    return names


def match_classes(data: Data, names: Sequence[str]) -> Data:
    """The same data with labels that index ``names``; classes are matched by name.

    Upper and lower case are the same, and so are spaces, underscores and hyphens, unless names of the network differ in
    nothing else. The classes of ImageNet may be called ``n01440764``, ``tench`` or ``n01440764_tench`` on either side.
    The data may have fewer classes than the network. Where one side has no names but the numbers 0, 1, 2, ... of its
    own order, as an .npz has, classes are matched by position. Data without labels are returned unchanged.

    Args:
        data: labeled data.
        names: the network's outputs, in order.

    Raises:
        InvalidData: the data have a class of another name, or more classes than the network.
    """
    names, where = tuple(names), f"data {data.spec!r}"
    if data.classes in (names, ()):
        return data
    if len(data.classes) > len(names):
        got = f"{len(data.classes)} classes for a network of {len(names)}"
        raise InvalidData(
            message(where, "classes", got, "equal numbers", "Choose the data that the network was trained on")
        )
    key = imagenet_output if are_imagenets(names) else plain if len(set(map(plain, names))) == len(names) else str
    outputs = {key(name): output for output, name in enumerate(names)}
    unknown = [name for name in data.classes if key(name) not in outputs]
    if not unknown:
        order = [outputs[key(name)] for name in data.classes]
    elif _numbered(data.classes) or (_numbered(names) and len(data.classes) == len(names)):
        order = list(range(len(data.classes)))
    else:
        present = set(map(key, data.classes))
        missing = [name for name in names if key(name) not in present]
        got = f"{_few(unknown)}, which the network has not"
        raise InvalidData(message(where, "class names", got, f"those of the network, such as {_few(missing)}", _ADVICE))
    return replace(data, classes=names, labels=tuple(order[label] for label in data.labels))


def network_classes(
    wish: str | None, data: LabeledData, known: Sequence[str] = (), outputs: int | None = None
) -> tuple[str, ...]:
    """The names of the network's outputs, in order.

    Args:
        wish: ``"natural"`` for the classes of the data in natural order, or the path of a file of names; None for none.
        data: labeled data; its classes are the answer where ``wish`` and ``known`` give none.
        known: the names that the network itself keeps; they are the answer where ``wish`` is None.
        outputs: how many outputs the network has. With 1,000 and data of ImageNet's classes, or of some of them, the
            answer is ImageNet's WordNet ids where ``wish`` and ``known`` give none.

    Raises:
        InvalidData: the file of names cannot be read.
    """
    if wish == NATURAL:
        return natural_order(data.classes)
    if wish is not None:
        return read_names(wish)
    imagenets = outputs == CLASSES and bool(data.classes) and None not in map(imagenet_output, data.classes)
    return tuple(known) or (imagenet_ids() if imagenets else data.classes)


def order_note(data: LabeledData) -> str:
    """A note on the order of the classes where sorting as text and by number differ; else an empty string."""
    natural = natural_order(data.classes)
    if not data.root or natural == data.classes or tuple(sorted(data.classes)) != data.classes:
        return ""
    first = next(i for i, (text, number) in enumerate(zip(data.classes, natural, strict=True)) if text != number)
    text, number = (", ".join((*names[max(0, first - 1) : first + 2], "...")) for names in (data.classes, natural))
    return (
        f"Classes are in the order of text ({text}), as in torchvision's ImageFolder. "
        f"If the network was trained with {number}: match_classes(data, natural_order(data.classes))."
    )


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether they are the same names in the same order."""
    return list(map(plain, one)) == list(map(plain, other)) or (are_imagenets(one) and are_imagenets(other))


def _numbered(names: Sequence[str]) -> bool:
    """Whether the names are only the numbers of their positions."""
    return list(names) == [str(position) for position in range(len(names))]


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
