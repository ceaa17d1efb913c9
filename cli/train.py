"""``sresnet train``: a network from scratch, spiking or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import shared
from .converted import next_step
from .notes import warn_unreadable
from .output import check_output, command
from .say import begin, say

if TYPE_CHECKING:
    import s_resnet

AUGMENTATIONS = ("crop", "resized-crop", "flip", "autoaugment")
# Settings that only one choice of another setting reads.
OWNERS = {"momentum": ("optimizer", "sgd"), "gamma": ("schedule", "step"), "step_epochs": ("schedule", "step")}


@dataclass(frozen=True)
class Settings:
    """The options that are fields of :class:`s_resnet.Training`, by their names there; None where not given."""

    optimizer: str | None
    lr: float | None
    momentum: float | None
    weight_decay: float | None
    schedule: str | None
    step_epochs: int | None
    gamma: float | None
    warmup: int | None
    epochs: int | None
    batch_size: int | None
    label_smoothing: float | None
    amp: bool | None
    recompute: bool
    seed: int | None
    augmentation: tuple[str, ...] | None
    timesteps: int | None
    size: int | None
    width: int | None
    limit: int | None
    test_limit: int | None
    validation: int | None
    activation: str | None
    levels: int | None

    def given(self) -> list[str]:
        """The names of the settings that were given."""
        return [field.name for field in dataclasses.fields(Settings) if getattr(self, field.name) is not None]

    def instead_of(self, usual: s_resnet.Training) -> s_resnet.Training:
        """The usual settings with the given ones in their place; raises UsageError for one without effect."""
        chosen = dataclasses.replace(usual, **{name: getattr(self, name) for name in self.given()})
        for name, (owner, value) in OWNERS.items():
            if name in self.given() and getattr(chosen, owner) != value:
                raise click.UsageError(f"{_option(name)} needs --{owner} {value}. Give both, or neither.")
        return chosen


@dataclass(frozen=True)
class Options(Settings):
    """What was asked of ``sresnet train``."""

    arch: str | None
    network: Path | None
    data: str
    output: Path
    preset: str | None
    device: str
    workers: int | None
    tensorboard: Path | None
    force: bool
    download: bool


def _option(setting: str) -> str:
    """The option of a setting."""
    return {"size": "--input-size", "augmentation": "--augment"}.get(setting, f"--{setting.replace('_', '-')}")


def _names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Augmentations written crop,flip; none is the empty list."""
    names = () if value in (None, "none") else tuple(part.strip() for part in str(value).split(","))
    for name in names:
        if name not in AUGMENTATIONS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(AUGMENTATIONS)}, or none", param=option)
    return None if value is None else names


