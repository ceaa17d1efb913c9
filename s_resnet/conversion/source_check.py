"""What the source network makes of the calibration images: is it right, is it confident, was it made for them?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import errors
from ..data.arguments import Batches, class_numbers, images_of
from ..data.labels import label_notes
from ..errors import InvalidData, message
from ..frontend import batchnorm_check
from ..frontend.batchnorm_check import FEW, Fit, Moments, all_alike, explain
from ..graph.graph import Graph
from ..graph.provenance import BatchNormFit, SourceSummary
from ..runtime.display import Displayed, Table
from ..runtime.processes import all_gather, joined, rank_and_world_size
from .calibrate import check_repeatable
from .portions import analog_parts
from .rivals import rival_notes

CHECKED = 128  # images, and half as many from 128 pixels on
LARGE = 128
UNSURE = 0.1  # share of the way from chance to certainty; a network with less mean confidence knows nothing
HINT = (
    "Prepare the images as in training: size, mean, std and range. "
    "Of a checkpoint, max-pools, strides and ReLU were taken from the architecture; "
    "s_resnet.conversion.alternatives says which other would fit"
)


@dataclass(frozen=True, eq=False, repr=False)
class SourceCheck(Displayed):
    """The source network on the first calibration images.

    Attributes:
        answers: the classes that it answers, ``[B]``.
        labels: the labels of the images, ``[B]``; None if there are none or they are useless.
        confidence: the mean of the largest softmax share.
        classes: how many outputs it has.
        fit: the fit of images and BatchNorm statistics.
        mean: mean of the images, per channel.
        std: standard deviation of the images, per channel.
        notes: what is probably not as intended, in a sentence or two each.
    """

    answers: Tensor
    labels: Tensor | None
    confidence: float
    classes: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def right(self) -> int | None:
        """How many of the answers are the labels; None without labels."""
        return None if self.labels is None else int((self.answers == self.labels).sum())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, answers and labels as lists, and the number of right answers."""
        known = {"answers": self.answers.tolist(), "labels": None if self.labels is None else self.labels.tolist()}
        return {**super().to_dict(), **known, "right": self.right}

    def _lines(self) -> Iterator[str]:
        right = "" if self.right is None else f"right on {self.right} of "
        yield (
            f"The source network, {right}{len(self.answers)} images, {self.classes} classes, "
            f"mean confidence {self.confidence:.2f}"
        )
        if self.fit.layers:
            yield f"BatchNorm {'fits' if self.fit.fits else 'does not fit'} the images (score {self.fit.score:.2f})"
        yield from self.notes

    def _parts(self) -> Iterator[str | Table]:
        yield "\n".join(self._lines())
        layers = ((layer.name, f"{layer.spread:.3f}", f"{layer.shift:.3f}") for layer in self.fit.layers)
        yield Table(("BatchNorm", "spread", "shift"), tuple(layers))

    def summary(self) -> SourceSummary:
        """The part that an artifact keeps."""
        first = None if self.fit.fits or self.fit.first is None else self.fit.first.name
        return SourceSummary(
            images=len(self.answers),
            confidence=self.confidence,
            right=self.right,
            batchnorm=BatchNormFit(self.fit.score, first) if self.fit.layers else None,
            mean=self.mean,
            std=self.std,
            notes=self.notes,
        )


