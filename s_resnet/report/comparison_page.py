"""The page of a comparison: one HTML file with charts and table that needs no network, no script and no matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

from ..analysis.candidates import ANN, SNN
from ..analysis.comparison import Comparison, ComparisonRow
from ..runtime.display import Table, percent
from ..version import __version__
from .comparison_charts import AXES, Key, chart, legend
from .page import environment

STYLES = ("page.css", "comparison.css")


@dataclass(frozen=True)
class Section:
    """What the page says about one trained network.

    Attributes:
        network: its name.
        findings: a sentence for each latency.
        charts: its charts, as SVG.
        legend: their marks.
        table: every row as cells.
        rows: the rows of the table.
    """

    network: str
    findings: tuple[str, ...]
    charts: tuple[str, ...]
    legend: tuple[Key, ...]
    table: Table
    rows: tuple[ComparisonRow, ...]


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
            style=Markup(style),
            version=__version__,
            command=command,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _section(found: Comparison, network: str) -> Section:
    rows = found.of(network)
    charts = tuple(filter(None, (chart(rows, axis) for axis in AXES)))
    return Section(network, tuple(findings(rows)), charts, legend(rows), found.table_of(network), rows)


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