@click.command()
@click.argument("arch", required=False)
@click.option(
    "--from",
    "network",
    metavar="NETWORK.snn",
    type=click.Path(path_type=Path),
    help="Fine-tune this converted network instead.",
)
@click.option(
    "--data", metavar="DATA", required=True, help="Images to train on; accuracy is reported on their test split."
)
@shared.output(
    "Checkpoint to write after every epoch; rerunning the command resumes from it. With --from: the tuned .snn."
)
@click.option("--preset", type=click.Choice(["paper"]), help="Settings of the architecture's paper for these data.")
@shared.count("--epochs", "Number of epochs.", "100")
@shared.count("--batch-size", "Images per batch, over all processes together.", "128")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), show_default="sgd", help="Optimizer.")
@click.option(
    "--lr", metavar="X", type=float, show_default="0.1 for sgd, 0.001 for adamw", help="Largest learning rate."
)
@click.option("--momentum", metavar="X", type=float, show_default="0.9", help="SGD momentum.")
@click.option(
    "--weight-decay", metavar="X", type=float, show_default="0.0005 for sgd, 0.01 for adamw", help="Weight decay."
)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "step", "constant"]),
    show_default="cosine, down to 0",
    help="Learning rate schedule.",
)
@shared.count("--step-epochs", "Epochs between the drops of --schedule step.", "40")
@click.option("--gamma", metavar="X", type=float, show_default="0.1", help="Factor of each drop of --schedule step.")
@click.option("--warmup", metavar="N", type=click.IntRange(0), show_default="0", help="Epochs of rising learning rate.")
@click.option("--label-smoothing", metavar="X", type=float, show_default="0", help="Label smoothing.")
@click.option(
    "--augment",
    "augmentation",
    metavar="NAME,...",
    callback=_names,
    show_default="crop,flip up to 64 pixels; resized-crop,flip above; crop for digits",
    help=f"Augmentations among {', '.join(AUGMENTATIONS)}; or none.",
)
@shared.count("--timesteps", "Number of time steps of a spiking network.", "its paper's", metavar="T")
@shared.count("--width", "Number of channels in the first stage.", "its paper's")
@click.option(
    "--input-size",
    "size",
    metavar="N",
    type=click.IntRange(1),
    show_default="the images', or 224",
    help="Height and width of the images in pixels.",
)
@shared.limit()
@shared.count("--test-limit", "Report accuracy on only N test images.", "all")
@shared.count("--validation", "Hold out N training images, and report accuracy on them.", least=0)
@click.option(
    "--activation",
    type=click.Choice(["relu", "qcfs"]),
    show_default="relu",
    help="Activation of an ANN. qcfs prepares it for conversion to few time steps.",
)
@shared.count("--levels", "Quantization levels of --activation qcfs: the T to convert for.", "8", metavar="L")
@click.option("--amp/--no-amp", default=None, help="Use mixed precision.")
@click.option("--recompute", is_flag=True, help="Save memory by computing blocks again in the backward pass.")
@shared.count("--seed", "Seed of the weights, the order of the images and their augmentation.", "0", least=0)
@shared.DEVICE
@shared.count("--workers", "Number of data-loading processes; does not affect the result.", least=0)
@click.option(
    "--tensorboard", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Also write curves to DIR."
)
@shared.FORCE
@shared.DOWNLOAD
@shared.takes(Options)
def train(asked: Options) -> None:
    """Train a spiking ResNet or an ANN, or fine-tune a network.

    Spiking ResNets are trained with surrogate gradients; ANNs are trained for conversion.

    \b
    ARCH is ms_resnet18, ms_resnet34, ms_resnet104, ms_resnet8, 14, 20 ... 482; ds_resnet14 ... ds_resnet68;
    danet50, danet101, danet152 (our interpretation); sew_resnet18 ...; spiking_resnet20 ... (plain);
    cifar_resnet20 ..., resnet18, resnet34, resnet50 (ANNs).

    With --from, a converted network is trained further at T steps, on labels and its own spikes. Held-out images decide
    whether it got better. Here the defaults are adamw, --lr 0.0003, and 5 epochs of batches of 64.

    Rerunning the command resumes an interrupted run after its last finished epoch; on the CPU it ends with the same
    weights. With --schedule step or constant a run may be extended to more --epochs. Use a different -o for different
    settings. Options given beside --preset override the preset.

    {DATA}

    Without train and test folders, a tenth of the images is held out for testing.

    \b
    Examples:
      sresnet train ms_resnet8 --data digits --width 8 --batch-size 32 --epochs 10 -o digits.pt   (a first try)
      sresnet train ds_resnet20 --data cifar10:/data --preset paper -o ds20.pt
      sresnet train ds_resnet20 --data cifar10:/data --preset paper --epochs 30 --amp -o short.pt
      sresnet train ms_resnet34 --data imagenet:/data --preset paper --recompute -o ms34.pt
      sresnet train ds_resnet14 --data cifar10dvs:/data --preset paper -o events.pt
      sresnet train --from resnet20.snn --data cifar10:/data --timesteps 4 -o tuned.snn
      sresnet train cifar_resnet20 --data cifar10:/data --activation qcfs --levels 4 -o ready.pt
      torchrun --nproc-per-node 4 -m sresnet_cli train ms_resnet34 --data imagenet:/data --preset paper -o ms34.pt
    """
    begin(asked.data)
    if asked.arch is not None and asked.network is None:
        _train(asked.arch, asked)
    elif asked.network is not None and asked.arch is None:
        _fine_tune(asked.network, asked)
    else:
        raise click.UsageError("Train what? Name an architecture, or a converted network with --from.")


def _train(arch: str, asked: Options) -> None:
    """Train from scratch, or resume."""
    import s_resnet

    if asked.force:
        raise click.UsageError("--force needs --from: a training run never overwrites another. Choose another -o.")
    with s_resnet.runtime.process_group(asked.device) as (rank, _):
        s_resnet.runtime.find_device(asked.device)
        check_output(asked.output, force=True)  # an existing run is resumed, or refused
        with s_resnet.runtime.first_process_first():
            images, test = (_opened(asked, split) for split in ("calibration", "evaluation"))
        settings = _settings(arch, images, asked)
        execution = _execution(asked, settings)
        trained = s_resnet.train(arch, images, asked.output, settings, test=test, execution=execution)
        if rank == 0:
            warn_unreadable(trained.unreadable)
            say(_summary(trained, asked.output, asked.data))


