"""Do other engines give the same spikes for an exported ResNet-20? Counts the spikes that only one of the two has.

    python benchmarks/engines.py FIXTURES [--engines NAME ...] [--timesteps T]

FIXTURES is the folder of `conversion.py`. Thresholds are from the BatchNorm statistics; three batches of eight test
images, initial potentials 0 and 1/2, weights as trained (in float32 and float64) and rounded by `dyadic_weights` (in
float32). Engines that are not installed are named and left out: sinabs and SpikingJelly need two environments.

One JSON line per engine, weights, potential and batch is appended to `benchmarks/results/engines.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conversion import LOSSLESS

import s_resnet
from s_resnet import Graph
from s_resnet.conversion import Context
from s_resnet.conversion.passes import dyadic_weights
from s_resnet.graph import Neuron

RESULTS = Path(__file__).parent / "results" / "engines.jsonl"
CHECKPOINT = "resnet20-12fca82f.th"
BATCHES, IMAGES = 3, 8
CASES = (("trained", "float32"), ("trained", "float64"), ("dyadic", "float32"))


def network(checkpoint: Path, timesteps: int, start: float, weights: str) -> Graph:
    """ResNet-20 as the paper's recipe makes it without data, with v(0) = start."""
    recipe = s_resnet.RECIPES["s-resnet"].without("compensate")
    model = s_resnet.load_checkpoint(checkpoint).model
    snn = s_resnet.convert(model, (3, 32, 32), recipe, timesteps=timesteps)
    nodes = (
        replace(node, op=replace(node.op, initial_potential=start) if isinstance(node.op, Neuron) else node.op)
        for node in snn.nodes
    )
    snn = replace(snn, nodes=tuple(nodes))
    return dyadic_weights(snn, Context()) if weights == "dyadic" else snn


def measure(fixtures: Path, engine: str, timesteps: int) -> Iterator[dict[str, Any]]:
    """A line for each case, initial potential and batch."""
    data = s_resnet.data.open_data(str(fixtures / LOSSLESS), "evaluation")
    chosen = s_resnet.data.choose(data, BATCHES * IMAGES)
    batches = [
        x for x, _ in s_resnet.data.ImageLoader(data, chosen, s_resnet.data.preprocessing_for(32), IMAGES, workers=0)
    ]
    for weights, dtype in CASES:
        for start in (0.0, 0.5):
            snn = network(fixtures / "checkpoints" / CHECKPOINT, timesteps, start, weights)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network.nir"
                s_resnet.export.export_nir(snn, path)
                for index, images in enumerate(batches):
                    found = s_resnet.export.verify_export(path, snn, images, timesteps, engine, dtype)
                    yield {
                        "engine": engine,
                        "engine_version": found.version,
                        "weights": weights,
                        "dtype": dtype,
                        "initial_potential": start,
                        "timesteps": timesteps,
                        "batch": index,
                        "images": found.images,
                        "spikes": found.spikes,
                        "mismatches": found.mismatches,
                        "same_answers": found.same_answers,
                        "torch": torch.__version__,
                        "s_resnet": s_resnet.__version__,
                        "machine": platform.machine(),
                    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    known = list(s_resnet.export.ENGINES)
    parser.add_argument("--engines", nargs="+", metavar="NAME", choices=known, default=known)
    parser.add_argument("--timesteps", type=int, metavar="T", default=16)
    parser.add_argument("--results", type=Path, default=RESULTS)
    got = parser.parse_args(arguments)
    for engine in got.engines:
        try:
            for line in measure(got.fixtures, engine, got.timesteps):
                print(*(line[k] for k in ("engine", "weights", "dtype", "initial_potential", "batch", "mismatches")))
                with got.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        except s_resnet.errors.BackendUnavailable as missing:
            print(f"{engine}: left out. {missing}")


if __name__ == "__main__":
    main()
