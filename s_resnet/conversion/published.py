"""Published methods as recipes, for comparison: the same simulator and file, each with its source and what it uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import ConversionError, message
from ..runtime.display import Displayed, Table
from . import passes
from .recipes import RECIPES, RENAMED, Recipe
from .step import Step


@dataclass(frozen=True, repr=False)
class PublishedMethod(Displayed):
    """A published method: its recipe, where it is from, and what it uses. None uses labels.

    Attributes:
        recipe: what ``convert`` does.
        authors: of the paper.
        title: of the paper.
        venue: with the year.
        identifier: ``arXiv:...`` or ``doi:...``; empty if neither was found.
        equation: what was taken from the paper, in its own terms.
        differs: how the recipe differs from the paper; empty if it does not.
        alphabet: what a spike may be.
        step_currents: whether a layer needs a current that differs from step to step.
        delays: whether a layer waits before it fires.
    """

    recipe: Recipe
    authors: str
    title: str
    venue: str
    identifier: str
    equation: str
    differs: str = ""
    alphabet: str = "binary"
    step_currents: bool = False
    delays: bool = False

    @property
    def citation(self) -> str:
        """Authors, title, venue and identifier in one line."""
        known = f" ({self.identifier})" if self.identifier else ""
        return f'{self.authors}, "{self.title}", {self.venue}{known}'

    def _lines(self) -> Iterator[str]:
        yield f"{self.recipe.name}: {self.citation}"
        yield self.equation

    def _parts(self) -> Iterator[str | Table]:
        yield f"{self.recipe.name}\n{self.citation}"
        rows = [("method", self.equation), ("differs", self.differs or "in nothing"), ("spikes", self.alphabet)]
        rows += [
            ("currents per step", "yes" if self.step_currents else "no"),
            ("delays", "yes" if self.delays else "no"),
        ]
        yield Table(("", ""), tuple(rows), texts=2)


def _recipe(
    name: str, about: str, timesteps: int, neuron: Mapping[str, object], *fits: Step, percentile: float | None = None
) -> Recipe:
    """Neurons with these settings, these passes, and the readout of the mean current."""
    before = (
        Step(passes.fold_batchnorm, optional=True),
        Step(passes.relu_to_neuron, neuron),
        Step(passes.move_maxpool, optional=True),
        Step(passes.attach_readout),
    )
    return Recipe(name, about, timesteps, (*before, *fits, Step(passes.normalize)), percentile)


_HALF = {"initial_potential": 0.5}
_ROUNDED = (Step(passes.fit_thresholds), Step(passes.add_half_step))
_LIGHT = PublishedMethod(
    _recipe(
        "snn-calibration-light",
        "thresholds of least error for T, half a grid step more current, a bias calibrated to the spikes",
        32,
        {},
        *_ROUNDED,
        Step(passes.match_means),
    ),
    authors="Li, Deng, Dong, Gong and Gu",
    title="A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration",
    venue="ICML 2021",
    identifier="arXiv:2106.06984",
    equation="light pipeline: b <- b + E[a] - E[r], layer by layer",
    differs="thresholds per channel, which the authors' code has as an option",
)
_ADVANCED = replace(
    _LIGHT,
    recipe=_recipe(
        "snn-calibration",
        "thresholds of least error for T, half a grid step more current, weights and initial potential calibrated",
        32,
        {},
        *_ROUNDED,
        Step(passes.match_means, {"potential": True, "weights": True}),
    ),
    equation="advanced pipeline: weights towards the source's outputs, then v(0) <- v(0) + T (E[a] - E[r])",
    differs="weights by least squares on currents, where the paper trains them by Adam on quantized outputs; a "
    "potential per channel, where the paper has one per neuron; thresholds per channel",
)


def _h_mt(amplitudes: int) -> PublishedMethod:
    most = 2 ** (amplitudes - 1)
    return PublishedMethod(
        _recipe(
            f"h-mt-{amplitudes}",
            f"spikes of amplitude 1, 2, ... {most} and their negatives, thresholds of normal currents",
            4,
            {**_HALF, "spikes": "signed", "amplitudes": amplitudes},
            Step(passes.iterate_thresholds),
        ),
        authors="the authors of H-MT",
        title="Generalized Threshold Optimization with Harmony Multi-Threshold Neurons for Accurate ANN-to-SNN "
        "Conversion",
        venue="AAAI 2026",
        identifier="",
        equation=f"{amplitudes} cascaded thresholds of powers of two: clip(floor(x T / theta + 1/2), 0, "
        f"{2**amplitudes - 1} T) levels; the full scale is a fixed point of mean and variance",
        differs="the fixed point is that of threshold iteration for these levels, found by bisection",
        alphabet=f"signed {amplitudes}-level",
    )


def _dcgs(amplitudes: int) -> PublishedMethod:
    return PublishedMethod(
        _recipe(
            f"dcgs-{amplitudes}",
            "differential spikes of several amplitudes, thresholds of normal currents",
            8,
            {**_HALF, "spikes": "differential", "amplitudes": amplitudes},
            Step(passes.iterate_thresholds, {"levels": 64}),
        ),
        authors="Huang, Fang, Bu, Xue, Hao, Liu, Tang, Yu and Huang",
        title="Differential Coding for Training-Free ANN-to-SNN Conversion",
        venue="ICML 2025",
        identifier="arXiv:2503.00301",
        equation="a spike changes the mean by 1/t of its amplitude; the largest amplitude is the fixed point of "
        "threshold iteration for 64 levels",
        differs=f"a step sends up to {2**amplitudes - 1} of the least amplitude, where the paper sends one amplitude; "
        "the fixed point is found by bisection, where the authors' code takes 100 rounds",
        alphabet="differential",
    )


_METHODS = (
    PublishedMethod(
        _recipe("max-norm", "layer-wise thresholds at the largest activation", 256, {}, percentile=100),
        authors="Diehl, Neil, Binas, Cook, Liu and Pfeiffer",
        title="Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing",
        venue="IJCNN 2015",
        identifier="doi:10.1109/IJCNN.2015.7280696",
        equation="data-based normalization: threshold = largest activation of the layer",
        differs="reset by subtraction and the images as constant currents, as in all recipes here; the paper resets to "
        "zero and sends Poisson spikes",
    ),
    PublishedMethod(
        _recipe("robust-norm", "layer-wise thresholds at the 99.9th percentile", 256, {}, percentile=99.9),
        authors="Rueckauer, Lungu, Hu, Pfeiffer and Liu",
        title="Conversion of Continuous-Valued Deep Networks to Efficient Event-Driven Networks for Image "
        "Classification",
        venue="Frontiers in Neuroscience 2017",
        identifier="doi:10.3389/fnins.2017.00682",
        equation="robust normalization: threshold = 99.9th percentile of the layer's activations; reset by subtraction",
    ),
    PublishedMethod(
        _recipe(
            "rmp",
            "threshold balancing at the largest activation, reset by subtraction, half a grid step more current",
            64,
            {},
            Step(passes.add_half_step),
            percentile=100,
        ),
        authors="Han, Srinivasan and Roy (arXiv:2003.01811), with the shift of Deng and Gu",
        title="Optimal Conversion of Conventional Artificial Neural Networks to Spiking Neural Networks",
        venue="ICLR 2021",
        identifier="arXiv:2103.00476",
        equation="residual membrane potential; a current of threshold / (2 T) more: after T steps the charge of "
        "v(0) = 1/2",
        differs="no threshold ReLU is trained: thresholds are those of the given network",
    ),
    PublishedMethod(
        _recipe("opi", "v(0) = 1/2, layer-wise thresholds at the 99.9th percentile", 32, _HALF, percentile=99.9),
        authors="Bu, Ding, Yu and Huang",
        title="Optimized Potential Initialization for Low-latency Spiking Neural Networks",
        venue="AAAI 2022",
        identifier="arXiv:2202.01440",
        equation="v(0) = threshold / 2, for which the expected error of uniform currents is zero",
        differs="no clipped ReLU is trained: thresholds are those of robust normalization",
    ),
    _LIGHT,
    _ADVANCED,
    PublishedMethod(
        _recipe(
            "ftbc",
            "thresholds of least error for T, half a grid step more current, a bias calibrated at every step",
            16,
            {},
            *_ROUNDED,
            Step(passes.match_every_step),
        ),
        authors="Wu, Bojkovic, Gu, Suo and Zou",
        title="FTBC: Forward Temporal Bias Correction for Optimizing ANN-SNN Conversion",
        venue="ECCV 2024",
        identifier="arXiv:2403.18388",
        equation="b[t] <- b[t] + (E[a] - E[s[t]]) / 2, step by step and layer by layer",
        differs="ten sweeps over all calibration images; the authors' code takes the best of several by test accuracy",
        step_currents=True,
    ),
    PublishedMethod(
        _recipe(
            "ltb",
            "v(0) = 1/2, thresholds per channel balanced locally, delayed readout",
            32,
            _HALF,
            Step(passes.balance_thresholds),
            Step(passes.delay_readout),
        ),
        authors="Bu, Li and Yu",
        title="Inference-Scale Complexity in ANN-SNN Conversion for High-Performance and Low-Power Applications",
        venue="CVPR 2025",
        identifier="arXiv:2409.03368",
        equation="scale <- scale + 2 E[max(x - scale, 0)] in the clipped network; the answer is read after a delay",
        differs="384 batches of 32 images, as in SpikingJelly's example; the paper shows 1,000 of 100 or more",
    ),
    PublishedMethod(
        _recipe(
            "parallel",
            "exact counts: a layer takes its whole window of T steps, then fires; thresholds at each channel's largest",
            16,
            {**_HALF, "schedule": "phased"},
            Step(passes.peak_thresholds),
            Step(passes.calibrate_neurons),
        ),
        authors="Hao, Ma, Chen, Zhang, Yu and Huang",
        title="Faster and Stronger: When ANN-SNN Conversion Meets Parallel Spiking Calculation",
        venue="ICML 2025",
        identifier="arXiv:2412.13610",
        equation="a layer sends clip(floor(x T / theta + 1/2), 0, T) spikes for its mean current x; mean errors are "
        "calibrated",
        differs="the calibration corrects the current before the threshold, not also the output after it; neurons wait "
        "and fire one after the other, which gives the same counts",
        delays=True,
    ),
    _h_mt(4),
    _h_mt(8),
    _dcgs(4),
    _dcgs(8),
)

PUBLISHED: Mapping[str, PublishedMethod] = {method.recipe.name: method for method in _METHODS}
"""The published methods by the name of their recipe."""


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, one of :data:`s_resnet.RECIPES` or of a published method.

    Raises:
        ConversionError: there is none.
    """
    if name in PUBLISHED:
        return PUBLISHED[name].recipe
    if name in RECIPES or name in RENAMED:
        return RECIPES[name]
    expected = f"one of {', '.join(RECIPES)} or auto; or, of published methods, {', '.join(PUBLISHED)}"
    raise ConversionError(message("recipe", "", repr(name), expected, "Pass one of these names, or a Recipe"))
