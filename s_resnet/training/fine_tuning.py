"""Fine-tuning: a converted network is trained further at few steps, and kept if held-out images say it got better."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..data.events import EventData
from ..data.images import ImageData, Preprocessing
from ..data.leakage import fingerprints
from ..data.loader import ImageLoader
from ..errors import InvalidData, message
from ..graph.graph import Graph, check_spiking
from ..graph.module import GraphModule
from ..graph.provenance import SeenData, Tuning
from ..runtime.device import find_device, prefetch
from ..runtime.display import Displayed, Table, percent
from .loop import TrainingResult, carry_out, epochs
from .run import Parts, Task, check_data, split
from .settings import Execution, Training

HELD_OUT = 256  # images, but at most an eighth of all


@dataclass(frozen=True, repr=False)
class FineTuning(Displayed):
    """A fine-tuned network, or the network before it where held-out images say that it is no better.

    Attributes:
        graph: the better network of the two.
        kept: whether that is the fine-tuned one.
        before: top-1 accuracy of the network before, at T steps on the held-out images.
        after: the same of the fine-tuned one.
        history: an entry for each epoch, as in :class:`TrainingResult`.
    """

    graph: Graph
    kept: bool
    before: float
    after: float
    history: tuple[Mapping[str, Any], ...]

    def _lines(self) -> Iterator[str]:
        yield f"Fine-tuning, {len(self.history)} epochs, {'kept' if self.kept else 'not kept'}"
        yield f"top-1 on held-out images: {percent(self.before, 2)} before, {percent(self.after, 2)} after"
        yield "print(_.table()) shows every epoch, .graph is the network"

    def _parts(self) -> Iterator[str | Table]:
        head, compared, _ = self._lines()
        yield f"{head}\n{compared}"
        yield epochs(self.history)


def fine_tune(
    graph: Graph,
    data: ImageData | EventData,
    checkpoint: str | os.PathLike[str],
    settings: Training | None = None,
    *,
    test: ImageData | None = None,
    execution: Execution | None = None,
) -> FineTuning:
    """Train the spiking weights and corrections of a converted network at T steps, with labels.

    The loss is the cross entropy of the answer, the gradient that of :class:`s_resnet.graph.GraphModule`. As with
    :func:`s_resnet.train` there is a checkpoint after every epoch, from which the same call resumes, on the CPU to
    bit-identical weights. Some training images are held out; at the end the new network is kept if it is right on more
    of them, or on as many with a smaller loss. The analog run stays that of the source. The provenance records what was
    done and, for data without a split, the fingerprints of the images that were used.

    Args:
        graph: a converted network that records its preprocessing.
        data: training images with labels.
        checkpoint: where the state of the run is kept.
        settings: by default :func:`s_resnet.training.fine_tuning_defaults` at the T that the network was converted for.
            ``validation`` images are held out, by default 256, but at most an eighth of all.
        test: test images, for the accuracy in the history. They choose nothing.
        execution: how the run is carried out and reported; by default ``Execution()``.

    Raises:
        InvalidData: event recordings, another number of classes, or a network that cannot be fine-tuned.
        SResNetError: ``checkpoint`` holds another run, or cannot be written.
        TrainingDiverged: a loss or weight is not finite; the checkpoint of the epoch before is kept.
        BackendUnavailable: the device, or tensorboard, is not there.
    """
    check_spiking(graph, "fine-tuning")
    check_data(data, test, "fine-tuning")
    if isinstance(data, EventData):
        got = f"event recordings in {data.spec!r}"
        raise InvalidData(message("fine-tuning", "", got, "images", "Pass image data"))
    settings, execution = _settled(graph, data, settings or fine_tuning_defaults()), execution or Execution()
    assert settings.timesteps is not None and isinstance(settings.preprocessing, Preprocessing)
    module = GraphModule(graph, settings.timesteps)
    classes = len(list(module.parameters())[-1])
    if classes != len(data.classes):
        got = f"{len(data.classes)} classes in {data.spec!r} for a network of {classes}"
        raise InvalidData(message("fine-tuning", "", got, "equal numbers", "Pass the data that it was made for"))
    name = graph.provenance.source.arch or "a module from Python"
    trained = carry_out(Task(name, data, Path(checkpoint), settings, test, module), execution)
    parts = split(data, test, settings)
    held_out = ImageLoader(data, parts.validation, settings.preprocessing, settings.batch_size)
    before = _score(GraphModule(graph, settings.timesteps), held_out, execution.device)
    after = _score(trained.model, held_out, execution.device)
    kept = after > before
    result = FineTuning(graph, kept, before[0], after[0], trained.history)
    return replace(result, graph=_documented(result, module.graph(), trained, data, parts)) if kept else result


def fine_tuning_defaults(**changes: Any) -> Training:
    """The usual settings of fine-tuning: AdamW, a learning rate that falls from 0.0003 to 0, 5 epochs of batches of 64.

    Args:
        **changes: other values for fields of :class:`Training`.
    """
    return replace(Training("adamw", lr=3e-4, weight_decay=0.0, epochs=5, batch_size=64), **changes)


def _settled(graph: Graph, data: ImageData, settings: Training) -> Training:
    """The settings with T, the number of held-out images, and the network's preprocessing."""
    known = graph.provenance
    if not isinstance(known.preprocessing, Preprocessing):
        got = "a network that does not say how its images are preprocessed"
        remedy = "Add them: snn.with_provenance(preprocessing=s_resnet.data.preprocessing_for(size, mean, std))"
        raise InvalidData(message("fine-tuning", "", got, "size, mean and std", remedy))
    timesteps = settings.timesteps or known.recipe.timesteps
    if timesteps is None:
        got, expected = "no timesteps, and a network that does not say any", "a number of steps"
        raise InvalidData(message("fine-tuning", "", got, expected, "Set timesteps in the settings"))
    validation = settings.validation or min(HELD_OUT, len(data) // 8)
    preprocessing, size = known.preprocessing, known.preprocessing.size
    return replace(settings, timesteps=timesteps, validation=validation, size=size, preprocessing=preprocessing)


def _score(module: torch.nn.Module, images: ImageLoader, device: str) -> tuple[float, float]:
    """The share of right answers, and the negative mean loss, which decides between equal ones."""
    found = find_device(device)
    module = module.to(found).eval()
    right = loss = count = 0.0
    with torch.no_grad():
        for x, y in prefetch(images, found):
            logits = module(x).float()
            right += float((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            count += len(y)
    return right / max(1.0, count), -loss / max(1.0, count)


def _documented(result: FineTuning, graph: Graph, trained: TrainingResult, data: ImageData, parts: Parts) -> Graph:
    """The fine-tuned network with a record of what was done to it, and of the images that were used.

    Args:
        result: the network before, and both accuracies.
        graph: the fine-tuned network.
        trained: the run.
        data: its images.
        parts: how they were used.
    """
    before = result.graph
    settings, used = trained.settings, [*parts.train, *parts.validation]
    new = fingerprints(data, used) if data.split == "all" else []
    known = before.provenance.data.fingerprints or ()
    tuning = Tuning(
        timesteps=settings.timesteps,
        epochs=settings.epochs,
        optimizer=settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        batch_size=settings.batch_size,
        seed=settings.seed,
        validation=settings.validation,
        data=data.spec,
        split=data.split,
        top1_before=result.before,
        top1_after=result.after,
    )
    seen = SeenData(data.spec, data.split, len(used), tuple(sorted({*known, *new})))
    recipe = replace(before.provenance.recipe, timesteps=settings.timesteps)
    return graph.with_provenance(tuning=tuning, data=seen, recipe=recipe, classes=tuple(data.classes))
