"""The page: one HTML file, readable without a network and by someone who did not run it, with its figures as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..errors import InvalidData, SResNetError
from ..files import replacing
from ..runtime.display import Entries
from ..version import __version__
from . import budget, layers, provenance, results, spiking
from .charts import need_matplotlib
from .markup import Html, element, joined, paragraph
from .study import Study, compared

SCHEMA = 1
NAMES = ("index.html", "report.json")


def write_page(studies: Iterable[Study], folder: str | os.PathLike[str], command: str = "") -> Entries:
    """Write ``index.html`` and ``report.json`` of one network, or of two beside each other, into ``folder``.

    Folder and matplotlib are looked at first, so that a generator of studies is not run in vain; nothing is written
    before the last study is there.

    Args:
        studies: one or two, of networks with as many classes, on the same images.
        folder: made where it is not there. Other files in it stay.
        command: how to make the page again, for its readers.

    Returns:
        What report.json holds.

    Raises:
        BackendUnavailable: without matplotlib.
        InvalidData: no study or more than two, or two that do not compare.
        SResNetError: a folder or file that cannot be written.
    """
    need_matplotlib()
    place = Path(folder)
    with _writing(place):
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        with TemporaryFile(dir=there):
            pass
    found = list(studies)
    _check(found)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    entry: dict[str, Any] = {
        "schema": SCHEMA,
        "s_resnet": __version__,
        "created": created,
        "command": command,
        "networks": [part.to_dict() for part in found],
    }
    if len(found) > 1:
        first, second = (part.report.snn[-1].top1 for part in found)
        entry["top1_difference"], entry["top1_difference_interval"] = first - second, compared(*found)
    page = _page(found, command, created)
    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
    with replacing(place / NAMES[1]) as temporary:
        temporary.write_text(json.dumps(entry, indent=1, allow_nan=False) + "\n")
    with replacing(place / NAMES[0]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Entries(entry)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SResNetError(
            f"{place}: cannot be written, got {error.strerror}; expected a writable folder. Choose another one."
        ) from error


def _check(studies: list[Study]) -> None:
    if not 1 <= len(studies) <= 2:
        raise InvalidData(f"report: got {len(studies)} networks; expected one, or two to compare. Choose those.")
    images = {part.report.images for part in studies}
    classes = {len(part.classes) for part in studies if part.classes}
    if len(images) > 1 or len(classes) > 1:
        what = f"{sorted(classes)} classes" if len(classes) > 1 else f"{sorted(images)} images"
        raise InvalidData(f"report: got networks of {what}; expected the same of both. Compare like with like.")


def _page(studies: list[Study], command: str, created: str) -> Html:
    names = " and ".join(part.network or "network" for part in studies)
    converted = [part for part in studies if not part.trained]
    parts = {
        "accuracy": ("Accuracy", results.accuracy(studies)),
        "layers": ("Layers", layers.layers(studies)),
        **({"shortcuts": ("Shortcut scales", results.shortcut_scales(converted))} if converted else {}),
        "spikes": ("Spikes", spiking.spikes(studies)),
        **({"disagreements": ("Disagreements", spiking.disagreements(converted))} if converted else {}),
        "energy": ("Energy", budget.costs(studies)),
        "settings": ("Settings", provenance.settings(studies, command, created)),
    }
    links = (element("li", element("a", title, href=f"#{name}")) for name, (title, _) in parts.items())
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{names}: S-ResNet report"),
        element("style", Html(style)),
    )
    body = element(
        "body",
        element(
            "header",
            element("h1", names),
            paragraph(_lead(studies), kind="lead"),
            element("nav", element("ul", *links), aria_label="Sections"),
        ),
        element("main", results.headline(studies), *(part for _, part in parts.values())),
    )
    return joined((Html("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Html("\n")))


def _lead(studies: list[Study]) -> str:
    said = []
    for part in studies:
        arch = part.provenance.get("source", {}).get("arch")
        what = f"{arch} as a spiking network" if arch else "Spiking network"
        made = f"directly trained for T = {part.report.trained_for}" if part.trained else f"recipe {part.report.recipe}"
        run = "" if part.timesteps == part.report.trained_for else f", T = {part.timesteps}"
        said.append(f"{what}, {made}{run}")
    images = f"Measured on {studies[0].report.images:,} images"
    beside = {
        (False,): ", beside the ANN that it was converted from",
        (False, False): ", beside the ANNs that they were converted from",
    }
    return f"{'; '.join(said)}. {images}{beside.get(tuple(part.trained for part in studies), '')}."
