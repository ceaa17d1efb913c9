"""Simulation: what a spiking Graph answers over T steps, from one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .errors import InvalidData
from .graph import Graph, State


@dataclass(frozen=True)
class Simulation:
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
    progress: bool = False,
) -> Simulation:
    """Run a spiking network for ``steps`` time steps.

    All layers are active in every step, in topological order, without transport delay: a spike emitted at t is
    integrated downstream at t (the paper's clock-driven simulation).

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``, preprocessed, on the graph's device.
        steps: T >= 1.
        chunk: steps that go through one layer at a time; 1 is clock-driven, T layer-wise. Results do not depend on
            it (bit for bit on dyadic weights and inputs, else up to the convolution's rounding); memory does.
        state: where an earlier simulation of the same images stopped; None starts fresh. It is not changed.
        at: the steps (counted from this call's first) to keep answers of; by default the last one.
        coding: ``"direct"`` presents the image as a constant current at every step; ``"poisson"`` draws spikes
            ``s`` in {0, 1} with probability ``|x| / a`` and presents ``sign(x) a s``, ``a`` the image's largest
            ``|x|``, so that the mean current is the image.
        seed: of the Poisson spikes.
        progress: show a bar on stderr when it is a terminal.

    Raises:
        InvalidData: a setting out of range, images that do not fit, or a graph without neurons.
    """
    encode = _encoder(images, coding, seed, 0 if state is None else state.step)
    wanted = (steps,) if at is None else tuple(sorted(set(at)))
    if not wanted or wanted[0] < 1 or wanted[-1] > steps:
        raise InvalidData(f"simulate: got steps to report {list(wanted)}; expected within 1 ... {steps}. Change them.")
    outputs: list[Tensor] = []
    spikes: dict[str, list[Tensor]] = {}
    totals: dict[str, Tensor] = {}
    done = 0
    with (
        torch.no_grad(),
        tqdm(total=steps, desc="simulate", unit="step", leave=False, disable=None if progress else True) as bar,
    ):
        for part in graph.stream(images, steps, chunk, state, encode):
            length = len(part.outputs)
            kept = [t - done - 1 for t in wanted if done < t <= done + length]
            outputs.extend(part.outputs[index] for index in kept)
            for name, count in part.spikes.items():
                # Per image and layer a float32 count is exact; their running sum over T is kept in float64.
                running = count.double().cumsum(0) + totals.get(name, 0.0)
                totals[name] = running[-1]
                spikes.setdefault(name, []).extend(running[index] for index in kept)
            done += length
            bar.update(length)
    counted = {name: torch.stack(values) for name, values in spikes.items()}
    return Simulation(wanted, torch.stack(outputs), counted, part.state)


def _encoder(images: Tensor, coding: str, seed: int, done: int) -> Callable[[int], Tensor] | None:
    """The function that gives the next S steps of input, or None when the input is constant."""
    if coding == "direct":
        return None
    if coding != "poisson":
        raise InvalidData(f"simulate: got coding {coding!r}; expected 'direct' or 'poisson'. Choose one.")
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
