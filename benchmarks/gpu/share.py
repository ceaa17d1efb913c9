"""How much of a simulated step on a GPU is not convolution? The kernels of one chunk, by torch's profiler.

    python benchmarks/gpu/share.py [--batch N] [--size N] [--steps T] [--precision exact|fast]

ResNet-50 with random weights, thresholds from its BatchNorm statistics. Time of kernels whose name says convolution or
matrix product, over the time of all kernels; appended to `benchmarks/results/gpu_share.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
import torchvision

import s_resnet

RESULTS = Path(__file__).parents[1] / "results" / "gpu_share.jsonl"
MULTIPLIES = re.compile(r"conv|gemm|xmma|cutlass|wgrad|fprop|dgrad|implicit|nhwckrsc|sm\d+_", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--precision", choices=("exact", "fast"), default="fast")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device")
    torch.manual_seed(0)
    snn = s_resnet.convert(torchvision.models.resnet50().eval(), input_size=arguments.size).to("cuda")
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device="cuda")
    s_resnet.simulate(snn, images, arguments.steps, precision=arguments.precision)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        s_resnet.simulate(snn, images, arguments.steps, precision=arguments.precision)
        torch.cuda.synchronize()
    kernels = {event.key: event.self_device_time_total for event in profile.key_averages()}
    total = sum(kernels.values())
    inside = sum(time for name, time in kernels.items() if MULTIPLIES.search(name))
    line = {
        "network": "resnet50",
        **vars(arguments),
        "share_outside_convolutions": round(1 - inside / total, 4),
        "kernel_ms_per_step": round(total / 1e3 / arguments.steps, 3),
        "slowest_others_ms_per_step": {
            name[:80]: round(time / 1e3 / arguments.steps, 4)
            for name, time in sorted(kernels.items(), key=lambda item: -item[1])
            if not MULTIPLIES.search(name)
        },
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "command": " ".join(["python", "benchmarks/gpu/share.py", *sys.argv[1:]]),
    }
    print(json.dumps(line))
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
