"""An operation field by field, with the parts inside it: for files, checks, and moves to a device or another type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

P = TypeVar("P")


def tensors(part: Any, above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor, by its dotted name: ``weight``, ``spikes.thresholds``."""
    for field in fields(part):
        name, value = f"{above}{field.name}", getattr(part, field.name)
        if isinstance(value, Tensor):
            yield name, value
        elif is_dataclass(value):
            yield from tensors(value, f"{name}.")


def settings(part: Any) -> dict[str, Any]:
    """The fields that are no tensors; a part inside it as its kind and its own settings."""
    found = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            found[field.name] = {"kind": type(value).__name__, **settings(value)}
        elif not isinstance(value, Tensor):
            found[field.name] = value
    return found


def mapped(part: P, change: Callable[[Tensor], Tensor]) -> P:
    """The same with other tensors."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            changed[name] = change(value)
        elif is_dataclass(value):
            changed[name] = mapped(value, change)
    return replace(part, **changed) if changed else part  # type: ignore[type-var]
