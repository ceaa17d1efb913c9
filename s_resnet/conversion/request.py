"""What is asked of a conversion, and whether it can be had: looked at before any work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from ..data.arguments import whole_number
from ..errors import ConversionError, InvalidData
from ..runtime.display import Displayed
from .auto import check_wishes
from .passes import dyadic_weights, quantize_weights
from .recipes import RECIPES, Recipe, Step, find, usual

ROUNDING = {"dyadic": dyadic_weights, "int8": quantize_weights}
WEIGHTS = ("float32", *ROUNDING)


@dataclass(frozen=True, repr=False)
class Request(Displayed):
    """The settings of :func:`s_resnet.convert`, which says what they mean."""

    recipe: str | Recipe | None = None
    timesteps: int | None = None
    percentile: float | None = None
    weights: str = "float32"
    reconstruct: bool = False
    spikes: str | None = None
    target_drop: float | None = None

    def __post_init__(self) -> None:
        """Raise InvalidData or ConversionError for what can be had of no network."""
        if self.weights not in WEIGHTS:
            raise InvalidData(
                f"convert: got weights {self.weights!r}; expected {', '.join(WEIGHTS)}. Choose one of them."
            )
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", whole_number(self.timesteps, "convert", "timesteps"))
        if self.recipe == "auto":
            check_wishes(self.spikes, self.target_drop, self.timesteps)
        elif self.spikes is not None or self.target_drop is not None:
            raise InvalidData(
                "convert: got spikes or target_drop with a recipe by name; expected them with recipe 'auto', which "
                "chooses by them. Leave them out, or choose auto."
            )
        elif isinstance(self.recipe, str):
            find(self.recipe)

    def named(self, with_images: bool) -> Recipe | None:
        """The recipe that was named, or the usual one; None for ``"auto"``."""
        if self.recipe == "auto":
            return None
        if self.recipe is None:
            return usual(with_images)
        return find(self.recipe) if isinstance(self.recipe, str) else self.recipe

    def plan(self, with_images: bool, resume: str | os.PathLike[str] | None = None) -> Recipe | None:
        """The recipe for a network of ReLUs, with the steps that were asked for besides; None for ``"auto"``.

        Raises ConversionError for what this recipe cannot do, or not without images.
        """
        recipe = self.named(with_images)
        fits, name = (True, "auto") if recipe is None else (recipe.fits, recipe.name)
        if fits and not with_images:
            raise ConversionError(
                f"recipe {name}: got no calibration images; expected some, which it is fitted to. Pass "
                "calibration_batches, or choose s-resnet, which can do without."
            )
        if recipe is None:
            self._check_alphabet(name, self.spikes not in (None, "binary"))
            return None
        return self.completed(recipe, resume)

    def completed(self, recipe: Recipe, resume: str | os.PathLike[str] | None = None) -> Recipe:
        """A recipe with the steps that were asked for besides. Raises ConversionError where it cannot have them."""
        self._check_alphabet(recipe.name, _more_than_binary(recipe))
        if self.weights in ROUNDING and any(step.settings.get("mode") == "spikes" for step in recipe.steps):
            raise ConversionError(
                f"recipe {recipe.name}: got weights {self.weights} for neurons behind pools and classifier; expected "
                "them behind convolutions. Leave weights as they are, or choose s-resnet."
            )
        if self.reconstruct:
            recipe = recipe.reconstructed().set("reconstruct", resume=None if resume is None else os.fspath(resume))
        if self.weights in ROUNDING:
            recipe = replace(recipe, steps=(*recipe.steps, Step(ROUNDING[self.weights])))
        return recipe

    def _check_alphabet(self, name: str, more: bool) -> None:
        if self.weights == "int8" and more:
            binary = [other.name for other in RECIPES.values() if other.fits and not _more_than_binary(other)]
            raise ConversionError(
                f"recipe {name}: got weights int8 with signed or multi-level spikes; expected spikes in {{0, 1}}. "
                f"Leave weights as they are, or choose one of {', '.join(binary)}."
            )


def _more_than_binary(recipe: Recipe) -> bool:
    """Whether neurons send other spikes than 0 and 1."""
    neurons = next((step.settings for step in recipe.steps if step.name == "relu_to_neuron"), {})
    return bool(neurons.get("signed") or neurons.get("differential") or neurons.get("levels", 1) > 1)
