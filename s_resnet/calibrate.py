"""Calibration: the scale lambda of every activation, from images or, without any, from the BatchNorm statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .arguments import class_numbers, images_of
from .errors import ConversionError, InvalidData
from .graph import Graph
from .ops import Add, BatchNorm2d, Conv2d, Input, Linear, Op, Pad, ReLU, Slice

Batches = Iterable[Any]  # of images [B, C, H, W], alone or as (images, labels)
HALF = 1 << 16


@dataclass(frozen=True)
class Samples:
    """Calibration images kept apart from the statistics, for passes that search: ``[B, C, H, W]``, labels ``[B]``."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Calibration:
    """The scale of every activation: ``scales[node]`` is lambda, positive and finite.

    ``percentile`` in percent; ``images`` counted; ``source`` is ``"data"`` or ``"batchnorm"``; ``silent`` names the
    nodes that were never above zero and so have a stand-in scale. ``rounding`` is the share of its activations that a
    layer running T steps is expected to lose, times T; known from ``"batchnorm"``.
    ``samples`` and ``fitting`` are calibration images, for passes that search and for passes that fit,
    ``[B, C, H, W]``; no image is in both, and neither are saved. ``marks`` tell every calibration image again
    (:func:`image_marks`), so that an evaluation can say how many of its images it has been calibrated on.
    """

    scales: Mapping[str, float]
    percentile: float
    images: int
    source: str
    silent: tuple[str, ...] = ()
    samples: Samples | None = None
    rounding: float | None = None
    fitting: Tensor | None = None
    marks: tuple[int, ...] = ()

    def summary(self) -> dict[str, Any]:
        """What an artifact keeps of it."""
        return {
            "source": self.source,
            "percentile": self.percentile,
            "images": self.images,
            "held_out": 0 if self.samples is None else len(self.samples.images),
            "fitted": 0 if self.fitting is None else len(self.fitting),
            "scales": dict(self.scales),
            "silent": list(self.silent),
            "marks": list(self.marks),
        }


def fitting_images(calibration: Calibration, where: str) -> Tensor:
    """The images to fit to. Raises ConversionError where there are none."""
    if calibration.fitting is None:
        raise ConversionError(
            f"{where}: got no calibration images; expected 256 to 1,024. Pass --calibration DATA, or choose the recipe "
            "s-resnet, which can do without."
        )
    return calibration.fitting


def calibrated_nodes(graph: Graph) -> list[str]:
    """The nodes whose scale a conversion needs: every ReLU, and the logits."""
    return [node.name for node in graph.nodes if isinstance(node.op, ReLU) or node is graph.nodes[-1]]


