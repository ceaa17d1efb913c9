"""Recipes: passes with settings, in order, and the other choices of a conversion. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..data.arguments import whole_number
from ..errors import ConversionError, InvalidData, message
from ..graph import validate
from ..graph.graph import Graph
from ..graph.provenance import AppliedPass, AppliedRecipe
from ..runtime.display import Displayed, Table, brief
from ..runtime.progress import Progress
from . import passes
from .calibrate import check_percentile
from .context import Context
from .step import FITS, Step

ROUNDING: Mapping[str, Callable[..., Graph]] = {"dyadic": passes.dyadic_weights, "int8": passes.quantize_weights}
WEIGHTS = ("float32", *ROUNDING)


@dataclass(frozen=True, repr=False)
class Recipe(Displayed):
    """A way to convert, with all its settings: ``RECIPES["phased"].at(8).with_weights("int8")``.

    It is immutable; every method returns a new recipe. Settings that cannot be combined raise an error at once.

    Attributes:
        name: its key in :data:`s_resnet.RECIPES`.
        about: a one-line description.
        timesteps: the T to tune for.
        steps: its passes, in order.
        percentile: percentile of the activations, in percent, for thresholds that are not chosen by their error; None
            for the default: 99.9, and 99.99 on images from 128 pixels on.

    Raises:
        InvalidData: T or the percentile is out of range.
        ConversionError: the steps, or a step and the percentile, do not go together.
    """

    name: str
    about: str
    timesteps: int
    steps: tuple[Step, ...]
    percentile: float | None = None

    def __post_init__(self) -> None:
        where = f"recipe {self.name}"
        object.__setattr__(self, "timesteps", whole_number(self.timesteps, where, "timesteps"))
        if self.percentile is not None:
            object.__setattr__(self, "percentile", check_percentile(self.percentile))
            if self.fits:
                expected = "none, as it chooses its thresholds by their error"
                remedy = "Leave it out, or choose the recipe s-resnet"
                raise ConversionError(message(where, "", "a percentile", expected, remedy))
        if self.weights == "int8" and not _in_whole_numbers(self):
            whole = [other.name for other in RECIPES.values() if other.fits and _in_whole_numbers(other)]
            remedy = f"Leave weights as they are, or choose one of {', '.join(whole)}"
            got = "weights int8 with differential spikes, or several neurons in place of one"
            raise ConversionError(message(where, "", got, "spikes that are counted", remedy))
        if self.weights != "float32" and self.counts_spikes:
            got = f"weights {self.weights} for neurons after pools and classifier"
            remedy = "Leave weights as they are, or choose s-resnet"
            raise ConversionError(message(where, "", got, "neurons after convolutions", remedy))

    @property
    def label(self) -> str:
        """Its name, and which layers wait where not all do: ``"calibrated-lagged-blocks"``."""
        lag = self.lag
        return self.name if lag in (None, "layers") else f"{self.name}-{lag}"

    @property
    def lag(self) -> str | None:
        """Which layers wait a step, as :func:`s_resnet.conversion.lag.waiting_layers` has it; None if none does."""
        settings = next((step.settings for step in self.steps if step.run is passes.relu_to_neuron), {})
        return str(settings.get("lag", "layers")) if settings.get("schedule") == "lagged" else None

    @property
    def fits(self) -> bool:
        """Whether a step is fitted to calibration images, so that the recipe needs them."""
        return any(step.name in FITS for step in self.steps)

    @property
    def reconstructs(self) -> bool:
        """Whether weights and biases are reconstructed block by block."""
        return any(step.run is passes.reconstruct for step in self.steps)

    @property
    def counts_spikes(self) -> bool:
        """Whether classes are scored by their spikes."""
        return any(step.settings.get("mode") == "spikes" for step in self.steps)

    @property
    def weights(self) -> str:
        """``"float32"``, ``"dyadic"`` or ``"int8"``."""
        runs = [step.run for step in self.steps]
        return next((kind for kind, rounding in ROUNDING.items() if rounding in runs), "float32")

    def _lines(self) -> Iterator[str]:
        yield f"Recipe {self.label}, T = {self.timesteps}: {self.about}"
        yield f"steps: {', '.join(step.name for step in self.steps)}"

    def _parts(self) -> Iterator[str | Table]:
        fits = "   fitted to calibration images" if self.fits else ""
        percentile = "" if self.percentile is None else f"   percentile {self.percentile:g}"
        yield f"{self.label}   T = {self.timesteps}{percentile}{fits}\n{self.about}"
        rows = ((step.name, brief(step.settings)[1:-1], "optional" * step.optional) for step in self.steps)
        yield Table(("step", "settings", ""), tuple(rows), texts=3)

    def at(self, timesteps: int) -> Recipe:
        """The same recipe, tuned for another T.

        Raises:
            InvalidData: T is not a whole number of at least 1.
        """
        return replace(self, timesteps=timesteps)

    def with_percentile(self, percentile: float) -> Recipe:
        """The same recipe with thresholds at another percentile of the activations.

        Raises:
            InvalidData: it is not above 0 and at most 100.
            ConversionError: the recipe does not use a percentile.
        """
        return replace(self, percentile=percentile)

    def with_weights(self, weights: str) -> Recipe:
        """The same recipe with weights ``"float32"``, ``"dyadic"`` or ``"int8"``.

        Dyadic weights give the same spikes on every engine (:func:`s_resnet.conversion.passes.dyadic_weights`), int8
        makes an integer network (:func:`s_resnet.conversion.passes.quantize_weights`).

        Raises:
            InvalidData: the weights are none of these.
            ConversionError: the recipe cannot have them.
        """
        check_weights(weights)
        plain = self.without(*(rounding.__name__ for rounding in ROUNDING.values()))
        rounded = tuple(Step(rounding) for kind, rounding in ROUNDING.items() if kind == weights)
        return replace(plain, steps=(*plain.steps, *rounded))

    def reconstructed(self, **settings: object) -> Recipe:
        """The same recipe with weights and biases reconstructed block by block after its neurons are calibrated.

        Args:
            **settings: those of :func:`s_resnet.conversion.passes.reconstruct`: ``minutes`` that it may take, by
                default 30; ``resume``, a file to resume from after an interruption; ``steps`` and ``joint``.

        Raises:
            InvalidData: a setting is out of range.
            ConversionError: there is no such setting, or the recipe does not calibrate neurons.
        """
        plain = self.without("reconstruct")
        names = [step.name for step in plain.steps]
        if "calibrate_neurons" not in names:
            fitting = ", ".join(recipe.name for recipe in RECIPES.values() if recipe.fits)
            where, got = f"recipe {self.name}", "nothing to reconstruct for"
            remedy = "Reconstruct with a recipe that calibrates neurons"
            raise ConversionError(message(where, "", got, f"one of {fitting}", remedy))
        at = names.index("calibrate_neurons") + 1
        return replace(plain, steps=(*plain.steps[:at], Step(passes.reconstruct, settings), *plain.steps[at:]))

    def without(self, *steps: str) -> Recipe:
        """The same recipe without the steps of these names, where it has them.

        Raises:
            ConversionError: there is no pass of such a name.
        """
        unknown = set(steps) - set(passes.__all__) - {step.name for step in self.steps}
        if unknown:
            expected = f"some of {', '.join(step.name for step in self.steps)}"
            got, remedy = f"step {min(unknown)!r}", "Name a step of this recipe"
            raise ConversionError(message(f"recipe {self.name}", "", got, expected, remedy))
        return replace(self, steps=tuple(step for step in self.steps if step.name not in steps))

    def set(self, step: str, **settings: object) -> Recipe:
        """The same recipe with other settings of one step: ``recipe.set("relu_to_neuron", reset="zero")``.

        Raises:
            ConversionError: the recipe has no such step.
        """
        have = [s.name for s in self.steps]
        if step not in have:
            where, expected = f"recipe {self.name}", f"one of {', '.join(have)}"
            raise ConversionError(message(where, "", f"step {step!r}", expected, "Name a step of this recipe"))
        steps = (replace(s, settings={**s.settings, **settings}) if s.name == step else s for s in self.steps)
        return replace(self, steps=tuple(steps))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Run the passes on an analog graph, and validate the result.

        Args:
            graph: the source network.
            context: the calibration, and T if it differs from the recipe's.

        Raises:
            ConversionError: a pass that is not optional finds nothing to rewrite.
        """
        timesteps = self.timesteps if context.timesteps is None else context.timesteps
        context = replace(context, timesteps=timesteps)
        applied: list[AppliedPass] = []
        title = f"{self.label}, T = {timesteps}"
        with Progress[None](total=len(self.steps), desc=title, unit="step", shown=context.progress) as bar:
            for step in self.steps:
                bar.show(now=True, step=step.name)
                before = graph
                graph = step.run(graph, context, **step.settings)
                bar.update()
                if graph is not before:
                    applied.append(step.told(timesteps))
                elif not step.optional:
                    expected = f"something, as recipe {self.name} needs it"
                    got, remedy = "nothing to rewrite in this network", "Mark the step optional if that is right"
                    raise ConversionError(message(step.name, "", got, expected, remedy))
        graph = graph.to(graph.dtype)  # passes add float32 tensors, also to a source in double precision
        validate.finite(graph.nodes)
        return graph.validate().with_provenance(recipe=AppliedRecipe(self.label, timesteps, tuple(applied)))


