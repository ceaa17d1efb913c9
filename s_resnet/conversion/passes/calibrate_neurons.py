"""Pass: synapses and currents of every neuron layer corrected for how its spiking input really arrives."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Conv2d, Linear, Node, Op
from ...simulation.lockstep import fire_mean
from ..context import Context
from ..layerwise import Pairs, fit_layers
from ..least_squares import refit

SWEEPS = 8
RATE = 0.5  # of the distance to the source's mean that one sweep corrects


def calibrate_neurons(graph: Graph, context: Context, weights: bool = False, time_indexed: bool = False) -> Graph:
    """Correct neuron layers one after the other, each on the spikes that the corrected ones before it really send.

    Eight times ``b += (E[a] - E[r]) / 2`` per channel, r being its mean output over T steps and a the source network's
    activation, over calibration images and pixels. Where the images do not fit in memory at once they come in eight
    parts or more, each with its own such step, and the steps share the same sum of rates: 1/2 for each of eight parts,
    1/32 for each of 128. That takes the bias out of clipping, rounding, and unevenness (what
    a neuron emits too early it cannot take back, so that rates are too high on average).

    The corrections are currents of the neuron layer, so a residual sum gets its own once; they and the weights belong
    to spiking runs only, and the analog run is preserved.

    Args:
        graph: a network with its neurons and their thresholds.
        context: with calibration images to fit to, and T.
        weights: whether the synapses of each layer come first: least squares on the mean spikes they really get,
            towards the source's currents (:func:`s_resnet.conversion.least_squares.refit`), so that a channel that
            quantization made noisy counts less and the others make up for it. On a residual sum they also make up for
            what the shortcut lacks.
        time_indexed: whether every step is corrected by its own mean, ``b[t] += (E[a] - E[s[t]]) / 2``, but for layers
            under constant current and networks where only counts matter.

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: Li et al., ICML 2021 (arXiv:2106.06984), bias calibration; Wu et al., ECCV 2024 (arXiv:2403.18388),
    forward temporal bias correction.
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("calibrate_neurons"), context.fitting_steps("calibrate_neurons")

    def fit(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Neuron)
        constant = all(name in graph.static for name in node.inputs)
        return _unbiased(node.op, parts, timesteps, time_indexed and not constant)

    def refitted(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Conv2d | Linear)
        exact = all(name in graph.static for name in node.inputs)  # what reads the images lacks nothing
        return node.op if exact else refit(node.op, parts, len(images))

    label = "calibrate_neurons" if context.progress else ""
    return fit_layers(graph, images, timesteps, fit, refitted if weights else None, label)


def _unbiased(op: Neuron, parts: Pairs, timesteps: int, time_indexed: bool) -> Neuron:
    """The layer whose mean output, per channel (and step), is the source's."""
    rounds = math.ceil(SWEEPS / len(parts))
    rate = RATE * SWEEPS / (rounds * len(parts))
    for _ in range(rounds):
        for currents, target in parts:
            by_step = time_indexed and len(currents) > 1
            wanted = _mean(target)
            correction = torch.zeros_like(wanted) if op.correction is None else op.correction
            if by_step:
                correction = correction.expand(timesteps, -1)
            spikes = fire_mean(replace(op, correction=correction), currents, timesteps)
            got = torch.stack([_mean(s) for s in spikes]) if by_step else _mean(spikes.mean(0))
            op = replace(op, correction=correction + rate * (wanted - got))
    return op


def _mean(value: Tensor) -> Tensor:
    """Per channel, of ``[B, C, *]``."""
    return value.transpose(0, 1).flatten(1).mean(1)
