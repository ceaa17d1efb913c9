"""``sresnet inspect``: what is in a network.snn."""

from __future__ import annotations

import click

from .say import say


@click.command()
@click.argument("network", type=click.Path())
def inspect(network: str) -> None:
    """Show the graph of NETWORK.snn: thresholds, shortcut scales, recipe and provenance.

    Of a directly trained network, in place of scales, what its neurons are: thresholds, decay, reset and the surrogate
    gradient that it was trained with.
    """
    import s_resnet

    say(f"{network}: {s_resnet.load(network).table()}")
