"""HTML from Python values: what is not marked as HTML is escaped, and what is opened is closed."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image
from torch import Tensor

from ..errors import printable

VOID = ("img", "meta", "br", "col")


class Html(str):
    """A text that is HTML already."""


def element(name: str, /, *children: str, **attributes: str | int) -> Html:
    """An element; children that are plain texts are escaped, as are attributes (``class_`` stands for ``class``)."""
    named = "".join(f' {key.strip("_").replace("_", "-")}="{text(str(value))}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{named}>")
    return Html(f"<{name}{named}>{joined(children)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Several parts as one."""
    return Html(between.join(text(part) for part in parts))


def text(part: str) -> str:
    """``part``, escaped unless it is HTML. What is no letter, as file names that are not UTF-8, is shown as a mark."""
    if isinstance(part, Html):
        return part
    return html.escape(printable(part))


def section(name: str, title: str, *children: str) -> Html:
    """A part of the page that can be linked to as ``#name``."""
    return element("section", element("h2", title), *children, id=name)


def paragraph(*children: str, kind: str = "") -> Html:
    return element("p", *children, class_=kind) if kind else element("p", *children)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str, texts: int = 1) -> Html:
    """A table that scrolls by itself where it is wider than the screen; the first ``texts`` columns are texts."""
    head = element("tr", *(element("th", title, scope="col", **_kind(i, texts)) for i, title in enumerate(titles)))
    body = []
    for row in rows:
        cells = (element("td", cell, **_kind(index, texts)) for index, cell in enumerate(row[1:], 1))
        body.append(element("tr", element("th", row[0], scope="row"), *cells))
    parts = (element("caption", caption), element("thead", head), element("tbody", *body))
    return element(
        "div",
        element("table", *parts),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def _kind(index: int, texts: int) -> dict[str, str]:
    return {"class_": "text"} if index < texts else {}


def details(summary: str, *children: str) -> Html:
    """What is shown on demand, and in print."""
    return element("details", element("summary", summary), *children)


def figure(drawing: bytes, alt: str, caption: str) -> Html:
    """A drawing in SVG with what it shows in words."""
    picture = element("img", src=_data("image/svg+xml", drawing), alt=alt)
    return element("figure", picture, element("figcaption", caption))


def photo(pixels: Tensor, alt: str) -> Html:
    """An image, uint8 ``[H, W, 3]``; small ones are shown with their pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    height, width = pixels.shape[:2]
    attributes: dict[str, str | int] = {"src": _data("image/png", file.getvalue()), "alt": alt}
    return element("img", **attributes, width=width, height=height, class_="small" if width < 100 else "large")


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