def calibrate(
    graph: Graph,
    batches: Batches,
    percentile: float = 99.9,
    held_out: int = 0,
    progress: bool = False,
    fitting: int = 0,
) -> Calibration:
    """The exact ``percentile`` of every ReLU output and of the logits over all calibration images, zeros included.

    lambda is the element of 1-based rank ``floor(p n)`` of all ``n`` values sorted ascending. It is found by a radix
    search on the bits of the floats: one pass counts the upper 16 bits of every value, a second pass the lower 16 of
    those that share the upper 16 of the answer. So memory is 2 tables of 65,536 counts per node whatever the number
    of images, and neither the order of the batches nor their size matters.

    Args:
        graph: an analog graph.
        batches: gone through twice, so a list or a DataLoader, not a generator; the same images each time, shuffled
            or not.
        percentile: in percent, above 0 and at most 100.
        held_out: how many of the first images (at most half) to leave out and return as ``samples``.
        progress: show a bar on stderr when it is a terminal.
        fitting: how many of the other images, at most, to return for passes that fit to images.

    Raises:
        InvalidData: a one-shot iterator, no images, images that do not fit, or values that are not finite.

    Source: percentile normalization as in the released code of arXiv:1805.01352 (Hu, Tang, Pan): all scalars of a
    layer sorted, element floor(p n).
    """
    _check_percentile(percentile)
    check_repeatable(batches)
    samples = _first_images(batches, held_out)
    kept_apart = [] if samples is None else image_marks(samples.images)
    names = calibrated_nodes(graph)

    upper, counted = _count(
        graph, batches, kept_apart, "calibrate 1/2", progress, lambda _, key: (key >> 16) + HALF // 2
    )
    for name in names:
        if upper[name][_INFINITE].any():
            raise InvalidData(f"{name}: got activations that are not finite; expected numbers. Check the images.")
    ranks = {name: _rank(percentile, int(upper[name].sum())) for name in names}
    bucket = {name: int(torch.searchsorted(upper[name].cumsum(0), ranks[name])) for name in names}

    def inside(name: str, key: Tensor) -> Tensor:
        return key[(key >> 16) + HALF // 2 == bucket[name]] & (HALF - 1)

    lower, again = _count(graph, batches, kept_apart, "calibrate 2/2", progress, inside)
    if again != counted:
        raise InvalidData(
            "calibrate: got other images when going through the batches again; expected the same ones, in any order. "
            "Turn off random augmentation and drop_last."
        )
    values = {}
    for name in names:
        rank = ranks[name] - int(upper[name][: bucket[name]].sum())
        low = min(int(torch.searchsorted(lower[name].cumsum(0), rank)), HALF - 1)
        values[name] = _value(((bucket[name] - HALF // 2) << 16) | low)
    found = _calibration(values, percentile, counted[0], "data", samples)
    return replace(found, marks=counted[1], fitting=_others(batches, kept_apart, fitting) if fitting else None)


def check_repeatable(batches: Batches) -> None:
    """Raise InvalidData for a one-shot iterator."""
    if iter(batches) is batches:
        raise InvalidData(
            "calibrate: got a one-shot iterator of batches; expected something that can be gone through twice. "
            "Pass a list or a DataLoader."
        )


def _check_percentile(percentile: float) -> None:
    if not 0 < percentile <= 100:
        raise InvalidData(f"calibrate: got percentile {percentile}; expected above 0 and at most 100. Use 99.9.")


# The 16 upper bits of infinities and NaNs, in the order of _key.
_INFINITE = torch.tensor([*range(128), *range(HALF - 128, HALF)])


def _key(x: Tensor) -> Tensor:
    """The bits of float32 values as int32 that sort as the values do."""
    bits = x.float().flatten().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _value(key: int) -> float:
    """The float32 of a key."""
    bits = torch.tensor(key, dtype=torch.int64).to(torch.int32)
    return float((bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32))


def _rank(percentile: float, n: int) -> int:
    """The 1-based rank floor(p n), at least 1; in fractions, since 0.999 has no exact binary form."""
    return max(1, math.floor(Fraction(str(percentile)) / 100 * n))


def _count(
    graph: Graph,
    batches: Batches,
    kept_apart: list[int],
    label: str,
    progress: bool,
    index: Callable[[str, Tensor], Tensor],
) -> tuple[dict[str, Tensor], tuple[int, tuple[int, ...]]]:
    """Per calibrated node how often each 16-bit ``index(name, keys)`` occurs; images counted, and the marks of all."""
    tables = {name: torch.zeros(HALF, dtype=torch.int64) for name in calibrated_nodes(graph)}
    images, seen = 0, list[int]()
    waiting = Counter(kept_apart)
    for batch in tqdm(batches, desc=label, unit="batch", leave=False, disable=None if progress else True):
        x = _images(batch)
        marks = image_marks(x)
        seen += marks
        x = x[_not_kept(marks, waiting)]
        images += len(x)
        if len(x) == 0:
            continue
        for name, value in graph.activations(x):
            if name in tables:
                tables[name] += torch.bincount(index(name, _key(value)), minlength=HALF).cpu()
    if images == 0:
        raise InvalidData("calibrate: got no images beyond those held out; expected at least one. Pass more images.")
    return tables, (images, tuple(sorted(seen)))


def image_marks(images: Tensor) -> list[int]:
    """A number per image, or recording of events, that tells it again in whatever order a loader brings it."""
    images = images.mean(0) if images.ndim == 5 else images
    keys = _key(images).view(len(images), -1).long()
    marks: list[int] = (keys * torch.arange(1, keys.shape[1] + 1, device=keys.device)).sum(1).tolist()
    return marks


def _not_kept(marks: list[int], waiting: Counter[int]) -> list[int]:
    """The places of the images that are not kept apart; of images that are the same, only as many as are waited for."""
    free = []
    for index, mark in enumerate(marks):
        if waiting[mark]:
            waiting[mark] -= 1
        else:
            free.append(index)
    return free


def _images(batch: Any) -> Tensor:
    images = images_of(batch, "calibrate")
    if images.ndim != 4:
        raise InvalidData(f"calibrate: got a batch of {tuple(images.shape)}; expected [B, C, H, W]. Check the data.")
    return images


def _first_images(batches: Batches, count: int) -> Samples | None:
    """The first ``count`` images (at most half of them all) and, when every batch has them, their labels."""
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    seen = 0
    for batch in batches if count > 0 else ():
        images.append(_images(batch))
        labels.append(class_numbers(batch, len(images[-1])))
        seen += len(images[-1])
        if seen >= 2 * count:
            break
    count = min(count, seen // 2)
    if count <= 0:
        return None
    known = [label for label in labels if label is not None]
    return Samples(torch.cat(images)[:count], torch.cat(known)[:count] if len(known) == len(labels) else None)


def _others(batches: Batches, kept_apart: list[int], count: int) -> Tensor:
    """The first ``count`` images that are not kept apart."""
    found: list[Tensor] = []
    missing, waiting = count, Counter(kept_apart)
    for batch in batches:
        images = _images(batch)
        free = _not_kept(image_marks(images), waiting)[:missing]
        found.append(images[free])
        missing -= len(free)
        if not missing:
            break
    return torch.cat(found)


def _calibration(
    values: Mapping[str, float], percentile: float, images: int, source: str, samples: Samples | None = None
) -> Calibration:
    """Scales that are positive and finite whatever the values: a silent layer gets 1, as it never reaches it."""
    silent = tuple(name for name, value in values.items() if not value > 0)
    scales = {name: value if value > 0 else 1.0 for name, value in values.items()}
    return Calibration(scales, percentile, images, source, silent, samples)


# ---- without data ----


def calibrate_from_batchnorm(graph: Graph, percentile: float = 99.9) -> Calibration:
    """The scales that the BatchNorm statistics imply, without a single image.

    During training BatchNorm made channel c of its output have mean ``beta_c`` and standard deviation ``|gamma_c|``.
    Taking it for Laplace distributed, with mean mu, variance 2 b^2, ``F`` its distribution and ``e = exp(-|mu| / b)``::

        ReLU:     mean = max(mu, 0) + b e / 2
                  E[x^2] = mu^2 + 2 b^2 - b^2 e  for mu >= 0,   b^2 e  for mu < 0
        sum:      means add, variances add
        synapse:  mean = W mean + b,   variance = W^2 variance
        lambda:   mean over c of F_c(lambda) = percentile / 100

    (for a single channel ``lambda = mu - b ln(2 - 2 p)``; for the layer's mixture the equation is solved by bisection,
    to float64 precision; a percentile above 99.9999 counts as that).

    Assumptions: the data look like the training data; the two branches of a residual sum are independent; pooling
    keeps mean and variance; every channel has Laplace tails. The last is the one that matters: with Gaussian tails the
    scales of a CIFAR ResNet-20 came out up to two times too small, and its agreement with the ANN at T = 256 fell by
    6 points (150 training images).

    Raises InvalidData when the graph has no BatchNorm.
    """
    _check_percentile(percentile)
    if not any(isinstance(node.op, BatchNorm2d) for node in graph.nodes):
        raise InvalidData(
            "calibrate: got a network without BatchNorm and no images; expected one of the two. Pass images."
        )
    moments: dict[str, Moments] = {}
    values = {}
    losses = []
    names = set(calibrated_nodes(graph))
    for node in graph.nodes:
        inputs = [moments[name] for name in node.inputs]
        if node.name in names:
            before = inputs[0] if isinstance(node.op, ReLU) else _propagate(node.op, inputs)
            quantile = _mixture_quantile(before, percentile / 100)
            values[node.name] = quantile if quantile > 1e-9 else 0.0  # zero up to the bisection's rounding
        moments[node.name] = _propagate(node.op, inputs)
        if isinstance(node.op, ReLU) and values[node.name] > 0:
            losses.append(_rounding(inputs[0], moments[node.name], values[node.name]))
    calibration = _calibration(values, percentile, 0, "batchnorm")
    return replace(calibration, rounding=sum(losses) / len(losses) if losses else None)


Moments = tuple[Tensor, Tensor]  # mean and variance per channel, float64 [C]; the input's are [1]


def _propagate(op: Op, inputs: list[Moments]) -> Moments:
    """Mean and variance per channel of an operation's output."""
    if isinstance(op, Input):
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    mean, var = inputs[0]
    if isinstance(op, BatchNorm2d):
        return op.bias.double(), op.weight.double() ** 2
    if isinstance(op, Conv2d | Linear):
        return _through_synapse(op, mean, var)
    if isinstance(op, ReLU):
        b = _spread(var)
        e = torch.exp(-mean.abs() / b)
        rectified = mean.clamp_min(0) + b * e / 2
        square = torch.where(mean >= 0, mean**2 + 2 * b**2 - b**2 * e, b**2 * e)
        return rectified, (square - rectified**2).clamp_min(0)
    if isinstance(op, Add):
        return sum(m for m, _ in inputs), sum(v for _, v in inputs)  # type: ignore[return-value]
    if isinstance(op, Pad | Slice):
        # As images of one pixel: what happens to channels happens, what happens to space does not.
        return _channels_only(op, mean), _channels_only(op, var)
    return mean, var


def _channels_only(op: Pad | Slice, values: Tensor) -> Tensor:
    if isinstance(op, Pad):
        return F.pad(values, op.padding[4:6]) if len(op.padding) > 4 else values
    return values[slice(*op.slices[0])]


def _through_synapse(op: Conv2d | Linear, mean: Tensor, var: Tensor) -> Moments:
    weight = op.weight.double().flatten(2).sum(2) if op.weight.ndim == 4 else op.weight.double()
    square = (op.weight.double() ** 2).flatten(2).sum(2) if op.weight.ndim == 4 else weight**2
    groups = op.groups if isinstance(op, Conv2d) else 1
    features = weight.shape[1] * groups
    mean, var = (m.repeat_interleave(features // len(m)).view(groups, -1, 1) for m in (mean, var))
    out = (weight.view(groups, -1, weight.shape[1]) @ mean).flatten()
    out_var = (square.view(groups, -1, weight.shape[1]) @ var).flatten()
    return (out if op.bias is None else out + op.bias.double()), out_var


def _rounding(before: Moments, after: Moments, scale: float) -> float:
    """T times the share of its activations that a layer loses by rounding down to the grid lambda / T.

    An active neuron loses half a grid step on average: ``P(x > 0) lambda / 2`` of ``E[ReLU(x)]``.
    """
    mean, b = before[0], _spread(before[1])
    tail = torch.exp(-mean.abs() / b) / 2
    active = torch.where(mean > 0, 1 - tail, tail).mean()
    return float(active * scale / 2 / after[0].mean())


def _spread(var: Tensor) -> Tensor:
    """The Laplace distribution's b of a variance; a little above zero, so that a dead channel is a step."""
    return (var / 2).sqrt().clamp_min(1e-12)


def _mixture_quantile(moments: Moments, p: float) -> float:
    """The p-quantile of Laplace distributions with these moments in equal shares."""
    mean, b = moments[0], _spread(moments[1])
    p = min(p, 1 - 1e-6)
    low, high = float((mean - 40 * b).min()), float((mean + 40 * b).max())
    for _ in range(100):
        middle = (low + high) / 2
        z = (middle - mean) / b
        below = torch.where(z < 0, torch.exp(z.clamp_max(0)) / 2, 1 - torch.exp(-z.clamp_min(0)) / 2)
        low, high = (middle, high) if float(below.mean()) < p else (low, middle)
    return high
