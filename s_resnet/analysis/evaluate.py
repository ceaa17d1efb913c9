"""Evaluation: run a spiking network and its own ANN on the same images, and count.

A directly trained network has no ANN: it is compared with its own answer after the T that it was trained for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..data.arguments import check_batches, check_kind, labeled, probability, whole_number
from ..data.intervals import paired_difference
from ..errors import InvalidData, message
from ..graph.graph import Graph, check_spiking
from ..graph.inputs import count_images
from ..graph.neuron import Neuron
from ..runtime.device import find_device, peak_memory, prefetch
from ..runtime.display import Displayed
from ..runtime.processes import all_gather, in_lockstep_batches, rank_and_world_size, shared_errors
from ..runtime.progress import Progress
from ..simulation.anytime import simulate_with_early_exit
from ..simulation.closed_form import closed_form, has_closed_form
from ..simulation.simulate import SimulationSettings, answers, steps_to_report
from .figures import MANY_CLASSES, EarlyExit, Report, Row
from .measured_on import (
    Seen,
    check_labels,
    check_names,
    described_data,
    every_fitted,
    fitted_for,
    notes_on,
    repeated,
    training_notes,
)

# Gets each batch's images, labels ``[B]``, the logits ``[B, N]`` to agree with (the ANN's, or a trained network's own
# after the T that it was trained for) and the answers ``[rows, B, N]`` at each T.
Watch = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, repr=False)
class EvaluationSettings(Displayed):
    """How to evaluate; the defaults are what nearly everyone wants.

    Attributes:
        early_exit: 0 < P < 1; simulate each image only until it is that confident, T at most, as
            :func:`s_resnet.simulation.simulate_with_early_exit` does. The fixed T of ``at`` are then simulated only if
            ``at`` is given: they cost the steps that the exit saves. None: no exit.
        precision: ``"exact"`` (float32) or ``"fast"`` (16-bit weights), as of a simulation.
        spike_by_spike: whether to simulate every step also where :func:`s_resnet.simulation.closed_form` gives the same
            in one pass: for a phased network in float32.
        network: a name for the report.
        progress: whether to show bars on stderr when it is a terminal, in the first process.
        watch: called for every batch with images, labels, the logits to agree with and the answers ``[rows, B, N]``.

    Raises:
        InvalidData: a probability out of range.
    """

    early_exit: float | None = None
    precision: str = "exact"
    spike_by_spike: bool = False
    network: str = ""
    progress: bool = False
    watch: Watch | None = None

    def __post_init__(self) -> None:
        if self.early_exit is not None:
            object.__setattr__(self, "early_exit", probability(self.early_exit, "evaluate", "early_exit"))


USUAL = EvaluationSettings()


def evaluate(
    snn: Graph,
    loader: Iterable[Any],
    timesteps: int,
    settings: EvaluationSettings = USUAL,
    *,
    at: Sequence[int] | None = None,
    device: str | torch.device = "auto",
) -> Report:
    """Evaluate a spiking network and its own ANN on the same images, at many T from one pass.

    A directly trained network has no ANN; the agreement is then with its own answer after the T it was trained for.

    In a process group of torch.distributed each process passes its own part of the images (see
    :func:`s_resnet.runtime.shard`), which may be empty; all get the report on all images, or the same error.
    ``"cuda"`` is then the current GPU.

    Args:
        snn: a converted or directly trained network.
        loader: batches of (images ``[B, C, H, W]``, labels ``[B]``, ...) or dicts with ``pixel_values`` or ``images``
            and ``labels``. With events ``[T, B, C, H, W]`` the ANN sees the mean over T.
        timesteps: T >= 1.
        settings: early exit, precision, and what else is seldom needed.
        at: the steps to report; by default T, and also 1, 2, 4, ... for a network that is not fitted to one T.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        InvalidData: there are no images, images or answers are not finite, the network has no class for a label, the
            classes are in another order than the network's, or a setting is out of range.
        BackendUnavailable: ``device="cuda"`` without a GPU.
    """
    with shared_errors():
        check_spiking(snn, "evaluate")
        timesteps = whole_number(timesteps, "evaluate", "timesteps")
        check_batches(loader, "evaluate")
        remedy = "Pass s_resnet.analysis.EvaluationSettings(precision=...), or leave them out"
        check_kind(settings, EvaluationSettings, "evaluate", "settings", remedy)
        target = find_device(device)
        if at is None:
            usual = powers_of_two(timesteps) if fitted_for(snn) is None else (timesteps,)
            at = usual if settings.early_exit is None else None
        wanted = None if at is None else steps_to_report(timesteps, at)
        notes = [*training_notes(loader), *check_names(loader, snn)]
        tally = _Tally(snn.to(target), timesteps, wanted, settings)
        tally.batches = length_hint(loader, 1)
        if target.type == "cuda":
            torch.cuda.reset_peak_memory_stats(target)
        progress = settings.progress and rank_and_world_size()[0] == 0
        batches = Progress(loader, desc="evaluate", unit="batch", shown=progress)
        for images, labels in in_lockstep_batches(prefetch(labeled(batches, "evaluate"), target)):
            tally.add(images, labels, progress)
        return tally.report(target, loader, notes)


def powers_of_two(timesteps: int) -> tuple[int, ...]:
    """1, 2, 4, ... below ``timesteps``, and ``timesteps`` itself."""
    return (*(2**k for k in range(timesteps.bit_length()) if 2**k < timesteps), timesteps)


@dataclass
class _Sums:
    """Sums over images for one way to simulate them: exact integers (some stored as doubles), and the time."""

    right: Tensor  # [rows, 4] int64: top-1, top-5, agreement, top-1 of network and ANN both
    spikes: Tensor  # [rows] float64
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, rows: int) -> _Sums:
        return cls(torch.zeros(rows, 4, dtype=torch.int64), torch.zeros(rows, dtype=torch.float64))

    def add(self, row: int, answer: Tensor, labels: Tensor, choice: Tensor, spikes: Iterable[Tensor]) -> None:
        """Count the right answers ``[B, N]`` of a batch, and its spikes ``[B]`` per layer."""
        same = answer.argmax(1) == choice
        both = same & (choice == labels)
        self.right[row] += torch.stack([*_hits(answer, labels), same.sum(), both.sum()]).cpu()
        self.spikes[row] += torch.stack([count.sum() for count in spikes]).sum().cpu()

    def shares(self, row: int, images: int, neurons: int, ann: Tensor | None, classes: int) -> dict[str, Any]:
        """Top-1, top-5, agreement, spikes per neuron and image, and the drop from ``ann``, the ANN's right answers."""
        top1, top5, same, both = self.right[row].tolist()
        found = {
            "top1": top1 / images,
            "top5": top5 / images if classes >= MANY_CLASSES else None,
            "agreement": same / images,
            "spikes_per_neuron": float(self.spikes[row]) / images / neurons,
        }
        if ann is None:
            return found
        right = int(ann[0])
        found["drop_interval"] = paired_difference(both, right - both, top1 - both, images - right - top1 + both)
        return {**found, "drop": (right - top1) / images}


