"""``sresnet export``: a network for other engines and machines, and whether it gives the same spikes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from .begin import begin
from .checks import warn_left_out
from .evaluate import Images, image_loader
from .networks import find_network, timesteps_for
from .options import CLASSES, DOWNLOAD, FORCE, NETWORK, TIMESTEPS
from .output import check_output
from .say import say

ROUNDING = "what differs in float32 is rounding at the threshold. convert --weights dyadic makes it equal"

ENGINES = ("nir", "norse", "sinabs", "snntorch", "spikingjelly")


@dataclass(frozen=True)
class Wanted:
    """What was asked for: where to write, T, and what only NIR has."""

    path: Path
    timesteps: int
    tie_shortcuts: bool
    split_maxpool: bool


def _nir(snn: Any, wanted: Wanted) -> None:
    import s_resnet

    s_resnet.export.export_nir(
        snn,
        wanted.path,
        timesteps=wanted.timesteps,
        tie_shortcuts=wanted.tie_shortcuts,
        split_maxpool=wanted.split_maxpool,
    )


def _torch(snn: Any, wanted: Wanted) -> None:
    import s_resnet

    s_resnet.export.export_torch(snn, wanted.path, wanted.timesteps)


def _npz(snn: Any, wanted: Wanted) -> None:
    import s_resnet

    s_resnet.export.export_npz(snn, wanted.path)


# One line per format; each writes the network as asked.
FORMATS: Mapping[str, Callable[[Any, Wanted], None]] = {
    "nir": _nir,
    "npz": _npz,
    "torch": _torch,
}


@click.command()
@NETWORK
@click.option("--format", "form", type=click.Choice(list(FORMATS)), required=True, help="What to write, see above.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, readable=False),
    required=True,
    help="Where to write.",
)
@FORCE
@TIMESTEPS
@click.option(
    "--verify",
    "engine",
    type=click.Choice(ENGINES),
    help="Read the file again, run it in this engine, and compare spike for spike; nir is plain torch.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="Images for --verify and --pool average; by default the held-out part of what was calibrated on.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    help="Only N images: by default 8 to verify on, 256 for the cost of --pool average.",
)
@click.option(
    "--tie-shortcuts",
    is_flag=True,
    help="No synapse on identity shortcuts: their gain goes into the threshold of the neurons behind.",
)
@click.option(
    "--pool",
    type=click.Choice(["host", "average"]),
    help="For max-pools. host: the stem up to the pool stays at the host, exactly. average: average them, and say "
    "what it costs.",
)
@CLASSES
@DOWNLOAD
def export(
    network: str | None,
    form: str,
    output: str,
    force: bool,
    timesteps: int | None,
    engine: str | None,
    data: str | None,
    limit: int | None,
    tie_shortcuts: bool,
    pool: str | None,
    classes: str | None,
    download: bool,
) -> None:
    """Write NETWORK.snn (by default the only one here) for other engines and machines.

    nir is the Neuromorphic Intermediate Representation (.nir): convolutions and integrate-and-fire nodes in float32,
    with reset by subtraction, v(0) and the readout in its metadata. What the format cannot say is refused by its node.
    torch is a torch.export program (.pt2) of the T-step network: images in, logits out, no need of this package.
    npz is plain arrays and a JSON graph, for chip code; of a network converted with --weights int8 in whole numbers.

    --verify runs T steps in the engine and here, on the same images, and counts per layer the spikes that only one of
    the two has. Where float32 rounding decided a spike, it is counted again in float64.

    \b
    DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
    digits, or an .npz with x uint8 [B,H,W,3] and y. Images it was calibrated on are left out.

    \b
    Examples:
      sresnet export resnet20.snn --format nir -o resnet20.nir
      sresnet export resnet20.snn --format nir -o resnet20.nir --verify snntorch --timesteps 16
      sresnet export resnet20.snn --format nir -o resnet20.nir --tie-shortcuts --verify nir --data cifar10:/data
      sresnet export resnet18.snn --format nir -o resnet18.nir --pool host
      sresnet export resnet20.snn --format torch -o resnet20.pt2 --timesteps 16
      sresnet export resnet20.snn --format npz -o resnet20.npz
    """
    begin(network or "the network here")
    import s_resnet

    path, target = find_network(network, "export"), Path(output)
    if form != "nir" and (engine or tie_shortcuts or pool):
        raise click.UsageError(f"--verify, --tie-shortcuts and --pool go with --format nir, not {form}.")
    check_output(target, path, force=force)
    if engine:
        s_resnet.export.find_engine(engine)
    snn = s_resnet.load(path)
    timesteps = timesteps or timesteps_for(snn, path)
    exported = s_resnet.conversion.passes.average_maxpool(snn) if pool == "average" else snn
    if pool == "average" and exported is snn:
        raise click.UsageError(f"{path} has no max-pool. Leave --pool average out.")
    asked = Images(data, limit, 32, download, classes)  # opened first: what cannot be compared need not be written
    compared = image_loader(snn, path, replace(asked, limit=limit or 256)) if exported is not snn else None
    few = replace(asked, limit=limit or 8, batch_size=limit or 8)
    verified = image_loader(snn, path, few) if engine else None
    FORMATS[form](exported, Wanted(target, timesteps, tie_shortcuts, pool == "host"))
    say(f"{target}: {len(snn.neurons)} neuron layers, {target.stat().st_size / 1e6:.1f} MB")
    if compared is not None:
        say(_cost(snn, exported, compared, timesteps))
        warn_left_out(compared)
    if engine and verified is not None:
        say("\n" + _verified(exported, target, verified, timesteps, engine))
        warn_left_out(verified)


def _cost(snn: Any, averaged: Any, loader: Any, timesteps: int) -> str:
    """What average pooling costs on the same images."""
    import s_resnet

    before, after = (
        s_resnet.evaluate(which, loader, timesteps, at=(timesteps,), progress=True) for which in (snn, averaged)
    )
    ann = ""
    if before.ann and after.ann:  # a directly trained network has none
        ann = f"of the ANN {100 * before.ann['top1']:.1f}% -> {100 * after.ann['top1']:.1f}%, "
    return (
        f"data: {s_resnet.analysis.described(before.data, before.images)}\n"
        f"--pool average, {before.images} images: top-1 {ann}"
        f"of the spiking network at T = {timesteps} {100 * before.snn[0].top1:.1f}% -> {100 * after.snn[0].top1:.1f}%"
    )


def _verified(snn: Any, target: Path, loader: Any, timesteps: int, engine: str) -> str:
    """The comparison in float32 as a table, and in one line the one in float64 where rounding may have decided."""
    import s_resnet

    images, _ = next(iter(loader))
    data = f"data: {loader.data.spec} ({loader.data.split}), {len(images)} of {len(loader.data)} images"
    result = s_resnet.export.verify_export(target, snn, images, timesteps, engine)
    if not result.mismatches:
        return f"{data}\n{result.table()}"
    exact = s_resnet.export.verify_export(target, snn, images, timesteps, engine, "float64")
    told = "" if exact.mismatches else f": {ROUNDING}"
    return f"{data}\n{result.table()}\nin float64 {exact.mismatches:,} of {exact.spikes:,} spikes differ{told}"
