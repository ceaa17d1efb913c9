"""``sresnet verify``: layer by layer, what a network loses against its own ANN and why; or what its neurons do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from . import shared
from .inputs import choose, find_images, find_network, timesteps_for
from .notes import warn_left_out
from .output import check_output
from .say import begin, say
from .words import spoken


@dataclass(frozen=True)
class Options(shared.Images):
    """What was asked of ``sresnet verify``."""

    network: Path | None
    timesteps: int | None
    batch_size: int
    memory: str | None
    device: str
    json_file: Path | None
    force: bool


@click.command()
@shared.NETWORK
@shared.data("verify on")
@shared.TIMESTEPS
@shared.limit(256)
@shared.CLASSES
@shared.BATCH_SIZE
@shared.MEMORY
@shared.DEVICE
@shared.json_file("Also write the results to FILE as JSON, including those of every channel.")
@shared.FORCE
@shared.DOWNLOAD
@shared.takes(Options)
def verify(asked: Options) -> None:
    """Show which layer of a network loses what, and what would help.

    NETWORK is a .snn file, by default the only one here.

    The network and its ANN run on the same images, side by side. The distance between a layer's mean output and the
    ANN's activation is split into four parts, which sum to it neuron by neuron:

    \b
    uneven      its spikes come too early or too late: the same charge, evenly spread, would give another count
    quantized   T steps can represent only so many values
    clipped     the activation is more than a spike at every step can represent
    inherited   the layers before it are already wrong; what the layer adds itself is its own error

    Errors are root mean squares relative to the ANN's activations. They do not add up: where parts have opposite signs,
    the total is smaller. An error of 50% is a quarter of the signal's power, and a layer with that much counts as
    broken. own is the total without the inherited part. unsettled is the share of neurons and images that after the
    last step still hold a spike's charge or more, or less than none. Dead channels never fire although the ANN is
    active there. Saturated channels are stuck at the largest count in more than 1% of their neurons and images.

    A directly trained network has no ANN and so no errors. Its dead channels never fire; saturated ones fire as much as
    they can at every step. Dormant neurons have no membrane within the window of the surrogate gradient at any step, so
    they learn nothing from the image. At another T than it was trained for, drift is how far the mean output is from
    the one at the T it was trained for, relative to that.

    {DATA}
    Images that it was calibrated on are left out.

    \b
    Examples:
      sresnet verify resnet20.snn
      sresnet verify resnet20.snn --timesteps 16 --data cifar10:/data --json layers.json
      sresnet verify resnet50.snn --data imagenet:/data --limit 64 --memory 4GB
    """
    begin(asked.network or "the network here")
    import s_resnet

    path = find_network(asked.network, "verify")
    if asked.json_file:
        check_output(asked.json_file, path, force=asked.force)
    snn = s_resnet.load(path)
    timesteps = asked.timesteps or timesteps_for(snn, path)
    snn = choose(snn, timesteps)
    loader = find_images(snn, path, asked).loader(asked.batch_size)
    device = s_resnet.runtime.find_device(asked.device)
    with s_resnet.runtime.memory_limit(asked.memory):
        result = s_resnet.verify(snn.to(device), loader, timesteps, network=path.name, progress=True)
    try:
        if asked.json_file:
            result.save(asked.json_file)
    finally:  # the results are shown even if the file cannot be written
        warn_left_out(loader)
        if (fitted := s_resnet.analysis.fitted_for(snn)) not in (None, timesteps):
            said = f"the network was fitted to T = {fitted}, not to {timesteps}"
            say(f"Note: {said}: its losses here say little about it.")
        say(spoken(result.table()))
