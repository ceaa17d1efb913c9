"""Pass: leave out of the answer the steps in which spikes have not yet reached the classifier."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Node, Op
from ...graph.readout import Readout
from ...runtime.processes import summed
from ..channels import source_currents
from ..context import Context

READ = 5  # steps at least that the answer is read from
UNREAD = 1e-6  # weight of the steps before, so that there is an answer at every step


def delay_readout(graph: Graph, context: Context) -> Graph:
    """Read the answer from step d + 1 on, where d is the sum over layers of the steps to a first spike.

    With the charge that a neuron lacks at the start and the mean activation, both of the channel with the most::

        d = ceil(sum over layers (max_c (threshold - v(0)) / max_c E[x]))

    x is the ReLU of what the source network clipped to the thresholds would send. At least the last 5 of T steps are
    read. Before step d + 1 the answer is the mean so far.

    The analog run is preserved.

    Args:
        graph: a network with its neurons, thresholds and a readout of currents.
        context: calibration images, and T.

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: delayed evaluation, Bu, Li and Yu, CVPR 2025 (arXiv:2409.03368).
    """
    if not graph.neurons or not any(isinstance(node.op, Readout) and node.op.mode == "current" for node in graph.nodes):
        return graph
    images, timesteps = context.fitting_images("delay_readout"), context.fitting_steps("delay_readout")
    clipped = replace(graph, nodes=tuple(replace(node, op=_clipped(node)) for node in graph.nodes))
    sums: dict[str, Tensor] = {}
    for node, current in source_currents(clipped, images, "delay_readout"):
        x = current.transpose(0, 1).flatten(1).clamp_min(0)
        found = torch.cat([x.sum(1, dtype=torch.float64), x.new_full((1,), x.shape[1]).double()])
        sums[node.name] = sums[node.name] + found if node.name in sums else found
    delay = min(math.ceil(sum(_steps(node, summed(sums[node.name])) for node in graph.neurons)), timesteps - READ)
    weights = torch.ones(timesteps, dtype=graph.dtype, device=graph.device)
    weights[: max(0, delay)] = UNREAD
    nodes = (
        replace(node, op=replace(node.op, weights=weights)) if isinstance(node.op, Readout) else node
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def _clipped(node: Node) -> Op:
    op = node.op
    return replace(op, limit=op.threshold * op.max_emission) if isinstance(op, Neuron) else op


def _steps(node: Node, told: Tensor) -> float:
    """The steps from the start to a first spike, where the mean activation is largest; 0 in a silent layer."""
    assert isinstance(node.op, Neuron)
    charge, mean = (1 - node.op.initial_potential) * node.op.threshold.max(), (told[:-1] / told[-1]).max()
    return float(charge / mean) if mean > 0 else 0.0
