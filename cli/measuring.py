"""How ``sresnet compare`` measures: every contender, their ANNs and the quantized ANNs, all on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .contenders import Contender, Opened, Options, source_digest
from .inputs import Found, find_images, open_matched, usual_data
from .notes import warn_left_out
from .work_folder import Kept, WorkFolder, digest_of, digest_of_values

if TYPE_CHECKING:
    import s_resnet

    Measure = s_resnet.analysis.Measured


@dataclass(frozen=True)
class Calibrated:
    """Calibration images of a trained network, for the thresholds of its quantized ANN.

    Attributes:
        batches: the images.
        digest: of them and how they are prepared.
    """

    batches: s_resnet.data.Loader
    digest: str


class Test:
    """The test images, the same for all: those that no contender was calibrated on.

    Args:
        asked: the options.
        folder: where measurements are kept.
        graphs: at least one network of every calibration.
    """

    def __init__(self, asked: Options, folder: WorkFolder, graphs: Sequence[s_resnet.Graph]) -> None:
        self.asked, self.folder, self.graphs = asked, folder, graphs
        spec = asked.data or next(filter(None, map(usual_data, graphs)), None)
        self.images = replace(asked, data=spec)
        self._found: dict[str, tuple[s_resnet.data.Loader, str]] = {}

    def loader(self, contender: Contender, snn: s_resnet.Graph) -> tuple[s_resnet.data.Loader, str]:
        """The images as a network takes them, and a digest of images, labels and preparation."""
        known = snn.provenance
        key = digest_of_values(known.to_json().get("preprocessing"), known.classes and list(known.classes))
        if key not in self._found:
            found = find_images(snn, contender.path, self.images, self.graphs)
            self._found[key] = (found.loader(self.asked.batch_size), _digest(found, key))
        return self._found[key]

    def warn(self) -> None:
        """Say what was left out of the data."""
        warn_left_out(*(loader for loader, _ in self._found.values()))

    def kept(self, name: str, identity: Kept) -> Measure | None:
        """A measurement from the folder, if it is of the same."""
        import s_resnet

        found = self.folder.take(name, identity)
        if found is None:
            return None
        try:
            return s_resnet.analysis.Measured.read(found, name)
        except s_resnet.errors.InvalidData:
            self.folder.refuse(name, "its file was changed")
            return None

    def identity(self, images: str, **others: object) -> Kept:
        """What a measurement depends on."""
        import torch

        import s_resnet

        device = str(s_resnet.runtime.find_device(self.asked.device))
        versions = [s_resnet.__version__, torch.__version__]
        return {**others, "test images": images, "device": device, "version": versions}

    def measure(self, contender: Contender) -> list[Measure]:
        """A contender at each of its T, from the folder where it is there; a row for each latency."""
        import s_resnet

        snn = s_resnet.load(contender.path)
        loader, images = self.loader(contender, snn)
        identity = self.identity(images, network=digest_of(contender.path))
        names = {steps: f"{contender.kept}-at-T{steps}" for steps in sorted(contender.latencies)}
        kept = {steps: found for steps, name in names.items() if (found := self.kept(name, identity)) is not None}
        if missing := [steps for steps in names if steps not in kept]:  # in one pass, where that is possible
            device = self.asked.device
            how = s_resnet.analysis.MeasuringSettings(contender.network, contender.name, device=device, progress=True)
            found = s_resnet.analysis.measure_candidates(snn, loader, missing, how)
            for steps, one in zip(missing, found.candidates, strict=True):
                kept[steps] = replace(found, candidates=(one,))
                self.folder.keep(names[steps], identity, kept[steps].to_json())
        return [replace(one, candidates=tuple(_at_latencies(one.candidates, contender))) for one in kept.values()]

    def measure_ann(self, contender: Contender, levels: int | None, calibrated: Calibrated | None) -> Measure:
        """The ANN of a contender, quantized if there are levels."""
        import s_resnet

        snn = s_resnet.load(contender.path)
        loader, images = self.loader(contender, snn)
        identity = self.identity(images, ANN=source_digest(contender.path, snn))
        kept, name = f"{contender.network}-ann", "ANN"
        if levels is not None and calibrated is not None:
            identity = {**identity, "levels": levels, "calibration images": calibrated.digest}
            kept, name = f"{kept}-{levels}", f"ANN, {levels + 1} levels"
        found = self.kept(kept, identity)
        if found is None:
            how = s_resnet.analysis.MeasuringSettings(contender.network, name, device=self.asked.device, progress=True)
            if levels is not None and calibrated is not None:
                device = s_resnet.runtime.find_device(self.asked.device)
                snn = s_resnet.conversion.quantized_ann(snn.to(device), calibrated.batches, levels)
            found = s_resnet.analysis.measure_ann(snn, loader, how, levels)
            self.folder.keep(kept, identity, found.to_json())
        return found


def _digest(found: Found, key: str) -> str:
    """A digest of images, their labels, and how they are prepared."""
    import s_resnet

    marks = s_resnet.data.fingerprints(found.data, found.indices)
    return digest_of_values(marks, [found.data.labels[index] for index in found.indices], key)


def _at_latencies(
    candidates: Iterable[s_resnet.analysis.Candidate], contender: Contender
) -> Iterator[s_resnet.analysis.Candidate]:
    """The candidates under the names of a comparison: one for each latency that was asked for."""
    for one in candidates:
        assert one.timesteps is not None
        for latency in contender.latencies[one.timesteps] or (None,):
            yield replace(one, network=contender.network, name=contender.name, latency=latency)


def calibrations(
    opened: Sequence[Opened], given: Iterable[tuple[Contender, s_resnet.Graph]], asked: Options
) -> dict[str, Calibrated]:
    """The calibration images of every trained network: its own, else those that were asked for; none without."""
    found = {one.network: Calibrated(one.batches, one.calibration) for one in opened}
    for contender, snn in given:
        known = snn.provenance.data
        spec = asked.calibration or known.spec
        if contender.network in found or snn.trained or spec is None or snn.provenance.preprocessing is None:
            continue
        found[contender.network] = _calibrated(snn, spec, known.images or asked.calibration_images, asked)
    return found


def _calibrated(snn: s_resnet.Graph, spec: str, count: int, asked: Options) -> Calibrated:
    """A choice of calibration images by the same rule as that of ``convert``."""
    import s_resnet

    known, preprocessing = snn.provenance, snn.provenance.preprocessing
    assert preprocessing is not None
    data = open_matched(spec, "calibration", asked.download, asked.classes, known.classes or (), known.source.classes)
    indices = s_resnet.data.choose(data, count)
    batches: s_resnet.data.Loader
    if isinstance(data, s_resnet.data.EventData):
        assert isinstance(preprocessing, s_resnet.data.Binning)
        batches = s_resnet.data.MeanFrameLoader(data, indices, preprocessing, batch_size=32)
    else:
        batches = s_resnet.data.loader_for(data, indices, preprocessing, batch_size=32)
    marks = s_resnet.data.fingerprints(data, indices)
    return Calibrated(batches, digest_of_values(marks, known.to_json()["preprocessing"]))


def measure_all(
    contenders: Sequence[Contender], test: Test, calibrated: Mapping[str, Calibrated]
) -> tuple[list[Measure], list[str]]:
    """All measurements: contenders, then the ANN of each trained network and its quantized ones; and notes on these."""
    import s_resnet

    found: list[Measure] = []
    notes: list[str] = []
    with s_resnet.runtime.Progress[None](total=len(contenders), desc="measure", unit="network", shown=True) as bar:
        for contender in contenders:
            bar.show(now=True, network=contender.path.stem)
            found += test.measure(contender)
            bar.update()
    first = {contender.network: contender for contender in reversed(contenders)}
    levels = {
        (one.network, one.levels): one.levels for part in found for one in part.candidates if one.levels is not None
    }
    trained = {name for name, contender in first.items() if s_resnet.load(contender.path).trained}
    anns = [(network, None) for network in dict.fromkeys(c.network for c in contenders) if network not in trained]
    rivals = [(network, levels) for network, levels in sorted(levels) if network in calibrated]
    for network, _ in anns:
        if network not in calibrated:
            notes.append(f"{network}: no ANN quantized to equal bits, which needs --calibration DATA.")
    with s_resnet.runtime.Progress[None](total=len(anns) + len(rivals), desc="ANNs", unit="ANN", shown=True) as bar:
        for network, count in (*anns, *rivals):
            found.append(test.measure_ann(first[network], count, calibrated.get(network)))
            bar.update()
    return found, notes
