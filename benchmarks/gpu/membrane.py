"""How near to the memory's own speed does the CUDA membrane kernel run? Against a copy on the device, in the same run.

    python benchmarks/gpu/membrane.py [--repeats N] [--steps T]

The outputs of the four stages of ResNet-50 at 224 px, batch 64: float16 currents and spikes in channels_last, a bias
per channel, the shortcut's spikes with a scale per channel, counts. The kernel must equal the reference first. Its
bytes (currents, shortcut and spikes once per step, the membrane read and written once) over its time, divided by the
same of a copy that moves as many bytes; kernel and copy alternate, and the median of the ratios is reported. One line
per size is appended to ``benchmarks/results/gpu_membrane.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from s_resnet import __version__
from s_resnet.kernels import cuda, reference

RESULTS = Path(__file__).parents[1] / "results" / "gpu_membrane.jsonl"
SIZES = {"stage 1": (256, 56, 56), "stage 2": (512, 28, 28), "stage 3": (1024, 14, 14), "stage 4": (2048, 7, 7)}
BATCH = 64


def layer(size: tuple[int, int, int], steps: int, batch: int) -> dict[str, Tensor | torch.dtype]:
    """The arguments of a neuron layer with a shortcut; multiples of 2^-8, so that results are exact."""
    generator = torch.Generator("cuda").manual_seed(0)

    def dyadic(*shape: int, low: int = -256, high: int = 320) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, device="cuda") / 256

    def step_major(dtype: torch.dtype, low: int, high: int) -> Tensor:
        channels, height, width = size
        whole = torch.empty(steps, batch, height, width, channels, dtype=dtype, device="cuda")
        for step in whole:  # one at a time: the random integers are wide
            step.copy_(torch.randint(low, high, step.shape, generator=generator, device="cuda"))
        return whole.movedim(-1, 2)

    return {
        "current": step_major(torch.float16, -256, 320).div_(256),
        "v": torch.zeros(batch, *size, device="cuda").contiguous(memory_format=torch.channels_last),
        "threshold": torch.tensor(1.0, device="cuda"),
        "bias": dyadic(size[0], 1, 1),
        "shortcut": step_major(torch.float16, 0, 2),
        "shortcut_scale": dyadic(size[0], 1, 1, low=0),
        "spike_dtype": torch.float16,
        "counts": torch.zeros(steps, batch, dtype=torch.int32, device="cuda"),
    }


def check(size: tuple[int, int, int], steps: int) -> None:
    """Equal to the reference, or no timing."""
    results = []
    for kernel in (cuda.integrate_and_fire, reference.integrate_and_fire):
        given = layer(size, steps, BATCH)
        results.append((*kernel(**given), given["counts"]))  # type: ignore[arg-type]
    for got, want in zip(*results, strict=True):
        if not torch.equal(got, want):
            raise SystemExit(f"the kernel differs from the reference at {size}: nothing is timed")


def milliseconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(name: str, size: tuple[int, int, int], steps: int, repeats: int) -> dict[str, object]:
    check(size, steps)
    given = layer(size, steps, BATCH)
    neurons = BATCH * size[0] * size[1] * size[2]
    moved = neurons * (steps * (2 + 2 + 2) + 4 + 4)
    source = torch.empty(moved // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)

    def kernel() -> None:
        cuda.integrate_and_fire(**given)  # type: ignore[arg-type]

    def copy() -> None:
        target.copy_(source)

    for _ in range(5):
        kernel()
        copy()
    pairs = [(milliseconds(kernel), milliseconds(copy)) for _ in range(repeats)]
    return {
        "layer": name,
        "size": size,
        "batch": BATCH,
        "steps": steps,
        "bytes": moved,
        "kernel_ms": round(statistics.median(pair[0] for pair in pairs), 4),
        "copy_ms": round(statistics.median(pair[1] for pair in pairs), 4),
        "share_of_copy_median": round(statistics.median(copy / kernel for kernel, copy in pairs), 4),
        "shares": [round(copy / kernel, 4) for kernel, copy in pairs],
        "copy_bytes_per_second": round(1e3 * moved / statistics.median(pair[1] for pair in pairs)),
        "device": torch.cuda.get_device_name(),
        "kernel": cuda.path(torch.device("cuda")),
        "s_resnet": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["python", "benchmarks/gpu/membrane.py", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing is measured")
    reason = cuda.unavailable(torch.device("cuda"))
    if reason is not None:
        raise SystemExit(f"no CUDA kernel: {reason}")
    for name, size in SIZES.items():
        line = measure(name, size, arguments.steps, arguments.repeats)
        print(json.dumps(line))
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
