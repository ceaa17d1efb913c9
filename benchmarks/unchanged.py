"""A fixed list of conversions, evaluations and exports through the program: what a change of the house must not change.

    python benchmarks/unchanged.py FIXTURES WORK > before.jsonl
    ... change, and again ...
    python benchmarks/unchanged.py FIXTURES WORK > after.jsonl
    diff before.jsonl after.jsonl

One JSON line for each: the case, and accuracy, agreement and rates at each T, or a digest of the arrays of a file. In
a .snn file arrays may change their names, so their digest is of what they hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors import safe_open

CALIBRATION, IMAGES = "--calibration-images 64", "--limit 100"
RECIPES = {
    "s-resnet": "--timesteps 64",
    "s-resnet-v0": "--timesteps 64",
    "s-resnet-released": "--timesteps 64",
    "calibrated": "--timesteps 8",
    "calibrated-constant": "--timesteps 16",
    "calibrated-lagged": "--timesteps 8",
    "phased": "--timesteps 4",
    "signed": "--timesteps 8",
    "multilevel": "--timesteps 4",
}
TRAINING = "--data digits --width 8 --batch-size 32 --epochs 1 --device cpu --workers 0"
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


def tensors(path: Path) -> str:
    """A digest of the tensors of a network's file, whatever their names."""
    with safe_open(path, "numpy") as file:
        found = [digest({"": file.get_tensor(name)}) for name in file.keys()]  # noqa: SIM118 (it is no dict)
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()


def exported(network: Path, form: str, work: Path, *more: str) -> str:
    """A digest of what an exported file holds, or of what a program answers."""
    file = work / f"exported.{form}"
    sresnet("export", str(network), "--format", form, "--force", "-o", str(file), *more)
    if form == "torch":
        images = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).remainder(97) / 32 - 1
        with torch.no_grad():
            return digest({"answer": torch.export.load(file).module()(images).numpy()})
    if form == "npz":
        with np.load(file, allow_pickle=False) as arrays:
            return digest({name: arrays[name] for name in arrays.files if name != "graph"})
    found: dict[str, Any] = {}
    with h5py.File(file) as arrays:
        arrays.visititems(lambda name, item: found.update({name: item[()]} if numeric(item) else {}))
    return digest(found)


def numeric(item: Any) -> bool:
    """Whether an item of an HDF5 file is an array of numbers."""
    return isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu"


def evaluated(network: Path, data: str, work: Path) -> dict[str, Any]:
    """What evaluate's JSON says of accuracy and rates."""
    file = work / "figures.json"
    file.unlink(missing_ok=True)
    sresnet("evaluate", str(network), "--data", data, *IMAGES.split(), "--json", str(file))
    found = json.loads(file.read_text())
    ann = found["ann"] and found["ann"]["top1"]  # a directly trained network has none
    return {"ann": ann, "snn": [{name: row[name] for name in KEPT} for row in found["snn"]]}


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
    cases["int8"] = f"{given} --recipe calibrated-lagged --timesteps 8 --weights int8"
    cases["dyadic"] = f"{given} --recipe calibrated-constant --timesteps 16 --weights dyadic"
    for name, words in cases.items():
        network = asked.work / f"{name.replace(' ', '-')}.snn"
        sresnet("convert", str(checkpoint), *words.split(), "--force", "-o", str(network))
        say(case=name, tensors=tensors(network), **evaluated(network, test, asked.work))
    for arch in ("ms_resnet8", "ds_resnet8"):
        trained, network = asked.work / f"{arch}.pt", asked.work / f"{arch}.snn"
        sresnet("train", arch, *TRAINING.split(), "-o", str(trained))
        sresnet("convert", str(trained), "--force", "-o", str(network))
        say(case=arch, tensors=tensors(network), **evaluated(network, "digits", asked.work))
    dyadic = asked.work / "dyadic.snn"
    say(case="npz", arrays=exported(dyadic, "npz", asked.work))
    say(case="nir", arrays=exported(asked.work / "calibrated-constant.snn", "nir", asked.work))
    say(case="program", arrays=exported(dyadic, "torch", asked.work, "--timesteps", "8"))


def say(**line: Any) -> None:
    """One line of the list."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
