"""Recipe "auto": try what answers in time on held-out calibration images, choose, and say why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

import torch

from ..data.arguments import real_number, whole_number
from ..data.intervals import wilson
from ..errors import ConversionError, InvalidData, message
from ..graph.graph import Graph
from ..graph.provenance import Choice, Trial
from ..runtime.display import Displayed
from ..runtime.processes import all_gather, rank_and_world_size
from ..runtime.progress import Progress
from .calibrate import Calibration
from .context import Context
from .lag import LAGS, different_lags
from .latency import NEURONS, timesteps_within, with_neurons
from .portions import spiking_images
from .recipes import RECIPES, Recipe

ALPHABETS = ("binary", "signed", "levels")  # each includes those before it
# What needs least comes first: of equally good and equally fast recipes the first is chosen.
TRIED = ("calibrated-constant", "calibrated", "calibrated-lagged", "phased", "signed", "multilevel")
SPLIT = "calibrated-lagged"  # also tried where fewer layers wait
LATENCY = 16  # steps to the answer, if nothing is asked for
LATENCIES = (4, 8, 16, 32, 64)  # tried in turn for a target drop
BATCH = 32


@dataclass(frozen=True, repr=False)
class Auto(Displayed):
    """The criteria for choosing a recipe. Pass it in place of one: ``convert(model, batches, Auto(latency=16))``.

    Attributes:
        spikes: what the target can send: ``"binary"``, ``"signed"`` or ``"levels"``.
        target_drop: the percentage of held-out calibration images on which the network may disagree with the ANN; the
            latency is chosen accordingly. None if the latency is given.
        latency: E, the steps from the first input to the answer; every recipe has the largest T that answers by then.
            None for 16, or if a drop is given.
        step_currents: whether the target has a current for every step and channel.
        delays: whether its layers can wait, by a step or by the whole window.
        weights: the weights of every recipe that is tried, as :meth:`Recipe.with_weights` takes them.
        reconstruction: the settings of :meth:`Recipe.reconstructed` for every recipe that is tried; None for none.

    Raises:
        InvalidData: the alphabet or weights are unknown, the drop or latency is out of range, or both are given.
        ConversionError: a recipe that is tried cannot have the weights.
    """

    spikes: str = "binary"
    target_drop: float | None = None
    latency: int | None = None
    step_currents: bool = True
    delays: bool = True
    weights: str = "float32"
    reconstruction: Mapping[str, object] | None = None

    name: ClassVar[str] = "auto"
    label: ClassVar[str] = "auto"
    fits: ClassVar[bool] = True
    counts_spikes: ClassVar[bool] = False
    percentile: ClassVar[None] = None

    @property
    def reconstructs(self) -> bool:
        """Whether every recipe that is tried is reconstructed."""
        return self.reconstruction is not None

    def __post_init__(self) -> None:
        drop = self.target_drop
        if self.spikes not in ALPHABETS:
            expected = f"one of {', '.join(ALPHABETS)}"
            raise InvalidData(message("auto", "", f"spikes {self.spikes!r}", expected, "Pass what the target can send"))
        if drop is not None and not 0 < real_number(drop) < 100:
            remedy = "Pass a percentage such as 1"
            raise InvalidData(message("auto", "", f"target_drop={drop!r}", "points between 0 and 100", remedy))
        if self.latency is not None:
            object.__setattr__(self, "latency", whole_number(self.latency, "auto", "latency"))
        if drop is not None and self.latency is not None:
            expected = "one of them, to find the other"
            raise InvalidData(message("auto", "", "latency and target_drop", expected, "Leave one out"))
        if self.reconstruction and "resume" in self.reconstruction:
            expected = "none, as it reconstructs with several recipes"
            raise InvalidData(message("auto", "", "a file to resume from", expected, "Leave it out"))
        self.recipes()

    def at(self, timesteps: int) -> NoReturn:
        """There is no T to ask for, as every recipe has its own.

        Raises:
            InvalidData: always.
        """
        got, expected = f"timesteps={timesteps!r}", "a latency, since each recipe gets the T that answers in time"
        raise InvalidData(message("auto", "", got, expected, "Pass Auto(latency=...), or choose a recipe by name"))

    def with_weights(self, weights: str) -> Auto:
        """The same criteria with weights ``"float32"``, ``"dyadic"`` or ``"int8"``."""
        return replace(self, weights=weights)

    def reconstructed(self, **settings: object) -> Auto:
        """The same criteria with every recipe reconstructed, as by :meth:`Recipe.reconstructed`."""
        return replace(self, reconstruction=settings)

    def recipes(self) -> tuple[Recipe, ...]:
        """The recipes that the target allows, those that need least first: delays at fewer layers before more."""
        known = list[Recipe]()
        for name in TRIED:
            fewer = LAGS[:0:-1] if name == SPLIT else ()
            known += [*(RECIPES[name].set(NEURONS, lag=lag) for lag in fewer), RECIPES[name]]
        found = [recipe.with_weights(self.weights) for recipe in known if self._allows(recipe)]
        if self.reconstruction is None:
            return tuple(found)
        return tuple(recipe.reconstructed(**self.reconstruction) for recipe in found)

    def _allows(self, recipe: Recipe) -> bool:
        """Whether the target has what a recipe needs."""
        settings = {name: value for step in recipe.steps for name, value in step.settings.items()}
        levels, signed = settings.get("amplitudes", 1) != 1, settings.get("spikes", "unsigned") != "unsigned"
        if ALPHABETS.index("levels" if levels else "signed" if signed else "binary") > ALPHABETS.index(self.spikes):
            return False
        streaming = settings.get("schedule", "streaming") == "streaming"
        return (self.step_currents or not settings.get("time_indexed")) and (self.delays or streaming)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Convert with the recipe that :func:`choose_recipe` chooses."""
        return choose_recipe(graph, context, self)


