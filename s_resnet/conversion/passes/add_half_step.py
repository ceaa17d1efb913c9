"""Pass: a current that rounds to the nearest step of the grid of T steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ..context import Context


def add_half_step(graph: Graph, context: Context) -> Graph:
    """Add the current ``threshold / (2 T)`` to every neuron layer, in spiking runs alone.

    A neuron that starts at 0 rounds its mean current down to a multiple of ``threshold / T``, and loses half of that on
    average. Over T steps the current adds just as much; the charge after T steps is that of a neuron that starts at
    half its threshold.

    The analog run is preserved.

    Args:
        graph: a network with its neurons and their thresholds.
        context: T.

    Raises:
        ConversionError: there is no T.

    Source: Deng and Gu, ICLR 2021 (arXiv:2103.00476), the shift that minimizes the expected error of a layer.
    """
    if not graph.neurons:
        return graph
    timesteps = context.fitting_steps("add_half_step")

    def shifted(op: Neuron) -> Neuron:
        now = torch.zeros_like(op.threshold) if op.correction is None else op.correction
        return replace(op, correction=now + op.threshold / (2 * timesteps))

    nodes = (replace(node, op=shifted(node.op)) if isinstance(node.op, Neuron) else node for node in graph.nodes)
    return replace(graph, nodes=tuple(nodes))
