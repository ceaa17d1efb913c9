"""The section on operations and energy."""

from __future__ import annotations

from collections.abc import Sequence

from . import charts
from .markup import Html, details, element, figure, paragraph, section, table
from .study import Study
from .words import count, missing, ratio, these, whose

Studies = Sequence[Study]
DENSE = " A directly trained network has none: dense is one pass through its own layers, as an ANN would make it."


def costs(studies: Studies) -> Html:
    """Operation counts and energy."""
    found = [study for study in studies if study.operations and study.energy]
    words = [missing(study, "operations", studies) for study in studies if study not in found]
    if not found:
        return section("energy", "Operations and energy", *words)
    first, several = found[0], len(studies) > 1
    assert first.operations is not None and first.energy is not None
    constants = first.energy.constants
    entries = [(name.replace("_", " "), f"{value:g}") for name, value in vars(constants).items() if name != "name"]
    return section(
        "energy",
        "Operations and energy",
        *words,
        paragraph(
            element("strong", "Energies are estimates. "),
            "Operations are counted exactly, spike by spike with their true fan-out; energies are these counts times "
            f"energies per operation ({constants.name}). Nothing was measured on a chip.",
        ),
        *(paragraph(whose(study, studies), _reading(study)) for study in found),
        figure(
            charts.energies(found),
            "Estimated energy per image by network. "
            + " ".join(f"{study.network}: {_reading(study)}" for study in found),
            "Energy per image, estimate. The fair rival of a spiking network is the ANN quantized to equal bits."
            + (DENSE if any(study.trained for study in found) else ""),
        ),
        _ratios(found, several),
        _energies(found, several),
        _operations(found, several),
        *(_nodes(study, several) for study in found),
        details(
            "Energies per operation",
            table(("operation", "pJ"), entries, f"{constants.name}; of memories for an access of 64 bits"),
        ),
        paragraph(
            f"Means per image, over {these(first.operations.images, studies)}. 8/n-bit: weights of 8 bits and "
            "activations of n, as many as a neuron can say in T steps. Memory: all that is moved, without reuse; sums "
            "are formed in registers. Sums in memory: what it costs besides where each event reads and writes one. "
            "Static power, clocks, routing and the host are left out.",
            kind="note",
        ),
    )


def _reading(study: Study) -> str:
    """What the estimate says, in a sentence."""
    assert study.energy is not None and study.operations is not None
    ratios, rival = study.energy.ratios, "one dense pass" if study.trained else "the ANN"
    return (
        f"{count(study.operations.spikes_per_synapse)} accumulations for each MAC of {rival}. With memory the energy "
        f"is {ratio(ratios['int8_total'])} that of {rival} of equal bits, {ratio(ratios['float32_total'])} in float32."
    )


def _ratios(studies: Studies, several: bool) -> Html:
    rows = []
    for study in studies:
        assert study.energy is not None
        ratios, rival = study.energy.ratios, "dense pass" if study.trained else "ANN"
        for kind, name in (("int8", f"8-bit weights, {rival} of equal bits"), ("float32", "float32, both")):
            shares = (ratio(ratios[f"{kind}_{part}"]) for part in ("arithmetic", "total", "scattered"))
            rows.append([*[study.network] * several, name, *shares])
    lead = ["file"] * several + ["number format"]
    titles = (*lead, "arithmetic alone", "with memory", "sums in memory too")
    return table(titles, rows, f"Energy, SNN over {_rival(studies)} (estimate; below 1 the SNN saves)", len(lead))


def _rival(studies: Studies) -> str:
    """What spiking networks are compared with."""
    trained = {study.trained for study in studies}
    return "ANN" if trained == {False} else "dense pass" if trained == {True} else "ANN or dense pass"


def _energies(studies: Studies, several: bool) -> Html:
    rows = []
    for study in studies:
        for name, cost in charts.costs(study):
            found = [1e6 * part for part in (cost.synapses, cost.neurons, cost.memory, cost.total, cost.scatter)]
            parts = list(map(count, found))
            if name == charts.LOIHI:
                parts[2] = parts[4] = "included"
            rows.append([*[study.network] * several, name, *parts])
    lead = ["file"] * several + ["network"]
    titles = (*lead, "synapses", "neurons", "memory", "total", "sums in memory")
    return table(titles, rows, "Energy per image in µJ, estimate", len(lead))


def _operations(studies: Studies, several: bool) -> Html:
    totals = [(study.operations, study.operations.total) for study in studies if study.operations]
    kinds: dict[str, list[float]] = {
        "spikes": [total.spikes for _, total in totals],
        "accumulations (AC)": [total.acs for _, total in totals],
        "multiply-accumulates (MAC)": [total.macs for _, total in totals],
        "neuron updates": [total.updates for _, total in totals],
        "additions of constants": [total.additions for _, total in totals],
        f"MACs of the {_rival(studies)}": [total.ann.macs for _, total in totals],
        f"AC per MAC of the {_rival(studies)}": [counted.spikes_per_synapse for counted, _ in totals],
    }
    rows = [[title, *map(count, values)] for title, values in kinds.items()]
    names = [study.network for study in studies] if several else ["per image"]
    return table(("operation", *names), rows, "Operations per image")


def _nodes(study: Study, several: bool) -> Html:
    assert study.operations is not None
    rows = []
    for layer in study.operations.layers:
        counts = (layer.spikes, layer.acs, layer.macs, layer.updates, layer.additions, layer.ann.macs)
        rows.append([layer.name, layer.op, *(f"{value:,.0f}" for value in counts)])
    titles = (
        "node",
        "kind",
        "spikes",
        "AC",
        "MAC",
        "updates",
        "additions",
        f"{'dense' if study.trained else 'ANN'} MAC",
    )
    caption = "Operations per image, node by node" + (f": {study.network}" if several else "")
    return details(caption, table(titles, rows, caption, 2))
