"""Fine-tuning: a converted network trained on at few steps, with labels, and kept where held-out images agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..data.events import EventData
from ..data.images import ImageData, Preprocessing
from ..data.leakage import fingerprints
from ..data.loader import ImageLoader
from ..errors import InvalidData, message
from ..graph.graph import Graph
from ..graph.module import GraphModule
from ..runtime.device import find_device, prefetch
from ..runtime.display import Displayed, Table, percent
from .loop import TrainingResult, epochs, train
from .run import Parts, split
from .settings import Training

HELD_OUT = 256  # at most, and an eighth of the images at most


@dataclass(frozen=True, repr=False)
class FineTuning(Displayed):
    """A fine-tuned network, or the one before where held-out images say that it was no worse.

    before, after: its top-1 at T on the held-out images. history: one entry per epoch, as of :class:`TrainingResult`.
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
    device: str = "auto",
    workers: int | None = None,
    progress: bool = False,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
) -> FineTuning:
    """Train the spiking weights and corrections of a converted network at ``settings.timesteps`` steps, with labels.

    The loss is the cross entropy of the answer, the gradient that of :class:`s_resnet.graph.GraphModule`. The rest is
    :func:`s_resnet.train`: a checkpoint after every epoch, from which the same call goes on, to the same weights on the
    CPU. ``settings.validation`` training images (by default 256, an eighth at most) are never learned from; at the end
    the tuned network is kept if it is right on more of them, or on as many with a smaller loss. The analog run stays
    the source's; provenance says what was done, and the fingerprints of the images that it has seen where the data
    have no split of their own.

    Args:
        graph: a converted network, from a file or from convert, that says its preprocessing.
        data: training images with labels.
        checkpoint: where the state of the run goes.
        settings: by default those of :func:`s_resnet.training.fine_tuning_defaults`, at the T that the network was
            converted for.

    Raises as :func:`s_resnet.train`, and InvalidData for a network that cannot be tuned or has other classes, and for
    event recordings.
    """
    if isinstance(data, EventData):
        raise InvalidData(message("fine-tuning", "", f"event recordings in {data.spec!r}", "images", "Name such data"))
    settings, preprocessing, arch = _settled(graph, data, settings or fine_tuning_defaults())
    assert settings.timesteps is not None
    module = GraphModule(graph, settings.timesteps)
    classes = len(list(module.parameters())[-1])
    if classes != len(data.classes):
        got = f"{len(data.classes)} classes in {data.spec!r} for a network of {classes}"
        raise InvalidData(message("fine-tuning", "", got, "equal numbers", "Choose the data that it was made for"))
    trained = train(
        *(arch, data, checkpoint, settings),
        test=test,
        preprocessing=preprocessing,
        device=device,
        workers=workers,
        progress=progress,
        on_epoch=on_epoch,
        on_note=on_note,
        tensorboard=tensorboard,
        network=module,
    )
    parts = split(data, test, settings)
    held_out = ImageLoader(data, parts.validation, preprocessing, settings.batch_size)
    before, after = (_score(m, held_out, device) for m in (GraphModule(graph, settings.timesteps), trained.model))
    kept = after > before
    tuned = _documented(graph, module.graph(), trained, data, parts, before[0], after[0]) if kept else graph
    return FineTuning(tuned, kept, before[0], after[0], trained.history)


def fine_tuning_defaults(**changes: Any) -> Training:
    """The usual settings of fine-tuning, with these changed: AdamW, 0.0003 falling to 0, 5 epochs of batches of 64."""
    return replace(Training("adamw", lr=3e-4, weight_decay=0.0, epochs=5, batch_size=64), **changes)


def _settled(graph: Graph, data: ImageData, settings: Training) -> tuple[Training, Preprocessing, str]:
    """The settings with T and held-out images, the preprocessing, and what the network is called."""
    stored = graph.provenance.get("preprocessing")
    if stored is None or "mean" not in stored:
        got = "a network that does not say how its images are preprocessed"
        remedy = "Add preprocessing=vars(s_resnet.data.preprocessing_for(size, mean, std)) by with_provenance"
        raise InvalidData(message("fine-tuning", "", got, "size, mean and std", remedy))
    timesteps = settings.timesteps or graph.provenance.get("recipe", {}).get("timesteps")
    if timesteps is None:
        raise InvalidData("fine-tuning: got no timesteps, and a network that does not say any. Give timesteps.")
    validation = settings.validation or min(HELD_OUT, len(data) // 8)
    preprocessing = Preprocessing(**stored)
    settings = replace(settings, timesteps=int(timesteps), validation=validation, size=preprocessing.size)
    return settings, preprocessing, str(graph.provenance.get("source", {}).get("arch", "a module from Python"))


def _score(module: torch.nn.Module, images: ImageLoader, device: str) -> tuple[float, float]:
    """The share of right answers, and the negative mean loss, which tells equal ones apart."""
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


def _documented(
    before: Graph, graph: Graph, trained: TrainingResult, data: ImageData, parts: Parts, old: float, new: float
) -> Graph:
    """The tuned network with what was done to it, and what it has seen."""
    settings, used = trained.settings, [*parts.train, *parts.validation]
    marks = fingerprints(data, used) if data.split == "all" else []
    known = before.provenance.get("data", {}).get("fingerprints", [])
    names = ("timesteps", "epochs", "optimizer", "lr", "weight_decay", "batch_size", "seed", "validation")
    tuning = {name: getattr(settings, name) for name in names}
    tuning |= {"data": data.spec, "split": data.split, "top1_before": old, "top1_after": new}
    seen = {"spec": data.spec, "split": data.split, "images": len(used), "fingerprints": sorted({*known, *marks})}
    recipe = {**before.provenance.get("recipe", {}), "timesteps": settings.timesteps}
    return graph.with_provenance(tuning=tuning, data=seen, recipe=recipe, classes=list(data.classes))
