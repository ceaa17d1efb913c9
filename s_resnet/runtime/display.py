"""How results are shown: a few lines in a console, a table in a notebook, a text table, and plain JSON values."""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..files import save_json

LINES, WIDTH = 5, 240  # lines and letters per line in a console
ROWS = 100  # of a table in a notebook; the text table has them all
CELL, ITEMS = 72, 6  # letters of a field's value, and items shown of a list in it


class Displayed:
    """A result that people look at: ``repr`` has at most five lines, and a notebook shows the table.

    Dataclasses that inherit from it are made with ``repr=False``. ``_lines`` gives what a console shows, ``_parts``
    what the table holds; by default both are the fields, shortened.
    """

    def table(self) -> str:
        """The whole result as text, as the command line prints it."""
        return "\n\n".join(part.text() if isinstance(part, Table) else printable(part) for part in self._parts())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values: null for a figure that is not finite, dtype and shape for a tensor."""
        return {name: plain(value) for name, value in _fields(self).items()}

    def _lines(self) -> Iterable[str]:
        yield brief(self, 2 * WIDTH)

    def _parts(self) -> Iterable[str | Table]:
        yield type(self).__name__
        yield Table(("field", "value"), tuple((name, brief(value)) for name, value in _fields(self).items()), texts=2)

    def __repr__(self) -> str:
        lines = [printable(line, "") for line in self._lines() if line]
        return "\n".join(_cut(line, 2 * WIDTH if len(lines) == 1 else WIDTH) for line in lines[:LINES])

    def _repr_html_(self) -> str:
        return f"<div>{''.join(map(_html, self._parts()))}</div>"


@dataclass(frozen=True, repr=False)
class Table(Displayed):
    """Rows of cells under titles.

    Attributes:
        titles: the head of each column.
        rows: the cells.
        texts: how many of the first columns are aligned to the left, as words are; the others are aligned to the right.
        gap: spaces between columns.
        width: least width of every column but the first.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    gap: int = 2
    width: int = 0

    def text(self) -> str:
        """Aligned columns, one line a row."""
        lines = [[printable(cell, "") for cell in line] for line in (self.titles, *self.rows)]
        widths = [max(self.width * bool(at), *(len(line[at]) for line in lines)) for at in range(len(self.titles))]
        return "\n".join(
            (" " * self.gap)
            .join(
                cell.ljust(width) if at < self.texts else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            .rstrip()
            for line in lines
        )

    def html(self) -> str:
        """The first rows as an HTML table, with the number of those left out."""
        head, body = self._row("th", self.titles), "".join(self._row("td", row) for row in self.rows[:ROWS])
        if len(self.rows) > ROWS:
            more = f"{len(self.rows) - ROWS:,} more rows: print(_.table()) shows them"
            body += f'<tr><td colspan="{len(self.titles)}">{more}</td></tr>'
        return f'<table style="margin-bottom: 1em"><thead>{head}</thead><tbody>{body}</tbody></table>'

    def _parts(self) -> Iterable[str | Table]:
        yield self

    def _row(self, kind: str, cells: Iterable[str]) -> str:
        made = ""
        for at, cell in enumerate(cells):
            side = "left" if at < self.texts else "right"
            made += f'<{kind} style="text-align: {side}">{_safe(_cut(cell, WIDTH))}</{kind}>'
        return f"<tr>{made}</tr>"


class Figures(Displayed):
    """A result that can be saved as JSON."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, whole or not at all.

        Raises:
            SResNetError: the file cannot be written.
        """
        save_json(path, self.to_dict())


class Entries(dict[str, Any], Displayed):
    """Named plain JSON values, such as a report's: a dict with a short ``repr``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({name: Entries(value) if type(value) is dict else value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """The same entries in plain dicts and lists."""
        return {name: plain(value) for name, value in self.items()}

    def _lines(self) -> Iterable[str]:
        said = dict.__repr__(self)
        if len(said) <= 2 * WIDTH:
            yield said
        else:
            yield f"{len(self)} entries: {', '.join(self)}"
            yield "print(_.table()) shows them"

    def _parts(self) -> Iterable[str | Table]:
        yield Table(("entry", "value"), tuple(_leaves(self)), texts=2)

    __repr__ = Displayed.__repr__


def plain(value: Any) -> Any:
    """``value`` as plain JSON; anything that is not data becomes the name of its type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Displayed):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(part) for name, part in _fields(value).items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [plain(part) for part in value]
    if _is_array(value):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, os.PathLike | torch.device | torch.dtype):
        return str(value)
    return getattr(value, "__name__", type(value).__name__)


def brief(value: Any, room: int = CELL) -> str:
    """``value`` on one line of at most ``room`` letters."""
    if isinstance(value, str):
        said = value
    elif isinstance(value, float):
        said = f"{value:.6g}"
    elif _is_array(value):
        said = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    elif isinstance(value, Mapping):
        said = "{" + _some((f"{name}: {brief(part)}" for name, part in value.items()), len(value)) + "}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        said = f"{type(value).__name__}({', '.join(f'{name}={_quoted(part)}' for name, part in _told(value).items())})"
    elif isinstance(value, list | tuple | set | frozenset | range):
        said = f"({{}}{',' * (len(value) == 1)})" if isinstance(value, tuple) else "[{}]"
        said = said.format(_some(map(_quoted, value), len(value)))
    elif value is None or isinstance(value, bool | int):
        said = str(value)
    else:
        said = str(plain(value))
    return _cut(printable(said, ""), room)


def printable(text: str, besides: str = "\n") -> str:
    """``text`` with ? for letters that cannot be printed and are not in ``besides``.

    Names come from files, and control characters in them would be carried out by a terminal.
    """
    return "".join(letter if letter.isprintable() or letter in besides else "?" for letter in text)


def percent(share: float | None, digits: int = 1) -> str:
    """A proportion as 12.3%; an empty string for None."""
    return "" if share is None else f"{100 * share:.{digits}f}%"


def _quoted(value: Any) -> str:
    return repr(_cut(value, CELL)) if isinstance(value, str) else brief(value)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 4]} ..."


def _some(items: Iterable[str], count: int) -> str:
    shown = [item for item, _ in zip(items, range(ITEMS), strict=False)]
    return ", ".join(shown) + (f", ... {count:,} in all" if count > ITEMS else "")


def _html(part: str | Table) -> str:
    if isinstance(part, Table):
        return part.html()
    lines = "\n".join(_safe(_cut(line, 2 * WIDTH)) for line in part.split("\n")[:ROWS])
    return f'<p style="white-space: pre-wrap">{lines}</p>'


def _safe(text: str) -> str:
    return html.escape(printable(text, ""))


def _is_array(value: Any) -> bool:
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype")


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _told(value: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    usual = {field.name: field.default for field in dataclasses.fields(value)}
    return {
        name: part for name, part in _fields(value).items() if part is not usual[name] and not _same(part, usual[name])
    }


def _same(value: Any, usual: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple) and type(value) is type(usual) and value == usual


def _leaves(entries: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every value with its dotted name; long lists are shortened."""
    for name, value in entries.items():
        if isinstance(value, Mapping) and value and len(value) <= 3 * ITEMS:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", brief(value, WIDTH // 2)
