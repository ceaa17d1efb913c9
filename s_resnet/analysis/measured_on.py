"""Which images an evaluation used, which were left out or counted twice, and what about them looks wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.classes import same_names
from ..data.folders import TRAINING
from ..data.labels import label_notes
from ..data.leakage import image_fingerprints
from ..data.loader import Loader
from ..data.wordnet import plain
from ..errors import InvalidData, message
from ..graph.graph import Graph

FITTING = ("fit_thresholds", "calibrate_neurons")  # passes that fit a network to its T
# Limits between calibration and evaluation images: ratio of standard deviations, shift of the mean in such deviations.
RATIO, SHIFT, ENOUGH = math.exp(0.6), 1.0, 16


def fitted_for(snn: Graph) -> int | None:
    """The T that the recipe was fitted to; None for a recipe that is not fitted to a T."""
    recipe = snn.provenance.recipe
    return recipe.timesteps if any(step.name in FITTING for step in recipe.passes or ()) else None


def every_fitted(snn: Graph) -> tuple[int, ...]:
    """Every T that the network was fitted to, ascending: several of a network for several; none if it is not fitted."""
    own = fitted_for(snn)
    return snn.fitted or (() if own is None else (own,))


def described_data(loader: object, unreadable: int, events: tuple[int, int]) -> dict[str, Any]:
    """What a loader reads, in the form of :attr:`Report.data`; counts are over all processes."""
    if not isinstance(loader, Loader):
        dataset = _dataset(loader)
        of = "" if dataset is None else f" of {type(dataset).__name__}"
        root = getattr(dataset, "root", None)
        return {"loader": f"{type(loader).__name__}{of}{f' {root}' if isinstance(root, str) else ''}"}
    found = {"path": loader.data.spec, "split": loader.data.split, "of": len(loader.data)}
    left_out = {"calibrated_on": loader.excluded, "unreadable": unreadable, "no_images": list(loader.data.skipped)}
    if events[0]:
        left_out["events_outside"] = events[1] / events[0]
    return {**found, "left_out": left_out}


def training_notes(loader: object) -> list[str]:
    """A note if the network's ANN may have been trained on these images."""
    if not isinstance(loader, Loader):
        return []
    if loader.data.split == "train" or Path(loader.data.spec).name.lower() in TRAINING:
        return ["these are training images, on which accuracy is higher than on new ones. Evaluate on held-out images."]
    if loader.excluded and loader.data.split == "all":
        return ["these lie beside the calibration images: if the ANN was trained on them, accuracies are too high."]
    return []


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Check that every label is a class of the network.

    Raises:
        InvalidData: one is not.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        got, expected = f"label {int(wrong[0])} for a network of {classes} classes", f"labels 0 ... {classes - 1}"
        raise InvalidData(message(where, "", got, expected, "Use data with the classes of the network"))


def check_names(loader: object, snn: Graph) -> list[str]:
    """A note if the class names are not the network's.

    Raises:
        InvalidData: they are the network's, but in another order.
    """
    names = snn.provenance.classes or ()
    theirs = getattr(loader.data if isinstance(loader, Loader) else _dataset(loader), "classes", None)
    if not names or not isinstance(theirs, list | tuple) or same_names(theirs, names):
        return []
    theirs = tuple(map(str, theirs))
    place = next((i for i, (a, b) in enumerate(zip(theirs, names, strict=False)) if not same_names([a], [b])), 0)
    got, expected = (f"{some[place]!r} as number {place}" for some in (theirs, names))
    if same_names(sorted(map(plain, theirs)), sorted(map(plain, names))):
        remedy = "Number them as the network does: s_resnet.data.match_classes(data, snn.provenance.classes)"
        got = f"the network's classes in another order, {got}"
        raise InvalidData(message("evaluate", "", got, expected, remedy))
    return [f"class names differ from the network's ({got}, in the network {expected}); classes are matched by number"]


def _dataset(loader: object) -> Any:
    """The data set inside a DataLoader, and inside a Subset."""
    dataset = getattr(loader, "dataset", None)
    while (inner := getattr(dataset, "dataset", None)) is not None:
        dataset = inner
    return dataset


@dataclass
class Seen:
    """What went through an evaluation.

    Attributes:
        marks: a fingerprint of every image.
        answers: the source's answers.
        labels: the labels.
        sums: sums of values and of their squares, ``[2, C]`` in float64.
        count: the number of values per channel.
    """

    marks: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    sums: Tensor = field(default_factory=lambda: torch.zeros(2, 1, dtype=torch.float64))
    count: int = 0

    def add(self, images: Tensor, labels: Tensor, answers: Tensor) -> list[int]:
        """Add a batch with the classes that the source answers; returns the fingerprints of its images."""
        marks = image_fingerprints(images)
        self.marks.append(torch.tensor(marks, dtype=torch.int64))
        self.answers.append(answers.cpu())
        self.labels.append(labels.cpu())
        if images.ndim == 4:  # the number of events differs too much between recordings
            values = images.double()
            self.sums = self.sums + torch.stack([values.sum((0, 2, 3)), (values**2).sum((0, 2, 3))]).cpu()
            self.count += images.numel() // images.shape[1]
        return marks


def repeated(parts: Iterable[Seen]) -> int:
    """How many images had been counted before, in any process."""
    marks = torch.cat([mark for part in parts for mark in part.marks])
    return len(marks) - len(torch.unique(marks))


def notes_on(snn: Graph, parts: Sequence[Seen], classes: int) -> list[str]:
    """What about the images of all processes, or the answers to them, is probably not as intended."""
    labels = torch.cat([one for part in parts for one in part.labels])
    answers = torch.cat([one for part in parts for one in part.answers])
    notes = label_notes(answers, labels, classes, "evaluated")
    again = repeated(parts)
    if again:
        advice = ": give each process its own part (s_resnet.runtime.shard)" if len(parts) > 1 else ""
        notes.append(f"{again} of the {len(labels)} images are exact repeats of others{advice}.")
    check, count = snn.provenance.check, sum(part.count for part in parts)
    if count and len(labels) >= ENOUGH and check.mean is not None and check.std is not None:
        mean, square = sum((part.sums for part in parts), torch.zeros(2, 1, dtype=torch.float64)) / count
        notes += _moved(mean, (square - mean**2).clamp_min(0).sqrt(), (check.mean, check.std))
    return notes


def _moved(mean: Tensor, spread: Tensor, known: tuple[Sequence[float], Sequence[float]]) -> list[str]:
    """A note if the images have another range than the calibration images, whose mean and std are ``known``."""
    usual_mean, usual = (torch.tensor(numbers, dtype=torch.float64) for numbers in known)
    if not len(usual) == len(usual_mean) == len(spread) or not bool((usual > 0).all()):
        return []
    ratio, shift = spread / usual, (mean - usual_mean).abs() / usual
    off = (ratio > RATIO) | (ratio < 1 / RATIO) | (shift > SHIFT)
    if not bool(off.any()):
        return []
    worst = int(torch.maximum(ratio.log().abs(), shift).argmax())
    return [
        f"the images have another range than the calibration images: channel {worst} has mean "
        f"{float(mean[worst]):.3g} and standard deviation {float(spread[worst]):.3g}, but had "
        f"{float(usual_mean[worst]):.3g} and {float(usual[worst]):.3g} there. Preprocess both the same way."
    ]
