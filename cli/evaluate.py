"""``sresnet evaluate``: accuracy over time steps, against the network's own ANN."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import shared
from .inputs import find_images, find_network, timesteps_for
from .notes import warn_left_out
from .output import check_output
from .say import begin, say
from .words import spoken

if TYPE_CHECKING:
    import s_resnet


@dataclass(frozen=True)
class Options(shared.Images):
    """What was asked of ``sresnet evaluate``."""

    network: Path | None
    timesteps: int | None
    at: tuple[int, ...] | None
    exit_confidence: float | None
    batch_size: int
    memory: str | None
    device: str
    precision: str
    spike_by_spike: bool
    json_file: Path | None
    force: bool


def _confidence(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A probability between 0 and 1; click's own range lets nan pass."""
    if value is not None and not 0 < value < 1:
        raise click.BadParameter(f"{value} is not between 0 and 1, such as 0.7", param=option)
    return value


@click.command()
@shared.NETWORK
@shared.TIMESTEPS
@click.option(
    "--at",
    metavar="T,T,...",
    callback=shared.steps,
    show_default="T; also 1, 2, 4, ... for a recipe that is not fitted to T; all T of a network for several",
    help="Time steps to report.",
)
@click.option(
    "--exit-confidence",
    metavar="P",
    type=float,
    callback=_confidence,
    help="Stop each image as soon as the network is this sure of its answer, 0 < P < 1, and save the remaining steps.",
)
@shared.data("evaluate on")
@shared.limit()
@shared.CLASSES
@shared.BATCH_SIZE
@shared.MEMORY
@shared.DEVICE
@click.option(
    "--precision",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    help="Arithmetic of the weights. exact: float32. fast: 16-bit weights; membranes stay float32.",
)
@click.option(
    "--spike-by-spike",
    is_flag=True,
    help="Simulate every step of a phased network, instead of its spike counts in one quantized pass; the results are "
    "the same.",
)
@shared.json_file()
@shared.FORCE
@shared.DOWNLOAD
@shared.takes(Options)
def evaluate(asked: Options) -> None:
    """Evaluate a network and its own ANN on the same images.

    NETWORK is a .snn file, by default the only one here.

    drop is the ANN's accuracy minus the network's, in percentage points. A * marks a T that the network was not fitted
    to. Images that it was calibrated on are never evaluated on; without --data, a test, val or validation folder beside
    a train folder is used. A directly trained network has no ANN: its agreement is with its own answers after the T
    that it was trained for.

    A network for several T (convert --timesteps 4,8,16) runs at each with its own numbers, and at another T with those
    of the largest T below it, else of the smallest. An early exit takes those of --timesteps.

    With --exit-confidence each image is simulated only until the network is sure of its answer, for T steps at most.
    The mean T and the accuracy are reported. No fixed T is, unless --at asks for it: it would cost the steps that the
    early exit saves.

    {DATA}

    \b
    Examples:
      sresnet evaluate
      sresnet evaluate resnet20.snn --at 8,16,32,64 --data cifar10:/data --limit 1000 --json out.json
      sresnet evaluate resnet20-calibrated-T4-8-16-32.snn --at 8,16
      sresnet evaluate resnet20.snn --timesteps 128 --exit-confidence 0.8
      torchrun --nproc-per-node 4 -m sresnet_cli evaluate resnet20.snn --timesteps 256    (4 processes, 4 GPUs)
    """
    begin(asked.network or "the network here")
    import s_resnet

    if asked.at is not None and asked.timesteps is not None and max(asked.at) > asked.timesteps:
        raise click.UsageError(f"--at asks for step {max(asked.at)}, beyond --timesteps {asked.timesteps}.")
    with s_resnet.runtime.memory_limit(asked.memory), s_resnet.runtime.process_group(asked.device) as (rank, world):
        s_resnet.runtime.find_device(asked.device)
        path = find_network(asked.network, "evaluate")
        if asked.json_file and rank == 0:
            check_output(asked.json_file, path, force=asked.force)
        snn = s_resnet.load(path)
        at = asked.at or (snn.fitted if asked.timesteps is None and asked.exit_confidence is None else None) or None
        timesteps = asked.timesteps or (timesteps_for(snn, path) if at is None else max(at))
        loader = find_images(snn, path, asked).loader(asked.batch_size, rank, world)
        settings = s_resnet.analysis.EvaluationSettings(
            early_exit=asked.exit_confidence,
            precision=asked.precision,
            spike_by_spike=asked.spike_by_spike,
            network=path.name,
            progress=True,
        )
        report = s_resnet.evaluate(snn, loader, timesteps, settings, at=at, device=asked.device)
        loader.unreadable = sum(s_resnet.runtime.all_gather(loader.unreadable), ())
        events, outside = zip(*s_resnet.runtime.all_gather(loader.events), strict=True)
        loader.events = sum(events), sum(outside)
        if rank == 0:
            _tell(report, loader, asked.json_file)


def _tell(report: s_resnet.Report, loader: s_resnet.data.Loader, file: Path | None) -> None:
    """Save the report if that was asked for, and show it in any case."""
    import s_resnet

    try:
        if file:
            report.save(file)
    finally:  # the results are shown even if the file cannot be written
        warn_left_out(loader)
        say(spoken(report.table()))
        if report.kernel == "cpu":
            kernel = s_resnet.kernels.describe()
            say(f"Slow: {kernel}. A C++ compiler, such as g++, makes it faster.", err=True)
