"""``sresnet train``: a network from scratch, spiking or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .begin import begin
from .checks import warn_unreadable
from .converted import next_step
from .options import DEVICE, DOWNLOAD, FORCE
from .output import check_output, command
from .say import say


def _names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Augmentations as crop,flip; none is the empty list."""
    names = () if value in (None, "none") else tuple(part.strip() for part in str(value).split(","))
    known = ("crop", "resized-crop", "flip", "autoaugment")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}, or none", param=option)
    return None if value is None else names


@click.command()
@click.argument("arch", required=False)
@click.option(
    "--from", "network", metavar="NETWORK.snn", type=click.Path(), help="Fine-tune this converted network instead."
)
@click.option("--data", metavar="DATA", required=True, help="What to train on; its test images are reported on.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, readable=False),
    required=True,
    help="The checkpoint, written after every epoch. The same command goes on from it. With --from the tuned .snn.",
)
@click.option("--preset", type=click.Choice(["paper"]), help="The recipe of the architecture's paper on these data.")
@click.option("--epochs", metavar="N", type=click.IntRange(1), help="By default 100.")
@click.option("--batch-size", metavar="N", type=click.IntRange(1), help="Of all processes together; by default 128.")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="By default sgd.")
@click.option("--lr", metavar="X", type=float, help="Learning rate; by default 0.1, of adamw 0.001.")
@click.option("--momentum", metavar="X", type=float, help="Of sgd; by default 0.9.")
@click.option("--weight-decay", metavar="X", type=float, help="By default 0.0005, of adamw 0.01.")
@click.option("--schedule", type=click.Choice(["cosine", "step", "constant"]), help="By default cosine, to 0.")
@click.option(
    "--step-epochs", metavar="N", type=click.IntRange(1), help="Of step: epochs between drops; by default 40."
)
@click.option("--gamma", metavar="X", type=float, help="Of step: the factor of a drop; by default 0.1.")
@click.option("--warmup", metavar="N", type=click.IntRange(0), help="Epochs of rising learning rate; by default 0.")
@click.option("--label-smoothing", metavar="X", type=float, help="By default 0.")
@click.option(
    "--augment",
    metavar="NAME,...",
    callback=_names,
    help="Of crop, resized-crop, flip, autoaugment; or none. By default crop,flip up to 64 pixels, else "
    "resized-crop,flip, and crop for digits.",
)
@click.option("--timesteps", metavar="T", type=click.IntRange(1), help="Of a spiking network; by default its paper's.")
@click.option(
    "--width", metavar="N", type=click.IntRange(1), help="Channels of the first stage; by default the paper's."
)
@click.option("--input-size", metavar="N", type=click.IntRange(1), help="In pixels; by default the images', or 224.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Train on N images, seeded, over all classes.")
@click.option("--test-limit", metavar="N", type=click.IntRange(1), help="Report on N test images.")
@click.option(
    "--validation", metavar="N", type=click.IntRange(0), help="Keep N training images apart, and report them."
)
@click.option(
    "--activation", type=click.Choice(["relu", "qcfs"]), help="qcfs: an ANN that is ready for conversion to few steps."
)
@click.option("--levels", metavar="L", type=click.IntRange(1), help="Of qcfs: the T to convert for; by default 8.")
@click.option("--amp/--no-amp", default=None, help="16-bit arithmetic where it does no harm, or not.")
@click.option("--recompute", is_flag=True, help="Less memory: blocks are computed again in the backward pass.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Of weights, order, augmentation; by default 0.")
@DEVICE
@click.option("--workers", metavar="N", type=click.IntRange(0), help="Decoding processes; the result does not depend.")
@click.option("--tensorboard", metavar="DIR", type=click.Path(file_okay=False), help="Write curves there as well.")
@FORCE
@DOWNLOAD
def train(
    arch: str | None,
    network: str | None,
    data: str,
    output: str,
    preset: str | None,
    augment: tuple[str, ...] | None,
    input_size: int | None,
    device: str,
    workers: int | None,
    tensorboard: str | None,
    force: bool,
    download: bool,
    **given: Any,
) -> None:
    """Train the network ARCH: a spiking ResNet by surrogate gradients, or an ANN to convert; or fine-tune a network.

    \b
    ARCH is ms_resnet18, ms_resnet34, ms_resnet104, ms_resnet8, 14, 20 ... 482; ds_resnet14 ... ds_resnet68;
    danet50, danet101, danet152 (our interpretation); sew_resnet18 ...; spiking_resnet20 ... (plain);
    cifar_resnet20 ..., resnet18, resnet34, resnet50 (ANNs).

    With --from a converted network is trained on at T steps, with labels, by its own spikes; images that are kept apart
    decide whether that was for the better. By default adamw, --lr 0.0003, 5 epochs of batches of 64.

    A run that was stopped goes on by the same command from its last finished epoch, and on the CPU ends with the same
    weights. With schedule step or constant it may be asked for more --epochs; other settings want another -o. Options
    given beside --preset replace the preset's.

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.

    Without train and test folders a tenth is kept for testing.

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
    begin(data)
    import s_resnet

    if (arch is None) == (network is None):
        raise click.UsageError("Train what? Name an architecture, or a converted network with --from.")
    given["augmentation"] = augment
    if network is not None:
        unfit = {"--preset": preset, "--input-size": input_size, "--recompute": given["recompute"] or None}
        unfit |= {f"--{name}": given[name] for name in ("width", "activation", "levels")}
        wrong = [name for name, value in unfit.items() if value is not None]
        if wrong:
            raise click.UsageError(f"{', '.join(wrong)} cannot be had with --from. Leave it out.")
        options = {"device": device, "workers": workers, "progress": True, "tensorboard": tensorboard}
        check_output(Path(output), Path(network), force=force)
        _fine_tune(Path(network), data, Path(output), given, download, options)
        return
    if force:
        raise click.UsageError("--force is of --from: a run is never written over another one. Choose another -o.")
    assert arch is not None
    with s_resnet.runtime.process_group(device) as (rank, _):
        s_resnet.runtime.find_device(device)
        path = Path(output)
        check_output(path, force=True)  # what is there is gone on from, or refused
        with s_resnet.runtime.first_process_first():
            images = s_resnet.data.open_data(data, "calibration", download)
            test = s_resnet.data.open_data(data, "evaluation", download)
        settings = _settings(preset, arch, images, {**given, "size": input_size})
        trained = s_resnet.train(
            *(arch, images, path, settings),
            test=test,
            device=device,
            workers=workers,
            progress=True,
            on_note=lambda text: say(text, err=True),
            on_epoch=lambda entry: say(_line(entry, settings.epochs)),
            tensorboard=tensorboard,
        )
        if rank == 0:
            warn_unreadable(trained.unreadable)
            say(_summary(trained, path, data))


def _fine_tune(
    network: Path, data: str, output: Path, given: Mapping[str, Any], download: bool, options: Mapping[str, Any]
) -> None:
    """Fine-tune a network; the state of the run lies beside the output until the end."""
    import s_resnet

    with s_resnet.runtime.process_group(options["device"]) as (rank, _):
        s_resnet.runtime.find_device(options["device"])
        snn = s_resnet.load(network)
        partial = output.with_name(f"{output.name}.partial")
        with s_resnet.runtime.first_process_first():
            images = s_resnet.data.open_data(data, "calibration", download)
        chosen = {name: value for name, value in given.items() if value is not None}
        settings = _all_used(s_resnet.training.tuning(**chosen), chosen)
        tuned = s_resnet.fine_tune(
            *(snn, images, partial, settings),
            on_note=lambda text: say(text, err=True),
            on_epoch=lambda entry: say(_line(entry, settings.epochs)),
            **options,
        )
        if rank:
            return
        if tuned.kept:
            s_resnet.save(tuned.graph, output)
        partial.unlink(missing_ok=True)
    compared = f"{100 * tuned.before:.2f}% of the held-out images before, {100 * tuned.after:.2f}% after"
    if not tuned.kept:
        raise s_resnet.SResNetError(
            f"{output}: not written, got {compared}; expected more right answers. Try another --lr, or more --epochs."
        )
    timesteps = tuned.graph.provenance["tuning"]["timesteps"]
    say(f"{output}: fine-tuned at T = {timesteps}, {compared}")
    say(next_step(tuned.graph, output))


def _settings(preset: str | None, arch: str, images: Any, given: Mapping[str, Any]) -> Any:
    """The preset's settings, or the usual ones, with what was given in their place."""
    import dataclasses

    import s_resnet

    chosen = {name: value for name, value in given.items() if value is not None}
    if "levels" in chosen and chosen.get("activation") != "qcfs":
        raise click.UsageError("--levels is of --activation qcfs. Give both.")
    if preset:
        settings = dataclasses.replace(s_resnet.training.preset(arch, images), **chosen)
    else:
        usual = {"lr": 0.001, "weight_decay": 0.01} if chosen.get("optimizer") == "adamw" else {}
        settings = s_resnet.Training(**{**usual, **chosen})
    return _all_used(settings, chosen)


