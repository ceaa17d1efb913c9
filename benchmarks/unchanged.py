"""A fixed list of conversions, evaluations and exports through the program: what a change of the house must not change.

    python benchmarks/unchanged.py FIXTURES WORK > before.jsonl
    ... change, and again ...
    python benchmarks/unchanged.py FIXTURES WORK > after.jsonl
    diff before.jsonl after.jsonl

One JSON line for each: the command, and accuracy, agreement and rates at each T, or a digest of the arrays of a file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

CALIBRATION, IMAGES = "--calibration-images 64", "--limit 100"
RECIPES = {
    "s-resnet": "--timesteps 64",
    "s-resnet-released": "--timesteps 64",
    "calibrated": "--timesteps 8",
    "calibrated-streaming": "--timesteps 16",
    "phased": "--timesteps 4",
    "signed": "--timesteps 8",
    "multilevel": "--timesteps 4",
}
KEPT = ("timesteps", "end_to_end_steps", "top1", "agreement", "spikes_per_neuron")


def sresnet(*words: str) -> None:
    """A command of the program, or its message."""
    done = subprocess.run([sys.executable, "-m", "sresnet_cli", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"sresnet {' '.join(words)}: {done.stderr}")


def digest(arrays: dict[str, Any]) -> str:
    """Of names, types, shapes and numbers."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def tensors(path: Path) -> dict[str, Any]:
    """The tensors of a network's file, as arrays."""
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)


def evaluated(network: Path, data: str, work: Path) -> dict[str, Any]:
    """What evaluate's JSON says of accuracy and rates."""
    file = work / "figures.json"
    file.unlink(missing_ok=True)
    sresnet("evaluate", str(network), "--data", data, *IMAGES.split(), "--json", str(file))
    found = json.loads(file.read_text())
    return {"ann": found["ann"]["top1"], "snn": [{name: row[name] for name in KEPT} for row in found["snn"]]}


def main() -> None:
    """Run the list and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("work", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    checkpoint = asked.fixtures / "checkpoints" / "resnet20-12fca82f.th"
    train, test = (str(asked.fixtures / "cifar10" / part) for part in ("train", "test"))
    given = f"--calibration {train} {CALIBRATION}"
    cases = {name: f"{given} --recipe {name} {steps}" for name, steps in RECIPES.items()}
    cases["no data"] = "--input-size 32 --timesteps 64"
    cases["int8"] = f"{given} --recipe calibrated --timesteps 8 --weights int8"
    cases["dyadic"] = f"{given} --recipe calibrated-streaming --timesteps 16 --weights dyadic"
    for name, words in cases.items():
        network = asked.work / f"{name.replace(' ', '-')}.snn"
        sresnet("convert", str(checkpoint), *words.split(), "--force", "-o", str(network))
        line = {"case": name, "tensors": digest(tensors(network)), **evaluated(network, test, asked.work)}
        print(json.dumps(line), flush=True)
    arrays = asked.work / "dyadic.npz"
    sresnet("export", str(asked.work / "dyadic.snn"), "--format", "npz", "--force", "-o", str(arrays))
    with np.load(arrays, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files if name != "graph"}
    print(json.dumps({"case": "npz", "arrays": digest(found)}), flush=True)


if __name__ == "__main__":
    main()
