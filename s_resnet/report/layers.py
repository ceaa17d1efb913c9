"""The section on layers: what each loses against the ANN, or what its neurons do where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import charts
from .markup import Html, details, element, figure, joined, paragraph, section, table
from .study import Study
from .words import missing, percent, these, whose

Studies = Sequence[Study]
LOST = ("rate", "unevenness", "quantization", "clipping", "inherited", "own", "total", "dead", "saturated")
LOST_IN_WORDS = "Rate, errors relative to the ANN's activations, and channels that are dead or saturated"
DONE = ("rate", "dead", "saturated", "dormant", "drift")
DONE_IN_WORDS = "Rate, channels that are dead or saturated, dormant neurons, and drift from the T trained for"
TERMS = {
    "unevenness": "spikes come too early or too late: the same charge, evenly spread, would give another count.",
    "quantization": "T steps know only so many values.",
    "clipping": "the activation is more than a spike at every step can say.",
    "inherited": "the layers before are wrong already.",
    "own": "what the layer adds itself: the first three as one. Parts may cancel, so they do not sum to the total.",
    "dead": "channels that never fire although the ANN is active there.",
    "saturated": "channels with more than 1% of neurons and images stuck at the largest count.",
}
TRAINED_TERMS = {
    "dead": "channels that never fire.",
    "saturated": "channels with more than 1% of neurons and images that fire all they can at every step.",
    "dormant": "neurons with no membrane in the window of the surrogate gradient at any step, on an image: they learn "
    "nothing from it.",
    "drift": "how far the mean output is from that at the T trained for, relative to it.",
}


def layers(studies: Studies) -> Html:
    """Firing rates of every layer, and errors; of a directly trained network dormant neurons."""
    found = [study for study in studies if study.verification]
    words = [missing(study, "verification", studies) for study in studies if study not in found]
    title = "What layers do" if all(study.trained for study in studies) else "Where it loses"
    if not found:
        return section("layers", title, *words)
    checked = [study.verification for study in found if study.verification]
    errors = [error for one in checked for layer in one.layers for error in (layer.errors or {}).values()]
    largest = max((error for error in errors if math.isfinite(error)), default=0.0) or 1.0
    drawings = []
    for study, result in zip(found, checked, strict=True):
        words.append(paragraph(whose(study, studies), result.verdict, " ", result.advice))
        drawings.append(_drawing(study, f"{study.network}. " if len(studies) > 1 else "", largest))
    rates = [_rates(found)]
    known = (TERMS if errors else {}) | (TRAINED_TERMS if any(study.trained for study in found) else {})
    terms = (joined((element("dt", name), element("dd", meaning))) for name, meaning in known.items())
    return section(
        "layers",
        title,
        *words,
        *(
            element("div", *row, class_="pair")
            for row in ((rates, drawings) if len(found) > 1 else (rates + drawings,))
        ),
        details("What the words mean", element("dl", *terms)),
        *_tables(found, len(studies) > 1),
        paragraph(f"Measured on {these(checked[0].images, studies)}.", kind="note"),
    )


def _drawing(study: Study, which: str, largest: float) -> Html:
    result = study.verification
    assert result is not None
    if result.trained_for is not None:
        words = f"{which}Dormant neurons of each layer"
        return figure(charts.dormant(study), f"{words}. {result.verdict}", f"{words}, share of neurons and images.")
    alt = f"{which}Errors of each layer by cause. {result.verdict}"
    caption = f"{which}Error by cause, root mean square; the line is the total."
    return figure(charts.errors(study, largest), alt, caption)


def _rates(studies: Studies) -> Html:
    every = [layer.rate for study in studies if study.verification for layer in study.verification.layers]
    unit = "spikes" if all(study.trained for study in studies) else "thresholds emitted"
    words = f"Firing rate of each layer: {unit} per neuron and step"
    return figure(charts.rates(studies), f"{words}, from {min(every):.3f} to {max(every):.3f}.", f"{words}.")


def _tables(studies: Studies, several: bool) -> list[Html]:
    """A table of the converted networks' layers and one of the trained ones'."""
    converted = [study for study in studies if not study.trained]
    trained = [study for study in studies if study.trained]
    lead = ["layer"] + ["network"] * several
    shown = []
    if converted:
        rows = [_converted(layer, [study.network] * several) for study, layer in _side_by_side(converted)]
        shown.append(table((*lead, *LOST), rows, LOST_IN_WORDS, len(lead)))
    if trained:
        rows = [_trained(layer, [study.network] * several) for study, layer in _side_by_side(trained)]
        shown.append(table((*lead, *DONE), rows, DONE_IN_WORDS, len(lead)))
    return shown


def _converted(layer: Any, network: list[str]) -> list[str]:
    errors = [percent(value) for value in layer.errors.values()]
    if layer.differential:
        errors[0] = "in quantization"
    return [layer.name, *network, f"{layer.rate:.4f}", *errors, *_few(layer)]


def _trained(layer: Any, network: list[str]) -> list[str]:
    return [layer.name, *network, f"{layer.rate:.4f}", *_few(layer), percent(layer.dormant), percent(layer.drift)]


def _few(layer: Any) -> list[str]:
    return [f"{len(part)} of {len(layer.channels['rate'])}" for part in (layer.dead, layer.saturated)]


def _side_by_side(studies: Studies) -> list[tuple[Study, Any]]:
    """The layers of all networks; those of one name beside each other where all have the same."""
    lists = [[(study, layer) for layer in study.verification.layers] for study in studies if study.verification]
    if charts.same_layers(studies):
        return [pair for group in zip(*lists, strict=True) for pair in group]
    return [pair for part in lists for pair in part]
