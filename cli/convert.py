"""``sresnet convert``: from a checkpoint to a network.snn."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .begin import begin
from .checks import check_classes, open_matched, shown_warnings, suggestion, warn_left_out
from .converted import left_out, next_step, summary
from .networks import check_checkpoint
from .options import CLASSES, DEVICE, DOWNLOAD, FORCE
from .output import check_output, network_path
from .say import say

Triple = tuple[float, float, float]
# Those of s_resnet.RECIPES, which takes seconds to import, and auto.
RECIPES = (
    "s-resnet",
    "s-resnet-released",
    "calibrated",
    "calibrated-streaming",
    "phased",
    "signed",
    "multilevel",
    "auto",
)


class _Recipe(click.Choice[str]):
    """One of the recipes; of another word it says which one may have been meant."""

    def __init__(self) -> None:
        super().__init__(RECIPES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        near = difflib.get_close_matches(str(value), RECIPES, 1)
        if value not in RECIPES and near:
            self.fail(f"{value!r} is none of {', '.join(RECIPES)}. Did you mean {near[0]}?", param, ctx)
        return super().convert(value, param, ctx)


def _channels(_: click.Context, option: click.Parameter, value: str | None) -> Triple | None:
    """Three numbers, one per channel, as R,G,B."""
    try:
        red, green, blue = (float(part) for part in value.split(",")) if value else (0.0, 0.0, 0.0)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not three numbers such as 0.485,0.456,0.406", param=option) from error
    return (red, green, blue) if value else None


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, readable=False),
    help="Where to write; by default beside CHECKPOINT, named with recipe and T: resnet50-calibrated-T16.snn.",
)
@FORCE
@click.option(
    "--arch",
    metavar="NAME",
    help="Architecture, where keys and shapes do not tell it: resnet18, cifar_resnet20, ...",
)
@click.option(
    "--recipe",
    metavar="NAME",
    type=_Recipe(),
    help="By default calibrated with --calibration, and s-resnet without. s-resnet (the paper's), s-resnet-released "
    "(its code's); for few steps calibrated, phased, signed, multilevel, or auto, which chooses among these; "
    "calibrated-streaming for a few more where no layer can wait.",
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
    help="The T to tune for; by default the recipe's: 16 for calibrated, 350 for the paper's.",
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
    help="Of the activations, for the paper's recipes; by default 99.9, and 99.99 from 128 pixels on.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Images to calibrate on, which need no labels; without them thresholds come from BatchNorm.",
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
    force: bool,
    arch: str | None,
    recipe: str | None,
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
    DATA is a directory of class folders or of images, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.

    \b
    Examples:
      sresnet convert resnet50.pth --calibration imagenet:/data/imagenet
      sresnet convert resnet50.pth --calibration imagenet:/data/imagenet --weights int8 -o resnet50-int8.snn
      sresnet convert resnet20.th --calibration cifar10:/data --recipe s-resnet --timesteps 128
      sresnet convert resnet20.th --calibration cifar10:/data --recipe phased --timesteps 8 --reconstruct
      sresnet convert resnet20.th --calibration cifar10:/data --recipe auto --spikes signed --target-drop 1
      sresnet convert resnet18.pth --input-size 64 --calibration photos/train -o photos.snn
    """
    begin(checkpoint)
    import s_resnet

    check_checkpoint(Path(checkpoint))
    s_resnet.runtime.find_device(device)
    request = s_resnet.conversion.Request(recipe, timesteps, percentile, weights, reconstruct, spikes, target_drop)
    if not calibration and (classes == "natural" or _given("calibration_images") or download):
        raise click.UsageError(
            "--calibration-images, --download and --classes natural are of --calibration. Give both."
        )
    loaded = s_resnet.load_checkpoint(checkpoint, arch)
    if loaded.timesteps is not None and (calibration or input_size or mean or std):
        raise click.UsageError(
            f"{checkpoint} was trained as a spiking network and says on what. Leave out --calibration, "
            "--input-size, --mean and --std."
        )
    usual = network_path(Path(checkpoint), *_described(loaded, request, bool(calibration)))
    target = Path(output) if output else usual
    check_output(target, Path(checkpoint), force=force)
    if loaded.left_out:
        say(left_out(loaded.left_out), err=True)
    preprocessing, origin = _preprocessing(loaded, input_size, mean, std)
    batches: Any = None
    if calibration:
        data = open_matched(calibration, "calibration", download, classes, loaded.classes)
        batches, origin = _calibration(data, calibration_images, preprocessing, loaded)
        if "events" in origin["preprocessing"] and (input_size or mean or std):
            raise click.UsageError("--input-size, --mean and --std are of images; events are binned as in the papers.")
    elif classes:
        origin["classes"] = _names(classes, loaded)
    partial = Path(f"{target}.partial") if reconstruct else None
    if partial is not None and os.path.exists(partial):
        say(_goes_on(partial), err=True)
    with shown_warnings():
        snn = s_resnet.convert(
            *(loaded.model, batches, request.recipe),
            timesteps=request.timesteps,
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
    say(summary(snn, target, batches, usual=recipe is None))
    if other := suggestion(checkpoint, loaded, batches, preprocessing, snn.provenance.get("check", {})):
        say(other)
    say(next_step(snn, target))


def _given(option: str) -> bool:
    """Whether an option that has a default was given by hand."""
    return click.get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE


def _described(loaded: Any, request: Any, with_images: bool) -> list[str]:
    """Recipe, T and what else is asked for, as the network's name says it; raises where they cannot be had."""
    import s_resnet

    recipe, steps = request.recipe, request.timesteps
    if loaded.timesteps is not None:
        recipe, steps = "trained", loaded.timesteps
    elif isinstance(loaded.model, s_resnet.frontend.QCFSModule):
        recipe, steps = f"qcfs-{'phased' if recipe == 'phased' else 'streaming'}", steps or loaded.model.levels
    else:
        plan = request.plan(with_images)
        if request.percentile is not None and (plan is None or plan.fits):
            raise click.UsageError(
                f"--percentile is of the paper's recipes; {recipe or 'calibrated'} finds its thresholds by their "
                "error. Leave it out, or choose --recipe s-resnet."
            )
        if plan is not None:
            recipe, steps = plan.name, steps or plan.timesteps
    words = [recipe]
    if request.spikes is not None:
        words.append(request.spikes)
    words.append(f"T{steps or 16}" if request.target_drop is None else f"drop{request.target_drop:g}")
    if request.weights != "float32":
        words.append(request.weights)
    return [*words, "reconstructed"] if request.reconstruct else words


def _names(wish: str, loaded: Any) -> list[str]:
    """The names of the network's classes from a file, where no data are looked at."""
    import s_resnet

    names = s_resnet.data.read_names(wish)
    if len(names) != loaded.num_classes:
        raise s_resnet.errors.InvalidData(
            f"classes {wish!r}: got {len(names)} names for a network of {loaded.num_classes}; expected one for each "
            "class, one per line. Correct the file."
        )
    return list(names)


def _goes_on(partial: Path) -> str:
    """How much an interrupted reconstruction has finished."""
    import s_resnet

    done = len(s_resnet.load(partial).provenance.get("reconstruction", {}).get("blocks", ()))
    return f"{partial} holds {done} finished parts of a reconstruction, to go on from."


def _preprocessing(
    loaded: Any, input_size: int | None, mean: Triple | None, std: Triple | None
) -> tuple[Any, dict[str, Any]]:
    """How images are prepared, as asked for or as the network was trained, and what the artifact keeps of it."""
    import s_resnet

    origin: dict[str, Any]
    if loaded.preprocessing is not None and not (input_size or mean or std):
        preprocessing: Any = s_resnet.data.read_preprocessing(loaded.preprocessing)
        origin = {"preprocessing": dict(loaded.preprocessing)}
    else:
        preprocessing = s_resnet.data.preprocessing_for(
            input_size or loaded.input_size,
            mean or s_resnet.data.IMAGENET_MEAN,
            std or s_resnet.data.IMAGENET_STD,
            gray=loaded.channels == 1,
        )
        origin = {"preprocessing": s_resnet.data.stored_preprocessing(preprocessing)}
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

    names = data.classes
    if names and len(names) > loaded.num_classes:
        check_classes(data, loaded.num_classes)
    indices = s_resnet.data.choose(data, count)
    if 0 < len(names) < loaded.num_classes:
        say(
            f"Labels are not used: the data have {len(names)} classes, the network {loaded.num_classes}, and nothing "
            "says which of them they are. --classes FILE would: the names of all the network's classes in order.",
            err=True,
        )
        data, names = s_resnet.data.without_labels(data), ()
    batches: Any
    if loaded.channels not in (1, 3) and not isinstance(data, s_resnet.data.EventData):
        raise s_resnet.errors.InvalidData(
            f"data {data.spec!r}: got images for a network of {loaded.channels} channels; expected one of 3 (RGB) or 1 "
            "(gray). Convert it from Python, with batches [B, C, H, W] of its own images."
        )
    if isinstance(data, s_resnet.data.EventData):
        preprocessing = data.binning
        batches = s_resnet.data.EventLoader(data, indices, preprocessing, batch_size=32, mean=True)
    else:
        batches = s_resnet.data.ImageLoader(data, indices, preprocessing, batch_size=32)
    marks = s_resnet.data.fingerprints(data, indices)
    kept = {"spec": data.spec, "split": data.split, "images": len(indices), "fingerprints": marks}
    stored = s_resnet.data.stored_preprocessing(preprocessing)
    origin = {"data": kept, "preprocessing": stored}
    return batches, {**origin, "classes": list(names)} if names else origin