def _all_used(settings: Any, chosen: Mapping[str, Any]) -> Any:
    """The settings; raises where one that was given would change nothing."""
    wanted = {"momentum": ("optimizer", "sgd"), "gamma": ("schedule", "step"), "step_epochs": ("schedule", "step")}
    for name, (owner, value) in wanted.items():
        if name in chosen and getattr(settings, owner) != value:
            raise click.UsageError(f"--{name.replace('_', '-')} is of --{owner} {value}. Give both, or neither.")
    return settings


def _line(entry: Mapping[str, Any], epochs: int) -> str:
    parts = [f"epoch {entry['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {entry['loss']:.4f}"]
    for name in ("train", "validation", "test"):
        if entry[f"{name}_top1"] is not None:
            parts.append(f"{name} {100 * entry[f'{name}_top1']:.2f}%")
    left = entry["seconds"] * (epochs - entry["epoch"])
    rest = [f"about {_duration(left)} left"] if left else []
    return "  ".join([*parts, f"{entry['seconds']:.1f} s", *rest])


def _duration(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _summary(trained: Any, path: Path, data: str) -> str:
    last = trained.history[-1]
    test = "" if last["test_top1"] is None else f", test top-1 {100 * last['test_top1']:.2f}%"
    steps = trained.settings.timesteps
    spiking = "" if steps is None else f", T = {steps}"
    ready = steps is not None or trained.settings.activation == "qcfs"
    calibration = () if ready else ("--calibration", data)
    epochs = len(trained.history)
    done = f"{path}: {trained.arch}{spiking}, {epochs} epoch{'s' if epochs > 1 else ''}{test}"
    return f"{done}\nNext: {command('convert', path, *calibration)}"
