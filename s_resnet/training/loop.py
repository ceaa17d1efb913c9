"""The training loop: epochs of gradient descent on one or several processes, which can be interrupted and resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.arguments import check_kind
from ..data.events import EventData
from ..data.images import ImageData
from ..data.open import loader_for
from ..errors import BackendUnavailable, TrainingDiverged, message
from ..frontend.qcfs import THRESHOLDS
from ..runtime.device import find_device, prefetch
from ..runtime.display import Displayed, Table, brief, percent
from ..runtime.processes import all_gather, in_lockstep_batches, process_group, rank_and_world_size, shard
from ..runtime.progress import Progress, repeatable
from . import saved
from .images import epoch_loader, epoch_order
from .run import Run, Task, check_data, half_type, prepare, resume
from .settings import Execution, Training, derive_seed, learning_rate

# How many steps of a GPU go unchecked: reading a loss stalls the GPU.
UNCHECKED = 20


@dataclass(frozen=True, repr=False)
class TrainingResult(Displayed):
    """A finished run.

    Attributes:
        model: the network in evaluation mode.
        arch: its architecture.
        settings: what it was trained with.
        history: an entry for each epoch: ``epoch``, ``loss``, ``train_top1`` (on augmented images, during the epoch),
            ``validation_top1`` and ``test_top1`` (None without such images), ``lr`` (of the last step), ``seconds``.
        resumed: how many epochs an earlier call had finished.
        unreadable: test images that were left out.
    """

    model: nn.Module
    arch: str
    settings: Training
    history: tuple[Mapping[str, Any], ...]
    resumed: int
    unreadable: tuple[str, ...]

    def _lines(self) -> Iterator[str]:
        yield f"Training of {self.arch}, {len(self.history)} epochs, {self.resumed} of them before"
        yield from epochs(self.history[-1:]).text().splitlines()
        yield "print(_.table()) shows every epoch, .model is the network, .settings what it was trained with"

    def _parts(self) -> Iterator[str | Table]:
        yield f"{self.arch}   {brief(self.settings, 400)}"
        yield epochs(self.history)


def epochs(history: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a row per epoch and accuracies in percent, without empty columns."""
    names = [name for name in history[0] if any(entry[name] is not None for entry in history)] if history else []
    rows = (
        tuple(percent(entry[name], 2) if name.endswith("_top1") else brief(entry[name]) for name in names)
        for entry in history
    )
    return Table(tuple(name.replace("_", " ") for name in names), tuple(rows), texts=0)


def train(
    arch: str,
    data: ImageData | EventData,
    output: str | os.PathLike[str],
    settings: Training | None = None,
    *,
    test: ImageData | EventData | None = None,
    execution: Execution | None = None,
) -> TrainingResult:
    """Train an architecture on images or event recordings, and write a checkpoint after every epoch.

    If an earlier call was interrupted, the same call resumes from its checkpoint. On the CPU, with as many threads and
    processes, it ends with bit-identical weights: order, augmentation and dropout are derived from the seed and the
    epoch, image or step, and nothing else is random. In a process group, or started by torchrun, the processes share
    every batch.

    Args:
        arch: the name of the architecture, as in :func:`s_resnet.models.build`.
        data: the training images or recordings. Of data without a split (``split`` "all") a seeded tenth is for
            testing.
        output: the checkpoint.
        settings: what determines the run; by default ``Training()``.
        test: test images or recordings, for the accuracy in the history. They choose nothing.
        execution: how the run is carried out and reported; by default ``Execution()``.

    Raises:
        InvalidData: data or settings do not fit.
        SResNetError: ``output`` holds another run, or cannot be written.
        TrainingDiverged: a loss or weight is not finite; the checkpoint of the epoch before is kept.
        BackendUnavailable: the device, or tensorboard, is not there.
    """
    check_data(data, test, "train")
    return carry_out(Task(arch, data, Path(output), settings or Training(), test), execution or Execution())


