"""Simulation: what a spiking Graph answers over T steps, from one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import check_dense, probability, whole_number
from ..errors import InvalidData
from ..graph.engine import Whole
from ..graph.graph import Chunk, Graph, State, check_spiking, count_images
from ..runtime.display import Displayed, Table, plain
from ..runtime.progress import Progress

# Steps between two looks at who may stop, and images times steps in between: what is simulated in vain stays small.
LOOK, FOLD = 4, 64


@dataclass(frozen=True, repr=False)
class Simulation(Displayed):
    """What came out.

    steps: the requested steps, ascending.
    outputs: ``[len(steps), B, N]``, the answer after each requested step, in the units of the source's logits.
    spikes: per neuron layer ``[len(steps), B]``, spikes of each image up to each requested step.
    state: the memory after the last step; pass it to :func:`simulate` to go on.
    """

    steps: tuple[int, ...]
    outputs: Tensor
    spikes: Mapping[str, Tensor]
    state: State

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, answers and spikes as lists; of the memory type and shape."""
        spikes = {name: count.tolist() for name, count in self.spikes.items()}
        return {**super().to_dict(), "outputs": plain(self.outputs.tolist()), "spikes": spikes}

    def _lines(self) -> Iterator[str]:
        yield f"Simulation of {self.outputs.shape[1]:,} images, {self.outputs.shape[2]:,} outputs each"
        for step, count in list(zip(self.steps, _per_image(self.spikes), strict=True))[-2:]:
            yield f"T = {step}: {float(count):,.0f} spikes per image"
        yield "print(_.table()) shows every layer, .outputs holds the answers [steps, B, N]"

    def _parts(self) -> Iterator[str | Table]:
        """Spikes per image of every layer up to each of the steps."""
        yield f"{self.outputs.shape[1]:,} images   {self.outputs.shape[2]:,} outputs   spikes per image:"
        yield _spikes_table(self.spikes, tuple(f"T = {step}" for step in self.steps))


def simulate(
    graph: Graph,
    images: Tensor,
    steps: int,
    chunk: int | None = None,
    state: State | None = None,
    *,
    at: Sequence[int] | None = None,
    coding: str = "direct",
    seed: int = 0,
    precision: str = "exact",
    progress: bool = False,
) -> Simulation:
    """Run a spiking network for ``steps`` time steps.

    All layers are active in every step, in topological order, without transport delay: a spike emitted at t is
    integrated downstream at t (the paper's clock-driven simulation). Layers that wait for a part of their window of T
    steps (:class:`Neuron`, schedule) are each simulated in their own time, so steps are those of the window; such a
    network is run anew for every T in ``at``, and has no state to go on from.

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``, preprocessed, on the graph's device; or events ``[T, B, C, H, W]`` with at least as
            many frames as steps: step t gets the frame t, counted from the fresh state.
        steps: T >= 1.
        chunk: steps that go through one layer at a time; 1 is clock-driven, T layer-wise. Results do not depend on
            it (bit for bit on dyadic weights and inputs, else up to the convolution's rounding); memory does.
        state: where an earlier simulation of the same images stopped; None starts fresh. It is not changed.
        at: the steps (counted from this call's first) to keep answers of; by default the last one.
        coding: ``"direct"`` presents the image as a constant current at every step; ``"poisson"`` draws spikes
            ``s`` in {0, 1} with probability ``|x| / a`` and presents ``sign(x) a s``, ``a`` the image's largest
            ``|x|``, so that the mean current is the image.
        seed: of the Poisson spikes.
        precision: ``"exact"`` (float32) or ``"fast"`` (16-bit weights), as in :meth:`Graph.stream`.
        progress: show a bar on stderr when it is a terminal.

    Raises:
        InvalidData: a setting out of range, images that do not fit, or a graph without neurons.
    """
    check_spiking(graph, "simulate")
    check_dense(images, "simulate")
    steps = whole_number(steps, "simulate", "timesteps")
    encode = encoder(images, coding, seed, 0 if state is None else state.step)
    wanted = steps_to_report(steps, at)
    if graph.windowed and wanted != (steps,):
        rest = {"coding": coding, "seed": seed, "precision": precision, "progress": progress}
        runs = [simulate(graph, images, window, chunk, state, **rest) for window in wanted]  # type: ignore[arg-type]
        return _together(runs)
    parts = graph.stream(images, steps, chunk, state, encode, precision, whole=Whole())
    return _collected(parts, steps, wanted, progress)


