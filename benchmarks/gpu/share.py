"""What does a simulated step cost on a GPU, and how much of it is not convolution? By the clock and by the profiler.

    python benchmarks/gpu/share.py [--only NAME;...] [--batch N] [--device cuda|cpu] [--quick]

ResNet-50 at 224 px with random weights, thresholds from its BatchNorm statistics. A line for each way to run it: time
by the clock, time that the device was busy, its memory, and how the busy time divides into convolutions and matrix
products, what cuDNN rearranges for them, the membrane kernel, and the rest. `calibrated-lagged` is that recipe's
schedule and corrections (zeros: the cost does not depend on them), to be compared with `s-resnet` at the same T.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import inside
import torch
from timing import NEEDS, Timing, asked, network
from torch import Tensor

import s_resnet


@dataclass(frozen=True)
class Way:
    """How the network is run."""

    recipe: str
    precision: str
    batch: int  # 0: as the command says
    steps: int


WAYS = {
    "fast": Way("s-resnet", "fast", 0, 64),
    "exact": Way("s-resnet", "exact", 0, 20),
    "fast, batch 1": Way("s-resnet", "fast", 1, 64),
    "exact, batch 1": Way("s-resnet", "exact", 1, 64),
    "fast, batch 8": Way("s-resnet", "fast", 8, 64),
    "s-resnet T=16": Way("s-resnet", "fast", 0, 16),
    "calibrated-lagged T=16": Way("calibrated-lagged", "fast", 0, 16),
}
# Kernels by their names, the first that fits.
KINDS = {
    "membrane": re.compile(r"membrane"),
    "rearranged for convolutions": re.compile(r"nchwToNhwc|nhwcToNchw|nchw_?2_?nhwc|nhwc_?2_?nchw", re.IGNORECASE),
    "convolutions": re.compile(
        r"conv(?!ert)|gemm|xmma|cutlass|wgrad|fprop|dgrad|implicit|nhwckrsc|cudnn|sm\d+_", re.IGNORECASE
    ),
}


def kind(kernel: str) -> str:
    return next((name for name, pattern in KINDS.items() if pattern.search(kernel)), "others")


def shares(times: Mapping[str, float]) -> dict[str, float]:
    """Of the time of all kernels, by kind."""
    total = sum(times.values()) or 1.0
    found = dict.fromkeys((*KINDS, "others"), 0.0)
    for name, own in times.items():
        found[kind(name)] += own / total
    return {name: round(share, 4) for name, share in found.items()}


def outside(found: Mapping[str, float]) -> float:
    """The share of what no convolution asks for."""
    return round(1 - found["convolutions"] - found["rearranged for convolutions"], 4)


def converted(recipe: str, steps: int, quick: bool) -> tuple[s_resnet.Graph, int]:
    """The network; of a recipe that is fitted to images without its fits, with corrections for each step."""
    chosen = s_resnet.RECIPES[recipe]
    if not chosen.fits:
        return network(quick)
    snn, size = network(quick, chosen.without("fit_thresholds", "calibrate_neurons", "fit_readout"))
    channels = {name: value.shape[1] for name, value in snn.activations(torch.zeros(1, 3, size, size))}

    def corrected(node: s_resnet.graph.Node) -> s_resnet.graph.Node:
        if not isinstance(node.op, s_resnet.graph.Neuron):
            return node
        rows = () if node.op.schedule == "streaming" else (steps,)
        return replace(node, op=replace(node.op, correction=torch.zeros(*rows, channels[node.name])))

    return replace(snn, nodes=tuple(map(corrected, snn.nodes))), size


def profiled(timing: Timing, call: Any) -> dict[str, float]:
    """Microseconds of each kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        timing.finish()
    return {event.key: event.self_device_time_total for event in profile.key_averages()}


def measure(timing: Timing, name: str, snn: s_resnet.Graph, images: Tensor, steps: int) -> None:
    way = WAYS[name]

    def call() -> None:
        s_resnet.simulate(snn, images, steps, s_resnet.simulation.SimulationSettings(precision=way.precision))

    with inside.counted_graphs() as counts:  # the first run prepares, the second may record a graph
        first = [round(timing.wall(call, repeats=1), 3) for _ in range(3)]
    if timing.gpu:
        torch.cuda.reset_peak_memory_stats()
    each = 1e6 / steps / len(images)
    line: dict[str, Any] = {"way": name, "recipe": way.recipe, "precision": way.precision, "batch": len(images)}
    line |= {"size": images.shape[-1], "steps": steps, "first_runs_s": first, "graphs": counts}
    line["us_per_step_per_image"] = round(each * timing.wall(call), 2)
    if not timing.gpu:
        line["shares"] = NEEDS
    else:
        line["peak_GB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        times = profiled(timing, call)
        line["busy_us_per_step_per_image"] = round(each * 1e-6 * sum(times.values()), 2)
        line["shares"] = shares(times)
        line["share_outside_convolutions"] = outside(line["shares"])
        slowest = sorted(times.items(), key=lambda item: -item[1])[:12]
        line["slowest"] = {key[:90]: round(own / sum(times.values()), 4) for key, own in slowest}
    timing.write(**line)


def main(arguments: Sequence[str] | None = None) -> None:
    options = {"only": {"default": ";".join(WAYS), "metavar": "NAME;..."}, "batch": {"type": int, "default": 64}}
    timing, got = asked("share", __doc__ or "", arguments, **options)
    networks: dict[str, tuple[s_resnet.Graph, int]] = {}
    for name in got.only.split(";"):
        way = WAYS[name]
        steps = 2 if timing.quick else way.steps
        if way.recipe not in networks:
            snn, size = converted(way.recipe, steps, timing.quick)
            networks[way.recipe] = snn.to(timing.device), size
        snn, size = networks[way.recipe]
        batch = min(2, way.batch or 2) if timing.quick else way.batch or got.batch
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, size, size, generator=generator).to(timing.device)
        try:
            measure(timing, name, snn, images, steps)
        except torch.cuda.OutOfMemoryError as error:
            timing.write(way=name, failed=str(error).splitlines()[0])
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
