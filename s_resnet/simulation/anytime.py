"""Early exit: a spiking Graph answers each image as soon as it is confident, and spends no further steps on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import as_maps, check_dense, probability
from ..errors import InvalidData, message
from ..graph.engine import StreamSettings
from ..graph.graph import Graph, check_spiking
from ..graph.inputs import count_images
from ..graph.state import Chunk, State
from ..runtime.display import Displayed, Table, plain
from ..runtime.progress import Progress
from .simulate import USUAL, SimulationSettings, check_settings, per_image, spikes_table

# How often to check for early exit, in steps and in images times steps, so that few steps are simulated in vain.
LOOK, FOLD = 4, 64


@dataclass(frozen=True, repr=False)
class AnytimeSimulation(Displayed):
    """What a spiking network answered when each image stopped as soon as it was confident.

    Attributes:
        steps: ``[B]`` int64, the step at which each image stopped.
        outputs: ``[B, N]``, the answer at that step, in the units of the source's logits.
        spikes: per neuron layer ``[B]``, the spikes up to that step.
    """

    steps: Tensor
    outputs: Tensor
    spikes: Mapping[str, Tensor]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, all of them lists."""
        spikes = {name: count.tolist() for name, count in self.spikes.items()}
        return {"steps": self.steps.tolist(), "outputs": plain(self.outputs.tolist()), "spikes": spikes}

    def _lines(self) -> Iterator[str]:
        yield f"Simulation of {len(self.steps):,} images, each until confident, {self.outputs.shape[1]:,} outputs each"
        steps = self.steps.double()
        yield f"steps: mean {float(steps.mean()):.1f}, from {int(steps.min())} to {int(steps.max())}"
        yield f"{float(per_image({name: each[None] for name, each in self.spikes.items()})):,.0f} spikes per image"
        yield "print(_.table()) shows every layer, .outputs holds the answers [B, N]"

    def _parts(self) -> Iterator[str | Table]:
        """Spikes per image of every layer, and how many images stopped at which step."""
        counts = sorted(Counter(self.steps.tolist()).items())
        yield f"{len(self.steps):,} images   {self.outputs.shape[1]:,} outputs"
        yield Table(("step", "images that stopped"), tuple((str(step), f"{n:,}") for step, n in counts), texts=0)
        yield spikes_table({name: each[None] for name, each in self.spikes.items()}, ("spikes per image",))


