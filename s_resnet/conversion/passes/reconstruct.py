"""Pass: reconstruct weights, biases and thresholds of the spiking network block by block, without labels."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.arguments import check_kind, real_number, whole_number
from ...errors import InvalidData, message
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
# Learning rates: for weights in standard deviations of their layer, for corrections in full scales, for log thresholds.
WEIGHT, CORRECTION, THRESHOLD = 0.006, 0.0006, 0.002
JOINT = 0.15  # factor on these rates while all blocks are trained together
SHIFT = 1 / 8  # the largest shift of an image, as a share of its size, while all blocks are trained
CHECKED = 8  # one image of so many is held out, to decide whether a block has improved


def check_settings(settings: Mapping[str, object]) -> None:
    """Check the values of those settings of :func:`reconstruct` that are given.

    Raises:
        InvalidData: one is of another kind, or below 0.
    """
    for name in ("steps", "joint"):
        if name in settings:
            whole_number(settings[name], "reconstruct", name, 0)
    minutes, resume = settings.get("minutes", 0), settings.get("resume")
    if not real_number(minutes) >= 0:
        raise InvalidData(message("reconstruct", "", f"minutes={minutes!r}", "a number >= 0", "Pass one such as 30"))
    if resume is not None:
        check_kind(resume, (str, os.PathLike), "reconstruct", "resume", "Pass the path of a file")


def reconstruct(
    graph: Graph,
    context: Context,
    steps: int = 250,
    joint: int = 1000,
    minutes: float = 30.0,
    resume: str | os.PathLike[str] | None = None,
) -> Graph:
    """Train each block's spiking weights, corrections and thresholds to reproduce the source network's block.

    A block lies between two neuron layers through which everything passes (in a ResNet, the ends of its residual
    blocks). On calibration images it receives what the finished blocks before it really send, and minimizes::

        E[(r - a)^2],   r: the mean output of the real spiking forward over T steps, a: the source's activation

    by Adam, in ``steps`` steps of 32 images, with the learning rate falling to zero along a cosine. Then all blocks
    together are trained for ``joint`` such steps towards the source's logits, at 0.15 of the rates, on randomly
    mirrored and shifted images, for which the source is run anew. The gradient is straight-through: with
    ``u = clip(z / threshold, 0, L)`` of the mean current z, and N the real count, the backward pass sees
    ``r = threshold (u + (N / T - u).detach())``, so that weights, corrections and thresholds learn. One image of eight
    is held out: a block, or the whole network, that has not improved on those stays as it was.

    If counts depend only on the total charge (recipe phased), or nearly so (recipe signed), one pass over mean currents
    gives them, T times cheaper. In the second case the whole network is finally compared with its earlier version by
    its real spikes, on as many of the held-out images as fit in memory.

    The values for spiking runs are stored beside the source's weights, so the analog run is preserved. The provenance
    gets an entry ``reconstruction``: the settings, the number of images, for each block and for all together how many
    steps it got and whether it improved, and whether the outcome was kept.

    Args:
        graph: the network after :func:`calibrate_neurons`.
        context: calibration images to fit to, and T.
        steps: steps for each block.
        joint: steps for all blocks together.
        minutes: the time limit. The block in progress when it expires is finished; later blocks stay as they were
            calibrated, with 0 steps. The joint training gets as many steps as fit in the remaining time. The result
            thus depends only on the numbers of steps, which the provenance records.
        resume: a file that keeps finished blocks. After an interruption the same call resumes from it, with all its
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
    bar = Progress[None](total=total, desc="reconstruct", unit="step", shown=context.progress)
    bar.resume(finished)
    kept = repeatable(resume, lambda: f"{len(said)} of {len(parts) + 1} parts" if said else "")
    end = time.monotonic() + 60 * minutes
    with bar, arithmetic(images[:1], tf32=False), kept:
        for index, part in enumerate(parts):
            if index >= len(said):
                if time.monotonic() >= end:
                    break
                bar.show(part=f"{index + 1}/{len(parts) + 1}")
                part, done, better = _Block(part, values, timesteps, room=room).train(steps, bar)
                said.append(ReconstructedBlock(names[index], done, better))
                graph = kept_at(_replaced(graph, part), resume, key, said)
            if index < len(parts) - 1:
                values = _sent(part, values, timesteps, room)
        if len(parts) == len(said) < len(names) and time.monotonic() < end:
            bar.show(part=f"{len(parts) + 1}/{len(parts) + 1}")
            together = _Block(graph.nodes, entered, timesteps, joint=True, room=room)
            whole, done, better = together.train(joint, bar, end)
            said.append(ReconstructedBlock(names[-1], done, better))
            graph = kept_at(_replaced(graph, whole), resume, key, said)
        bar.update(total - _credited(len(said), len(parts), steps, joint))  # steps for which there was no time
        sure = order_free(graph) or rounds > 1
        taken = graph if sure else _closer(before, graph, images, timesteps)
    said += [ReconstructedBlock(name, 0, False) for name in names[len(said) :]]
    asked = ReconstructionSettings(steps, joint, total, minutes)
    return taken.with_provenance(reconstruction=Reconstruction(tuple(said), asked, len(images), taken is graph))


