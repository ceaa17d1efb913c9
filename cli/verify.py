"""``sresnet verify``: layer by layer, what a network loses against its own ANN, and why; or what its neurons do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .begin import begin
from .checks import warn_left_out
from .evaluate import Images, image_loader
from .networks import find_network, timesteps_for
from .options import BATCH_SIZE, CLASSES, DEVICE, DOWNLOAD, FORCE, NETWORK, TIMESTEPS
from .output import check_output
from .say import say

COLUMNS = ("layer", "rate", "uneven", "quantized", "clipped", "inherited", "own", "total", "unsettled", "dead",
           "saturated")  # fmt: skip
TRAINED = ("layer", "rate", "dead", "saturated", "dormant")


@click.command()
@NETWORK
@click.option(
    "--data",
    metavar="DATA",
    help="Images to verify on; by default the held-out part of what was calibrated on.",
)
@TIMESTEPS
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Only N images, a seeded random choice over all classes.",
)
@CLASSES
@BATCH_SIZE
@DEVICE
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, readable=False),
    help="Write the figures there as well, with those of every channel.",
)
@FORCE
@DOWNLOAD
def verify(
    network: str | None,
    data: str | None,
    timesteps: int | None,
    limit: int,
    classes: str | None,
    batch_size: int,
    device: str,
    json_file: str | None,
    force: bool,
    download: bool,
) -> None:
    """Say which layer of NETWORK.snn (by default the only one here) loses what against its ANN, and what would help.

    Both run on the same images, side by side. The distance between a layer's mean output and the ANN's activation is
    split into four parts, which sum to it neuron by neuron:

    \b
    uneven      its spikes come too early or too late: the same charge, evenly spread, would give another count
    quantized   T steps know only so many values
    clipped     the activation is more than a spike at every step can say
    inherited   the layers before are wrong already; what the layer adds itself is its own error

    Errors are root mean squares relative to the ANN's activations, which do not add up: of parts of opposite sign the
    total is smaller. 50 % of error is a quarter of the signal's power, and a layer that has as much counts as broken.
    own is the total without what was inherited; unsettled the share of neurons and images that hold a spike's charge or
    more, or less than none, after the last step. Dead channels never fire although the ANN is active there; saturated
    ones are stuck at the largest count in more than 1 % of their neurons and images.

    A directly trained network has no ANN and so no errors. Its dead channels never fire; saturated ones fire all they
    can at every step; dormant neurons have no membrane in the window of the surrogate gradient at any step, so that
    they learn nothing from the image. At another T than it was trained for, drift is how far the mean output is from
    that at the T it was trained for, relative to it.

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
    begin(network or "the network here")
    import s_resnet

    path = find_network(network, "verify")
    if json_file:
        check_output(Path(json_file), path, force=force)
    snn = s_resnet.load(path)
    timesteps = timesteps or timesteps_for(snn, path)
    loader = image_loader(snn, path, Images(data, limit, batch_size, download, classes))
    result = s_resnet.verify(snn.to(s_resnet.find_device(device)), loader, timesteps, network=path.name, progress=True)
    try:
        if json_file:
            result.save(json_file)
    finally:  # where the file cannot be written, the figures are on the screen at least
        warn_left_out(loader)
        if (fitted := s_resnet.fitted_for(snn)) not in (None, timesteps):
            say(f"Note: the network was fitted to T = {fitted}, not to {timesteps}: what it loses here says little of it.")
        rows = _trained_rows(result) if snn.trained else _rows(result)
        say("\n".join((_header(result), "", *rows, "", *_conclusions(result))))


def _header(result: Any) -> str:
    import s_resnet

    trained = f" (trained for {result.trained_for})" if hasattr(result, "trained_for") else ""
    data = s_resnet.described(result.data, result.images)
    named = f"{result.network}   recipe {result.recipe}   T = {result.timesteps}{trained}   {result.images} images"
    return f"{named}\ndata: {data}"


def _rows(result: Any) -> list[str]:
    """The table: one line per layer."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for layer in result.layers:
        errors = [_percent(share) for share in layer.errors.values()]
        if layer.differential:
            errors[0] = "in next"
        lines.append((layer.name, f"{layer.rate:.4f}", *errors, _percent(layer.unsettled), *_few(layer)))
    return _aligned(lines)


def _trained_rows(result: Any) -> list[str]:
    """The table of a directly trained network; drift where T is not the one it was trained for."""
    moved = result.timesteps != result.trained_for
    lines: list[tuple[str, ...]] = [(*TRAINED, "drift") if moved else TRAINED]
    for layer in result.layers:
        drift = (_percent(layer.drift),) if moved else ()
        lines.append((layer.name, f"{layer.rate:.4f}", *_few(layer), _percent(layer.dormant), *drift))
    return _aligned(lines)


def _few(layer: Any) -> list[str]:
    """How many channels are dead and saturated, of how many."""
    return [f"{len(found)}/{len(layer.channels['rate'])}" for found in (layer.dead, layer.saturated)]


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    width = max(len(line[0]) for line in lines)
    return ["  ".join((line[0].ljust(width), *(cell.rjust(9) for cell in line[1:]))) for line in lines]


def _conclusions(result: Any) -> list[str]:
    """What the answers are worth, the verdict and the advice."""
    accuracy = "".join(f"   top-1 {name.upper()} {_percent(share)}" for name, share in result.top1.items())
    logits = f"logits: error {_percent(result.logit_error)}   agreement {_percent(result.agreement)}{accuracy}"
    if hasattr(result, "trained_for") and result.timesteps == result.trained_for:
        logits = accuracy.strip()  # there is nothing else to compare with
    return [logits, "", result.verdict, result.advice]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