class _Tally:
    """The sums over batches that a Report divides."""

    def __init__(self, snn: Graph, timesteps: int, at: tuple[int, ...] | None, settings: EvaluationSettings) -> None:
        self.snn, self.timesteps, self.at, self.settings = snn, timesteps, at, settings
        self.images, self.number, self.classes = 0, 0, 0  # the batch is counted from 1
        self.batches, self.size = 1, 0  # how many batches are expected, and how many images each has
        self.ann = torch.zeros(2, dtype=torch.int64)  # right at top-1, top-5
        self.fixed = _Sums.of(len(at or ()))
        self.exit = _Sums.of(1)
        self.neurons = 0
        self.marks = frozenset(snn.provenance.calibration.marks or ())
        self.calibrated_on = 0
        self.seen = Seen()
        exact = settings.precision == "exact" and not settings.spike_by_spike
        self.in_closed_form = exact and has_closed_form(snn)

    def add(self, images: Tensor, labels: Tensor, progress: bool) -> None:
        """Count a batch, in parts that memory holds."""
        self.number += 1
        sizes = self._portions(images)
        for part, own in zip(torch.split(images, sizes, -4), torch.split(labels, sizes), strict=True):
            self._add(part, own, progress)

    def _portions(self, images: Tensor) -> list[int]:
        """How many images are processed at a time; a windowed simulation splits them further."""
        most = self.snn.portions(images)
        if self.snn.windowed or self.in_closed_form:
            return most
        return min(most, self.snn.portions(images, self.timesteps, self.settings.precision), key=max)

    def _add(self, images: Tensor, labels: Tensor, progress: bool) -> None:
        count = count_images(images)
        self.in_closed_form = self.in_closed_form and images.ndim == 4  # events come step by step
        sizes, logits = _source(self.snn, images)
        logits = logits.flatten(1) if logits.shape[2:] == (1, 1) else logits  # a fully convolutional network gives maps
        self._check(logits, labels)
        self.neurons = sum(
            sizes[node.name] * node.op.copies for node in self.snn.neurons if isinstance(node.op, Neuron)
        )
        self.images += count
        choice = logits.argmax(1)
        self.calibrated_on += sum(mark in self.marks for mark in self.seen.add(images, labels, choice))
        self.ann += torch.stack(_hits(logits, labels)).cpu()
        if self.at is not None:
            self._simulate(images, labels, logits, self.at, progress)
        if self.settings.early_exit is not None:
            self._simulate_until(images, labels, choice, self.settings.early_exit, progress)

    def _simulate(self, images: Tensor, labels: Tensor, logits: Tensor, at: tuple[int, ...], progress: bool) -> None:
        """Count the answers after each of the fixed T."""
        settings, count = self.settings, count_images(images)
        with _timed(self.fixed, images.device):
            if self.in_closed_form:
                result = closed_form(self.snn, images, self.timesteps, at)
            else:
                self.size = self.size or count
                repeats = self.batches if count == self.size else 1
                inner = progress and not self.snn.windowed  # a window is one chunk, so a bar would not move
                result = answers(self.snn, images, at, settings.precision, repeats, inner)
        self._finite(result.outputs, "network")
        self.fixed.steps += sum(steps[-1] for steps in self.snn.runs(at)) * count
        for row, answer in enumerate(result.outputs):
            self.fixed.add(row, answer, labels, logits.argmax(1), [count[row] for count in result.spikes.values()])
        if settings.watch is not None:
            settings.watch(images, labels, logits, result.outputs)

    def _simulate_until(
        self, images: Tensor, labels: Tensor, choice: Tensor, confidence: float, progress: bool
    ) -> None:
        """Count the answers where each image stops once it is confident."""
        with _timed(self.exit, images.device):
            how = SimulationSettings(precision=self.settings.precision, progress=progress)
            exits = simulate_with_early_exit(self.snn, images, self.timesteps, confidence, how)
        self._finite(exits.outputs, "network")
        self.exit.steps += int(exits.steps.sum())
        self.exit.add(0, exits.outputs, labels, choice, exits.spikes.values())

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        """Check that logits are scores of classes, and that each label is one of the classes.

        Raises:
            InvalidData: they are not.
        """
        self.classes = logits.shape[1]
        if logits.ndim != 2:
            got = f"answers of shape {tuple(logits.shape)}"
            remedy = "Compare other values with snn(images, timesteps) and snn.run(images)"
            raise InvalidData(message("evaluate", "", got, "scores of classes, [B, N]", remedy))
        if self.classes < 2:
            remedy = "Compare values in Python: (snn(images, timesteps).flatten() - targets).abs().mean()"
            got = "a network that answers one number"
            raise InvalidData(message("evaluate", "", got, "scores of two classes or more", remedy))
        check_labels(labels, self.classes, "evaluate")
        self._finite(logits, "source network")

    def _finite(self, answers: Tensor, who: str) -> None:
        if not bool(torch.isfinite(answers).all()):
            got = f"answers of the {who} that are not finite"
            remedy = "Check its weights, and the scale of the images"
            raise InvalidData(message(f"evaluate: batch {self.number}", "", got, "numbers", remedy))

    def report(self, device: torch.device, loader: object, notes: list[str]) -> Report:
        """The report on the images of all processes."""
        left_out = (len(getattr(loader, "unreadable", ())), getattr(loader, "events", (0, 0)))
        own = (self.images, self.calibrated_on, self.ann, self.fixed, self.exit, self.neurons, peak_memory(device))
        said = all_gather((*own, self.classes, self.seen, left_out))
        every, known, anns, fixed, exits, neurons, peaks, classes, seen, unreadable = zip(*said, strict=True)
        images, whole, exit = sum(every), _total(fixed), _total(exits)
        if images == 0:
            remedy = "Pass a loader that yields batches; a generator can be read only once"
            raise InvalidData(message("evaluate", "", "no images", "at least one batch", remedy))
        timed = exit if self.at is None else whole
        ann = None if self.snn.trained else sum(anns, torch.zeros_like(self.ann))
        common = (images, max(neurons), ann, max(classes))
        fitted = every_fitted(self.snn)
        events = tuple(sum(part[1][place] for part in unreadable) for place in range(2))
        return Report(
            network=self.settings.network,
            recipe=self.snn.provenance.recipe.name or "custom",
            images=images,
            device=device.type,
            kernel="closed-form" if self.in_closed_form else kernels.fastest(device),
            ann=None if ann is None else _accuracies(ann, images, max(classes)),
            snn=tuple(
                Row(
                    step,
                    self.snn.end_to_end_steps(step),
                    **whole.shares(place, *common),
                    fitted=step in fitted if fitted else None,
                )
                for place, step in enumerate(self.at or ())
            ),
            images_per_second=images / timed.seconds,
            seconds_per_step_per_image=timed.seconds / timed.steps,
            peak_memory_bytes=max(peaks),
            exit=None if self.settings.early_exit is None else self._exit(exit, self.settings.early_exit, common),
            precision=self.settings.precision,
            alphabet=self.snn.alphabet,
            copies=self.snn.copies,
            calibrated_on=sum(known),
            trained_for=self.snn.trained_for if self.snn.trained else None,
            data=described_data(loader, sum(part[0] for part in unreadable), (events[0], events[1])),
            notes=(*notes, *notes_on(self.snn, seen, max(classes))),
            repeated=repeated(seen),
            fitted_for=fitted_for(self.snn),
            fitted=self.snn.fitted,
        )

    def _exit(self, sums: _Sums, confidence: float, common: tuple[int, int, Tensor | None, int]) -> EarlyExit:
        mean, speed = sums.steps / common[0], common[0] / sums.seconds
        return EarlyExit(confidence, self.timesteps, mean, images_per_second=speed, **sums.shares(0, *common))


