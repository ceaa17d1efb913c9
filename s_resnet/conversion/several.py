"""One network for several T: its weights are fitted at one of them, and what else a recipe fits at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..data.arguments import whole_number
from ..errors import ConversionError, InvalidData, message
from ..graph.graph import Graph
from ..graph.neuron import Neuron
from ..graph.ops import Op
from ..graph.tuned import numbers_of
from ..runtime.progress import Progress
from . import passes
from .auto import Auto
from .context import Context
from .recipes import RECIPES, Recipe

AGAIN = (passes.fit_thresholds, passes.calibrate_neurons, passes.fit_readout)  # passes that run for each T
WEIGHTS_AT = 8  # on ResNet-20: those of 16 cost 8 more than those of 8 cost 16 (docs/explanation/latency.md)


def own_and_others(timesteps: int | Sequence[int] | None, recipe: Recipe | Auto) -> tuple[int | None, tuple[int, ...]]:
    """The T that a network's weights are fitted at, and the other T that it gets numbers for.

    Of several T it is the largest up to 8, else the smallest.

    Args:
        timesteps: one, several, or None for the recipe's.
        recipe: the recipe.

    Raises:
        InvalidData: there are none, one is below 1, or one comes twice.
        ConversionError: the recipe fits no neurons, or its weights are rounded in units of the thresholds.
    """
    if not isinstance(timesteps, Sequence):
        return timesteps, ()  # the recipe checks it
    wanted = sorted({whole_number(steps, "convert", "timesteps") for steps in timesteps})
    if not wanted or len(wanted) < len(timesteps):
        expected = "one T or more, each once"
        raise InvalidData(message("convert", "timesteps", f"{list(timesteps)}", expected, "Pass (4, 8, 16)"))
    own = max((steps for steps in wanted if steps <= WEIGHTS_AT), default=wanted[0])
    if len(wanted) > 1:
        _check_recipe(recipe)
    return own, tuple(steps for steps in wanted if steps != own)


def _check_recipe(recipe: Recipe | Auto) -> None:
    """Check that a recipe can make one network for several T.

    Raises:
        ConversionError: it cannot.
    """
    if not isinstance(recipe, Recipe) or not _fits_again(recipe):
        expected = f"one of {', '.join(one.name for one in RECIPES.values() if _fits_again(one))}"
        got = f"several T for recipe {recipe.name}, which does not fit thresholds, currents and readout to a T"
        raise ConversionError(message("convert", "timesteps", got, expected, "Pass one T, or another recipe"))
    if recipe.weights != "float32":
        got = f"several T with weights {recipe.weights}, which are rounded in units of the thresholds of one T"
        remedy = "Leave the weights as they are, or convert for each T"
        raise ConversionError(message("convert", "timesteps", got, "weights float32", remedy))


def _fits_again(recipe: Recipe) -> bool:
    return {step.run for step in recipe.steps}.issuperset(AGAIN)


def tune(snn: Graph, recipe: Recipe, context: Context, timesteps: Sequence[int]) -> Graph:
    """The network with numbers for these other T beside its own.

    For each T the thresholds, the currents of neuron layers and the readout are fitted as the recipe does, on the
    spikes that the network then sends. Its weights stay. A threshold is stored in units of the one that its layer has,
    so that no weight has to be stored twice.

    Args:
        snn: the network that the recipe made.
        recipe: the same.
        context: calibration images to fit to.
        timesteps: the other T.
    """
    blank = replace(snn, nodes=tuple(replace(node, op=_uncorrected(node.op)) for node in snn.nodes))
    tuned = {}
    for steps in (bar := Progress(timesteps, desc="tune", unit="T", shown=context.progress)):
        bar.show(now=True, T=str(steps))
        graph, own = blank, replace(context, timesteps=steps)
        for step in recipe.steps:
            if step.run in AGAIN:
                kept = {"weights": False} if step.run is passes.calibrate_neurons else {}
                graph = step.run(graph, own, **{**step.settings, **kept})
        tuned[steps] = numbers_of(graph.to(snn.dtype).nodes)
    return replace(snn, tuned=tuned)


def _uncorrected(op: Op) -> Op:
    return replace(op, correction=None) if isinstance(op, Neuron) else op
