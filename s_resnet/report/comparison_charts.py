"""The charts of a comparison, as SVG that stands in the page: its colors are the page's, in the light and in the dark.

Each chart has accuracy upward and one cost to the right, on a logarithmic axis. Points have their 95 % interval, and
a title that a pointer shows. Letters keep their size on a phone, as the drawing is made for a small width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ..analysis.candidates import ANN, QUANTIZED, SNN
from ..analysis.comparison import MILLION, ComparisonRow
from ..runtime.display import percent, printable

WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 44
COLORS = 8  # classes c0 ... c7 of the style
SHAPES = (  # around the origin, for points of about nine pixels
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-4,-4H4V4H-4Z",
    "M0,-5L5,4H-5Z",
    "M0,-5L5,0L0,5L-5,0Z",
    "M-5,-4H5L0,5Z",
)
APART = 4.0  # pixels between the points of two recipes at the same place
QUANTIZED_NAME = "ANN, quantized"


@dataclass(frozen=True)
class Axis:
    """What a chart has to the right.

    Attributes:
        label: its title.
        of: the value of a row; None where there is none.
        at: whether ticks are at the values themselves, such as steps, or at 1, 2 and 5 times powers of ten.
        bits: whether the axis is linear, as bits are logarithms already, and the quantized ANNs are points of it.
    """

    label: str
    of: Callable[[ComparisonRow], float | None]
    at: bool = False
    bits: bool = False


AXES = (
    Axis("end-to-end steps E", lambda row: row.end_to_end_steps, at=True),
    Axis("SynOps per image (M)", lambda row: None if row.synops is None else row.synops / MILLION),
    Axis("measured time per image (ms)", lambda row: None if row.seconds is None else 1e3 * row.seconds),
    Axis("bits per activation, log2(levels)", lambda row: row.activation_bits, bits=True),
)


@dataclass(frozen=True)
class Key:
    """A line of the legend: a name, and how its points look."""

    name: str
    swatch: str


def legend(rows: Sequence[ComparisonRow]) -> tuple[Key, ...]:
    """The names of a network's rows with their marks; the ANN is a line across."""
    keys = [Key(name, _swatch(name, place)) for place, name in enumerate(_series(rows))]
    if any(row.kind == ANN for row in rows):
        line = '<svg class="key" viewBox="-9 -7 18 14" aria-hidden="true"><path class="ann" d="M-9,0H9"/></svg>'
        keys.append(Key("ANN", line))
    return tuple(keys)


def chart(rows: Sequence[ComparisonRow], axis: Axis) -> str:
    """The SVG of one network's accuracies over a cost; empty where fewer than two rows have it."""
    names = _series(rows)
    shown = [row for row in rows if row.top1 is not None and _name(row) in names and _right(row, axis) is not None]
    if len(shown) < 2:
        return ""
    frame = _Frame.around(shown, [row for row in rows if row.kind == ANN and row.top1 is not None], axis)
    body = [*frame.grid(axis), *frame.across(rows)]
    for place, name in enumerate(names):
        points = sorted((row for row in shown if _name(row) == name), key=lambda row: _right(row, axis) or 0.0)
        if points:
            shift = (place - (len(names) - 1) / 2) * min(APART, 24 / len(names))
            body += frame.points(points, axis, place, shift)
    said = escape(f"Top-1 accuracy over {axis.label}; the figures are in the table.")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(body)}</svg>'


def _series(rows: Sequence[ComparisonRow]) -> list[str]:
    """The names that have points, the quantized ANN last."""
    there = [row for row in rows if row.top1 is not None]
    return list(dict.fromkeys(_name(row) for kind in (SNN, QUANTIZED) for row in there if row.kind == kind))


def _name(row: ComparisonRow) -> str:
    return QUANTIZED_NAME if row.kind == QUANTIZED else row.name


def _right(row: ComparisonRow, axis: Axis) -> float | None:
    """Where a row is on the axis; a quantized ANN only where bits are."""
    if row.kind == ANN or (row.kind == QUANTIZED and not axis.bits):
        return None
    value = axis.of(row)
    return value if value is not None and value > 0 else None


def _swatch(name: str, place: int) -> str:
    mark = f'<path class="{_color(name, place)}" d="{SHAPES[place % len(SHAPES)]}"/>'
    return f'<svg class="key" viewBox="-9 -7 18 14" aria-hidden="true">{mark}</svg>'


def _color(name: str, place: int) -> str:
    """The class of a name's points in the style."""
    return "cq" if name == QUANTIZED_NAME else f"c{place % COLORS}"


