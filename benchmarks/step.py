"""What does one simulated step cost? Against one pass of the ANN in the same process, paired and repeated.

    python benchmarks/step.py [--threads N] [--repeats N]

ResNet-18 at 64 px and CIFAR ResNet-20 at 32 px, batch 32, random weights (speed does not depend on them): the median
of the ratios, one ratio per repeat, appended to `benchmarks/results/step.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

import s_resnet

RESULTS = Path(__file__).parent / "results" / "step.jsonl"
BATCH, STEPS = 32, 16


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, model: torch.nn.Module, size: int, repeats: int) -> dict[str, object]:
    """Alternate the ANN's passes and the simulation, so that a slow moment of the machine meets both."""
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, size, size)
    model = model.eval()
    snn = s_resnet.convert(model, input_size=size)

    def ann() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                model(images)

    def steps() -> None:
        s_resnet.simulate(snn, images, STEPS)

    ann(), steps()
    pairs = [(seconds(steps) / STEPS, seconds(ann) / STEPS) for _ in range(repeats)]
    return {
        "network": name,
        "size": size,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "ratio_median": round(statistics.median(step / base for step, base in pairs), 3),
        "ratios": [round(step / base, 3) for step, base in pairs],
        "step_ms": round(1e3 * statistics.median(step for step, _ in pairs), 2),
        "ann_ms": round(1e3 * statistics.median(base for _, base in pairs), 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, model, size in (
        ("resnet18", torchvision.models.resnet18(), 64),
        ("cifar_resnet20", s_resnet.CifarResNet(20), 32),
    ):
        line = measure(name, model, size, arguments.repeats)
        print(json.dumps(line))
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
