"""Simulation: what a spiking Graph answers over T steps, from one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import as_maps, check_dense, check_kind, whole_number
from ..errors import InvalidData, message
from ..graph.engine import StreamSettings, Whole
from ..graph.graph import Graph, check_spiking
from ..graph.state import Chunk, State
from ..runtime.display import Displayed, Table, plain
from ..runtime.progress import Progress


@dataclass(frozen=True, repr=False)
class SimulationSettings(Displayed):
    """How to simulate; the defaults are what nearly everyone wants.

    Attributes:
        chunk: steps that go through one layer at a time; 1 is clock-driven, T layer-wise. Results do not depend on it
            (bit for bit on dyadic weights and inputs, else up to the convolution's rounding); memory does. None:
            chosen from the batch size.
        coding: ``"direct"`` presents the image as a constant current at every step; ``"poisson"`` draws spikes ``s`` in
            {0, 1} with probability ``|x| / a`` and presents ``sign(x) a s``, where ``a`` is the image's largest
            ``|x|``, so that the mean current is the image.
        seed: the seed of the Poisson spikes.
        precision: ``"exact"`` (float32) or ``"fast"`` (16-bit weights), as in :class:`s_resnet.graph.StreamSettings`.
        progress: whether to show a bar on stderr when it is a terminal.
    """

    chunk: int | None = None
    coding: str = "direct"
    seed: int = 0
    precision: str = "exact"
    progress: bool = False


USUAL = SimulationSettings()


def check_settings(settings: object) -> None:
    """Check that settings are those of a simulation.

    Raises:
        InvalidData: they are something else.
    """
    remedy = "Pass s_resnet.simulation.SimulationSettings(chunk=..., precision=...), or leave them out"
    check_kind(settings, SimulationSettings, "simulate", "settings", remedy)


@dataclass(frozen=True, repr=False)
class Simulation(Displayed):
    """What a spiking network answered.

    Attributes:
        steps: the requested steps, ascending.
        outputs: ``[len(steps), B, N]``, the answer after each requested step, in the units of the source's logits.
        spikes: per neuron layer ``[len(steps), B]``, spikes of each image up to each requested step.
        state: the memory after the last step; pass it to :func:`simulate` to continue.
    """

    steps: tuple[int, ...]
    outputs: Tensor
    spikes: Mapping[str, Tensor]
    state: State

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, answers and spikes as lists; only type and shape of the memory."""
        spikes = {name: count.tolist() for name, count in self.spikes.items()}
        return {**super().to_dict(), "outputs": plain(self.outputs.tolist()), "spikes": spikes}

    def _lines(self) -> Iterator[str]:
        yield f"Simulation of {self.outputs.shape[1]:,} images, {self.outputs.shape[2]:,} outputs each"
        for step, count in list(zip(self.steps, per_image(self.spikes), strict=True))[-2:]:
            yield f"T = {step}: {float(count):,.0f} spikes per image"
        yield "print(_.table()) shows every layer, .outputs holds the answers [steps, B, N]"

    def _parts(self) -> Iterator[str | Table]:
        """Spikes per image of every layer up to each of the steps."""
        yield f"{self.outputs.shape[1]:,} images   {self.outputs.shape[2]:,} outputs   spikes per image:"
        yield spikes_table(self.spikes, tuple(f"T = {step}" for step in self.steps))


def simulate(
    graph: Graph,
    images: Tensor,
    timesteps: int,
    settings: SimulationSettings = USUAL,
    *,
    at: Sequence[int] | None = None,
    state: State | None = None,
) -> Simulation:
    """Run a spiking network for ``timesteps`` time steps.

    All layers are active in every step, in topological order, without transport delay: a spike emitted at t is
    integrated downstream at t (the paper's clock-driven simulation). Layers that wait for a part of their window of T
    steps (:class:`Neuron`, schedule) are each simulated in their own time, so steps are those of the window. Such a
    network is run anew for every T in ``at``, and has no state to continue from.

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``, preprocessed, on the graph's device; or events ``[T, B, C, H, W]`` with at least as
            many frames as steps: step t, counted from the fresh state, receives frame t.
        timesteps: T >= 1.
        settings: coding, precision, and how many steps go through a layer at a time.
        at: the steps to keep answers of, counted from the first step of this call; by default the last one.
        state: the state at which an earlier simulation of the same images stopped; None starts fresh. It is not
            changed.

    Raises:
        InvalidData: a setting is out of range, images do not fit, or the graph has no neurons.
    """
    check_spiking(graph, "simulate")
    check_dense(images, "simulate")
    images = as_maps(images)
    timesteps = whole_number(timesteps, "simulate", "timesteps")
    check_settings(settings)
    encode = encoder(images, settings.coding, settings.seed, 0 if state is None else state.step)
    wanted = steps_to_report(timesteps, at)
    runs = graph.runs(wanted)
    if len(runs) > 1 or (graph.windowed and wanted != (timesteps,)):
        return _together([simulate(graph, images, steps[-1], settings, at=steps, state=state) for steps in runs])
    graph = graph.at(timesteps) if state is None else graph
    parts = graph.stream(
        images,
        timesteps,
        settings.chunk,
        state,
        settings=StreamSettings(encode=encode, precision=settings.precision, whole=Whole()),
    )
    return _collected(parts, timesteps, wanted, settings.progress)


def steps_to_report(steps: int, at: Iterable[int] | None) -> tuple[int, ...]:
    """The steps ``at`` in ascending order, by default the last one.

    Raises:
        InvalidData: a step is not within ``steps``.
    """
    if at is not None and not isinstance(at, Iterable):
        raise InvalidData(message("simulate", "", f"at={at!r}", "steps to report", "Pass a list of them"))
    wanted = (steps,) if at is None else tuple(sorted({whole_number(step, "simulate", "at", 0) for step in at}))
    if not wanted or wanted[0] < 1 or wanted[-1] > steps:
        got = f"steps to report {list(wanted)}"
        raise InvalidData(message("simulate", "", got, f"within 1 ... {steps}", "Raise T, or leave those steps out"))
    return wanted


def answers(
    graph: Graph, images: Tensor, wanted: tuple[int, ...], precision: str, repeats: int, progress: bool = False
) -> Simulation:
    """What :func:`simulate` gives for :func:`steps_to_report`, without a state.

    Args:
        graph: a converted network.
        images: as in :func:`simulate`.
        wanted: the steps to keep answers of.
        precision: as in :class:`SimulationSettings`.
        repeats: how many such simulations of equally many images are expected.
        progress: show a bar on stderr when it is a terminal.
    """
    whole = Whole(state=False, repeats=repeats)
    runs = [
        _collected(
            graph.stream(images, last, settings=StreamSettings(precision=precision, whole=whole)), last, steps, progress
        )
        for last, steps in ((steps[-1], steps) for steps in graph.runs(wanted))
    ]
    return _together(runs)


def _together(runs: Sequence[Simulation]) -> Simulation:
    """The results of runs of several lengths as one, with the state of the longest."""
    if len(runs) == 1:
        return runs[0]
    spikes = {name: torch.cat([run.spikes[name] for run in runs]) for name in runs[0].spikes}
    steps = tuple(step for run in runs for step in run.steps)
    return Simulation(steps, torch.cat([run.outputs for run in runs]), spikes, runs[-1].state)


def _collected(parts: Iterable[Chunk], steps: int, wanted: tuple[int, ...], progress: bool) -> Simulation:
    """The simulation at the ``wanted`` steps of a stream of ``steps`` steps."""
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
            # A float32 count per image and layer is exact; its running sum over T is float64.
            running = torch.stack(list(part.spikes.values())).double().cumsum(1) + total
            outputs.extend(part.outputs[index] for index in kept)
            spikes.extend(running[:, index] for index in kept)
            total = running[:, -1:]
            done += length
            bar.update(length)
    counted = dict(zip(part.spikes, torch.stack(spikes, 1), strict=True))
    return Simulation(wanted, torch.stack(outputs), counted, part.state)


def per_image(spikes: Mapping[str, Tensor]) -> Tensor:
    """Mean spikes per image of all layers together, ``[steps]``, from ``[steps, B]`` for each layer."""
    return torch.stack([count.double().mean(1) for count in spikes.values()]).sum(0)


def spikes_table(spikes: Mapping[str, Tensor], titles: tuple[str, ...]) -> Table:
    """A table of spikes per image of every layer and of all together, from ``[len(titles), B]`` for each layer."""
    rows = {name: count.double().mean(1) for name, count in spikes.items()} | {"all": per_image(spikes)}
    cells = ((name, *(f"{float(count):,.1f}" for count in counts)) for name, counts in rows.items())
    return Table(("layer", *titles), tuple(cells))


def encoder(images: Tensor, coding: str, seed: int, done: int) -> Callable[[int], Tensor] | None:
    """A function that gives the next S steps of input after ``done`` steps, or None if the input is constant."""
    if coding == "direct":
        return None
    if coding != "poisson":
        got = f"coding {coding!r}"
        raise InvalidData(message("simulate", "", got, "'direct' or 'poisson'", "Pass 'direct' for a constant current"))
    if images.ndim != 4:
        got = f"coding 'poisson' for a current of shape {tuple(images.shape)}"
        remedy = "Pass 'direct', which presents events unchanged"
        raise InvalidData(message("simulate", "", got, "images [B, C, H, W]", remedy))
    generator = torch.Generator(images.device).manual_seed(seed)

    def draw() -> Tensor:
        # Drawn step by step, so that spikes do not depend on the chunk.
        return torch.rand(images.shape, generator=generator, device=images.device)

    def encode(steps: int) -> Tensor:
        amplitude = images.abs().amax(dim=(1, 2, 3), keepdim=True)
        probability = images.abs() / amplitude.clamp_min(torch.finfo(images.dtype).tiny)
        spike = images.sign() * amplitude
        return torch.stack([spike * (draw() < probability) for _ in range(steps)])

    for _ in range(done):  # an earlier simulation has used these
        draw()

    return encode