def steps_to_report(steps: int, at: Iterable[int] | None) -> tuple[int, ...]:
    """The steps ``at`` in ascending order, by default the last; InvalidData for one that is not within ``steps``."""
    if at is not None and not isinstance(at, Iterable):
        raise InvalidData(f"simulate: got at={at!r}; expected steps to report. Pass a list of them.")
    wanted = (steps,) if at is None else tuple(sorted({whole_number(step, "simulate", "at", 0) for step in at}))
    if not wanted or wanted[0] < 1 or wanted[-1] > steps:
        raise InvalidData(f"simulate: got steps to report {list(wanted)}; expected within 1 ... {steps}. Change them.")
    return wanted


def answers(
    graph: Graph, images: Tensor, wanted: tuple[int, ...], precision: str, repeats: int, progress: bool = False
) -> Simulation:
    """What :func:`simulate` gives for :func:`steps_to_report`, without a state.

    repeats: how many such simulations are expected, of as many images.
    """
    whole = Whole(state=False, repeats=repeats)
    runs = [
        _collected(graph.stream(images, last, precision=precision, whole=whole), last, steps, progress)
        for last, steps in ([(t, (t,)) for t in wanted] if graph.windowed else [(wanted[-1], wanted)])
    ]
    return _together(runs)


def _together(runs: Sequence[Simulation]) -> Simulation:
    """What was asked for in runs of several lengths, and the state of the longest."""
    if len(runs) == 1:
        return runs[0]
    spikes = {name: torch.cat([run.spikes[name] for run in runs]) for name in runs[0].spikes}
    steps = tuple(step for run in runs for step in run.steps)
    return Simulation(steps, torch.cat([run.outputs for run in runs]), spikes, runs[-1].state)


def _collected(parts: Iterable[Chunk], steps: int, wanted: tuple[int, ...], progress: bool) -> Simulation:
    """What came out of a stream of ``steps`` steps at those wanted."""
    outputs: list[Tensor] = []
    spikes: list[Tensor] = []
    total: Tensor | float = 0.0
    done = 0
    with (
        torch.no_grad(),
        Progress[None](total=steps, desc="simulate", unit="step", shown=progress) as bar,
    ):
        for part in parts:
            length = len(part.outputs)
            kept = [t - done - 1 for t in wanted if done < t <= done + length]
            # Per image and layer a float32 count is exact; their running sum over T is kept in float64.
            running = torch.stack(list(part.spikes.values())).double().cumsum(1) + total
            outputs.extend(part.outputs[index] for index in kept)
            spikes.extend(running[:, index] for index in kept)
            total = running[:, -1:]
            done += length
            bar.update(length)
    counted = dict(zip(part.spikes, torch.stack(spikes, 1), strict=True))
    return Simulation(wanted, torch.stack(outputs), counted, part.state)