def choose_recipe(graph: Graph, context: Context, wishes: Auto | None = None) -> Graph:
    """Convert with every recipe that the target allows, each at the T that answers in time, and keep the best.

    Agreement with the ANN is measured on calibration images that no pass has fitted to, without labels. The share of
    images on which they disagree is an upper bound for the drop in accuracy on those images, within the interval that
    the choice reports. On images that the ANN was not trained on, where it is less confident, a network may lose more.

    ``calibrated-lagged`` is tried for every choice of the layers that wait (:data:`s_resnet.conversion.lag.LAGS`);
    those that let the same layers of this network wait are tried once.

    * Given a latency (16 by default): each recipe has the largest T that answers by then; one that has none is left
      out. Among those whose agreement is within one standard error of the best, the one that answers first; among
      equally fast ones the one that needs least.
    * Given a target drop in points: the smallest latency of 4, 8, 16, 32, 64 at which a recipe disagrees on no more
      than that percentage of the images; among several the one that answers first, and then the one that needs least.
      If none does, the best of all.

    The trials, the choice and the reason go into the provenance as ``choice``.

    Args:
        graph: the source network.
        context: the context, with held-out calibration images.
        wishes: by default ``Auto()``.

    Raises:
        ConversionError: there are no calibration images.
    """
    wishes = wishes or Auto()
    if context.calibration.samples is None:
        remedy = "Pass calibration_batches, or choose s-resnet"
        raise ConversionError(message("auto", "", "no calibration images to choose by", "some", remedy))
    latencies = (wishes.latency or LATENCY,) if wishes.target_drop is None else LATENCIES
    lags = (None, "layers", *different_lags(graph))
    recipes = (recipe for recipe in wishes.recipes() if recipe.lag in lags)
    windows = [(recipe, _windows(graph, recipe, latencies)) for recipe in recipes]
    trials = list[Trial]()
    best: tuple[Trial, Graph] | None = None
    total = sum(len(set(found.values())) for _, found in windows)
    with Progress[None](total=total, desc="auto", unit="recipe", shown=context.progress) as bar:
        for latency in latencies:
            tried: list[tuple[Trial, Graph]] = []
            for recipe, found in windows:
                timesteps = found.get(latency)
                if timesteps is None or (recipe.label, timesteps) in [(t.recipe, t.timesteps) for t in trials]:
                    continue
                snn = recipe.apply(graph, replace(context, timesteps=timesteps))
                tried.append((_trial(recipe.label, snn, context.calibration, timesteps), snn))
                bar.update()
            trials += [trial for trial, _ in tried]
            if tried:
                best, enough = _best(tried if best is None else [best, *tried], wishes.target_drop)
                if enough:
                    break
    assert best is not None  # calibrated-constant is always allowed, and answers at any step
    late = [recipe.label for recipe, found in windows if latency not in found]
    never = f" No T answers by step {latency}: {', '.join(late)}." if late else ""
    reason = f"{_reason(best[0], trials, wishes)}{never}"
    return best[1].with_provenance(choice=Choice(wishes.spikes, reason, tuple(trials)))


