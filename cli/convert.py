"""``sresnet convert``: from a checkpoint to a network.snn."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from . import shared
from .calibration import Source, calibration_source, checkpoint_source, preprocessing_of, read_class_names
from .converted import assumed, left_out, next_step, suggestion, summary, which_weights, without_images
from .inputs import check_checkpoint, open_matched
from .notes import shown_warnings, warn_left_out
from .output import check_output, network_path
from .recipe import RecipeOptions
from .say import begin, hushed, say

if TYPE_CHECKING:
    import s_resnet

    Wished = s_resnet.Recipe | s_resnet.conversion.Auto

# The names in s_resnet.RECIPES, which takes seconds to import, and auto.
RECIPES = (
    "s-resnet",
    "s-resnet-v0",
    "s-resnet-released",
    "calibrated",
    "calibrated-constant",
    "calibrated-currents",
    "calibrated-fission",
    "calibrated-lagged",
    "phased",
    "signed",
    "multilevel",
    "auto",
)
RENAMED = {"calibrated-streaming": "calibrated-constant"}
# Those in s_resnet.conversion.PUBLISHED.
PUBLISHED = (
    "max-norm",
    "robust-norm",
    "rmp",
    "opi",
    "snn-calibration-light",
    "snn-calibration",
    "ftbc",
    "ltb",
    "parallel",
    "h-mt-4",
    "h-mt-8",
    "dcgs-4",
    "dcgs-8",
)


@dataclass(frozen=True)
class Options:
    """What was asked of ``sresnet convert``."""

    checkpoint: Path
    output: Path | None
    force: bool
    arch: str | None
    ema: bool
    recipe: str | None
    weights: str
    timesteps: tuple[int, ...] | None
    reconstruct: bool
    spikes: str | None
    target_drop: float | None
    latency: int | None
    no_step_currents: bool
    no_delays: bool
    lag: str | None
    percentile: float | None
    calibration: str | None
    calibration_images: int
    input_size: int | None
    mean: shared.Triple | None
    std: shared.Triple | None
    classes: str | None
    device: str
    memory: str | None
    download: bool

    @property
    def preprocessed(self) -> bool:
        """Whether the preprocessing was given by hand."""
        return bool(self.input_size or self.mean or self.std)


class _Recipe(click.Choice[str]):
    """One of the recipes, ours or published; for a misspelled one the error names the nearest."""

    def __init__(self) -> None:
        super().__init__((*RECIPES, *PUBLISHED))

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in RENAMED:
            self.fail(f"{value!r} is now named {RENAMED[str(value)]}.", param, ctx)
        near = difflib.get_close_matches(str(value), self.choices, 1)
        if value not in self.choices and near:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}. Did you mean {near[0]}?", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@shared.output("File to write.", default="beside CHECKPOINT, named after recipe and T: resnet50-calibrated-T16.snn")
@shared.FORCE
@click.option(
    "--arch",
    metavar="NAME",
    help="Architecture, with words for what no checkpoint records, such as resnet18-nomaxpool or resnet50-v1. Words: "
    "stem1 or stem2 (stride of the first convolution), maxpool or nomaxpool, v1 or v15 (stride in the first or second "
    "convolution of a block), strided or averaged (shortcuts), padboth or padafter (zeros of shortcuts), "
    "whole or halved (first stage), actshortcut or rawshortcut (pre-activated blocks), fcrelu or fclinear (between "
    "linear layers at the end).",
)
@click.option(
    "--ema", is_flag=True, help="Take the moving average of the weights, which CHECKPOINT must hold beside them."
)
@click.option(
    "--recipe",
    metavar="NAME",
    type=_Recipe(),
    show_default="calibrated with --calibration, calibrated-currents without",
    help="Recipe. s-resnet is the paper's and s-resnet-released its code's; both need no images and take seconds. For "
    "few steps: calibrated, where neurons may have a current per step; calibrated-constant, where nothing may depend "
    "on it; calibrated-fission, with 3 neurons in place of each; calibrated-lagged, phased and signed, where layers "
    "may wait; multilevel, for graded spikes; or auto, which chooses. For few images or none: calibrated-currents. "
    f"Published methods, to compare with: {', '.join(PUBLISHED)}.",
)
@click.option(
    "--weights",
    type=click.Choice(["float32", "dyadic", "int8"]),
    default="float32",
    help="Number format of the weights. dyadic rounds them so that float32 sums are exact: the same spikes on every "
    "device and engine. int8 makes an integer network: int8 weights, int32 thresholds and membranes.",
)
@click.option(
    "--timesteps",
    metavar="T[,T,...]",
    callback=shared.steps,
    show_default="the recipe's: 16 for calibrated, 128 without images, 350 for the paper's",
    help="Number of time steps to tune for. Several, such as 4,8,16,32, make one network of shared weights, with "
    "thresholds, currents and a readout for each T. For recipes for few steps, with float32 weights.",
)
@click.option(
    "--reconstruct",
    is_flag=True,
    help="Also train the spiking weights, without labels, to reproduce the outputs of the ANN's blocks. Takes minutes; "
    "an interrupted run resumes from OUT.snn.partial. For recipes for few steps.",
)
@click.option(
    "--spikes",
    type=click.Choice(["binary", "signed", "levels"]),
    show_default="binary",
    help="Spikes that the target can send, for --recipe auto. binary: 0 or 1. signed: also -1. levels: up to 15 either "
    "way.",
)
@click.option(
    "--target-drop",
    metavar="POINTS",
    type=float,
    help="Largest percentage of held-out calibration images on which the network may disagree with the ANN, which "
    "bounds the drop in accuracy on them. --recipe auto finds the smallest latency for it; instead of --latency.",
)
@shared.count(
    "--latency",
    "Steps from the first input to the answer, for --recipe auto, which gives every recipe the largest T that answers "
    "by then.",
    "16",
    1,
    "E",
)
@click.option(
    "--no-step-currents",
    is_flag=True,
    help="The target has no current of its own for every step, for --recipe auto.",
)
@click.option(
    "--no-delays",
    is_flag=True,
    help="Layers of the target cannot wait for those before them, for --recipe auto.",
)
@click.option(
    "--lag",
    type=click.Choice(["layers", "blocks", "alternate-blocks", "stages"]),
    show_default="layers",
    help="Layers that wait a step, for --recipe calibrated-lagged and signed: all, or the last of each residual block, "
    "of every second one, or of each stage. An answer takes T steps and one for each on the way.",
)
@click.option(
    "--percentile",
    metavar="P",
    type=click.FloatRange(0, 100, min_open=True),
    show_default="99.9, or 99.99 with images from 128 pixels on",
    help="Percentile of the activations that becomes a threshold, for the paper's recipes.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Images to calibrate on; they need no labels. Without them images are made from the BatchNorm statistics, "
    "which takes longer and needs more time steps.",
)
@shared.CALIBRATION_IMAGES
@shared.INPUT_SIZE
@shared.MEAN
@shared.STD
@shared.CLASSES
@shared.DEVICE
@shared.MEMORY
@shared.DOWNLOAD
@shared.takes(Options)
def convert(asked: Options) -> None:
    """Convert the trained ResNet in CHECKPOINT into a spiking network.

    The architecture is recognized from the names and shapes of the weights: ResNets, ResNeXts, wide ResNets and
    pre-activated ResNets, for ImageNet or CIFAR, with the names of torchvision, timm, Hugging Face, OpenMMLab and
    others. What no checkpoint records is assumed, and printed; --arch overrides it. A checkpoint of `sresnet train` is
    recognized from its metadata; a spiking one keeps its T. An .onnx or .pt2 file holds its own architecture.

    {DATA}

    \b
    Examples:
      sresnet convert resnet50.pth        (without any image)
      sresnet convert resnet50.pth --calibration imagenet:/data/imagenet
      sresnet convert resnet50.pth --calibration imagenet:/data/imagenet --weights int8 -o resnet50-int8.snn
      sresnet convert resnet20.th --calibration cifar10:/data --timesteps 4,8,16,32
      sresnet convert resnet20.th --calibration cifar10:/data --recipe s-resnet --timesteps 128
      sresnet convert resnet20.th --calibration cifar10:/data --recipe phased --timesteps 8 --reconstruct
      sresnet convert resnet20.th --calibration cifar10:/data --recipe auto --latency 32 --no-step-currents
      sresnet convert resnet20.th --calibration cifar10:/data --recipe auto --spikes signed --target-drop 1
      sresnet convert resnet50.onnx --calibration imagenet:/data/imagenet
      sresnet convert resnet18.pth --input-size 64 --calibration photos/train -o photos.snn
      torchrun --nproc-per-node 4 -m sresnet_cli convert resnet50.pth --calibration imagenet:/data    (4 processes)
    """
    begin(asked.checkpoint)
    import s_resnet

    with (
        s_resnet.runtime.memory_limit(asked.memory),
        s_resnet.runtime.process_group(asked.device) as (rank, world),
        hushed(rank > 0),
    ):
        _convert(asked, rank, world)


def _convert(asked: Options, rank: int, world: int) -> None:
    """Read the checkpoint and this process's share of the images, convert, save, and say what came out."""
    import s_resnet

    check_checkpoint(asked.checkpoint)
    s_resnet.runtime.find_device(asked.device)
    options = _recipe_options(asked)
    built = options.build(bool(asked.calibration))
    loaded = s_resnet.load_checkpoint(asked.checkpoint, asked.arch, asked.ema)
    if loaded.timesteps is not None and (asked.calibration or asked.preprocessed):
        raise click.UsageError(
            f"{asked.checkpoint} was trained as a spiking network and says on what. Leave out --calibration, "
            "--input-size, --mean and --std."
        )
    recipe, words = _for_network(loaded, asked.checkpoint, options, built)
    target = asked.output or network_path(asked.checkpoint, *words)
    if rank == 0:
        check_output(target, asked.checkpoint, force=asked.force)
    if loaded.weights:
        say(which_weights(loaded), err=True)
    if loaded.left_out:
        say(left_out(loaded.left_out), err=True)
    source = _source(loaded, asked, rank, world)
    snn = _converted(loaded, source, recipe, target, asked)
    sized = asked.input_size and isinstance(loaded.model, s_resnet.frontend.Program)
    if loaded.assumed and not sized:
        say(assumed(loaded), err=True)
    if source.batches is not None:
        source.batches.unreadable = sum(s_resnet.runtime.all_gather(source.batches.unreadable), ())
        warn_left_out(source.batches)
    say(summary(snn, target, source.batches, usual=asked.recipe is None))
    if rank == 0 and (other := suggestion(asked.checkpoint, loaded, source.batches, source.preprocessing, snn)):
        say(other)
    say(next_step(snn, target))


