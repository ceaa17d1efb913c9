"""Pass: correct the synapses and currents of every neuron layer for the spikes that it really receives."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Conv2d, Linear, Node, Op
from ...runtime.processes import all_gather
from ...simulation.lockstep import fire_mean, mean_of_steps
from ..channels import channel_mean, mean_of
from ..context import Context
from ..layerwise import Pairs, fit_layers
from ..least_squares import refit

SWEEPS = 8
RATE = 0.5  # share of the distance to the source's mean that one sweep corrects


def calibrate_neurons(graph: Graph, context: Context, weights: bool = False, time_indexed: bool = False) -> Graph:
    """Correct neuron layers one after the other, each on the spikes that the corrected layers before it really send.

    Each channel is corrected eight times by ``b += (E[a] - E[r]) / 2``, where r is its mean output over T steps and a
    the source's activation, with means over calibration images and pixels. Images that do not fit in memory at once are
    split into eight parts or more, with one such step for each; the rates of all steps have the same sum: 1/2 for each
    of 8 parts, 1/32 for each of 128. This removes the bias of clipping, rounding and unevenness (a neuron cannot take
    back what it emits too early, so rates are too high on average).

    The corrections are currents of the neuron layer, so a residual sum gets one only. Corrections and weights apply to
    spiking runs alone; the analog run is preserved.

    Args:
        graph: a network with its neurons and their thresholds.
        context: calibration images to fit to, and T.
        weights: whether to refit the synapses of each layer first, by least squares on the mean spikes they really
            receive, towards the source's currents (:func:`s_resnet.conversion.least_squares.refit`). A channel that
            quantization made noisy then counts less, and the others make up for it; on a residual sum the synapses
            also make up for the shortfall of the shortcut.
        time_indexed: whether to correct every step by its own mean, ``b[t] += (E[a] - E[s[t]]) / 2``, except in layers
            under constant current and in networks where only counts matter.

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: Li et al., ICML 2021 (arXiv:2106.06984), bias calibration; Wu et al., ECCV 2024 (arXiv:2403.18388),
    forward temporal bias correction.
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("calibrate_neurons"), context.fitting_steps("calibrate_neurons")
    count = sum(all_gather(len(images)))

    def fit(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Neuron)
        constant = all(name in graph.static for name in node.inputs)
        return _unbiased(node.op, parts, timesteps, time_indexed and not constant)

    def refitted(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Conv2d | Linear)
        exact = all(name in graph.static for name in node.inputs)  # a layer that reads the images has no error
        return node.op if exact else refit(node.op, parts, count)

    label = "calibrate_neurons" if context.progress else ""
    return fit_layers(graph, images, timesteps, fit, refitted if weights else None, label)


def _unbiased(op: Neuron, parts: Pairs, timesteps: int, time_indexed: bool) -> Neuron:
    """The layer whose mean output, per channel (and step), is the source's."""
    rounds = math.ceil(SWEEPS / len(parts))
    rate = RATE * SWEEPS / (rounds * len(parts))
    for _ in range(rounds):
        for group in parts.groups():
            lacking = mean_of([_lacking(op, *pair, timesteps, time_indexed, rounds == 1) for pair in group])
            lacking = lacking.to(op.threshold.device)
            correction = torch.zeros_like(lacking) if op.correction is None else op.correction
            op = replace(op, correction=correction + rate * lacking)
    return op


def _lacking(
    op: Neuron, currents: Tensor, target: Tensor, timesteps: int, time_indexed: bool, large: bool
) -> tuple[Tensor, int]:
    """The source's mean minus the layer's, per channel ``[C]`` or step ``[T, C]``, and the number of images."""
    by_step = time_indexed and len(currents) > 1
    wanted = channel_mean(target)
    correction = torch.zeros_like(wanted) if op.correction is None else op.correction
    if by_step:
        correction = correction.expand(timesteps, -1)
    spikes = fire_mean(replace(op, correction=correction), currents, timesteps)
    got = torch.stack([channel_mean(s) for s in spikes]) if by_step else channel_mean(mean_of_steps(spikes, large))
    return wanted - got, len(target)
