"""The sections that show single images: spikes and membranes over time, and answers that differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..simulation.record import Trace
from . import charts
from .markup import Html, element, figure, joined, paragraph, photo, section
from .study import Example, Study


def spikes(studies: Sequence[Study]) -> Html:
    """Rasters and membranes."""
    images, labels = studies[0].answers.details[0]
    parts: list[Html] = [
        element("div", photo(_pixels(images.select(-4, 0), studies[0]), "The first image."), class_="first"),
        paragraph(
            f"The first image ({studies[0].class_name(int(labels[0]))}) over time. In each layer, neurons from the "
            "most active, #1, to the least active that fires. Membranes are in thresholds, after the step's spike."
        ),
    ]
    for study, color in zip(studies, charts.COLORS, strict=False):
        if len(studies) > 1:
            parts.append(element("h3", study.network))
        if any(trace.membrane is None for trace in study.traces):
            words = "Membranes are not recorded of integer networks whose layers wait for their window."
            parts.append(paragraph(words, kind="note"))
        if study.trained and study.report.alphabet != "binary":
            words = "Each firing level has a membrane of its own: shown is the lowest one's; spikes are of all levels."
            parts.append(paragraph(words, kind="note"))
        drawings = (_trace(trace, color, study) for trace in study.traces)
        parts.append(element("div", *drawings, class_="pair"))
    return section("spikes", "Spikes and membranes", *parts)


def _trace(trace: Trace, color: str, study: Study) -> Html:
    counts = trace.spikes.sum(0)
    words = f"{trace.layer}: spikes of {len(trace.neurons)} neurons"
    if trace.membrane is not None:
        words += f"; membranes of {', '.join(f'#{row + 1}' for row in charts.shown(trace))}, dashed: threshold"
    first, last = trace.begins + trace.lag + 1, study.end_to_end_steps
    if last > study.timesteps:
        words += f". It may fire in steps {first} to {first + study.timesteps - 1} of {last}"
    unit = "spikes" if study.trained else "thresholds"
    alt = f"{words}. They emit {counts.min():g} to {counts.max():g} {unit} in T = {study.timesteps} steps."
    return figure(charts.trace(trace, color), alt, f"{words}.")


def disagreements(studies: Sequence[Study]) -> Html:
    """Images that ANN and SNN answer differently."""
    parts = (_disagreements(study, len(studies) > 1) for study in studies)
    return section("disagreements", "Where ANN and SNN disagree", *parts)


def _disagreements(study: Study, several: bool) -> Html:
    found, images = study.answers, study.report.images
    title = element("h3", study.network) if several else ""
    if not found.disagreements:
        words = f"Nowhere: at T = {study.timesteps} both give the same answer to all {images:,} images."
        return joined((title, paragraph(words)))
    _, snn, ann, _ = found.right
    words = (
        f"At T = {study.timesteps} their answers to {found.disagreements:,} of {images:,} images differ: the ANN "
        f"alone is right on {ann:,}, the SNN alone on {snn:,}, neither on {found.wrong:,}."
    )
    if len(found.examples) < found.disagreements:
        words += f" The first {len(found.examples)}:"
    cards = element("ul", *(_example(example, study) for example in found.examples), class_="examples")
    return joined((title, paragraph(words), cards))


def _example(example: Example, study: Study) -> Html:
    label, ann, snn = (study.class_name(index) for index in (example.label, example.ann, example.snn))
    lines = [element("dt", "label"), element("dd", label)]
    for who, answer, index, share in (
        ("ANN", ann, example.ann, example.ann_share),
        ("SNN", snn, example.snn, example.snn_share),
    ):
        word, sign = ("right", "✓") if index == example.label else ("wrong", "✗")
        mark = element("span", sign, class_=word, role="img", aria_label=word)
        lines += [element("dt", who), element("dd", mark, f" {answer}, {100 * share:.0f}%")]
    alt = f"Image {example.place + 1}: {label}. The ANN says {ann}, the SNN {snn}."
    return element("li", photo(_pixels(example.image, study), alt), element("dl", *lines))


def _pixels(image: torch.Tensor, study: Study) -> torch.Tensor:
    """The image as people see it, uint8 ``[H, W, 3]``: its normalization undone.

    Of events ``[T, 2, H, W]`` the counts of all bins: brighter pixels red, darker ones blue.
    """
    if image.ndim == 4:
        darker, brighter = image.cpu().sum(0) / image.sum(0).amax().clamp_min(1).cpu()
        image = torch.stack([brighter, torch.zeros_like(darker), darker])
        return image.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    settings = study.provenance.get("preprocessing", {})
    mean, std = (torch.tensor(settings.get(name, [fill] * 3)) for name, fill in (("mean", 0.0), ("std", 1.0)))
    image = image.cpu() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
