"""How near to the memory's own speed does the membrane kernel run? Against a copy on the device, in the same run.

    python benchmarks/gpu/membrane.py [--steps T,...] [--batch N] [--device cuda|cpu] [--quick]

The outputs of the stages of ResNet-50 at 224 px: float16 currents and spikes in channels_last, a bias per channel,
counts, with and without the shortcut's spikes and their scale per channel. The kernel must equal the reference first.
Its bytes (currents, shortcut and spikes once per step, the membrane read and written once) over its time, divided by
the same of a copy that moves as many bytes; kernel and copy alternate, and the median of the ratios is reported. A line
for each size, number of steps, and with or without the shortcut.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import inside
import torch
from timing import Timing, asked
from torch import Tensor

SIZES = {
    "stage 1, inside": (64, 56, 56),
    "stage 1": (256, 56, 56),
    "stage 2": (512, 28, 28),
    "stage 3": (1024, 14, 14),
    "stage 4": (2048, 7, 7),
}
QUICK = {"small": (16, 4, 4)}
Given = tuple[Tensor, Tensor, inside.Update]  # currents, membrane, what is done


def layer(size: tuple[int, int, int], steps: int, batch: int, branch: bool, device: torch.device) -> Given:
    """The arguments of a neuron layer; multiples of 2^-8, so that results are exact."""
    generator = torch.Generator(device).manual_seed(0)
    channels, height, width = size

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, device=device)

    def step_major(low: int, high: int) -> Tensor:
        out = torch.empty(steps, batch, height, width, channels, dtype=torch.float16, device=device)
        for step in out:  # one at a time: the random integers are wide
            step.copy_(whole(low, high, *step.shape))
        return out.movedim(-1, 2)

    v = torch.zeros(batch, *size, device=device).contiguous(memory_format=torch.channels_last)
    update = inside.Update(
        torch.tensor(1.0, device=device),
        bias=whole(-64, 64, channels, 1, 1) / 256,
        shortcut=step_major(0, 2) if branch else None,
        shortcut_scale=whole(0, 320, channels, 1, 1) / 256 if branch else None,
        spike_dtype=torch.float16,
        counts=torch.zeros(steps, batch, dtype=torch.int32, device=device),
    )
    return step_major(-256, 320).div_(256), v, update


def check(current: Tensor, v: Tensor, update: inside.Update, kernel: inside.Run) -> None:
    """Equal to the reference for the first images, or no timing."""
    shortcut = None if update.shortcut is None else update.shortcut[:, :2]
    results = []
    for each in (kernel, inside.membrane_reference):
        counts = torch.zeros(len(current), len(v[:2]), dtype=torch.int32, device=v.device)
        part = replace(update, shortcut=shortcut, counts=counts)
        results.append((*each(current[:, :2], v[:2], part), counts))
    for got, want in zip(*results, strict=True):
        if not torch.equal(got, want):
            raise SystemExit(f"the kernel differs from the reference at {list(v.shape)}: nothing is timed")


def measure(timing: Timing, name: str, steps: int, batch: int, branch: bool) -> None:
    size = {**SIZES, **QUICK}[name]
    given = layer(size, steps, batch, branch, timing.device)
    kernel = inside.membrane if timing.gpu else inside.membrane_reference
    check(*given, kernel)
    moved = given[1].numel() * (steps * (2 + 2 + 2 * branch) + 4 + 4)
    source = torch.empty(moved // 2, dtype=torch.int8, device=timing.device)
    target = torch.empty_like(source)
    own, copies = timing.milliseconds(lambda: kernel(*given), lambda: target.copy_(source), repeats=15, warm=3)
    timing.write(
        layer=name,
        size=size,
        batch=batch,
        steps=steps,
        shortcut=branch,
        bytes=moved,
        kernel_ms=round(statistics.median(own), 4),
        copy_ms=round(statistics.median(copies), 4),
        share_of_copy=round(statistics.median(b / a for a, b in zip(own, copies, strict=True)), 4),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = {"steps": {"default": "1,5,20", "metavar": "T,..."}, "batch": {"type": int, "default": 64}}
    timing, got = asked("membrane", __doc__ or "", arguments, **options)
    if timing.gpu and inside.kernel(timing.device) != "cuda":
        raise SystemExit(f"no CUDA kernel: {inside.unavailable(timing.device)}")
    for name in QUICK if timing.quick else SIZES:
        for steps in [2] if timing.quick else map(int, got.steps.split(",")):
            for branch in (False, True):
                measure(timing, name, steps, 2 if timing.quick else got.batch, branch)


if __name__ == "__main__":
    main()
