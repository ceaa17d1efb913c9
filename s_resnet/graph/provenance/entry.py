"""An entry of the provenance: a frozen dataclass whose fields are read from JSON, each of its kind or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, TypeAlias, TypeVar

from ...errors import InvalidData, message
from ...runtime.display import Displayed, Entries, Table, plain

T = TypeVar("T")
# Reads the value at a place such as ``recipe.timesteps``, or raises InvalidData.
Kind: TypeAlias = Callable[[object, str], T]


@dataclass(frozen=True, repr=False)
class Entry(Displayed):
    """What a network says about one thing: the base of dataclasses whose fields have a kind.

    The JSON is a dict with the names of the fields. A field without a default is always in it. Of the others, None and
    entries that say nothing are left out.

    Attributes:
        extra: what else the JSON says, as it is.
    """

    extra: Mapping[str, object] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for name in sorted(self.extra.keys() & {part.key for part in _parts_of(type(self))}):
            raise refused(name, self.extra[name], "nothing under that name in extra")

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return bool(self.to_json())

    def to_json(self) -> dict[str, object]:
        """What is said, in dicts, lists, texts and numbers."""
        said: dict[str, object] = {}
        for part in _parts_of(type(self)):
            value = getattr(self, part.name)
            if part.needed or not (value is None or (isinstance(value, Entry) and not value)):
                said[part.key] = as_json(value)
        return {**said, **self.extra}

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON knows it: null for a number that is not finite."""
        return dict(plain(self.to_json()))

    @classmethod
    def read(cls, said: object, where: str) -> Self:
        """The entry that some JSON says at a place; what it does not say is None.

        Raises:
            InvalidData: it is no dict, a part is of another kind, or one is missing that must not.
        """
        parts = {part.key: part for part in _parts_of(cls)}
        if not isinstance(said, Mapping):
            raise refused(where, said, f"a dict with {', '.join(parts)}")
        for part in parts.values():
            if part.needed and part.key not in said:
                raise refused(where, said, f"a dict with {part.key}")
        inside = f"{where}." if where else ""
        known: dict[str, Any] = {
            part.name: part.kind(said[key], f"{inside}{key}") for key, part in parts.items() if key in said
        }
        known["extra"] = {name: value for name, value in said.items() if name not in parts}
        return cls(**known)

    def _lines(self) -> Iterable[str]:
        return Entries(self.to_json())._lines()

    def _parts(self) -> Iterable[str | Table]:
        return Entries(self.to_json())._parts()


@dataclass(frozen=True)
class _Part:
    """A field of an entry: its name, the one in JSON, its kind, and whether it must be there."""

    name: str
    key: str
    kind: Kind[object]
    needed: bool


def _parts_of(kind: type[Entry]) -> list[_Part]:
    return [
        _Part(one.name, one.metadata.get("key", one.name), one.metadata["kind"], one.default is MISSING)
        for one in fields(kind)
        if "kind" in one.metadata
    ]


def said(kind: Kind[T]) -> T | None:
    """A field of an entry: of that kind, or None where nothing is said."""
    return field(default=None, metadata={"kind": kind})


def as_json(value: object) -> object:
    """A value of a field in dicts, lists, texts and numbers."""
    if isinstance(value, Entry):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, Mapping):
        return {name: as_json(part) for name, part in value.items()}
    return value


def refused(where: str, value: object, expected: str) -> InvalidData:
    """The error for an entry of a name that this package reads and that is of another kind than it writes."""
    text = repr(value)
    got = text if len(text) <= 80 else f"{text[:77]}..."
    remedy = "Choose another name for your own"
    return InvalidData(message("provenance", where, got, f"{expected}: S-ResNet reads that entry", remedy))


# ---- kinds ----


def text(value: object, where: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise refused(where, value, "a text")
    return value


def flag(value: object, where: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise refused(where, value, "true or false")
    return value


def mark(value: object, where: str) -> str | int:
    """What tells an image again: a text or a whole number."""
    if not isinstance(value, str | int):
        raise refused(where, value, "a text or a whole number")
    return value


def number(value: object, where: str) -> float:
    """Any number, also one that is not finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise refused(where, value, "a number")
    return value


def between(low: float, high: float) -> Kind[float]:
    """Numbers above ``low`` and below ``high``."""

    def read(value: object, where: str) -> float:
        if not low < number(value, where) < high:
            raise refused(where, value, f"a number above {low:g}{'' if high == math.inf else f' and below {high:g}'}")
        return number(value, where)

    return read


def whole(least: int, most: int) -> Kind[int]:
    """Whole numbers from ``least`` to ``most``."""

    def read(value: object, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise refused(where, value, f"a whole number from {least} to {most}")
        return value

    return read


def optional(kind: Kind[T]) -> Kind[T | None]:
    """The kind, or null."""
    return lambda value, where: None if value is None else kind(value, where)


def listed(kind: Kind[T], length: int | None = None) -> Kind[tuple[T, ...]]:
    """Lists of a kind, of some length or of any."""

    def read(value: object, where: str) -> tuple[T, ...]:
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise refused(where, value, "a list" if length is None else f"a list of {length}")
        return tuple(kind(part, where) for part in value)

    return read


def named(kind: Kind[T]) -> Kind[Mapping[str, T]]:
    """Dicts of a kind."""

    def read(value: object, where: str) -> Mapping[str, T]:
        if not isinstance(value, Mapping):
            raise refused(where, value, "a dict")
        return {name: kind(part, f"{where}.{name}") for name, part in value.items()}

    return read
