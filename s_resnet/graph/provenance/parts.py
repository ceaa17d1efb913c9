"""The parts of a network's provenance: what a pass, a calibration or a training says of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .entry import Entry, between, flag, listed, mark, named, number, optional, said, text, whole

STEPS = 2**16  # the most that make sense, so that no file has a run without an end
count, many, finite = whole(0, 2**31 - 1), whole(0, 2**63 - 1), between(-1e30, 1e30)


@dataclass(frozen=True, repr=False)
class AppliedPass(Entry):
    """A pass of the recipe that changed the network, with its settings as ``extra``.

    Attributes:
        name: of the pass; ``"pass"`` in JSON.
    """

    name: str = field(metadata={"kind": text, "key": "pass"})


@dataclass(frozen=True, repr=False)
class AppliedRecipe(Entry):
    """What the network was converted by.

    Attributes:
        name: of the recipe; ``"trained"`` of a network that was trained as a spiking one.
        timesteps: the T that it was converted, tuned or trained for.
        passes: those that changed the network, in their order.
    """

    name: str | None = said(text)
    timesteps: int | None = said(optional(whole(1, STEPS)))
    passes: tuple[AppliedPass, ...] | None = said(listed(AppliedPass.read))


@dataclass(frozen=True, repr=False)
class Source(Entry):
    """The checkpoint that the network was converted from.

    Attributes:
        name: of the file, without its folder.
        arch: architecture, as the catalog names it.
        classes: how many it tells apart.
        sha256: of the file, in hexadecimal.
    """

    name: str | None = said(text)
    arch: str | None = said(text)
    classes: int | None = said(count)
    sha256: str | None = said(text)


@dataclass(frozen=True, repr=False)
class SeenData(Entry):
    """The data that the network was calibrated, fine-tuned or trained on.

    Attributes:
        spec: as :func:`s_resnet.data.open_data` takes it.
        split: ``"train"``, ``"test"`` or ``"all"``.
        images: how many of them were used.
        fingerprints: of these images; an evaluation leaves them out. Where the data have a split of their own, training
            does not write them.
        digest: of names and labels of the images that a training learned from.
    """

    spec: str | None = said(text)
    split: str | None = said(text)
    images: int | None = said(count)
    fingerprints: tuple[str, ...] | None = said(listed(text))
    digest: str | None = said(text)


@dataclass(frozen=True, repr=False)
class CalibrationSummary(Entry):
    """What is kept of a :class:`s_resnet.Calibration`.

    Attributes:
        source: ``"data"``, ``"distilled"``, ``"batchnorm"`` or ``"training"``.
        percentile: of the activations, in percent.
        images: how many were counted.
        held_out: how many were kept apart for passes that search.
        fitted: how many there were for passes that fit.
        scales: lambda of every calibrated node, in activation units.
        silent: nodes that were never above zero.
        marks: of the images, so that an evaluation counts those that it sees again.
        seed: of distilled images.
    """

    source: str | None = said(text)
    percentile: float | None = said(number)
    images: int | None = said(count)
    held_out: int | None = said(count)
    fitted: int | None = said(count)
    scales: Mapping[str, float] | None = said(named(between(0, math.inf)))
    silent: tuple[str, ...] | None = said(listed(text))
    marks: tuple[str | int, ...] | None = said(listed(mark))
    seed: int | None = said(optional(count))


@dataclass(frozen=True, repr=False)
class BatchNormFit(Entry):
    """How well the statistics of BatchNorm layers fit the calibration images.

    Attributes:
        score: below 1 where they fit.
        first: the first layer that does not fit, or None.
    """

    score: float = field(metadata={"kind": number})
    first: str | None = field(metadata={"kind": optional(text)})


@dataclass(frozen=True, repr=False)
class SourceSummary(Entry):
    """What a look at the source network and the first calibration images told.

    Attributes:
        images: how many were looked at.
        confidence: mean softmax of the answers.
        right: how many answers were the labels, where there are labels.
        batchnorm: where the network has BatchNorm layers.
        mean: of the images' values, per channel.
        std: of the images' values, per channel.
        notes: what looks wrong.
    """

    images: int | None = said(count)
    confidence: float | None = said(number)
    right: int | None = said(count)
    batchnorm: BatchNormFit | None = said(BatchNormFit.read)
    mean: tuple[float, ...] | None = said(listed(finite))
    std: tuple[float, ...] | None = said(listed(finite))
    notes: tuple[str, ...] | None = said(listed(text))


@dataclass(frozen=True, repr=False)
class TriedFactor(Entry):
    """A factor that the compensation tried.

    Attributes:
        factor: on every synaptic weight.
        logit_error: relative distance of the answers from the source network's.
    """

    factor: float = field(metadata={"kind": number})
    logit_error: float | None = said(number)


@dataclass(frozen=True, repr=False)
class Compensation(Entry):
    """The compensation for discretization: one factor on every synaptic weight.

    Attributes:
        factor: the one taken.
        timesteps: the T that it is for.
        expected: what the calibration lets one expect, where factors were tried.
        images: how many they were tried on.
        criterion: what was to be small.
        range: the least and the largest that were tried.
        curve: all that were tried, by size; empty where the factor was not searched.
        reason: why it was not.
    """

    factor: float | None = said(number)
    timesteps: int | None = said(count)
    expected: float | None = said(number)
    images: int | None = said(count)
    criterion: str | None = said(text)
    range: tuple[float, ...] | None = said(listed(number))
    curve: tuple[TriedFactor, ...] | None = said(listed(TriedFactor.read))
    reason: str | None = said(text)


@dataclass(frozen=True, repr=False)
class ReconstructionSettings(Entry):
    """What a reconstruction was asked for.

    Attributes:
        steps: for each block.
        joint: for all blocks together.
        total: of all these.
        minutes: the most that it might take.
    """

    steps: int = field(metadata={"kind": many})
    joint: int = field(metadata={"kind": many})
    total: int = field(metadata={"kind": many})
    minutes: float = field(metadata={"kind": number})


@dataclass(frozen=True, repr=False)
class ReconstructedBlock(Entry):
    """What came of a block.

    Attributes:
        block: its last node, or ``"all together"``.
        steps: that it got.
        better: whether it is better for them; else it stayed as it was.
    """

    block: str = field(metadata={"kind": text})
    steps: int = field(metadata={"kind": count})
    better: bool = field(metadata={"kind": flag})


@dataclass(frozen=True, repr=False)
class Reconstruction(Entry):
    """What the pass ``reconstruct`` did.

    Attributes:
        blocks: in execution order, those that are finished.
        asked: None of one that was interrupted, as is what follows.
        images: how many were reconstructed on.
        taken: whether the network is what came of it; else it is what it was.
        key: of an interrupted one, what tells it from others.
    """

    blocks: tuple[ReconstructedBlock, ...] | None = said(listed(ReconstructedBlock.read))
    asked: ReconstructionSettings | None = said(ReconstructionSettings.read)
    images: int | None = said(count)
    taken: bool | None = said(flag)
    key: str | None = said(text)


@dataclass(frozen=True, repr=False)
class Trial(Entry):
    """A recipe that the choice tried at a T, on calibration images kept apart.

    Attributes:
        recipe: its name, with the layers that wait where not all do, as in ``"calibrated-lagged-blocks"``.
        timesteps: T.
        end_to_end_steps: from the first input to the answer.
        agreement: share of the images that it answers as the ANN does.
        standard_error: of the agreement.
        images: how many there were.
        disagreement_interval: the 95 % interval of the share that it answers otherwise.
    """

    recipe: str = field(metadata={"kind": text})
    timesteps: int = field(metadata={"kind": count})
    end_to_end_steps: int = field(metadata={"kind": count})
    agreement: float = field(metadata={"kind": number})
    standard_error: float = field(metadata={"kind": number})
    images: int = field(metadata={"kind": count})
    disagreement_interval: tuple[float, ...] = field(metadata={"kind": listed(number, 2)})


@dataclass(frozen=True, repr=False)
class Choice(Entry):
    """Why recipe ``"auto"`` chose as it did.

    Attributes:
        spikes: the alphabet that was allowed.
        reason: in words.
        trials: what was tried.
    """

    spikes: str | None = said(text)
    reason: str | None = said(text)
    trials: tuple[Trial, ...] | None = said(listed(Trial.read))


@dataclass(frozen=True, repr=False)
class Tuning(Entry):
    """A fine-tuning: the settings of :class:`s_resnet.Training` that it had, and what it was good for.

    Attributes:
        data: as :func:`s_resnet.data.open_data` takes it.
        split: of these data.
        top1_before: share of right answers on the images kept apart, before.
        top1_after: the same after it.
    """

    timesteps: int | None = said(count)
    epochs: int | None = said(count)
    optimizer: str | None = said(text)
    lr: float | None = said(number)
    weight_decay: float | None = said(number)
    batch_size: int | None = said(count)
    seed: int | None = said(whole(-(2**63), 2**64 - 1))
    validation: int | None = said(count)
    data: str | None = said(text)
    split: str | None = said(text)
    top1_before: float | None = said(number)
    top1_after: float | None = said(number)


@dataclass(frozen=True, repr=False)
class Versions(Entry):
    """What the network was converted with.

    Attributes:
        s_resnet: version of this package.
        torch: version of PyTorch.
    """

    s_resnet: str | None = said(text)
    torch: str | None = said(text)
