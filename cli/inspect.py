"""``sresnet inspect``: what is in a network.snn."""

from __future__ import annotations

from pathlib import Path

import click

from . import shared
from .inputs import find_network
from .say import begin, say


@click.command()
@shared.NETWORK
def inspect(network: Path | None) -> None:
    """Show the layers, thresholds and provenance of a network.

    NETWORK is a .snn file, by default the only one here.

    For a converted network the scales of its shortcuts are listed as well; for a directly trained one the decay and
    reset of its neurons and the surrogate gradient that they were trained with.

    \b
    Examples:
      sresnet inspect
      sresnet inspect resnet20.snn
    """
    begin(network or "the network here")
    import s_resnet

    path = find_network(network, "inspect")
    say(f"{path}: {s_resnet.load(path).table()}")
