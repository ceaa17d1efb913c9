"""What is said about a network that was made: what it is, what looks wrong with it, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .inputs import find_images, timesteps_for
from .output import command
from .say import say
from .shared import Images

if TYPE_CHECKING:
    import s_resnet

    from .inputs import Preprocessing


def left_out(names: Sequence[str]) -> str:
    """Which tensors of the checkpoint are not part of the network; their names come from the file."""
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in name[:80]) for name in names[:3])
    return f"Left out {len(names)} tensor(s) that belong to no layer: {shown}{', ...' if len(names) > 3 else ''}"


def assumed(loaded: s_resnet.frontend.Checkpoint) -> str:
    """What the network does as its file does not tell it, and the option that chooses otherwise."""
    import s_resnet

    why = "since no checkpoint tells (--arch chooses otherwise)"
    if isinstance(loaded.model, s_resnet.frontend.Program):
        why = "since the file does not tell (--input-size chooses otherwise)"
    return f"Assumed, {why}: {', '.join(loaded.assumed)}"


def which_weights(loaded: s_resnet.frontend.Checkpoint) -> str:
    """Which of the checkpoint's weights were taken, and how to take the others; their names come from the file."""
    said = "".join(c if c.isprintable() else "?" for c in loaded.weights)
    if "also holds" in said:
        said += " (leave out --ema to take it)" if loaded.ema else " (--ema takes it)"
    return f"Weights: {said}"


def without_images(snn: s_resnet.Graph) -> str | None:
    """What stood in for calibration images; None if there were some, or none were needed."""
    known = snn.provenance.calibration
    if known.source == "batchnorm":
        return "No --calibration: thresholds and compensation come from the BatchNorm statistics."
    if known.source == "distilled":
        return (
            f"No --calibration: fitted to {known.fitted} images made from BatchNorm statistics (seed {known.seed}). "
            "Real images, even a few, need fewer time steps; --recipe s-resnet takes seconds, and more time steps."
        )
    return None


def summary(snn: s_resnet.Graph, target: Path, batches: s_resnet.data.Loader | None, usual: bool) -> str:
    """What was converted and from what.

    Args:
        snn: the network.
        target: its file.
        batches: the calibration images, or None.
        usual: whether the recipe is the default one.
    """
    known, timesteps = snn.provenance, timesteps_for(snn, target)
    if snn.trained:
        return (
            f"{target}: {known.source.arch}, trained as a spiking network for T = {timesteps}, "
            f"{len(snn.neurons)} neuron layers, spikes: {snn.alphabet}"
        )
    integer = ", int8 weights" if snn.is_integer else ""
    lines = [
        f"{target}: {known.source.arch}, recipe {known.recipe.name}{integer}, "
        f"{len(snn.neurons)} neuron layers, {_used(snn)}"
    ]
    if batches is not None:
        data = batches.data
        lines.append(
            f"Calibrated on {data.spec} ({data.split}), {known.data.images or batches.images:,} of {len(data):,} images"
        )
    if usual and batches is not None:
        lines.append(
            f"Recipe {known.recipe.name} is the default with calibration images; --recipe s-resnet is the "
            "paper's, for hundreds of steps"
        )
    if snn.fitted:
        those = ", ".join(map(str, snn.fitted))
        lines.append(f"T = {those}: one network, its weights fitted at T = {timesteps}, its other numbers at each")
    waited = snn.end_to_end_steps(timesteps)
    if waited != timesteps:
        lines.append(f"T = {timesteps} input steps; the answer comes after {waited} steps")
    if known.choice.reason is not None:
        lines.append(known.choice.reason)
    if known.reconstruction:
        lines.append(_reconstructed(known.reconstruction))
    if known.calibration.silent:
        lines.append(f"Never active, so their threshold is 1: {', '.join(known.calibration.silent)}")
    if known.check:
        lines.append(_source_line(known.check))
    return "\n".join(lines)


