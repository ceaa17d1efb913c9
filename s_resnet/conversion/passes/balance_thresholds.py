"""Pass: thresholds that grow with what exceeds them, while calibration images go through the clipped network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...graph.engine import arithmetic
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...runtime.processes import all_gather, summed
from ...runtime.progress import Progress
from ..channels import usable
from ..context import Context
from ..spill import Spill


def balance_thresholds(graph: Graph, context: Context, updates: int = 384, batch: int = 32) -> Graph:
    """Balance the threshold of every channel locally, by the mean that exceeds it.

    Full scales start at 0. Batch after batch of calibration images, in turn, goes through the source network, layer by
    layer; a layer first updates its scales, and then sends its activations clipped to them::

        scale += 2 E[max(x - scale, 0)],   x: the layer's ReLU of what the clipped layers before it send

    A rare large activation moves a scale little, so that few updates give small thresholds, which suit few steps.
    A channel that was never active gets the layer's median. The analog run is preserved.

    Args:
        graph: a network with its neurons.
        context: calibration images.
        updates: the number of batches; as many as needed are shown again.
        batch: images in a batch; all processes together.

    Raises:
        ConversionError: there are no calibration images.

    Source: local threshold balancing with channel-wise thresholds, Bu, Li and Yu, CVPR 2025 (arXiv:2409.03368).
    """
    if not graph.neurons:
        return graph
    images = context.fitting_images("balance_thresholds")
    scales: dict[str, Tensor] = {}
    parts = _batches(images, batch)
    for number in Progress(range(updates), desc="balance_thresholds", unit="batch", shown=context.progress):
        part = images[parts[number % len(parts)]]
        with torch.no_grad(), arithmetic(part, tf32=False):
            _update(graph, part, scales)

    def fitted(name: str, op: Neuron) -> Neuron:
        return replace(op, threshold=usable(scales[name], op.limit) / op.max_emission)

    nodes = (
        replace(node, op=fitted(node.name, node.op)) if isinstance(node.op, Neuron) else node for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def _batches(images: Tensor | Spill, batch: int) -> list[slice]:
    """This process's part of every batch; of several processes each has as many."""
    count = len(images)
    number = max(1, round(sum(all_gather(count)) / batch))
    return [slice(count * part // number, count * (part + 1) // number) for part in range(number)]


def _update(graph: Graph, images: Tensor, scales: dict[str, Tensor]) -> None:
    """Show a batch to the clipped network, and update the scales of all layers."""
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    values: dict[str, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        value = node.op.run(*(values[name] for name in node.inputs) if node.inputs else (images,))
        if isinstance(node.op, Neuron):
            flat = value.transpose(0, 1).flatten(1)
            scale = scales.get(node.name, flat.new_zeros(len(flat)))
            over = (flat - scale[:, None]).clamp_min(0).sum(1)
            told = summed(torch.cat([over.double(), over.new_full((1,), flat.shape[1]).double()]))
            scale = scales[node.name] = scale + (2 * told[:-1] / told[-1]).to(scale.dtype)
            value = torch.minimum(value, scale.view(-1, *(1,) * (value.ndim - 2)))
        values[node.name] = value
        for name in [name for name in node.inputs if last[name] == index]:
            values.pop(name, None)
