"""From which firing rate on is the dense convolution faster than the event-driven one? Layer by layer, paired.

    python benchmarks/events.py [--threads N] [--repeats N]

3x3 convolutions of ResNet-18 at 64 px and of CIFAR ResNet-20, 64 images, random weights and spikes of a given rate:
the time of finding and adding the events over the time of `F.conv2d` in float32, channels_last, on the same spikes.
Medians of the ratios are appended to `benchmarks/results/events.jsonl`.
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
import torch.nn.functional as F

from s_resnet.kernels import events
from s_resnet.kernels.build import compiler

RESULTS = Path(__file__).parent / "results" / "events.jsonl"
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
LAYERS = ((16, 32), (32, 16), (64, 8), (64, 16), (128, 8), (256, 4), (512, 2))  # channels, pixels per side
IMAGES = 64


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(channels: int, size: int, rate: float, repeats: int) -> dict[str, float]:
    """Median of event-driven over dense, for float32 weights and for 16-bit ones."""
    torch.manual_seed(0)
    spikes = (torch.rand(IMAGES, channels, size, size) < rate).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    narrow, wide = spikes.to(torch.uint8), spikes.float()
    calls = {"dense": lambda: F.conv2d(wide, weight, None, 1, 1)}
    for precision in ("exact", "fast"):
        packed = events.pack(weight, (1, 1), (1, 1), (size, size), precision)
        calls[precision] = lambda packed=packed: events.conv2d(events.find(narrow), packed)
    for call in calls.values():
        call()
    times = [{name: seconds(call) for name, call in calls.items()} for _ in range(repeats)]
    return {name: round(statistics.median(t[name] / t["dense"] for t in times), 3) for name in ("exact", "fast")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not events.available():
        raise SystemExit(compiler.compiled()[1])
    for channels, size in LAYERS:
        ratios = {str(rate): measure(channels, size, rate, arguments.repeats) for rate in RATES}
        line = {
            "channels": channels,
            "size": size,
            "images": IMAGES,
            "threads": arguments.threads,
            "event_over_dense": ratios,
            "torch": torch.__version__,
            "compiler": compiler.compiled()[1],
            "capability": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
        }
        print(json.dumps(line))
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
