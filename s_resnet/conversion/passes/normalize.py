"""Pass: the paper's conversion model. Every neuron gets threshold 1 and every synapse carries the ratio of scales."""

from __future__ import annotations

from dataclasses import replace

from ...graph.graph import Graph
from ...graph.normalize import normalized
from ..context import Context


def normalize(graph: Graph, context: Context) -> Graph:
    """Threshold 1 everywhere: ``W * lambda_in / lambda_out``, ``b / lambda_out``, and the shortcut conversion model.

    lambda_out of a synapse is the threshold of the neuron that integrates it (for the last convolution of a residual
    branch and for a projection: of the neuron after the sum), lambda_in the threshold of the neuron that feeds it. An
    identity branch becomes an explicit synapse of weight ``lambda_in / lambda_out``, also where that is 1. The
    classifier is divided by the scale of the logits, which the readout multiplies back. Each neuron keeps lambda as its
    ``scale``.

    Spikes are preserved: identical when all thresholds are powers of two, up to rounding otherwise. The analog run
    is preserved up to rounding.

    Args:
        graph: a network with its neurons and readout.
        context: the scale of the logits.

    Raises:
        ConversionError: an operation has no units.

    Source: arXiv:1805.01352 (Hu, Tang, Pan): data-based normalization and shortcut conversion model.
    """
    if not graph.neurons:
        return graph
    nodes = normalized(graph.nodes, context.calibration.scales, graph.device)
    return replace(graph, nodes=nodes)
