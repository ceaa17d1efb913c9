"""How much accuracy does conversion cost? Real checkpoints, the real commands, one JSON line per evaluation.

    python benchmarks/conversion.py FIXTURES [CASE ...] [--work DIR]

FIXTURES is a folder with `checkpoints/`, `cifar10/{train,test}/<class>/*.png` and `cifar10-jpeg-{train,test}.npz`
(arrays `jpeg`, `offset`, `label`). Lines are appended to `benchmarks/results/conversion.jsonl`, from which
`benchmarks/tables.py` makes the table of docs/reference/results.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision

import s_resnet

RESULTS = Path(__file__).parent / "results" / "conversion.jsonl"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True)
class Case:
    """One checkpoint, how it is converted, and what it is evaluated on."""

    checkpoint: str
    options: str  # of convert
    timesteps: int
    data: tuple[tuple[str, int | None], ...]  # (where below FIXTURES or unpacked, limit)
    calibration: str | None = None
    evaluate: str = ""  # options of evaluate
    recipe: str = "s-resnet"


LOSSLESS, JPEG = "cifar10/test", "jpeg-test"
CASES = {
    "resnet20": Case("resnet20-12fca82f.th", "", 350, ((LOSSLESS, None), (JPEG, 1000)), "cifar10/train"),
    "resnet20-released": Case(
        *("resnet20-12fca82f.th", "", 350, ((LOSSLESS, None),), "cifar10/train"), recipe="s-resnet-released"
    ),
    "resnet20-no-data": Case("resnet20-12fca82f.th", "", 256, ((LOSSLESS, None), (JPEG, 1000))),
    "resnet20-dyadic": Case(
        "resnet20-12fca82f.th", "--weights dyadic", 350, ((LOSSLESS, None), (JPEG, 1000)), "cifar10/train"
    ),
    "resnet20-int8": Case(
        "resnet20-12fca82f.th", "--weights int8", 350, ((LOSSLESS, None), (JPEG, 1000)), "cifar10/train"
    ),
    "resnet20-fast": Case(
        *("resnet20-12fca82f.th", "", 350, ((LOSSLESS, None), (JPEG, 1000)), "cifar10/train", "--precision fast")
    ),
    "resnet56": Case("resnet56-4bfd9763.th", "", 350, ((LOSSLESS, None), (JPEG, 1000)), "cifar10/train"),
    "resnet56-released": Case(
        *("resnet56-4bfd9763.th", "", 350, ((LOSSLESS, None),), "cifar10/train"), recipe="s-resnet-released"
    ),
    "resnet18": Case("resnet18-cifar10-64px.pth", "--input-size 64", 256, ((JPEG, 1000),), "jpeg-train"),
    "resnet18-int8": Case(
        "resnet18-cifar10-64px.pth", "--input-size 64 --weights int8", 256, ((JPEG, 1000),), "jpeg-train"
    ),
    "resnet18-fast": Case(
        *("resnet18-cifar10-64px.pth", "--input-size 64", 256, ((JPEG, 1000),), "jpeg-train", "--precision fast")
    ),
    "resnet50": Case("resnet50-cifar10-64px.pth", "--input-size 64", 256, ((JPEG, 400),), "jpeg-train"),
}


def unpack(packed: Path, target: Path) -> Path:
    """A directory of class folders from arrays of JPEG bytes."""
    if target.exists():
        return target
    with np.load(packed) as arrays:
        blob, offset, label = arrays["jpeg"], arrays["offset"], arrays["label"]
    for name in CLASSES:
        (target / name).mkdir(parents=True)
    for index, k in enumerate(label):
        (target / CLASSES[k] / f"{index:05d}.jpg").write_bytes(blob[offset[index] : offset[index + 1]].tobytes())
    return target


def place(name: str, fixtures: Path, work: Path) -> Path:
    """Where a data set of that name lies."""
    if name.startswith("jpeg-"):
        return unpack(fixtures / f"cifar10-{name}.npz", work / name)
    return fixtures / name


def sresnet(*arguments: str) -> float:
    """Run the command line and return its seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sresnet_cli", *arguments], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(name: str, case: Case, fixtures: Path, work: Path) -> None:
    """Convert once, evaluate on each data set, and append a line for each."""
    network = work / f"{name}.snn"
    options = ["--recipe", case.recipe, *shlex.split(case.options), "--timesteps", str(case.timesteps)]
    if case.calibration:
        options += ["--calibration", str(place(case.calibration, fixtures, work))]
    seconds = sresnet(
        "convert", str(fixtures / "checkpoints" / case.checkpoint), "-o", str(network), "--force", *options
    )
    neurons = (node.op for node in s_resnet.load(network).neurons)
    start = next(op.initial_potential for op in neurons if isinstance(op, s_resnet.graph.Neuron))
    for data, limit in case.data:
        figures = work / f"{name}-{data.replace('/', '-')}.json"
        at = ",".join(str(t) for t in sorted({8, 16, 32, 64, 128, 256, case.timesteps}) if t <= case.timesteps)
        limits = ["--limit", str(limit)] if limit else []
        sresnet(
            *("evaluate", str(network), "--data", str(place(data, fixtures, work)), *limits, "--at", at),
            *("--timesteps", str(case.timesteps), "--json", str(figures), "--force", *shlex.split(case.evaluate)),
        )
        line = {
            "case": name,
            "data": data,
            "limit": limit,
            "convert_seconds": round(seconds, 1),
            "convert": f"sresnet convert {case.checkpoint} --recipe {case.recipe} {case.options} "
            f"--timesteps {case.timesteps}" + (f" --calibration {case.calibration}" if case.calibration else ""),
            "evaluate": " ".join(
                [*("sresnet", "evaluate", "--timesteps", str(case.timesteps), "--data", data), *limits, case.evaluate]
            ).strip(),
            "initial_potential": start,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "report": json.loads(figures.read_text()),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.cases or CASES:
        run(name, CASES[name], arguments.fixtures, arguments.work)


if __name__ == "__main__":
    main()
