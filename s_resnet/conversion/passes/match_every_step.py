"""Pass: a bias for every step, found step after step, layer after layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConversionError, message
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Node, Op
from ...kernels import per_channel
from ...runtime.processes import all_gather
from ..channels import channel_mean, mean_of, with_step_currents
from ..context import Context
from ..layerwise import Pairs, fit_layers


def match_every_step(graph: Graph, context: Context, sweeps: int = 10, rate: float = 0.5) -> Graph:
    """Correct neuron layers one after the other at every step, on the spikes that the corrected layers before it send.

    With s[t] what a channel sends at step t, and a the source's activation, means over calibration images and pixels::

        b[t] <- b[t] + rate (E[a] - E[s[t]])

    Within a sweep the steps are corrected one after the other: with its new bias step t is computed once more, and its
    membrane is that which step t + 1 begins with.

    The analog run is preserved.

    Args:
        graph: a network with its neurons and their thresholds, which fire as they integrate.
        context: calibration images to fit to, and T.
        sweeps: how often the steps of a layer are gone through.
        rate: the share of what lacks that is corrected at a time.

    Raises:
        ConversionError: there are no calibration images, no T, or a layer waits before it fires.

    Source: forward temporal bias correction, Wu et al., ECCV 2024 (arXiv:2403.18388).
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("match_every_step"), context.fitting_steps("match_every_step")
    late = [node for node in graph.neurons if isinstance(node.op, Neuron) and node.op.waits]
    if late:
        got, remedy = f"a layer that waits ({late[0].name})", "Set schedule='streaming' in the recipe"
        raise ConversionError(message("match_every_step", "", got, "layers that fire as they integrate", remedy))

    def fit(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Neuron)
        op = node.op
        for _ in range(math.ceil(sweeps / len(parts))):
            for group in parts.groups():
                swept = [_swept(op, pair, rate) for pair in _together(group)]
                op = replace(op, correction=mean_of(swept).to(graph.device))
        return op

    label = "match_every_step" if context.progress else ""
    return fit_layers(with_step_currents(graph, images, timesteps), images, timesteps, fit, progress=label)


def _together(pairs: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor] | None]:
    """The pairs of this process, and None where other processes have some left."""
    while any(all_gather((pair := next(pairs, None)) is not None)):
        yield pair


def _swept(op: Neuron, pair: tuple[Tensor, Tensor] | None, rate: float) -> tuple[Tensor, int]:
    """The biases ``[T, C]`` after a sweep over all steps, and the number of images of this process.

    Args:
        op: the layer.
        pair: currents and the source's activation of these images; None: only other processes have some.
        rate: the share of what lacks that is corrected.
    """
    assert op.correction is not None
    biases, count = op.correction.clone(), 0 if pair is None else len(pair[1])
    memory = None if pair is None else op.start(pair[0][0])
    for step, bias in enumerate(biases):
        lacking = torch.zeros_like(bias)
        if pair is not None:
            current, wanted = pair[0][step], channel_mean(pair[1])
            spikes, _ = op.advance([current[None]], memory, bias=per_channel(bias, current.ndim))
            lacking = wanted - channel_mean(op.scale_output(spikes[0]))
        bias += rate * mean_of([(lacking, count)]).to(bias.device)
        if pair is not None:
            _, memory = op.advance([current[None]], memory, bias=per_channel(bias, current.ndim))
    return biases, count
