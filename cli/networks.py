"""The network that a command is about: which one, and for which T."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def find_network(name: str | None, command: str) -> Path:
    """The file of that name, by default the only network here."""
    if name is not None:
        return Path(name)
    found = sorted(Path().glob("*.snn"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise click.UsageError(f"Which network? Found {names} here. Name one: sresnet {command} NETWORK.snn")
    return found[0]


def timesteps_for(snn: Any, path: Path) -> int:
    """The T that the network was converted or trained for."""
    timesteps = snn.provenance.get("recipe", {}).get("timesteps")
    if timesteps is None:
        raise click.UsageError(f"Which T? {path} does not say what it was converted for. Pass --timesteps T.")
    return int(timesteps)


def check_checkpoint(path: Path) -> None:
    """Raise where what is to be converted is converted already."""
    if path.suffix == ".snn" and path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":  # of safetensors, behind its length
            raise click.UsageError(f"{path} is a spiking network already. Name the checkpoint that it is from.")
