"""The largest T with which a recipe answers by a given step."""

from __future__ import annotations

from ..data.arguments import whole_number
from ..graph.graph import Graph
from .calibrate import Calibration, calibrated_nodes
from .context import Context
from .recipes import Recipe

# The passes that decide which layers there are and when each fires; none of them looks at an image.
STRUCTURE = ("fold_batchnorm", "relu_to_neuron", "move_maxpool")


def timesteps_within(graph: Graph, recipe: Recipe, latency: int) -> int | None:
    """The largest T whose answer comes by step ``latency``; None if even T = 1 answers later.

    End-to-end steps E are T plus what the layers of the longest path wait, so that E grows with T. Nothing is fitted.

    Args:
        graph: the analog network, as :func:`s_resnet.trace` gives it.
        recipe: the recipe.
        latency: the most end-to-end steps.

    Raises:
        InvalidData: the latency is no whole number of at least 1.
        ConversionError: the recipe cannot convert this network.
    """
    latency = whole_number(latency, "timesteps_within", "latency")
    waiting = with_neurons(graph, recipe)
    return next((t for t in range(latency, 0, -1) if waiting.end_to_end_steps(t) <= latency), None)


def with_neurons(graph: Graph, recipe: Recipe) -> Graph:
    """The network with the neurons of the recipe and thresholds of 1: what :meth:`Graph.end_to_end_steps` needs.

    Raises:
        ConversionError: the recipe cannot convert this network.
    """
    scales = dict.fromkeys(calibrated_nodes(graph), 1.0)
    context = Context(Calibration(scales, 100.0, 0, "training"), timesteps=1)
    for step in recipe.steps:
        if step.name in STRUCTURE:
            graph = step.run(graph, context, **step.settings)
    return graph
