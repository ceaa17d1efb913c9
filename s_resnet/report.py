"""The Report: how good a spiking network is at every T, against its own ANN on the same images, and what it took."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import kernels
from .artifact import replacing
from .errors import BackendUnavailable, InvalidData
from .graph import Graph
from .simulate import simulate

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """The network at one T: accuracies and agreement with the ANN as shares, spikes per neuron and image up to T."""

    timesteps: int
    end_to_end_steps: int
    top1: float
    top5: float
    agreement: float
    spikes_per_neuron: float


@dataclass(frozen=True)
class Report:
    """The figures of one evaluation. ``ann`` holds the source network's ``top1`` and ``top5`` on the same images."""

    network: str
    recipe: str
    images: int
    device: str
    kernel: str
    ann: dict[str, float]
    snn: tuple[Row, ...]
    images_per_second: float
    seconds_per_step_per_image: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object, schema 1."""
        return {"schema": SCHEMA, **asdict(self), "snn": [asdict(row) for row in self.snn]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON whole or not at all. Raises SResNetError when it cannot be written."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    def table(self) -> str:
        """The figures as a table for people."""
        lines = [
            f"{self.network or 'network'}   recipe {self.recipe}   {self.images} images   "
            f"{self.device}, kernel {self.kernel}",
            "",
            "     T    top-1    top-5   agreement   spikes/neuron",
            f"   ANN  {_percent(self.ann['top1'])}  {_percent(self.ann['top5'])}",
        ]
        for row in self.snn:
            lines.append(
                f"{row.timesteps:6d}  {_percent(row.top1)}  {_percent(row.top5)}   {_percent(row.agreement)}"
                f"  {row.spikes_per_neuron:14.3f}"
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
    device: str = "auto",
    network: str = "",
    progress: bool = False,
) -> Report:
    """Evaluate a spiking network and its own ANN on the same images, at many T from one pass.

    Args:
        snn: a converted network.
        loader: batches of (images ``[B, C, H, W]``, labels ``[B]``).
        timesteps: T >= 1.
        at: the steps to report; by default 1, 2, 4, ... and T.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        network: a name for the report.
        progress: show bars on stderr when it is a terminal.

    Raises:
        InvalidData: no images, labels that the network has no class for, or a setting out of range.
        BackendUnavailable: ``device="cuda"`` without a GPU.
    """
    if timesteps < 1:
        raise InvalidData(f"evaluate: got timesteps={timesteps}; expected at least 1. Pass a positive number.")
    target = find_device(device)
    snn = snn.to(target)
    steps = tuple(sorted(set(at))) if at is not None else powers_of_two(timesteps)
    tally = _Tally(snn, steps)
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)
    for images, labels in tqdm(loader, desc="evaluate", unit="batch", leave=False, disable=None if progress else True):
        tally.add(images.to(target), labels.to(target), timesteps, progress)
    return tally.report(network, target)


def powers_of_two(timesteps: int) -> tuple[int, ...]:
    """1, 2, 4, ... below ``timesteps``, and ``timesteps`` itself."""
    return (*(2**k for k in range(timesteps.bit_length()) if 2**k < timesteps), timesteps)


def find_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` takes a GPU when there is one. Raises BackendUnavailable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise BackendUnavailable(f"device: got {name!r}; expected auto, cpu or cuda. Choose one of them.")
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(name[5:] or 0) >= usable:
        raise BackendUnavailable(
            f"device: got {name!r} on a machine with {usable} usable CUDA devices; expected one that is there. "
            "Use --device cpu or auto."
        )
    return torch.device(name)


class _Tally:
    """The sums over batches that a Report divides."""

    def __init__(self, snn: Graph, steps: tuple[int, ...]) -> None:
        self.snn, self.steps = snn, steps
        self.images = 0
        self.seconds = 0.0
        self.ann = torch.zeros(2, dtype=torch.int64)  # right at top-1, top-5
        self.right = torch.zeros(len(steps), 3, dtype=torch.int64)  # top-1, top-5, agreement
        self.spikes = torch.zeros(len(steps), dtype=torch.float64)
        self.neurons = 0
        self.timesteps = 0

    def add(self, images: Tensor, labels: Tensor, timesteps: int, progress: bool) -> None:
        if labels.shape != images.shape[:1] or len(images) == 0:
            raise InvalidData(
                f"evaluate: got a batch of {len(images)} images with labels of shape {tuple(labels.shape)}; expected "
                "at least one image, and one label for each. Check the loader."
            )
        sizes = {}
        for name, value in self.snn.activations(images):
            sizes[name] = value[0].numel()
        logits = value
        wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
        if len(wrong):
            raise InvalidData(
                f"evaluate: got label {int(wrong[0])} for a network of {logits.shape[1]} classes; expected labels "
                f"0 ... {logits.shape[1] - 1}. Choose the data that the network was trained on."
            )
        self.neurons = sum(sizes[node.name] for node in self.snn.neurons)
        start = time.perf_counter()
        result = simulate(self.snn, images, timesteps, at=self.steps, progress=progress)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        self.seconds += time.perf_counter() - start
        self.images += len(images)
        self.timesteps = timesteps
        self.ann += torch.stack(_hits(logits, labels)).cpu()
        choice = logits.argmax(1)
        for row, answer in enumerate(result.outputs):
            same = (answer.argmax(1) == choice).sum()
            self.right[row] += torch.stack([*_hits(answer, labels), same]).cpu()
        self.spikes += torch.stack([count.sum(1) for count in result.spikes.values()]).sum(0).cpu()

    def report(self, network: str, device: torch.device) -> Report:
        if self.images == 0:
            raise InvalidData("evaluate: got no images; expected at least one batch. Check the data.")
        rows = []
        for step, right, spikes in zip(self.steps, self.right.double() / self.images, self.spikes, strict=True):
            top1, top5, agreement = (float(value) for value in right)
            rows.append(Row(step, step, top1, top5, agreement, float(spikes) / self.images / self.neurons))
        return Report(
            network=network,
            recipe=str(self.snn.provenance.get("recipe", {}).get("name", "custom")),
            images=self.images,
            device=device.type,
            kernel=kernels.select(device)[0],
            ann=dict(zip(("top1", "top5"), (float(v) for v in self.ann.double() / self.images), strict=True)),
            snn=tuple(rows),
            images_per_second=self.images / self.seconds,
            seconds_per_step_per_image=self.seconds / self.images / self.timesteps,
            peak_memory_bytes=_peak_memory(device),
        )


def _hits(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """How many of the batch are right at top-1 and at top-5 (all classes where there are fewer).

    Among equal logits the first counts as the largest, as in argmax; topk would pick any.
    """
    best = logits.sort(dim=1, descending=True, stable=True).indices[:, :5] == labels[:, None]
    return [best[:, 0].sum(), best.any(1).sum()]


def _peak_memory(device: torch.device) -> int:
    """The most memory in use so far: the GPU's tensors, or the whole process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
