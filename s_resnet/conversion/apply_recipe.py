"""Run the passes of a recipe."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import ConversionError
from ..graph import validate
from ..graph.graph import Graph
from ..runtime.progress import Progress
from .calibrate import Calibration
from .recipes import Recipe


def apply_recipe(
    graph: Graph, calibration: Calibration, recipe: Recipe, timesteps: int, progress: bool = False
) -> Graph:
    """Run the recipe's passes on an analog graph and validate the result.

    Raises ConversionError when a pass that is not optional finds nothing to rewrite.
    """
    applied: list[dict[str, Any]] = []
    given = {"timesteps": timesteps, "progress": progress}
    title = f"{recipe.name}, T = {timesteps}"
    with Progress[None](total=len(recipe.steps), desc=title, unit="step", shown=progress) as bar:
        for step in recipe.steps:
            bar.show(now=True, step=step.name)
            taken = inspect.signature(step.run).parameters
            settings = {**{name: value for name, value in given.items() if name in taken}, **step.settings}
            before = graph
            graph = step.run(graph, calibration, **settings)
            bar.update()
            if graph is before and not step.optional:
                raise ConversionError(
                    f"{step.name}: got nothing to rewrite in this network; expected something, as recipe {recipe.name} "
                    "needs it. Mark the step optional if that is right."
                )
            if graph is not before:
                said = {name: value for name, value in settings.items() if name not in ("progress", "resume")}
                applied.append({"pass": step.name, **said})
    graph = graph.to(graph.dtype)  # of a source in double precision what the passes add is not yet
    validate.finite(graph.nodes)
    return graph.validate().with_provenance(recipe={"name": recipe.name, "timesteps": timesteps, "passes": applied})
