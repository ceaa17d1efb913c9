"""The page: one HTML file, readable without a network and by someone who did not run it, with its figures as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from ..data.arguments import check_kind
from ..errors import InvalidData, SResNetError, message, printable
from ..files import replacing, save_json
from ..runtime.display import Entries
from ..version import __version__
from . import accuracy_section, energy_section, layers_section, settings_section, spikes_section
from .charts import COLORS, need_matplotlib
from .format import these
from .network_report import NetworkReport, Networks, compared

if TYPE_CHECKING:
    import jinja2

SCHEMA = 1
NAMES = ("index.html", "report.json")


def write_page(networks: Iterable[NetworkReport], folder: str | os.PathLike[str], command: str = "") -> Entries:
    """Write ``index.html`` and ``report.json`` of one network, or of two beside each other, into ``folder``.

    Folder and matplotlib are checked first, so that a generator of reports is not run in vain; nothing is written
    before the last report is complete.

    Args:
        networks: one or two, with as many classes, on the same images.
        folder: created if necessary. Other files in it stay.
        command: how to make the page again, for its readers.

    Returns:
        The content of report.json.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InvalidData: there is no network, there are more than two, or the two cannot be compared.
        SResNetError: a folder or file cannot be written.
    """
    need_matplotlib()
    place = Path(folder)
    with _writing(place):
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        with TemporaryFile(dir=there):
            pass
    found = list(networks)
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
    save_json(place / NAMES[1], entry)
    with replacing(place / NAMES[0]) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Entries(entry)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        got, remedy = str(error.strerror), "Choose another folder"
        raise SResNetError(message(str(place), "cannot be written", got, "a writable folder", remedy)) from error


def _check(networks: Networks) -> None:
    for part in networks:
        check_kind(part, NetworkReport, "report", "network", "Call s_resnet.report.measure first")
    if not 1 <= len(networks) <= 2:
        got = f"{len(networks)} networks"
        raise InvalidData(message("report", "", got, "one, or two to compare", "Pass a list of one or two"))
    images = {part.report.images for part in networks}
    classes = {len(part.classes) for part in networks if part.classes}
    if len(images) > 1 or len(classes) > 1:
        what = f"{sorted(classes)} classes" if len(classes) > 1 else f"{sorted(images)} images"
        remedy = "Measure both in the same way"
        raise InvalidData(message("report", "", f"networks of {what}", "the same of both", remedy))


def environment() -> jinja2.Environment:
    """The environment of the templates: values are escaped, unprintable characters become marks, unknown names fail."""
    import jinja2  # late, as few who import the package write a page

    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {"these": these, "thousands": "{:,}".format}
    return made


def _shown(value: object) -> object:
    """What a template shows of a value; what is HTML already stays."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _page(networks: Networks, command: str, created: str) -> str:
    from markupsafe import Markup

    style = resources.files(__package__).joinpath("templates", "page.css").read_text(encoding="utf-8")
    sections = {
        "accuracy": accuracy_section,
        "layers": layers_section,
        "spikes": spikes_section,
        "energy": energy_section,
        "settings": settings_section,
    }
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            sections,
            networks=networks,
            converted=[net for net in networks if not net.trained],
            names=" and ".join(net.network or "network" for net in networks),
            lead=_lead(networks),
            style=Markup(style),
            colors=COLORS,
            command=command,
            created=created,
        )
    )


def _lead(networks: Networks) -> str:
    said = []
    for part in networks:
        arch = part.provenance.source.arch
        what = f"{arch} as a spiking network" if arch else "Spiking network"
        made = f"directly trained for T = {part.report.trained_for}" if part.trained else f"recipe {part.report.recipe}"
        run = "" if part.timesteps == part.report.trained_for else f", T = {part.timesteps}"
        said.append(f"{what}, {made}{run}")
    images = f"Measured on {networks[0].report.images:,} images"
    beside = {
        (False,): ", beside the ANN that it was converted from",
        (False, False): ", beside the ANNs that they were converted from",
    }
    return f"{'; '.join(said)}. {images}{beside.get(tuple(part.trained for part in networks), '')}."
