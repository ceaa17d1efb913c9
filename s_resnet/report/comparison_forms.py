"""A comparison in the forms that papers and scripts take: text, Markdown, LaTeX, CSV, JSON, and a page."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..analysis.candidates import SNN
from ..analysis.comparison import Comparison, ComparisonRow
from ..data.arguments import check_kind
from ..errors import InvalidData, message
from ..files import replacing
from ..runtime.display import Table, plain, printable
from ..version import __version__
from .comparison_page import comparison_page

SUFFIXES = {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html"}
FIGURE = re.compile(r"(\*\*)?[+-]?[\d.,]+(\*\*)?( \[[+-]?[\d.]+, [+-]?[\d.]+\])?")  # with an interval, perhaps bold
PAIRS = ("top1_interval", "drop_interval", "over_quantized_interval")  # of a CSV, each in two columns
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def comparison_form(path: str | os.PathLike[str]) -> str:
    """The form that a file's ending stands for.

    Raises:
        InvalidData: it stands for none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        got, remedy = f"ending {suffix!r}", "Choose another ending"
        raise InvalidData(message(str(path), "", got, f"one of {', '.join(SUFFIXES)}", remedy))
    return SUFFIXES[suffix]


def comparison_text(found: Comparison, form: str, command: str = "") -> str:
    """A comparison in one of :data:`s_resnet.report.FORMS`, with a line break at its end.

    Args:
        found: the comparison.
        form: the name of a form.
        command: how to make it again, for its readers; the text and the CSV leave it out.

    Raises:
        InvalidData: there is no such form, or it is no comparison.
    """
    check_kind(found, Comparison, "report", "comparison", "Call s_resnet.analysis.compare first")
    if form not in FORMS:
        remedy = "Pass one of these names"
        raise InvalidData(message("report", "", f"form {form!r}", f"one of {', '.join(FORMS)}", remedy))
    return _MAKERS[form](found, command)


def write_comparison(found: Comparison, path: str | os.PathLike[str], command: str = "") -> None:
    """Write a comparison in the form of the file's ending, whole or not at all.

    Args:
        found: the comparison.
        path: a file that ends in .txt, .md, .tex, .csv, .json or .html.
        command: how to make it again, for its readers.

    Raises:
        InvalidData: the ending stands for no form.
        SResNetError: the file cannot be written.
    """
    content = comparison_text(found, comparison_form(path), command)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _text(found: Comparison, command: str) -> str:
    return f"{found.table()}\n"


def _markdown(found: Comparison, command: str) -> str:
    """Tables as GitHub and most others read them; the best are bold."""
    parts = [_paragraph(found.head())]
    for network in found.networks:
        if len(found.networks) > 1:
            parts.append(f"### {_escaped(network, _MARKDOWN)}")
        parts.append(_markdown_table(found.table_of(network, best="**{}**")))
    foot = [line.replace("* the best", "bold: the best", 1) for line in found.foot()]
    parts += (
        [_paragraph(foot), f"Made by S-ResNet {__version__}: `{printable(command)}`"] if command else [_paragraph(foot)]
    )
    return "\n\n".join(parts) + "\n"


_MARKDOWN = {letter: f"\\{letter}" for letter in "\\|*_`<>[]#"}


def _paragraph(lines: Iterator[str] | list[str]) -> str:
    return "\n".join(f"{_escaped(line, _MARKDOWN)}  " for line in lines)


def _markdown_table(table: Table) -> str:
    sides = ["---" if at < table.texts else "---:" for at in range(len(table.titles))]
    lines = [[_escaped(cell, _MARKDOWN) for cell in table.titles], sides]
    for row in table.rows:
        lines.append([cell if FIGURE.fullmatch(cell) else _escaped(cell, _MARKDOWN) for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str, special: Mapping[str, str]) -> str:
    return "".join(special.get(letter, letter) for letter in printable(text, ""))


def _latex(found: Comparison, command: str) -> str:
    r"""A tabular for each network, with the rules of the package booktabs; the best are bold."""
    parts = [
        f"% S-ResNet {__version__}{f': {printable(command)}' if command else ''}",
        r"% needs \usepackage{booktabs}",
    ]
    for network in found.networks:
        table = found.table_of(network, best="BEST{}BEST")
        sides = "".join("l" if at < table.texts else "r" for at in range(len(table.titles)))
        parts += [rf"% {printable(network)}", rf"\begin{{tabular}}{{{sides}}}", r"\toprule", _latex_row(table.titles)]
        last: object = None
        for row, cells in zip(found.of(network), table.rows, strict=True):
            group = (row.kind, (row.latency or row.end_to_end_steps) if row.kind == SNN else None)
            parts += [r"\midrule"] * (group != last) + [_latex_row(cells)]
            last = group
        parts += [r"\bottomrule", r"\end{tabular}"]
    foot = [line.replace("* the best", "Bold: the best", 1) for line in found.foot()]
    said = [*found.head(), *foot]
    return "\n".join([*parts, r"\par\smallskip", *(f"{_escaped(line, SPECIAL)}" for line in said)]) + "\n"


def _latex_row(cells: tuple[str, ...]) -> str:
    row = f"{' & '.join(map(_latex_cell, cells))} \\\\"
    return f"{{}}{row}" if row[0] in "[*" else row  # after a line break both would be read as its arguments


def _latex_cell(cell: str) -> str:
    """A cell with its marks in bold and its signs in mathematics, as a hyphen is shorter than a minus."""
    bold = re.sub(r"^BEST(.*?)BEST", r"\\textbf{\1}", cell)
    if bold != cell:
        return bold
    if re.fullmatch(r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", cell):
        return re.sub(r"([+-][\d.]+)", r"$\1$", cell)
    return _escaped(cell, SPECIAL)


def _csv(found: Comparison, command: str) -> str:
    """A line for each row, under the keys of the JSON; an interval has two columns, and nothing is rounded."""
    file = io.StringIO()
    rows = [_flat(row) for row in found.rows]
    writer = csv.DictWriter(file, [*rows[0], "images"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "images": found.images} for row in rows)
    return file.getvalue()


def _flat(row: ComparisonRow) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in row.to_dict().items():
        if name in PAIRS:
            low, high = value or (None, None)
            flat |= {f"{name}_low": low, f"{name}_high": high}
        else:
            flat[name] = printable(value, "") if isinstance(value, str) else value
    return flat


def _json(found: Comparison, command: str) -> str:
    made = {"s_resnet": __version__, "command": command}
    return json.dumps(plain({**found.to_dict(), **made}), indent=1, allow_nan=False) + "\n"


_MAKERS: Mapping[str, Callable[[Comparison, str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
    "html": comparison_page,
}
FORMS = tuple(_MAKERS)
"""The names of the forms."""
