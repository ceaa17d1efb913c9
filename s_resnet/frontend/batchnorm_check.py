"""BatchNorm remembers the images and the network that it was trained with: do these images and this network fit them?

A checkpoint holds neither max-pools, strides and nonlinearities nor how images were prepared. What was guessed wrong
shows in the running statistics, since the activations before every BatchNorm are then others than in training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidData, message
from ..graph.graph import Graph
from ..graph.ops import BatchNorm2d
from ..runtime.display import Displayed

# Limits that right and wrong pairs of network and images were measured against: docs/explanation/batchnorm-check.md.
SPREAD, SHIFT = 0.15, 0.3
NOTABLE = (0.25, 0.2)  # spread and shift of a single layer that is named as the first
FEW, SOME = 16, 32  # images below which nothing can be told, and below which right pairs differ by a quarter more
UNUSUAL = 9.0  # times the power of the median image: an image that a layer answers with so much is left out


@dataclass(frozen=True, repr=False)
class LayerFit(Displayed):
    """How far the activations before a BatchNorm are from its running statistics, in the median of its channels.

    With the running mean and variance m and s^2, and mean and variance n and u^2 over images and pixels::

        spread = |log(u / s)|,   shift = |n - m| / s        (both variances with BatchNorm's eps)

    distance: the mean over channels of min(spread^2, 1) + min(shift^2, 1), which tells more where two networks are
    compared on the same images (:mod:`.rivals`).
    """

    name: str
    spread: float
    shift: float
    distance: float = 0.0


@dataclass(frozen=True, repr=False)
class Fit(Displayed):
    """All of a network's :class:`LayerFit`, in execution order, over ``images`` images."""

    layers: tuple[LayerFit, ...]
    images: int

    @property
    def score(self) -> float:
        """Above 1 where images and network do not fit: the larger of two deviations, each relative to its limit.

        They are the spread of the median layer and the shift of the worst. (The spread of the worst layer tells less: a
        few unusual images can make up most of a late layer's variance.)
        """
        if not self.layers:
            return 0.0
        spread = statistics.median(layer.spread for layer in self.layers)
        return max(spread / SPREAD, max(layer.shift for layer in self.layers) / SHIFT)

    @property
    def fits(self) -> bool:
        """Whether images and network fit; also where there are too few images to tell."""
        return self.images < FEW or self.score <= (1 if self.images >= SOME else 1.25)

    @property
    def first(self) -> LayerFit | None:
        """The first layer that is notably off: the cause lies between the one before and it. Else the one most off."""
        off = (layer for layer in self.layers if layer.spread > NOTABLE[0] or layer.shift > NOTABLE[1])
        return next(off, self.worst)

    @property
    def worst(self) -> LayerFit | None:
        """The layer that is most off."""
        return max(self.layers, key=lambda at: max(at.spread / NOTABLE[0], at.shift / NOTABLE[1]), default=None)


class Moments:
    """Mean and variance over pixels of what every BatchNorm of a graph reads, per image and channel."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.images = graph, 0
        self.norms = {node.name: node.op for node in graph.nodes if isinstance(node.op, BatchNorm2d)}
        self.found: dict[str, list[Tensor]] = {graph[name].inputs[0]: [] for name in self.norms}  # [2, B, C] per batch

    def watch(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The graph's activations on a batch, taken in on the way."""
        self.images += len(images)
        for name, value in self.graph.activations(images):
            if name in self.found:
                places = value.flatten(2) if value.ndim > 2 else value.unsqueeze(2)  # features are of one place
                variance, mean = torch.var_mean(places, 2, correction=0)
                self.found[name].append(torch.stack([variance, mean]).double())
            yield name, value

    def fit(self, images: int | None = None) -> Fit:
        """How well they, or the first ``images`` of them, agree with the running statistics."""
        layers = []
        for name, op in self.norms.items():
            variance, mean = torch.cat(self.found[self.graph[name].inputs[0]], 1)[:, :images]
            layers.append(_layer_fit(name, variance, mean, op))
        return Fit(tuple(layers), self.images if images is None else images)


def _layer_fit(name: str, variance: Tensor, mean: Tensor, op: BatchNorm2d) -> LayerFit:
    """Of variances and means over pixels ``[B, C]``; a few images that are far from all others do not count."""
    usual = op.var.double() + op.eps
    power = ((variance + (mean - op.mean) ** 2) / usual).mean(1)
    kept = power <= UNUSUAL * power.median()
    variance, mean = variance[kept], mean[kept]
    center = mean.mean(0)
    whole = variance.mean(0) + ((mean - center) ** 2).mean(0) + op.eps
    spread, shift = (whole / usual).log().abs() / 2, (center - op.mean).abs() / usual.sqrt()
    distance = (spread**2).clamp(max=1).mean() + (shift**2).clamp(max=1).mean()
    return LayerFit(name, float(spread.median()), float(shift.median()), float(distance))


def explain(fit: Fit) -> str:
    """In a sentence, where and how far images and network are apart."""
    first, worst = fit.first, fit.worst
    assert first is not None and worst is not None
    said = f"first at {first.name} ({_distance(first)})"
    return said if worst is first else f"{said}, most at {worst.name} ({_distance(worst)})"


def _distance(layer: LayerFit) -> str:
    times = math.exp(min(layer.spread, 50.0))
    return f"spread off {times:.3g} times, mean off by {layer.shift:.2g} of the spread"


def untouched(graph: Graph) -> list[str]:
    """The BatchNorm layers that have mean 0 and variance 1 in every channel, as before any training."""
    norms = ((node.name, node.op) for node in graph.nodes if isinstance(node.op, BatchNorm2d))
    return [name for name, op in norms if bool((op.mean == 0).all()) and bool((op.var == 1).all())]


def check_statistics(name: str, mean: Tensor, var: Tensor) -> None:
    """Raise InvalidData for running statistics that no training gives: negative variances, NaN, infinity."""
    for what, values, bad in (
        ("running_var", var, ~(var >= 0) | ~torch.isfinite(var)),
        ("running_mean", mean, ~torch.isfinite(mean)),
    ):
        if bool(bad.any()):
            kind = "negative" if bool((values[bad] < 0).all()) and bool(torch.isfinite(values).all()) else "not finite"
            got = f"{int(bad.sum())} of {values.numel()} values {kind}"
            expected = f"finite numbers{(' from 0 on' if what == 'running_var' else '')}, as training keeps them"
            remedy = (
                "Take a checkpoint in which they are right, or run training images through the model in train() mode"
            )
            raise InvalidData(message(f"{name}.{what}", "", got, expected, remedy))


def check_norms(graph: Graph) -> Graph:
    """Itself, or InvalidData for running statistics as :func:`check_statistics` says, by the layer's name."""
    for node in graph.nodes:
        if isinstance(node.op, BatchNorm2d):
            check_statistics(node.name, node.op.mean, node.op.var)
    return graph


def check_answer(graph: Graph, images: Tensor, answer: Tensor, who: str) -> None:
    """Raise InvalidData, naming the first layer, where the network's answer on these images is not finite."""
    if bool(torch.isfinite(answer).all()):
        return
    for name, value in graph.activations(images):
        if not bool(torch.isfinite(value).all()):
            got = f"values that are not finite from {name} on, on the example"
            remedy = "Check its weights, and the scale of the images"
            raise InvalidData(message(f"{who}", "", got, "a finite answer", remedy))


def all_alike(images: Sequence[Tensor]) -> bool:
    """Whether every image of these batches is the same."""
    first = images[0][:1]
    return sum(map(len, images)) > 1 and all(bool((part == first).all()) for part in images)