def check_source(graph: Graph, batches: Batches) -> SourceCheck:
    """Run the source network on the first 128 calibration images (64 from 128 pixels on) and check its answers.

    Args:
        graph: an analog graph, with its BatchNorm nodes.
        batches: as in :func:`s_resnet.calibrate`.

    Raises:
        InvalidData: the batches hold no images.
    """
    check_repeatable(batches)
    batches = _of_all(batches) if rank_and_world_size()[1] > 1 else batches
    moments, images, answers, shares = Moments(graph), list[Tensor](), list[Tensor](), list[Tensor]()
    labels: list[Tensor | None] = []
    for batch in batches:
        part = images_of(batch, "calibrate")
        wanted = CHECKED if part.shape[-1] < LARGE else CHECKED // 2
        known = class_numbers(batch, len(part))
        part = part[: wanted - moments.images]
        for some in analog_parts(graph, part, "convert"):
            logits = some
            for _, value in moments.watch(some.to(graph.device)):
                logits = value
            answers.append(logits.flatten(1).argmax(1).cpu())
            shares.append(logits.flatten(1).softmax(1).amax(1).cpu())
        labels.append(None if known is None else known[: len(part)].cpu())
        images.append(part)
        if moments.images >= wanted:
            break
    if not moments.images:
        raise InvalidData(message("calibrate", "", "no images", "at least one", "Pass more images"))
    every = [label for label in labels if label is not None]
    answer, confidence, fit = torch.cat(answers), float(torch.cat(shares).mean()), moments.fit()
    classes = logits.flatten(1).shape[1]
    scores = logits.ndim == 2 and classes > 1
    together = torch.cat(every) if scores and every and len(every) == len(labels) else None
    notes = [*label_notes(answer, together, classes), *(untouched_note(graph) or _of_statistics(fit))]
    if fit.fits and fit.images >= FEW and not untouched_note(graph):
        notes += rival_notes(graph, torch.cat(images).to(graph.device), moments)
    if scores and not every and confidence < 1 / classes + UNSURE * (1 - 1 / classes):
        notes.append(
            f"the network has almost no confidence in its answers (mean {confidence:.2f}, {classes} classes): it was "
            "probably trained on other data, or on images that were preprocessed differently."
        )
    if all_alike(images):
        notes.append(f"all {len(answer)} images that were checked are the same. Pass real images.")
    usable = together is not None and bool(((together >= 0) & (together < classes)).all())
    deviation, mean = torch.std_mean(torch.cat([part.transpose(0, 1).flatten(1) for part in images], 1), 1)
    return SourceCheck(
        answers=answer,
        labels=together if usable else None,
        confidence=confidence,
        classes=classes,
        fit=fit,
        mean=tuple(mean.tolist()),
        std=tuple(deviation.tolist()),
        notes=tuple(notes),
    )


def _of_all(batches: Batches) -> list[tuple[Tensor, Tensor] | Tensor]:
    """The first images of all processes as one batch, with their labels if every process has them."""
    world, parts, labels, count = rank_and_world_size()[1], list[Tensor](), list[Tensor | None](), 0
    for batch in batches:
        parts.append(images_of(batch, "calibrate"))
        labels.append(class_numbers(batch, len(parts[-1])))
        count += len(parts[-1])
        if count >= -(-CHECKED // world):
            break
    known = all(all_gather(None not in labels))
    images = joined(all_gather(torch.cat(parts) if parts else torch.empty(0)))
    if not len(images):
        return []
    numbers = [label for label in labels if label is not None]
    own = torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.int64)
    return [(images, joined(all_gather(own)))] if known else [images]


def warn(notes: Iterable[str], where: str = "convert") -> None:
    """Issue each note as a Python warning."""
    for note in notes:
        errors.warn(f"{where}: {note}")


def untouched_note(graph: Graph) -> list[str]:
    """A note if BatchNorm statistics are still those of a new network."""
    names, norms = batchnorm_check.untouched(graph), Moments(graph).norms
    if not names:
        return []
    count = f"all {len(names)}" if len(names) == len(norms) else f"{len(names)} of {len(norms)}"
    return [
        f"{count} BatchNorm layers ({names[0]} is the first) have mean 0 and variance 1 in every channel: the network "
        "was not trained, or was saved without its running statistics. Load the right weights before converting."
    ]


def _of_statistics(fit: Fit) -> list[str]:
    if fit.fits:
        return []
    return [
        f"images and network do not fit: activations differ from the running statistics of BatchNorm, {explain(fit)}. "
        f"{HINT}."
    ]
