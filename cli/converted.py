"""What ``sresnet convert`` says of the network that it made, and of how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .checks import source_line
from .evaluate import Images, find_images
from .output import command


def left_out(names: tuple[str, ...]) -> str:
    """What of the checkpoint is no part of the network; names from files keep to the line."""
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in name[:80]) for name in names[:3])
    return f"Left out {len(names)} tensor(s) that no layer has: {shown}{', ...' if len(names) > 3 else ''}"


def summary(snn: Any, target: Path, batches: Any, usual: bool) -> str:
    """What was made of what, and what about it is worth to know. usual: whether the recipe was not asked for."""
    provenance = snn.provenance
    timesteps = provenance["recipe"]["timesteps"]
    if snn.trained:
        return (
            f"{target}: {provenance['source']['arch']}, trained as a spiking network for T = {timesteps}, "
            f"{len(snn.neurons)} neuron layers, spikes: {snn.alphabet}"
        )
    calibration = provenance["calibration"]
    integer = ", int8 weights" if snn.integer else ""
    silent = calibration["silent"]
    lines = [
        f"{target}: {provenance['source']['arch']}, recipe {provenance['recipe']['name']}{integer}, "
        f"{len(snn.neurons)} neuron layers, {_used(calibration, provenance.get('compensation'))}"
    ]
    if batches is not None:
        data = batches.data
        lines.append(f"Calibrated on {data.spec} ({data.split}), {batches.images:,} of {len(data):,} images")
    if usual and batches is not None:
        lines.append(
            f"Recipe {provenance['recipe']['name']} is the default with calibration images; --recipe s-resnet is the "
            "paper's, for hundreds of steps"
        )
    waited = snn.end_to_end_steps(timesteps)
    if waited != timesteps:
        lines.append(f"T = {timesteps} steps of input, an answer after {waited} steps")
    if "choice" in provenance:
        lines.append(provenance["choice"]["reason"])
    if "reconstruction" in provenance:
        lines.append(_reconstructed(**provenance["reconstruction"]))
    if silent:
        lines.append(f"Never active, threshold 1: {', '.join(silent)}")
    if "check" in provenance:
        lines.append(source_line(provenance["check"]))
    return "\n".join(lines)


def next_step(snn: Any, target: Path) -> str:
    """A command that goes on from here, tried as far as what it would look for."""
    import s_resnet

    evaluate = command("evaluate", target)
    try:
        find_images(snn, target, Images(None, None, 1, download=False))
    except (s_resnet.SResNetError, click.UsageError):  # nothing labeled is left to evaluate on
        return f"Next: {command('inspect', target)}\nTo evaluate it, name labeled images: {evaluate} --data DATA"
    return f"Next: {evaluate}"


def _used(calibration: dict[str, Any], compensation: dict[str, Any] | None) -> str:
    """What thresholds, weights and compensation come from, and from how many images each."""
    fitted = calibration["fitted"]
    count = f"{fitted or calibration['images']} images"
    how = {"batchnorm": "BatchNorm statistics", "training": "its training"}.get(calibration["source"], count)
    said = f"thresholds{' and weights' if fitted else ''} from {how}"
    if compensation:
        said += f", compensation {compensation['factor']:.4f}"
        said += f" from {compensation['images']} others" if "images" in compensation else ""
        tried = [point["factor"] for point in compensation["curve"]]
        said += " (the largest that was tried)" if len(tried) > 1 and compensation["factor"] == tried[-1] else ""
    return said


def _reconstructed(asked: dict[str, Any], images: int, blocks: list[dict[str, Any]], taken: bool) -> str:
    """What came of the reconstruction, and whether its time was too short."""
    if not taken:
        return "Reconstruction brought the spikes no closer: the network is what it is without."
    steps = sum(block["steps"] for block in blocks)
    better = sum(block["better"] for block in blocks)
    said = f"Reconstructed on {images} images: {better} of {len(blocks)} parts better, "
    said += f"{steps:,} of {asked['total']:,} steps"
    if steps < asked["total"]:
        said += (
            f", as its {asked['minutes']:g} minutes were over. More: s_resnet.convert with the recipe's "
            '.reconstructed().set("reconstruct", minutes=...)'
        )
    return f"{said}."
