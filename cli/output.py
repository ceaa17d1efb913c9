"""Output files: their names, whether they may be written, and commands that use them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click

CHECKPOINTS = r"(\.(pth|pt|pt2|th|tar|ckpt|bin|safetensors|onnx|snn))+$"


def check_output(path: Path, *inputs: Path, force: bool = False) -> None:
    """Raise before hours of work are lost, or an input or an earlier result with them."""
    import s_resnet

    exists = os.path.exists(path)  # unlike Path.exists, False for a name that is too long
    if exists and any(os.path.exists(source) and path.samefile(source) for source in inputs):
        raise click.UsageError(f"{path} is an input and would be overwritten. Choose another name for the output.")
    if exists and not path.is_file():
        raise click.UsageError(f"{path} is a device or a pipe and would be replaced. Choose the name of a file.")
    if exists and not force:
        raise click.UsageError(f"{path} already exists. Choose another name, or overwrite it with --force.")
    if not os.path.isdir(path.parent):
        got, remedy = f"no folder {path.parent}", "Create it first"
        said = s_resnet.errors.message(str(path), "cannot be written", got, "an existing folder", remedy)
        raise s_resnet.SResNetError(said)
    if not os.access(path.parent, os.W_OK):
        got, remedy = f"no permission in {path.parent}", "Choose another place"
        said = s_resnet.errors.message(str(path), "cannot be written", got, "a writable folder", remedy)
        raise s_resnet.SResNetError(said)


def network_path(checkpoint: Path, *words: str) -> Path:
    """The default name of a converted network: beside its checkpoint, with its recipe, T and other settings."""
    name = re.sub(CHECKPOINTS, "", checkpoint.name) or checkpoint.name
    return checkpoint.with_name(f"{'-'.join((name, *words))}.snn")


def command(*words: str | int | Path) -> str:
    """A command of this program, quoted for a shell whatever the names of files contain."""
    plain = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(["sresnet", *plain])