def carry_out(task: Task, execution: Execution) -> TrainingResult:
    """Train what a task says, from its start or from where its checkpoint ends."""
    check_kind(task.settings, Training, "train", "settings", "Pass s_resnet.Training(epochs=...)")
    remedy = "Pass s_resnet.training.Execution(device=...)"
    check_kind(execution, Execution, "train", "execution", remedy)
    with process_group(execution.device) as (rank, _), ExitStack() as stack:
        execution = replace(execution, progress=execution.progress and rank == 0)
        run = prepare(task, execution, find_device(execution.device), stack)
        history = resume(run)
        resumed = len(history)
        if rank == 0 and execution.on_note:
            for note in _notes(run, resumed):
                execution.on_note(note)
        board = _board(execution.tensorboard, resumed, stack) if rank == 0 else None
        kept = [*history]  # in the checkpoint
        with repeatable(task.output, lambda: f"{len(kept)} of {run.settings.epochs} epochs" if kept else ""):
            for epoch in range(resumed, run.settings.epochs):
                entry = _epoch(run, epoch)
                history.append(entry)
                if rank == 0:
                    saved.write(task.output, {**run.identity, **_state(run), "epoch": epoch + 1, "history": history})
                    kept.append(entry)
                    _tell(board, entry)
                    if execution.on_epoch:
                        execution.on_epoch(entry)
            all_gather(None)
    return TrainingResult(run.model.eval(), task.arch, run.settings, tuple(history), resumed, tuple(run.unreadable))


