"""``sresnet inspect``: what is in a network.snn."""

from __future__ import annotations

import click

from .begin import begin
from .networks import find_network
from .options import NETWORK
from .say import say


@click.command()
@NETWORK
def inspect(network: str | None) -> None:
    """Show the graph of NETWORK.snn (by default the only one here): thresholds, shortcut scales, recipe and provenance.

    Of a directly trained network, in place of scales, what its neurons are: thresholds, decay, reset and the surrogate
    gradient that it was trained with.
    """
    begin(network or "the network here")
    import s_resnet

    path = find_network(network, "inspect")
    say(f"{path}: {s_resnet.load(path).table()}")
