"""Everything that the page says about one network, measured on one set of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..analysis.cost.energy import CONSTANTS, Constants, Energy, energy
from ..analysis.cost.operations import Operations, count_operations
from ..analysis.evaluate import EvaluationSettings, evaluate, powers_of_two
from ..analysis.figures import Report, described
from ..analysis.verification import Verification
from ..analysis.verify import verify
from ..data.arguments import check_kind
from ..data.intervals import paired_difference, wilson
from ..errors import InvalidData
from ..graph.graph import Graph
from ..graph.network_table import limits
from ..graph.neuron import Neuron
from ..graph.provenance import Provenance
from ..graph.shortcuts import Shortcut, shortcuts
from ..runtime.device import find_device
from ..runtime.display import Displayed, Table, plain
from ..simulation.record import Trace, record

DETAILS = 128  # images that layers are verified, and operations counted, on: both take several times a simulation
EXAMPLES = 12  # images that are shown
LAYERS, NEURONS = 4, 24  # that are recorded


@dataclass(frozen=True, repr=False)
class Rival(Displayed):
    """What a network is compared with, in the words of the page.

    Attributes:
        short: in names of rows.
        title: in titles.
        said: in a sentence.
        layers: the same, naming the layers where they are the network's own.
        unit: what the network's neurons emit.
    """

    short: str
    title: str
    said: str
    layers: str
    unit: str


SOURCE = Rival("ANN", "ANN", "the ANN", "the ANN", "thresholds")
DENSE = Rival("dense", "dense pass", "one dense pass", "one dense pass of the same layers", "spikes")


@dataclass(frozen=True, eq=False, repr=False)
class Example(Displayed):
    """An image that ANN and SNN answer differently.

    Attributes:
        place: its place among the images, from 0.
        label: its class.
        ann: the ANN's answer.
        snn: the SNN's answer.
        ann_share: how sure the ANN is: the softmax of its logits at its answer.
        snn_share: the same of the SNN.
        image: ``[3, H, W]``, preprocessed, or events ``[T, 2, H, W]``.
    """

    place: int
    label: int
    ann: int
    snn: int
    ann_share: float
    snn_share: float
    image: Tensor


@dataclass(eq=False, repr=False)
class Answers(Displayed):
    """What ANN and SNN answered at T, image by image; collected while :func:`s_resnet.evaluate` runs.

    For a directly trained network the ANN's place is taken by its own answer after the T that it was trained for.

    Attributes:
        images: how many.
        right: counts of images that both have right, only the SNN, only the ANN, neither.
        hits: whether the SNN is right, image by image.
        disagreements: images with another answer.
        wrong: how many of these are answered wrong by both.
        examples: the first few of these, in the order of the images.
        details: the first images with their labels.
    """

    images: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    hits: list[bool] = field(default_factory=list)
    disagreements: int = 0
    wrong: int = 0
    examples: list[Example] = field(default_factory=list)
    details: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, images: Tensor, labels: Tensor, ann: Tensor, outputs: Tensor) -> None:
        """Take in a batch, as the ``watch`` of :func:`s_resnet.evaluate`."""
        snn = outputs[-1]
        first, second = snn.argmax(1), ann.argmax(1)
        hit, other = first == labels, second == labels
        for place, who in enumerate((hit & other, hit & ~other, ~hit & other, ~hit & ~other)):
            self.right[place] += int(who.sum())
        self.hits += hit.tolist()
        differ = first != second
        self.disagreements += int(differ.sum())
        self.wrong += int((differ & ~hit & ~other).sum())
        for index in differ.nonzero()[: EXAMPLES - len(self.examples), 0].tolist():
            self.examples.append(
                Example(
                    place=self.images + index,
                    label=int(labels[index]),
                    ann=int(second[index]),
                    snn=int(first[index]),
                    ann_share=float(ann[index].softmax(0).max()),
                    snn_share=float(snn[index].softmax(0).max()),
                    image=images.select(-4, index).cpu(),
                )
            )
        missing = DETAILS - sum(len(part) for _, part in self.details)
        if missing > 0:
            kept = labels[:missing].cpu()
            self.details.append((images.narrow(-4, 0, len(kept)).cpu(), kept))
        self.images += len(labels)


@dataclass(frozen=True, eq=False, repr=False)
class NetworkReport(Displayed):
    """One network on the page.

    Attributes:
        network: its file's name.
        sha256: of that file, or empty.
        data: which images it was measured on.
        timesteps: T.
        end_to_end_steps: steps from the first input to the answer.
        report: accuracy and agreement at 1, 2, 4, ... and T.
        answers: image by image.
        verification: layer by layer; None where that cannot be told.
        operations: counts; None likewise.
        energy: the estimate; None likewise.
        missing: why these are None, by their names.
        limits: the smallest and the largest limit of the source's ReLUs; None if none has one.
        shortcuts: scales of the residual branches.
        traces: recorded on the first image.
        classes: their names.
        provenance: of the artifact.
    """

    network: str
    sha256: str
    data: str
    timesteps: int
    end_to_end_steps: int
    report: Report
    answers: Answers
    verification: Verification | None
    operations: Operations | None
    energy: Energy | None
    missing: Mapping[str, str]
    limits: tuple[float, float] | None
    shortcuts: tuple[Shortcut, ...]
    traces: tuple[Trace, ...]
    classes: tuple[str, ...]
    provenance: Provenance

    @property
    def trained(self) -> bool:
        """Whether it was trained as a spiking network, and has no ANN."""
        return self.report.ann is None

    @property
    def rival(self) -> Rival:
        """What it is compared with."""
        return DENSE if self.trained else SOURCE

    @property
    def drop(self) -> tuple[float, float]:
        """The 95 % interval of its ANN's top-1 accuracy, or its own after the T trained for, minus the SNN's."""
        both, snn, ann, neither = self.answers.right
        return paired_difference(both, ann, snn, neither)

    def interval(self, share: float) -> tuple[float, float]:
        """The 95 % interval of a share of the evaluated images."""
        return wilson(round(share * self.report.images), self.report.images)

    def class_name(self, index: int) -> str:
        """The class as people call it."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"

    def _lines(self) -> Iterable[str]:
        yield f"Report on {self.network or 'a network'}, T = {self.timesteps}"
        _, *rest, _ = self.report._lines()
        yield from rest
        yield self.verification.verdict if self.verification else f"verification: {self.missing['verification']}"
        yield "its parts: .report .verification .operations .energy .shortcuts .traces"

    def _parts(self) -> Iterable[str | Table]:
        parts = (self.report, self.verification, self.operations, self.energy)
        for part in parts:
            if part is not None:
                yield from part._parts()
        yield from (f"{name}: {reason}" for name, reason in self.missing.items())

    def to_dict(self) -> dict[str, Any]:
        """The network's entry in report.json; a figure that does not exist is null, such as of an absent ANN."""
        report = self.report.to_dict()
        for row in report["snn"]:
            row.update({f"{name}_interval": self.interval(row[name]) for name in ("top1", "agreement")})
        if not self.trained:
            report["ann"]["top1_interval"] = self.interval(report["ann"]["top1"])
        verified = self.verification.to_dict() if self.verification else None
        for layer in verified["layers"] if verified else ():
            del layer["channels"]  # sresnet verify --json has them
        both, snn, ann, neither = self.answers.right
        entry = {
            "network": self.network,
            "sha256": self.sha256,
            "data": self.data,
            "timesteps": self.timesteps,
            "end_to_end_steps": self.end_to_end_steps,
            "alphabet": self.report.alphabet,
            "limits": self.limits,
            "evaluation": report,
            "drop": None if self.trained else (ann - snn) / self.answers.images,
            "drop_interval": None if self.trained else self.drop,
            "answers": None
            if self.trained
            else {
                "right": {"both": both, "snn_only": snn, "ann_only": ann, "neither": neither},
                "disagreements": self.answers.disagreements,
                "disagreements_both_wrong": self.answers.wrong,
                "examples": [_named(example, self) for example in self.answers.examples],
            },
            "verification": verified,
            "operations": self.operations.to_dict() if self.operations else None,
            "acs_per_ann_mac": self.operations.spikes_per_synapse if self.operations else None,
            "energy": self.energy.to_dict() if self.energy else None,
            "missing": dict(self.missing),
            "shortcuts": [asdict(branch) for branch in self.shortcuts],
            "traces": [_listed(trace) for trace in self.traces],
            "classes": self.classes,
            "provenance": self.provenance.without_lists().to_json(),
        }
        return dict(plain(entry))


