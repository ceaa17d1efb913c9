"""What does one kernel for a convolution and its neurons gain over the two, and by which tile? Layers of ResNet-50.

    python benchmarks/gpu/fused.py [--batch N] [--device cuda|cpu] [--quick] [--processes N] [--task TASK]

cuDNN in float16 with the membrane kernel behind it, against the fused kernel in int8 by every tile that there is for
the layer; the fastest one is kept in the table that the engine reads. A line for each layer. First all tiles are
compiled, in processes beside each other. In int8 the kernel must equal exact sums, by every tile, bit for bit. On a CPU
it runs in Triton's interpreter, as a dry run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import inside
import torch
import torch.nn.functional as F
from inside import fused, fused_tiles
from timing import Timing, asked
from torch import Tensor

STEPS, CHECKED, PATIENCE = 16, 2, 60  # steps that are timed, and that are checked; seconds for compiling
RATE, THRESHOLD, BIAS, SCALE = 0.11, 200, 3, 90  # spikes per neuron and step; in units of an int8 weight


@dataclass(frozen=True)
class Shape:
    """Channels and pixels of a side, output channels, kernel, stride; a shortcut of spikes; channels of a projection.

    A projection is a second convolution, 1x1, over ``stride2`` times as many pixels.
    """

    channels: int
    side: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    shortcut: bool = False
    projected: int = 0
    stride2: int = 1

    @property
    def out(self) -> int:
        return (self.side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


def resnet50() -> list[Shape]:
    """Its convolutions behind the stem, each shape once."""
    found = [Shape(64, 56, 64)]
    before, side = 64, 56
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        wide, out = 4 * width, side // stride
        if width > 64:
            found.append(Shape(before, side, width))
        found.append(Shape(width, side, width, 3, stride))
        found.append(Shape(width, out, wide, projected=before, stride2=stride))
        found.append(Shape(wide, out, width))
        if stride > 1:
            found.append(Shape(width, out, width, 3))
        found.append(Shape(width, out, wide, shortcut=True))
        before, side = wide, out
    return found


SMALL = [Shape(32, 5, 16, 3, 2, projected=16), Shape(16, 3, 32, shortcut=True)]


@dataclass(frozen=True)
class Case:
    """One layer, with inputs ready."""

    current: fused.Currents
    v: Tensor
    update: inside.Update

    def run(self, tile: Any = None) -> Tensor:
        """The spikes; the membranes go on from where they are."""
        return fused.integrate_and_fire(self.current, self.v, self.update, tile)[0]


def case(device: torch.device, shape: Shape, batch: int, steps: int) -> Case:
    """Seeded spikes and whole weights."""
    generator = torch.Generator(device).manual_seed(0)

    def spikes(channels: int, side: int) -> Tensor:
        drawn = torch.rand(steps * batch, side, side, channels, device=device, generator=generator) < RATE
        return drawn.to(torch.int8).movedim(-1, 1)

    def weight(outputs: int, channels: int, kernel: int) -> Tensor:
        sizes = (outputs, channels, kernel, kernel)
        return torch.randint(-64, 65, sizes, device=device, dtype=torch.int8, generator=generator)

    def each(value: int) -> Tensor:
        return torch.full((shape.outputs, 1, 1), value, dtype=torch.int32, device=device)

    stride, padding = (shape.stride, shape.stride), (shape.kernel // 2, shape.kernel // 2)
    packed = fused.pack(weight(shape.outputs, shape.channels, shape.kernel), stride, padding)
    current = fused.Currents(spikes(shape.channels, shape.side), packed, steps)
    if shape.projected:
        small = fused.pack(weight(shape.outputs, shape.projected, 1), (shape.stride2, shape.stride2), (0, 0))
        branch = fused.Currents(spikes(shape.projected, shape.out * shape.stride2), small, steps)
        current = replace(current, branch=branch)
    v = current.empty().zero_()
    update = inside.Update(
        each(THRESHOLD),
        bias=each(BIAS),
        shortcut=spikes(shape.outputs, shape.out).unflatten(0, (steps, batch)) if shape.shortcut else None,
        shortcut_scale=each(SCALE) if shape.shortcut else None,
        spike_dtype=torch.int8,
        counts=torch.zeros(steps, batch, dtype=torch.int32, device=device),
        after=v,
    )
    return Case(current, v, update)


def exact(device: torch.device, shape: Shape, batch: int, tile: Any) -> bool:
    """Whether the kernel gives the spikes, counts and membranes of exact sums."""
    given = case(device, shape, batch, CHECKED)
    current, counts = given.current, given.update.counts
    assert counts is not None
    got = given.run(tile)
    u = torch.zeros_like(given.v, dtype=torch.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [current, *([] if current.branch is None else [current.branch])]
        arrived = sum(part.tensor() for part in parts)
    assert isinstance(arrived, Tensor)
    right = True
    for t in range(CHECKED):
        shortcut = given.update.shortcut
        u = u + arrived[t] + BIAS + (0 if shortcut is None else SCALE * shortcut[t])
        fires = u >= THRESHOLD
        u = u - THRESHOLD * fires.float()
        right = right and torch.equal(got[t].bool(), fires)
        right = right and torch.equal(counts[t].long(), fires.flatten(1).sum(1))
    return right and torch.equal(given.v.float(), u)


def two_kernels(timing: Timing, given: Case) -> float:
    """Milliseconds of the convolution in float16 and the membrane kernel."""
    current, update, scale = given.current, given.update, THRESHOLD / 64
    parts = [current, *([] if current.branch is None else [current.branch])]
    reads = [(part.spikes.half(), part.packed.weight.movedim(-1, 1).half() / 64, part.packed) for part in parts]
    branch = None if update.shortcut is None else update.shortcut.half()
    single = replace(
        update,
        threshold=torch.tensor(scale, device=given.v.device),
        bias=torch.full_like(update.threshold, BIAS / 64, dtype=torch.float32),
        shortcut=branch,
        shortcut_scale=None if branch is None else torch.full_like(update.threshold, SCALE / 64, dtype=torch.float32),
        spike_dtype=torch.float16,
        after=None,
    )
    v = given.v.float()
    kernel = inside.membrane if timing.gpu else inside.membrane_reference

    def both() -> None:
        found = [F.conv2d(x, w, None, p.stride, p.padding).unflatten(0, (current.steps, -1)) for x, w, p in reads]
        kernel(found[0], v, single if len(found) == 1 else replace(single, shortcut=found[1]))

    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        return timing.median(both)


def measure(timing: Timing, shape: Shape, batch: int) -> None:
    steps = 2 if timing.quick else STEPS
    given = case(timing.device, shape, batch, steps)
    line: dict[str, Any] = {"layer": vars(shape), "batch": batch, "steps": steps, "us": {}, "wrong": []}
    each = 1e3 / steps / batch
    pair = two_kernels(timing, given) * each
    layer = fused.layer(given.current, given.update)
    for tile in fused_tiles.candidates(layer, fused_tiles.room(timing.device))[: 1 if timing.quick else None]:
        name = " ".join(map(str, vars(tile).values()))
        if not exact(timing.device, shape, 2 if timing.quick else batch, tile):
            line["wrong"].append(name)
        line["us"][name] = round(timing.median(lambda tile=tile: given.run(tile)) * each, 4)
    fastest = min(line["us"], key=lambda name: line["us"][name])
    line |= {"pair_us": round(pair, 4), "fused_us": line["us"][fastest], "tile": fastest}
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        given.run()  # keeps the fastest in the table
    timing.write(**line)


def compile_part(timing: Timing, batch: int, part: str) -> None:
    """Compile this part of all tiles, which Triton's cache on the disk keeps."""
    index, many = map(int, part.split("/"))
    number = 0
    for shape in resnet50():
        given = case(timing.device, shape, batch, 1)
        layer = fused.layer(given.current, given.update)
        for tile in fused_tiles.candidates(layer, fused_tiles.room(timing.device)):
            number += 1
            if number % many == index:
                given.run(tile)
    timing.finish()


