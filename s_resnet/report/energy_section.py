"""Operation counts and energy."""

from __future__ import annotations

from ..analysis.cost.energy import Energy
from ..analysis.cost.operations import Operations
from ..runtime.display import Table
from . import charts
from .charts import Picture
from .format import count, ratio
from .network_report import NetworkReport, Networks

DENSE = " A directly trained network has none: dense is one pass through its own layers, as an ANN would make it."


def counted(networks: Networks) -> list[NetworkReport]:
    """The networks whose operations could be counted."""
    return [net for net in networks if net.operations and net.energy]


def _figures(net: NetworkReport) -> tuple[Operations, Energy]:
    assert net.operations is not None and net.energy is not None
    return net.operations, net.energy


def reading(net: NetworkReport) -> str:
    """What the estimate says, in a sentence."""
    operations, energy = _figures(net)
    return (
        f"{count(operations.spikes_per_synapse)} accumulations for each MAC of {net.rival.said}. With memory the "
        f"energy is {ratio(energy.ratios['int8_total'])} that of {net.rival.said} of equal bits, "
        f"{ratio(energy.ratios['float32_total'])} in float32."
    )


def picture(networks: Networks) -> Picture:
    """Energy per image by network."""
    said = " ".join(f"{net.network}: {reading(net)}" for net in networks)
    dense = DENSE if rivals(networks) != "ANN" else ""
    return Picture(
        charts.energies(networks),
        f"Estimated energy per image by network. {said}",
        f"Energy per image, estimate. The fair rival of a spiking network is the ANN quantized to equal bits.{dense}",
    )


def rivals(networks: Networks) -> str:
    """What spiking networks are compared with, all together."""
    return " or ".join(sorted({net.rival.title for net in networks}))


def ratio_table(networks: Networks) -> Table:
    """Energy of each network over that of its rival."""
    several, rows = len(networks) > 1, []
    for net in networks:
        ratios = _figures(net)[1].ratios
        kinds = (("int8", f"8-bit weights, {net.rival.title} of equal bits"), ("float32", "float32, both"))
        for kind, name in kinds:
            shares = (ratio(ratios[f"{kind}_{part}"]) for part in ("arithmetic", "total", "scattered"))
            rows.append((*[net.network] * several, name, *shares))
    lead = (*["file"] * several, "number format")
    return Table((*lead, "arithmetic alone", "with memory", "sums in memory too"), tuple(rows), texts=len(lead))


def energy_table(networks: Networks) -> Table:
    """Energy per image in microjoules, part by part."""
    several, rows = len(networks) > 1, []
    for net in networks:
        for name, cost in charts.costs(net):
            found = [1e6 * part for part in (cost.synapses, cost.neurons, cost.memory, cost.total, cost.scatter)]
            parts = list(map(count, found))
            if name == charts.LOIHI:
                parts[2] = parts[4] = "included"
            rows.append((*[net.network] * several, name, *parts))
    lead = (*["file"] * several, "network")
    return Table((*lead, "synapses", "neurons", "memory", "total", "sums in memory"), tuple(rows), texts=len(lead))


def operation_table(networks: Networks) -> Table:
    """Operations per image, a column for each network."""
    every = [_figures(net)[0] for net in networks]
    totals = [operations.total for operations in every]
    kinds: dict[str, list[float]] = {
        "spikes": [total.spikes for total in totals],
        "accumulations (AC)": [total.acs for total in totals],
        "multiply-accumulates (MAC)": [total.macs for total in totals],
        "neuron updates": [total.updates for total in totals],
        "additions of constants": [total.additions for total in totals],
        f"MACs of the {rivals(networks)}": [total.ann.macs for total in totals],
        f"AC per MAC of the {rivals(networks)}": [operations.spikes_per_synapse for operations in every],
    }
    rows = tuple((title, *map(count, values)) for title, values in kinds.items())
    return Table(("operation", *([net.network for net in networks] if len(networks) > 1 else ["per image"])), rows)


def node_table(net: NetworkReport) -> Table:
    """Operations per image, node by node."""
    rows = []
    for layer in _figures(net)[0].layers:
        counts = (layer.spikes, layer.acs, layer.macs, layer.updates, layer.additions, layer.ann.macs)
        rows.append((layer.name, layer.op, *(f"{value:,.0f}" for value in counts)))
    titles = ("node", "kind", "spikes", "AC", "MAC", "updates", "additions", f"{net.rival.short} MAC")
    return Table(titles, tuple(rows), texts=2)


def constants_table(net: NetworkReport) -> Table:
    """The energies per operation."""
    constants = vars(_figures(net)[1].constants)
    entries = ((name.replace("_", " "), f"{value:g}") for name, value in constants.items() if name != "name")
    return Table(("operation", "pJ"), tuple(entries))
