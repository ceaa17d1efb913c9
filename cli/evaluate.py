"""``sresnet evaluate``: accuracy over time steps, against the network's own ANN."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .begin import begin
from .checks import check_classes, open_matched, warn_left_out
from .networks import find_network, timesteps_for
from .options import BATCH_SIZE, CLASSES, DEVICE, DOWNLOAD, FORCE, NETWORK, TIMESTEPS
from .output import check_output
from .say import say
from .words import spoken


def _steps(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Time steps as 8,16,32."""
    try:
        steps = tuple(int(part) for part in value.split(",")) if value else (1,)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of steps such as 8,16,32", param=option) from error
    if min(steps) < 1:
        raise click.BadParameter(f"{value!r} has a step below 1", param=option)
    return steps if value else None


def _confidence(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A probability short of certainty; click's own range lets nan pass."""
    if value is not None and not 0 < value < 1:
        raise click.BadParameter(f"{value} is not between 0 and 1, such as 0.7", param=option)
    return value


@click.command()
@NETWORK
@TIMESTEPS
@click.option(
    "--at",
    metavar="T,T,...",
    callback=_steps,
    help="The steps to report; by default T, of a recipe that is not fitted to it also 1, 2, 4, ...",
)
@click.option(
    "--exit-confidence",
    metavar="P",
    type=float,
    callback=_confidence,
    help="Stop each image once it is that sure of its answer, 0 < P < 1, and save its other steps.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="Images to evaluate on; by default the held-out part of what was calibrated on.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    help="Only N images, a seeded random choice over all classes.",
)
@CLASSES
@BATCH_SIZE
@DEVICE
@click.option(
    "--precision",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact: float32. fast: 16-bit weights; membranes stay float32.",
)
@click.option(
    "--closed-form",
    is_flag=True,
    help="Of a phased network: spike counts from one quantized pass in place of T steps; the same, and faster.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, readable=False),
    help="Write the figures there as well.",
)
@FORCE
@DOWNLOAD
def evaluate(
    network: str | None,
    timesteps: int | None,
    at: tuple[int, ...] | None,
    exit_confidence: float | None,
    precision: str,
    closed_form: bool,
    data: str | None,
    limit: int | None,
    classes: str | None,
    batch_size: int,
    device: str,
    json_file: str | None,
    force: bool,
    download: bool,
) -> None:
    """Evaluate NETWORK.snn (by default the only one here) and its own ANN on the same images.

    drop is the ANN's accuracy minus the network's, in points. A * marks a T that the network was not fitted to. Images
    that it was calibrated on are never evaluated on; without --data a test, val or validation folder beside a train
    folder is taken. A directly trained network has no ANN: its agreement is with its own answers after the T that it
    was trained for.

    With --exit-confidence each image is simulated only until its answer is sure, and T is the most it may take. Mean T
    and accuracy are given, and no fixed T, unless --at asks for them too: they cost the steps that the exit saves.

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.

    \b
    Examples:
      sresnet evaluate
      sresnet evaluate resnet20.snn --at 8,16,32,64 --data cifar10:/data --limit 1000 --json out.json
      sresnet evaluate resnet20.snn --timesteps 128 --exit-confidence 0.8
      torchrun --nproc-per-node 4 -m sresnet_cli evaluate resnet20.snn --timesteps 256    (4 processes, 4 GPUs)
    """
    begin(network or "the network here")
    import s_resnet

    if at is not None and timesteps is not None and max(at) > timesteps:
        raise click.UsageError(f"--at asks for step {max(at)}, beyond --timesteps {timesteps}.")
    with s_resnet.runtime.process_group(device) as (rank, world):
        s_resnet.runtime.find_device(device)
        path = find_network(network, "evaluate")
        if json_file and rank == 0:
            check_output(Path(json_file), path, force=force)
        snn = s_resnet.load(path)
        timesteps = timesteps or (timesteps_for(snn, path) if at is None else max(at))
        loader = image_loader(snn, path, Images(data, limit, batch_size, download, classes), rank, world)
        report = s_resnet.evaluate(
            *(snn, loader, timesteps),
            at=at,
            exit_confidence=exit_confidence,
            precision=precision,
            in_closed_form=closed_form,
            device=device,
            network=path.name,
            progress=True,
        )
        loader.unreadable = sum(s_resnet.runtime.exchange(loader.unreadable), ())
        loader.events = tuple(map(sum, zip(*s_resnet.runtime.exchange(loader.events), strict=True)))
        if rank == 0:
            try:
                if json_file:
                    report.save(json_file)
            finally:  # where the file cannot be written, the figures are on the screen at least
                warn_left_out(loader)
                say(spoken(report.table()))
                if report.kernel == "cpu":
                    what = s_resnet.kernels.describe()
                    say(f"Slow: {what}. With a C++ compiler, such as g++, it is faster.", err=True)


@dataclass(frozen=True)
class Images:
    """Which images were asked for, as the options of several commands say it."""

    spec: str | None
    limit: int | None
    batch_size: int
    download: bool
    classes: str | None = None


def usual_data(snn: Any) -> str | None:
    """What to evaluate on: the data it was calibrated on, or the held-out folder beside that of training images."""
    import s_resnet

    spec = snn.provenance.get("data", {}).get("spec")
    return spec and (s_resnet.data.held_out_beside(spec) or spec)


@dataclass(frozen=True)
class Found:
    """What there is to evaluate a network on: the data, which of them, and how many it was calibrated on."""

    data: Any
    indices: list[int]
    calibrated_on: int
    preprocessing: Any


def find_images(snn: Any, path: Path, asked: Images, besides: tuple[Any, ...] = ()) -> Found:
    """The images to evaluate on: all, without those that the network was calibrated on.

    They are preprocessed as the network was calibrated, and their classes matched to its by name. besides: networks
    whose calibration images are left out too.
    """
    import s_resnet

    settings = snn.provenance.get("preprocessing")
    if settings is None:
        raise s_resnet.errors.InvalidArtifact(
            f"{path}: got no preprocessing, as it was converted from Python; expected the size, mean and std of its "
            "images, or the bins of its events. Evaluate it from Python with s_resnet.evaluate(snn, loader, "
            "timesteps), or save it with snn.with_provenance(preprocessing=s_resnet.data.stored_preprocessing("
            "s_resnet.data.preprocessing_for(size, mean, std)))."
        )
    spec = asked.spec or usual_data(snn)
    if spec is None:
        raise click.UsageError(f"Which data? {path} does not know of any. Pass --data DATA.")
    with s_resnet.runtime.first_process_first():
        data = open_matched(spec, "evaluation", asked.download, asked.classes, snn.provenance.get("classes", ()))
    classes = snn.provenance.get("source", {}).get("classes")
    if classes is not None:  # a network saved from Python need not say; evaluate still checks every label
        check_classes(data, classes)
    marks = {mark for one in (snn, *besides) for mark in one.provenance.get("data", {}).get("fingerprints", ())}
    used = s_resnet.data.seen(data, marks)
    indices = s_resnet.data.choose(data, asked.limit, exclude=used)
    return Found(data, indices, len(used), s_resnet.data.read_preprocessing(settings))


def image_loader(
    snn: Any, path: Path, asked: Images, rank: int = 0, world: int = 1, besides: tuple[Any, ...] = ()
) -> Any:
    """This process's part of the images of :func:`find_images`."""
    import s_resnet

    found = find_images(snn, path, asked, besides)
    part = s_resnet.runtime.shard(found.indices, rank, world)
    loader = s_resnet.data.loader_for(found.data, part, found.preprocessing, asked.batch_size, total=len(found.indices))
    loader.excluded = found.calibrated_on
    return loader