Networks = Sequence[NetworkReport]


def compared(one: NetworkReport, other: NetworkReport) -> tuple[float, float]:
    """The 95 % interval of the first network's top-1 accuracy minus the second's, on the same images."""
    pairs = list(zip(one.answers.hits, other.answers.hits, strict=True))
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return paired_difference(*(pairs.count(kind) for kind in kinds))


def _named(example: Example, net: NetworkReport) -> dict[str, Any]:
    entry: dict[str, Any] = {"place": example.place}
    for name in ("label", "ann", "snn"):
        entry[name] = getattr(example, name)
        entry[f"{name}_class"] = net.class_name(entry[name])
    return {**entry, "ann_share": example.ann_share, "snn_share": example.snn_share}


def _listed(trace: Trace) -> dict[str, Any]:
    """A trace with the steps of each neuron's spikes, on the network's clock, and what was emitted then."""
    events = [
        [[trace.begins + trace.lag + step + 1, float(row[step])] for step in row.nonzero()[:, 0].tolist()]
        for row in trace.spikes.T
    ]
    potentials = None if trace.membrane is None else [[round(v, 5) for v in row] for row in trace.membrane.T.tolist()]
    entry = {"layer": trace.layer, "neurons": trace.neurons, "begins": trace.begins, "lag": trace.lag}
    return {**entry, "spikes": events, "membrane": potentials}


