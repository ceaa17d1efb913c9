"""Pass: weights, biases and thresholds of the spiking network reconstructed block by block, without labels."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...graph.engine import arithmetic
from ...graph.forms import synapse
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Conv2d, Input, Linear, Node, Op, SpikingWeights
from ...graph.parts import mapped
from ...graph.provenance import ReconstructedBlock, Reconstruction, ReconstructionSettings
from ...graph.readout import Readout, SpikingMaxPool2d
from ...kernels import per_channel
from ...runtime.progress import Progress, repeatable
from ...simulation.lockstep import Pair, blocks, fire_mean, nearly_order_free, order_free, propagate, propagate_both
from ..context import Context
from ..kept import Kept, Shown, Values
from ..layerwise import PART, in_memory
from ..resume import kept_at, key_of, resumed
from ..spill import Spill, gather

BATCH = 32
# Learning rates: of a weight in its layer's standard deviations, of a correction in full scales, of a log threshold.
WEIGHT, CORRECTION, THRESHOLD = 0.006, 0.0006, 0.002
JOINT = 0.15  # of these rates, for all blocks at once
SHIFT = 1 / 8  # of the image's size, the most by which an image is shifted while all blocks are trained
CHECKED = 8  # one image of so many is not trained on, but decides whether the block is better than before


def reconstruct(
    graph: Graph,
    context: Context,
    steps: int = 250,
    joint: int = 1000,
    minutes: float = 30.0,
    resume: str | os.PathLike[str] | None = None,
) -> Graph:
    """Train each block's spiking weights, corrections and thresholds to give what the source network's block gives.

    A block lies between two neuron layers through which everything passes (in a ResNet, the ends of its residual
    blocks). On calibration images it gets what the finished blocks before it really send, and minimizes::

        E[(r - a)^2],   r: the mean output of the real spiking forward over T steps, a: the source's activation

    by Adam, ``steps`` steps of 32 images, the learning rate falling to zero along a cosine. Then all blocks together
    get ``joint`` such steps towards the source's logits, at 0.15 of the rates, on images mirrored and shifted at
    random, for which the source is asked anew. The gradient goes straight through the spikes: with
    ``u = clip(z / threshold, 0, L)`` of the mean current z, and N the real count, the backward pass sees
    ``r = threshold (u + (N / T - u).detach())``, so that weights, corrections and thresholds learn. One image of eight
    is kept apart: a block that is no better on those, and the whole that is no better, stays as it was.

    Where counts depend on nothing but the total charge (recipe phased), and where they nearly do (recipe signed), one
    pass over mean currents gives them, T times cheaper. Of the latter the whole is held against what it was by its real
    spikes at the end, on as many of the images kept apart as fit in memory.

    What spiking runs use is written beside the source's weights, so the analog run is preserved. The provenance gets an
    entry ``reconstruction``: what was asked, the number of images, per block, and for all of them together, how many
    steps it got and whether it is better for them, and whether the outcome was taken.

    Args:
        graph: the network after :func:`calibrate_neurons`.
        context: with calibration images to fit to, and T.
        steps: for each block.
        joint: for all blocks together.
        minutes: the time that it may take. The block under way when it is over is finished; the blocks after it stay as
            they were calibrated, and got 0 steps. All together get as many steps as fit in what the blocks leave. So
            the result depends on nothing but the numbers of steps that the provenance tells.
        resume: a file that keeps finished blocks, from which the same call goes on after an interruption, with all its
            minutes.

    Raises:
        ConversionError: there are no calibration images, or no T.
        InvalidArtifact: ``resume`` belongs to another network, other images or other settings.

    Source: block reconstruction, Li et al., ICLR 2021 (arXiv:2102.05426); threshold gradient, Esser et al., ICLR 2020
    (arXiv:1902.08153).
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("reconstruct"), context.fitting_steps("reconstruct")
    key = key_of(graph, images, {"timesteps": timesteps, "steps": steps, "joint": joint})
    before, (graph, said) = graph, resumed(graph, resume, key)
    rounds = 1 if nearly_order_free(graph) else timesteps
    room = in_memory(graph, images, rounds, PART)
    entered: dict[str, Values] = {graph.nodes[0].name: _shown(graph, images, rounds)}
    values, parts = entered, blocks(graph)
    names = [part[-1].name for part in parts] + ["all together"] * (joint > 0)
    total = steps * len(parts) + joint
    finished = _credited(len(said), len(parts), steps, joint)
    bar = Progress[None](total=total, desc="reconstruct", unit="step", shown=context.progress, initial=finished)
    kept = repeatable(resume, lambda: f"{len(said)} of {len(parts) + 1} parts" if said else "")
    end = time.monotonic() + 60 * minutes
    with bar, arithmetic(images[:1], tf32=False), kept:
        for index, part in enumerate(parts):
            if index >= len(said):
                if time.monotonic() >= end:
                    break
                bar.show(part=f"{index + 1}/{len(parts) + 1}")
                part, done, better = _Block(part, values, timesteps, 1.0, room=room).train(steps, bar)
                said.append(ReconstructedBlock(names[index], done, better))
                graph = kept_at(_replaced(graph, part), resume, key, said)
            if index < len(parts) - 1:
                values = _sent(part, values, timesteps, room)
        if len(parts) == len(said) < len(names) and time.monotonic() < end:
            bar.show(part=f"{len(parts) + 1}/{len(parts) + 1}")
            together = _Block(graph.nodes, entered, timesteps, JOINT, varied=True, room=room)
            whole, done, better = together.train(joint, bar, end)
            said.append(ReconstructedBlock(names[-1], done, better))
            graph = kept_at(_replaced(graph, whole), resume, key, said)
        bar.update(total - _credited(len(said), len(parts), steps, joint))  # of those that there was no time for
        sure = order_free(graph) or rounds > 1
        taken = graph if sure else _closer(before, graph, images, timesteps)
    said += [ReconstructedBlock(name, 0, False) for name in names[len(said) :]]
    asked = ReconstructionSettings(steps, joint, total, minutes)
    return taken.with_provenance(reconstruction=Reconstruction(tuple(said), asked, len(images), taken is graph))


