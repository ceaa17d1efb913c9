"""Class names: their order, and matching the classes of data to the outputs of a network by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..files import read
from .images import LabeledData, invalid, reason

Data = TypeVar("Data", bound=LabeledData)

LARGEST = 2**24  # bytes of a file of names
NATURAL = "natural"
_ADVICE = "Rename the folders, or pass the names of the network's outputs in order"


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """The names sorted with the numbers in them as numbers: 2 before 10."""
    return tuple(sorted(names, key=by_number))


def by_number(name: str) -> list[str | int]:
    """A key that sorts 2 before 10."""
    return [int(part[:1000]) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names in a text file, one per line; empty lines count for nothing.

    Raises InvalidData where it cannot be read, is empty, or has a name twice.
    """
    where, expected = f"classes '{path}'", "a text file with one class name per line"
    try:
        lines = read(Path(path), LARGEST).decode().splitlines()
    except (OSError, ValueError) as error:
        raise invalid(where, "file", reason(error), expected, "Check the path") from error
    names = tuple(name for line in lines if (name := line.strip()))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise invalid(where, "names", f"{twice[0]!r} twice" if twice else "none", expected, "Correct the file")
    return names


def match_classes(data: Data, names: Sequence[str]) -> Data:
    """The same data with labels that index ``names``, the network's outputs in order; classes are matched by name.

    Upper and lower case, and spaces, underscores and hyphens, count as the same. The data may have fewer classes. Where
    one side has no names but the numbers 0, 1, 2, ... of its own order, as an .npz has, they are matched by position.
    Data without labels stay as they are.

    Raises InvalidData where the data have a class of another name, or more classes than the network.
    """
    names, where = tuple(names), f"data {data.spec!r}"
    if data.classes in (names, ()):
        return data
    if len(data.classes) > len(names):
        got = f"{len(data.classes)} classes for a network of {len(names)}"
        raise invalid(where, "classes", got, "equal numbers", "Choose the data that the network was trained on")
    places = {plain(name): place for place, name in enumerate(names)}
    unknown = [name for name in data.classes if plain(name) not in places]
    if not unknown:
        order = [places[plain(name)] for name in data.classes]
    elif _numbered(data.classes) or (_numbered(names) and len(data.classes) == len(names)):
        order = list(range(len(data.classes)))
    else:
        missing = [name for name in names if plain(name) not in set(map(plain, data.classes))]
        got = f"{_few(unknown)}, which the network has not"
        raise invalid(where, "class names", got, f"those of the network, such as {_few(missing)}", _ADVICE)
    return replace(data, classes=names, labels=tuple(order[label] for label in data.labels))


def network_classes(wish: str | None, data: LabeledData, known: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the network's outputs in order: as wished, else as known, else those of the data in their order.

    wish: ``"natural"``, the data's own in natural order, or a file of names; None for none.
    """
    if wish == NATURAL:
        return natural_order(data.classes)
    return read_names(wish) if wish is not None else tuple(known) or data.classes


def order_note(data: LabeledData) -> str:
    """What to know about the order of the classes, where text and numbers sort differently; else empty."""
    natural = natural_order(data.classes)
    if not data.root or natural == data.classes or tuple(sorted(data.classes)) != data.classes:
        return ""
    place = next(i for i, (text, number) in enumerate(zip(data.classes, natural, strict=True)) if text != number)
    text, number = (", ".join((*names[max(0, place - 1) : place + 2], "...")) for names in (data.classes, natural))
    return (
        f"Classes are in the order of text ({text}), as in torchvision's ImageFolder. "
        f"If the network was trained with {number}: match_classes(data, natural_order(data.classes))."
    )


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether they are the same names in the same order."""
    return list(map(plain, one)) == list(map(plain, other))


def plain(name: str) -> str:
    """A name without what does not count: case, and spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _numbered(names: Sequence[str]) -> bool:
    """Whether the names are no more than the numbers of their places."""
    return list(names) == [str(place) for place in range(len(names))]


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