def _windows(graph: Graph, recipe: Recipe, latencies: tuple[int, ...]) -> dict[int, int]:
    """The largest T of a recipe that answers by each of the latencies; without those by which none does."""
    bare = with_neurons(graph, recipe)
    found = {latency: timesteps_within(bare, latency) for latency in latencies}
    return {latency: timesteps for latency, timesteps in found.items() if timesteps}


def _trial(name: str, snn: Graph, calibration: Calibration, timesteps: int) -> Trial:
    assert calibration.samples is not None
    rank, world = rank_and_world_size()
    same, images = 0, calibration.samples.images[rank::world]
    size = min(BATCH, spiking_images(snn, calibration.samples.images, "auto"))
    for part in torch.split(images, size) if len(images) else ():
        same += int((snn(part, timesteps).argmax(1) == snn.run(part).argmax(1)).sum())
    same = sum(all_gather(same))
    count = len(calibration.samples.images)
    share = same / count
    # One more image of each kind is assumed, so that the standard error is never 0.
    smoothed = (same + 1) / (count + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / count)
    differ = wilson(count - same, count)
    return Trial(name, timesteps, snn.end_to_end_steps(timesteps), share, error, count, differ)


def _best(tried: list[tuple[Trial, Graph]], target_drop: float | None) -> tuple[tuple[Trial, Graph], bool]:
    """The trial to choose, and whether it is good enough."""
    most = max((trial for trial, _ in tried), key=lambda trial: trial.agreement)
    if target_drop is None:
        good = [pair for pair in tried if pair[0].agreement >= most.agreement - most.standard_error]
    else:
        good = [pair for pair in tried if _holds(pair[0], target_drop)]
    if good:
        return min(good, key=lambda pair: pair[0].end_to_end_steps), True
    return max(tried, key=lambda pair: pair[0].agreement), False


def _holds(trial: Trial, target_drop: float) -> bool:
    """Whether it disagrees on no more than that; 97 of 100 images are 3 % short, whatever float rounding says."""
    return 100 * (1 - trial.agreement) <= target_drop + 1e-9


def _reason(chosen: Trial, trials: list[Trial], wishes: Auto) -> str:
    """The choice in words."""
    low, high = (100 * share for share in chosen.disagreement_interval)
    said = (
        f"{chosen.recipe} at T = {chosen.timesteps} disagrees with the ANN on {100 * (1 - chosen.agreement):.1f} % of "
        f"{chosen.images} held-out calibration images (95 % interval {low:.1f} to {high:.1f} %) and answers after "
        f"{chosen.end_to_end_steps} steps"
    )
    drop = wishes.target_drop
    if drop is None:
        by = f"that answer by step {wishes.latency or LATENCY}"
        why = f"of those {by} and are within one standard error of the best, the fastest and then the plainest"
    elif _holds(chosen, drop):
        why = f"the smallest latency that disagrees on no more than {drop:g} % of them"
    else:
        why = f"the best there is: none disagrees on no more than {drop:g} % of them"
    others = "; ".join(
        f"{t.recipe} at T = {t.timesteps}: {100 * (1 - t.agreement):.1f} % in {t.end_to_end_steps} steps"
        for t in trials
        if t is not chosen
    )
    tried = f" Tried besides: {others}." if others else ""
    return f"{said}: {why}. What it loses on other images is for evaluate to say.{tried}"
