"""How good the network is: headline, accuracy over time steps, and shortcut scales."""

from __future__ import annotations

from dataclasses import dataclass

from ..analysis.figures import Row
from ..runtime.display import Table
from . import charts
from .charts import Picture
from .format import percent, percent_range, point_range, points, ratio
from .network_report import NetworkReport, Networks, compared

NOT_AVAILABLE = "Not available"


@dataclass(frozen=True)
class Card:
    """A figure of the headline with its title and a short explanation."""

    title: str
    figure: str
    words: str


def cards(net: NetworkReport) -> tuple[Card, ...]:
    """The figures of the headline."""
    steps = f"End to end, for T = {net.timesteps:,} steps of input. Spikes: {net.report.alphabet}."
    against = _against_itself(net) if net.report.ann is None else _against_ann(net, net.report.ann["top1"])
    return *against, Card("Latency", f"{net.end_to_end_steps:,} steps", steps), _energy(net)


def comparison(networks: Networks) -> str:
    """The difference of two networks; empty for one."""
    if len(networks) < 2:
        return ""
    one, other = networks
    more = one.report.snn[-1].top1 - other.report.snn[-1].top1
    return (
        f"Top-1 of {one.network} at T = {one.timesteps} against {other.network} at T = {other.timesteps}, on "
        f"the same images: {points(more)} points; 95% interval {point_range(compared(one, other))}."
    )


def _against_ann(net: NetworkReport, ann: float) -> tuple[Card, Card]:
    last, images = net.report.snn[-1], f"{net.report.images:,} images"
    within = f"95% interval {percent_range(net.interval(last.top1))}."
    same = f"95% interval {point_range(net.drop)}. The same answer to {percent(last.agreement)} of them."
    return (
        Card("Accuracy (top-1)", percent(last.top1), f"The ANN: {percent(ann)} of the same {images}. {within}"),
        Card("Drop from its ANN", f"{points(ann - last.top1)} points", same),
    )


def _against_itself(net: NetworkReport) -> tuple[Card, Card]:
    """A directly trained network beside its answers after the T that it was trained for."""
    last, trained_for = net.report.snn[-1], f"T = {net.report.trained_for}"
    within = f"Of {net.report.images:,} images. 95% interval {percent_range(net.interval(last.top1))}."
    accuracy = Card("Accuracy (top-1)", percent(last.top1), within)
    if net.timesteps == net.report.trained_for:
        words = "Directly trained as a spiking network for these steps: there is no ANN."
        return accuracy, Card("Trained for", trained_for, words)
    _, now, trained, _ = net.answers.right
    drop = f"{points((trained - now) / net.answers.images)} points"
    return accuracy, Card(f"Drop from {trained_for}, trained for", drop, f"95% interval {point_range(net.drop)}.")


def _energy(net: NetworkReport) -> Card:
    title = "Energy (estimate)"
    if net.energy is None:
        return Card(title, NOT_AVAILABLE, "See operations and energy.")
    ratios = net.energy.ratios
    words = (
        f"Against {net.rival.layers} quantized to equal bits, memory included; below 1 the SNN saves. In float32, "
        f"arithmetic alone: {ratio(ratios['float32_arithmetic'])}."
    )
    return Card(title, ratio(ratios["int8_total"]), words)


def reading(net: NetworkReport) -> str:
    """The chart of accuracy in one sentence."""
    report, last = net.report, net.report.snn[-1]
    said = f"{percent(last.top1)} of {report.images:,} images are answered right at T = {last.timesteps}"
    if report.ann is None:
        return f"{said}; it was trained for T = {report.trained_for}."
    ann = report.ann["top1"]
    late = [row.timesteps for row in report.snn if row.top1 < ann - 0.01]
    after = [row.timesteps for row in report.snn if row.timesteps > max(late, default=0)]
    within = f"at most a point below it from T = {after[0]} on" if after else "more than a point below it at every T"
    return f"{said}, {percent(ann)} by the ANN; {within}."


