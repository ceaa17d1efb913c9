"""The sections on what the network is worth: headline, accuracy, layers and shortcut scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..verify import LayerError
from . import charts
from .markup import Html, details, element, figure, joined, paragraph, section, table
from .study import Study, compared
from .words import NOT_AVAILABLE, interval, missing, percent, points, ratio, these, whose

Studies = Sequence[Study]
TERMS = {
    "unevenness": "spikes come too early or too late: the same charge, evenly spread, would give another count.",
    "quantization": "T steps know only so many values.",
    "clipping": "the activation is more than a spike at every step can say.",
    "inherited": "the layers before are wrong already.",
    "own": "what the layer adds itself: the first three as one. Parts may cancel, so they do not sum to the total.",
    "dead": "channels that never fire although the ANN is active there.",
    "saturated": "channels with more than 1% of neurons and images stuck at the largest count.",
}


def headline(studies: Studies) -> Html:
    """What a reader in a hurry takes away."""
    parts = [_headline(study, studies) for study in studies]
    if len(studies) > 1:
        one, other = studies
        low, high = compared(one, other)
        more = one.report.snn[-1].top1 - other.report.snn[-1].top1
        words = (
            f"Top-1 of {one.network} at T = {one.timesteps} against {other.network} at T = {other.timesteps}, on "
            f"the same images: {points(more)} points; 95% interval {points(low)} to {points(high)}."
        )
        parts.append(paragraph(words))
    return element("section", *parts, id="headline")


def _headline(study: Study, studies: Studies) -> Html:
    last, report = study.report.snn[-1], study.report
    (low, high), drop = study.drop, last.top1 - report.ann["top1"]
    late = study.end_to_end_steps
    cards = (
        _card(
            "Accuracy (top-1)",
            percent(last.top1),
            f"The ANN: {percent(report.ann['top1'])} of the same {report.images:,} images. "
            f"95% interval {interval(study, last.top1)}.",
        ),
        _card(
            "Against its ANN",
            f"{points(drop)} points",
            f"95% interval {points(low)} to {points(high)}. The same answer to {percent(last.agreement)} of them.",
        ),
        _card(
            "Latency",
            f"{late:,} steps",
            f"End to end, for T = {study.timesteps:,} steps of input. Spikes: {report.alphabet}.",
        ),
        _card("Energy (estimate)", *_energy(study)),
    )
    title = element("h2", study.network) if len(studies) > 1 else ""
    return element("div", title, element("div", *cards, class_="cards"), class_="network")


def _card(title: str, figure: str, words: str) -> Html:
    parts = (paragraph(title, kind="label"), paragraph(figure, kind="figure"), paragraph(words))
    return element("div", *parts, class_="card")


def _energy(study: Study) -> tuple[str, str]:
    if study.energy is None:
        return NOT_AVAILABLE, "See operations and energy."
    ratios = study.energy.ratios
    return (
        ratio(ratios["int8_total"]),
        "Against the ANN quantized to equal bits, memory included; below 1 the SNN saves. In float32, arithmetic "
        f"alone: {ratio(ratios['float32_arithmetic'])}.",
    )


def accuracy(studies: Studies) -> Html:
    """Accuracy and agreement over T."""
    words = [joined((whose(study, studies), _reading(study))) for study in studies]
    same = "; ".join(
        f"{study.network} {percent(study.report.snn[-1].agreement)} at T = {study.timesteps}" for study in studies
    )
    top1 = figure(
        charts.over_time(studies, "top1", "top-1 accuracy", ann=True),
        "Top-1 accuracy over T. " + " ".join(f"{study.network}: {_reading(study)}" for study in studies),
        "Top-1 accuracy; the line across is the ANN's on the same images. Bands: 95% intervals.",
    )
    agreement = figure(
        charts.over_time(studies, "agreement", "same answer as the ANN", ann=False),
        f"Agreement with the ANN over T: {same}.",
        "Share of the images that get the ANN's answer, right or wrong. Bands: 95% intervals.",
    )
    return section(
        "accuracy",
        "Accuracy over time steps",
        *map(paragraph, words),
        element("div", top1, agreement, class_="pair"),
        _steps(studies),
        paragraph(
            "Intervals: Wilson's, from the number of images; of the difference from the ANN, Newcombe's for pairs. "
            "They tell the chance in the choice of images, nothing else.",
            kind="note",
        ),
    )


def _steps(studies: Studies) -> Html:
    late = any(row.end_to_end_steps != row.timesteps for study in studies for row in study.report.snn)
    several = len(studies) > 1
    titles = ["network"] * several + ["T"] + ["end-to-end steps"] * late
    rows = []
    for study in studies:
        name, ann = [study.network] * several, study.report.ann
        cells = (percent(ann["top1"]), interval(study, ann["top1"]), percent(ann["top5"]))
        rows.append([*name, "ANN", *[""] * late, *cells, "", "", ""])
        for row in study.report.snn:
            top = (percent(row.top1), interval(study, row.top1), percent(row.top5))
            same = (percent(row.agreement), interval(study, row.agreement), f"{row.spikes_per_neuron:.3f}")
            rows.append([*name, f"{row.timesteps:,}", *[f"{row.end_to_end_steps:,}"] * late, *top, *same])
    measures = ("top-1", "95% interval", "top-5", "agreement", "95% interval", "spikes/neuron")
    return table((*titles, *measures), rows, "Accuracy and agreement at every T")


def _reading(study: Study) -> str:
    """The chart in a sentence."""
    report = study.report
    last, ann = report.snn[-1], report.ann["top1"]
    late = [row.timesteps for row in report.snn if row.top1 < ann - 0.01]
    after = [row.timesteps for row in report.snn if row.timesteps > max(late, default=0)]
    within = f"at most a point below it from T = {after[0]} on" if after else "more than a point below it at every T"
    return (
        f"{percent(last.top1)} of {report.images:,} images are answered right at T = {last.timesteps}, {percent(ann)} "
        f"by the ANN; {within}."
    )


def layers(studies: Studies) -> Html:
    """Firing rates and errors of every layer."""
    found = [study for study in studies if study.verification]
    words = [missing(study, "verification", studies) for study in studies if study not in found]
    rates = [_rates(found)] if found else []
    drawings = []
    checked = [study.verification for study in found if study.verification]
    every = [error for one in checked for layer in one.layers for error in layer.errors.values()]
    largest = max((error for error in every if math.isfinite(error)), default=0.0) or 1.0
    for study, result in zip(found, checked, strict=True):
        words.append(paragraph(whose(study, studies), result.verdict, " ", result.advice))
        which = f"{study.network}. " if len(studies) > 1 else ""
        alt = f"{which}Errors of each layer by cause. {result.verdict}"
        caption = f"{which}Error by cause, root mean square; the line is the total."
        drawings.append(figure(charts.errors(study, largest), alt, caption))
    if not checked:
        return section("layers", "Where it loses", *words)
    terms = (joined((element("dt", name), element("dd", meaning))) for name, meaning in TERMS.items())
    return section(
        "layers",
        "Where it loses",
        *words,
        *(
            element("div", *row, class_="pair")
            for row in ((rates, drawings) if len(found) > 1 else (rates + drawings,))
        ),
        details("What the words mean", element("dl", *terms)),
        _layer_table(found, len(studies) > 1),
        paragraph(f"Measured on {these(checked[0].images, studies)}.", kind="note"),
    )


def _rates(studies: Studies) -> Html:
    every = [layer.rate for study in studies if study.verification for layer in study.verification.layers]
    words = "Firing rate of each layer: thresholds emitted per neuron and step"
    return figure(charts.rates(studies), f"{words}, from {min(every):.3f} to {max(every):.3f}.", f"{words}.")


def _layer_table(studies: Studies, several: bool) -> Html:
    titles = ("rate", "unevenness", "quantization", "clipping", "inherited", "own", "total", "dead", "saturated")
    rows = []
    for study, layer in _side_by_side(studies):
        errors = [percent(value) for value in layer.errors.values()]
        if layer.differential:
            errors[0] = "in quantization"
        few = (f"{len(part)} of {len(layer.channels['rate'])}" for part in (layer.dead, layer.saturated))
        rows.append([layer.name, *[study.network] * several, f"{layer.rate:.4f}", *errors, *few])
    lead = ["layer"] + ["network"] * several
    caption = "Rate, errors relative to the ANN's activations, and channels that are dead or saturated"
    return table((*lead, *titles), rows, caption, len(lead))


def _side_by_side(studies: Studies) -> list[tuple[Study, LayerError]]:
    """The layers of all networks; those of one name beside each other where all have the same."""
    lists = [[(study, layer) for layer in study.verification.layers] for study in studies if study.verification]
    if charts.same_layers(studies):
        return [pair for group in zip(*lists, strict=True) for pair in group]
    return [pair for part in lists for pair in part]


def shortcut_scales(studies: Studies) -> Html:
    """The shortcut conversion model."""
    several = len(studies) > 1
    pairs = [(study, branch) for study in studies for branch in study.shortcuts]
    if charts.same_layers(studies):
        order = {branch.neuron: index for index, branch in enumerate(studies[0].shortcuts)}
        pairs.sort(key=lambda pair: order.get(pair[1].neuron, len(order)))
    rows = [
        [branch.neuron, *[study.network] * several, branch.synapse, branch.kind, f"{branch.ratio:.4f}",
         f"{branch.scale:.4g}"] for study, branch in pairs
    ]  # fmt: skip
    lead = ["neuron layer"] + ["network"] * several + ["shortcut synapse", "kind"]
    words = (
        "A spike stands for another value (λ) in every layer, so each residual branch is multiplied by λ of where it "
        "comes from over λ of where it arrives. A projection has the factor in its weights."
    )
    if not rows:
        return section("shortcuts", "Shortcut scales", paragraph("No residual branches."))
    shown = table((*lead, "λ in / λ out", "λ out"), rows, "Scale of every shortcut synapse", len(lead))
    return section("shortcuts", "Shortcut scales", paragraph(words), shown)