def compile_all(command: list[str], processes: int) -> None:
    """All parts beside each other, for a limited time; a kernel that is missing then is compiled when it is used."""
    made = [subprocess.Popen([*command, "--part", f"{part}/{processes}"]) for part in range(processes)]
    end = time.monotonic() + PATIENCE
    for process in made:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    options: dict[str, Any] = {
        "batch": {"type": int, "default": 64},
        "processes": {"type": int, "default": 12},
        "part": {"metavar": "I/N"},
        "task": {"choices": ("compile", "measure"), "help": "by default both"},
    }
    timing, got = asked("fused", __doc__ or "", arguments, **options)
    if importlib.util.find_spec("triton") is None:
        raise SystemExit("fused: needs Triton, which is not installed: nothing is timed")
    again = [sys.executable, __file__, "--device", got.device, "--output", str(got.output), "--batch", str(got.batch)]
    if not timing.gpu and os.environ.get("TRITON_INTERPRET") != "1":
        done = subprocess.run([*again, *["--quick"] * got.quick], env={**os.environ, "TRITON_INTERPRET": "1"})
        raise SystemExit(done.returncode)
    if got.part:
        return compile_part(timing, got.batch, got.part)
    if timing.gpu and got.task != "measure":
        compile_all(again, got.processes)
    if got.task == "compile":
        return None
    for shape in SMALL if timing.quick else resnet50():
        measure(timing, shape, 2 if timing.quick else got.batch)
    return None


if __name__ == "__main__":
    main()
