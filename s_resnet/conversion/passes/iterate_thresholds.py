"""Pass: the threshold of each channel from mean and variance of its current alone."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...graph.alphabet import Differential
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...runtime.processes import summed
from ..channels import source_currents, usable
from ..context import Context

HALVINGS = 40  # of the interval in which the logarithm of a full scale is searched
WIDEST, NARROWEST = 16.0, 1e-3  # of that interval, in standard deviations


def iterate_thresholds(graph: Graph, context: Context, levels: int | None = None) -> Graph:
    """Set the full scale of every channel to the fixed point of threshold iteration.

    The source's current x of a channel before its ReLU is taken as normal, with the mean and variance that it has over
    calibration images and pixels. N levels above 0 up to the full scale F, rounded to nearest, send::

        h(x) = F / N * (number of i in 1 ... N with x >= c[i]),   c[i] = (2 i - 1) F / (2 N)

    The scale that brings these levels closest to ReLU(x) is k F, with::

        k = E[x h(x)] / E[h(x)^2] = N sum(E[x; x >= c[i]]) / (F sum((2 i - 1) P(x >= c[i])))

    Threshold iteration repeats ``F <- k F``. Its fixed point, k = 1, is found here by bisection: for many levels the
    iteration takes thousands of rounds.

    A step of the neurons sends up to F, so that ``threshold = F / max_emission``; of differential neurons F is the
    largest of n amplitudes, ``threshold = F / 2^(n-1)``. A silent channel gets the layer's median. The analog run is
    preserved.

    Args:
        graph: a network with its neurons.
        context: calibration images, and T.
        levels: N; by default ``max_emission T``, those of a neuron in T steps.

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: Huang et al., ICML 2025 (arXiv:2503.00301), threshold iteration for N levels in all; H-MT (AAAI 2026),
    for those of several thresholds over T steps.
    """
    if not graph.neurons:
        return graph
    images = context.fitting_images("iterate_thresholds")
    timesteps = context.fitting_steps("iterate_thresholds")
    sums: dict[str, Tensor] = {}
    for node, current in source_currents(graph, images, "iterate_thresholds"):
        x = current.transpose(0, 1).flatten(1).double()
        found = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.pow(2).sum(1)])
        sums[node.name] = sums[node.name] + found if node.name in sums else found

    def fitted(name: str, op: Neuron) -> Neuron:
        count, first, second = summed(sums[name])
        mean = first / count
        deviation = (second / count - mean**2).clamp_min(0).sqrt()
        full = full_scale(mean, deviation, levels or op.max_emission * timesteps).to(op.threshold.dtype)
        largest = 2 ** (op.spikes.amplitudes - 1) if isinstance(op.spikes, Differential) else op.max_emission
        return replace(op, threshold=usable(full, op.limit) / largest)

    nodes = (
        replace(node, op=fitted(node.name, node.op)) if isinstance(node.op, Neuron) else node for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def full_scale(mean: Tensor, deviation: Tensor, levels: int) -> Tensor:
    """The fixed point for normal currents ``[C]``; 0 where they are as good as never positive, or do not vary."""
    low = (NARROWEST * deviation).log()
    high = (WIDEST * deviation + mean.clamp_min(0)).log()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        grows = growth(mean, deviation, middle.exp(), levels) > 1
        low, high = torch.where(grows, middle, low), torch.where(grows, high, middle)
    varies = (deviation > 0) & torch.isfinite(growth(mean, deviation, high.exp(), levels))
    return torch.where(varies, high.exp(), torch.where(deviation > 0, 0.0, mean.clamp_min(0)))


def growth(mean: Tensor, deviation: Tensor, full: Tensor, levels: int) -> Tensor:
    """The factor k by which a full scale changes, ``[C]``."""
    odd = torch.arange(1, 2 * levels, 2, dtype=mean.dtype, device=mean.device)
    z = (full[:, None] * odd / (2 * levels) - mean[:, None]) / deviation[:, None]
    above: Tensor = torch.special.erfc(z / math.sqrt(2)) / 2
    charge = mean[:, None] * above + deviation[:, None] * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return charge.sum(1) * levels / ((above * odd).sum(1) * full)