def _recipe_options(asked: Options) -> RecipeOptions:
    """The options that make the recipe; raises for those that need others."""
    given = click.get_current_context().get_parameter_source("calibration_images") == ParameterSource.COMMANDLINE
    if not asked.calibration and (asked.classes == "natural" or given or asked.download):
        raise click.UsageError(
            "--calibration-images, --download and --classes natural need --calibration. Add it, or leave them out."
        )
    return RecipeOptions(
        recipe=asked.recipe,
        timesteps=asked.timesteps,
        percentile=asked.percentile,
        weights=asked.weights,
        reconstruct=asked.reconstruct,
        spikes=asked.spikes,
        target_drop=asked.target_drop,
        latency=asked.latency,
        no_step_currents=asked.no_step_currents,
        no_delays=asked.no_delays,
        lag=asked.lag,
    )


def _for_network(
    loaded: s_resnet.frontend.Checkpoint, checkpoint: Path, options: RecipeOptions, built: Wished
) -> tuple[Wished | None, list[str]]:
    """The recipe for this network, and the words of its file's name."""
    import s_resnet

    if loaded.timesteps is not None:
        options.check_trained(checkpoint)
        return None, options.words("trained", (loaded.timesteps,))
    if not isinstance(loaded.model, s_resnet.frontend.QCFSModule):
        own = (built.timesteps,) if isinstance(built, s_resnet.Recipe) else None
        return built, options.words(built.label, own and (options.timesteps or own))
    (steps, *_) = options.timesteps or (loaded.model.levels,)
    name = f"qcfs-{'phased' if built.name == 'phased' else 'streaming'}"
    return built.at(steps) if isinstance(built, s_resnet.Recipe) else built, options.words(name, (steps,))


