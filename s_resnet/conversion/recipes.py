"""Recipes: named tuples of passes with settings. Data only; :func:`s_resnet.convert` runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ConversionError
from ..graph.graph import Graph
from ..runtime.display import Displayed, Table, brief
from . import passes

FITS = ("fit_thresholds", "calibrate_neurons", "reconstruct", "fit_readout")


@dataclass(frozen=True, repr=False)
class Step(Displayed):
    """One pass with its settings; ``optional`` when a network may have nothing for it to do."""

    run: Callable[..., Graph]
    settings: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


@dataclass(frozen=True, repr=False)
class Recipe(Displayed):
    """A way to convert: steps in order, and the number of time steps it is meant for."""

    name: str
    about: str
    timesteps: int
    steps: tuple[Step, ...]

    @property
    def fits(self) -> bool:
        """Whether a step is fitted to calibration images, without which the recipe cannot do."""
        return any(step.name in FITS for step in self.steps)

    def _lines(self) -> Iterator[str]:
        yield f"Recipe {self.name}, T = {self.timesteps}: {self.about}"
        yield f"steps: {', '.join(step.name for step in self.steps)}"

    def _parts(self) -> Iterator[str | Table]:
        fits = "   fitted to calibration images" if self.fits else ""
        yield f"{self.name}   T = {self.timesteps}{fits}\n{self.about}"
        rows = ((step.name, brief(step.settings)[1:-1], "optional" * step.optional) for step in self.steps)
        yield Table(("step", "settings", ""), tuple(rows), texts=3)

    def without(self, *steps: str) -> Recipe:
        """The same recipe without the steps of these names."""
        return replace(self, steps=tuple(step for step in self.steps if step.name not in steps))

    def reconstructed(self) -> Recipe:
        """The same recipe with weights and biases reconstructed block by block after its neurons are calibrated.

        Raises ConversionError for a recipe that does not calibrate neurons.
        """
        names = [step.name for step in self.steps]
        if "calibrate_neurons" not in names:
            fitting = ", ".join(recipe.name for recipe in RECIPES.values() if recipe.fits)
            raise ConversionError(
                f"recipe {self.name}: got nothing to reconstruct for; expected one of {fitting}. Choose one of them."
            )
        at = names.index("calibrate_neurons") + 1
        return replace(self, steps=(*self.steps[:at], Step(passes.reconstruct), *self.steps[at:]))

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


def _fitted(name: str, about: str, timesteps: int, neuron: Mapping[str, Any], **calibrated: Any) -> Recipe:
    """A recipe for few steps: neurons that round, thresholds per channel for that T, synapses fitted to real spikes."""
    return Recipe(
        name,
        about,
        timesteps,
        (
            Step(passes.fold_batchnorm, optional=True),
            Step(passes.relu_to_neuron, {"initial_potential": 0.5, **neuron}),
            Step(passes.move_maxpool, optional=True),
            Step(passes.attach_readout),
            Step(passes.fit_thresholds),
            Step(passes.calibrate_neurons, {"weights": True, **calibrated}),
            Step(passes.fit_readout),
            Step(passes.normalize),
        ),
    )


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
        _fitted(
            "calibrated",
            "plain neurons, binary spikes, each layer a step behind the one before; all fitted to T",
            16,
            {"schedule": "lagged"},
            time_indexed=True,
        ),
        _fitted(
            "calibrated-streaming",
            "plain neurons, binary spikes, all layers at once, the same at every step: runs wherever s-resnet does",
            32,
            {},
        ).set("fit_readout", weighted=False),
        _fitted(
            "phased",
            "plain neurons, binary spikes, exact counts: a layer takes its whole window of T steps, then fires",
            16,
            {"schedule": "phased"},
        ),
        _fitted(
            "signed",
            "spikes in {-1, 0, 1}: a neuron takes back what it fired too early; one step of lag per layer",
            16,
            {"schedule": "lagged", "signed": True},
        ),
        _fitted(
            "multilevel",
            "spikes of amplitude 1, 2, 4, 8 and their negatives, for 2 to 8 steps",
            4,
            {"signed": True, "levels": 4},
        ),
    )
}
"""The recipes by name. Each is data: change a setting by :meth:`Recipe.set`."""


# What a directly trained network needs to become an artifact; T is the one that it was trained for.
TRAINED = Recipe("trained", "trained as a spiking network", 4, (Step(passes.fold_batchnorm, optional=True),))


# What a network with QCFS activations needs: its thresholds are learned, and T is its number of levels.
QUANTIZED = Recipe(
    "qcfs",
    "trained with QCFS activations (arXiv:2303.04347)",
    8,
    (
        Step(passes.fold_batchnorm, optional=True),
        Step(passes.relu_to_neuron, {"initial_potential": 0.5}),
        Step(passes.move_maxpool, optional=True),
        Step(passes.attach_readout),
        Step(passes.normalize),
    ),
)


def usual(with_images: bool) -> Recipe:
    """The recipe that is taken where none is named.

    With calibration images ``calibrated``: on training images that it was not fitted to the best of those that plain
    neurons run, in a tenth of the paper's steps (docs/explanation/latency.md). Without, the paper's.
    """
    return RECIPES["calibrated" if with_images else "s-resnet"]


def find(name: str) -> Recipe:
    """The recipe of that name; ConversionError lists those there are."""
    if name not in RECIPES:
        raise ConversionError(f"recipe: got {name!r}; expected one of {', '.join(RECIPES)} or auto. Choose one.")
    return RECIPES[name]