def _credited(count: int, blocks: int, steps: int, joint: int) -> int:
    """The steps that so many finished parts stand for: the blocks, and then all of them together."""
    return steps * min(count, blocks) + joint * (count > blocks)


def _shown(graph: Graph, images: Tensor | Spill, steps: int) -> Shown:
    op = graph.nodes[0].op
    assert isinstance(op, Input)
    return Shown(op, images, steps)


def _sent(nodes: tuple[Node, ...], values: Mapping[str, Values], timesteps: int, room: int) -> dict[str, Values]:
    """What the last of the nodes, a neuron layer, sends on all images; kept in a file where they are many."""
    last = nodes[-1]
    assert isinstance(last.op, Neuron)
    count = len(next(iter(values.values())))

    def sent(images: slice) -> Pair:
        with torch.no_grad():
            entering = {name: value[images] for name, value in values.items()}
            return propagate_both(nodes, entering, timesteps, lambda node, *_: node.op)[1][last.name]

    if count <= room:
        return {last.name: sent(slice(0, count))}
    parts = (slice(first, first + room) for first in range(0, count, room))
    return {last.name: Kept(last.op, timesteps, map(sent, parts))}


def _closer(before: Graph, after: Graph, images: Tensor | Spill, timesteps: int) -> Graph:
    """The one of the two whose real spikes come closer to the source's logits, on the images kept apart."""
    jump = CHECKED * BATCH
    held = gather(images[first : first + jump : CHECKED] for first in range(0, len(images), jump))
    room = in_memory(before, held, timesteps, PART)
    old, new = (
        _Block(graph.nodes, {graph.nodes[0].name: _shown(graph, held, timesteps)}, timesteps, 1.0, room=room).error(
            torch.arange(len(held))
        )
        for graph in (before, after)
    )
    return after if new < old else before


def _replaced(graph: Graph, part: tuple[Node, ...]) -> Graph:
    """The graph with these nodes in place of those of their names."""
    changed = {node.name: node for node in part}
    return replace(graph, nodes=tuple(changed.get(node.name, node) for node in graph.nodes))


