"""What a comparison is made of: a network at one T, its ANN, or that ANN quantized, each measured on the same images.

Every candidate keeps its answer to each image, so that any two of them can be compared in pairs, and is an entry that
can be kept in a file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import check_batches, labeled, whole_number
from ..errors import InvalidData, message
from ..graph.alphabet import Copies, Differential
from ..graph.graph import Graph, check_spiking
from ..graph.neuron import Neuron
from ..graph.provenance.entry import Entry, between, flag, listed, said, text, whole
from ..runtime.device import find_device, prefetch
from ..runtime.display import Displayed
from ..runtime.progress import Progress
from .cost.operations import count_operations
from .evaluate import EvaluationSettings, evaluate
from .figures import described
from .measured_on import check_labels, every_fitted

SNN, ANN, QUANTIZED = "snn", "ann", "quantized"
KINDS = (SNN, ANN, QUANTIZED)
OPERATIONS = 64  # images that operations are counted on: counting takes several times a simulation
FLOAT_BITS = 32  # of an activation of the ANN
count, answer, amount = whole(0, 2**31 - 1), whole(0, 2**31 - 1), between(-1e-300, math.inf)


def kind_of(value: object, where: str) -> str:
    """One of KINDS.

    Raises:
        InvalidData: it is another one.
    """
    if value not in KINDS:
        got, remedy = repr(value), "Measure it again"
        raise InvalidData(message(where, "", got, f"one of {', '.join(KINDS)}", remedy))
    return str(value)


@dataclass(frozen=True, repr=False)
class Candidate(Entry):
    """A row of a comparison before it is compared: what was measured, or why nothing was.

    Attributes:
        network: the trained network that it stands for; candidates of one network are compared with its ANN.
        name: what it is called beside the others: a recipe or a file.
        kind: ``"snn"``, ``"ann"``, or ``"quantized"`` for the ANN with quantized activations.
        latency: the most end-to-end steps that were asked for; None if none were.
        timesteps: T.
        end_to_end_steps: steps from the first input to the answer.
        alphabet: what neurons send, as :attr:`s_resnet.Graph.alphabet`.
        bits: of what is sent at once: log2 of the number of values, and 32 for an ANN.
        levels: the largest count that an activation can have: T times the most of a step, or that of a quantizer.
        fitted: whether the recipe was fitted to this T; None for one that is not fitted to a T.
        answers: the class that it answers, image by image.
        seconds: per image, of the simulation or of the ANN's pass, as measured.
        spikes_per_neuron: per image.
        synops: accumulations that spikes cause, per image.
        macs: multiply-accumulates per image: of an SNN, those where something other than spikes is read.
        ann_macs: multiply-accumulates of its ANN per image.
        uncounted: why operations could not be counted, in words.
        run_on: device, kernel and threads that the time was measured with.
        reason: why there are no answers, in words.
    """

    network: str = field(metadata={"kind": text})
    name: str = field(metadata={"kind": text})
    kind: str = field(metadata={"kind": kind_of})
    latency: int | None = said(count)
    timesteps: int | None = said(count)
    end_to_end_steps: int | None = said(count)
    alphabet: str | None = said(text)
    bits: float | None = said(amount)
    levels: int | None = said(count)
    fitted: bool | None = said(flag)
    answers: tuple[int, ...] | None = said(listed(answer))
    seconds: float | None = said(amount)
    spikes_per_neuron: float | None = said(amount)
    synops: float | None = said(amount)
    macs: float | None = said(amount)
    ann_macs: float | None = said(amount)
    uncounted: str | None = said(text)
    run_on: str | None = said(text)
    reason: str | None = said(text)


@dataclass(frozen=True, repr=False)
class Measured(Entry):
    """Candidates that answered the same images in one run.

    Attributes:
        labels: of the images.
        candidates: those that answered.
        data: which images these are, in words.
        notes: what about the images is probably not as intended.
    """

    labels: tuple[int, ...] = field(metadata={"kind": listed(answer)})
    candidates: tuple[Candidate, ...] = field(metadata={"kind": listed(Candidate.read)})
    data: str | None = said(text)
    notes: tuple[str, ...] | None = said(listed(text))


@dataclass(frozen=True, repr=False)
class MeasuringSettings(Displayed):
    """How candidates are called, and how they are measured.

    Attributes:
        network: the trained network that they stand for.
        name: what they are called beside others.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        operations: how many of the first images operations are counted on; 0: none.
        progress: whether to show bars on stderr when it is a terminal.
    """

    network: str
    name: str
    device: str = "auto"
    operations: int = OPERATIONS
    progress: bool = False


class _Watch:
    """Collects what :func:`s_resnet.evaluate` sees: labels, the answers at each T, and the first images."""

    def __init__(self, rows: int, first: int) -> None:
        self.labels, self.first = list[int](), first
        self.answers: list[list[int]] = [[] for _ in range(rows)]
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor, labels: Tensor, ann: Tensor, outputs: Tensor) -> None:
        for row, output in zip(self.answers, outputs, strict=True):
            row += output.argmax(1).tolist()
        missing = self.first - len(self.labels)
        if missing > 0:
            self.images.append(images.narrow(-4, 0, min(missing, len(labels))).cpu())
        self.labels += labels.tolist()


def measure_candidates(
    snn: Graph, loader: Iterable[Any], timesteps: Sequence[int], settings: MeasuringSettings
) -> Measured:
    """A spiking network at each of some T: its answers, its time, and what it computes.

    Args:
        snn: a converted or directly trained network.
        loader: batches of (images, labels), as for :func:`s_resnet.evaluate`.
        timesteps: every T.
        settings: names, and how to measure.

    Raises:
        InvalidData: there is no T, or images and labels do not fit.
        BackendUnavailable: the device is not there.
    """
    check_spiking(snn, "compare")
    at = tuple(sorted({whole_number(step, "compare", "timesteps") for step in timesteps}))
    if not at:
        raise InvalidData(message("compare", "timesteps", "none", "at least one T", "Pass [16]"))
    _warm(snn.to(find_device(settings.device)))
    watch = _Watch(len(at), settings.operations)
    how = EvaluationSettings(network=settings.name, progress=settings.progress, watch=watch)
    report = evaluate(snn, loader, at[-1], how, at=at, device=settings.device)
    fitted, most = every_fitted(snn), max(node.op.max_emission for node in snn.neurons if isinstance(node.op, Neuron))
    found = []
    for row, steps, answers in zip(report.snn, at, watch.answers, strict=True):
        made = Candidate(
            settings.network,
            settings.name,
            SNN,
            timesteps=steps,
            end_to_end_steps=row.end_to_end_steps,
            alphabet=snn.alphabet,
            bits=bits_per_spike(snn),
            levels=steps * most,
            fitted=steps in fitted if fitted else None,
            answers=tuple(answers),
            seconds=report.seconds_per_step_per_image * steps,
            spikes_per_neuron=row.spikes_per_neuron,
            run_on=_run_on(report.device, report.kernel),
        )
        found.append(_counted(made, snn, watch.images, settings))
    return Measured(tuple(watch.labels), tuple(found), described(report.data, report.images), report.notes)


def _warm(snn: Graph) -> None:
    """Run a blank image once: the first run compiles kernels, which is no time of the network."""
    shape = snn.provenance.input_shape
    if shape is not None:
        snn(torch.zeros(1, *shape, device=snn.device), 1)


def _counted(made: Candidate, snn: Graph, images: Sequence[Tensor], settings: MeasuringSettings) -> Candidate:
    """The candidate with its operations, or with the reason why they cannot be counted."""
    if not images or made.timesteps is None:
        return made
    try:
        counts = count_operations(snn, images, made.timesteps, progress=settings.progress)
    except InvalidData as error:
        return replace(made, uncounted=str(error))
    total = counts.total
    return replace(made, synops=total.acs, macs=total.macs, ann_macs=float(total.ann.macs))


def measure_ann(
    graph: Graph, loader: Iterable[Any], settings: MeasuringSettings, levels: int | None = None
) -> Measured:
    """The source network of a graph: its answers and its time.

    Args:
        graph: a converted network, whose analog run is the source network, or a graph of
            :func:`s_resnet.conversion.quantized_ann`.
        loader: batches of (images, labels).
        settings: names, and how to measure; there is nothing to count.
        levels: of the quantized activations; None for the ANN as it was trained.

    Raises:
        InvalidData: there are no images, a label is none of the classes, or the network is its own source.
        BackendUnavailable: the device is not there.
    """
    check_batches(loader, "compare")
    if graph.trained:
        got, remedy = "a network that was trained as a spiking one", "Measure it with measure_candidates"
        raise InvalidData(message("compare", "", got, "one with an ANN", remedy))
    target = find_device(settings.device)
    graph, labels, answers, seconds = graph.to(target), list[int](), list[int](), 0.0
    batches = Progress(loader, desc=settings.name, unit="batch", shown=settings.progress)
    for images, own in prefetch(labeled(batches, "compare"), target):
        parts = graph.portions(images)
        if not labels:  # the first pass also allocates, and chooses algorithms
            graph.run(images.narrow(-4, 0, 1))
        start = time.perf_counter()
        with torch.no_grad():
            logits = torch.cat([graph.run(part).flatten(1) for part in torch.split(images, parts, -4)])
        if target.type == "cuda":
            torch.cuda.synchronize(target)
        seconds += time.perf_counter() - start
        check_labels(own, logits.shape[1], "compare")
        answers += logits.argmax(1).tolist()
        labels += own.tolist()
    if not labels:
        remedy = "Pass a loader that yields batches; a generator can be read only once"
        raise InvalidData(message("compare", "", "no images", "at least one batch", remedy))
    made = Candidate(
        settings.network,
        settings.name,
        ANN if levels is None else QUANTIZED,
        bits=float(FLOAT_BITS) if levels is None else math.log2(levels + 1),
        levels=levels,
        answers=tuple(answers),
        seconds=seconds / len(labels),
        run_on=_run_on(target.type, "torch"),
    )
    return Measured(tuple(labels), (made,))


def bits_per_spike(snn: Graph) -> float:
    """log2 of the number of values that one of its neurons can send in a step: 1 for spikes of 0 and 1."""
    ops = [node.op for node in snn.neurons if isinstance(node.op, Neuron)]
    return math.log2(max(_values(op) for op in ops))


def _values(op: Neuron) -> int:
    """How many values a step may send, 0 among them; each of several copies of a neuron sends 0 or 1."""
    if isinstance(op.spikes, Copies):
        return 2
    both = op.spikes.signed or isinstance(op.spikes, Differential)
    return op.max_emission * (2 if both else 1) + 1


def _run_on(device: str, kernel: str) -> str:
    threads = torch.get_num_threads()
    where = f"{device}, kernel {kernel}" if kernel != "torch" else f"{device}, torch"
    return where if device != "cpu" else f"{where}, {threads} thread{'s' * (threads > 1)}"
