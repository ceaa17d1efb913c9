"""Synapses refitted to the spikes they really get: least squares in closed form, nothing to train."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.forms import synapse
from ..graph.ops import Conv2d, Linear, SpikingWeights
from ..runtime.processes import all_gather, rank_and_world_size, summed

PENALTIES = (1.0, 0.1, 0.01, 0.001)  # as shares of the inputs' mean variance, the strongest first
CHECKED = 8  # one image of so many is held out, to choose the penalty
FLAT = 1e-5  # inputs whose variance is a smaller share of their mean square do not vary: float32 sums round as much
ENOUGH = 256  # positions per weight of an output; with more, only those on a coarser grid are used
ROOM = 2**24  # values of the unfolded inputs in memory at a time
LARGE, BLOCKS = 512, 8  # weights of an output from which products are computed in blocks of rows, and how many


def refit(op: Conv2d | Linear, parts: Iterable[tuple[Tensor, Tensor]], images: int) -> Conv2d | Linear:
    """The synapse with the spiking weights ``W + D`` that bring its outputs closest to the targets.

    D minimizes, over images and positions, with x the unfolded inputs and all means subtracted::

        E[|(target - W x - b) - D x|^2] + penalty E[x^2] |D|^2

    This is a system of normal equations per group, with as many unknowns as an output has weights; if there are fewer
    positions than that, its dual is solved. The penalty is the one of four with the least error on the held-out images,
    one of eight. If none improves on D = 0 there, the synapse stays as it is. The mean error that remains is left to
    the neuron layer's correction.

    Every image counts. If images have more than 256 positions for each weight of an output, only those on a coarser
    grid are used, with another offset in each image.

    The source's weight is kept beside the spiking one.

    Args:
        op: the synapse with the source's weight.
        parts: pairs of inputs averaged over the time steps, ``[B, C, H, W]`` or ``[B, features]``, and targets
            ``[B, C_out, *]`` in the units of the outputs; read once.
        images: the number of images in all parts; of all processes, where several share them.

    Source: ridge regression towards the outputs of the unquantized layer, on inputs that are already quantized, as in
    the asymmetric reconstruction of Nagel et al., ICML 2020 (arXiv:2004.10568).
    """
    now = synapse(op)
    learned, checked = _Sums(now), _Sums(now)
    first, world = rank_and_world_size()  # the images of this process are every world-th one
    for inputs, wanted in parts:
        number = first + world * torch.arange(len(inputs), device=inputs.device)
        for sums, mine in ((learned, number % CHECKED != 0), (checked, number % CHECKED == 0)):
            for seen, lacking in _places(now, inputs[mine], wanted[mine], number[mine], images):
                sums.add(seen, lacking)
        first += world * len(inputs)
    learned.share()
    checked.share()
    if not learned.count:
        return op
    held = checked.centered()
    least, best = 0.0, None
    for change in learned.solutions():
        error = held.error(change)
        if not error < least:
            break  # weaker penalties would overfit these images even more
        least, best = error, change
    if best is None:
        return op
    weight = now.weight + best.transpose(1, 2).reshape(now.weight.shape).to(now.weight.dtype)
    return replace(op, spiking=SpikingWeights(weight))


@dataclass(frozen=True, eq=False)
class _Few:
    """Output positions, centered: their inputs ``seen`` ``[G, n, K]`` and errors ``lacking`` ``[G, n, C_out / G]``."""

    seen: Tensor
    lacking: Tensor

    def error(self, change: Tensor) -> float:
        """By how much the mean squared error grows with a change ``[G, K, C_out / G]`` of the weights."""
        given = self.seen @ change.to(self.seen.dtype)
        return float((given * (given - 2 * self.lacking)).sum(dtype=torch.float64)) / self.seen.shape[1]

    def solutions(self) -> Iterator[Tensor]:
        """The best change at each penalty, from as many equations as there are positions."""
        count = self.seen.shape[1]
        variance = self.seen.pow(2).mean(1, dtype=torch.float64).mean(1)
        system = (self.seen @ self.seen.transpose(1, 2)).double().div_(count)
        for solved in _ridge(system, self.lacking.double() / count, variance):
            yield (self.seen.transpose(1, 2) @ solved.to(self.seen.dtype)).double()


@dataclass(frozen=True, eq=False)
class _Many:
    """Covariances of more positions, ``[G, K, K]`` and ``[G, K, C_out / G]``, float64."""

    gram: Tensor
    right: Tensor

    def error(self, change: Tensor) -> float:
        """The same as in :class:`_Few`."""
        return float((change * (self.gram @ change - 2 * self.right)).sum())

    def solutions(self) -> Iterator[Tensor]:
        """The best change at each penalty; overwrites the covariances."""
        yield from _ridge(self.gram, self.right, self.gram.diagonal(dim1=1, dim2=2).mean(1))


def _ridge(system: Tensor, right: Tensor, variance: Tensor) -> Iterator[Tensor]:
    """The solutions with a penalty on the diagonal, until rounding prevents one; in place, as K^2 values are many."""
    diagonal = system.diagonal(dim1=1, dim2=2)
    unlifted = diagonal.clone()
    for penalty in PENALTIES:
        diagonal.copy_(unlifted + penalty * variance.clamp_min(torch.finfo(torch.float32).tiny)[:, None])
        factor, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):
            return  # with few images the rounding of float32 sums exceeds this penalty
        yield torch.cholesky_solve(right, factor)


class _Sums:
    """Inputs and errors of output positions: the positions themselves while there are few, then covariances."""

    def __init__(self, op: Conv2d | Linear) -> None:
        self.weights, self.count = op.weight[0].numel(), 0
        self.groups, self.outputs = op.groups if isinstance(op, Conv2d) else 1, len(op.weight)
        self.device = op.weight.device
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.totals: tuple[Tensor, Tensor] | None = None
        self.squares: tuple[Tensor, Tensor] | None = None

    def add(self, seen: Tensor, lacking: Tensor) -> None:
        """Add positions, ``[G, n, K]`` and ``[G, n, C_out / G]``."""
        self.rows.append((seen, lacking))
        self.count += seen.shape[1]
        first, second = (value.sum(1, keepdim=True, dtype=torch.float64) for value in (seen, lacking))
        self.totals = (first, second) if self.totals is None else (self.totals[0] + first, self.totals[1] + second)
        if sum(each.shape[1] for each, _ in self.rows) >= 2 * self.weights:
            self._multiply()

    def _multiply(self) -> None:
        seen, lacking = (torch.cat(values, 1) for values in zip(*self.rows, strict=True))
        gram, right = _gram(seen), seen.transpose(1, 2) @ lacking
        if self.squares is None:
            self.squares = gram.double(), right.double()
        else:  # in place: with 512 channels the covariances alone are 170 MB
            self.squares[0].add_(gram)
            self.squares[1].add_(right)
        self.rows = []

    def share(self) -> None:
        """Add what the other processes have: positions while they are few together, else covariances."""
        told = all_gather((self.count, self.squares is None))
        total = sum(count for count, _ in told)
        if len(told) == 1 or not total:
            return
        self.count = total
        if self.totals is None:
            self.totals = self._zeros(1)
        self.totals = summed(self.totals[0]), summed(self.totals[1])
        if total < self.weights and all(few for _, few in told):
            self.rows = [pair for pairs in all_gather(self.rows) for pair in pairs]
            return
        if self.rows:
            self._multiply()
        squares = self._zeros(self.weights) if self.squares is None else self.squares
        self.squares = summed(squares[0]), summed(squares[1])

    def _zeros(self, rows: int) -> tuple[Tensor, Tensor]:
        """Of inputs ``[G, rows, K]`` and errors ``[G, rows, C_out / G]``."""
        none = torch.zeros(self.groups, rows, self.weights + self.outputs // self.groups, dtype=torch.float64)
        return none[..., : self.weights].to(self.device), none[..., self.weights :].to(self.device)

    def centered(self) -> _Few | _Many:
        """All positions with their means subtracted; groups whose inputs do not vary, as at a limit, tell nothing."""
        assert self.totals is not None
        first, second = (total / self.count for total in self.totals)
        least = FLAT * first.pow(2).mean((1, 2))
        if self.squares is None:
            seen, lacking = (torch.cat(values, 1) for values in zip(*self.rows, strict=True))
            seen = seen - first.to(seen.dtype)
            lacking = lacking - second.to(lacking.dtype)
            flat = seen.pow(2).mean((1, 2), dtype=torch.float64) <= least
            seen[flat], lacking[flat] = 0, 0
            return _Few(seen, lacking)
        if self.rows:
            self._multiply()
        gram, right = (square.div_(self.count) for square in self.squares)
        gram.sub_(first.transpose(1, 2) * first)
        right.sub_(first.transpose(1, 2) * second)
        flat = gram.diagonal(dim1=1, dim2=2).mean(1) <= least
        gram[flat], right[flat] = 0, 0
        return _Many(gram, right)

    def solutions(self) -> Iterator[Tensor]:
        """The best changes of the weights, from the smaller system."""
        if self.count >= self.weights and self.rows:
            self._multiply()
        return self.centered().solutions()


def _gram(seen: Tensor) -> Tensor:
    """``seen^T seen`` of ``[G, n, K]``; of a large one the half above the diagonal is computed and mirrored."""
    count = seen.shape[2]
    if count < LARGE:
        return seen.transpose(1, 2) @ seen
    gram = seen.new_empty(len(seen), count, count)
    for block in range(BLOCKS):
        first, end = (count * edge // BLOCKS for edge in (block, block + 1))
        gram[:, first:end, first:] = seen[..., first:end].transpose(1, 2) @ seen[..., first:]
        gram[:, first:end, :first] = gram[:, :first, first:end].transpose(1, 2)
    return gram


def _places(
    op: Conv2d | Linear, inputs: Tensor, wanted: Tensor, number: Tensor, images: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs ``[G, n, K]`` and errors ``[G, n, C_out / G]`` of output positions, of images with these numbers."""
    if isinstance(op, Linear):
        if len(inputs):
            yield inputs[None], (wanted - op.run(inputs))[None]
        return
    height, width = wanted.shape[2:]
    weight = op.weight.view(op.groups, -1, op.weight[0].numel()).transpose(1, 2)
    coarse = math.isqrt(images * height * width // (ENOUGH * weight.shape[1]))
    coarse = max(1, min(coarse, height, width))
    padded = F.pad(inputs, (op.padding[1], op.padding[1], op.padding[0], op.padding[0]))
    kernel, stride = (op.weight.shape[2], op.weight.shape[3]), (op.stride[0] * coarse, op.stride[1] * coarse)
    some = max(1, ROOM * coarse**2 // (op.weight[0].numel() * op.groups * height * width))
    for offset in range(coarse**2):
        down, right = divmod(offset, coarse)
        chosen = ((number + number // CHECKED) % coarse**2 == offset).nonzero()[:, 0]
        for part in torch.split(chosen, some) if len(chosen) else ():
            shifted = padded[part, :, down * op.stride[0] :, right * op.stride[1] :]
            seen = _by_group(F.unfold(shifted, kernel, op.dilation, 0, stride), op.groups)
            lacking = _by_group(wanted[part, :, down::coarse, right::coarse].flatten(2), op.groups) - seen @ weight
            if op.bias is not None:
                lacking = lacking - op.bias.view(op.groups, 1, -1)
            yield seen, lacking


def _by_group(value: Tensor, groups: int) -> Tensor:
    """``[B, G * n, places]`` as ``[G, B * places, n]``."""
    batch, channels, places = value.shape
    return value.view(batch, groups, channels // groups, places).permute(1, 0, 3, 2).flatten(1, 2)
