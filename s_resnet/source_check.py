"""What the source network itself makes of the calibration images: is it right, is it sure, was it made for them?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import batchnorm_check, errors
from .arguments import class_numbers, images_of
from .batchnorm_check import FEW, Fit, Moments, all_alike, explain
from .calibrate import Batches, check_repeatable
from .display import Displayed, Table
from .errors import InvalidData
from .graph import Graph
from .intervals import wilson
from .rivals import rival_notes

CHECKED = 128  # images, and half as many from 128 pixels on
LARGE = 128
OTHERS = 4  # images of a class from which on it tells whether the class is another one's
UNSURE = 0.1  # of the way from chance to certainty: a mean confidence below it is one of no knowledge
HINT = (
    "Prepare the images as in training: size, mean, std and range. "
    "What has no weights is in no checkpoint, so max-pools, strides and ReLU were taken from the architecture"
)


@dataclass(frozen=True, eq=False, repr=False)
class SourceCheck(Displayed):
    """The source network on the first calibration images.

    answers: its classes ``[B]``. labels: theirs ``[B]``, None where there are none that tell anything. confidence: the
    mean largest softmax share. classes: its outputs. fit: of its BatchNorm statistics. mean, std: of the images, per
    channel. notes: what about them is most probably not as it was meant, one sentence or two each.
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
        """The fields as plain JSON values, answers and labels as lists; and how many are right."""
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

    def summary(self) -> dict[str, Any]:
        """What an artifact keeps of it."""
        known: dict[str, Any] = {"images": len(self.answers), "confidence": self.confidence}
        if self.right is not None:
            known["right"] = self.right
        if self.fit.layers:
            first = None if self.fit.fits or self.fit.first is None else self.fit.first.name
            known["batchnorm"] = {"score": self.fit.score, "first": first}
        return {**known, "mean": list(self.mean), "std": list(self.std), "notes": list(self.notes)}


def check_source(graph: Graph, batches: Batches) -> SourceCheck:
    """Run the source network on the first 128 calibration images (64 from 128 pixels on) and look at what comes out.

    Args:
        graph: an analog graph, with its BatchNorm nodes.
        batches: as of :func:`s_resnet.calibrate`.

    Raises InvalidData for batches that are none of images.
    """
    check_repeatable(batches)
    moments, images, answers, shares = Moments(graph), list[Tensor](), list[Tensor](), list[Tensor]()
    labels: list[Tensor | None] = []
    for batch in batches:
        part = images_of(batch, "calibrate")
        wanted = CHECKED if part.shape[-1] < LARGE else CHECKED // 2
        known = class_numbers(batch, len(part))
        part = part[: wanted - moments.images]
        logits = part
        for _, value in moments.watch(part.to(graph.device)):
            logits = value
        answers.append(logits.flatten(1).argmax(1).cpu())
        shares.append(logits.flatten(1).softmax(1).amax(1).cpu())
        labels.append(None if known is None else known[: len(part)].cpu())
        images.append(part)
        if moments.images >= wanted:
            break
    if not moments.images:
        raise InvalidData("calibrate: got no images; expected at least one. Pass more images.")
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
            f"the network is hardly sure of any answer (mean confidence {confidence:.2f}, {classes} classes): it was "
            "trained on other images, or on images prepared in another way."
        )
    if all_alike(images):
        notes.append(f"All {len(answer)} images that were looked at are the same: they tell little. Pass real images.")
    usable = together is not None and bool(((together >= 0) & (together < classes)).all())
    deviation, mean = torch.std_mean(torch.cat([part.transpose(0, 1).flatten(1) for part in images], 1), 1)
    return SourceCheck(
        *(answer, together if usable else None, confidence, classes, fit),
        mean=tuple(mean.tolist()),
        std=tuple(deviation.tolist()),
        notes=tuple(notes),
    )


def warn(notes: Iterable[str], where: str = "convert") -> None:
    """Each note as a warning of Python's."""
    for note in notes:
        errors.warn(f"{where}: {note}")


def untouched_note(graph: Graph) -> list[str]:
    """What to know where BatchNorm statistics are those from before any training."""
    names, norms = batchnorm_check.untouched(graph), Moments(graph).norms
    if not names:
        return []
    count = f"all {len(names)}" if len(names) == len(norms) else f"{len(names)} of {len(norms)}"
    return [
        f"{count} BatchNorm layers ({names[0]} is the first) have mean 0 and variance 1 in every channel: the network "
        "was not trained, or was saved without its running statistics. Load the right weights before converting."
    ]


def at_chance(right: int, images: int, classes: int) -> bool:
    """Whether an accuracy is less than a quarter of the way from chance to perfect, and few images are not why."""
    chance = 1 / max(classes, 2)
    return right / images < chance + 0.25 * (1 - chance) and wilson(right, images)[1] < chance + 0.5 * (1 - chance)


def _of_statistics(fit: Fit) -> list[str]:
    if fit.fits:
        return []
    return [
        f"images and network do not fit: activations differ from the running statistics of BatchNorm, {explain(fit)}. "
        f"{HINT}."
    ]


def label_notes(answers: Tensor, labels: Tensor | None, classes: int, kind: str = "calibration") -> list[str]:
    """What to know of labels ``[B]`` that the source network's answers ``[B]`` do not agree with."""
    if labels is None or bool((labels < 0).all()):
        return []
    low, high, images = int(labels.min()), int(labels.max()), len(labels)
    if low < 0 or high >= classes:
        return [
            f"got labels {low} to {high} for a network of {classes} classes; expected 0 to {classes - 1}. They are "
            "ignored. Number the classes from 0, in the order of the network's outputs."
        ]
    if images > 1 and low == high and classes > 2:
        if at_chance(int((answers == labels).sum()), images, classes):
            return [f"all {images} labels are {low}, and the network disagrees: they seem to be placeholders."]
        return []
    moved, right = _moved(answers, labels, classes), int((answers == labels).sum())
    if moved:
        label, answer, same, count = moved[0]
        return [
            f"the network is right on {right} of {images} {kind} images, and {len(moved)} classes get the answer "
            f"of another one (of label {label}, {same} of {count} images are answered {answer}): the classes of the "
            "data are in another order than the network's. Match them: s_resnet.match_classes(data, names)."
        ]
    if at_chance(right, images, classes):
        return [
            f"the network is right on {right} of {images} {kind} images, hardly more than by chance (1 in "
            f"{classes}): it was trained on other images, with another preparation, or with another order of classes."
        ]
    return []


def _moved(answers: Tensor, labels: Tensor, classes: int) -> list[tuple[int, int, int, int]]:
    """Labels of which most images get one other answer and few their own: label, answer, and how many of how many.

    A wrong order moves two classes at least, and no two to the same answer: a network that always says the same knows
    nothing of their order.
    """
    found = []
    for label in sorted(set(labels.tolist())):
        given = answers[labels == label].bincount(minlength=classes)
        answer, same, count = int(given.argmax()), int(given.max()), int(given.sum())
        if answer != label and count >= OTHERS and same > 0.6 * count and int(given[label]) <= 0.2 * count:
            found.append((label, answer, same, count))
    distinct = len({answer for _, answer, _, _ in found}) == len(found)
    return found if len(found) > 1 and distinct else []
