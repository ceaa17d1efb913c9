"""The checkpoint of a run: written whole after every epoch, and gone on from by the same run alone.

Format 1, by ``torch.save``, of plain dicts, lists, tensors, numbers and texts, so that ``weights_only=True`` reads it:
``format``, ``arch``, ``state_dict``, ``settings`` (of :class:`Training`, with classes and channels), ``epoch`` (how
many are finished), ``optimizer``, ``scaler``, ``history`` (one dict per epoch), ``classes`` (their names),
``preprocessing``, ``data``. Learning rates, order, augmentation and dropout follow from the settings and the epoch:
they keep no state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..artifact import replacing
from ..checkpoint import FORMAT, read
from ..errors import InvalidCheckpoint, SResNetError
from .settings import Training

PARTS = {"format", "arch", "state_dict", "settings", "epoch", "optimizer", "scaler", "history", "data", "preprocessing"}
ADVICE = "Choose another -o, or move the file away"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; it takes the place of the last one whole, synced, or not at all."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def resume(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run of the same ``identity`` (arch, settings, data) left at ``path``; None where nothing is.

    Temporary files of processes that were killed while writing are removed. Raises SResNetError where the path holds
    another run or something else: nothing is overwritten.
    """
    _sweep(path)
    if not os.path.exists(path):
        return None
    try:
        content, _ = read(path)
    except InvalidCheckpoint as error:
        raise SResNetError(f"{path}: is there, got no checkpoint ({str(error).rstrip('.')}). {ADVICE}.") from error
    if not isinstance(content, dict) or not content.keys() >= PARTS or content["format"] != FORMAT:
        raise foreign(path, "something else")
    now = _described(identity)
    try:
        then = _described(content)
    except (LookupError, TypeError) as error:
        raise foreign(path, "a checkpoint of something else") from error
    differing = [name for name in now if now[name] != then.get(name)]
    if differing:
        listed = ", ".join(f"{name} {_text(now[name])} (there {_text(then.get(name))})" for name in differing)
        raise SResNetError(f"{path}: holds another run, got {listed}; expected the same settings to go on. {ADVICE}.")
    return content


def foreign(path: Path, got: str) -> SResNetError:
    """The error of a file that a run can neither go on from nor replace."""
    return SResNetError(f"{path}: is there, got {got}; expected nothing, or a checkpoint of this run. {ADVICE}.")


def _described(content: Mapping[str, Any]) -> dict[str, Any]:
    """By name, what has to be the same: all settings but those that change no result."""
    settings = {**asdict(Training()), **content["settings"]}
    del settings["recompute"]
    images = f"{content['data']['images']} of digest {content['data']['digest'][:12]}"
    named = {"arch": content["arch"], **settings, "preprocessing": content["preprocessing"], "images": images}
    named["network"] = content.get("network")  # of fine-tuning, what tells it from another
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _sweep(path: Path) -> None:
    """Remove what writers that are no longer running have left beside ``path``."""
    prefix = f".{path.name}."
    for name in os.listdir(path.parent) if path.parent.is_dir() else ():
        number = name.removeprefix(prefix).removesuffix(".tmp")
        if name == f"{prefix}{number}.tmp" and number.isdecimal() and not _running(int(number)):
            (path.parent / name).unlink(missing_ok=True)


def _running(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True
