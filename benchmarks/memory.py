"""Does memory grow with T? Peak memory of `sresnet evaluate`, each in a process of its own.

    python benchmarks/memory.py NETWORK.snn DATA [--limit N] [--timesteps 32,256]

One line per T, with the ratio to the first, appended to `benchmarks/results/memory.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"


def peak(network: str, data: str, limit: int, timesteps: int) -> int:
    """Bytes at the peak of one evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = f"evaluate --limit {limit} --timesteps {timesteps}".split()
        where = [network, "--data", data, "--json", str(figures)]
        subprocess.run([sys.executable, "-m", "sresnet_cli", *command, *where], check=True, stdout=subprocess.DEVNULL)
        return int(json.loads(figures.read_text())["peak_memory_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--timesteps", default="32,256")
    arguments = parser.parse_args()
    first = 0
    for timesteps in map(int, arguments.timesteps.split(",")):
        used = peak(arguments.network, arguments.data, arguments.limit, timesteps)
        first = first or used
        line = {
            "network": Path(arguments.network).name,
            "timesteps": timesteps,
            "images": arguments.limit,
            "peak_memory_bytes": used,
            "ratio": round(used / first, 3),
            "torch": torch.__version__,
        }
        print(json.dumps(line))
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
