"""Pass: correct each layer once by the mean that its spikes lack, as a bias or as an initial potential."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Conv2d, Linear, Node, Op
from ...runtime.processes import all_gather
from ...simulation.lockstep import fire_mean, mean_of_steps
from ..channels import channel_mean, mean_of, with_step_currents
from ..context import Context
from ..layerwise import Pairs, fit_layers
from ..least_squares import refit


def match_means(graph: Graph, context: Context, potential: bool = False, weights: bool = False) -> Graph:
    """Correct neuron layers one after the other, each once, on the spikes that the corrected layers before it send.

    With r the mean output of a channel over T steps, and a the source's activation, means over calibration images and
    pixels::

        b    <- b + E[a] - E[r]             the bias
        v(0) <- v(0) + T (E[a] - E[r])      or the initial potential

    An initial potential of a channel is stored as a current of its first step, which is the same.

    The analog run is preserved.

    Args:
        graph: a network with its neurons and their thresholds.
        context: calibration images to fit to, and T.
        potential: whether to correct the initial potential in place of the bias.
        weights: whether to refit the synapses of each layer first, by least squares on the mean spikes they really
            receive (:func:`s_resnet.conversion.least_squares.refit`).

    Raises:
        ConversionError: there are no calibration images, or no T.

    Source: Li et al., ICML 2021 (arXiv:2106.06984): bias, potential and weight calibration. There the potential is one
    for each neuron, which ties a network to the size of its images, and weights are trained by Adam on the quantized
    output of a layer.
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("match_means"), context.fitting_steps("match_means")
    count = sum(all_gather(len(images)))
    graph = with_step_currents(graph, images, timesteps) if potential else graph

    def fit(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Neuron)
        lacking = mean_of([_lacking(node.op, *pair, timesteps) for pair in parts]).to(node.op.threshold.device)
        correction = torch.zeros_like(lacking) if node.op.correction is None else node.op.correction.clone()
        if potential:
            correction[0] += timesteps * lacking
        else:
            correction = correction + lacking
        return replace(node.op, correction=correction)

    def refitted(node: Node, parts: Pairs) -> Op:
        assert isinstance(node.op, Conv2d | Linear)
        exact = all(name in graph.static for name in node.inputs)  # a layer that reads the images has no error
        return node.op if exact else refit(node.op, parts, count)

    label = "match_means" if context.progress else ""
    return fit_layers(graph, images, timesteps, fit, refitted if weights else None, label)


def _lacking(op: Neuron, currents: Tensor, target: Tensor, timesteps: int) -> tuple[Tensor, int]:
    """The source's mean per channel ``[C]`` minus the layer's, and the number of images."""
    got = channel_mean(mean_of_steps(fire_mean(op, currents, timesteps)))
    return channel_mean(target) - got, len(target)