def _converted(
    loaded: s_resnet.frontend.Checkpoint, source: Source, recipe: Wished | None, target: Path, asked: Options
) -> s_resnet.Graph:
    """Convert and save."""
    import s_resnet

    partial = None
    if isinstance(recipe, s_resnet.Recipe) and recipe.reconstructs:
        partial = Path(f"{target}.partial")
        recipe = recipe.set("reconstruct", resume=partial)
        if os.path.exists(partial):
            say(_resumed(partial), err=True)
    size = source.input_size if loaded.timesteps is None and source.input_size else loaded.input_size
    images = (loaded.channels, size, size) if source.batches is None else source.batches
    if isinstance(loaded.model, s_resnet.frontend.Program) and images == (loaded.channels, *[loaded.input_size] * 2):
        images = loaded.model.image_shape  # signals, and maps that are not square
    with shown_warnings():
        several = asked.timesteps if asked.timesteps and len(asked.timesteps) > 1 else None
        snn = s_resnet.convert(loaded.model, images, recipe, timesteps=several, device=asked.device, progress=True)
    if said := without_images(snn):
        say(said, err=True)
    snn = snn.with_provenance(**source.origin).with_provenance(source=checkpoint_source(loaded))
    if s_resnet.runtime.is_first():
        s_resnet.save(snn, target)
        if partial is not None:
            partial.unlink(missing_ok=True)
    return snn


def _resumed(partial: Path) -> str:
    """How much an interrupted reconstruction has finished."""
    import s_resnet

    done = len(s_resnet.load(partial).provenance.reconstruction.blocks or ())
    return f"Resuming the reconstruction in {partial}, of which {done} parts are finished."


def _source(loaded: s_resnet.frontend.Checkpoint, asked: Options, rank: int, world: int) -> Source:
    """This process's share of the images that were asked for, or none."""
    import s_resnet

    preprocessing = preprocessing_of(loaded, asked.input_size, asked.mean, asked.std)
    if asked.calibration:
        names, outputs = loaded.classes, loaded.num_classes
        data = open_matched(asked.calibration, "calibration", asked.download, asked.classes, names, outputs)
        if not isinstance(data, s_resnet.data.ImageData) and asked.preprocessed:
            raise click.UsageError(
                "--input-size, --mean and --std apply to images; events are binned as in the papers, and an .npz of "
                "floating-point numbers is taken as it is. Leave them out."
            )
        return calibration_source(data, asked.calibration_images, preprocessing, loaded, (rank, world))
    origin = s_resnet.graph.provenance.Parts(preprocessing=preprocessing)
    if loaded.data is not None:
        origin["data"], origin["classes"] = loaded.data, loaded.classes
    if asked.classes:
        origin["classes"] = read_class_names(asked.classes, loaded)
    return Source(preprocessing, None, origin)
