"""``sresnet verify``: layer by layer, what a network loses against its own ANN, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .convert import check_output, warn_unreadable
from .evaluate import image_loader, timesteps_for
from .options import BATCH_SIZE, DEVICE, DOWNLOAD

COLUMNS = ("layer", "rate", "uneven", "quantized", "clipped", "inherited", "own", "total", "unsettled", "dead",
           "saturated")  # fmt: skip


@click.command()
@click.argument("network", type=click.Path())
@click.option(
    "--data",
    metavar="DATA",
    help="Images to verify on; by default the held-out part of what was calibrated on.",
)
@click.option(
    "--timesteps", metavar="T", type=click.IntRange(1), help="By default the T that the network was converted for."
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Only N images, a seeded random choice over all classes.",
)
@BATCH_SIZE
@DEVICE
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, readable=False),
    help="Write the figures there as well, with those of every channel.",
)
@DOWNLOAD
def verify(
    network: str,
    data: str | None,
    timesteps: int | None,
    limit: int,
    batch_size: int,
    device: str,
    json_file: str | None,
    download: bool,
) -> None:
    """Say which layer of NETWORK.snn loses what against its own ANN, and which setting would help.

    Both run on the same images, side by side. The distance between a layer's mean output and the ANN's activation is
    split into four parts that sum to it:

    \b
    uneven      its spikes come too early or too late: the same charge, evenly spread, would give another count
    quantized   T steps know only so many values
    clipped     the activation is more than a spike at every step can say
    inherited   the layers before are wrong already; what the layer adds itself is its own error

    Errors are root mean squares relative to the ANN's activations: 50 % of error is a quarter of the signal's power,
    and a layer that has as much counts as broken. Dead channels never fire although the ANN is active there; saturated
    ones are stuck at the largest count in more than 1 % of their neurons and images.

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.
    Images it was calibrated on are left out.

    \b
    Examples:
      sresnet verify resnet20.snn
      sresnet verify resnet20.snn --timesteps 16 --data cifar10:/data --json layers.json
      sresnet verify resnet50.snn --data imagenet:/data --limit 64 --batch-size 8    (less memory)
    """
    import s_resnet

    path = Path(network)
    if json_file:
        check_output(Path(json_file), path)
    snn = s_resnet.load(path)
    timesteps = timesteps or timesteps_for(snn, path)
    loader = image_loader(snn, path, data, limit, batch_size, download)
    result = s_resnet.verify(snn.to(s_resnet.find_device(device)), loader, timesteps, network=path.name, progress=True)
    warn_unreadable(loader.unreadable)
    click.echo("\n".join((_header(result), "", *_rows(result), "", *_conclusions(result))))
    if json_file:
        result.save(json_file)


def _header(result: Any) -> str:
    return f"{result.network}   recipe {result.recipe}   T = {result.timesteps}   {result.images} images"


def _rows(result: Any) -> list[str]:
    """The table: one line per layer."""
    width = max(len(name) for name in (COLUMNS[0], *(layer.name for layer in result.layers)))
    lines = [COLUMNS]
    for layer in result.layers:
        errors = [_percent(share) for share in layer.errors.values()]
        if layer.differential:
            errors[0] = "in next"
        few = [f"{len(found)}/{len(layer.channels['rate'])}" for found in (layer.dead, layer.saturated)]
        lines.append((layer.name, f"{layer.rate:.4f}", *errors, _percent(layer.unsettled), *few))
    return ["  ".join((line[0].ljust(width), *(cell.rjust(9) for cell in line[1:]))) for line in lines]


def _conclusions(result: Any) -> list[str]:
    """What the answers are worth, the verdict and the advice."""
    accuracy = "".join(f"   top-1 {name.upper()} {_percent(share)}" for name, share in result.top1.items())
    logits = f"logits: error {_percent(result.logit_error)}   agreement {_percent(result.agreement)}{accuracy}"
    return [logits, "", result.verdict, result.advice]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
