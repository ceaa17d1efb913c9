"""What a network's provenance says under the names that this package reads: one kind of entry for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidData

STEPS, SIDE, BINS = 2**16, 2**12, 2**9  # the most that make sense, so that no file has a run without an end
Check = Callable[[Any], bool]


def check_provenance(entries: Mapping[str, Any]) -> None:
    """Raise InvalidData where an entry of a name that this package reads is of another kind than it writes.

    Every other name is the user's own. Within an entry, what is missing is not asked for.
    """
    for name, value in entries.items():
        fits, expected = _KNOWN.get(name, (_anything, ""))
        if not fits(value):
            raise InvalidData(
                f"provenance: {name}, got {_shown(value)}; expected {expected}: S-ResNet reads that entry. Choose "
                "another name for your own."
            )


def _anything(value: Any) -> bool:
    return True


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _side(value: Any) -> bool:
    return _count(value) and 0 < value <= SIDE


def _resized(value: Any) -> bool:
    return _count(value) and 0 < value <= 2 * SIDE  # before the crop


def _bins(value: Any) -> bool:
    return _count(value) and 0 < value <= BINS


def _steps(value: Any) -> bool:
    return value is None or (_count(value) and 0 < value <= STEPS)


def _mark(value: Any) -> bool:
    return isinstance(value, str | int)


def _listed(fits: Check) -> Check:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


def _named(fits: Check) -> Check:
    return lambda value: isinstance(value, Mapping) and all(map(fits, value.values()))


def _entry(**parts: Check) -> Check:
    """A dict whose parts of these names, where it has them, are of these kinds."""
    return lambda value: (
        isinstance(value, Mapping) and all(fits(value[name]) for name, fits in parts.items() if name in value)
    )


def _pass(value: Any) -> bool:
    return isinstance(value, Mapping) and _text(value.get("pass"))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _three(value: Any) -> bool:
    return _listed(_finite)(value) and len(value) == 3


def _shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_count(size) and size > 0 for size in value)


_DICT = "a dict"
_KNOWN: Mapping[str, tuple[Check, str]] = {
    "recipe": (_entry(name=_text, timesteps=_steps, passes=_listed(_pass)), "a dict with name, timesteps and passes"),
    "source": (_entry(arch=_text, name=_text, sha256=_text, classes=_count), "a dict with arch, name and classes"),
    "data": (
        _entry(spec=_text, split=_text, images=_count, fingerprints=_listed(_text)),
        "a dict with spec, split, images and fingerprints",
    ),
    "calibration": (
        _entry(marks=_listed(_mark), scales=_named(_scale), silent=_listed(_text)),
        "a dict with marks, scales and silent",
    ),
    "preprocessing": (
        _entry(size=_side, resize=_resized, mean=_three, std=_three, events=_entry(bins=_bins, size=_listed(_side))),
        f"a dict with size, resize, mean and std, or with events, of at most {SIDE} pixels and {BINS} bins",
    ),
    "classes": (_listed(_text), "a list of names"),
    "input_shape": (_shape, "three whole numbers: channels, height, width"),
    "fixed_size": (lambda value: _listed(_side)(value) and len(value) == 2, "two whole numbers: height, width"),
    "reconstruction": (_entry(key=_text, blocks=_listed(_entry(block=_text, steps=_count))), "a dict with blocks"),
    "check": (_entry(images=_count, mean=_listed(_finite), std=_listed(_finite)), "a dict with images, mean and std"),
    "compensation": (_entry(), _DICT),
    "versions": (_entry(), _DICT),
    "choice": (_entry(), _DICT),
    "tuning": (_entry(), _DICT),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