def suggestion(
    path: Path,
    loaded: s_resnet.frontend.Checkpoint,
    batches: s_resnet.data.Loader | None,
    preprocessing: Preprocessing,
    snn: s_resnet.Graph,
) -> str | None:
    """If the images do not fit the network, which other choices would; else None."""
    import s_resnet

    found = snn.provenance.check.batchnorm
    if found is None or found.first is None or loaded.data is not None:
        return None
    if not isinstance(batches, s_resnet.data.ImageLoader):
        return None
    assert isinstance(preprocessing, s_resnet.data.Preprocessing)
    images, _ = next(iter(batches))
    say("Trying other input sizes, mean and std, and variants of the architecture ...", err=True)
    fitting = s_resnet.conversion.alternatives(path, loaded, images, preprocessing)
    misfit = f"The images do not fit the network, first at {found.first} (score {found.score:.2f}, should be below 1)"
    if fitting:
        options = " or ".join(f"{one.options} (score {one.score:.2f})" for one in fitting[:2])
        return f"{misfit}. They would fit with {options}"
    if isinstance(loaded.model, s_resnet.frontend.Program):
        return f"{misfit}, and not with other sizes, mean and std either. Prepare them as in training"
    others = "other sizes, mean and std" + (" or --arch" if loaded.variants else "")
    return (
        f"{misfit}, and not with {others} either. If {path.name} is another network than {loaded.arch}, convert it "
        "from Python: s_resnet.convert(model, batches)"
    )


def next_step(snn: s_resnet.Graph, target: Path) -> str:
    """A command to go on with, which works as it stands: the images it would look for are looked for here."""
    import s_resnet

    evaluate = command("evaluate", target)
    layers = (s_resnet.graph.ops.Conv2d, s_resnet.graph.ops.Linear, s_resnet.graph.Neuron)
    last = next((node.op for node in reversed(snn.nodes) if isinstance(node.op, layers)), None)
    if isinstance(last, s_resnet.graph.Neuron):  # no classifier behind the last layer
        return f"Next: {command('inspect', target)}\nIts answers are features: there are no classes to evaluate."
    try:
        find_images(snn, target, Images(None, None, None, download=False))
    except (s_resnet.SResNetError, click.UsageError):  # no labeled images are left to evaluate on
        return f"Next: {command('inspect', target)}\nTo evaluate it, name labeled images: {evaluate} --data DATA"
    return f"Next: {evaluate}"


def _source_line(check: s_resnet.graph.provenance.SourceSummary) -> str:
    """How well the ANN does on the first calibration images."""
    assert check.images is not None
    sure = f"mean confidence {check.confidence:.2f}"
    if check.right is None:
        return f"The ANN on {check.images} calibration images without usable labels: {sure}"
    share = f"{check.right / check.images:.1%}"
    return f"The ANN is right on {check.right} of {check.images} calibration images: {share}, {sure}"


def _used(snn: s_resnet.Graph) -> str:
    """What thresholds, weights and compensation come from, and from how many images each."""
    calibration, compensation = snn.provenance.calibration, snn.provenance.compensation
    count = f"{calibration.fitted or calibration.images} images"
    whence = {
        "batchnorm": "BatchNorm statistics",
        "training": "its training",
        "distilled": f"{count} made from BatchNorm statistics",
    }
    what = "thresholds"
    if calibration.fitted:
        what += " and weights" if _weights_fitted(snn) else " and currents"
    used = f"{what} from {whence.get(calibration.source or '', count)}"
    if compensation:
        used += f", compensation {compensation.factor:.4f}"
        used += f" from {compensation.images} others" if compensation.images is not None else ""
        tried = [point.factor for point in compensation.curve or ()]
        used += " (the largest tried)" if len(tried) > 1 and compensation.factor == tried[-1] else ""
    return used


def _weights_fitted(snn: s_resnet.Graph) -> bool:
    """Whether a pass fitted weights, not only thresholds and currents."""
    passes = snn.provenance.recipe.passes or ()
    return all(done.extra.get("weights", True) for done in passes if done.name == "calibrate_neurons")


def _reconstructed(found: s_resnet.graph.provenance.Reconstruction) -> str:
    """What the reconstruction achieved, and whether its time was too short."""
    if not found.taken:
        return "Reconstruction did not bring the spikes closer to the ANN: the network is unchanged."
    assert found.asked is not None and found.blocks is not None
    steps = sum(block.steps for block in found.blocks)
    better = sum(block.better for block in found.blocks)
    result = (
        f"Reconstructed on {found.images} images: {better} of {len(found.blocks)} parts better, "
        f"{steps:,} of {found.asked.total:,} steps"
    )
    if steps < found.asked.total:
        result += (
            f", because its {found.asked.minutes:g} minutes ran out. For more time: s_resnet.convert with the recipe's "
            ".reconstructed(minutes=...)"
        )
    return f"{result}."
