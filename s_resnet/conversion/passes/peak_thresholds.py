"""Pass: the largest activation of each channel as its full scale."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...runtime.processes import all_gather
from ..channels import source_currents, usable
from ..context import Context


def peak_thresholds(graph: Graph, context: Context) -> Graph:
    """Set ``max_emission * threshold`` of every channel to its largest activation over the calibration images.

    A channel that was never active gets the layer's median. The analog run is preserved.

    Args:
        graph: a network with its neurons.
        context: calibration images.

    Raises:
        ConversionError: there are no calibration images.

    Source: threshold balancing, Diehl et al., IJCNN 2015, channel by channel.
    """
    if not graph.neurons:
        return graph
    peaks: dict[str, Tensor] = {}
    for node, current in source_currents(graph, context.fitting_images("peak_thresholds"), "peak_thresholds"):
        peak = current.transpose(0, 1).flatten(1).amax(1).clamp_min(0)
        peaks[node.name] = torch.maximum(peaks[node.name], peak) if node.name in peaks else peak
    everywhere = all_gather({name: peak.cpu() for name, peak in peaks.items()})

    def fitted(name: str, op: Neuron) -> Neuron:
        full = torch.stack([other[name] for other in everywhere]).amax(0).to(graph.device)
        return replace(op, threshold=usable(full, op.limit) / op.max_emission)

    nodes = (
        replace(node, op=fitted(node.name, node.op)) if isinstance(node.op, Neuron) else node for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))