def _in_whole_numbers(recipe: Recipe) -> bool:
    """Whether its neurons can count in whole numbers."""
    neurons = next((step.settings for step in recipe.steps if step.name == "relu_to_neuron"), {})
    return neurons.get("spikes") != "differential" and neurons.get("copies", 1) == 1


def check_weights(weights: str) -> None:
    """Check the name of weights.

    Raises:
        InvalidData: there are no such weights.
    """
    if weights not in WEIGHTS:
        remedy = "Pass one of these names"
        raise InvalidData(message("convert", "", f"weights {weights!r}", ", ".join(WEIGHTS), remedy))


def _paper(name: str, about: str, initial_potential: float, released: bool = False) -> Recipe:
    """A recipe for hundreds of steps: thresholds at a percentile, and the shortcut conversion model."""
    mode = "spikes" if released else "current"
    steps = [
        Step(passes.fold_batchnorm, optional=True),
        Step(passes.relu_to_neuron, {"initial_potential": initial_potential, "reset": "subtract"}),
        Step(passes.move_maxpool, optional=True),
        Step(passes.attach_readout, {"mode": mode, "initial_potential": initial_potential}),
        Step(passes.normalize),
    ]
    return Recipe(name, about, 350, (*steps, *([] if released else [Step(passes.compensate)])))


