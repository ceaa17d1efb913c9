"""The state dict in what a file holds: found, checked, and copied into a module."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InvalidCheckpoint, message
from .checkpoint_file import SAVE, first

# Where training scripts put the weights, the best place first. Averages come last: papers report the plain weights.
NESTS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params")
# Names of averages over the steps of a training, as an entry of the file or as the first part of tensors' names.
AVERAGE = re.compile(
    r"(model|net|network|state_dict|params|weights)_(ema|swa|avg|averaged)|"
    r"(ema|swa|avg|averaged|average)(_(model|net|network|state_dict|state|params|weights))?"
)
COUNTS = ("n_averaged", "steps")  # numbers beside an average: of torch's AveragedModel, and of MMEngine
COUNTER = ".num_batches_tracked"
DEEPEST = 100  # nested dicts


@dataclass(frozen=True)
class Found:
    """The weights in a file.

    Attributes:
        state: the tensors by name.
        said: which weights they are, where the file holds averages.
    """

    state: dict[str, Tensor]
    said: str = ""


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    state: dict[str, Tensor]
    average: bool

    @property
    def name(self) -> str:
        return ".".join(self.path) or "the tensors of the file"

    @property
    def rank(self) -> tuple[int, int]:
        """Lower is better."""
        ranks = {name: rank for rank, name in enumerate((*NESTS, ""))}
        return max(ranks.get(name, ranks[""]) for name in self.path or ("",)), -len(self.state)


def find_state(content: object, where: str, ema: bool = False) -> Found:
    """The weights in the saved object: the dict of tensors under the best-known name, or else the largest one.

    Plain weights go before averages, unless ``ema``; averages are taken where there are no others.

    Raises:
        InvalidCheckpoint: there are none, or no average where one is asked for.
    """
    found = sorted(_candidates(content), key=lambda candidate: len(candidate.state))
    if not found:
        got = f"a {type(content).__name__}"
        if isinstance(content, dict):
            got = f"a dict of {first(map(str, content))}" if content else "an empty dict"
        expected, remedy = "a state dict: tensors by name", f"Load the network in Python and {SAVE}"
        raise InvalidCheckpoint(message(where, "no tensors", got, expected, remedy))
    # A few tensors beside the weights, such as a step counter, are not a state dict.
    large = [one for one in found if 10 * len(one.state) >= len(found[-1].state)]
    plain, averages = ([one for one in large if one.average == average] for average in (False, True))
    if ema and not averages:
        got, expected = f"{min(plain, key=lambda one: one.rank).name} alone", "an average of weights, such as model_ema"
        raise InvalidCheckpoint(message(where, "average", got, expected, "Leave out ema"))
    taken = min((averages if ema else plain) or averages, key=lambda one: one.rank)
    others = plain if taken.average else averages
    other = min(others, key=lambda one: one.rank).name if others else ""
    state = {name: one for name, one in taken.state.items() if one.ndim or name.rpartition(".")[2] not in COUNTS}
    return Found(state, _said(taken, other))


def _said(taken: _Candidate, other: str) -> str:
    """Which weights were taken, and which others are there."""
    if taken.average:
        beside = f"the file also holds {other}, not averaged" if other else "the file holds no others"
        return f"{taken.name}, an average over the training; {beside}"
    return f"{taken.name}; the file also holds {other}, their average over the training" if other else ""


def _candidates(content: object) -> Iterator[_Candidate]:
    """Every state dict in the file."""
    swapped = _swapped(content)
    for path, tensors in _dicts_of_tensors(content):
        average = any(AVERAGE.fullmatch(name) for name in path) or COUNTS[0] in tensors
        if path[:1] in swapped:
            average = swapped[path[:1]]
        inside = {name for name in tensors if "." in name and AVERAGE.fullmatch(name.partition(".")[0])}
        if 0 < len(inside) < len(tensors):
            yield _Candidate(path, {name: tensors[name] for name in tensors if name not in inside}, average)
            prefix = min(inside).partition(".")[0]
            held = {name: tensors[name] for name in inside if name.startswith(f"{prefix}.")}
            yield _Candidate((*path, prefix), held, average=True)
        else:
            yield _Candidate(path, tensors, average or bool(inside))


def _swapped(content: object) -> dict[tuple[str, ...], bool]:
    """Which entries are averages in files of programs that save an average in the place of the weights.

    MMEngine's EMAHook exchanges ``state_dict`` and ``ema_state_dict``; Lightning's WeightAveraging moves the weights to
    ``current_model_state``.
    """
    if not isinstance(content, dict):
        return {}
    meta = content.get("meta")
    if "ema_state_dict" in content and isinstance(meta, dict) and "mmengine_version" in meta:
        return {("state_dict",): True, ("ema_state_dict",): False}
    if "current_model_state" in content and "averaging_state" in content:
        return {("state_dict",): True, ("current_model_state",): False}
    return {}


def _dicts_of_tensors(content: object) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict with tensors by name, at any depth, with the keys that lead to it."""
    queue: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()  # a pickle can contain itself
    for path, value in queue:
        if not isinstance(value, dict) or id(value) in seen or len(path) > DEEPEST:
            continue
        seen.add(id(value))
        named = {key: item for key, item in value.items() if isinstance(key, str)}
        if tensors := {key: item for key, item in named.items() if isinstance(item, Tensor)}:
            yield path, tensors
        queue.extend(((*path, key), item) for key, item in named.items())


def stored(state: dict[str, Tensor], where: str, size: int) -> dict[str, Tensor]:
    """The same tensors, after a check that they are dense numbers, of no more than ``size`` bytes can hold."""
    unfolded = 0
    for name, tensor in state.items():
        dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not dense or not (tensor.is_floating_point() or name.endswith(COUNTER)):
            got = type(tensor).__name__
            if isinstance(tensor, Tensor):
                got = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            remedy = f"Undo the quantization or compression and {SAVE}"
            raise InvalidCheckpoint(message(where, f"tensor {name}", got, "dense floating-point weights", remedy))
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        unfolded += 4 * tensor.numel()
        if not 0 < tensor.numel() <= held or unfolded > 8 * size:
            got = f"{tuple(tensor.shape)} from {held} stored values"
            raise InvalidCheckpoint(
                message(where, f"tensor {name}", got, "weights that are stored one by one", SAVE.capitalize())
            )
    return state


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give a module on the meta device its own memory, and copy the weights there."""
    model.to_empty(device="cpu")
    weights = {name: state.get(name, torch.zeros(())) for name in model.state_dict()}
    for name, tensor in weights.items():
        if name.endswith(COUNTER) and not tensor.isfinite():
            weights[name] = torch.zeros(())  # half precision overflows at 65,504; inference never reads the counter
    model.load_state_dict(weights)
    for name, tensor in model.state_dict().items():
        check_numbers(name, tensor, where)


def check_numbers(name: str, tensor: Tensor, where: str) -> None:
    """Check that a weight is finite, and a variance from 0 on.

    Raises:
        InvalidCheckpoint: it is not.
    """
    if name.endswith("running_var") and bool((tensor < 0).any()):
        got = f"{int((tensor < 0).sum())} of {tensor.numel()} values negative"
        remedy = "Take a checkpoint in which they are right; averaging models can make them negative"
        raise InvalidCheckpoint(message(where, f"tensor {name}", got, "variances from 0 on", remedy))
    if not tensor.isfinite().all():
        got = f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values NaN or infinite"
        remedy = "Take a checkpoint from before the training diverged"
        raise InvalidCheckpoint(message(where, f"tensor {name}", got, "finite float32 weights", remedy))
