"""The checkpoint of a run: written whole after every epoch, and resumed by the same run only.

Format 1 is written by ``torch.save`` and consists of plain dicts, lists, tensors, numbers and strings, so that
``weights_only=True`` reads it. Its entries are ``format``, ``arch``, ``state_dict``, ``settings`` (of
:class:`Training`, with classes and channels), ``epoch`` (how many are finished), ``optimizer``, ``scaler``, ``history``
(a dict per epoch), ``classes`` (their names), ``preprocessing``, ``data`` and ``digest`` (of all others). Learning
rates, order, augmentation and dropout follow from the settings and the epoch, and have no state.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidCheckpoint, SResNetError, message
from ..files import replacing, sweep
from ..frontend.weights.checkpoint_file import read
from ..frontend.weights.trained_file import FORMAT
from .settings import Training

PARTS = {"format", "arch", "state_dict", "settings", "epoch", "optimizer", "scaler", "history", "data", "preprocessing"}
ADVICE = "Use another output, or move the file away"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the last one, synced, whole or not at all."""
    whole = {"format": FORMAT, **content}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({**whole, "digest": digest(whole)}, file)


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over the keys, numbers, strings and tensors of a checkpoint, in their order.

    Raises:
        ValueError: a tensor is not stored number by number, which no run writes.
        RecursionError: the content contains itself.
    """
    sha = hashlib.sha256()
    _feed(sha.update, content)
    return sha.hexdigest()


def _feed(update: Callable[[bytes], object], value: object) -> None:
    if isinstance(value, Tensor):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor of one number many times")
        update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        update(f"mapping {len(value)}".encode())
        for name, part in value.items():
            update(repr(name).encode())
            _feed(update, part)
    elif isinstance(value, list | tuple):
        update(f"{type(value).__name__} {len(value)}".encode())
        for part in value:
            _feed(update, part)
    else:
        update(f"{value!r};".encode("utf-8", "backslashreplace"))


def resume(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint that the same run left; None where there is none.

    The number of epochs may have grown, except with a cosine schedule, which depends on it. Temporary files of
    processes that were killed while writing are removed.

    Args:
        path: the checkpoint.
        identity: architecture, settings and data of the run.

    Raises:
        SResNetError: the file is of another run, or something else; it is not overwritten.
    """
    sweep(path.parent, f".{path.name}.")
    if not os.path.exists(path):
        return None
    try:
        content, _ = read(path)
    except InvalidCheckpoint as error:
        raise foreign(path, f"no checkpoint ({str(error).rstrip('.')})") from error
    if not isinstance(content, dict) or not content.keys() >= PARTS:
        raise foreign(path, "something else")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise foreign(path, "something else")
    now = _described(identity)
    try:
        then = _described(content)
        differing = [name for name in now if now[name] != then.get(name) and not _longer(name, now, then)]
        whole = bool(differing) or _whole(content)
        rest = {name: value for name, value in content.items() if name != "digest"}
        as_left = bool(differing) or not whole or content.get("digest") == digest(rest)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise foreign(path, "a checkpoint of something else") from error
    if differing:
        listed = ", ".join(f"{name} {_text(now.get(name))} (there {_text(then.get(name))})" for name in differing)
        if differing == ["epochs"] and now["schedule"] == "cosine":
            listed += ", for which a cosine schedule has other learning rates from the start"
        raise SResNetError(message(f"{path}", "holds another run", listed, "the same settings to go on", ADVICE))
    if not whole:
        raise foreign(path, "a checkpoint whose epochs, history and scale do not fit together")
    if not as_left:
        raise foreign(path, "a checkpoint that is not as this run left it")
    return content


def foreign(path: Path, got: str) -> SResNetError:
    """The error for a file that a run can neither resume from nor replace."""
    return SResNetError(message(f"{path}", "is there", got, "nothing, or a checkpoint of this run", ADVICE))


def _whole(content: Mapping[str, Any]) -> bool:
    """Whether the history has an entry for each finished epoch, and all figures are finite numbers."""
    epoch, history, scaler = content["epoch"], content["history"], content["scaler"]
    if type(epoch) is not int or not 0 <= epoch <= content["settings"]["epochs"]:
        return False
    if not isinstance(history, list) or [entry["epoch"] for entry in history] != list(range(1, epoch + 1)):
        return False
    return all(isinstance(entry, dict) and all(map(_is_figure, entry.values())) for entry in (*history, scaler))


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _described(content: Mapping[str, Any]) -> dict[str, Any]:
    """By name, what has to be the same: all settings except those that change no result."""
    settings = {**Training().stored(), **content["settings"]}
    del settings["recompute"]
    images = f"{content['data']['images']} of digest {content['data']['digest'][:12]}"
    named = {"arch": content["arch"], **settings, "preprocessing": content["preprocessing"], "images": images}
    named["network"] = content.get("network")  # of fine-tuning, the hash of the network before
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def _longer(name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether ``name`` is the number of epochs, and a larger one changes nothing about the first epochs."""
    return name == "epochs" and now["schedule"] != "cosine" and bool(now["epochs"] > then["epochs"])


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
