"""Pass: weigh the steps of the readout, and correct the mean of its answer."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import reduce

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.ops import Node, Op
from ...graph.readout import Readout
from ...runtime.processes import all_gather
from ...runtime.progress import Progress
from ...simulation.lockstep import lockstep, steps_of
from ..context import Context
from ..layerwise import at_readout, parts_of

LEAST = 1e-3  # share of the mean weight that every step keeps, so that an answer exists at every step
RIDGE = 1e-2  # share of the currents' variance, towards equal weights


def fit_readout(graph: Graph, context: Context, weighted: bool = True) -> Graph:
    """Weigh the classifier's currents by step, and correct the mean of the answer, without labels.

    With ``I[t]`` the classifier's current and z the source's logits, both centered per class, the weights minimize::

        E[(sum(w[t] I[t]) - z)^2] + ridge,   w[t] > 0

    They solve T x T normal equations, summed over all images. Early steps, in which deep layers have received little,
    get small weights: a delayed readout whose delay is measured. The correction per class is then
    ``E[z] - E[answer]``. If only counts matter (phased networks), there is nothing to weigh, only to correct.

    The analog run is preserved.

    Args:
        graph: a network with a readout of currents.
        context: calibration images to fit to, and T.
        weighted: whether to weigh the steps; the answer is corrected in any case.

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: delayed readout, Bu et al., CVPR 2025 (arXiv:2409.03368); the weights are ours.
    """
    if not any(isinstance(node.op, Readout) and node.op.mode == "current" for node in graph.nodes):
        return graph
    images, timesteps = context.fitting_images("fit_readout"), context.fitting_steps("fit_readout")
    sums: list[_Sums] = []

    def visit(node: Node, currents: Tensor, target: Tensor) -> Op:
        if isinstance(node.op, Readout):
            sums.append(_Sums.of(currents.double(), target.double()))
        return node.op

    parts, left = parts_of(graph, images, steps_of(graph, timesteps)), at_readout(graph, images, timesteps)
    for part in Progress(parts, desc="fit_readout", unit="part", shown=context.progress):
        if left is None:
            lockstep(graph, images[part], timesteps, visit)
        else:
            visit(graph.nodes[-1], *left(part))
        sums = [sums[0] if len(sums) == 1 else sums[0].plus(sums[1])]
    every = all_gather(sums[0].to("cpu"))
    sums = [reduce(_Sums.plus, every).to(graph.device)]
    nodes = (
        replace(node, op=_fitted(node.op, sums[0], weighted)) if isinstance(node.op, Readout) else node
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over images for the normal equations, in float64.

    Attributes:
        images: how many there were.
        currents: sum of the currents, ``[T, N]``.
        targets: sum of the targets, ``[N]``.
        gram: products of currents, summed over classes too, ``[T, T]``.
        right: products of currents and targets, summed over classes too, ``[T]``.
    """

    images: int
    currents: Tensor
    targets: Tensor
    gram: Tensor
    right: Tensor

    @classmethod
    def of(cls, currents: Tensor, target: Tensor) -> _Sums:
        x = currents.flatten(1)
        return cls(len(target), currents.sum(1), target.sum(0), x @ x.T, x @ target.flatten())

    def to(self, device: torch.device | str) -> _Sums:
        return _Sums(self.images, *(value.to(device) for value in (self.currents, self.targets, self.gram, self.right)))

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def _fitted(op: Readout, sums: _Sums, weighted: bool) -> Readout:
    steps, dtype = len(sums.gram), op.scale.dtype
    weights = _weights(sums).to(dtype) if weighted and steps > 1 else None
    shares = torch.ones_like(sums.right) if weights is None else weights.double()
    answer = shares / shares.sum() @ sums.currents
    lacking = (sums.targets - answer) / sums.images * op.scale
    return replace(op, weights=weights, correction=lacking.to(dtype))


def _weights(sums: _Sums) -> Tensor:
    """The positive weights ``[T]`` with sum 1 that bring the currents closest to the targets."""
    steps = len(sums.gram)
    gram = sums.gram - sums.currents @ sums.currents.T / sums.images
    if float(gram.diagonal().sum()) <= 1e-9 * float(sums.gram.diagonal().sum()):  # images that do not vary tell nothing
        return torch.full_like(sums.right, 1 / steps)
    ridge = RIDGE * float(gram.diagonal().sum()) / steps
    gram = gram + ridge * torch.eye(steps, dtype=gram.dtype, device=gram.device)
    right = sums.right - sums.currents @ sums.targets / sums.images + ridge / steps
    w = _least_squares(gram, right, LEAST / steps)
    return w / w.sum()


def _least_squares(gram: Tensor, right: Tensor, least: float) -> Tensor:
    """The minimum of ``w gram w / 2 - right w`` over ``w >= least``, by the active set method of Lawson and Hanson."""
    right = right - least * gram.sum(1)
    w, free = torch.zeros_like(right), torch.zeros(len(right), dtype=torch.bool, device=right.device)
    for _ in range(3 * len(right)):  # always enough; without a limit rounding could make it go in circles
        downhill = torch.where(free, -torch.inf, right - gram @ w)
        if float(downhill.max()) <= 1e-12 * float(right.abs().max()):
            break
        free[downhill.argmax()] = True
        while True:
            wished = torch.zeros_like(w)
            wished[free] = torch.linalg.solve(gram[free][:, free], right[free])
            over = free & (wished <= 0)
            if not bool(over.any()):
                break
            # Move towards the solution until a weight reaches 0, and hold that weight there.
            w = w + (w[over] / (w[over] - wished[over])).min() * (wished - w)
            free = free & (w > 1e-14)
        w = wished
    return w + least
