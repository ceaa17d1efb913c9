"""How the page writes numbers: one way for each kind."""

from __future__ import annotations

import math

from ..runtime import display

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


def percent(value: float | None) -> str:
    """A share; infinite where an error is relative to nothing, empty for None."""
    return display.percent(value) if value is None or math.isfinite(value) else "\N{INFINITY}"


def points(value: float) -> str:
    """A difference of shares, in points."""
    written = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if written[1:] == "0.0" else written


def point_range(ends: tuple[float, float]) -> str:
    """An interval of a difference, in points."""
    return f"{points(ends[0])} to {points(ends[1])}"


def percent_range(ends: tuple[float, float]) -> str:
    """An interval of a share."""
    return f"{100 * ends[0]:.1f}{DASH}{100 * ends[1]:.1f}%"


def ratio(value: float) -> str:
    """How many times as much."""
    digits = max(0, 1 - math.floor(math.log10(value))) if math.isfinite(value) and value > 0 else 0
    return f"{value:,.{min(digits, 3)}f}{TIMES}" if math.isfinite(value) else "\N{INFINITY}"


def count(value: float) -> str:
    """A number of operations, or an energy, to three digits where it is small."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def these(images: int, every: int) -> str:
    """Which of the images something was measured on."""
    return f"all {every:,} images" if images >= every else f"the first {images:,} of the {every:,} images"
