"""A block of a spiking network in training: its nodes, the tensors that learn, and what they are to reproduce."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.forms import synapse
from ..graph.neuron import Neuron
from ..graph.ops import Conv2d, Linear, Node, Op, SpikingWeights
from ..graph.parts import mapped
from ..graph.readout import Readout, SpikingMaxPool2d
from ..kernels import per_channel
from ..runtime.processes import all_gather, rank_and_world_size, summed
from ..runtime.progress import Progress
from ..simulation.lockstep import Pair, fire_mean, propagate
from .kept import Values
from .spill import gather

BATCH = 32
# Learning rates: for weights in standard deviations of their layer, for corrections in full scales, for log thresholds.
WEIGHT, CORRECTION, THRESHOLD = 0.006, 0.0006, 0.002
JOINT = 0.15  # factor on these rates while all blocks are trained together
SHIFT = 1 / 8  # the largest shift of an image, as a share of its size, while all blocks are trained
CHECKED = 8  # one image of so many is held out, to decide whether a block has improved


class Block:
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
        self.count = sum(all_gather(count))  # of all processes, of which each has every world-th image
        squares: list[float] = []

        def targets() -> Iterator[Tensor]:
            for first in range(0, count, self.room):
                target = self._source({n: value[first : first + self.room].analog for n, value in values.items()})
                squares.append(float(target.pow(2).mean()) * len(target))
                yield target

        self.target = gather(targets())
        self.scale = sum(map(sum, all_gather(squares))) / self.count or 1.0
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
        return all_gather(max(1, min(steps, int((end - now) / max(now - start, 1e-9)))))[0]

    def train(self, steps: int, bar: Progress[None], end: float | None = None) -> tuple[tuple[Node, ...], int, bool]:
        """The nodes after ``steps`` steps, or as many as fit before ``end``; their number; whether the block improved.

        If it has not improved, the nodes are unchanged.
        """
        checked = torch.arange(0, self.count, CHECKED)
        learned = torch.tensor([i for i in range(self.count) if i % CHECKED] or [0])
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
        loss, moves = torch.zeros(()), self._moves(len(chosen), generator)
        for part, places in self._own(chosen):
            loss = self._loss(part, None if moves is None else moves[places]) * (len(part) / len(chosen))
            loss.backward()  # type: ignore[no-untyped-call]
        if rank_and_world_size()[1] > 1:
            leaves = [leaf for node in self.leaves.values() for leaf in node]
            given = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            every = summed(torch.cat([grad.flatten() for grad in given]).double())
            for leaf, grad in zip(leaves, torch.split(every, [leaf.numel() for leaf in leaves]), strict=True):
                leaf.grad = grad.view(leaf.shape).to(leaf.dtype)
        return loss.detach()

    def _own(self, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of the chosen images that this process has, as many as fit in memory: which, and their places."""
        rank, world = rank_and_world_size()
        places = (chosen % world == rank).nonzero()[:, 0]
        for part in torch.split(places, self.room) if len(places) else ():
            yield chosen[part] // world, part

    def _moves(self, count: int, generator: torch.Generator) -> Tensor | None:
        """How to vary so many images in joint training; None where images stay as they are."""
        if not self.joint:
            return None
        ((_, value),) = self.values.items()
        return moves(count, value[:1].analog.shape[-2:], generator)

    def error(self, chosen: Tensor) -> float:
        """The mean loss over the chosen images."""
        with torch.no_grad():
            own = sum(float(self._loss(part, None)) * len(part) for part, _ in self._own(chosen))
        return sum(all_gather(own)) / len(chosen)

    def _loss(self, chosen: Tensor, moves: Tensor | None) -> Tensor:
        """The mean squared distance to the source on the chosen images, relative to the source's mean square."""
        mean: dict[str, Tensor] = {}
        real: dict[str, Tensor] = {}
        values, target = self._entering(chosen, moves)
        for name, value in values.items():
            real[name], mean[name] = value.spiking, value.spiking.mean(0)
        last = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        for index, node in enumerate(self.nodes):
            if node.inputs:
                self._forward(node, mean, real)
            for name in [name for name in real if last.get(name, len(self.nodes)) <= index]:
                del real[name], mean[name]
        return (mean[self.nodes[-1].name] - target).pow(2).mean() / self.scale

    def _entering(self, chosen: Tensor, moves: Tensor | None) -> tuple[dict[str, Pair], Tensor]:
        """The values of the chosen images that enter, and the source's output for them; varied in joint training."""
        if moves is not None:
            ((name, value),) = self.values.items()
            shown = value[chosen]
            images = moved(shown.analog, moves)
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


def moves(count: int, size: torch.Size, generator: torch.Generator) -> Tensor:
    """How to vary so many images, at random ``[N, 3]``: rows and columns to cut off a padded one; whether to mirror it.

    The padding is an eighth of the size, so that an image is shifted by as much either way.
    """
    (height, width), drawn = size, []
    down, right = int(SHIFT * height), int(SHIFT * width)
    for _ in range(count):
        drawn.append([int(torch.randint(n, (), generator=generator)) for n in (2 * down + 1, 2 * right + 1, 2)])
    return torch.tensor(drawn)


def moved(images: Tensor, moves: Tensor) -> Tensor:
    """Each image ``[B, C, H, W]`` shifted, and mirrored or not, as :func:`moves` says."""
    (height, width), found = images.shape[-2:], []
    down, right = int(SHIFT * height), int(SHIFT * width)
    for image, (top, left, mirrored) in zip(F.pad(images, (right, right, down, down)), moves.tolist(), strict=True):
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
