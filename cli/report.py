"""``sresnet report``: one HTML page about a network, or about two side by side."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import shared
from .inputs import choose, find_images, find_network, timesteps_for, usual_data
from .notes import warn_left_out
from .output import check_output
from .say import begin, say

if TYPE_CHECKING:
    import s_resnet


@dataclass(frozen=True)
class Options(shared.Images):
    """What was asked of ``sresnet report``."""

    networks: tuple[Path, ...]
    output: Path
    timesteps: int | None
    batch_size: int
    memory: str | None
    device: str
    constants: Path | None
    force: bool


@click.command()
@click.argument("networks", metavar="NETWORK [NETWORK]", type=click.Path(path_type=Path), nargs=-1)
@shared.data("measure on")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write into.",
)
@shared.TIMESTEPS
@shared.limit(500)
@shared.CLASSES
@shared.BATCH_SIZE
@shared.MEMORY
@shared.DEVICE
@click.option(
    "--constants",
    metavar="FILE.toml",
    type=click.Path(path_type=Path),
    show_default="published ones for 45 nm",
    help="Energies per operation, in pJ.",
)
@shared.FORCE
@shared.DOWNLOAD
@shared.takes(Options)
def report(asked: Options) -> None:
    """Write an HTML page about a network, or about two side by side.

    NETWORK is a .snn file, by default the only one here. The page is DIR/index.html; its figures are in
    DIR/report.json.

    The page shows accuracy over time steps beside the network's own ANN, which layer loses what, shortcut scales,
    spikes and membranes, images that the two disagree on, operation counts and an energy estimate, settings and
    provenance. It is self-contained: one file that needs no network access. With two networks every chart and table
    shows both, on the same images. For a directly trained network, which has no ANN, it shows what the neurons do
    instead of what the layers lose.

    Needs matplotlib (pip install matplotlib).

    {DATA}
    Images that a network was calibrated on are left out.

    \b
    Examples:
      sresnet report resnet20.snn -o resnet20-report
      sresnet report resnet20.snn --data cifar10:/data --timesteps 64 --limit 2000 -o page
      sresnet report paper.snn phased.snn --data cifar10:/data -o comparison
      sresnet report resnet20.snn --constants my-chip.toml -o page
    """
    begin(" and ".join(map(str, asked.networks)) or "the network here")
    import s_resnet

    if len(asked.networks) > 2:
        raise click.UsageError(f"Got {len(asked.networks)} networks. Name one, or two to compare.")
    s_resnet.runtime.find_device(asked.device)
    constants = s_resnet.analysis.load_constants(asked.constants) if asked.constants else s_resnet.analysis.Constants()
    paths = [find_network(name, "report") for name in asked.networks or (None,)]
    for name in ("index.html", "report.json") if not asked.force else ():
        if os.path.exists(asked.output / name):
            check_output(asked.output / name)
    loaders: list[s_resnet.data.Loader] = []
    lines: list[str] = []

    def measured() -> Iterator[s_resnet.report.NetworkReport]:
        loaded = [s_resnet.load(path) for path in paths]
        images = replace(asked, data=asked.data or next(filter(None, map(usual_data, loaded)), None))
        steps = [asked.timesteps or timesteps_for(snn, path) for snn, path in zip(loaded, paths, strict=True)]
        loaded = [choose(snn, own) for snn, own in zip(loaded, steps, strict=True)]
        for snn, path in zip(loaded, paths, strict=True):
            loaders.append(find_images(snn, path, images, loaded).loader(asked.batch_size))
        for snn, path, name, loader, timesteps in zip(loaded, paths, _names(paths), loaders, steps, strict=True):
            settings = s_resnet.report.ReportSettings(
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                classes=tuple(loader.data.classes),
                constants=constants,
                progress=True,
            )
            found = s_resnet.report.measure(snn, loader, timesteps, settings, network=name, device=asked.device)
            yield found
            lines.append(_summary(found))

    with s_resnet.runtime.memory_limit(asked.memory):
        s_resnet.report.write_page(measured(), asked.output, _command())
    warn_left_out(*loaders)
    for line in lines:
        say(line)
    say(f"Page: {asked.output / 'index.html'}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the files, or their paths where two have the same name."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _command() -> str:
    """How to make the page again."""
    return shlex.join(["sresnet", *sys.argv[1:]])


def _summary(measured: s_resnet.report.NetworkReport) -> str:
    """Accuracy, steps and energy of one network, on one line."""
    ann, row = measured.report.ann, measured.report.snn[-1]
    rival = "the equal-bit ANN" if ann else "one dense pass through the same layers with equal bits"
    source = f"its ANN {100 * ann['top1']:.1f}%" if ann else f"trained for T = {measured.report.trained_for}"
    ratio = measured.energy.ratios["int8_total"] if measured.energy else math.inf
    estimate = f", energy {ratio:.2f} times that of {rival} (estimate)" if math.isfinite(ratio) else ""
    return (
        f"{measured.network}: top-1 {100 * row.top1:.1f}%, {source}, at "
        f"T = {row.timesteps}, {measured.end_to_end_steps} end-to-end steps{estimate}"
    )