def _fitted(name: str, about: str, timesteps: int, neuron: Mapping[str, object], **calibrated: object) -> Recipe:
    """A recipe for few steps: rounding neurons, thresholds per channel for that T, synapses fitted to real spikes."""
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
            Step(passes.calibrate_neurons, {"weights": True} | calibrated),
            Step(passes.fit_readout),
            Step(passes.normalize),
        ),
    )


class _ByName(dict[str, Recipe]):
    """Recipes by name, for which an unknown name says which there are."""

    def __missing__(self, name: object) -> Recipe:
        new = RENAMED.get(str(name))
        remedy = f"It is now named {new}" if new else "Pass one of these names, or a Recipe"
        raise ConversionError(message("recipe", "", repr(name), f"one of {', '.join(self)} or auto", remedy))


RENAMED = {"calibrated-streaming": "calibrated-constant"}  # former names, for the error
RECIPES: Mapping[str, Recipe] = _ByName(
    (recipe.name, recipe)
    for recipe in (
        _paper("s-resnet", "the paper's conversion model and compensation, from v(0) = 1/2 (arXiv:1805.01352)", 0.5),
        _paper("s-resnet-v0", "the same from v(0) = 0, which rounds every rate down, as in the paper's theory", 0.0),
        _paper("s-resnet-released", "its code: v(0) = 1/2, c = 1, neurons after pool and classifier", 0.5, True),
        _fitted(
            "calibrated",
            "plain neurons, binary spikes, all layers at once; needs a current per step and channel",
            16,
            {},
            time_indexed=True,
        ),
        _fitted(
            "calibrated-constant",
            "plain neurons, binary spikes, all layers at once, the same at every step: runs wherever s-resnet does",
            32,
            {},
        ).set("fit_readout", weighted=False),
        _fitted(
            "calibrated-currents",
            "calibrated with the ANN's own weights, for a few images, or those distilled from the network itself",
            128,
            {},
            weights=False,
            time_indexed=True,
        ),
        _fitted(
            "calibrated-fission",
            "calibrated, with 3 plain neurons for each: fewer steps, 3 times the neurons, up to 9 times the operations",
            8,
            {"copies": 3},
            time_indexed=True,
        ),
        _fitted(
            "calibrated-lagged",
            "plain neurons, binary spikes, each layer a step behind the one before; needs a current per step",
            16,
            {"schedule": "lagged"},
            time_indexed=True,
        ),
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
            {"schedule": "lagged", "spikes": "signed"},
        ),
        _fitted(
            "multilevel",
            "spikes of amplitude 1, 2, 4, 8 and their negatives, for 2 to 8 steps",
            4,
            {"spikes": "signed", "amplitudes": 4},
        ),
    )
)
"""The recipes by name. Each is data: change a setting by :meth:`Recipe.set`."""


# The steps that make an artifact of a directly trained network; T is the one that it was trained for.
TRAINED = Recipe("trained", "trained as a spiking network", 4, (Step(passes.fold_batchnorm, optional=True),))


# The steps for a network with QCFS activations: its thresholds are learned, and T is its number of levels.
QUANTIZED = _fitted("qcfs", "trained with QCFS activations (arXiv:2303.04347)", 8, {}).without(*FITS)


def default_recipe(with_images: bool) -> Recipe:
    """The recipe to use if none is named.

    With calibration images it is ``calibrated``, which answers after T steps with plain neurons, in a tenth of the
    paper's steps (docs/explanation/latency.md). Without, it is ``calibrated-currents``, fitted to images that the
    network itself tells (docs/explanation/distilled-images.md).
    """
    return RECIPES["calibrated" if with_images else "calibrated-currents"]
