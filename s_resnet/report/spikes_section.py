"""What shows single images: spikes and membranes over time, and answers that differ."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..data.images import Preprocessing
from ..simulation.record import Trace
from . import charts
from .charts import Picture, data_uri
from .network_report import Example, NetworkReport


@dataclass(frozen=True)
class Photo:
    """An image as people see it, ``[H, W, 3]``; small ones are shown with their pixels."""

    src: str
    alt: str
    width: int
    height: int

    @property
    def kind(self) -> str:
        """The class that the style sheet knows."""
        return "small" if self.width < 100 else "large"


def first_photo(net: NetworkReport) -> Photo:
    """The image whose spikes are shown."""
    images, _ = net.answers.details[0]
    return _photo(images.select(-4, 0), net, "The first image.")


def first_class(net: NetworkReport) -> str:
    """The class of that image."""
    return net.class_name(int(net.answers.details[0][1][0]))


def traces(net: NetworkReport, color: str) -> list[Picture]:
    """Rasters and membranes of the recorded layers."""
    return [_trace(trace, color, net) for trace in net.traces]


def _trace(trace: Trace, color: str, net: NetworkReport) -> Picture:
    counts = trace.spikes.sum(0)
    words = f"{trace.layer}: spikes of {len(trace.neurons)} neurons"
    if trace.membrane is not None:
        words += f"; membranes of {', '.join(f'#{row + 1}' for row in charts.shown(trace))}, dashed: threshold"
    first, last = trace.begins + trace.lag + 1, net.end_to_end_steps
    if last > net.timesteps:
        words += f". It may fire in steps {first} to {first + net.timesteps - 1} of {last}"
    emitted = f"They emit {counts.min():g} to {counts.max():g} {net.rival.unit} in T = {net.timesteps} steps."
    return Picture(charts.trace(trace, color), f"{words}. {emitted}", f"{words}.")


@dataclass(frozen=True)
class Disagreement:
    """An image that ANN and SNN answer differently: who says what, and whether that is right."""

    photo: Photo
    label: str
    answers: tuple[tuple[str, bool, str], ...]


def disagreements(net: NetworkReport) -> list[Disagreement]:
    """The first images that ANN and SNN answer differently."""
    return [_disagreement(example, net) for example in net.answers.examples]


def _disagreement(example: Example, net: NetworkReport) -> Disagreement:
    label, ann, snn = (net.class_name(index) for index in (example.label, example.ann, example.snn))
    alt = f"Image {example.place + 1}: {label}. The ANN says {ann}, the SNN {snn}."
    answers = (
        ("ANN", example.ann == example.label, f"{ann}, {100 * example.ann_share:.0f}%"),
        ("SNN", example.snn == example.label, f"{snn}, {100 * example.snn_share:.0f}%"),
    )
    return Disagreement(_photo(example.image, net, alt), label, answers)


def _photo(image: Tensor, net: NetworkReport, alt: str) -> Photo:
    pixels, file = _pixels(image, net), io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    height, width = pixels.shape[:2]
    return Photo(data_uri("image/png", file.getvalue()), alt, width, height)


def _pixels(image: Tensor, net: NetworkReport) -> Tensor:
    """The image as people see it, uint8 ``[H, W, 3]``: its normalization undone.

    Of events ``[T, 2, H, W]`` the counts of all bins: brighter pixels red, darker ones blue. Of a signal ``[C, 1, L]``
    a row of gray for each channel; of an image of other than three channels their mean.
    """
    if image.ndim == 4:
        darker, brighter = image.cpu().sum(0) / image.sum(0).amax().clamp_min(1).cpu()
        image = torch.stack([brighter, torch.zeros_like(darker), darker])
        return image.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    known, image = net.provenance.preprocessing, image.cpu()
    if isinstance(known, Preprocessing):
        mean, std = known.per_channel()
        image = image * std + mean
    elif len(image) != 3 or image.shape[1] == 1:
        image = image.flatten(1)[None] if image.shape[1] == 1 else image.mean(0, keepdim=True)
        low, high = image.aminmax()
        image = (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    image = image.expand(3, -1, -1)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
