"""The largest T with which a network, or a recipe, answers by a given step."""

from __future__ import annotations

from ..data.arguments import whole_number
from ..graph.graph import Graph
from .calibrate import Calibration, calibrated_nodes
from .context import Context
from .recipes import Recipe

NEURONS = "relu_to_neuron"  # the pass that decides when each layer fires; it looks at no image


def timesteps_within(snn: Graph, latency: int) -> int | None:
    """The largest T whose answer comes by end-to-end step ``latency``; None if even that of T = 1 comes later.

    Args:
        snn: a spiking network, or what :func:`with_neurons` makes of a network and a recipe.
        latency: the most end-to-end steps: T and what the layers of the longest path wait.

    Raises:
        InvalidData: the latency is no whole number of at least 1.
    """
    latency = whole_number(latency, "timesteps_within", "latency")
    return next((t for t in range(latency, 0, -1) if snn.end_to_end_steps(t) <= latency), None)


def with_neurons(graph: Graph, recipe: Recipe) -> Graph:
    """The network with the neurons of the recipe and thresholds of 1: when it answers, and nothing else.

    Nothing is calibrated or fitted, so this takes no images and no time.

    Args:
        graph: the analog network, as :func:`s_resnet.trace` gives it.
        recipe: the recipe.

    Raises:
        ConversionError: the recipe cannot convert this network.
    """
    scales = dict.fromkeys(calibrated_nodes(graph), 1.0)
    context = Context(Calibration(scales, 100.0, 0, "training"), timesteps=1)
    for step in recipe.steps:
        if step.name == NEURONS:
            graph = step.run(graph, context, **step.settings)
    return graph
