"""``sresnet evaluate``: accuracy over time steps, against the network's own ANN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .convert import check_classes, check_output, warn_unreadable
from .options import BATCH_SIZE, DEVICE, DOWNLOAD


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
@click.argument("network", type=click.Path(), required=False)
@click.option("--timesteps", metavar="T", type=click.IntRange(1), required=True, help="How many steps to simulate.")
@click.option("--at", metavar="T,T,...", callback=_steps, help="The steps to report; by default 1, 2, 4, ... and T.")
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
@DOWNLOAD
def evaluate(
    network: str | None,
    timesteps: int,
    at: tuple[int, ...] | None,
    exit_confidence: float | None,
    precision: str,
    closed_form: bool,
    data: str | None,
    limit: int | None,
    batch_size: int,
    device: str,
    json_file: str | None,
    download: bool,
) -> None:
    """Evaluate NETWORK.snn (by default the only one here) and its own ANN on the same images.

    One pass gives the figures at every T. Images that the network was calibrated on are never evaluated on. A directly
    trained network has no ANN: its agreement is with its own answers after the T that it was trained for.

    With --exit-confidence each image is simulated only until its answer is sure, and T is the most it may take. Mean T
    and accuracy are given, and no fixed T, unless --at asks for them too: they cost the steps that the exit saves.

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, an .npz with x uint8 [B,H,W,3] and y, or events: cifar10dvs:DIR, dvsgesture:DIR.

    \b
    Examples:
      sresnet evaluate --timesteps 256
      sresnet evaluate resnet20.snn --timesteps 64 --at 8,16,32,64 --data cifar10:/data --limit 1000 --json out.json
      sresnet evaluate resnet20.snn --timesteps 128 --exit-confidence 0.8
      torchrun --nproc-per-node 4 -m sresnet_cli evaluate resnet20.snn --timesteps 256    (4 processes, 4 GPUs)
    """
    import s_resnet

    if at is not None and max(at) > timesteps:
        raise click.UsageError(f"--at asks for step {max(at)}, beyond --timesteps {timesteps}.")
    with s_resnet.process_group(device) as (rank, world):
        s_resnet.find_device(device)
        path = Path(network) if network else _only_network()
        if json_file and rank == 0:
            check_output(Path(json_file), path)
        snn = s_resnet.load(path)
        loader = image_loader(snn, path, data, limit, batch_size, download, rank, world)
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
        unreadable = sum(s_resnet.exchange(loader.unreadable), ())
        if rank == 0:
            warn_unreadable(unreadable)
            click.echo(report.table())
            if json_file:
                report.save(json_file)


def _only_network() -> Path:
    found = sorted(Path().glob("*.snn"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise click.UsageError(
            f"Which network? Found {names} here. Name one: sresnet evaluate NETWORK.snn --timesteps T"
        )
    return found[0]


def image_loader(
    snn: Any,
    path: Path,
    spec: str | None,
    limit: int | None,
    batch_size: int,
    download: bool,
    rank: int = 0,
    world: int = 1,
    besides: tuple[Any, ...] = (),
) -> Any:
    """This process's part of the images to evaluate on: all, without those that the network was calibrated on.

    They are preprocessed as the network was calibrated. besides: networks whose calibration images are left out too.
    """
    import s_resnet

    spec = spec or snn.provenance.get("data", {}).get("spec")
    if spec is None:
        raise click.UsageError(f"Which data? {path} was converted without calibration images. Pass --data DATA.")
    settings = snn.provenance.get("preprocessing")
    if settings is None:
        raise s_resnet.InvalidArtifact(
            f"{path}: got no preprocessing; expected the size, mean and std of its images, or the bins of its events. "
            "Evaluate it from Python with s_resnet.evaluate(snn, loader, timesteps)."
        )
    with s_resnet.first_process_first():
        data = s_resnet.open_data(spec, "evaluation", download)
    if "source" in snn.provenance:  # a network saved from Python need not say; evaluate still checks every label
        check_classes(data, snn.provenance["source"]["classes"])
    marks = {mark for one in (snn, *besides) for mark in one.provenance.get("data", {}).get("fingerprints", ())}
    indices = s_resnet.choose(data, limit, exclude=s_resnet.seen(data, marks))
    part = s_resnet.shard(indices, rank, world)
    return s_resnet.loader_for(data, part, s_resnet.read_preprocessing(settings), batch_size, total=len(indices))


def timesteps_for(snn: Any, path: Path) -> int:
    """The T that the network was converted or trained for."""
    timesteps = snn.provenance.get("recipe", {}).get("timesteps")
    if timesteps is None:
        raise click.UsageError(f"Which T? {path} does not say what it was converted for. Pass --timesteps T.")
    return int(timesteps)
