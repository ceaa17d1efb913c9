"""What a command reads: the network, its T, and the images to run it on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from .say import say
from .shared import Images
from .words import spoken

if TYPE_CHECKING:
    import s_resnet

    Data: TypeAlias = s_resnet.data.ImageData | s_resnet.data.ArrayData | s_resnet.data.EventData
    Preprocessing: TypeAlias = s_resnet.data.Preprocessing | s_resnet.data.AsStored | s_resnet.data.Binning


def find_network(name: Path | None, command: str) -> Path:
    """The network that was named, by default the only one in the current folder."""
    if name is not None:
        return name
    found = sorted(Path().glob("*.snn"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise click.UsageError(f"Which network? Found {names} here. Name one: sresnet {command} NETWORK.snn")
    return found[0]


def timesteps_for(snn: s_resnet.Graph, path: Path) -> int:
    """The T that the network was converted or trained for."""
    timesteps = snn.provenance.recipe.timesteps
    if timesteps is None:
        raise click.UsageError(f"Which T? {path} does not say what it was converted for. Pass --timesteps T.")
    return timesteps


def choose(snn: s_resnet.Graph, timesteps: int) -> s_resnet.Graph:
    """Of a network for several T the one for ``timesteps``; says which it takes if there is none for that T."""
    if snn.fitted and timesteps not in snn.fitted:
        those = ", ".join(map(str, snn.fitted))
        taken = snn.at(timesteps).provenance.recipe.timesteps
        say(f"T = {timesteps} has no numbers of its own (T = {those} have): those for T = {taken} are used.", err=True)
    return snn.at(timesteps)


def check_checkpoint(path: Path) -> None:
    """Check that a file is not a spiking network.

    Raises:
        click.UsageError: it is one, where a checkpoint is needed.
    """
    if path.suffix == ".snn" and path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":  # a safetensors header, after its length
            raise click.UsageError(
                f"{path} is already a spiking network. Name the checkpoint that it was converted from."
            )


def open_matched(
    spec: str, split: str, download: bool, classes: str | None, known: Sequence[str], outputs: int | None
) -> Data:
    """Open data, their classes numbered as ``classes`` says, else as ``known``, else as ImageNet's, else in order."""
    import s_resnet

    data = s_resnet.data.open_data(spec, split, download)
    first = os.environ.get("RANK", "0") == "0"  # only torchrun's first process speaks; all of them get here
    if first and classes is None and not known and (note := s_resnet.data.order_note(data)):
        say(spoken(note), err=True)
    return s_resnet.data.match_classes(data, s_resnet.data.network_classes(classes, data, known, outputs))


def check_classes(data: Data, classes: int) -> None:
    """Check that the data have as many classes as the network.

    Raises:
        InvalidData: they have not.
    """
    import s_resnet

    if len(data.classes) != classes:
        where, got = f"data {data.spec!r}", f"{len(data.classes)} classes for a network of {classes}"
        remedy = "Choose the data that the network was trained on, or name all its classes (--classes FILE)"
        raise s_resnet.errors.InvalidData(s_resnet.errors.message(where, "", got, "equal numbers", remedy))


def usual_data(snn: s_resnet.Graph) -> str | None:
    """What to evaluate on by default: the held-out folder beside the calibration images, or the calibration data."""
    import s_resnet

    spec = snn.provenance.data.spec
    return spec and (s_resnet.data.held_out_beside(spec) or spec)


@dataclass(frozen=True)
class Found:
    """Images to run a network on.

    Attributes:
        data: the data that they are part of.
        indices: their indices in the data.
        calibrated_on: how many images were left out because the network was calibrated on them.
        preprocessing: the network's.
        told: whether the network says how many classes it has.
    """

    data: Data
    indices: list[int]
    calibrated_on: int
    preprocessing: Preprocessing
    told: bool

    def loader(self, batch_size: int, rank: int = 0, world: int = 1) -> s_resnet.data.Loader:
        """This process's share of the images; classes without an image are counted on stderr."""
        import s_resnet

        present, classes = len(set(self.data.labels)), len(self.data.classes)
        if self.told and present < classes and os.environ.get("RANK", "0") == "0":
            say(f"The images are of {present:,} of the network's {classes:,} classes.", err=True)
        part = s_resnet.runtime.shard(self.indices, rank, world)
        loader = s_resnet.data.loader_for(self.data, part, self.preprocessing, batch_size, total=len(self.indices))
        loader.excluded = self.calibrated_on
        return loader


def find_images(snn: s_resnet.Graph, path: Path, asked: Images, others: Sequence[s_resnet.Graph] = ()) -> Found:
    """The images to evaluate a network on, without those that it or one of the ``others`` was calibrated on.

    They are preprocessed as the calibration images were, and their classes are matched to the network's by name.
    """
    import s_resnet

    known = snn.provenance
    spec = asked.data or usual_data(snn)
    if spec is None and known.preprocessing is None:
        raise _unprepared(path)
    if spec is None:
        raise click.UsageError(f"Which data? {path} does not name any. Pass --data DATA.")
    with s_resnet.runtime.first_process_first():
        outputs = known.source.classes
        data = open_matched(spec, "evaluation", asked.download, asked.classes, known.classes or (), outputs)
    preprocessing = known.preprocessing
    if preprocessing is None and isinstance(data, s_resnet.data.ArrayData):
        preprocessing = data.preprocessing
    if preprocessing is None:
        raise _unprepared(path)
    if known.source.classes is not None:  # a network saved from Python may not say; evaluate still checks every label
        check_classes(data, known.source.classes)
    marks = {mark for one in (snn, *others) for mark in one.provenance.data.fingerprints or ()}
    used = s_resnet.data.used_for_calibration(data, marks)
    indices = s_resnet.data.choose(data, asked.limit, exclude=used)
    told = known.source.classes is not None  # else the classes may be the data's alone
    return Found(data, indices, len(used), preprocessing, told)


def _unprepared(path: Path) -> s_resnet.SResNetError:
    """The error for a network that does not say how its images are prepared."""
    import s_resnet

    got = "no preprocessing, because it was converted from Python"
    expected = "the size, mean and std of its images, or the bins of its events"
    remedy = (
        "Evaluate it from Python with s_resnet.evaluate(snn, loader, timesteps), or save it with "
        "snn.with_provenance(preprocessing=s_resnet.data.preprocessing_for(size, mean, std)); an .npz of prepared "
        "numbers needs none"
    )
    return s_resnet.errors.InvalidArtifact(s_resnet.errors.message(str(path), "", got, expected, remedy))
