"""Which arithmetic and memory layout are convolutions of spikes fastest in? Those of ResNet-50, one by one.

    python benchmarks/gpu/convolutions.py [--batch N] [--steps S] [--device cuda|cpu] [--quick]

Every shape of a convolution behind the stem, S steps of the batch at once, {0, 1} at a rate of 0.1. A line for each
shape with milliseconds per step, and at the end one with the sums over the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import inside
import torch
import torch.nn.functional as F
from timing import Timing, asked, network

import s_resnet

# Channels in, pixels of a side, channels out, side of the kernel, stride.
Shape = tuple[int, int, int, int, int]
WAYS = {
    "float16": (torch.float16, False),
    "TF32": (torch.float32, True),
    "float32": (torch.float32, False),
}
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
RATE = 0.1


def shapes(snn: s_resnet.Graph, size: int) -> Counter[Shape]:
    """How often each shape occurs behind the stem."""
    sizes = {name: value.shape for name, value in snn.activations(torch.zeros(1, 3, size, size))}
    found: Counter[Shape] = Counter()
    for node in snn.nodes:
        if isinstance(node.op, inside.Conv2d) and node.name not in snn.static:
            _, channels, side, _ = sizes[node.inputs[0]]
            found[channels, side, node.op.weight.shape[0], node.op.weight.shape[2], node.op.stride[0]] += 1
    return found


def times(timing: Timing, shape: Shape, batch: int, steps: int) -> Iterator[tuple[str, float]]:
    """Milliseconds per step of each way and layout."""
    channels, side, outputs, kernel, stride = shape
    for (way, (dtype, tf32)), (layout, form) in ((w, x) for w in WAYS.items() for x in LAYOUTS.items()):
        x = (torch.rand(steps * batch, channels, side, side, device=timing.device) < RATE).to(dtype, memory_format=form)
        weight = torch.randn(outputs, channels, kernel, kernel, device=timing.device) * 0.05
        weight = weight.to(dtype, memory_format=form)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            call = lambda x=x, w=weight: F.conv2d(x, w, None, stride, kernel // 2)  # noqa: E731
            yield f"{way}, {layout}", timing.median(call, repeats=3, warm=1) / steps


def main(arguments: Sequence[str] | None = None) -> None:
    options = {name: {"type": int, "default": value} for name, value in (("batch", 64), ("steps", 5))}
    timing, got = asked("convolutions", __doc__ or "", arguments, **options)
    batch, steps = (2, 1) if timing.quick else (got.batch, got.steps)
    sums: dict[str, float] = {}
    for shape, often in shapes(*network(timing.quick)).items():
        found = dict(times(timing, shape, batch, steps))
        for name, own in found.items():
            sums[name] = sums.get(name, 0.0) + often * own
        channels, side, outputs, kernel, stride = shape
        out = -(-side // stride)
        line: dict[str, Any] = {"shape": shape, "occurs": often, "batch": batch, "steps": steps}
        line["ms_per_step"] = {name: round(own, 4) for name, own in found.items()}
        half = found["float16, channels last"]
        line["TFLOP_s"] = round(2e-9 * batch * outputs * out**2 * channels * kernel**2 / half, 2)
        line["TB_s"] = round(2e-9 * batch * (channels * side**2 + outputs * out**2) / half, 3)
        timing.write(**line)
    timing.write(all_ms_per_step={name: round(own, 4) for name, own in sums.items()}, batch=batch, steps=steps)


if __name__ == "__main__":
    main()
