"""Pass: for each channel, the threshold with the least loss from clipping and rounding in T steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...runtime.processes import all_gather, summed
from ..channels import usable
from ..context import Context
from ..portions import analog_images
from ..spill import Spill

BINS = 1024
# Shares of the largest activation to try as full scale.
SHARES = torch.logspace(-1.0, 0.0, 80, dtype=torch.float64)


def fit_thresholds(graph: Graph, context: Context) -> Graph:
    """Set the threshold of every channel to the one with the least mean squared error in T steps.

    T steps of a neuron are a quantizer. A neuron that starts at ``v(0) = p threshold`` and answers a constant current x
    in T steps of up to L thresholds (``L = max_emission``) emits on average::

        Q(x) = threshold / T * clip(floor(T x / threshold + p), 0, T L)

    The threshold that minimizes ``E[(Q(ReLU x) - ReLU x)^2]`` is found on a histogram of the channel's activations
    (1,024 bins up to its largest, over all calibration images and pixels), among 80 full scales ``L threshold`` from a
    tenth of the largest activation to all of it. A channel that was never active gets the layer's median. None gets a
    full scale above the limit of its ReLU.

    The analog run is preserved.

    Args:
        graph: a network with its neurons.
        context: calibration images to fit to, and T.

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: the grid search of Li et al., ICML 2021 (arXiv:2106.06984), with the quantizer that rounds to nearest if
    v(0) is half the threshold.
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("fit_thresholds"), context.fitting_steps("fit_thresholds")
    histograms = _histograms(graph, images)
    nodes = tuple(
        replace(node, op=_fitted(node.op, *histograms[node.name], timesteps)) if isinstance(node.op, Neuron) else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def _histograms(graph: Graph, images: Tensor | Spill) -> dict[str, tuple[Tensor, Tensor]]:
    """For each neuron layer the largest activation of each channel ``[C]`` and the counts ``[C, BINS]`` up to it."""
    names = {node.name for node in graph.neurons}
    largest: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    size = analog_images(graph, images[:1], "fit_thresholds")
    parts = [slice(first, first + size) for first in range(0, len(images), size)]
    for part in parts:
        for name, value in graph.activations(images[part]):
            if name in names:
                peak = value.transpose(0, 1).flatten(1).amax(1)
                largest[name] = torch.maximum(largest[name], peak) if name in largest else peak
    everywhere = all_gather({name: peak.cpu() for name, peak in largest.items()})
    for name, peak in largest.items():
        largest[name] = torch.stack([other[name] for other in everywhere]).amax(0).to(peak.device)
    for part in parts:
        for name, value in graph.activations(images[part]):
            if name in names:
                counts[name] = counts.get(name, 0) + _count(value.transpose(0, 1).flatten(1), largest[name])
    return {node.name: (largest[node.name], summed(counts[node.name])) for node in graph.neurons}


def _count(values: Tensor, largest: Tensor) -> Tensor:
    """How many of the positive values ``[C, n]`` fall in each of the BINS bins up to ``largest``."""
    channels = len(values)
    share = values / largest.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
    index = (share * BINS).long().clamp(0, BINS - 1) + 1
    index = torch.where(values > 0, index, 0) + torch.arange(channels, device=values.device)[:, None] * (BINS + 1)
    return torch.bincount(index.flatten(), minlength=channels * (BINS + 1)).view(channels, BINS + 1)[:, 1:]


def _fitted(op: Neuron, largest: Tensor, counts: Tensor, timesteps: int) -> Neuron:
    """The neuron layer with the best threshold of each channel."""
    levels = timesteps * op.max_emission
    x = (torch.arange(BINS, dtype=torch.float64, device=counts.device) + 0.5) / BINS
    weighed = counts.double()
    errors = []
    for share in SHARES.tolist():
        step = share / levels
        quantized = torch.floor(x / step + op.initial_potential).clamp(0, levels) * step
        errors.append(weighed @ (quantized - x) ** 2)
    best = SHARES.to(counts.device)[torch.stack(errors).argmin(0)]
    full = (best * largest).to(largest.dtype)
    return replace(op, threshold=usable(full, op.limit) / op.max_emission)
