"""``sresnet verify``: layer by layer, what a network loses against its own ANN, and why; or what its neurons do."""

from __future__ import annotations

from pathlib import Path

import click

from .begin import begin
from .checks import warn_left_out
from .evaluate import Images, image_loader
from .networks import find_network, timesteps_for
from .options import BATCH_SIZE, CLASSES, DEVICE, DOWNLOAD, FORCE, NETWORK, TIMESTEPS
from .output import check_output
from .say import say
from .words import spoken


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
    result = s_resnet.verify(
        snn.to(s_resnet.runtime.find_device(device)), loader, timesteps, network=path.name, progress=True
    )
    try:
        if json_file:
            result.save(json_file)
    finally:  # where the file cannot be written, the figures are on the screen at least
        warn_left_out(loader)
        if (fitted := s_resnet.analysis.fitted_for(snn)) not in (None, timesteps):
            told = f"the network was fitted to T = {fitted}, not to {timesteps}"
            say(f"Note: {told}: what it loses here says little of it.")
        say(spoken(result.table()))