@dataclass(frozen=True, repr=False)
class AnytimeSimulation(Displayed):
    """What came out where each image stopped as soon as it was confident.

    steps: ``[B]`` int64, the step at which each image stopped.
    outputs: ``[B, N]``, its answer there, in the units of the source's logits.
    spikes: per neuron layer ``[B]``, its spikes up to there.
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
        yield f"{float(_per_image({name: each[None] for name, each in self.spikes.items()})):,.0f} spikes per image"
        yield "print(_.table()) shows every layer, .outputs holds the answers [B, N]"

    def _parts(self) -> Iterator[str | Table]:
        """Spikes per image of every layer, and how many images stopped at which step."""
        counts = sorted(Counter(self.steps.tolist()).items())
        yield f"{len(self.steps):,} images   {self.outputs.shape[1]:,} outputs"
        yield Table(("step", "images that stopped"), tuple((str(step), f"{n:,}") for step, n in counts), texts=0)
        yield _spikes_table({name: each[None] for name, each in self.spikes.items()}, ("spikes per image",))


def _per_image(spikes: Mapping[str, Tensor]) -> Tensor:
    """Spikes of all layers ``[steps]`` in the mean over images, of ``[steps, B]`` each."""
    return torch.stack([count.double().mean(1) for count in spikes.values()]).sum(0)


def _spikes_table(spikes: Mapping[str, Tensor], titles: tuple[str, ...]) -> Table:
    rows = {name: count.double().mean(1) for name, count in spikes.items()} | {"all": _per_image(spikes)}
    cells = ((name, *(f"{float(count):,.1f}" for count in counts)) for name, counts in rows.items())
    return Table(("layer", *titles), tuple(cells))


def simulate_until_confident(
    graph: Graph,
    images: Tensor,
    steps: int,
    confidence: float,
    chunk: int | None = None,
    *,
    precision: str = "exact",
    progress: bool = False,
) -> AnytimeSimulation:
    """Run a spiking network for at most ``steps`` steps, each image only until its answer is confident.

    An image stops at the first step t where the softmax of ``readout(t) * t / steps`` reaches ``confidence`` in one
    class: what has been accumulated is answer enough even if the steps to come brought nothing. Images that stopped
    leave the batch, so that their steps are saved; the answers of the others are those of :func:`simulate`.

    The plain softmax of ``readout(t)`` is no measure here: after few steps it holds few spikes, which make it large
    and wrong at once. The factor ``t / steps`` also makes ``steps`` a choice of how sure to be.

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``, preprocessed, on the graph's device, or events ``[T, B, C, H, W]`` as in `simulate`.
        steps: T >= 1, where an image stops that has not been confident before.
        confidence: 0 < P < 1.
        chunk: steps between two looks at who may stop; results do not depend on it, as in :func:`simulate`.
        precision: as in :func:`simulate`.
        progress: show a bar on stderr when it is a terminal.

    Raises:
        InvalidData: a setting out of range, images that do not fit, or a graph without neurons.
    """
    check_spiking(graph, "simulate")
    check_dense(images, "simulate")
    confidence = probability(confidence, "simulate", "confidence")
    if graph.windowed:
        raise InvalidData(
            "simulate: got an exit for a network whose layers wait for their window of T, so that it answers once; "
            "expected a streaming one. Leave the confidence out."
        )
    exits = _Exits(images, steps, confidence)
    state = None
    with (
        torch.no_grad(),
        Progress[None](total=steps, desc="simulate", unit="step", shown=progress) as bar,
    ):
        while state is None or (count_images(images) and exits.done < steps):
            size = max(1, min(LOOK, FOLD // max(1, count_images(images)))) if chunk is None else chunk
            for part in graph.stream(images, steps - exits.done, size, state, precision=precision):
                kept = _kept(exits.look(part), images.is_cuda)
                bar.update(len(part.outputs))
                # A smaller batch has to be set up anew: not for one image of many.
                if len(kept) - int(kept.sum()) >= len(kept) / 8:
                    break
            images = images[kept] if images.ndim == 4 else images[:, kept]
            state = _selected(part.state, kept)
            exits.select(kept)
    return AnytimeSimulation(exits.steps, exits.outputs, exits.spikes)


def _kept(waiting: Tensor, repeating: bool) -> Tensor:
    """Who stays in the batch: who waits; where sizes should repeat, with others up to a power of two."""
    count = int(waiting.sum())
    if not repeating or count == 0:
        return waiting
    others = (1 << (count - 1).bit_length()) - count
    return waiting | ((~waiting).cumsum(0) <= others)


class _Exits:
    """Who has stopped, with which answer, and which image of the batch is which."""

    def __init__(self, images: Tensor, limit: int, confidence: float) -> None:
        self.limit, self.confidence, self.done = limit, confidence, 0
        self.number = torch.arange(count_images(images), device=images.device)  # of the images in the batch
        self.waiting = torch.ones_like(self.number, dtype=torch.bool)  # which of them have not stopped yet
        self.steps = torch.zeros_like(self.number)
        self.outputs = torch.empty(0)
        self.spikes: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}  # spikes so far, of the images in the batch

    def look(self, part: Chunk) -> Tensor:
        """Note who stops within the chunk; gives who in the batch does not."""
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
        """Go on with a part of the batch."""
        self.number, self.waiting = self.number[keep], self.waiting[keep]
        self.totals = {name: total[keep] for name, total in self.totals.items()}


def _selected(state: State, keep: Tensor) -> State:
    """The memory of a part of the batch; what has no batch (a readout's step) stays. Indexing keeps channels_last."""
    memory = {
        name: tuple(part[keep.to(part.device)] if part.ndim else part for part in parts)
        for name, parts in state.memory.items()
    }
    return State(state.step, memory)


def encoder(images: Tensor, coding: str, seed: int, done: int) -> Callable[[int], Tensor] | None:
    """The function that gives the next S steps of input, or None when the input is constant."""
    if coding == "direct":
        return None
    if coding != "poisson":
        raise InvalidData(f"simulate: got coding {coding!r}; expected 'direct' or 'poisson'. Choose one.")
    if images.ndim != 4:
        raise InvalidData(
            f"simulate: got coding 'poisson' for a current of shape {tuple(images.shape)}; expected images "
            "[B, C, H, W]. Events are presented as they are: choose 'direct'."
        )
    generator = torch.Generator(images.device).manual_seed(seed)

    def draw() -> Tensor:
        # Step by step, so that the draws do not depend on the chunk.
        return torch.rand(images.shape, generator=generator, device=images.device)

    def encode(steps: int) -> Tensor:
        amplitude = images.abs().amax(dim=(1, 2, 3), keepdim=True)
        probability = images.abs() / amplitude.clamp_min(torch.finfo(images.dtype).tiny)
        spike = images.sign() * amplitude
        return torch.stack([spike * (draw() < probability) for _ in range(steps)])

    for _ in range(done):  # an earlier simulation has had these
        draw()

    return encode
