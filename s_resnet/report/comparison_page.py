"""The page of a comparison: one HTML file with charts and table that needs no network, no script and no matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

from ..analysis.candidates import ANN, SNN
from ..analysis.comparison import NAME, Comparison, ComparisonRow
from ..runtime.display import percent
from ..version import __version__
from .comparison_charts import AXES, Key, chart, legend
from .page import environment

STYLES = ("page.css", "comparison.css")


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        title: of its column.
        text: whether it is aligned as words are.
        figure: its content without the interval.
        span: the interval, or nothing.
    """

    title: str
    text: bool
    figure: str
    span: str


@dataclass(frozen=True)
class Section:
    """What the page says about one trained network.

    Attributes:
        network: its name.
        findings: a sentence for each latency.
        charts: its charts, as SVG.
        legend: their marks.
        lead: how many of the table's columns say what a row is.
        titles: of the table's columns, and whether each is aligned as words are.
        rows: every row of the table with its cells.
    """

    network: str
    findings: tuple[str, ...]
    charts: tuple[str, ...]
    legend: tuple[Key, ...]
    lead: int
    titles: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[ComparisonRow, tuple[Cell, ...]], ...]


def comparison_page(found: Comparison, command: str) -> str:
    """The page as HTML.

    Args:
        found: the comparison.
        command: how to make it again, for its readers.
    """
    from markupsafe import Markup

    style = "\n".join(
        resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8") for name in STYLES
    )
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            found=found,
            sections=[_section(found, network) for network in found.networks],
            svg=Markup,
            name=NAME,
            beside_ann=any(row.kind == ANN for row in found.rows),
            style=Markup(style),
            version=__version__,
            command=command,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _section(found: Comparison, network: str) -> Section:
    rows = found.of(network)
    charts = tuple(filter(None, (chart(rows, axis) for axis in AXES)))
    table = found.table_of(network)
    titles = tuple((title, at < table.texts) for at, title in enumerate(table.titles))
    lines = tuple((row, _cells(titles, cells)) for row, cells in zip(rows, table.rows, strict=True))
    return Section(network, tuple(findings(rows)), charts, legend(rows), table.texts, titles, lines)


def _cells(titles: tuple[tuple[str, bool], ...], cells: tuple[str, ...]) -> tuple[Cell, ...]:
    made = []
    for (title, text), cell in zip(titles, cells, strict=True):
        figure, bracket, span = (cell, "", "") if title == NAME else cell.partition(" [")
        made.append(Cell(title, text, figure, f"[{span}" if bracket else ""))
    return tuple(made)


def findings(rows: tuple[ComparisonRow, ...]) -> Iterator[str]:
    """The best at each latency in a sentence, with those that cannot be told from it, and what it loses."""
    ann = next((row for row in rows if row.kind == ANN), None)
    groups: dict[int, list[ComparisonRow]] = {}
    for row in rows:
        if row.kind == SNN and row.best:
            groups.setdefault(row.latency or row.end_to_end_steps or 0, []).append(row)
    for latency, tied in sorted(groups.items()):
        best = max(tied, key=lambda row: row.top1 or 0.0)
        others = [row.name for row in tied if row is not best]
        said = f"Within {latency:,} steps {best.name} is best: {percent(best.top1)}"
        if ann is not None and best.drop is not None and best.drop_interval is not None:
            low, high = best.drop_interval
            told = (
                "no difference from the ANN can be told" if low <= 0 <= high else f"{100 * best.drop:+.1f} points lost"
            )
            said += f"; the ANN has {percent(ann.top1)}, {told}"
        yield f"{said}. Not told from it: {', '.join(others)}." if others else f"{said}."
