"""Calibration: the scale lambda of every activation, from images."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import Batches, check_batches, check_kind, class_numbers, images_of, real_number
from ..data.leakage import image_fingerprints, ordered_key
from ..errors import InvalidData, message
from ..graph.graph import Graph
from ..graph.ops import ReLU
from ..graph.provenance import CalibrationSummary
from ..runtime.display import Displayed, Table, brief
from ..runtime.processes import all_gather, joined, rank_and_world_size, shared_errors, summed
from ..runtime.progress import Progress
from .portions import analog_parts
from .spill import Spill, gather

HALF = 1 << 16
Counted = tuple[int, tuple[int, ...]]  # the number of images, and all their fingerprints


@dataclass(frozen=True, repr=False)
class Samples(Displayed):
    """Calibration images kept apart from the statistics, for passes that search.

    Attributes:
        images: ``[B, C, H, W]``.
        labels: ``[B]``, or None.
    """

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True, repr=False)
class Calibration(Displayed):
    """The scale of every activation, and the images that it was found on.

    Attributes:
        scales: lambda by node, positive and finite.
        percentile: in percent.
        images: how many were counted.
        source: ``"data"``; ``"distilled"``, for images of :func:`s_resnet.conversion.distill_images`; ``"batchnorm"``;
            or ``"training"`` if no calibration is needed.
        silent: the nodes that were never above zero, which got a scale of 1.
        samples: images for passes that search; they are not saved.
        rounding: the share of its activations that a layer running T steps is expected to lose, times T: that of the
            median layer with images, the mean over layers without.
        fitting: images ``[N, C, H, W]`` for passes that fit, none of them in ``samples``; they are not saved.
        fitted: how many images there are to fit to; None: those in ``fitting``. Of several processes each has a part.
        marks: the fingerprints of all calibration images, so that an evaluation can tell how many of its images are
            among them.
        seed: of the distilled images; None for others.
    """

    scales: Mapping[str, float]
    percentile: float
    images: int
    source: str
    silent: tuple[str, ...] = ()
    samples: Samples | None = None
    rounding: float | None = None
    fitting: Tensor | Spill | None = None
    marks: tuple[int, ...] = ()
    fitted: int | None = None
    seed: int | None = None

    def _lines(self) -> Iterator[str]:
        yield self._head()
        if not self.scales:
            return
        low, high = min(self.scales.values()), max(self.scales.values())
        yield f"lambda {low:.4g} to {high:.4g} over {len(self.scales)} layers"
        if self.silent:
            yield f"never active: {brief(self.silent, 120)}"
        yield "print(_.table()) shows every layer"

    def _parts(self) -> Iterator[str | Table]:
        yield self._head()
        rows = ((name, f"{scale:.6g}", "never active" * (name in self.silent)) for name, scale in self.scales.items())
        yield Table(("layer", "lambda", ""), tuple(rows))

    def _head(self) -> str:
        kinds = {"data": "images", "distilled": f"images distilled from BatchNorm statistics with seed {self.seed}"}
        kind = kinds.get(self.source)
        where = f"{self.images:,} {kind}" if kind else f"{self.source} statistics"
        known = self.summary()
        apart = f", {known.held_out:,} kept apart, {known.fitted:,} to fit to" if kind else ""
        return f"Calibration from {where}{apart}; percentile {self.percentile:g}"

    def summary(self) -> CalibrationSummary:
        """What an artifact keeps of it."""
        return CalibrationSummary(
            source=self.source,
            percentile=self.percentile,
            images=self.images,
            held_out=0 if self.samples is None else len(self.samples.images),
            fitted=0 if self.fitting is None else len(self.fitting) if self.fitted is None else self.fitted,
            scales=dict(self.scales),
            silent=self.silent,
            marks=self.marks,
            seed=self.seed,
        )


# For passes that need no statistics, and networks that learned their scales in training.
NO_CALIBRATION = Calibration({}, 100.0, 0, "training")


def calibrated_nodes(graph: Graph) -> list[str]:
    """The nodes whose scale a conversion needs: every ReLU, and the logits."""
    return [node.name for node in graph.nodes if isinstance(node.op, ReLU) or node is graph.nodes[-1]]


def calibrate(
    graph: Graph,
    batches: Batches,
    percentile: float = 99.9,
    held_out: int = 0,
    progress: bool = False,
    fitting: bool = False,
) -> Calibration:
    """The exact ``percentile`` of every ReLU output and of the logits over all calibration images, zeros included.

    lambda is the element of 1-based rank ``floor(p n)`` of all ``n`` values sorted ascending. It is found by a radix
    search on the bits of the floats: one pass counts the upper 16 bits of every value, a second pass the lower 16 of
    those that share the upper 16 of the answer. Memory is thus 2 tables of 65,536 counts per node for any number of
    images, and neither the order of the batches nor their size matters.

    In a process group of torch.distributed each process passes its own part of the images (see
    :func:`s_resnet.runtime.shard`), and all get the same statistics, summed exactly. The images to fit to stay where
    they are.

    Args:
        graph: an analog graph.
        batches: read twice, so a list or a DataLoader, not a generator; the same images each time, shuffled or not.
            They are moved to the graph's device.
        percentile: in percent, above 0 and at most 100.
        held_out: how many of the first images (at most half) to leave out and return as ``samples``.
        progress: show a bar on stderr when it is a terminal.
        fitting: whether to return the other images, for passes that fit to images; in a temporary file if there are
            many.

    Raises:
        InvalidData: the graph or the batches are something else, the batches are a one-shot iterator, there are no
            images, images do not fit, or values are not finite.

    Source: percentile normalization as in the released code of arXiv:1805.01352 (Hu, Tang, Pan): all scalars of a
    layer sorted, element floor(p n).
    """
    check_kind(graph, Graph, "calibrate", "graph", "Call s_resnet.trace first")
    percentile = check_percentile(percentile)
    check_batches(batches, "calibrate")
    check_repeatable(batches)
    with shared_errors():
        return _calibrate(graph, batches, percentile, held_out, progress, fitting)


def _calibrate(
    graph: Graph, batches: Batches, percentile: float, held_out: int, progress: bool, fitting: bool
) -> Calibration:
    """The same, once the arguments are known to be right."""
    samples = _first_images(batches, held_out, graph.device)
    rank, world = rank_and_world_size()
    kept_apart = [] if samples is None else image_fingerprints(samples.images[rank::world])
    values, counts, (images, fingerprints) = _exact(graph, batches, kept_apart, percentile, progress)
    found = with_scales(values, percentile, images, "data", samples)
    lost = [
        _lost(counts[node.name], values[node.name], node.op.limit)
        for node in graph.nodes
        if isinstance(node.op, ReLU) and values[node.name] > 0
    ]
    found = replace(found, rounding=statistics.median(lost) if lost else None, marks=fingerprints)
    if not fitting:
        return found
    own = gather(_others(batches, kept_apart, graph.device))
    if min(all_gather(len(own))) == 0:
        got, expected = "a process without images to fit to", "at least one for each"
        raise InvalidData(message("calibrate", "", got, expected, "Start fewer processes, or pass more images"))
    return replace(found, fitting=own, fitted=images)


def _exact(
    graph: Graph, batches: Batches, kept_apart: list[int], percentile: float, progress: bool
) -> tuple[dict[str, float], dict[str, Tensor], Counted]:
    """The percentile of every calibrated node, its values counted by their upper 16 bits, and the images counted."""
    names = calibrated_nodes(graph)
    upper, counted = _count(
        graph, batches, kept_apart, "calibrate 1/2", progress, lambda _, key: (key >> 16) + HALF // 2
    )
    for name in names:
        if upper[name][_INFINITE].any():
            remedy = "Check the weights for NaN, and the scale of the images"
            raise InvalidData(message(name, "", "activations that are not finite", "numbers", remedy))
    ranks = {name: _rank(percentile, int(upper[name].sum())) for name in names}
    bucket = {name: int(torch.searchsorted(upper[name].cumsum(0), ranks[name])) for name in names}

    def inside(name: str, key: Tensor) -> Tensor:
        return key[(key >> 16) + HALF // 2 == bucket[name]] & (HALF - 1)

    lower, again = _count(graph, batches, kept_apart, "calibrate 2/2", progress, inside)
    if again != counted:
        got, expected = "different images in the second pass over the batches", "the same ones, in any order"
        raise InvalidData(message("calibrate", "", got, expected, "Turn off random augmentation and drop_last"))
    values = {}
    for name in names:
        rank = ranks[name] - int(upper[name][: bucket[name]].sum())
        low = min(int(torch.searchsorted(lower[name].cumsum(0), rank)), HALF - 1)
        values[name] = _value(((bucket[name] - HALF // 2) << 16) | low)
    return values, upper, counted


def check_repeatable(batches: Batches) -> None:
    """Check that batches can be read twice.

    Raises:
        InvalidData: they are a one-shot iterator.
    """
    if iter(batches) is batches:
        got, expected = "a one-shot iterator of batches", "batches that can be read twice"
        raise InvalidData(message("calibrate", "", got, expected, "Pass a list or a DataLoader"))


def check_percentile(percentile: float) -> float:
    """``percentile`` as a float.

    Raises:
        InvalidData: it is not above 0 and at most 100.
    """
    number = real_number(percentile)
    if not 0 < number <= 100:
        raise InvalidData(message("calibrate", "", f"percentile {percentile!r}", "above 0 and at most 100", "Use 99.9"))
    return number


# The 16 upper bits of infinities and NaNs, in the order of ordered_key.
_INFINITE = torch.tensor([*range(128), *range(HALF - 128, HALF)])


def _value(key: int) -> float:
    """The float32 of a key."""
    bits = torch.tensor(key, dtype=torch.int64).to(torch.int32)
    return float((bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32))


def _lost(counts: Tensor, scale: float, limit: Tensor | None = None) -> float:
    """T times the share of its activations that a layer loses by rounding down to the grid ``scale / T``.

    An active neuron loses half a grid step on average, so the share is ``P(x > 0) scale / (2 T E[x])``. One at the
    limit of its ReLU loses nothing if that is the full scale, so the probability is then ``P(0 < x < limit)``.

    Args:
        counts: how often each upper 16 bits of a value occur; a value counts as the middle of its bucket.
        scale: lambda.
        limit: that of the ReLU, or None.
    """
    middle = (torch.arange(1, HALF // 2) << 16) + HALF // 2
    values = middle.to(torch.int32).view(torch.float32).double().nan_to_num()  # no finite value is counted there
    positive = counts[HALF // 2 + 1 :].double()
    active = positive
    if limit is not None and scale >= float(limit.max()):
        active = positive[: (int(torch.tensor(scale).view(torch.int32)) >> 16) - 1]
    return float(active.sum() * scale / 2 / (positive @ values))


def _rank(percentile: float, n: int) -> int:
    """The 1-based rank floor(p n), at least 1; computed in fractions, since 0.999 has no exact binary form."""
    return max(1, math.floor(Fraction(str(percentile)) / 100 * n))


def _count(
    graph: Graph,
    batches: Batches,
    kept_apart: list[int],
    label: str,
    progress: bool,
    index: Callable[[str, Tensor], Tensor],
) -> tuple[dict[str, Tensor], Counted]:
    """How often each 16-bit ``index(name, keys)`` occurs at each calibrated node, and the images that were counted."""
    tables = {name: torch.zeros(HALF, dtype=torch.int64) for name in calibrated_nodes(graph)}
    images, seen = 0, list[int]()
    waiting = Counter(kept_apart)
    for batch in Progress(batches, desc=label, unit="batch", shown=progress):
        x = _images(batch)
        marks = image_fingerprints(x)
        seen += marks
        x = x[_not_kept(marks, waiting)]
        images += len(x)
        if len(x) == 0:
            continue
        for part in analog_parts(graph, x, "calibrate"):
            for name, value in graph.activations(part.to(graph.device)):
                if name in tables:
                    tables[name] += torch.bincount(index(name, ordered_key(value)), minlength=HALF).cpu()
    tables = dict(zip(tables, summed(torch.stack(list(tables.values()))), strict=True))
    every = all_gather((images, seen))
    images, seen = sum(count for count, _ in every), [mark for _, marks in every for mark in marks]
    if images == 0:
        got = "no images beyond those held out"
        raise InvalidData(message("calibrate", "", got, "at least one", "Pass more images"))
    return tables, (images, tuple(sorted(seen)))


def _not_kept(marks: list[int], waiting: Counter[int]) -> list[int]:
    """The positions of the images that are not held out; of identical images no more are held out than were chosen."""
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
        raise InvalidData(
            message("calibrate", "", f"a batch of {tuple(images.shape)}", "[B, C, H, W]", "Check the data")
        )
    return images


def _first_images(batches: Batches, count: int, device: torch.device) -> Samples | None:
    """The first ``count`` images (at most half of them all) and, when every batch has them, their labels.

    Of several processes all get the same ones, those that a single process would have taken from all the images.
    """
    (rank, world), images, labels, seen = rank_and_world_size(), list[Tensor](), list[Tensor | None](), 0
    for batch in batches if count > 0 else ():
        images.append(_images(batch))
        labels.append(class_numbers(batch, len(images[-1])))
        seen += len(images[-1])
        if seen >= -(-2 * count // world) + (world > 1):
            break
    known = all(label is not None for label in labels)
    every = all_gather((seen, known))
    count = min(count, sum(seen for seen, _ in every) // 2)
    if count <= 0:
        return None
    mine = len(range(rank, count, world))
    first = torch.cat(images)[:mine] if images else torch.empty(0)
    chosen = joined(all_gather(first))
    if not all(known for _, known in every):
        return Samples(chosen.to(device), None)
    numbers = [label for label in labels if label is not None]
    own = torch.cat(numbers)[:mine] if numbers else torch.empty(0, dtype=torch.int64)
    return Samples(chosen.to(device), joined(all_gather(own)).to(device))


def _others(batches: Batches, kept_apart: list[int], device: torch.device) -> Iterator[Tensor]:
    """The images that are not held out."""
    waiting = Counter(kept_apart)
    for batch in batches:
        images = _images(batch)
        yield images[_not_kept(image_fingerprints(images), waiting)].to(device)


def with_scales(
    values: Mapping[str, float], percentile: float, images: int, source: str, samples: Samples | None = None
) -> Calibration:
    """Scales that are positive and finite whatever the values: a silent layer gets 1, which it never reaches."""
    silent = tuple(name for name, value in values.items() if not value > 0)
    scales = {name: value if value > 0 else 1.0 for name, value in values.items()}
    return Calibration(scales, percentile, images, source, silent, samples)
