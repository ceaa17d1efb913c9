"""Progress bars on stderr, where it is a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(items: Iterable[Any] | None, label: str, unit: str, total: int | None = None) -> Any:
    """A tqdm bar; silent without a label."""
    return tqdm(items, desc=label, unit=unit, total=total, leave=False, disable=None if label else True)
