"""Pass: thresholds and currents of every neuron layer corrected for how its spiking input really arrives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..calibrate import Calibration, fitting_images
from ..graph import Graph
from ..lockstep import affordable, lockstep, respond
from ..neuron import Neuron
from ..ops import Node, Op

SWEEPS = 8
RATE = 0.5  # of the distance to the source's mean that one sweep corrects
# The search in thresholds and corrections: its first step sizes, how they shrink, and the neurons times steps it sees.
SPREAD, SHRINK, SEEN = (0.3, 0.1), 0.97, 2**22


def calibrate_neurons(
    graph: Graph,
    calibration: Calibration,
    timesteps: int = 16,
    time_indexed: bool = False,
    refine: int = 60,
    evenness: float = 0.5,
    progress: bool = False,
) -> Graph:
    """Correct neuron layers one after the other, each on the spikes that the corrected ones before it really send.

    1. ``refine`` random steps in (log threshold, constant current) of each channel, each kept where it lowers::

           E[(r - a)^2] + evenness E[(r' - a)^2]

       r being the channel's mean output over T steps, r' that over the second half (streaming layers only; spikes that
       come late are worth as much as early ones), a the source network's activation.
    2. Eight times ``b += (E[a] - E[r]) / 2`` per channel, which leaves no bias in the mean: what a neuron emits too
       early it cannot take back (unevenness), so that rates are too high on average. ``time_indexed`` corrects every
       step by its own mean, ``b[t] += (E[a] - E[s[t]]) / 2``.

    The corrections are currents of the neuron layer, so a residual sum gets its own once, and the analog run is
    preserved. Layers under constant current get no time-indexed correction.

    Source: Li et al., ICML 2021 (arXiv:2106.06984), bias calibration; Wu et al., ECCV 2024 (arXiv:2403.18388),
    forward temporal bias correction. The search on real spike trains is ours.

    Raises ConversionError without calibration images.
    """
    if not graph.neurons:
        return graph
    images = fitting_images(calibration, "calibrate_neurons")
    images = images[: affordable(graph, images, timesteps)]

    def visit(node: Node, currents: Tensor, target: Tensor) -> Op:
        if not isinstance(node.op, Neuron):
            return node.op
        constant = all(name in graph.static for name in node.inputs)
        op = node.op
        if refine:
            late = evenness if op.schedule == "streaming" and not constant and not op.signed else 0.0
            op = _refined(op, currents, target, timesteps, refine, late)
        return _unbiased(op, currents, target, timesteps, time_indexed and not constant and len(currents) > 1)

    return lockstep(graph, images, timesteps, visit, "calibrate_neurons" if progress else "")


def _refined(op: Neuron, currents: Tensor, target: Tensor, timesteps: int, steps: int, late: float) -> Neuron:
    """The layer after ``steps`` random steps of each channel's threshold and correction, the better ones kept."""
    seen = max(8, SEEN // (len(currents) * target[0].numel()))
    currents, target = currents[:, :seen], target[:seen]
    channels = target.shape[1]
    base = op.threshold.expand(channels).clone()
    generator = torch.Generator().manual_seed(0)
    at = torch.zeros(2, channels)  # log of the factor on the threshold, correction in thresholds

    def at_point(point: Tensor) -> Neuron:
        point = point.to(base)
        return replace(op, threshold=base * point[0].exp(), correction=_corrected(op, point[1] * base))

    def loss(point: Tensor) -> Tensor:
        spikes = respond(at_point(point), currents, timesteps)
        error = _squared(spikes.mean(0) - target)
        return error + late * _squared(spikes[len(spikes) // 2 :].mean(0) - target) if late else error

    best = loss(at)
    for step in range(steps):
        move = torch.randn(2, channels, generator=generator) * torch.tensor(SPREAD)[:, None] * SHRINK**step
        tried = loss(at + move)
        better = tried < best
        at, best = torch.where(better.cpu(), at + move, at), torch.where(better, tried, best)
    return at_point(at)


def _unbiased(op: Neuron, currents: Tensor, target: Tensor, timesteps: int, time_indexed: bool) -> Neuron:
    """The layer whose mean output, per channel (and step), is the source's."""
    wanted = _mean(target)
    if time_indexed:
        before = op.correction if op.correction is not None else torch.zeros_like(wanted)
        op = replace(op, correction=before.expand(timesteps, -1).clone())
    for _ in range(SWEEPS):
        spikes = respond(op, currents, timesteps)
        got = torch.stack([_mean(s) for s in spikes]) if time_indexed else _mean(spikes.mean(0))
        op = replace(op, correction=_corrected(op, RATE * (wanted - got)))
    return op


def _corrected(op: Neuron, more: Tensor) -> Tensor:
    return more if op.correction is None else op.correction + more


def _mean(value: Tensor) -> Tensor:
    """Per channel, of ``[B, C, *]``."""
    return value.transpose(0, 1).flatten(1).mean(1)


def _squared(error: Tensor) -> Tensor:
    return _mean(error**2)
