"""What is written: its name, whether it may be written there, and the command that goes on from it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click

CHECKPOINTS = r"(\.(pth|pt|th|tar|ckpt|bin|safetensors|snn))+$"


def check_output(path: Path, *inputs: Path, force: bool = False) -> None:
    """Raise before hours of work are lost, or an input or an earlier result with them."""
    import s_resnet

    exists = os.path.exists(path)  # unlike Path.exists false also for a name that is too long
    if exists and any(os.path.exists(source) and path.samefile(source) for source in inputs):
        raise click.UsageError(f"{path} would be written over itself. Choose another name for what is written.")
    if exists and not path.is_file():
        raise click.UsageError(f"{path} is a device or a pipe, and would be replaced. Choose the name of a file.")
    if exists and not force:
        raise click.UsageError(f"{path} is there already. Choose another name, or write over it with --force.")
    if not os.path.isdir(path.parent):
        raise s_resnet.SResNetError(
            f"{path}: cannot be written, got no folder {path.parent}; expected one that exists. Make it first."
        )
    if not os.access(path.parent, os.W_OK):
        raise s_resnet.SResNetError(
            f"{path}: cannot be written, got no permission in {path.parent}; expected a writable folder. "
            "Choose another place."
        )


def network_path(checkpoint: Path, *said: str) -> Path:
    """The usual name of what a checkpoint becomes: beside it, with its recipe, T and what else was asked for."""
    name = re.sub(CHECKPOINTS, "", checkpoint.name) or checkpoint.name
    return checkpoint.with_name(f"{'-'.join((name, *said))}.snn")


def command(*words: str | int | Path) -> str:
    """A command of the program as a shell takes it, whatever is in the names of files."""
    plain = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(["sresnet", *plain])