def _credited(count: int, blocks: int, steps: int, joint: int) -> int:
    """The number of steps of so many finished parts: the blocks, and then all of them together."""
    return steps * min(count, blocks) + joint * (count > blocks)


def _shown(graph: Graph, images: Tensor | Spill, steps: int) -> Shown:
    op = graph.nodes[0].op
    assert isinstance(op, Input)
    return Shown(op, images, steps)


def _sent(nodes: tuple[Node, ...], values: Mapping[str, Values], timesteps: int, room: int) -> dict[str, Values]:
    """What the last of the nodes, a neuron layer, sends on all images; in a file if there are many."""
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
    """The graph whose real spikes come closer to the source's logits, on the held-out images."""
    jump = CHECKED * BATCH
    held = gather(images[first : first + jump : CHECKED] for first in range(0, len(images), jump))
    room = in_memory(before, held, timesteps, PART)
    old, new = (
        _Block(graph.nodes, {graph.nodes[0].name: _shown(graph, held, timesteps)}, timesteps, room=room).error(
            torch.arange(len(held))
        )
        for graph in (before, after)
    )
    return after if new < old else before


def _replaced(graph: Graph, part: tuple[Node, ...]) -> Graph:
    """The graph with these nodes in place of those with the same names."""
    changed = {node.name: node for node in part}
    return replace(graph, nodes=tuple(changed.get(node.name, node) for node in graph.nodes))


class _Block:
    """A block in training: its nodes, and the tensors that learn, by node.

    Args:
        nodes: the nodes of the block.
        values: the values that enter it, by name.
        timesteps: T.
        joint: whether it is the whole network, which learns from mirrored and shifted images at lower rates.
        room: images in memory at a time.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        values: Mapping[str, Values],
        timesteps: int,
        joint: bool = False,
        room: int = BATCH,
    ) -> None:
        self.nodes, self.values, self.timesteps, self.joint = nodes, values, timesteps, joint
        self.rate, self.room = JOINT if joint else 1.0, min(room, BATCH)
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
        self.limits: list[tuple[Tensor, Tensor]] = []  # log thresholds, and the largest that their ReLUs allow
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
            if op.limit is not None:
                self.limits.append((threshold, (op.limit / op.max_emission).log()))

    def _add(self, node: Node, *leaves: tuple[Tensor, float]) -> None:
        self.leaves[node.name] = tuple(leaf.requires_grad_() for leaf, _ in leaves)
        self.groups += [{"params": [leaf], "lr": rate * self.rate} for leaf, rate in leaves]

    def trained(self) -> tuple[Node, ...]:
        """The nodes with the learned values."""
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
        """How many of these steps fit in the time until ``end``, judged by the second of two trial steps; at least one.

        The number is fixed in advance and not cut off, so that what is learned depends on it alone.
        """
        start = end
        for _ in range(2):  # the first one warms up
            start = time.monotonic()
            float(self._backward(chosen, torch.Generator().manual_seed(0)))  # waits for a GPU
        now = time.monotonic()
        return max(1, min(steps, int((end - now) / max(now - start, 1e-9))))

    def train(self, steps: int, bar: Progress[None], end: float | None = None) -> tuple[tuple[Node, ...], int, bool]:
        """The nodes after ``steps`` steps, or as many as fit before ``end``; their number; whether the block improved.

        If it has not improved, the nodes are unchanged.
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
            for threshold, limit in self.limits:
                threshold.detach().clamp_(max=limit)
            bar.update()
        better = self.error(checked) < before
        return self.trained() if better else self.nodes, steps, better

    def _backward(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Add the gradient of the mean loss over the chosen images to the leaves; returns the last part's share."""
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
        """The values of the chosen images that enter, and the source's output for them; varied in joint training."""
        if self.joint and generator is not None:
            ((name, value),) = self.values.items()
            shown = value[chosen]
            images = varied(shown.analog, generator)
            return {name: Pair(images.expand(len(shown.spiking), *images.shape), images)}, self._source({name: images})
        return {name: value[chosen] for name, value in self.values.items()}, self.target[chosen]

    @torch.no_grad()
    def _source(self, values: dict[str, Tensor]) -> Tensor:
        """The output of the source network's nodes for these values."""
        last = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        for index, node in enumerate(self.nodes):
            if node.inputs:
                values[node.name] = node.op.run(*(values[name] for name in node.inputs))
            for name in [name for name in node.inputs if last[name] == index]:
                values.pop(name, None)
        return values[self.nodes[-1].name]

    def _forward(self, node: Node, mean: dict[str, Tensor], real: dict[str, Tensor]) -> None:
        """Compute the node's mean output, with gradient, and its real output over the steps, without."""
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
            real[node.name] = mean[node.name].detach()[None]  # only the mean is known
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
    # clamp would not do: its gradient at both ends is 1 in torch 2.11, and 0 in 2.14.
    u = F.hardtanh(z, 0.0, float(op.max_emission))
    # The exact rate, so that later layers count as they will when running, plus a term with a gradient but no value.
    return rate + (threshold - fixed) * (rate / fixed) + fixed * (u - u.detach())


def _detached(op: Op) -> Op:
    return mapped(op, Tensor.detach)