def _state(run: Run) -> dict[str, Any]:
    """The entries of a checkpoint about network and optimizer.

    Raises:
        TrainingDiverged: a weight is not finite.
    """
    weights = run.model.state_dict()
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise _diverged(run, name, "after the last step of an epoch", "values that are nan or infinite")
    # In an entry of their own, so that the rest fits the plain architecture.
    thresholds = {name: weights.pop(name) for name in list(weights) if name.startswith(THRESHOLDS)}
    kept = {"thresholds": {name.removeprefix(THRESHOLDS): value for name, value in thresholds.items()}}
    state = {"state_dict": weights, "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict()}
    return {**state, **kept} if thresholds else state


def _header(run: Run) -> Iterator[str]:
    """What is trained on what and where, and the main settings."""
    settings, count = run.settings, sum(weight.numel() for weight in run.model.parameters())
    steps = "" if settings.timesteps is None else f", T = {settings.timesteps}"
    data = run.task.data
    images = f"{len(run.parts.train):,} of {len(data):,} images of {data.spec} ({data.split})"
    classes = f"{len(data.classes)} classes"
    yield f"Training {run.task.arch}{steps}, {count:,} parameters, on {images}, {classes}, on {run.device}"
    drop = f", {settings.gamma:g} times it every {settings.step_epochs}" if settings.schedule == "step" else ""
    augmented = ", ".join(settings.augmentation or ()) or "no augmentation"
    yield (
        f"Training by {settings.optimizer}, learning rate {settings.lr:g} ({settings.schedule}{drop}), weight decay "
        f"{settings.weight_decay:g}, {settings.epochs} epochs of batches of {settings.batch_size}, {augmented}, seed "
        f"{settings.seed}"
    )


def _notes(run: Run, resumed: int) -> Iterator[str]:
    epochs = run.settings.epochs
    if resumed < epochs:
        yield from _header(run)
    if run.task.arch.startswith("danet"):
        yield f"{run.task.arch}: DANet's equations are in no source that we have; the wiring is our interpretation."
    if resumed == epochs:
        yield f"{run.task.output} holds this run, finished: {epochs} epochs."
    elif resumed:
        yield f"{run.task.output} holds this run up to epoch {resumed} of {epochs}: it goes on from there."
    if run.parts.tested is run.task.data and run.parts.test:
        yield f"No test images: {len(run.parts.test)} of {len(run.task.data)} images are kept apart and tested on."
    if run.processes.apart:
        yield "BatchNorm has statistics per process: torch shares them on GPUs alone."


# ---- an epoch


def _epoch(run: Run, epoch: int) -> dict[str, Any]:
    started = time.perf_counter()
    loss, top1 = _learn(run, epoch)
    run.processes.share_buffers(run.model)
    validation = _accuracy(run, run.task.data, run.parts.validation)
    test = _accuracy(run, run.parts.tested, run.parts.test)
    lr = run.optimizer.param_groups[0]["lr"]
    figures = {"epoch": epoch + 1, "loss": loss, "train_top1": top1, "validation_top1": validation, "test_top1": test}
    return {**figures, "lr": lr, "seconds": time.perf_counter() - started}


def _learn(run: Run, epoch: int) -> tuple[float, float]:
    """One epoch of steps: the mean loss and the share of right answers, over all processes."""
    rank, world = rank_and_world_size()
    settings, device = run.settings, run.device
    batches = epoch_order(run.parts.train, settings, epoch, world)
    mine = [shard(batch, rank, world) for batch in batches]
    loader = epoch_loader(run.task.data, mine, run.preprocessing, settings, epoch, run.workers)
    run.wrapped.train()
    losses: list[Tensor] = []
    right, checked = torch.zeros((), device=device), 0
    every = UNCHECKED if device.type == "cuda" else 1
    title = f"epoch {epoch + 1}/{settings.epochs}"
    with Progress[None](total=len(mine), desc=title, unit="batch", shown=run.progress) as bar:
        for step, (images, labels) in enumerate(_together(prefetch(loader, device))):
            lr = learning_rate(settings, epoch * len(mine) + step, len(mine))
            torch.manual_seed(derive_seed(settings.seed, "step", epoch, step, rank))  # dropout's
            loss, logits = _step(run, images, labels, lr)
            losses.append(loss)
            right += (logits.argmax(1) == labels).sum()
            bar.update()
            if (step + 1) % every == 0 or step + 1 == len(mine):
                values = torch.stack(losses[checked:]).tolist()
                for at, value in enumerate(values, checked):
                    _check(run, epoch, at, value, learning_rate(settings, epoch * len(mine) + at, len(mine)))
                checked = len(losses)
                bar.show(loss=f"{values[-1]:.3f}", top1=f"{right.item() / (checked * len(labels)):.1%}")
    count = sum(map(len, mine))
    every_process = all_gather((float(torch.stack(losses).double().mean()) * count, float(right), count))
    total, hits, images_seen = (sum(part) for part in zip(*every_process, strict=True))
    return total / images_seen, hits / images_seen


def _together(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; of several processes none waits in a step for another one that has failed."""
    return in_lockstep_batches(batches) if rank_and_world_size()[1] > 1 else batches


def _step(run: Run, images: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """One step of the optimizer; the loss of these images, and the logits."""
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    with _autocast(run):
        logits = run.wrapped(images)
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=run.settings.label_smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return loss.detach(), logits.detach()


def _autocast(run: Run) -> Any:
    return torch.autocast(run.device.type, half_type(run.device)) if run.settings.amp else nullcontext()


def _check(run: Run, epoch: int, step: int, loss: float, lr: float) -> None:
    if loss - loss != 0:  # nan or infinite
        raise _diverged(run, f"epoch {epoch + 1}, step {step + 1}", "loss", f"{loss} at learning rate {lr:g}")


def _diverged(run: Run, where: str, what: str, got: str) -> TrainingDiverged:
    there = f"{run.task.output} holds the last good epoch" if run.task.output.exists() else "No epoch was finished"
    remedy = f"{there}. Try a lower lr, warmup=5 or amp=False, with another output"
    return TrainingDiverged(message(where, what, got, "finite numbers", remedy))


def _accuracy(run: Run, data: ImageData | EventData, indices: list[int]) -> float | None:
    """The share of right answers in eval mode; None without images."""
    if not indices:
        return None
    rank, world = rank_and_world_size()
    part = shard(indices, rank, world)
    loader = loader_for(data, part, run.preprocessing, run.settings.batch_size, run.workers, total=len(indices))
    run.model.eval()
    right = count = 0
    bar = Progress(loader, desc="accuracy", unit="batch", shown=run.progress)
    with torch.no_grad(), _autocast(run):
        for images, labels in prefetch(bar, run.device):
            right += int((run.model(images).argmax(1) == labels).sum())
            count += len(labels)
    told = all_gather((right, count, loader.unreadable))
    run.unreadable.update(dict.fromkeys(name for *_, names in told for name in names))
    return sum(hits for hits, *_ in told) / max(1, sum(seen for _, seen, _ in told))


# ---- TensorBoard


def _board(folder: str | os.PathLike[str] | None, done: int, stack: ExitStack) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BackendUnavailable(
            message("tensorboard", "", "no such package", "it installed", "Run: pip install tensorboard")
        ) from error
    board = SummaryWriter(str(folder), purge_step=done + 1)
    stack.callback(board.close)
    return board


def _tell(board: Any, entry: Mapping[str, Any]) -> None:
    if board is not None:
        for name, value in entry.items():
            if name != "epoch" and value is not None:
                board.add_scalar(name, value, entry["epoch"])