def pictures(networks: Networks, beside_ann: bool) -> tuple[Picture, Picture]:
    """Accuracy and agreement over T."""
    line = "; the line across is the ANN's on the same images" if beside_ann else ""
    top1 = Picture(
        charts.over_time(networks, "top1", "top-1 accuracy", ann=True),
        "Top-1 accuracy over T. " + " ".join(f"{net.network}: {reading(net)}" for net in networks),
        f"Top-1 accuracy{line}. Bands: 95% intervals.",
    )
    return top1, _agreement(networks, beside_ann)


def _agreement(networks: Networks, beside_ann: bool) -> Picture:
    same = "; ".join(
        f"{net.network} {percent(net.report.snn[-1].agreement)} at T = {net.timesteps}" for net in networks
    )
    if all(net.report.ann for net in networks):
        return Picture(
            charts.over_time(networks, "agreement", "same answer as the ANN", ann=False),
            f"Agreement with the ANN over T: {same}.",
            "Share of the images that get the ANN's answer, right or wrong. Bands: 95% intervals.",
        )
    source = "the answer after the T trained for"
    source = f"the ANN's answer, of a directly trained network {source}" if beside_ann else source
    return Picture(
        charts.over_time(networks, "agreement", "same answer", ann=False),
        f"Images that get {source}, over T: {same}.",
        f"Share of the images that get {source}, right or wrong. Bands: 95% intervals.",
    )


def step_table(networks: Networks) -> Table:
    """Accuracy and agreement at every T."""
    late = any(row.end_to_end_steps != row.timesteps for net in networks for row in net.report.snn)
    many = any(row.top5 is not None for net in networks for row in net.report.snn)
    several = len(networks) > 1
    rows = []
    for net in networks:
        name, ann = [net.network] * several, net.report.ann
        if ann is not None:
            top = (
                percent(ann["top1"]),
                percent_range(net.interval(ann["top1"])),
                "",
                "",
                *[percent(ann["top5"])] * many,
            )
            rows.append((*name, "ANN", *[""] * late, *top, "", "", ""))
        for row in net.report.snn:
            top = (percent(row.top1), percent_range(net.interval(row.top1)), *_drop(row), *[percent(row.top5)] * many)
            same = (percent(row.agreement), percent_range(net.interval(row.agreement)), f"{row.spikes_per_neuron:.3f}")
            steps = f"{row.timesteps:,}{'*' * (row.fitted is False)}"
            rows.append((*name, steps, *[f"{row.end_to_end_steps:,}"] * late, *top, *same))
    lead = (*["network"] * several, "T", *["end-to-end steps"] * late)
    measures = ("top-1", "95% interval", "drop", "95% interval", *["top-5"] * many)
    return Table((*lead, *measures, "agreement", "95% interval", "spikes/neuron"), tuple(rows))


def _drop(row: Row) -> tuple[str, str]:
    """What a row loses against its ANN, in points, and the interval of that."""
    if row.drop is None or row.drop_interval is None:
        return "", ""
    return points(row.drop), point_range(row.drop_interval)


def fitted_elsewhere(networks: Networks) -> str:
    """The T that a marked row's network was fitted to; empty without such rows."""
    marked = (net for net in networks if any(row.fitted is False for row in net.report.snn))
    return ", ".join(sorted({str(net.report.fitted_for) for net in marked}))


def shortcut_table(networks: Networks) -> Table | None:
    """The scale of every residual branch; None without one."""
    several = len(networks) > 1
    pairs = [(net, branch) for net in networks for branch in net.shortcuts]
    if charts.same_layers(networks):
        order = {branch.neuron: index for index, branch in enumerate(networks[0].shortcuts)}
        pairs.sort(key=lambda pair: order.get(pair[1].neuron, len(order)))
    rows = []
    for net, branch in pairs:
        kind = (*[net.network] * several, branch.synapse, branch.kind)
        rows.append((branch.neuron, *kind, f"{branch.ratio:.4f}", f"{branch.scale:.4g}"))
    lead = ("neuron layer", *["network"] * several, "shortcut synapse", "kind")
    return Table((*lead, "λ in / λ out", "λ out"), tuple(rows), texts=len(lead)) if rows else None
