"""Recipes: named tuples of passes with settings. Data only; :func:`s_resnet.convert` runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import passes
from .errors import ConversionError
from .graph import Graph


@dataclass(frozen=True)
class Step:
    """One pass with its settings; ``optional`` when a network may have nothing for it to do."""

    run: Callable[..., Graph]
    settings: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


@dataclass(frozen=True)
class Recipe:
    """A way to convert: steps in order, and the number of time steps it is meant for."""

    name: str
    about: str
    timesteps: int
    steps: tuple[Step, ...]

    def set(self, step: str, **settings: Any) -> Recipe:
        """The same recipe with other settings of one step: ``recipe.set("relu_to_neuron", reset="zero")``.

        Raises ConversionError when the recipe has no such step.
        """
        if step not in [s.name for s in self.steps]:
            have = ", ".join(s.name for s in self.steps)
            raise ConversionError(f"recipe {self.name}: got step {step!r}; expected one of {have}. Choose one of them.")
        steps = (replace(s, settings={**s.settings, **settings}) if s.name == step else s for s in self.steps)
        return replace(self, steps=tuple(steps))


def _recipe(name: str, about: str, initial_potential: float, compensated: bool, readout: str) -> Recipe:
    steps = [
        Step(passes.fold_batchnorm, optional=True),
        Step(passes.relu_to_neuron, {"initial_potential": initial_potential, "reset": "subtract"}),
        Step(passes.move_maxpool, optional=True),
        Step(passes.attach_readout, {"mode": readout, "initial_potential": initial_potential}),
        Step(passes.normalize),
    ]
    if compensated:
        steps.append(Step(passes.compensate))
    return Recipe(name, about, 350, tuple(steps))


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe(
            "s-resnet",
            "the paper's: layer-wise percentile, shortcut conversion model, compensation, v(0) = 0 (arXiv:1805.01352)",
            0.0,
            True,
            "current",
        ),
        _recipe(
            "s-resnet-released",
            "the released code's: v(0) = 0.5, c = 1, neurons after pooling and classifier, score by spike count",
            0.5,
            False,
            "spikes",
        ),
    )
}


def find(name: str) -> Recipe:
    """The recipe of that name; ConversionError lists those there are."""
    if name not in RECIPES:
        raise ConversionError(f"recipe: got {name!r}; expected one of {', '.join(RECIPES)}. Choose one of them.")
    return RECIPES[name]
