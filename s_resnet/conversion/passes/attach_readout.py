"""Pass: the answer of the network becomes a node of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import ConversionError, message
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import AdaptiveAvgPool2d, Node
from ...graph.readout import Readout
from ..calibrate import Calibration
from ..context import Context


def attach_readout(graph: Graph, context: Context, mode: str = "current", initial_potential: float = 0.0) -> Graph:
    """Append a readout after the classifier; the analog run is preserved exactly.

    Args:
        graph: a network with its neurons.
        context: the calibrated scales, for ``"spikes"``.
        mode: ``"current"``: the mean classifier current so far, in the units of the logits. ``"spikes"``, as in the
            paper: an extra integrate-and-fire layer after the global average pool (its threshold is the scale of the
            ReLU before the pool, so nothing is rescaled) and one after the classifier (its threshold is the scale of
            the logits), scored by spike count plus softmax of the membrane.
        initial_potential: v(0) of these extra layers, as a share of their thresholds.

    Raises:
        ConversionError: the mode is unknown.

    Source: arXiv:1805.01352 ("an extra layer of IF neuron is added after pooling layer or fully-connected layer").
    """
    if mode not in ("current", "spikes"):
        remedy = "Set one of these modes in the recipe"
        raise ConversionError(message("attach_readout", "", f"mode {mode!r}", "'current' or 'spikes'", remedy))
    nodes = list(graph.nodes)
    if mode == "spikes":
        nodes = _with_pool_neuron(graph, context.calibration, initial_potential)
    last = nodes[-1].name
    name = "readout"
    while any(node.name == name for node in nodes):
        name += "_"
    readout = Readout(torch.ones((), device=graph.device), mode, initial_potential if mode == "spikes" else 0.0)
    return replace(graph, nodes=(*nodes, Node(name, readout, (last,))))


def _with_pool_neuron(graph: Graph, calibration: Calibration, initial_potential: float) -> list[Node]:
    """The nodes with an integrate-and-fire layer after each global average pool that reads a neuron."""
    nodes: list[Node] = []
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)))
        pooled = isinstance(node.op, AdaptiveAvgPool2d) and node.op.output_size == (1, 1)
        if pooled and isinstance(graph[node.inputs[0]].op, Neuron):
            threshold = torch.tensor(calibration.scales[node.inputs[0]], device=graph.device)
            renamed[node.name] = f"{node.name}.neuron"
            nodes.append(Node(renamed[node.name], Neuron(threshold, initial_potential), (node.name,)))
    return nodes