def _fine_tune(network: Path, asked: Options) -> None:
    """Fine-tune a network; until the end the state of the run is kept beside the output."""
    import s_resnet

    unfit = {"--preset": asked.preset, "--recompute": asked.recompute or None}
    unfit |= {_option(name): getattr(asked, name) for name in ("size", "width", "activation", "levels")}
    if wrong := [name for name, value in unfit.items() if value is not None]:
        raise click.UsageError(f"{', '.join(wrong)} cannot be combined with --from. Leave out one or the other.")
    check_output(asked.output, network, force=asked.force)
    with s_resnet.runtime.process_group(asked.device) as (rank, _):
        s_resnet.runtime.find_device(asked.device)
        snn = s_resnet.load(network)
        partial = asked.output.with_name(f"{asked.output.name}.partial")
        with s_resnet.runtime.first_process_first():
            images = _opened(asked, "calibration")
        settings = asked.instead_of(s_resnet.training.fine_tuning_defaults())
        tuned = s_resnet.fine_tune(snn, images, partial, settings, execution=_execution(asked, settings))
        if rank:
            return
        if tuned.kept:
            s_resnet.save(tuned.graph, asked.output)
        partial.unlink(missing_ok=True)
    _tell(tuned, asked.output)


def _tell(tuned: s_resnet.training.FineTuning, path: Path) -> None:
    """What fine-tuning achieved; raises SResNetError where that is nothing."""
    import s_resnet

    compared = f"{100 * tuned.before:.2f}% of the held-out images before, {100 * tuned.after:.2f}% after"
    if not tuned.kept:
        raise s_resnet.SResNetError(
            s_resnet.errors.message(
                str(path), "not written", compared, "more right answers", "Try another --lr, or more --epochs"
            )
        )
    timesteps = tuned.graph.provenance.tuning.timesteps
    say(f"{path}: fine-tuned at T = {timesteps}, {compared}")
    say(next_step(tuned.graph, path))


def _opened(asked: Options, split: str) -> s_resnet.data.ImageData | s_resnet.data.EventData:
    """The data to train on.

    Raises:
        click.UsageError: they are signals or other prepared numbers.
    """
    import s_resnet

    data = s_resnet.data.open_data(asked.data, split, asked.download)
    if isinstance(data, s_resnet.data.ArrayData):
        raise click.UsageError(
            f"{asked.data} holds numbers that are prepared already, and training prepares images itself. Name "
            "images or event recordings."
        )
    return data


def _settings(
    arch: str, images: s_resnet.data.ImageData | s_resnet.data.EventData, asked: Options
) -> s_resnet.Training:
    """The preset's settings, or the usual ones, with the given ones in their place."""
    import s_resnet

    if asked.levels is not None and asked.activation != "qcfs":
        raise click.UsageError("--levels needs --activation qcfs. Give both.")
    if asked.preset:
        return asked.instead_of(s_resnet.training.preset(arch, images))
    if asked.optimizer == "adamw":
        return asked.instead_of(s_resnet.Training(lr=0.001, weight_decay=0.01))
    return asked.instead_of(s_resnet.Training())


def _execution(asked: Options, settings: s_resnet.Training) -> s_resnet.training.Execution:
    """Where and how to train, and what to print on the way."""
    import s_resnet

    return s_resnet.training.Execution(
        device=asked.device,
        workers=asked.workers,
        progress=True,
        on_epoch=lambda entry: say(_line(entry, settings.epochs)),
        on_note=_note,
        tensorboard=asked.tensorboard,
    )


def _note(text: str) -> None:
    say(text, err=True)


def _line(entry: Mapping[str, float], epochs: int) -> str:
    """One epoch: its loss, accuracies, time, and how long the others will take."""
    number = int(entry["epoch"])
    parts = [f"epoch {number:>{len(str(epochs))}}/{epochs}", f"loss {entry['loss']:.4f}"]
    for name in ("train", "validation", "test"):
        if entry[f"{name}_top1"] is not None:
            parts.append(f"{name} {100 * entry[f'{name}_top1']:.2f}%")
    left = entry["seconds"] * (epochs - number)
    rest = [f"about {_duration(left)} left"] if left else []
    return "  ".join([*parts, f"{entry['seconds']:.1f} s", *rest])


def _duration(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _summary(trained: s_resnet.training.TrainingResult, path: Path, data: str) -> str:
    """What was trained, and the command to convert it."""
    last = trained.history[-1]
    test = "" if last["test_top1"] is None else f", test top-1 {100 * last['test_top1']:.2f}%"
    steps = trained.settings.timesteps
    spiking = "" if steps is None else f", T = {steps}"
    ready = steps is not None or trained.settings.activation == "qcfs"
    calibration = () if ready else ("--calibration", data)
    epochs = len(trained.history)
    done = f"{path}: {trained.arch}{spiking}, {epochs} epoch{'s' if epochs > 1 else ''}{test}"
    return f"{done}\nNext: {command('convert', path, *calibration)}"
