"""A run before its first epoch: its images, its network, and what an earlier call left of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arguments import check_kind
from ..data.events import Binning, EventData
from ..data.images import ImageData, Preprocessing, choose, preprocessing_for
from ..data.leakage import fingerprints
from ..data.open import stored_preprocessing
from ..errors import InvalidData, SResNetError, message
from ..frontend.qcfs import THRESHOLDS, QCFSModule
from ..graph.module import GraphModule
from ..models.catalog import build, timesteps_of
from ..runtime.processes import all_gather
from . import saved
from .images import SMALL, usual_augmentation, usual_workers
from .processes import Processes, parallel
from .recompute import recomputing
from .settings import Execution, Training, derive_seed, make_optimizer

# Entries of an optimizer that a checkpoint does not fix: its weights, the learning rate, and how it computes.
UNSETTLED = ("params", "lr", "foreach", "fused", "capturable", "differentiable")


# The state that each optimizer keeps for a weight.
REMEMBERED = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


@dataclass(frozen=True)
class Parts:
    """The images of a run.

    Attributes:
        train: indices of the training images.
        validation: indices of the held-out ones, in the same data.
        test: indices of the test images in ``tested``.
        tested: the data of the test images.
    """

    train: list[int]
    validation: list[int]
    test: list[int]
    tested: ImageData | EventData


@dataclass(frozen=True)
class Task:
    """What is to be trained on what.

    Attributes:
        arch: the architecture, or the name of ``network``.
        data: the training images or recordings.
        output: the checkpoint.
        settings: as they were given.
        test: the test images or recordings; None where there are none.
        network: the network to fine-tune; None for a new one of the architecture ``arch``.
    """

    arch: str
    data: ImageData | EventData
    output: Path
    settings: Training
    test: ImageData | EventData | None = None
    network: GraphModule | None = None


@dataclass(frozen=True)
class Run:
    """What the epochs of a run share.

    Attributes:
        task: what is trained on what.
        parts: the images.
        settings: the settings with no choice left open.
        preprocessing: how a sample becomes an input.
        identity: what tells this run from another, and rebuilds its network.
        device: where it runs.
        processes: the processes that share it.
        model: the network.
        wrapped: the network as all processes train it.
        optimizer: its optimizer.
        scaler: its gradient scaler, for float16.
        workers: processes that decode images.
        progress: show progress bars.
        unreadable: test images that could not be read, each once, in order.
    """

    task: Task
    parts: Parts
    settings: Training
    preprocessing: Preprocessing | Binning
    identity: Mapping[str, Any]
    device: torch.device
    processes: Processes
    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    workers: int = 0
    progress: bool = False
    unreadable: dict[str, None] = field(default_factory=dict)


def prepare(task: Task, execution: Execution, device: torch.device, stack: ExitStack) -> Run:
    """The run at its start; ``stack`` receives what has to be undone at its end."""
    # The caller's random numbers stay as they were.
    stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
    settings, preprocessing = _completed(task)
    parts = split(task.data, task.test, settings)
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    model: nn.Module = _network(task, settings) if task.network is None else task.network
    processes, wrapped = parallel(model.to(device), device)
    stack.callback(processes.leave)
    if settings.recompute:
        stack.enter_context(recomputing(model))
    identity = _identity(task, parts, settings, preprocessing)
    if task.network is not None:
        identity["network"] = digest(task.network)
    return Run(
        task=task,
        parts=parts,
        settings=settings,
        preprocessing=preprocessing,
        identity=identity,
        device=device,
        processes=processes,
        model=model,
        wrapped=wrapped,
        optimizer=make_optimizer(settings, model.parameters()),
        scaler=torch.amp.GradScaler(device.type, enabled=settings.amp and half_type(device) == torch.float16),
        workers=usual_workers(device) if execution.workers is None else execution.workers,
        progress=execution.progress,
    )


def _network(task: Task, settings: Training) -> nn.Module:
    """The network before its first step."""
    size, channels = settings.size or 0, _channels(task.data)
    model = build(
        task.arch,
        len(task.data.classes),
        timesteps=settings.timesteps,
        input_shape=(channels, size, size),
        width=settings.width,
        normalize_input=settings.normalize_input,
    )
    if settings.activation == "relu":
        return model
    if settings.recompute:
        raise InvalidData(message("train", "recompute", "it with activation qcfs", "one of the two", "Leave one out"))
    return QCFSModule(model, torch.zeros(2, channels, size, size), settings.levels)


def half_type(device: torch.device) -> torch.dtype:
    """bfloat16, which needs no scaling of gradients; float16 on GPUs that lack it."""
    lacking = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if lacking else torch.bfloat16


def _completed(task: Task) -> tuple[Training, Preprocessing | Binning]:
    """The settings with no choice left open, and how a sample becomes an input.

    For events T is the number of bins, each as long as the papers'.
    """
    data, settings, preprocessing = task.data, task.settings, task.settings.preprocessing
    if isinstance(data, EventData):
        if settings.augmentation:
            got = f"{', '.join(settings.augmentation)} for events"
            raise InvalidData(message("train", "augmentation", got, "none", "Leave it out"))
        usual = data.binning
        size = usual.size if settings.size is None else (settings.size, settings.size)
        preprocessing = preprocessing or Binning(settings.timesteps or usual.bins, usual.microseconds, size)
        if not isinstance(preprocessing, Binning):
            raise _unfit(data, "that of images", "a Binning")
        return replace(
            settings, size=preprocessing.size[0], augmentation=(), timesteps=preprocessing.bins
        ), preprocessing
    preprocessing = preprocessing or preprocessing_for(settings.size or _side(data))
    if not isinstance(preprocessing, Preprocessing):
        raise _unfit(data, "that of events", "a Preprocessing")
    names, timesteps = settings.augmentation, settings.timesteps or timesteps_of(task.arch)
    if names is None:
        names = usual_augmentation(data.spec, preprocessing.size)
    return replace(settings, size=preprocessing.size, augmentation=tuple(names), timesteps=timesteps), preprocessing


def check_data(data: object, test: object, where: str) -> None:
    """Check that training data, and test data if there are any, are opened data sets.

    Raises:
        InvalidData: they are something else, such as a name or a list of batches.
    """
    remedy = 'Open them: s_resnet.data.open_data("cifar10:DIR", "calibration")'
    check_kind(data, (ImageData, EventData), where, "data", remedy)
    if test is not None:
        check_kind(test, (ImageData, EventData), where, "test data", remedy.replace("calibration", "evaluation"))


def _unfit(data: ImageData | EventData, got: str, expected: str) -> InvalidData:
    return InvalidData(message("train", f"preprocessing of {data.spec!r}", got, expected, "Leave it out"))


def _channels(data: ImageData | EventData) -> int:
    return 2 if isinstance(data, EventData) else 3


def _side(data: ImageData) -> int:
    """The side of the first image where it is small, else 224."""
    side = min(data.image(0).size)
    return side if side <= SMALL else 224


def split(data: ImageData | EventData, test: ImageData | EventData | None, settings: Training) -> Parts:
    """The images of a run. No image is in two parts; of data without a split a tenth is for testing.

    Args:
        data: the training images or recordings.
        test: the test images or recordings; None where there are none.
        settings: the numbers of images, and the seed.

    Raises:
        InvalidData: the classes differ, there are fewer than two, or no image is left for training.
    """
    if test is not None and test.classes != data.classes:
        got, remedy = f"other classes than those of {data.spec!r}", "Name the test images of the same data set"
        raise InvalidData(message("train", f"test data {test.spec!r}", got, "the same", remedy))
    if len(data.classes) < 2:
        remedy = "Name the folder that holds one folder for each class"
        raise InvalidData(message("train", f"classes of {data.spec!r}", len(data.classes), "at least 2", remedy))
    apart: set[str] = set()
    tested, testing = test or data, []
    if data.split == "all" and (test is None or test.spec == data.spec):
        tested, testing = data, choose(data, max(len(data.classes), len(data) // 10), seed=settings.seed)
        apart |= {data.names[index] for index in testing}
        others = {data.names[index] for index in range(len(data))} - apart
        testing = choose(data, settings.test_limit, exclude=others)
    elif test is not None:
        testing = choose(test, settings.test_limit)
    validation = []
    if settings.validation:
        validation = choose(data, settings.validation, seed=settings.seed, exclude=apart)
        apart |= {data.names[index] for index in validation}
    if len(apart) >= len(data):
        got = f"{len(data)} and {len(apart)} of them to keep apart"
        remedy = "Lower validation, or give more images for each class"
        raise InvalidData(message("train", f"images of {data.spec!r}", got, "some to learn from", remedy))
    learned = choose(data, settings.limit, seed=settings.seed, exclude=apart)
    return Parts(sorted(learned), validation, testing, tested)


def _identity(task: Task, parts: Parts, settings: Training, preprocessing: Preprocessing | Binning) -> dict[str, Any]:
    """What tells this run from another, and rebuilds its network."""
    data = task.data
    named = (f"{data.names[index]}:{data.labels[index]}" for index in parts.train)
    sha = hashlib.blake2b("\n".join(named).encode("utf-8", "surrogateescape"), digest_size=16)
    kept: dict[str, Any] = {"spec": data.spec, "split": data.split, "images": len(parts.train)}
    kept["digest"] = sha.hexdigest()
    if data.split == "all":  # so that a later evaluation on the same folder leaves them out
        kept["fingerprints"] = fingerprints(data, parts.train)
    return {
        "arch": task.arch,
        "settings": {**settings.stored(), "classes": len(data.classes), "channels": _channels(data)},
        "data": kept,
        "classes": list(data.classes),
        "preprocessing": stored_preprocessing(preprocessing),
    }


def digest(network: GraphModule) -> str:
    """A hash of the weights of a network that is fine-tuned."""
    sha = hashlib.blake2b(digest_size=16)
    for name, value in network.state_dict().items():
        sha.update(f"{name} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def resume(run: Run) -> list[Mapping[str, Any]]:
    """The history of an earlier call, whose network and optimizer are loaded; empty where there was none.

    Raises:
        SResNetError: the checkpoint is of something else, or processes read different ones.
    """
    content = saved.resume(run.task.output, run.identity)
    found = all_gather((0, "") if content is None else (content["epoch"], content["digest"]))
    if len(set(found)) > 1:
        epochs = sorted(epoch for epoch, _ in found)
        got, remedy = f"other checkpoints, of epochs {epochs}, in different processes", "Put it on a shared file system"
        raise SResNetError(message(str(run.task.output), "", got, "one file that all can read", remedy))
    if content is None:
        return []
    try:
        thresholds = {f"{THRESHOLDS}{name}": value for name, value in content.get("thresholds", {}).items()}
        run.model.load_state_dict({**content["state_dict"], **thresholds})
        run.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # it is empty for runs without one, as on another kind of GPU
            run.scaler.load_state_dict(content["scaler"])
        history = list(content["history"])
        _check_numbers(run)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise saved.foreign(run.task.output, "what does not fit its own settings") from error
    return history


def _check_numbers(run: Run) -> None:
    """ValueError where weights or the optimizer's state are not finite, or do not fit each other.

    How the optimizer computes is set by this run, whatever the file says.
    """
    for name, value in run.model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite")
    remembers = REMEMBERED[run.settings.optimizer]
    for parameter, remembered in run.optimizer.state.items():
        if remembered.keys() - remembers or (run.settings.optimizer == "adamw" and remembers - remembered.keys()):
            raise ValueError("the optimizer remembers something else")
        for name, value in remembered.items():
            if value is not None and not _fits(name, value, parameter):
                raise ValueError(f"{name} of the optimizer does not fit its weights")
    known = make_optimizer(run.settings, run.model.parameters()).param_groups
    for then, now in zip(run.optimizer.param_groups, known, strict=True):
        if any(name not in then or (name not in UNSETTLED and then[name] != value) for name, value in now.items()):
            raise ValueError("the optimizer has other settings")
        then.update({name: now[name] for name in UNSETTLED if name in now and name != "params"})


def _fits(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether an optimizer's state fits its weight: the same shape, finite, and no square or step below 0."""
    if not isinstance(value, Tensor) or value.dtype != (torch.float32 if name == "step" else parameter.dtype):
        return False
    least = 0.0 if name in ("step", "exp_avg_sq") else -math.inf
    alike = value.shape == (() if name == "step" else parameter.shape)
    return alike and bool((value.isfinite() & (value >= least)).all())
