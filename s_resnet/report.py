"""The Report: how good a spiking network is at every T, against its own ANN on the same images, and what it took.

A directly trained network has no ANN: it is compared with its own answer after the T that it was trained for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import kernels
from .artifact import replacing
from .calibrate import image_marks
from .closed_form import closed_form
from .device import ahead, find_device, peak_memory
from .distributed import exchange, in_step, place, shared_errors
from .errors import InvalidData
from .graph import Graph, count_images
from .simulate import answers, simulate_until_confident, steps_to_report

SCHEMA = 1

# Gets each batch's images, labels ``[B]``, the logits ``[B, N]`` to agree with (the ANN's, or a trained network's own
# after the T that it was trained for) and the answers ``[rows, B, N]`` at each T.
Watch = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Row:
    """The network at one T: accuracies and agreement with its source as shares, spikes per neuron and image up to T."""

    timesteps: int
    end_to_end_steps: int
    top1: float
    top5: float
    agreement: float
    spikes_per_neuron: float


@dataclass(frozen=True)
class Exit:
    """The network where each image stops once its answer is confident, after ``timesteps`` steps at most.

    ``spikes_per_neuron`` counts up to where each image stopped; ``mean_timesteps`` is the mean of where.
    """

    confidence: float
    timesteps: int
    mean_timesteps: float
    top1: float
    top5: float
    agreement: float
    spikes_per_neuron: float
    images_per_second: float


@dataclass(frozen=True)
class Report:
    """The figures of one evaluation, over the images of all processes where there are several.

    ann: the source network's ``top1`` and ``top5`` on the same images; None of a directly trained network.
    snn: the network at each T; empty where only the exit was asked for.
    images_per_second: of the simulation, without decoding and the ANN: all images over the time of the slowest
        process. Of the fixed T where it was simulated, else of the exit.
    seconds_per_step_per_image: that same time over all the steps of all the images.
    peak_memory_bytes: of the process with the largest: its GPU's tensors, or on the CPU the whole process.
    calibrated_on: how many of the images the network was calibrated on; the JSON leaves 0 out.
    alphabet: what the neurons send, as :attr:`Graph.alphabet`; the JSON leaves ``"binary"`` out.
    exit: where each image stops once it is confident; None, and absent in the JSON, unless asked for.
    precision: ``"exact"``, which the JSON leaves out, or ``"fast"``.
    trained_for: the T that a directly trained network was trained for, whose answers the agreement is with; the JSON
        leaves None out.
    """

    network: str
    recipe: str
    images: int
    device: str
    kernel: str
    ann: dict[str, float] | None
    snn: tuple[Row, ...]
    images_per_second: float
    seconds_per_step_per_image: float
    peak_memory_bytes: int
    exit: Exit | None = None
    precision: str = "exact"
    alphabet: str = "binary"
    calibrated_on: int = 0
    trained_for: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object, schema 1."""
        stored = {"schema": SCHEMA, **asdict(self), "snn": [asdict(row) for row in self.snn]}
        plain = {"exit": None, "precision": "exact", "alphabet": "binary", "calibrated_on": 0, "trained_for": None}
        return {name: value for name, value in stored.items() if name not in plain or value != plain[name]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON whole or not at all. Raises SResNetError when it cannot be written."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    def table(self) -> str:
        """The figures as a table for people."""
        late = any(row.end_to_end_steps != row.timesteps for row in self.snn)
        lines = [
            f"{self.network or 'network'}   recipe {self.recipe}   {self.images} images   "
            f"{self.device}, kernel {self.kernel}" + (", fast" if self.precision == "fast" else ""),
            *([] if self.alphabet == "binary" else [f"spikes: {self.alphabet}"]),
            *([f"{self.calibrated_on} of the images were calibrated on"] if self.calibrated_on else []),
            "",
            "     T    top-1    top-5   agreement   spikes/neuron" + ("   end-to-end steps" if late else ""),
            f"trained for T = {self.trained_for}"
            if self.ann is None
            else f"   ANN  {_percent(self.ann['top1'])}  {_percent(self.ann['top5'])}",
        ]
        for row in self.snn:
            lines.append(
                f"{row.timesteps:6d}  {_percent(row.top1)}  {_percent(row.top5)}   {_percent(row.agreement)}"
                f"  {row.spikes_per_neuron:14.3f}" + (f"  {row.end_to_end_steps:17d}" if late else "")
            )
        if out := self.exit:
            lines.append(
                f"{out.mean_timesteps:6.1f}  {_percent(out.top1)}  {_percent(out.top5)}   {_percent(out.agreement)}"
                f"  {out.spikes_per_neuron:14.3f}   mean T; each image until it is {out.confidence:g} sure, at most "
                f"T = {out.timesteps}; {out.images_per_second:.2f} images/s"
            )
        lines += [
            "",
            f"{self.images_per_second:.2f} images/s   {self.seconds_per_step_per_image * 1e3:.4g} ms per step and image"
            f"   peak memory {self.peak_memory_bytes / 2**20:.0f} MiB",
        ]
        return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:6.2f}%"


