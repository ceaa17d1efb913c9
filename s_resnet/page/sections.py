"""The sections of the page: what was measured, in words, tables and drawings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import torch

from ..layer_operations import LayerOperations
from ..verify import LayerError
from . import charts
from .markup import Html, details, element, figure, joined, paragraph, photo, section, table
from .study import DETAILS, Example, Study

Studies = Sequence[Study]
MISSING = "not available"


def headline(studies: Studies) -> Html:
    """What a reader in a hurry takes away."""
    return element("section", *(_headline(study, len(studies) > 1) for study in studies), id="headline")


def _headline(study: Study, named: bool) -> Html:
    last, report = study.report.snn[-1], study.report
    low, high = study.drop
    drop = 100 * (last.top1 - report.ann["top1"])
    cards = [
        _card(
            "Accuracy",
            _percent(last.top1),
            f"95 % interval {_interval(study, last.top1)}; its ANN {_percent(report.ann['top1'])} on the same "
            f"{report.images:,} images",
        ),
        _card(
            "Against the ANN",
            f"{drop:+.1f} points".replace("-", "−"),
            f"95 % interval {_points(low)} to {_points(high)} points; the same answer for {_percent(last.agreement)}",
        ),
        _card(
            "Latency",
            f"{study.end_to_end_steps:,} steps",
            f"T = {study.timesteps} steps of input, an answer after {study.end_to_end_steps} in all; "
            f"spikes: {report.alphabet}",
        ),
        _card("Energy, estimate", *_energy_card(study)),
    ]
    title = element("h2", study.network) if named else ""
    return element("div", title, element("div", *cards, class_="cards"), class_="network")


def _card(title: str, figure: str, words: str) -> Html:
    return element(
        "div", element("h3", title), element("p", figure, class_="figure"), element("p", words), class_="card"
    )


def _energy_card(study: Study) -> tuple[str, str]:
    if study.energy is None:
        return MISSING, "see operations and energy"
    ratios = study.energy.ratios
    return (
        f"{_ratio(ratios['int8_total'])} ×",
        f"of the ANN quantized to equal bits, memory included. In float32, arithmetic alone: "
        f"{_ratio(ratios['float32_arithmetic'])} × of the ANN",
    )


def accuracy(studies: Studies) -> Html:
    titles = ("T", "end-to-end steps", "top-1", "95 % interval", "top-5", "agreement", "95 % interval", "spikes/neuron")
    rows = []
    for study in studies:
        ann = study.report.ann
        lead = (study.network,) if len(studies) > 1 else ()
        interval = _interval(study, ann["top1"])
        rows.append((*lead, "ANN", "", _percent(ann["top1"]), interval, _percent(ann["top5"]), "", "", ""))
        for row in study.report.snn:
            rows.append(
                (
                    *(*lead, str(row.timesteps), str(row.end_to_end_steps), _percent(row.top1)),
                    *(_interval(study, row.top1), _percent(row.top5), _percent(row.agreement)),
                    *(_interval(study, row.agreement), f"{row.spikes_per_neuron:.3f}"),
                )
            )
    words = [f"{study.network}: {_reading(study)}" if len(studies) > 1 else _reading(study) for study in studies]
    alt = "Top-1 accuracy over T. " + " ".join(words)
    same = "Agreement with the ANN over T: " + "; ".join(
        f"{study.network} {_percent(study.report.snn[-1].agreement)} at T = {study.timesteps}" for study in studies
    )
    return section(
        "accuracy",
        "Accuracy over time steps",
        *(paragraph(word) for word in words),
        element(
            "div",
            figure(
                charts.over_time(studies, "top1", "top-1 accuracy", True),
                alt,
                "Top-1 accuracy; dashed: the ANN on the same images. Bands: 95 %.",
            ),
            figure(
                charts.over_time(studies, "agreement", "same answer as the ANN", False),
                same,
                "Share of images with the ANN's answer. Bands: 95 %.",
            ),
            class_="pair",
        ),
        table(_titles(studies, titles), rows, "Accuracy and agreement at every T", _texts(studies)),
        paragraph(
            "Intervals are Wilson's score intervals from the number of images; that of the difference from the ANN is "
            "Newcombe's for pairs. They tell the chance in the choice of images, and nothing else.",
            kind="note",
        ),
    )


def _reading(study: Study) -> str:
    """The chart in a sentence."""
    report = study.report
    last = report.snn[-1]
    reached = next((row for row in report.snn if row.top1 >= report.ann["top1"] - 0.01), None)
    near = (
        f"From T = {reached.timesteps} on"
        if reached and reached is not last
        else "Only at the last T"
        if reached
        else ""
    )
    within = f" {near} it is within one point of its ANN." if near else " It does not come within one point of its ANN."
    return (
        f"{_percent(last.top1)} of {report.images:,} images are right at T = {last.timesteps}, "
        f"{_percent(report.ann['top1'])} by the ANN.{within}"
    )


def layers(studies: Studies) -> Html:
    """Rates and errors."""
    found = [study for study in studies if study.verification]
    words = [_missing(study, "verification", studies) for study in studies if not study.verification]
    if not found:
        return section("layers", "Where it loses", *words)
    for study in found:
        assert study.verification is not None
        who = element("strong", f"{study.network}: ") if len(studies) > 1 else ""
        words.append(paragraph(who, study.verification.verdict, " ", study.verification.advice))
    every = [e for s in found if s.verification for layer in s.verification.layers for e in layer.errors.values()]
    largest = max((error for error in every if math.isfinite(error)), default=1.0) or 1.0
    drawings = [
        figure(
            charts.rates(found),
            f"Firing rate of each layer; from {min(_rates(found)):.3f} to {max(_rates(found)):.3f} per neuron and step.",
            "Firing rate: thresholds emitted per neuron and step.",
        )
    ]
    for study in found:
        assert study.verification is not None
        which = f"{study.network}. " if len(studies) > 1 else ""
        alt = f"{which}Errors of each layer by cause. {study.verification.verdict}"
        drawings.append(figure(charts.errors(study, largest), alt, f"{which}Error by cause, and in total."))
    images = found[0].verification.images if found[0].verification else 0
    return section(
        "layers",
        "Where it loses",
        *words,
        element("div", *drawings, class_="pair"),
        _layer_table(found, len(studies) > 1),
        _glossary(),
        paragraph(f"Measured on {_these(images, studies)}.", kind="note"),
    )


def _rates(studies: Studies) -> list[float]:
    return [layer.rate for study in studies if study.verification for layer in study.verification.layers]


def _layer_table(studies: Studies, named: bool) -> Html:
    titles = ("rate", "unevenness", "quantization", "clipping", "inherited", "own", "total", "dead", "saturated")
    rows = []
    for study, layer in _interleaved(studies):
        channels = len(layer.channels["rate"])
        errors = [_share(value) for value in layer.errors.values()]
        if layer.differential:
            errors[0] = "in quantization"
        few = (f"{len(part)} of {channels}" for part in (layer.dead, layer.saturated))
        lead = (layer.name, study.network) if named else (layer.name,)
        rows.append((*lead, f"{layer.rate:.4f}", *errors, *few))
    lead = ("layer", "network") if named else ("layer",)
    caption = "Rates, errors relative to the ANN's activations, and channels that are dead or saturated"
    return table((*lead, *titles), rows, caption, len(lead))


def _interleaved(studies: Studies) -> list[tuple[Study, LayerError]]:
    """The layers of all networks; those of one name beside each other where all have the same."""
    lists = [[(study, layer) for layer in study.verification.layers] for study in studies if study.verification]
    if len({tuple(layer.name for _, layer in part) for part in lists}) == 1:
        return [pair for group in zip(*lists, strict=True) for pair in group]
    return [pair for part in lists for pair in part]


def _glossary() -> Html:
    terms = {
        "unevenness": "spikes come too early or too late: the same charge, evenly spread, would give another count.",
        "quantization": "T steps know only so many values.",
        "clipping": "the activation is more than a spike at every step can say.",
        "inherited": "the layers before are wrong already; own is what the layer adds itself.",
        "dead": "channels that never fire although the ANN is active there.",
        "saturated": "channels with more than 1 % of neurons and images stuck at the largest count.",
    }
    entries = (joined((element("dt", name), element("dd", meaning))) for name, meaning in terms.items())
    return details("What the columns mean", element("dl", *entries))


def shortcut_scales(studies: Studies) -> Html:
    rows = []
    for study in studies:
        for branch in study.shortcuts:
            lead = (branch.neuron, study.network) if len(studies) > 1 else (branch.neuron,)
            rows.append((*lead, branch.synapse, branch.kind, f"{branch.ratio:.4f}", f"{branch.scale:.4g}"))
    lead = ("neuron layer", "network") if len(studies) > 1 else ("neuron layer",)
    titles = (*lead, "shortcut synapse", "kind", "λ in / λ out", "λ out")
    body = table(titles, rows, "Scale of every shortcut synapse", len(lead) + 2) if rows else paragraph("No shortcuts.")
    return section(
        "shortcuts",
        "Shortcut scales",
        paragraph(
            "A spike stands for another value (λ) in every layer, so each residual branch is multiplied by λ of where it "
            "comes from over λ of where it arrives. A projection has the factor in its weights."
        ),
        body,
    )


def spikes(studies: Studies) -> Html:
    """Rasters and membranes."""
    study = studies[0]
    label = study.class_name(int(study.answers.details[0][1][0]))
    parts: list[Html] = []
    for study, color in zip(studies, charts.COLORS, strict=False):
        drawings = []
        for trace in study.traces:
            counts = trace.spikes.sum(0)
            few = ", ".join(f"#{row + 1}" for row in charts.shown(trace)) if trace.membrane is not None else ""
            waits = f" It starts {trace.begins} steps after the input." if trace.begins else ""
            potentials = f" Below: membranes of {few}; dashed: threshold." if few else ""
            words = f"{trace.layer}. Spikes of {len(trace.neurons)} neurons.{potentials}{waits}"
            alt = f"{words} They emit from {counts.min():g} to {counts.max():g} thresholds in {study.timesteps} steps."
            drawings.append(figure(charts.trace(trace, color, study.end_to_end_steps), alt, words))
        title = [element("h3", study.network)] if len(studies) > 1 else []
        if any(trace.membrane is None for trace in study.traces):
            words = "Membranes are not recorded of integer networks whose layers wait for their window."
            title.append(paragraph(words, kind="note"))
        parts += [*title, element("div", *drawings, class_="pair")]
    return section(
        "spikes",
        "Spikes and membranes",
        paragraph(
            f"The first image ({label}) in time. In each layer neurons are chosen from the most active, #1, to the "
            "least active that fires. Membranes are in thresholds."
        ),
        *parts,
    )


def disagreements(studies: Studies) -> Html:
    return section(
        "disagreements", "Where ANN and SNN disagree", *(_disagreements(study, studies) for study in studies)
    )


def _disagreements(study: Study, studies: Studies) -> Html:
    found, images = study.answers, study.report.images
    title = element("h3", study.network) if len(studies) > 1 else ""
    if not found.disagreements:
        return joined(
            (title, paragraph(f"None: both give the same answer to all {images:,} images at T = {study.timesteps}."))
        )
    _, snn, ann, _ = found.right
    words = (
        f"Other answers to {found.disagreements:,} of {images:,} images at T = {study.timesteps}: the ANN alone is right "
        f"on {ann:,}, the SNN alone on {snn:,}, neither on {found.wrong:,}."
    )
    if len(found.examples) < found.disagreements:
        words += f" The first {len(found.examples)} are shown."
    cards = element("ul", *(_example(example, study) for example in found.examples), class_="examples")
    return joined((title, paragraph(words), cards))


def _example(example: Example, study: Study) -> Html:
    settings = study.provenance.get("preprocessing", {})
    mean, std = (
        torch.tensor(settings.get(name, fill)).view(-1, 1, 1)
        for name, fill in (("mean", [0.0] * 3), ("std", [1.0] * 3))
    )
    pixels = (example.image * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    label = study.class_name(example.label)
    lines = [element("dt", "label"), element("dd", label)]
    for who, answer, share in (("ANN", example.ann, example.ann_share), ("SNN", example.snn, example.snn_share)):
        right = answer == example.label
        mark = element(
            "span", "✓" if right else "✗", class_="right" if right else "wrong", title="right" if right else "wrong"
        )
        lines += [element("dt", who), element("dd", mark, f" {study.class_name(answer)}, {100 * share:.0f} %")]
    alt = f"Image {example.place + 1}: {label}; ANN says {study.class_name(example.ann)}, SNN {study.class_name(example.snn)}."
    return element("li", photo(pixels, alt), element("dl", *lines))


def costs(studies: Studies) -> Html:
    """Operation counts and energy."""
    found = [study for study in studies if study.operations and study.energy]
    words = [_missing(study, "operations", studies) for study in studies if study not in found]
    if not found:
        return section("energy", "Operations and energy", *words)
    ratios = "; ".join(
        f"{study.network} {_ratio(study.energy.ratios['int8_total'])} ×" for study in found if study.energy
    )
    drawing = figure(
        charts.energies(found),
        f"Estimated energy per image, spiking over equal-bit quantized ANN: {ratios}.",
        "Energy per image, estimate; parts stacked. The fair rival of a spiking network is the quantized ANN.",
    )
    first = found[0]
    assert first.energy is not None and first.operations is not None
    constants = first.energy.constants
    return section(
        "energy",
        "Operations and energy",
        *words,
        paragraph(
            element("strong", "Estimate. "),
            "Operations are counted exactly, spike by spike with their true fan-out; energies are then these counts "
            f"times published energies per operation ({constants.name}). Nothing was measured on a chip.",
        ),
        drawing,
        _energy_table(found, studies),
        _operation_table(found, studies),
        *(_layer_operations(study, studies) for study in found),
        paragraph(
            f"Means per image over {_these(first.operations.images, studies)}. 8/n-bit: 8-bit weights and activations of "
            "n bits, as many as a neuron can say in T steps. Static power, clocks, routing and the host are left out.",
            kind="note",
        ),
        details(
            "Energies per operation, pJ (of memories per access of 64 bits)",
            table(
                ("operation", "pJ"),
                [(name.replace("_", " "), f"{value:g}") for name, value in vars(constants).items() if name != "name"],
                constants.name,
            ),
        ),
    )


def _energy_table(studies: Studies, every: Studies) -> Html:
    rows = []
    for study in studies:
        for name, cost in charts.costs(study):
            values = (cost.synapses, cost.neurons, cost.memory, cost.total)
            lead = (study.network, name) if len(every) > 1 else (name,)
            rows.append((*lead, *(f"{1e6 * value:,.3g}" for value in values)))
    titles = ("network", "synapses", "neurons", "memory", "total")
    named = len(every) > 1
    return table(("file", *titles) if named else titles, rows, "Energy per image in µJ, estimate", 2 if named else 1)


def _operation_table(studies: Studies, every: Studies) -> Html:
    kinds: dict[str, Callable[[Study], float]] = {
        "spikes": lambda study: _total(study).spikes,
        "accumulations (AC)": lambda study: _total(study).acs,
        "multiply-accumulates (MAC), stem and readout": lambda study: _total(study).macs,
        "neuron updates": lambda study: _total(study).updates,
        "additions of constants": lambda study: _total(study).additions,
        "MACs of the ANN": lambda study: _total(study).ann.macs,
        "AC per MAC of the ANN": lambda study: study.operations.spikes_per_synapse if study.operations else math.nan,
    }
    rows = [(kind, *(_number(of(study)) for study in studies)) for kind, of in kinds.items()]
    names = [study.network for study in studies] if len(every) > 1 else ["per image"]
    return table(("operation", *names), rows, "Operations per image")


def _total(study: Study) -> LayerOperations:
    assert study.operations is not None
    return study.operations.total


def _layer_operations(study: Study, every: Studies) -> Html:
    assert study.operations is not None
    titles = ("node", "kind", "spikes", "AC", "MAC", "updates", "additions", "ANN MAC")
    rows = []
    for layer in study.operations.layers:
        counts = (layer.spikes, layer.acs, layer.macs, layer.updates, layer.additions, layer.ann.macs)
        rows.append((layer.name, layer.op, *(f"{count:,.0f}" for count in counts)))
    which = f": {study.network}" if len(every) > 1 else ""
    caption = f"Operations per image, node by node{which}"
    return details(caption, table(titles, rows, caption, 2))


def settings(studies: Studies, command: str, created: str) -> Html:
    """Settings and provenance."""
    rows: dict[str, list[str]] = {}
    for place, study in enumerate(studies):
        for name, value in _facts(study).items():
            rows.setdefault(name, [""] * len(studies))[place] = value
    titles = ("", *(study.network for study in studies)) if len(studies) > 1 else ("", "value")
    steps = [_passes(study, studies) for study in studies]
    made = [("command", command)] if command else []
    made.append(("created", created))
    return section(
        "settings",
        "Settings and provenance",
        table(titles, [(name, *values) for name, values in rows.items()], "What was run", 1 + len(studies)),
        *steps,
        element("dl", *(joined((element("dt", name), element("dd", element("code", value)))) for name, value in made)),
        paragraph("Every number of this page is in report.json beside it.", kind="note"),
    )


def _facts(study: Study) -> dict[str, str]:
    known, report = study.provenance, study.report
    recipe, calibration, source = (known.get(name, {}) for name in ("recipe", "calibration", "source"))
    facts = {
        "network": study.network,
        "SHA-256": study.sha256,
        "source": " ".join(str(source[name]) for name in ("arch", "name") if name in source),
        "source SHA-256": str(source.get("sha256", "")),
        "recipe": f"{report.recipe}, tuned for T = {recipe.get('timesteps', '?')}",
        "spikes": report.alphabet,
        "images": f"{report.images:,}"
        + (f", {report.calibrated_on} of them calibrated on" if report.calibrated_on else ""),
        "run on": f"{report.device}, kernel {report.kernel}",
        "speed": f"{report.images_per_second:.3g} images/s, all T of the chart in one pass",
        "silent layers": ", ".join(calibration.get("silent", ())) or "none",
    }
    facts |= {f"calibration, {name}": str(value) for name, value in calibration.items() if name != "silent"}
    for group in ("data", "preprocessing", "versions"):
        facts |= {f"{group}, {name}": _brief(value) for name, value in known.get(group, {}).items()}
    return {name: value for name, value in facts.items() if value}


def _brief(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _passes(study: Study, studies: Studies) -> Html:
    """The recipe's steps with their settings."""
    steps = study.provenance.get("recipe", {}).get("passes", ())
    which = f" of {study.network}" if len(studies) > 1 else ""
    if not steps:
        return Html("")
    entries = []
    for step in steps:
        options = {name: value for name, value in step.items() if name != "pass"}
        said = ", ".join(f"{name} = {_brief(value)}" for name, value in options.items())
        entries.append(element("li", element("code", step["pass"]), f": {said}" if said else ""))
    return joined((element("h3", f"Passes{which}"), element("ol", *entries)))


def _missing(study: Study, what: str, studies: Studies) -> Html:
    which = f"{study.network}: " if len(studies) > 1 else ""
    return paragraph(f"{which}{MISSING.capitalize()}. {study.missing.get(what, '')}", kind="note")


def _these(images: int, studies: Studies) -> str:
    every = studies[0].report.images
    return f"all {every:,} images" if images >= every else f"the first {DETAILS} of the {every:,} images"


def _titles(studies: Studies, titles: Sequence[str]) -> tuple[str, ...]:
    return ("network", *titles) if len(studies) > 1 else tuple(titles)


def _texts(studies: Studies) -> int:
    return 1 if len(studies) > 1 else 0


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(value: float) -> str:
    return _percent(value) if math.isfinite(value) else "∞"


def _interval(study: Study, share: float) -> str:
    low, high = study.interval(share)
    return f"{100 * low:.1f} – {100 * high:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
