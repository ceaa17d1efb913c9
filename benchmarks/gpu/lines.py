"""What a line of results says of where and how it was measured, and how it is written."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from s_resnet import __version__
from s_resnet.kernels import describe as describe_kernels

RESULTS = Path(__file__).parents[1] / "results"
ROOT = RESULTS.parents[1]
PACKAGES = ("torchvision", "triton", "cuda-bindings", "spikingjelly", "snntorch", "norse", "numpy")


def versions() -> dict[str, str | None]:
    """Of what takes part; None is not installed."""
    installed = {part.metadata["Name"].lower(): part.version for part in importlib.metadata.distributions()}
    ours = {"s_resnet": __version__, "torch": str(torch.__version__)}
    return ours | {name: installed.get(name) for name in PACKAGES}


@cache
def driver() -> str | None:
    """The version of the NVIDIA driver; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def described(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and the command that is running, but for where its lines go."""
    program, given = Path(sys.argv[0]), sys.argv[1:]
    if "--output" in given:
        at = given.index("--output")
        given = given[:at] + given[at + 2 :]
    name = str(program.resolve().relative_to(ROOT)) if program.resolve().is_relative_to(ROOT) else program.name
    return {
        "device": device_name(device),
        "driver": driver() if device.type == "cuda" else None,
        "kernels": describe_kernels(),
        "python": platform.python_version(),
        "versions": versions(),
        "command": " ".join(["python", name, *given]),
    }


def write(line: dict[str, Any], file: Path) -> None:
    """Append a line of JSON; what JSON has no word for goes in as text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(line, default=str) + "\n")
