"""Pass: synapses and currents of every neuron layer corrected for how its spiking input really arrives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..calibrate import Calibration, fitting_images
from ..graph import Graph
from ..least_squares import refit
from ..lockstep import affordable, lockstep, respond, steps_of
from ..neuron import Neuron
from ..ops import Conv2d, Linear, Node, Op

SWEEPS = 8
RATE = 0.5  # of the distance to the source's mean that one sweep corrects


def calibrate_neurons(
    graph: Graph,
    calibration: Calibration,
    timesteps: int = 16,
    weights: bool = False,
    time_indexed: bool = False,
    progress: bool = False,
) -> Graph:
    """Correct neuron layers one after the other, each on the spikes that the corrected ones before it really send.

    Eight times ``b += (E[a] - E[r]) / 2`` per channel, r being its mean output over T steps and a the source network's
    activation, over calibration images and pixels. That takes the bias out of clipping, rounding, and unevenness (what
    a neuron emits too early it cannot take back, so that rates are too high on average). ``time_indexed`` corrects
    every step by its own mean, ``b[t] += (E[a] - E[s[t]]) / 2``, but for layers under constant current and networks
    where only counts matter.

    With ``weights`` the synapses of each layer come first: least squares on the mean spikes they really get, towards
    the source's currents (:func:`s_resnet.least_squares.refit`), so that a channel that quantization made noisy counts
    less and the others make up for it. On a residual sum they also make up for what the shortcut lacks.

    The corrections are currents of the neuron layer, so a residual sum gets its own once; they and the weights belong
    to spiking runs only, and the analog run is preserved.

    Source: Li et al., ICML 2021 (arXiv:2106.06984), bias calibration; Wu et al., ECCV 2024 (arXiv:2403.18388),
    forward temporal bias correction.

    Raises ConversionError without calibration images.
    """
    if not graph.neurons:
        return graph
    images = fitting_images(calibration, "calibrate_neurons")
    images = images[: affordable(graph, images, steps_of(graph, timesteps))]

    def visit(node: Node, currents: Tensor, target: Tensor) -> Op:
        if not isinstance(node.op, Neuron):
            return node.op
        constant = all(name in graph.static for name in node.inputs)
        return _unbiased(node.op, currents, target, timesteps, time_indexed and not constant and len(currents) > 1)

    def refitted(node: Node, inputs: Tensor, wanted: Tensor) -> Op:
        assert isinstance(node.op, Conv2d | Linear)
        exact = all(name in graph.static for name in node.inputs)  # what reads the images lacks nothing
        return node.op if exact else refit(node.op, inputs, wanted)

    label = "calibrate_neurons" if progress else ""
    return lockstep(graph, images, timesteps, visit, label, refitted if weights else None)


def _unbiased(op: Neuron, currents: Tensor, target: Tensor, timesteps: int, time_indexed: bool) -> Neuron:
    """The layer whose mean output, per channel (and step), is the source's."""
    wanted = _mean(target)
    correction = torch.zeros_like(wanted) if op.correction is None else op.correction
    if time_indexed:
        correction = correction.expand(timesteps, -1)
    op = replace(op, correction=correction)
    for _ in range(SWEEPS):
        spikes = respond(op, currents, timesteps)
        got = torch.stack([_mean(s) for s in spikes]) if time_indexed else _mean(spikes.mean(0))
        correction = correction + RATE * (wanted - got)
        op = replace(op, correction=correction)
    return op


def _mean(value: Tensor) -> Tensor:
    """Per channel, of ``[B, C, *]``."""
    return value.transpose(0, 1).flatten(1).mean(1)