class _Block:
    """A block under training: its nodes, and the leaves that learn, by node and field.

    varied: it is the whole network, and learns from images mirrored and shifted. room: images in memory at a time.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        values: Mapping[str, Values],
        timesteps: int,
        rate: float,
        varied: bool = False,
        room: int = BATCH,
    ) -> None:
        self.nodes, self.values, self.timesteps, self.rate, self.varied = nodes, values, timesteps, rate, varied
        self.room = min(room, BATCH)
        count = len(next(iter(values.values())))
        squares: list[float] = []

        def targets() -> Iterator[Tensor]:
            for first in range(0, count, self.room):
                target = self._source({n: value[first : first + self.room].analog for n, value in values.items()})
                squares.append(float(target.pow(2).mean()) * len(target))
                yield target

        self.target = gather(targets())
        self.scale = sum(squares) / count or 1.0
        self.leaves: dict[str, tuple[Tensor, ...]] = {}
        self.groups: list[dict[str, object]] = []
        for node in nodes:
            self._learn(node)

    def _learn(self, node: Node) -> None:
        op = node.op
        if isinstance(op, Conv2d | Linear):
            weight = synapse(op).weight.clone()
            self._add(node, (weight, WEIGHT * float(weight.std())))
        elif isinstance(op, Neuron):
            threshold = op.threshold.log().clone()
            correction = torch.zeros_like(threshold) if op.correction is None else op.correction.clone()
            full = float(op.threshold.mean()) * op.max_emission
            self._add(node, (threshold, THRESHOLD), (correction, CORRECTION * full))

    def _add(self, node: Node, *leaves: tuple[Tensor, float]) -> None:
        self.leaves[node.name] = tuple(leaf.requires_grad_() for leaf, _ in leaves)
        self.groups += [{"params": [leaf], "lr": rate * self.rate} for leaf, rate in leaves]

    def trained(self) -> tuple[Node, ...]:
        """The nodes with what has been learned."""
        return tuple(replace(node, op=_detached(self._op(node))) for node in self.nodes)

    def _op(self, node: Node) -> Op:
        op = node.op
        if isinstance(op, Conv2d | Linear):
            return replace(op, spiking=SpikingWeights(self.leaves[node.name][0]))
        if isinstance(op, Neuron):
            threshold, correction = self.leaves[node.name]
            return replace(op, threshold=threshold.exp(), correction=correction)
        return op

    def _fitting(self, chosen: Tensor, steps: int, end: float) -> int:
        """How many of these steps fit in the time until ``end``, at the pace of a second try of one; at least one.

        They are counted before they are made, and not cut off: what they learn depends on their number alone.
        """
        start = end
        for _ in range(2):  # the first warms up
            start = time.monotonic()
            float(self._backward(chosen, torch.Generator().manual_seed(0)))  # waits for a GPU
        now = time.monotonic()
        return max(1, min(steps, int((end - now) / max(now - start, 1e-9))))

    def train(self, steps: int, bar: Progress[None], end: float | None = None) -> tuple[tuple[Node, ...], int, bool]:
        """The nodes after ``steps`` steps, or as many as fit before ``end``; how many; whether that is better.

        Where it is not, the nodes are unchanged.
        """
        count = len(self.target)
        checked = torch.arange(0, count, CHECKED)
        learned = torch.tensor([i for i in range(count) if i % CHECKED] or [0])
        if end is not None:
            asked, steps = steps, self._fitting(learned[:BATCH], steps, end)
            bar.update(asked - steps)
        before = self.error(checked)
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(self.groups)
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            chosen = learned[torch.randint(len(learned), (BATCH,), generator=generator)]
            optimizer.zero_grad()
            self._backward(chosen, generator)
            optimizer.step()
            bar.update()
        better = self.error(checked) < before
        return self.trained() if better else self.nodes, steps, better

    def _backward(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Add the gradient of the mean loss of the chosen images to that of the leaves; the last part's share of it."""
        for part in torch.split(chosen, self.room):
            loss = self._loss(part, generator) * (len(part) / len(chosen))
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def error(self, chosen: Tensor) -> float:
        with torch.no_grad():
            parts = torch.split(chosen, self.room)
            return sum(float(self._loss(part, None)) * len(part) for part in parts) / len(chosen)

    def _loss(self, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
        """The mean squared distance to the source on the chosen images, relative to the source's mean square."""
        mean: dict[str, Tensor] = {}
        real: dict[str, Tensor] = {}
        values, target = self._entering(chosen, generator)
        for name, value in values.items():
            real[name], mean[name] = value.spiking, value.spiking.mean(0)
        for node in self.nodes:
            if node.inputs:
                self._forward(node, mean, real)
        return (mean[self.nodes[-1].name] - target).pow(2).mean() / self.scale

    def _entering(self, chosen: Tensor, generator: torch.Generator | None) -> tuple[dict[str, Pair], Tensor]:
        """The values of the chosen images that enter, and what the source makes of them; varied where one learns."""
        if self.varied and generator is not None:
            ((name, value),) = self.values.items()
            shown = value[chosen]
            images = varied(shown.analog, generator)
            return {name: Pair(images.expand(len(shown.spiking), *images.shape), images)}, self._source({name: images})
        return {name: value[chosen] for name, value in self.values.items()}, self.target[chosen]

    @torch.no_grad()
    def _source(self, values: dict[str, Tensor]) -> Tensor:
        """What the source network's nodes make of what enters."""
        last = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        for index, node in enumerate(self.nodes):
            if node.inputs:
                values[node.name] = node.op.run(*(values[name] for name in node.inputs))
            for name in [name for name in node.inputs if last[name] == index]:
                values.pop(name, None)
        return values[self.nodes[-1].name]

    def _forward(self, node: Node, mean: dict[str, Tensor], real: dict[str, Tensor]) -> None:
        """The node's mean output, with gradient, and its real one over the steps, without."""
        op = self._op(node)
        inputs, trains = [mean[name] for name in node.inputs], [real[name] for name in node.inputs]
        if isinstance(op, Neuron):
            current = trains[0]
            for other in trains[1:]:
                current = current + other
            with torch.no_grad():
                real[node.name] = fire_mean(op, current, self.timesteps)
            mean[node.name] = _through_spikes(op, inputs, real[node.name].mean(0))
            return
        if isinstance(op, Readout):
            mean[node.name] = op.run(*inputs)
            return
        mean[node.name] = (synapse(op) if isinstance(op, Conv2d | Linear) else op).run(*inputs)
        if len(trains[0]) == 1 and not isinstance(op, SpikingMaxPool2d):
            real[node.name] = mean[node.name].detach()[None]  # the mean is all there is
            return
        with torch.no_grad():
            real[node.name] = propagate(op, trains)
        if isinstance(op, SpikingMaxPool2d):
            mean[node.name] = mean[node.name] + (real[node.name].mean(0) - mean[node.name]).detach()


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image ``[B, C, H, W]`` mirrored or not, and shifted by up to an eighth of its size, at random."""
    (height, width), found = images.shape[-2:], []
    down, right = int(SHIFT * height), int(SHIFT * width)
    for image in F.pad(images, (right, right, down, down)):
        top, left, mirrored = (int(torch.randint(n, (), generator=generator)) for n in (2 * down + 1, 2 * right + 1, 2))
        shifted = image[:, top : top + height, left : left + width]
        found.append(shifted.flip(-1) if mirrored else shifted)
    return torch.stack(found)


def _through_spikes(op: Neuron, inputs: list[Tensor], rate: Tensor) -> Tensor:
    """The layer's mean output ``rate`` with a gradient to its mean inputs, correction and threshold."""
    total = inputs[0]
    for other in inputs[1:]:
        total = total + other
    threshold = per_channel(op.threshold, total.ndim)
    assert op.correction is not None
    correction = op.correction if op.correction.ndim < 2 else op.correction.mean(0)
    fixed = threshold.detach()
    z = (total + per_channel(correction, total.ndim)) / threshold
    # Unlike clamp, whose gradient at both ends is 1 in torch 2.11, and 0 in 2.14.
    u = F.hardtanh(z, 0.0, float(op.max_emission))
    # The rate to the last bit, so that the layers behind count as they will; then what has a gradient and no value.
    return rate + (threshold - fixed) * (rate / fixed) + fixed * (u - u.detach())


def _detached(op: Op) -> Op:
    return mapped(op, Tensor.detach)