def simulate_with_early_exit(
    graph: Graph, images: Tensor, timesteps: int, confidence: float, settings: SimulationSettings = USUAL
) -> AnytimeSimulation:
    """Run a spiking network for at most ``timesteps`` steps, each image only until its answer is confident.

    An image stops at the first step t where the softmax of ``readout(t) * t / timesteps`` reaches ``confidence`` in one
    class: the accumulated answer would then be confident even if the remaining steps added nothing. Images that stopped
    leave the batch, which saves their steps; the answers of the others are those of :func:`simulate`.

    The plain softmax of ``readout(t)`` would not do: after few steps it depends on few spikes, and may be large and
    wrong. With the factor ``t / timesteps`` a larger ``timesteps`` also means later and safer exits.

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``, preprocessed, on the graph's device, or events ``[T, B, C, H, W]`` as in
            :func:`simulate`.
        timesteps: T >= 1, the step at which an image stops at the latest.
        confidence: 0 < P < 1.
        settings: how to simulate; ``chunk`` is the number of steps between two checks for exits. Images are presented
            as a constant current.

    Raises:
        InvalidData: a setting is out of range, images do not fit, or the graph has no neurons.
    """
    check_spiking(graph, "simulate")
    check_dense(images, "simulate")
    images = as_maps(images)
    confidence = probability(confidence, "simulate", "confidence")
    check_settings(settings)
    if settings.coding != "direct":
        got, remedy = f"an early exit with coding {settings.coding!r}", "Simulate it without an exit"
        raise InvalidData(message("simulate", "", got, "'direct'", remedy))
    if graph.windowed:
        got = "an early exit for a network whose layers wait for their window of T, so that it answers only once"
        raise InvalidData(message("simulate", "", got, "a streaming network", "Leave the confidence out"))
    exits, graph = _Exits(images, timesteps, confidence), graph.at(timesteps)
    state, chunk, precision = None, settings.chunk, settings.precision
    with (
        torch.no_grad(),
        Progress[None](total=timesteps, desc="simulate", unit="step", shown=settings.progress) as bar,
    ):
        while state is None or (count_images(images) and exits.done < timesteps):
            size = max(1, min(LOOK, FOLD // max(1, count_images(images)))) if chunk is None else chunk
            for part in graph.stream(images, timesteps - exits.done, size, state, StreamSettings(precision=precision)):
                kept = _kept(exits.look(part), images.is_cuda)
                bar.update(len(part.outputs))
                # A smaller batch needs a new setup, which does not pay for a single image.
                if len(kept) - int(kept.sum()) >= len(kept) / 8:
                    break
            images = images[kept] if images.ndim == 4 else images[:, kept]
            state = _selected(part.state, kept)
            exits.select(kept)
    return AnytimeSimulation(exits.steps, exits.outputs, exits.spikes)


def _kept(waiting: Tensor, repeating: bool) -> Tensor:
    """Which images stay in the batch: those that wait and, if sizes should repeat, others up to a power of two."""
    count = int(waiting.sum())
    if not repeating or count == 0:
        return waiting
    others = (1 << (count - 1).bit_length()) - count
    return waiting | ((~waiting).cumsum(0) <= others)


class _Exits:
    """Which images have stopped, with which answers, and which image is where in the batch."""

    def __init__(self, images: Tensor, limit: int, confidence: float) -> None:
        self.limit, self.confidence, self.done = limit, confidence, 0
        self.number = torch.arange(count_images(images), device=images.device)  # indices of the images in the batch
        self.waiting = torch.ones_like(self.number, dtype=torch.bool)  # which of them have not stopped yet
        self.steps = torch.zeros_like(self.number)
        self.outputs = torch.empty(0)
        self.spikes: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}  # spikes so far of the images in the batch

    def look(self, part: Chunk) -> Tensor:
        """Note which images stop within the chunk; returns which images of the batch do not."""
        length, batch, classes = part.outputs.shape
        t = torch.arange(self.done + 1, self.done + length + 1, device=part.outputs.device)
        shares = (part.outputs.double() * (t.double() / self.limit)[:, None, None]).softmax(2)
        sure = (shares.amax(2) >= self.confidence) | (t == self.limit)[:, None]
        first, place = sure.int().argmax(0), torch.arange(batch, device=t.device)
        leaving = sure.any(0) & self.waiting
        who = self.number[leaving]
        if self.done == 0:
            self.outputs = part.outputs.new_zeros(batch, classes)
        self.steps[who] = t[first][leaving]
        self.outputs[who] = part.outputs[first, place][leaving]
        for name, count in part.spikes.items():
            running = count.double().cumsum(0) + self.totals.get(name, 0.0)
            self.spikes.setdefault(name, running.new_zeros(batch))[who] = running[first, place][leaving]
            self.totals[name] = running[-1]
        self.done += length
        self.waiting = self.waiting & ~leaving
        return self.waiting

    def select(self, keep: Tensor) -> None:
        """Keep a part of the batch."""
        self.number, self.waiting = self.number[keep], self.waiting[keep]
        self.totals = {name: total[keep] for name, total in self.totals.items()}


def _selected(state: State, keep: Tensor) -> State:
    """The memory of a part of the batch; a readout's step has no batch axis. Indexing keeps channels_last."""
    memory = {
        name: tuple(part[keep.to(part.device)] if part.ndim else part for part in parts)
        for name, parts in state.memory.items()
    }
    return State(state.step, memory)
