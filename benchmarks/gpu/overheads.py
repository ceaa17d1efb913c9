"""What does a GPU wait for? Python around a launch, the recording of a graph, and an exit that changes the batch.

    python benchmarks/gpu/overheads.py --networks FOLDER [--device cuda|cpu] [--quick]

FOLDER is what `networks.py` made; its `s-resnet` is simulated. One line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import inside
import torch
from networks import Networks
from timing import Timing, asked

import s_resnet

LAUNCHES = 500


def launch(timing: Timing) -> float:
    """Microseconds of one eager call of the membrane kernel, which itself is done sooner."""
    layer = torch.zeros(2, 8, 8, 64, device=timing.device)
    current = torch.zeros(4, 2, 8, 8, 64, device=timing.device, dtype=torch.float16)
    counts = torch.zeros(4, 2, dtype=torch.int32, device=timing.device)
    update = inside.Update(torch.tensor(1.0, device=timing.device), spike_dtype=torch.float16, counts=counts)
    kernel = inside.membrane if timing.gpu else inside.membrane_reference
    many = 5 if timing.quick else LAUNCHES

    def call() -> None:
        for _ in range(many):
            kernel(current.movedim(-1, 2), layer.movedim(-1, 1), update)

    call()
    return 1e6 * timing.wall(call) / many


def main(arguments: Sequence[str] | None = None) -> None:
    options = {"networks": {"type": Path, "required": True}}
    timing, got = asked("overheads", __doc__ or "", arguments, **options)
    given = Networks(got.networks, timing.device)
    snn, steps = given.load("s-resnet"), 8 if timing.quick else 64
    line: dict[str, Any] = {"us_per_launch": round(launch(timing), 1), "steps": steps, "batch": len(given.images)}
    for precision in inside.PRECISIONS:

        def whole(precision: str = precision) -> None:
            s_resnet.simulate(
                snn, given.images, steps, s_resnet.simulation.SimulationSettings(chunk=8, precision=precision)
            )

        def until(precision: str = precision) -> None:
            s_resnet.simulation.simulate_with_early_exit(
                snn, given.images, steps, 0.9, s_resnet.simulation.SimulationSettings(precision=precision)
            )

        with inside.counted_graphs() as counts:
            line[f"{precision}_first_runs_s"] = [round(timing.wall(whole, repeats=1), 3) for _ in range(3)]
        line[f"{precision}_graphs"] = dict(counts)
        until()
        line[f"{precision}_s"], line[f"{precision}_until_confident_s"] = (
            round(timing.wall(call), 4) for call in (whole, until)
        )
    timing.write(**line)


if __name__ == "__main__":
    main()