@dataclass(frozen=True)
class _Frame:
    """The ranges of a chart, accuracies in percent."""

    low: float
    high: float
    left: float
    right: float
    bits: bool

    @classmethod
    def around(cls, rows: Sequence[ComparisonRow], anns: Sequence[ComparisonRow], axis: Axis) -> _Frame:
        """The frame that holds points, their intervals and the ANN's line."""
        ends = [end for row in (*rows, *anns) for end in row.top1_interval or ()]
        step = 5.0
        low, high = math.floor(100 * min(ends) / step) * step, math.ceil(100 * max(ends) / step) * step
        values = [value for row in rows if (value := _right(row, axis)) is not None]
        least, most = min(values), max(values)
        if axis.bits:
            return cls(low, high, math.floor(least), math.ceil(most) + (math.ceil(most) == math.floor(least)), True)
        return cls(low, high, least / 1.25, most * 1.25, False)

    def x(self, value: float) -> float:
        """Pixels from the left."""
        if self.bits:
            share = (value - self.left) / (self.right - self.left)
        else:
            share = math.log(value / self.left) / math.log(self.right / self.left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """Pixels from the top."""
        return TOP + (self.high - 100 * share) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, axis: Axis) -> Iterable[str]:
        """Lines and labels of both axes."""
        bottom = HEIGHT - BOTTOM
        every = next(step for step in (1, 2, 5, 10, 20, 25) if (self.high - self.low) / step <= 7)
        for tick in range(int(-(-self.low // every) * every), int(self.high) + 1, every):
            y = self.y(tick / 100)
            yield f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        for value in self.ticks(axis):
            x = self.x(value)
            yield f'<path class="grid" d="M{x:.1f},{TOP}V{bottom}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
        yield f'<path class="axis" d="M{LEFT},{TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        center, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
        yield f'<text x="{center}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axis.label)}</text>'
        yield f'<text transform="translate(12,{middle}) rotate(-90)" text-anchor="middle">top-1 (%)</text>'

    def ticks(self, axis: Axis) -> list[float]:
        """Where the axis to the right is labeled; no two labels nearer than 26 pixels."""
        if self.bits:
            every = next(step for step in (1, 2, 4, 8) if (self.right - self.left) / step <= 9)
            return [float(bits) for bits in range(int(self.left), int(self.right) + 1, every)]
        if axis.at:
            wanted = [2.0**power for power in range(17)]
        else:
            wanted = [head * 10.0**power for power in range(-6, 10) for head in (1, 2, 5)]
        chosen: list[float] = []
        for value in wanted:
            if self.left <= value <= self.right and (not chosen or self.x(value) - self.x(chosen[-1]) >= 26):
                chosen.append(value)
        return chosen

    def across(self, rows: Sequence[ComparisonRow]) -> Iterable[str]:
        """The ANN's accuracy, as a line."""
        for row in rows:
            if row.kind == ANN and row.top1 is not None:
                line = f"M{LEFT},{self.y(row.top1):.1f}H{WIDTH - RIGHT}"
                yield f'<path class="ann" d="{line}"><title>{_said(row)}</title></path>'

    def points(self, rows: Sequence[ComparisonRow], axis: Axis, place: int, shift: float) -> Iterable[str]:
        """The points of one name, with intervals, and the line that joins them."""
        spots = []
        marks = []
        for row in rows:
            value = _right(row, axis)
            assert value is not None and row.top1 is not None and row.top1_interval is not None
            x, y = self.x(value) + shift, self.y(row.top1)
            low, high = (self.y(end) for end in row.top1_interval)
            spots.append(f"{x:.1f},{y:.1f}")
            marks.append(f'<path class="span" d="M{x:.1f},{low:.1f}V{high:.1f}"/>')
            marks.append(
                f'<path class="mark" transform="translate({x:.1f},{y:.1f})" d="{SHAPES[place % len(SHAPES)]}">'
                f"<title>{_said(row)}</title></path>"
            )
        yield f'<g class="{_color(_name(rows[0]), place)}"><polyline points="{" ".join(spots)}"/>{"".join(marks)}</g>'


def _said(row: ComparisonRow) -> str:
    """A row in words, for a pointer on its point."""
    steps = "" if row.timesteps is None else f", T = {row.timesteps}, {row.end_to_end_steps} end-to-end steps"
    low, high = row.top1_interval or (0.0, 0.0)
    return escape(printable(f"{row.name}{steps}: {percent(row.top1)} ({100 * low:.1f} to {100 * high:.1f})", ""))
