"""Recipe "auto": try what the target allows on calibration images kept apart, choose, and say why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..data.intervals import wilson
from ..errors import ConversionError, InvalidData
from ..graph.graph import Graph
from ..runtime.display import Displayed
from ..runtime.progress import Progress
from .apply_recipe import apply_recipe
from .calibrate import Calibration
from .recipes import RECIPES, Recipe

# What each alphabet allows, the plainest first: a target that can send signed spikes can send binary ones.
ALPHABETS = {
    "binary": ("calibrated", "phased"),
    "signed": ("calibrated", "phased", "signed"),
    "levels": ("calibrated", "phased", "signed", "multilevel"),
}
WINDOWS = (4, 8, 16, 32, 64)  # tried in turn for a target drop
BATCH = 32


@dataclass(frozen=True, repr=False)
class Trial(Displayed):
    """A recipe at a T: its agreement with the ANN on the images kept apart, one standard error of it, its latency.

    disagreement_interval: the 95 % interval of the share that it answers otherwise than the ANN, of ``images``.
    """

    recipe: str
    timesteps: int
    end_to_end_steps: int
    agreement: float
    standard_error: float
    images: int
    disagreement_interval: tuple[float, float]


def check_wishes(spikes: str | None, target_drop: float | None, timesteps: int | None) -> None:
    """Raise InvalidData for an unknown alphabet, or a drop or a T that is none."""
    if spikes is not None and spikes not in ALPHABETS:
        raise InvalidData(f"auto: got spikes {spikes!r}; expected one of {', '.join(ALPHABETS)}. Choose one of them.")
    if target_drop is not None and not 0 < target_drop < 100:
        raise InvalidData(
            f"auto: got target_drop={target_drop}; expected points between 0 and 100. Pass one such as 1."
        )
    if timesteps is not None and timesteps < 1:
        raise InvalidData(f"auto: got timesteps={timesteps}; expected at least 1. Leave it out for 16.")
    if target_drop is not None and timesteps is not None:
        raise InvalidData(
            "auto: got timesteps and target_drop; expected one of them, to find the other. Leave one out."
        )


def choose_recipe(
    graph: Graph,
    calibration: Calibration,
    spikes: str = "binary",
    timesteps: int | None = None,
    target_drop: float | None = None,
    *,
    complete: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    progress: bool = False,
) -> Graph:
    """Convert with every recipe that the alphabet allows, and keep the one that serves best.

    Their agreement with the ANN is measured on calibration images that no pass has fitted to, without labels. The share
    that they disagree on bounds the drop in accuracy on those images from above, in the interval that the choice says;
    on images that the ANN was not trained on, which it is less sure of, a network may lose more.

    * Given T (16 by default): of the recipes whose agreement is within one standard error of the best, the one that
      answers first, end to end; of equally fast ones the plainest.
    * Given a target drop in points: the smallest T of 4, 8, 16, 32, 64 at which a recipe disagrees on no more than that
      percentage of the images; of those recipes the fastest, end to end. Where none does, the best at the largest T.

    The trials, the choice and the reason go into the provenance as ``choice``.

    Args:
        spikes: ``"binary"``, ``"signed"`` or ``"levels"``.
        complete: applied to a recipe before it is tried.

    Raises ConversionError without calibration images, InvalidData for wishes that do not fit.
    """
    check_wishes(spikes, target_drop, timesteps)
    if calibration.samples is None:
        raise ConversionError(
            "auto: got no calibration images to choose by; expected some. Pass calibration_batches, or choose s-resnet."
        )
    windows = (timesteps or 16,) if target_drop is None else WINDOWS
    trials: list[Trial] = []
    best: tuple[Trial, Graph] | None = None
    names = ALPHABETS[spikes]
    with Progress[None](total=len(names) * len(windows), desc="auto", unit="recipe", shown=progress) as bar:
        for window in windows:
            tried: list[tuple[Trial, Graph]] = []
            for name in names:
                snn = apply_recipe(graph, calibration, complete(RECIPES[name]), window, progress)
                tried.append((_trial(name, snn, calibration, window), snn))
                bar.update()
            trials += [trial for trial, _ in tried]
            best, enough = _best(tried, target_drop)
            if enough:
                break
    assert best is not None
    reason = _reason(best[0], trials, target_drop)
    said = {"spikes": spikes, "reason": reason, "trials": [_plain(trial) for trial in trials]}
    return best[1].with_provenance(choice=said)


def _trial(name: str, snn: Graph, calibration: Calibration, timesteps: int) -> Trial:
    assert calibration.samples is not None
    same = 0
    for images in torch.split(calibration.samples.images, BATCH):
        same += int((snn(images, timesteps).argmax(1) == snn.run(images).argmax(1)).sum())
    count = len(calibration.samples.images)
    share = same / count
    # Of the share with one more of each kind: no share is known for certain.
    smoothed = (same + 1) / (count + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / count)
    differ = wilson(count - same, count)
    return Trial(name, timesteps, snn.end_to_end_steps(timesteps), share, error, count, differ)


def _plain(trial: Trial) -> dict[str, Any]:
    """As JSON has it."""
    return {**vars(trial), "disagreement_interval": list(trial.disagreement_interval)}


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
    """Whether it disagrees on no more than that; 97 of 100 images are 3 % short, whatever floats make of it."""
    return 100 * (1 - trial.agreement) <= target_drop + 1e-9


def _reason(chosen: Trial, trials: list[Trial], target_drop: float | None) -> str:
    """The choice in words."""
    others = "; ".join(
        f"{t.recipe} at T = {t.timesteps}: {100 * (1 - t.agreement):.1f} % in {t.end_to_end_steps} steps"
        for t in trials
        if t is not chosen
    )
    low, high = (100 * share for share in chosen.disagreement_interval)
    said = (
        f"{chosen.recipe} at T = {chosen.timesteps} disagrees with the ANN on {100 * (1 - chosen.agreement):.1f} % of "
        f"{chosen.images} held-out calibration images (95 % interval {low:.1f} to {high:.1f} %) and answers after "
        f"{chosen.end_to_end_steps} steps"
    )
    if target_drop is None:
        why = "the fastest of those within one standard error of the best"
    elif _holds(chosen, target_drop):
        why = f"the smallest T that disagrees on no more than {target_drop:g} % of them"
    else:
        why = f"the best there is: none disagrees on no more than {target_drop:g} % of them"
    tried = f" Tried besides: {others}." if others else ""
    return f"{said}: {why}. What it loses on other images is for evaluate to say.{tried}"
