"""What ``sresnet compare`` compares: networks from files, and those that it converts from checkpoints first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import shared
from .calibration import Source, calibration_source, checkpoint_source, preprocessing_of
from .converted import assumed, left_out, which_weights
from .inputs import check_checkpoint, open_matched
from .notes import shown_warnings, warn_left_out
from .say import say
from .words import spoken
from .work_folder import Kept, WorkFolder, digest_of, digest_of_values

if TYPE_CHECKING:
    import s_resnet


@dataclass(frozen=True)
class Options(shared.Images):
    """What was asked of ``sresnet compare``."""

    networks: tuple[Path, ...]
    calibration: str | None
    calibration_images: int
    recipes: tuple[str, ...] | None
    latency: tuple[int, ...]
    output: tuple[Path, ...]
    form: str
    work: Path | None
    arch: str | None
    ema: bool
    input_size: int | None
    mean: shared.Triple | None
    std: shared.Triple | None
    batch_size: int
    memory: str | None
    device: str
    force: bool


@dataclass(frozen=True)
class Contender:
    """A spiking network in a file, to be measured.

    Attributes:
        network: what the trained network that it stands for is called.
        name: its recipe, or its own file.
        kept: what the names of its measurements begin with.
        path: its file.
        latencies: for each T to measure, the latencies that were asked for; empty if none was.
    """

    network: str
    name: str
    kept: str
    path: Path
    latencies: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Opened:
    """A checkpoint with its calibration images.

    Attributes:
        network: what it is called.
        loaded: what was read from it.
        source: the images, and what a network records about them.
        batches: the images.
    """

    network: str
    loaded: s_resnet.frontend.Checkpoint
    source: Source
    batches: s_resnet.data.Loader

    @property
    def calibration(self) -> str:
        """A digest of the calibration images and how they are prepared."""
        data = self.source.origin["data"]
        assert data is not None
        return digest_of_values(list(data.fingerprints or ()), self._preparation)

    @property
    def digest(self) -> str:
        """As :func:`source_digest` gives it for what is converted from it."""
        return digest_of_values(self.loaded.digest, checkpoint_source(self.loaded).arch, self._preparation)

    @property
    def _preparation(self) -> object:
        import s_resnet

        return s_resnet.graph.provenance.Provenance(preprocessing=self.source.preprocessing).to_json()["preprocessing"]


def open_checkpoint(path: Path, asked: Options) -> Opened:
    """Read a checkpoint, and choose the images to calibrate it on."""
    import s_resnet

    check_checkpoint(path)
    if not asked.calibration:
        raise click.UsageError(f"{path} has to be converted first. Name images for that with --calibration DATA.")
    loaded = s_resnet.load_checkpoint(path, asked.arch, asked.ema)
    if loaded.timesteps is not None or isinstance(loaded.model, s_resnet.frontend.QCFSModule):
        raise click.UsageError(
            f"{path} was trained for spikes, so recipes do not apply. Convert it with sresnet convert, and name the "
            "network that comes out."
        )
    for told in (loaded.weights and which_weights(loaded), loaded.left_out and left_out(loaded.left_out)):
        if told:
            say(told, err=True)
    if loaded.assumed:
        say(assumed(loaded), err=True)
    preprocessing = preprocessing_of(loaded, asked.input_size, asked.mean, asked.std)
    names, outputs = loaded.classes, loaded.num_classes
    data = open_matched(asked.calibration, "calibration", asked.download, asked.classes, names, outputs)
    source = calibration_source(data, asked.calibration_images, preprocessing, loaded)
    assert source.batches is not None
    return Opened(label_of(path), loaded, source, source.batches)


def label_of(path: Path) -> str:
    """What a checkpoint is called: its file without the ending."""
    return path.name.partition(".")[0] or path.name


@dataclass(frozen=True)
class Conversion:
    """A network to make: a checkpoint by a recipe, and for each T that it is measured at the latencies asked for."""

    opened: Opened
    recipe: s_resnet.Recipe
    latencies: Mapping[int, tuple[int, ...]]

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.opened.network}-{self.recipe.name}-T{self.recipe.timesteps}"

    def identity(self) -> Kept:
        """All that the network is made from."""
        import torch

        import s_resnet

        recipe, loaded = self.recipe, self.opened.loaded
        return {
            "checkpoint": loaded.digest,
            "architecture": loaded.arch,
            "average": loaded.ema,
            "recipe": [recipe.name, recipe.percentile, [s.told(recipe.timesteps).to_json() for s in recipe.steps]],
            "timesteps": recipe.timesteps,
            "calibration images": self.opened.calibration,
            "version": [s_resnet.__version__, torch.__version__],
        }


def plan(
    opened: Opened, recipes: Iterable[s_resnet.Recipe], latencies: Sequence[int]
) -> tuple[list[Conversion], list[s_resnet.analysis.Candidate]]:
    """The conversions of a checkpoint, and the rows of recipes that cannot answer by a latency."""
    import s_resnet

    images, _ = next(iter(opened.batches))
    graph = s_resnet.trace(opened.loaded.model, images[:2])
    found: list[Conversion] = []
    missing: list[s_resnet.analysis.Candidate] = []
    for recipe in recipes:
        try:
            waiting = s_resnet.conversion.with_neurons(graph, recipe)
        except s_resnet.errors.ConversionError as error:
            missing += [_refused(opened, recipe, latency, str(error)) for latency in latencies]
            continue
        wanted: dict[int, tuple[int, ...]] = {}
        for latency in latencies:
            steps = s_resnet.conversion.timesteps_within(waiting, latency)
            if steps is None:
                reason = f"not at this latency, as with T = 1 it answers after {waiting.end_to_end_steps(1)} steps"
                missing.append(_refused(opened, recipe, latency, reason))
            else:
                wanted[steps] = (*wanted.get(steps, ()), latency)
        found += _conversions(opened, recipe, wanted)
    return found, missing


def _conversions(
    opened: Opened, recipe: s_resnet.Recipe, wanted: Mapping[int, tuple[int, ...]]
) -> Iterator[Conversion]:
    """One for each T, or one for all of them where nothing in the recipe is made for a T."""
    if any("timesteps" in step.told(1).extra for step in recipe.steps):
        for steps, latencies in wanted.items():
            yield Conversion(opened, recipe.at(steps), {steps: latencies})
    elif wanted:
        yield Conversion(opened, recipe, wanted)


def convert(
    conversions: Sequence[Conversion], asked: Options, folder: WorkFolder
) -> tuple[list[Contender], list[s_resnet.analysis.Candidate]]:
    """The networks of all conversions, from the folder where they are there; and rows of what cannot be converted."""
    import s_resnet

    found: list[Contender] = []
    missing: list[s_resnet.analysis.Candidate] = []
    bar = s_resnet.runtime.Progress(conversions, desc="convert", unit="network", shown=True)
    with shown_warnings():
        for one in bar:
            bar.show(now=True, network=one.name)
            identity, path = one.identity(), folder.network(one.name)
            if not folder.take_network(one.name, identity):
                try:
                    s_resnet.save(_converted(one, asked.device), path)
                except s_resnet.errors.ConversionError as error:
                    late = [latency for some in one.latencies.values() for latency in some]
                    missing += [_refused(one.opened, one.recipe, latency, str(error)) for latency in late]
                    continue
                folder.keep_network(one.name, identity)
            found.append(Contender(one.opened.network, one.recipe.name, one.name, path, one.latencies))
    for batches in {id(one.opened.batches): one.opened.batches for one in conversions}.values():
        warn_left_out(batches)
    return found, missing


def _converted(one: Conversion, device: str) -> s_resnet.Graph:
    import s_resnet

    opened = one.opened
    snn = s_resnet.convert(opened.loaded.model, opened.batches, one.recipe, device=device, progress=True)
    return snn.with_provenance(**opened.source.origin).with_provenance(source=checkpoint_source(opened.loaded))


def _refused(opened: Opened, recipe: s_resnet.Recipe, latency: int, reason: str) -> s_resnet.analysis.Candidate:
    """The row of a conversion that is not possible."""
    import s_resnet

    said = spoken(reason).removesuffix(".")
    return s_resnet.analysis.Candidate(opened.network, recipe.name, "snn", latency=latency, reason=said)


def from_file(path: Path, snn: s_resnet.Graph, networks: Mapping[str, str], latencies: Sequence[int]) -> Contender:
    """A network of a file: at each T that it was fitted or trained for, else at the T of each latency.

    Of several T that answer by the same latency it is measured at the largest.

    Args:
        path: the file.
        snn: what is in it.
        networks: the names of trained networks, by :func:`source_digest`.
        latencies: those that were asked for, ascending.
    """
    import s_resnet

    network = networks[source_digest(path, snn)]
    fitted = s_resnet.analysis.every_fitted(snn) or ((snn.trained_for,) if snn.trained else ())
    wanted: dict[int, tuple[int, ...]] = {}
    for own in fitted:
        late = snn.end_to_end_steps(own)
        first = tuple(latency for latency in latencies if late <= latency)[:1]
        if first or own == fitted[0]:
            wanted = {other: some for other, some in wanted.items() if some != first} | {own: first}
    if not fitted:
        for latency in latencies:
            steps = s_resnet.conversion.timesteps_within(snn, latency)
            if steps is not None:
                wanted[steps] = (*wanted.get(steps, ()), latency)
    if not wanted:
        raise click.UsageError(
            f"{path} answers after {snn.end_to_end_steps(1)} steps with T = 1. Ask for a larger --latency."
        )
    return Contender(network, path.name, f"given-{path.stem}", path, wanted)


def name_networks(opened: Iterable[Opened], given: Mapping[Path, s_resnet.Graph]) -> dict[str, str]:
    """What each trained network is called, by its :func:`source_digest`; no two have one name."""
    names: dict[str, str] = {}
    for one in opened:
        names[one.digest] = one.network
    for path, snn in given.items():
        digest, source = source_digest(path, snn), snn.provenance.source.name
        name = label_of(Path(source)) if source else path.stem
        if digest not in names:
            names[digest] = f"{name} ({digest[:8]})" if name in names.values() else name
    return names


def source_digest(path: Path, snn: s_resnet.Graph) -> str:
    """A digest of the trained network that a spiking one came from: two with the same one share an ANN."""
    source = snn.provenance.source
    if source.sha256 is None:
        return digest_of(path)
    return digest_of_values(source.sha256, source.arch, snn.provenance.to_json().get("preprocessing"))


def check_names(paths: Sequence[Path]) -> None:
    """Check that every file has a name of its own, as rows and kept files are called after it.

    Raises:
        click.UsageError: two have one.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        name = path.name if path.suffix == ".snn" else label_of(path)
        if name in seen:
            raise click.UsageError(f"{seen[name]} and {path} would both be called {name}. Rename one of them.")
        seen[name] = path
