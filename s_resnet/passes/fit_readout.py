"""Pass: how much each step counts for the answer, and what the answer lacks on average."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..calibrate import Calibration, fitting_images
from ..graph import Graph
from ..lockstep import affordable, lockstep, steps_of
from ..neuron import Readout
from ..ops import Node, Op

LEAST = 1e-3  # of the mean weight: an answer exists at every step
RIDGE = 1e-2  # of the currents' own variance, towards equal weights


def fit_readout(
    graph: Graph, calibration: Calibration, timesteps: int = 16, weighted: bool = True, progress: bool = False
) -> Graph:
    """Weigh the classifier's currents by step, and add what the answer lacks on average, without labels.

    With ``I[t]`` the classifier's current and z the source's logits, both centered per class, the weights minimize::

        E[(sum(w[t] I[t]) - z)^2] + ridge,   w[t] > 0

    over the T x T normal equations. Early steps, in which deep layers have seen little, get small
    weights: a delayed readout whose delay is measured. The correction is then, per class, ``E[z] - E[answer]``. With
    ``weighted`` off, and where only counts matter (phased networks), there is nothing to weigh, only to correct.

    The analog run is preserved. Source: delayed readout, Bu et al., CVPR 2025 (arXiv:2502.17671); the weights are ours.

    Raises ConversionError without calibration images.
    """
    if not any(isinstance(node.op, Readout) and node.op.mode == "current" for node in graph.nodes):
        return graph
    images = fitting_images(calibration, "fit_readout")
    images = images[: affordable(graph, images, steps_of(graph, timesteps))]

    def visit(node: Node, currents: Tensor, target: Tensor) -> Op:
        op = node.op
        if not isinstance(op, Readout) or op.mode != "current":
            return op
        weights = _weights(currents, target) if weighted and len(currents) > 1 else None
        shares = torch.ones(len(currents), dtype=torch.float64) if weights is None else weights.double()
        answer = torch.einsum("tbn,t->bn", currents.double(), shares.to(currents.device)) / shares.sum()
        lacking = (target.double() - answer).mean(0) * op.scale
        return replace(op, weights=weights, correction=lacking.to(target.dtype))

    return lockstep(graph, images, timesteps, visit, "fit_readout" if progress else "")


def _weights(currents: Tensor, target: Tensor) -> Tensor:
    """The positive weights ``[T]`` with which the currents ``[T, B, N]`` come closest to the target ``[B, N]``."""
    x = (currents - currents.mean(1, keepdim=True)).double().flatten(1)
    y = (target - target.mean(0)).double().flatten()
    ridge = RIDGE * float((x**2).sum()) / len(x)
    gram = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
    right = x @ y + ridge / len(x)
    w = _least_squares(gram, right, LEAST / len(x))
    return (w / w.sum()).to(target.dtype)


def _least_squares(gram: Tensor, right: Tensor, least: float) -> Tensor:
    """The minimum of ``w gram w / 2 - right w`` over ``w >= least``, by the active set method of Lawson and Hanson."""
    right = right - least * gram.sum(1)
    w, free = torch.zeros_like(right), torch.zeros(len(right), dtype=torch.bool, device=right.device)
    for _ in range(3 * len(right)):  # as many as are ever needed; rounding could have it go in circles
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
            # As far towards it as nothing falls below 0; what gets there is held.
            w = w + (w[over] / (w[over] - wished[over])).min() * (wished - w)
            free = free & (w > 1e-14)
        w = wished
    return w + least