@dataclass(frozen=True, repr=False)
class ReportSettings(Displayed):
    """What the page says of a network besides its figures, and how these are estimated.

    Attributes:
        sha256: the digest of its file.
        data: which images these are; by default what the loader says.
        classes: their names; by default those of the provenance.
        constants: of the energy estimate.
        progress: whether to show bars on stderr when it is a terminal.
    """

    sha256: str = ""
    data: str = ""
    classes: tuple[str, ...] = ()
    constants: Constants = CONSTANTS
    progress: bool = False


USUAL = ReportSettings()


def measure(
    snn: Graph,
    loader: Iterable[tuple[Tensor, Tensor]],
    timesteps: int,
    settings: ReportSettings = USUAL,
    *,
    network: str = "",
    device: str = "auto",
) -> NetworkReport:
    """Measure all that the page says about a network: accuracy on all images, layers and operations on the first 128.

    Args:
        snn: a converted or directly trained network.
        loader: batches of (images ``[B, 3, H, W]`` or events ``[T, B, 2, H, W]``, labels ``[B]``), read once.
        timesteps: T >= 1.
        settings: digest, names and constants.
        network: the name of its file, for the page.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        InvalidData: no images, labels that the network has no class for, or T below 1.
        BackendUnavailable: ``device="cuda"`` without a GPU.
    """
    remedy = "Pass s_resnet.report.ReportSettings(...), and the name as network=..."
    check_kind(settings, ReportSettings, "report", "settings", remedy)
    target, progress = find_device(device), settings.progress
    snn, answers, missing = snn.at(timesteps).to(target), Answers(), dict[str, str]()
    evaluation = EvaluationSettings(network=network, progress=progress, watch=answers)
    report = evaluate(snn, loader, timesteps, evaluation, at=powers_of_two(timesteps), device=device)
    verification: Verification | None = None
    operations: Operations | None = None
    try:
        verification = verify(snn, answers.details, timesteps, network=network, progress=progress)
    except InvalidData as error:
        missing["verification"] = str(error)
    try:
        operations = count_operations(snn, answers.details, timesteps, progress=progress)
    except InvalidData as error:
        missing["operations"] = str(error)
    first = answers.details[0][0].narrow(-4, 0, 1).to(target)
    return NetworkReport(
        network=network,
        sha256=settings.sha256,
        data=settings.data or described(report.data, report.images),
        timesteps=timesteps,
        end_to_end_steps=snn.end_to_end_steps(timesteps),
        report=report,
        answers=answers,
        verification=verification,
        operations=operations,
        energy=energy(operations, settings.constants) if operations else None,
        missing=missing,
        limits=limits(snn),
        shortcuts=() if snn.trained else shortcuts(snn),
        traces=record(snn, first, timesteps, _some(snn), NEURONS),
        classes=settings.classes or snn.provenance.classes or (),
        provenance=snn.provenance,
    )


def _some(snn: Graph) -> list[str]:
    """A few neuron layers from the first to the last; those that integrate a residual branch rather than others."""
    names = [node.name for node in snn.neurons]
    joins = [node.name for node in snn.neurons if isinstance(node.op, Neuron) and len(node.inputs) > 1]
    between = joins if len(joins) >= LAYERS - 1 else names[1:]
    places = torch.linspace(0, len(between) - 1, min(LAYERS - 1, len(between))).round().long().tolist()
    return [names[0], *(between[place] for place in places)]
