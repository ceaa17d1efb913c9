"""Do images and network fit the running statistics of BatchNorm, which remember the training?

A checkpoint does not say where max-pools, strides and nonlinearities are, nor how images were preprocessed. A wrong
guess shows in the running statistics, since the activations before a BatchNorm are then different from those in
training.
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

# Limits from measurements of right and wrong pairs of network and images: docs/explanation/batchnorm-check.md.
SPREAD, SHIFT = 0.15, 0.3
NOTABLE = (0.25, 0.2)  # spread and shift from which on a single layer is named as the first
FEW, SOME = 16, 32  # with fewer images nothing can be told; with fewer than SOME right pairs differ by a quarter more
UNUSUAL = 9.0  # times the median power: images with more in a layer are left out


@dataclass(frozen=True, repr=False)
class LayerFit(Displayed):
    """How far the activations before a BatchNorm are from its running statistics.

    For each channel, with running mean and variance ``m`` and ``s^2``, and mean and variance ``n`` and ``u^2`` over
    images and pixels::

        spread = |log(u / s)|,   shift = |n - m| / s        (both variances with BatchNorm's eps)

    Attributes:
        name: the layer.
        spread: the median of the spreads of its channels.
        shift: the median of their shifts.
        distance: the mean over channels of ``min(spread^2, 1) + min(shift^2, 1)``, which says more where two networks
            are compared on the same images.
    """

    name: str
    spread: float
    shift: float
    distance: float = 0.0


@dataclass(frozen=True, repr=False)
class Fit(Displayed):
    """How well images and network fit.

    Attributes:
        layers: a :class:`LayerFit` for each BatchNorm, in execution order.
        images: the number of images.
    """

    layers: tuple[LayerFit, ...]
    images: int

    @property
    def score(self) -> float:
        """Above 1 where images and network do not fit: the larger of two deviations, each divided by its limit.

        They are the spread of the median layer and the shift of the worst one. The spread of the worst layer says less,
        since a few unusual images can make up most of a late layer's variance.
        """
        if not self.layers:
            return 0.0
        spread = statistics.median(layer.spread for layer in self.layers)
        return max(spread / SPREAD, max(layer.shift for layer in self.layers) / SHIFT)

    @property
    def fits(self) -> bool:
        """Whether images and network fit; True where there are too few images to tell."""
        return self.images < FEW or self.score <= (1 if self.images >= SOME else 1.25)

    @property
    def first(self) -> LayerFit | None:
        """The first layer that deviates notably, or else the worst one.

        The cause lies between the layer before it and this one.
        """
        off = (layer for layer in self.layers if layer.spread > NOTABLE[0] or layer.shift > NOTABLE[1])
        return next(off, self.worst)

    @property
    def worst(self) -> LayerFit | None:
        """The layer that deviates most."""
        return max(self.layers, key=lambda at: max(at.spread / NOTABLE[0], at.shift / NOTABLE[1]), default=None)


class Moments:
    """Mean and variance over pixels of the input of every BatchNorm of a graph, per image and channel."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.images = graph, 0
        self.norms = {node.name: node.op for node in graph.nodes if isinstance(node.op, BatchNorm2d)}
        self.found: dict[str, list[Tensor]] = {graph[name].inputs[0]: [] for name in self.norms}  # [2, B, C] per batch

    def watch(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The graph's activations on a batch by name, recorded as they pass."""
        self.images += len(images)
        for name, value in self.graph.activations(images):
            if name in self.found:
                pixels = value.flatten(2) if value.ndim > 2 else value.unsqueeze(2)  # features have one pixel
                variance, mean = torch.var_mean(pixels, 2, correction=0)
                self.found[name].append(torch.stack([variance, mean]).double())
            yield name, value

    def fit(self, images: int | None = None) -> Fit:
        """How well all images, or the first ``images`` of them, agree with the running statistics."""
        layers = []
        for name, op in self.norms.items():
            variance, mean = torch.cat(self.found[self.graph[name].inputs[0]], 1)[:, :images]
            layers.append(_layer_fit(name, variance, mean, op))
        return Fit(tuple(layers), self.images if images is None else images)


def _layer_fit(name: str, variance: Tensor, mean: Tensor, op: BatchNorm2d) -> LayerFit:
    """The fit of a layer from variances and means over pixels ``[B, C]``, without images far from all others."""
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
    """Where and how far images and network deviate, in words."""
    first, worst = fit.first, fit.worst
    assert first is not None and worst is not None
    said = f"first at {first.name} ({_distance(first)})"
    return said if worst is first else f"{said}, most at {worst.name} ({_distance(worst)})"


def _distance(layer: LayerFit) -> str:
    times = math.exp(min(layer.spread, 50.0))
    return f"spread off {times:.3g} times, mean off by {layer.shift:.2g} of the spread"


def untouched(graph: Graph) -> list[str]:
    """The BatchNorm layers with mean 0 and variance 1 in every channel, as before training."""
    norms = ((node.name, node.op) for node in graph.nodes if isinstance(node.op, BatchNorm2d))
    return [name for name, op in norms if bool((op.mean == 0).all()) and bool((op.var == 1).all())]


def check_statistics(name: str, mean: Tensor, var: Tensor) -> None:
    """Check the running statistics of a layer.

    Raises:
        InvalidData: a variance is negative, or a number is not finite.
    """
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
    """The same graph, after :func:`check_statistics` of every BatchNorm.

    Raises:
        InvalidData: as there; the message names the layer.
    """
    for node in graph.nodes:
        if isinstance(node.op, BatchNorm2d):
            check_statistics(node.name, node.op.mean, node.op.var)
    return graph


def check_answer(graph: Graph, images: Tensor, answer: Tensor, who: str) -> None:
    """Check that the answer of a network is finite.

    Args:
        graph: the network, to find the first layer with a value that is not finite.
        images: ``[B, C, H, W]``.
        answer: its logits for them.
        who: what to call it in the message.

    Raises:
        InvalidData: the answer is not finite; the message names the first such layer.
    """
    if bool(torch.isfinite(answer).all()):
        return
    for name, value in graph.activations(images):
        if not bool(torch.isfinite(value).all()):
            got = f"values that are not finite from {name} on, on the example"
            remedy = "Load its weights again, and pass images preprocessed as in training"
            raise InvalidData(message(who, "", got, "a finite answer", remedy))


def all_alike(images: Sequence[Tensor]) -> bool:
    """Whether all images of these batches are the same."""
    first = images[0][:1]
    return sum(map(len, images)) > 1 and all(bool((part == first).all()) for part in images)