def evaluate(
    snn: Graph,
    loader: Iterable[tuple[Tensor, Tensor]],
    timesteps: int,
    *,
    at: Sequence[int] | None = None,
    exit_confidence: float | None = None,
    precision: str = "exact",
    in_closed_form: bool = False,
    device: str = "auto",
    network: str = "",
    progress: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Evaluate a spiking network and its own ANN on the same images, at many T from one pass.

    A directly trained network has no ANN; the agreement is then with its own answer after the T it was trained for.

    In a process group of torch.distributed each process passes its own part of the images (see :func:`shard`), which
    may be empty; all get the report on all images, or the same error. ``"cuda"`` is then the current GPU.

    Args:
        snn: a converted or directly trained network.
        loader: batches of (images ``[B, C, H, W]``, labels ``[B]``), or of (events ``[T, B, C, H, W]``, labels), of
            which the ANN sees the mean over T.
        timesteps: T >= 1.
        at: the steps to report; by default 1, 2, 4, ... and T.
        exit_confidence: 0 < P < 1; simulate each image only until it is that confident, T at most, as
            :func:`simulate_until_confident` does. The fixed T of ``at`` are then simulated only if ``at`` is given:
            they cost the steps that the exit saves.
        precision: ``"exact"`` (float32) or ``"fast"`` (16-bit weights), as in :func:`simulate`.
        in_closed_form: of a phased network, take spike counts from :func:`s_resnet.closed_form`, about T times faster.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        network: a name for the report.
        progress: show bars on stderr when it is a terminal, in the first process.
        watch: called for every batch with images, labels, the logits to agree with and the answers ``[rows, B, N]``.

    Raises:
        InvalidData: no images, labels that the network has no class for, or a setting out of range.
        BackendUnavailable: ``device="cuda"`` without a GPU.
    """
    with shared_errors():
        if timesteps < 1:
            raise InvalidData(f"evaluate: got timesteps={timesteps}; expected at least 1. Pass a positive number.")
        if exit_confidence is not None and not 0 < exit_confidence < 1:
            raise InvalidData(
                f"evaluate: got exit_confidence={exit_confidence}; expected 0 < P < 1. Pass one such as 0.8."
            )
        if in_closed_form and (precision != "exact" or exit_confidence is not None):
            asked = "an exit" if precision == "exact" else f"precision {precision}"
            raise InvalidData(
                f"evaluate: got the closed form with {asked}; expected it alone, as it counts in float32 and has no "
                "steps to leave at. Choose one of the two."
            )
        target = find_device(device)
        if at is None:
            at = powers_of_two(timesteps) if exit_confidence is None else None
        wanted = None if at is None else steps_to_report(timesteps, at)
        tally = _Tally(snn.to(target), timesteps, wanted, exit_confidence, precision, in_closed_form, watch)
        tally.batches = length_hint(loader, 1)
        if target.type == "cuda":
            torch.cuda.reset_peak_memory_stats(target)
        progress = progress and place()[0] == 0
        batches = tqdm(loader, desc="evaluate", unit="batch", leave=False, disable=None if progress else True)
        for images, labels in in_step(ahead(batches, target)):
            tally.add(images, labels, progress)
        return tally.report(network, target)


def powers_of_two(timesteps: int) -> tuple[int, ...]:
    """1, 2, 4, ... below ``timesteps``, and ``timesteps`` itself."""
    return (*(2**k for k in range(timesteps.bit_length()) if 2**k < timesteps), timesteps)


@dataclass
class _Sums:
    """Sums over images, of one way to simulate them: integers, or doubles that hold integers, but for the time."""

    right: Tensor  # [rows, 3] int64: top-1, top-5, agreement
    spikes: Tensor  # [rows] float64
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, rows: int) -> _Sums:
        return cls(torch.zeros(rows, 3, dtype=torch.int64), torch.zeros(rows, dtype=torch.float64))

    def add(self, row: int, answer: Tensor, labels: Tensor, choice: Tensor, spikes: Iterable[Tensor]) -> None:
        """Count what is right in the answers ``[B, N]`` of a batch, and its spikes ``[B]`` per layer."""
        same = (answer.argmax(1) == choice).sum()
        self.right[row] += torch.stack([*_hits(answer, labels), same]).cpu()
        self.spikes[row] += torch.stack([count.sum() for count in spikes]).sum().cpu()

    def shares(self, images: int, neurons: int) -> list[tuple[float, float, float, float]]:
        """Per row top-1, top-5, agreement and spikes per neuron and image."""
        right, spikes = (self.right.double() / images).tolist(), self.spikes.tolist()
        return [(*three, count / images / neurons) for three, count in zip(right, spikes, strict=True)]


class _Tally:
    """The sums over batches that a Report divides."""

    def __init__(
        self,
        snn: Graph,
        timesteps: int,
        at: tuple[int, ...] | None,
        confidence: float | None,
        precision: str,
        in_closed_form: bool,
        watch: Watch | None,
    ) -> None:
        self.snn, self.timesteps, self.at, self.confidence, self.precision = snn, timesteps, at, confidence, precision
        self.in_closed_form, self.watch = in_closed_form, watch
        self.images = 0
        self.batches, self.size = 1, 0  # how many are expected, and of how many images
        self.ann = torch.zeros(2, dtype=torch.int64)  # right at top-1, top-5
        self.fixed = _Sums.of(len(at or ()))
        self.exit = _Sums.of(1)
        self.neurons = 0
        self.marks = frozenset(snn.provenance.get("calibration", {}).get("marks", ()))
        self.calibrated_on = 0

    def add(self, images: Tensor, labels: Tensor, progress: bool) -> None:
        count = count_images(images)
        if labels.shape != (count,) or count == 0:
            raise InvalidData(
                f"evaluate: got a batch of {count} images with labels of shape {tuple(labels.shape)}; expected "
                "at least one image, and one label for each. Check the loader."
            )
        sizes, logits = _source(self.snn, images)
        wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
        if len(wrong):
            raise InvalidData(
                f"evaluate: got label {int(wrong[0])} for a network of {logits.shape[1]} classes; expected labels "
                f"0 ... {logits.shape[1] - 1}. Choose the data that the network was trained on."
            )
        self.neurons = sum(sizes[node.name] for node in self.snn.neurons)
        self.images += count
        self.calibrated_on += sum(mark in self.marks for mark in image_marks(images)) if self.marks else 0
        self.ann += torch.stack(_hits(logits, labels)).cpu()
        choice = logits.argmax(1)
        if self.at is not None:
            with _timed(self.fixed, images.device):
                if self.in_closed_form:
                    result = closed_form(self.snn, images, self.timesteps, self.at)
                else:
                    self.size = self.size or count
                    repeats = self.batches if count == self.size else 1
                    result = answers(self.snn, images, self.at, self.precision, repeats, progress)
            self.fixed.steps += (sum(self.at) if self.snn.windowed else self.at[-1]) * count
            for row, answer in enumerate(result.outputs):
                self.fixed.add(row, answer, labels, choice, [count[row] for count in result.spikes.values()])
            if self.watch is not None:
                self.watch(images, labels, logits, result.outputs)
        if self.confidence is not None:
            with _timed(self.exit, images.device):
                exits = simulate_until_confident(
                    *(self.snn, images, self.timesteps, self.confidence),
                    precision=self.precision,
                    progress=progress,
                )
            self.exit.steps += int(exits.steps.sum())
            self.exit.add(0, exits.outputs, labels, choice, exits.spikes.values())

    def report(self, network: str, device: torch.device) -> Report:
        """The report on the images of all processes."""
        own = (self.images, self.calibrated_on, self.ann, self.fixed, self.exit, self.neurons, peak_memory(device))
        every, known, anns, fixed, exits, neurons, peaks = zip(*exchange(own), strict=True)
        images, whole, exit = sum(every), _total(fixed), _total(exits)
        if images == 0:
            raise InvalidData("evaluate: got no images; expected at least one batch. Check the data.")
        rows = whole.shares(images, max(neurons))
        timed = exit if self.at is None else whole
        ann = (sum(anns, torch.zeros_like(self.ann)).double() / images).tolist()
        return Report(
            network=network,
            recipe=str(self.snn.provenance.get("recipe", {}).get("name", "custom")),
            images=images,
            device=device.type,
            kernel="closed-form" if self.in_closed_form else kernels.select(device)[0],
            ann=None if self.snn.trained else {"top1": ann[0], "top5": ann[1]},
            snn=tuple(
                Row(step, self.snn.end_to_end_steps(step), *row) for step, row in zip(self.at or (), rows, strict=True)
            ),
            images_per_second=images / timed.seconds,
            seconds_per_step_per_image=timed.seconds / timed.steps,
            peak_memory_bytes=max(peaks),
            exit=self._exit(exit, images, max(neurons)),
            precision=self.precision,
            alphabet=self.snn.alphabet,
            calibrated_on=sum(known),
            trained_for=self.snn.trained_for if self.snn.trained else None,
        )

    def _exit(self, sums: _Sums, images: int, neurons: int) -> Exit | None:
        if self.confidence is None:
            return None
        ((top1, top5, agreement, spikes),) = sums.shares(images, neurons)
        mean, speed = sums.steps / images, images / sums.seconds
        return Exit(self.confidence, self.timesteps, mean, top1, top5, agreement, spikes, speed)


def _source(snn: Graph, images: Tensor) -> tuple[dict[str, int], Tensor]:
    """Per node how many values it has, and the logits ``[B, N]`` to agree with."""
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
    """How many of the batch are right at top-1 and at top-5 (all classes where there are fewer).

    Among equal logits the first counts as the largest, as in argmax; topk would pick any.
    """
    best = logits.sort(dim=1, descending=True, stable=True).indices[:, :5] == labels[:, None]
    return [best[:, 0].sum(), best.any(1).sum()]
