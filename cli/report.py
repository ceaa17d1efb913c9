"""``sresnet report``: one HTML page about a network, or about two beside each other."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .begin import begin
from .checks import warn_left_out
from .evaluate import Images, image_loader, usual_data
from .networks import find_network, timesteps_for
from .options import BATCH_SIZE, CLASSES, DEVICE, DOWNLOAD, FORCE, TIMESTEPS
from .output import check_output
from .say import say


@click.command()
@click.argument("networks", metavar="NETWORK [NETWORK]", type=click.Path(), nargs=-1)
@click.option(
    "--data",
    metavar="DATA",
    help="Images to measure on; by default the held-out part of what was calibrated on.",
)
@click.option("-o", "--output", metavar="DIR", type=click.Path(file_okay=False), required=True, help="Where to write.")
@TIMESTEPS
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Only N images, a seeded random choice over all classes.",
)
@CLASSES
@BATCH_SIZE
@DEVICE
@click.option(
    "--constants",
    metavar="FILE.toml",
    type=click.Path(),
    help="Energies per operation, in pJ, in place of the published ones for 45 nm.",
)
@FORCE
@DOWNLOAD
def report(
    networks: tuple[str, ...],
    data: str | None,
    output: str,
    timesteps: int | None,
    limit: int,
    classes: str | None,
    batch_size: int,
    device: str,
    constants: str | None,
    force: bool,
    download: bool,
) -> None:
    """Write a page on NETWORK.snn (by default the only one here): DIR/index.html, and its figures as DIR/report.json.

    Accuracy over time steps beside the network's own ANN, which layer loses what, shortcut scales, spikes and
    membranes, images that the two disagree on, operation counts and an energy estimate, settings and provenance. The
    page is one file and needs no network access. With two networks every chart and table shows both, on the same
    images. A directly trained network has no ANN: what its neurons do is in the place of what layers lose.

    Needs matplotlib (pip install matplotlib).

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.
    Images that were calibrated on are left out.

    \b
    Examples:
      sresnet report resnet20.snn -o resnet20-report
      sresnet report resnet20.snn --data cifar10:/data --timesteps 64 --limit 2000 -o page
      sresnet report paper.snn phased.snn --data cifar10:/data -o comparison
      sresnet report resnet20.snn --constants my-chip.toml -o page
    """
    begin(" and ".join(networks) or "the network here")
    import s_resnet

    if len(networks) > 2:
        raise click.UsageError(f"Got {len(networks)} networks. Name one, or two to compare.")
    s_resnet.runtime.find_device(device)
    energies = s_resnet.analysis.load_constants(constants) if constants else s_resnet.analysis.Constants()
    paths = [find_network(name, "report") for name in networks or (None,)]
    for name in ("index.html", "report.json") if not force else ():
        if os.path.exists(Path(output) / name):
            check_output(Path(output) / name)
    loaded = [s_resnet.load(path) for path in paths]
    names = _names(paths)
    spec = data or next((known for snn in loaded if (known := usual_data(snn))), None)
    used: list[Any] = []
    asked = Images(spec, limit, batch_size, download, classes)

    def studies() -> Iterator[Any]:
        steps = [timesteps or timesteps_for(snn, path) for snn, path in zip(loaded, paths, strict=True)]
        loaders = [
            image_loader(snn, path, asked, besides=tuple(loaded)) for snn, path in zip(loaded, paths, strict=True)
        ]
        for snn, path, name, loader, wanted in zip(loaded, paths, names, loaders, steps, strict=True):
            yield s_resnet.report.study(
                *(snn, loader, wanted),
                network=name,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                classes=tuple(loader.data.classes),
                constants=energies,
                device=device,
                progress=True,
            )
            used.append(loader)

    written = s_resnet.report.write_page(studies(), output, _command())
    warn_left_out(*used)
    for entry in written["networks"]:
        say(_summary(entry))
    say(f"Page: {Path(output) / 'index.html'}")


def _names(paths: list[Path]) -> list[str]:
    """The files' names, or as they were given where two have the same."""
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _command() -> str:
    """How to make the page again."""
    return shlex.join(["sresnet", *sys.argv[1:]])


def _summary(entry: dict[str, Any]) -> str:
    row, ann = entry["evaluation"]["snn"][-1], entry["evaluation"]["ann"]
    rival = "equal-bit ANN" if ann else "same layers in one dense pass of equal bits"
    source = f"its ANN {100 * ann['top1']:.1f}%" if ann else f"trained for T = {entry['evaluation']['trained_for']}"
    energy = entry["energy"]
    ratio = energy and energy["ratios"]["int8_total"]
    estimate = "" if ratio is None else f", energy {ratio:.2f} x of the {rival} (estimate)"
    return (
        f"{entry['network']}: top-1 {100 * row['top1']:.1f}%, {source}, at "
        f"T = {row['timesteps']}, {entry['end_to_end_steps']} end-to-end steps{estimate}"
    )