def _accuracies(right: Tensor, images: int, classes: int) -> dict[str, Any]:
    """The source network's accuracies, from how many answers were right."""
    top1, top5 = (right.double() / images).tolist()
    return {"top1": top1, "top5": top5 if classes >= MANY_CLASSES else None}


def _source(snn: Graph, images: Tensor) -> tuple[dict[str, int], Tensor]:
    """The number of values of each node, and the logits ``[B, N]`` to agree with."""
    sizes = {}
    for name, value in snn.activations(images.narrow(-4, 0, 1) if snn.trained else images):
        sizes[name] = value[0].numel()
    return sizes, snn.run(images) if snn.trained else value


def _total(parts: Sequence[_Sums]) -> _Sums:
    """The sums of all processes; the time is the slowest one's."""
    total = _Sums.of(len(parts[0].right))
    for part in parts:
        total.right += part.right
        total.spikes += part.spikes
        total.steps += part.steps
        total.seconds = max(total.seconds, part.seconds)
    return total


@contextmanager
def _timed(sums: _Sums, device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    sums.seconds += time.perf_counter() - start


def _hits(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """How many of the batch are right at top-1 and at top-5 (or among all classes if there are fewer than 5).

    Among equal logits the first counts as the largest, as in argmax; topk may pick any of them.
    """
    best = logits.sort(dim=1, descending=True, stable=True).indices[:, :5] == labels[:, None]
    return [best[:, 0].sum(), best.any(1).sum()]
