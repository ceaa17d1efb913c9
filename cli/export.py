"""``sresnet export``: a network for other engines and machines, and whether it gives the same spikes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from . import shared
from .inputs import choose, find_images, find_network, timesteps_for
from .notes import warn_left_out
from .output import check_output
from .say import begin, say

if TYPE_CHECKING:
    import s_resnet

    Writer: TypeAlias = Callable[[s_resnet.Graph, int, "Options"], None]

ROUNDING = "the differences in float32 are rounding at the threshold; convert --weights dyadic removes them"
ENGINES = ("nir", "norse", "sinabs", "snntorch", "spikingjelly")


@dataclass(frozen=True)
class Options(shared.Images):
    """What was asked of ``sresnet export``."""

    network: Path | None
    form: str
    output: Path
    force: bool
    timesteps: int | None
    engine: str | None
    tie_shortcuts: bool
    pool: str | None


def _nir(snn: s_resnet.Graph, timesteps: int, asked: Options) -> None:
    import s_resnet

    s_resnet.export.export_nir(
        snn,
        asked.output,
        timesteps=timesteps,
        tie_shortcuts=asked.tie_shortcuts,
        split_maxpool=asked.pool == "host",
    )


def _torch(snn: s_resnet.Graph, timesteps: int, asked: Options) -> None:
    import s_resnet

    s_resnet.export.export_torch(snn, asked.output, timesteps)


def _npz(snn: s_resnet.Graph, _: int, asked: Options) -> None:
    import s_resnet

    s_resnet.export.export_npz(snn, asked.output)


# One writer per format.
FORMATS: Mapping[str, Writer] = {
    "nir": _nir,
    "npz": _npz,
    "torch": _torch,
}


@click.command()
@shared.NETWORK
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), required=True, help="Format of the file, described above."
)
@shared.output("File to write.")
@shared.FORCE
@shared.TIMESTEPS
@click.option(
    "--verify",
    "engine",
    type=click.Choice(ENGINES),
    help="Read the file back, run it in this engine and compare spike for spike. nir is plain torch.",
)
@shared.data("--verify on")
@shared.limit(8)
@click.option(
    "--tie-shortcuts",
    is_flag=True,
    help="Leave out the synapses on identity shortcuts: their gain goes into the threshold of the neurons after them.",
)
@click.option(
    "--pool",
    type=click.Choice(["host"]),
    help="Handle max-pools. host: the stem up to the pool runs on the host, exactly.",
)
@shared.CLASSES
@shared.DOWNLOAD
@shared.takes(Options)
def export(asked: Options) -> None:
    """Write a network for other engines and machines.

    NETWORK is a .snn file, by default the only one here.

    nir is the Neuromorphic Intermediate Representation (.nir): convolutions and integrate-and-fire nodes in float32,
    with reset by subtraction, v(0) and the readout in its metadata. If the format cannot express a node, the export is
    refused and the node named. torch is a torch.export program (.pt2) of the T-step network: images in, logits out,
    without this package. npz is plain arrays and a JSON graph, for chip code; a network converted with --weights int8
    is written in whole numbers. Where several plain neurons stand for each, nir and npz have all of them.

    --verify runs T steps in the engine and here, on the same images, and counts per layer the spikes that only one of
    the two has. Where float32 rounding decided a spike, they are counted again in float64.

    {DATA}
    Images that it was calibrated on are left out. --verify takes images, not events.

    \b
    Examples:
      sresnet export resnet20.snn --format nir -o resnet20.nir
      sresnet export resnet20.snn --format nir -o resnet20.nir --verify snntorch --timesteps 16
      sresnet export resnet20.snn --format nir -o resnet20.nir --tie-shortcuts --verify nir --data cifar10:/data
      sresnet export resnet18.snn --format nir -o resnet18.nir --pool host
      sresnet export resnet20.snn --format torch -o resnet20.pt2 --timesteps 16
      sresnet export resnet20.snn --format npz -o resnet20.npz
    """
    begin(asked.network or "the network here")
    import s_resnet

    path = find_network(asked.network, "export")
    if asked.form != "nir" and (asked.engine or asked.tie_shortcuts or asked.pool):
        raise click.UsageError(f"--verify, --tie-shortcuts and --pool go with --format nir, not {asked.form}.")
    check_output(asked.output, path, force=asked.force)
    if asked.engine:
        s_resnet.export.find_engine(asked.engine)
    snn = s_resnet.load(path)
    timesteps = asked.timesteps or timesteps_for(snn, path)
    several, snn = snn.fitted, choose(snn, timesteps)
    # Opened first: what cannot be compared need not be written.
    found = find_images(snn, path, asked) if asked.engine else None
    FORMATS[asked.form](snn, timesteps, asked)
    copies = f", {snn.copies} neurons for each" if snn.copies > 1 else ""
    say(f"{asked.output}: {len(snn.neurons)} neuron layers{copies}, {asked.output.stat().st_size / 1e6:.1f} MB")
    if several:
        say(f"It holds one of the T that {path.name} is for: T = {snn.provenance.recipe.timesteps}")
    if asked.engine and found is not None:
        loader = found.loader(batch_size=len(found.indices))
        say("\n" + _verified(snn, asked.output, loader, timesteps, asked.engine))
        warn_left_out(loader)


def _verified(snn: s_resnet.Graph, target: Path, loader: s_resnet.data.Loader, timesteps: int, engine: str) -> str:
    """The comparison in float32 as a table, and one line about float64 if rounding may have decided a spike."""
    import s_resnet

    images, _ = next(iter(loader))
    data = f"data: {loader.data.spec} ({loader.data.split}), {len(images)} of {len(loader.data)} images"
    result = s_resnet.export.verify_export(target, snn, images, timesteps, engine)
    if not result.mismatches:
        return f"{data}\n{result.table()}"
    exact = s_resnet.export.verify_export(target, snn, images, timesteps, engine, "float64")
    cause = "" if exact.mismatches else f": {ROUNDING}"
    return f"{data}\n{result.table()}\nin float64 {exact.mismatches:,} of {exact.spikes:,} spikes differ{cause}"
