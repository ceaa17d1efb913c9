"""``sresnet convert``: from a checkpoint to a network.snn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .checks import check_classes, open_matched, shown_warnings, source_line, suggestion, warn_left_out
from .options import CLASSES, DEVICE, DOWNLOAD
from .say import say

Triple = tuple[float, float, float]


def _channels(_: click.Context, option: click.Parameter, value: str | None) -> Triple | None:
    """Three numbers, one per channel, as R,G,B."""
    try:
        red, green, blue = (float(part) for part in value.split(",")) if value else (0.0, 0.0, 0.0)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not three numbers such as 0.485,0.456,0.406", param=option) from error
    return (red, green, blue) if value else None


def check_output(path: Path, *inputs: Path) -> None:
    """Raise before hours of work are lost, or an input with them."""
    import s_resnet

    exists = os.path.exists(path)  # unlike Path.exists false also for a name that is too long
    if exists and any(os.path.exists(source) and path.samefile(source) for source in inputs):
        raise click.UsageError(f"{path} would be written over itself. Choose another name for what is written.")
    if exists and not path.is_file():
        raise click.UsageError(f"{path} is a device or a pipe, and would be replaced. Choose the name of a file.")
    if not os.path.isdir(path.parent):
        raise s_resnet.SResNetError(
            f"{path}: cannot be written, got no folder {path.parent}; expected one that exists. Make it first."
        )
    if not os.access(path.parent, os.W_OK):
        raise s_resnet.SResNetError(
            f"{path}: cannot be written, got no permission in {path.parent}; expected a writable folder. "
            "Choose another place."
        )


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, readable=False),
    help="Where to write; by default CHECKPOINT with .snn.",
)
@click.option(
    "--arch",
    metavar="NAME",
    help="Architecture, where keys and shapes do not tell it: resnet18, cifar_resnet20, ...",
)
@click.option(
    "--recipe",
    metavar="NAME",
    default="s-resnet",
    show_default=True,
    help="s-resnet (the paper's), s-resnet-released (its code's); for few steps calibrated, phased, signed, "
    "multilevel, or auto, which chooses among these; calibrated-streaming for a few more where no layer can wait.",
)
@click.option(
    "--weights",
    type=click.Choice(["float32", "dyadic", "int8"]),
    default="float32",
    show_default=True,
    help="dyadic rounds them so that float32 sums are exact: the same spikes on every device and engine. int8 makes an "
    "integer network: int8 weights, int32 thresholds and membranes.",
)
@click.option(
    "--timesteps",
    metavar="T",
    type=click.IntRange(1),
    help="The T to tune for; by default the recipe's: 350 for the paper's, 16 or 4 for the others.",
)
@click.option(
    "--reconstruct",
    is_flag=True,
    help="Also train the spiking weights to give what the ANN's blocks give, without labels; minutes, and resumed "
    "after an interruption from OUT.snn.partial. For recipes for few steps.",
)
@click.option(
    "--spikes",
    type=click.Choice(["binary", "signed", "levels"]),
    help="For --recipe auto: what the target can send. binary: 0 or 1; signed: also -1; levels: up to 15 either way. "
    "By default binary.",
)
@click.option(
    "--target-drop",
    metavar="POINTS",
    type=float,
    help="For --recipe auto, in place of --timesteps: find the smallest T that disagrees with the ANN on no more "
    "percent of held-out calibration images, which bounds the drop on those.",
)
@click.option(
    "--percentile",
    metavar="P",
    type=click.FloatRange(0, 100, min_open=True),
    help="Of the activations; by default 99.9, and 99.99 from 128 pixels on.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Images to calibrate on; without them thresholds come from BatchNorm.",
)
@click.option(
    "--calibration-images",
    metavar="N",
    type=click.IntRange(2),
    default=1024,
    show_default=True,
    help="How many of them, a seeded random choice over all classes.",
)
@click.option(
    "--input-size",
    metavar="N",
    type=click.IntRange(1),
    help="Pixels per side; by default 32 for CIFAR networks, 224 else.",
)
@click.option(
    "--mean", metavar="R,G,B", callback=_channels, help="Of the training images in [0, 1]; by default ImageNet's."
)
@click.option(
    "--std", metavar="R,G,B", callback=_channels, help="Of the training images in [0, 1]; by default ImageNet's."
)
@CLASSES
@DEVICE
@DOWNLOAD
def convert(
    checkpoint: str,
    output: str | None,
    arch: str | None,
    recipe: str,
    weights: str,
    timesteps: int | None,
    reconstruct: bool,
    spikes: str | None,
    target_drop: float | None,
    percentile: float | None,
    calibration: str | None,
    calibration_images: int,
    input_size: int | None,
    mean: Triple | None,
    std: Triple | None,
    classes: str | None,
    device: str,
    download: bool,
) -> None:
    """Convert the trained ResNet in CHECKPOINT into a spiking network.

    The architecture is read from keys and shapes: torchvision's ResNets, ResNeXts and wide ResNets, and CIFAR ResNets.
    A checkpoint of `sresnet train` says itself what it is; a spiking one is written down as it is, for its own T.

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.

    \b
    Examples:
      sresnet convert resnet50.pth --calibration imagenet:/data/imagenet
      sresnet convert resnet50.pth --calibration imagenet:/data/imagenet --weights int8 -o resnet50-int8.snn
      sresnet convert resnet20.th --calibration cifar10:/data --timesteps 128
      sresnet convert resnet20.th --calibration cifar10:/data --recipe phased --timesteps 8 --reconstruct
      sresnet convert resnet20.th --calibration cifar10:/data --recipe auto --spikes signed --target-drop 1
      sresnet convert resnet18.pth --input-size 64 --calibration photos/train -o photos.snn
    """
    import s_resnet

    s_resnet.find_device(device)
    loaded = s_resnet.load_checkpoint(checkpoint, arch)
    if loaded.left_out:
        say(_left_out(loaded.left_out), err=True)
    target = Path(output) if output else Path(checkpoint).with_suffix(".snn")
    check_output(target, Path(checkpoint))
    if loaded.timesteps is not None and (calibration or input_size or mean or std):
        raise click.UsageError(
            f"{checkpoint} was trained as a spiking network and says on what. Leave out --calibration, "
            "--input-size, --mean and --std."
        )
    preprocessing, origin = _preprocessing(loaded, input_size, mean, std)
    batches: Any = None
    if calibration:
        data = open_matched(calibration, "calibration", download, classes, loaded.classes)
        batches, origin = _calibration(data, calibration_images, preprocessing, loaded)
        if "events" in origin["preprocessing"] and (input_size or mean or std):
            raise click.UsageError("--input-size, --mean and --std are of images; events are binned as in the papers.")
    partial = Path(f"{target}.partial") if reconstruct else None
    if partial is not None and os.path.exists(partial):
        say(_goes_on(partial), err=True)
    with shown_warnings():
        snn = s_resnet.convert(
            loaded.model,
            batches,
            recipe,
            timesteps=timesteps,
            percentile=percentile,
            input_size=loaded.input_size if loaded.timesteps is not None else preprocessing.size,
            weights=weights,
            reconstruct=reconstruct,
            resume=partial,
            spikes=spikes,
            target_drop=target_drop,
            device=device,
            progress=True,
        )
    if snn.provenance["calibration"]["source"] == "batchnorm":
        say("No --calibration: thresholds and compensation come from the BatchNorm statistics.", err=True)
    snn = snn.with_provenance(source=_source(loaded), **origin)
    s_resnet.save(snn, target)
    if partial is not None:
        partial.unlink(missing_ok=True)
    if batches is not None:
        warn_left_out(batches)
    say(_summary(snn, target))
    if other := suggestion(checkpoint, loaded, batches, preprocessing, snn.provenance.get("check", {})):
        say(other)


def _goes_on(partial: Path) -> str:
    """How much an interrupted reconstruction has finished."""
    import s_resnet

    done = len(s_resnet.load(partial).provenance.get("reconstruction", {}).get("blocks", ()))
    return f"{partial} holds {done} finished parts of the reconstruction: it goes on from there."


def _preprocessing(
    loaded: Any, input_size: int | None, mean: Triple | None, std: Triple | None
) -> tuple[Any, dict[str, Any]]:
    """How images are prepared, as asked for or as the network was trained, and what the artifact keeps of it."""
    import s_resnet

    origin: dict[str, Any]
    if loaded.preprocessing is not None and not (input_size or mean or std):
        preprocessing: Any = s_resnet.read_preprocessing(loaded.preprocessing)
        origin = {"preprocessing": dict(loaded.preprocessing)}
    else:
        preprocessing = s_resnet.preprocessing_for(
            input_size or loaded.input_size,
            mean or s_resnet.IMAGENET_MEAN,
            std or s_resnet.IMAGENET_STD,
            gray=loaded.channels == 1,
        )
        origin = {"preprocessing": s_resnet.stored_preprocessing(preprocessing)}
    if loaded.data is not None:
        origin |= {"data": dict(loaded.data), "classes": list(loaded.classes)}
    return preprocessing, origin


def _source(loaded: Any) -> dict[str, Any]:
    """What the artifact says of the checkpoint."""
    return {
        "name": loaded.name,
        "arch": f"{loaded.arch} (our interpretation)" if loaded.arch.startswith("danet") else loaded.arch,
        "classes": loaded.num_classes,
        "sha256": loaded.digest,
    }


def _calibration(data: Any, count: int, preprocessing: Any, loaded: Any) -> tuple[Any, dict[str, Any]]:
    """A loader of the calibration images, or of the mean frames of events, and what the artifact keeps of them."""
    import s_resnet

    check_classes(data, loaded.num_classes)
    indices = s_resnet.choose(data, count)
    batches: Any
    if loaded.channels not in (1, 3) and not isinstance(data, s_resnet.EventData):
        raise s_resnet.InvalidData(
            f"data {data.spec!r}: got images for a network of {loaded.channels} channels; expected one of 3 (RGB) or 1 "
            "(gray). Convert it from Python, with batches [B, C, H, W] of its own images."
        )
    if isinstance(data, s_resnet.EventData):
        preprocessing = data.binning
        batches = s_resnet.EventLoader(data, indices, preprocessing, batch_size=32, mean=True)
    else:
        batches = s_resnet.ImageLoader(data, indices, preprocessing, batch_size=32)
    marks = s_resnet.fingerprints(data, indices)
    kept = {"spec": data.spec, "split": data.split, "images": len(indices), "fingerprints": marks}
    stored = s_resnet.stored_preprocessing(preprocessing)
    return batches, {"data": kept, "classes": list(data.classes), "preprocessing": stored}


def _left_out(names: tuple[str, ...]) -> str:
    """What of the checkpoint is no part of the network; names from files keep to the line."""
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in name[:80]) for name in names[:3])
    return f"Left out {len(names)} tensor(s) that no layer has: {shown}{', ...' if len(names) > 3 else ''}"


def _summary(snn: Any, target: Path) -> str:
    provenance = snn.provenance
    timesteps = provenance["recipe"]["timesteps"]
    if snn.trained:
        return (
            f"{target}: {provenance['source']['arch']}, trained as a spiking network for T = {timesteps}, "
            f"{len(snn.neurons)} neuron layers, spikes: {snn.alphabet}\n"
            f"Next: sresnet evaluate {target} --timesteps {timesteps}"
        )
    calibration = provenance["calibration"]
    integer = ", int8 weights" if snn.integer else ""
    silent = calibration["silent"]
    lines = [
        f"{target}: {provenance['source']['arch']}, recipe {provenance['recipe']['name']}{integer}, "
        f"{len(snn.neurons)} neuron layers, {_used(calibration, provenance.get('compensation'))}"
    ]
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
    lines.append(f"Next: sresnet evaluate {target} --timesteps {timesteps}")
    return "\n".join(lines)


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
