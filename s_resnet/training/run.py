"""A run before its first epoch: which images, which network, and what is there of it already."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from .images import SMALL, usual_augmentation
from .processes import Processes, parallel
from .recompute import recomputing
from .settings import Training, derive_seed, make_optimizer

# Of an optimizer: its weights, what every step sets anew, and how it computes, which may differ from torch to torch.
UNSETTLED = ("params", "lr", "foreach", "fused", "capturable", "differentiable")


# What each optimizer remembers of a weight.
REMEMBERED = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


@dataclass(frozen=True)
class Parts:
    """Which images are learned from, kept apart, and tested on: indices into the data, and into ``tested``."""

    train: list[int]
    validation: list[int]
    test: list[int]
    tested: ImageData | EventData


@dataclass(frozen=True)
class Run:
    """What the epochs of a run share."""

    arch: str
    data: ImageData | EventData
    parts: Parts
    settings: Training
    preprocessing: Preprocessing | Binning
    identity: Mapping[str, Any]
    output: Path
    device: torch.device
    processes: Processes
    model: nn.Module
    wrapped: nn.Module  # the model as all processes train it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    workers: int = 0
    progress: bool = False
    unreadable: dict[str, None] = field(default_factory=dict)  # test images, each once, in order


def prepare(
    arch: str,
    data: ImageData | EventData,
    test: ImageData | EventData | None,
    settings: Training,
    preprocessing: Preprocessing | Binning | None,
    output: Path,
    device: torch.device,
    stack: ExitStack,
    network: GraphModule | None = None,
) -> Run:
    """The run at its start; what has to be undone at its end is put on ``stack``. network: in place of a new one."""
    # The caller's random numbers stay as they were.
    stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
    settings, preprocessing = _completed(arch, data, settings, preprocessing)
    parts = split(data, test, settings)
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    model: nn.Module = _network(arch, data, settings) if network is None else network
    processes, wrapped = parallel(model.to(device), device)
    stack.callback(processes.leave)
    if settings.recompute:
        stack.enter_context(recomputing(model))
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp and half_type(device) == torch.float16)
    identity = _identity(arch, data, parts, settings, preprocessing)
    if network is not None:
        identity["network"] = digest(network)
    optimizer = make_optimizer(settings, model.parameters())
    return Run(
        *(arch, data, parts, settings, preprocessing, identity, output, device, processes),
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        scaler=scaler,
    )


def _network(arch: str, data: ImageData | EventData, settings: Training) -> nn.Module:
    """The network before its first step."""
    size, channels = settings.size or 0, _channels(data)
    model = build(
        arch,
        len(data.classes),
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


def _completed(
    arch: str, data: ImageData | EventData, settings: Training, preprocessing: Preprocessing | Binning | None
) -> tuple[Training, Preprocessing | Binning]:
    """The settings with nothing left open, and how a sample becomes an input.

    Of events T is the number of bins, each as long as the papers'.
    """
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
    names, timesteps = settings.augmentation, settings.timesteps or timesteps_of(arch)
    if names is None:
        names = usual_augmentation(data.spec, preprocessing.size)
    return replace(settings, size=preprocessing.size, augmentation=tuple(names), timesteps=timesteps), preprocessing


def _unfit(data: ImageData | EventData, got: str, expected: str) -> InvalidData:
    return InvalidData(message("train", f"preprocessing of {data.spec!r}", got, expected, "Leave it out"))


def _channels(data: ImageData | EventData) -> int:
    return 2 if isinstance(data, EventData) else 3


def _side(data: ImageData) -> int:
    """The side of the first image where it is small, else 224."""
    side = min(data.image(0).size)
    return side if side <= SMALL else 224


def split(data: ImageData | EventData, test: ImageData | EventData | None, settings: Training) -> Parts:
    """The images of a run: no image is in two parts. Where ``data`` have no split, a tenth of them is tested on."""
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


def _identity(
    arch: str, data: ImageData | EventData, parts: Parts, settings: Training, preprocessing: Preprocessing | Binning
) -> dict[str, Any]:
    """What makes a run this one, and rebuilds its network."""
    named = (f"{data.names[index]}:{data.labels[index]}" for index in parts.train)
    sha = hashlib.blake2b("\n".join(named).encode("utf-8", "surrogateescape"), digest_size=16)
    kept: dict[str, Any] = {"spec": data.spec, "split": data.split, "images": len(parts.train)}
    kept["digest"] = sha.hexdigest()
    if data.split == "all":  # a later evaluation on the same folder leaves them out
        kept["fingerprints"] = fingerprints(data, parts.train)
    return {
        "arch": arch,
        "settings": {**asdict(settings), "classes": len(data.classes), "channels": _channels(data)},
        "data": kept,
        "classes": list(data.classes),
        "preprocessing": stored_preprocessing(preprocessing),
    }


def digest(network: GraphModule) -> str:
    """What tells one network to be tuned from another."""
    sha = hashlib.blake2b(digest_size=16)
    for name, value in network.state_dict().items():
        sha.update(f"{name} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def resume(run: Run) -> list[Mapping[str, Any]]:
    """The history of what is there; network and optimizer are then where that ended."""
    content = saved.resume(run.output, run.identity)
    found = all_gather((0, "") if content is None else (content["epoch"], content["digest"]))
    if len(set(found)) > 1:
        epochs = sorted(epoch for epoch, _ in found)
        got, remedy = f"other checkpoints, of epochs {epochs}, in different processes", "Put it on a shared file system"
        raise SResNetError(message(f"{run.output}", "", got, "one file that all can read", remedy))
    if content is None:
        return []
    try:
        thresholds = {f"{THRESHOLDS}{name}": value for name, value in content.get("thresholds", {}).items()}
        run.model.load_state_dict({**content["state_dict"], **thresholds})
        run.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # nothing of a run without one, as on another kind of GPU
            run.scaler.load_state_dict(content["scaler"])
        history = list(content["history"])
        _check_numbers(run)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise saved.foreign(run.output, "what does not fit its own settings") from error
    return history


def _check_numbers(run: Run) -> None:
    """ValueError where weights or what the optimizer remembers are not finite, or do not fit each other.

    How the optimizer computes is this run's own, whatever the file says.
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
    """Whether what an optimizer remembers of a weight is like it: finite, and of squares and steps none below 0."""
    if not isinstance(value, Tensor) or value.dtype != (torch.float32 if name == "step" else parameter.dtype):
        return False
    least = 0.0 if name in ("step", "exp_avg_sq") else -math.inf
    alike = value.shape == (() if name == "step" else parameter.shape)
    return alike and bool((value.isfinite() & (value >= least)).all())
