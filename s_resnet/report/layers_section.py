"""What each layer loses against the ANN, or what its neurons do where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..analysis.verification import LayerVerification, Verification
from ..runtime.display import Table
from . import charts
from .charts import Picture
from .format import percent
from .network_report import NetworkReport, Networks

Pairs = list[tuple[NetworkReport, LayerVerification]]
LOST = ("rate", "unevenness", "quantization", "clipping", "inherited", "own", "total", "dead", "saturated")
DONE = ("rate", "dead", "saturated", "dormant", "drift")


def pictures(networks: Networks) -> list[list[Picture]]:
    """Firing rates of all verified networks, and a picture of each one's errors or dormant neurons.

    In groups that stand beside each other.
    """
    found = [(net, net.verification) for net in networks if net.verification]
    errors = [error for _, one in found for layer in one.layers for error in (layer.errors or {}).values()]
    largest = max((error for error in errors if math.isfinite(error)), default=0.0) or 1.0
    rates = [_rates([net for net, _ in found])]
    each = [_picture(net, one, f"{net.network}. " if len(networks) > 1 else "", largest) for net, one in found]
    return [rates, each] if len(found) > 1 else [rates + each]


def _picture(net: NetworkReport, result: Verification, which: str, largest: float) -> Picture:
    if result.trained_for is not None:
        words = f"{which}Dormant neurons of each layer"
        return Picture(charts.dormant(net), f"{words}. {result.verdict}", f"{words}, share of neurons and images.")
    alt = f"{which}Errors of each layer by cause. {result.verdict}"
    caption = f"{which}Error by cause, root mean square; the line is the total."
    return Picture(charts.errors(net, largest), alt, caption)


def _rates(networks: Networks) -> Picture:
    every = [layer.rate for net in networks if net.verification for layer in net.verification.layers]
    words = f"Firing rate of each layer: {charts.emitted_unit(networks)} per neuron and step"
    return Picture(charts.rates(networks), f"{words}, from {min(every):.3f} to {max(every):.3f}.", f"{words}.")


def loss_table(networks: Networks) -> Table | None:
    """The layers of converted networks; None without one."""
    converted = [net for net in networks if net.verification and net.verification.trained_for is None]
    return _table(networks, converted, LOST)


def activity_table(networks: Networks) -> Table | None:
    """The layers of directly trained networks; None without one."""
    trained = [net for net in networks if net.verification and net.verification.trained_for is not None]
    return _table(networks, trained, DONE)


def _table(networks: Networks, shown: Networks, measures: tuple[str, ...]) -> Table | None:
    several = len(networks) > 1
    lead = ("layer", *["network"] * several)
    rows = tuple((layer.name, *[net.network] * several, *_cells(layer)) for net, layer in _side_by_side(shown))
    return Table((*lead, *measures), rows, texts=len(lead)) if rows else None


def _cells(layer: LayerVerification) -> Iterator[str]:
    of = len(layer.channels["rate"])
    dead, saturated = f"{len(layer.dead)} of {of}", f"{len(layer.saturated)} of {of}"
    yield f"{layer.rate:.4f}"
    if layer.errors is None:
        yield from (dead, saturated, percent(layer.dormant), percent(layer.drift))
        return
    errors = [percent(value) for value in layer.errors.values()]
    if layer.differential:
        errors[0] = "in quantization"
    yield from (*errors, dead, saturated)


def _side_by_side(networks: Networks) -> Pairs:
    """The layers of all networks; those of one name beside each other where all have the same."""
    lists = [[(net, layer) for layer in net.verification.layers] for net in networks if net.verification]
    if charts.same_layers(networks):
        return [pair for group in zip(*lists, strict=True) for pair in group]
    return [pair for part in lists for pair in part]
