"""The sections on what the network is worth: headline, accuracy and shortcut scales."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.figures import Row
from . import charts
from .markup import Html, element, figure, joined, paragraph, section, table
from .study import Study, compared
from .words import NOT_AVAILABLE, interval, percent, points, ratio, whose

Studies = Sequence[Study]


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
    report, late = study.report, study.end_to_end_steps
    cards = (
        *_against(study),
        _card(
            "Latency",
            f"{late:,} steps",
            f"End to end, for T = {study.timesteps:,} steps of input. Spikes: {report.alphabet}.",
        ),
        _card("Energy (estimate)", *_energy(study)),
    )
    title = element("h2", study.network) if len(studies) > 1 else ""
    return element("div", title, element("div", *cards, class_="cards"), class_="network")


def _against(study: Study) -> tuple[Html, Html]:
    """Accuracy, and what it is compared with: the ANN, or the answers after the T trained for."""
    last, report = study.report.snn[-1], study.report
    (low, high), images = study.drop, f"{report.images:,} images"
    within = f"95% interval {interval(study, last.top1)}."
    if report.ann is None:
        _, now, trained, _ = study.answers.right
        drop, other = (trained - now) / study.answers.images, f"T = {report.trained_for}"
        compared_with = (
            (f"{points(drop)} points", f"95% interval {points(low)} to {points(high)}.")
            if study.timesteps != report.trained_for
            else (other, "Directly trained as a spiking network for these steps: there is no ANN.")
        )
        title = f"Drop from {other}, trained for" if study.timesteps != report.trained_for else "Trained for"
        return _card("Accuracy (top-1)", percent(last.top1), f"Of {images}. {within}"), _card(title, *compared_with)
    drop, ann = report.ann["top1"] - last.top1, percent(report.ann["top1"])
    words = f"95% interval {points(low)} to {points(high)}. The same answer to {percent(last.agreement)} of them."
    return (
        _card("Accuracy (top-1)", percent(last.top1), f"The ANN: {ann} of the same {images}. {within}"),
        _card("Drop from its ANN", f"{points(drop)} points", words),
    )


def _card(title: str, figure: str, words: str) -> Html:
    parts = (paragraph(title, kind="label"), paragraph(figure, kind="figure"), paragraph(words))
    return element("div", *parts, class_="card")


def _energy(study: Study) -> tuple[str, str]:
    if study.energy is None:
        return NOT_AVAILABLE, "See operations and energy."
    ratios = study.energy.ratios
    rival = "one dense pass of the same layers" if study.trained else "the ANN"
    return (
        ratio(ratios["int8_total"]),
        f"Against {rival} quantized to equal bits, memory included; below 1 the SNN saves. In float32, arithmetic "
        f"alone: {ratio(ratios['float32_arithmetic'])}.",
    )


def accuracy(studies: Studies) -> Html:
    """Accuracy and agreement over T."""
    words = [joined((whose(study, studies), _reading(study))) for study in studies]
    line = "" if _all_trained(studies) else "; the line across is the ANN's on the same images"
    top1 = figure(
        charts.over_time(studies, "top1", "top-1 accuracy", ann=True),
        "Top-1 accuracy over T. " + " ".join(f"{study.network}: {_reading(study)}" for study in studies),
        f"Top-1 accuracy{line}. Bands: 95% intervals.",
    )
    paired = "" if _all_trained(studies) else "; of the difference from the ANN, Newcombe's for pairs"
    return section(
        "accuracy",
        "Accuracy over time steps",
        *map(paragraph, words),
        element("div", top1, _agreement(studies), class_="pair"),
        _steps(studies),
        *_notes(studies),
        paragraph(
            f"Intervals: Wilson's, from the number of images{paired}. "
            "They tell the chance in the choice of images, nothing else.",
            kind="note",
        ),
    )


def _agreement(studies: Studies) -> Html:
    same = "; ".join(
        f"{study.network} {percent(study.report.snn[-1].agreement)} at T = {study.timesteps}" for study in studies
    )
    if not any(study.trained for study in studies):
        return figure(
            charts.over_time(studies, "agreement", "same answer as the ANN", ann=False),
            f"Agreement with the ANN over T: {same}.",
            "Share of the images that get the ANN's answer, right or wrong. Bands: 95% intervals.",
        )
    source = "the answer after the T trained for"
    source = source if _all_trained(studies) else f"the ANN's answer, of a directly trained network {source}"
    return figure(
        charts.over_time(studies, "agreement", "same answer", ann=False),
        f"Images that get {source}, over T: {same}.",
        f"Share of the images that get {source}, right or wrong. Bands: 95% intervals.",
    )


def _all_trained(studies: Studies) -> bool:
    return all(study.trained for study in studies)


def _steps(studies: Studies) -> Html:
    late = any(row.end_to_end_steps != row.timesteps for study in studies for row in study.report.snn)
    many = any(row.top5 is not None for study in studies for row in study.report.snn)
    several = len(studies) > 1
    titles = ["network"] * several + ["T"] + ["end-to-end steps"] * late
    rows = []
    for study in studies:
        name, ann = [study.network] * several, study.report.ann
        if ann is not None:
            top5 = [percent(ann["top5"])] if many and ann["top5"] is not None else [""] * many
            cells = (percent(ann["top1"]), interval(study, ann["top1"]), "", "", *top5)
            rows.append([*name, "ANN", *[""] * late, *cells, "", "", ""])
        for row in study.report.snn:
            top5 = [percent(row.top5)] if many and row.top5 is not None else [""] * many
            top = (percent(row.top1), interval(study, row.top1), *_drop(row), *top5)
            same = (percent(row.agreement), interval(study, row.agreement), f"{row.spikes_per_neuron:.3f}")
            steps = f"{row.timesteps:,}{'*' * (row.fitted is False)}"
            rows.append([*name, steps, *[f"{row.end_to_end_steps:,}"] * late, *top, *same])
    measures = ("top-1", "95% interval", "drop", "95% interval", *["top-5"] * many)
    shown = (*titles, *measures, "agreement", "95% interval", "spikes/neuron")
    return table(shown, rows, "Accuracy and agreement at every T")


def _drop(row: Row) -> tuple[str, str]:
    """What a row loses against its ANN, in points, and the interval of that."""
    if row.drop is None or row.drop_interval is None:
        return "", ""
    low, high = row.drop_interval
    return points(row.drop), f"{points(low)} to {points(high)}"


def _notes(studies: Studies) -> list[Html]:
    """What about the rows or the images has to be known."""
    found = [
        joined((whose(study, studies), paragraph(f"Note: {note}", kind="note")))
        for study in studies
        for note in study.report.notes
    ]
    fitted = {str(s.report.fitted_for) for s in studies if any(row.fitted is False for row in s.report.snn)}
    if fitted:
        words = f"* Not fitted to this T but to T = {', '.join(sorted(fitted))}."
        found.append(paragraph(words, kind="note"))
    return found


def _reading(study: Study) -> str:
    """The chart in a sentence."""
    report = study.report
    last = report.snn[-1]
    if report.ann is None:
        return (
            f"{percent(last.top1)} of {report.images:,} images are answered right at T = {last.timesteps}; it was "
            f"trained for T = {report.trained_for}."
        )
    ann = report.ann["top1"]
    late = [row.timesteps for row in report.snn if row.top1 < ann - 0.01]
    after = [row.timesteps for row in report.snn if row.timesteps > max(late, default=0)]
    within = f"at most a point below it from T = {after[0]} on" if after else "more than a point below it at every T"
    return (
        f"{percent(last.top1)} of {report.images:,} images are answered right at T = {last.timesteps}, {percent(ann)} "
        f"by the ANN; {within}."
    )


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
