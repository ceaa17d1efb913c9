"""The state dict in what a file holds: found, checked, and copied into a module."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InvalidCheckpoint, message
from .checkpoint_file import SAVE, first

# Where training scripts put the weights, the best place first. Averages come last: papers report the plain weights.
NESTS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
COUNTER = ".num_batches_tracked"
DEEPEST = 100  # nested dicts


def find_state(content: object, where: str) -> dict[str, Tensor]:
    """The weights in the saved object: the dict of tensors under the best-known name, or else the largest one."""
    found = sorted(_dicts_of_tensors(content), key=lambda candidate: len(candidate[1]))
    if not found:
        got = f"a {type(content).__name__}"
        if isinstance(content, dict):
            got = f"a dict of {first(map(str, content))}" if content else "an empty dict"
        expected, remedy = "a state dict: tensors by name", f"Load the network in Python and {SAVE}"
        raise InvalidCheckpoint(message(where, "no tensors", got, expected, remedy))
    ranks = {name: rank for rank, name in enumerate((*NESTS, "", *AVERAGES))}

    def rank(path: tuple[str, ...]) -> int:
        return max(ranks.get(name, ranks[""]) for name in path or ("",))

    # A few tensors beside the weights, such as a step counter, are not a state dict.
    large = [(path, state) for path, state in found if 10 * len(state) >= len(found[-1][1])]
    return min(large, key=lambda candidate: (rank(candidate[0]), -len(candidate[1])))[1]


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


def stored(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors, after a check that they are dense numbers, of no more bytes than the file can hold."""
    where, unfolded = str(path), 0
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
        if not 0 < tensor.numel() <= held or unfolded > 8 * path.stat().st_size:
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
