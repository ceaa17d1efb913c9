"""Figures as words: one way to write each kind of number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .markup import Html, element, paragraph
from .study import Study

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
NOT_AVAILABLE = "Not available"


def percent(value: float) -> str:
    """A share; infinite where an error is relative to nothing."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else "\N{INFINITY}"


def points(value: float) -> str:
    """A difference of shares, in points."""
    written = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if written[1:] == "0.0" else written


def interval(study: Study, value: float) -> str:
    """The 95 % interval of a share of the images."""
    low, high = study.interval(value)
    return f"{100 * low:.1f}{DASH}{100 * high:.1f}%"


def ratio(value: float) -> str:
    """How many times as much."""
    digits = max(0, 1 - math.floor(math.log10(value))) if math.isfinite(value) and value > 0 else 0
    return f"{value:,.{min(digits, 3)}f}{TIMES}" if math.isfinite(value) else "\N{INFINITY}"


def count(value: float) -> str:
    """A number of operations, or an energy, to three digits where it is small."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def these(images: int, studies: Sequence[Study]) -> str:
    """Which of the images something was measured on."""
    every = studies[0].report.images
    return f"all {every:,} images" if images >= every else f"the first {images:,} of the {every:,} images"


def missing(study: Study, what: str, studies: Sequence[Study]) -> Html:
    """Why something is not on the page."""
    return paragraph(whose(study, studies), f"{NOT_AVAILABLE}. {study.missing.get(what, '')}", kind="note")


def whose(study: Study, studies: Sequence[Study]) -> Html:
    """The network's name before a sentence, where there are two."""
    return element("strong", f"{study.network}: ") if len(studies) > 1 else Html("")
