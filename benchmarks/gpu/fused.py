"""What would one kernel for a convolution and its neurons gain? The prototype `conv_if.py` against the two of today.

    python benchmarks/gpu/fused.py [--batch N] [--device cuda|cpu] [--quick]

Layers of ResNet-50, ten steps at once: cuDNN in float16 with the membrane kernel behind it, against the prototype in
int8, in float16 and with float16 weights in two parts, each at its fastest tile. In int8 it must equal exact sums
first, bit for bit. A line for each layer. On a CPU the prototype runs in Triton's interpreter, as a dry run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import inside
import torch
import torch.nn.functional as F
from timing import Timing, asked
from torch import Tensor

if TYPE_CHECKING:  # Triton reads whether it interprets when it is imported
    import conv_if

STEPS, PROCESSES, PATIENCE = 10, 12, 40  # steps of a chunk; processes that compile, and their seconds
ALIKE = 16  # images, of which a kernel is the one for any multiple
KINDS = ("int8", "float16", "two parts")
THRESHOLD, BIAS, SCALE = 200, 3, 90  # in units of an int8 weight


@dataclass(frozen=True)
class Shape:
    """Channels and pixels of a side, output channels, kernel, stride, and whether a shortcut comes in."""

    channels: int
    side: int
    outputs: int
    kernel: int
    stride: int
    shortcut: bool

    @property
    def out(self) -> int:
        return (self.side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


LAYERS = (
    *(Shape(64, 56, 64, 3, 1, False), Shape(256, 56, 64, 1, 1, False), Shape(64, 56, 256, 1, 1, True)),
    *(Shape(128, 28, 128, 3, 1, False), Shape(256, 14, 1024, 1, 1, True), Shape(512, 7, 512, 3, 1, False)),
)
SMALL = (Shape(32, 5, 32, 3, 2, True),)
TILES = ((128, 64, 64, 3, 8), (64, 64, 64, 4, 4), (64, 128, 128, 3, 8))  # as in conv_if.Tile
TINY = ((16, 16, 16, 2, 4),)


@dataclass(frozen=True)
class Case:
    """One kernel: a layer and a tile, with inputs ready."""

    tile: conv_if.Tile
    layer: conv_if.Layer
    x: Tensor
    v: Tensor
    branch: Tensor | None
    counts: Tensor

    def run(self) -> Tensor:
        import conv_if

        return conv_if.convolve_and_fire(self.x, self.v, self.layer, self.tile, self.branch, self.counts)


def case(timing: Timing, shape: Shape, kind: str, tile: tuple[int, ...], batch: int) -> Case:
    """Seeded spikes at a rate of 0.1, and whole weights, which float16 gets divided by 64."""
    import conv_if

    steps = 2 if timing.quick else STEPS
    generator = torch.Generator(timing.device).manual_seed(0)

    def spikes(*sizes: int) -> Tensor:
        return (torch.rand(*sizes, device=timing.device, generator=generator) < 0.1).to(torch.int8)

    x = spikes(steps, batch, shape.side, shape.side, shape.channels)
    sizes = (shape.outputs, shape.kernel, shape.kernel, shape.channels)
    weight = torch.randint(-64, 65, sizes, device=timing.device, dtype=torch.int8, generator=generator)
    branch = spikes(steps, batch, shape.out, shape.out, shape.outputs) if shape.shortcut else None
    v = torch.zeros(batch, shape.out, shape.out, shape.outputs, dtype=torch.int32, device=timing.device)
    each = [torch.full((shape.outputs,), value, dtype=torch.int32, device=timing.device)
            for value in (THRESHOLD, BIAS, SCALE)]  # fmt: skip
    low = None
    if kind != "int8":
        x, v, branch = x.half(), v.float(), None if branch is None else branch.half()
        weight, each = (weight.float() / 64).half(), [value.float() / 64 for value in each]
        low = torch.zeros_like(weight) if kind == "two parts" else None
    threshold, bias, scale = each
    layer = conv_if.Layer(weight, threshold, bias, shape.stride, shape.kernel // 2, scale, low)
    counts = torch.zeros(steps, batch, dtype=torch.int32, device=timing.device)
    return Case(conv_if.Tile(*tile), layer, x, v, branch, counts)


def tried(shape: Shape, quick: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Every arithmetic and tile that is tried for a layer."""
    found = []
    for kind in KINDS:
        for tile in TINY if quick else TILES:
            small = tile[1] <= shape.outputs and tile[2] <= shape.channels
            if small and (kind == "int8" or tile[2] <= 64):  # more spills
                found.append((kind, tile))
    return found


def exact(given: Case) -> bool:
    """Whether an int8 kernel gives the spikes, counts and membranes of exact sums."""
    layer, x, u = given.layer, given.x, torch.zeros_like(given.v, dtype=torch.float64).movedim(-1, 1)
    given.v.zero_(), given.counts.zero_()
    spikes, right = given.run(), True
    weight = layer.weight.movedim(-1, 1).double()
    for t in range(len(x)):
        u = u + F.conv2d(x[t].movedim(-1, 1).double(), weight, None, layer.stride, layer.padding)
        u = u + BIAS + (0 if given.branch is None else SCALE * given.branch[t].movedim(-1, 1))
        fires = u >= THRESHOLD
        u = u - THRESHOLD * fires.double()
        right = right and torch.equal(spikes[t].movedim(-1, 1).bool(), fires)
        right = right and torch.equal(given.counts[t].long(), fires.flatten(1).sum(1))
    return right and torch.equal(given.v.movedim(-1, 1).double(), u)


def two_kernels(timing: Timing, given: Case) -> float:
    """Milliseconds of the convolution in float16 and the membrane kernel."""
    layer, steps, batch = given.layer, *given.x.shape[:2]
    x, weight = given.x.movedim(-1, 2).flatten(0, 1), layer.weight.movedim(-1, 1)
    branch = given.branch
    update = inside.Update(
        layer.threshold[0],
        bias=layer.bias.view(-1, 1, 1),
        shortcut=None if branch is None else branch.movedim(-1, 2),
        shortcut_scale=None if branch is None else layer.scale.view(-1, 1, 1),
        spike_dtype=torch.float16,
        counts=given.counts,
    )
    kernel = inside.membrane if timing.gpu else inside.membrane_reference

    def both() -> None:
        current = F.conv2d(x, weight, None, layer.stride, layer.padding)
        kernel(current.unflatten(0, (steps, batch)), given.v.movedim(-1, 1), update)

    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        return timing.median(both)


def measure(timing: Timing, shape: Shape, batch: int) -> None:
    steps = 2 if timing.quick else STEPS
    line: dict[str, Any] = {"layer": vars(shape), "batch": batch, "steps": steps, "tile": {}, "failed": {}}
    line["int8_is_exact"] = True
    found = {"two kernels, float16": two_kernels(timing, case(timing, shape, "float16", TINY[0], batch))}
    for kind, tile in tried(shape, timing.quick):
        given = case(timing, shape, kind, tile, batch)
        try:
            if kind == "int8":
                line["int8_is_exact"] = line["int8_is_exact"] and exact(given)
            own = timing.median(given.run)
        except Exception as error:  # a tile that a device has no room for says nothing of the others; it is told
            line["failed"][f"{kind} {tile}"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        if own < found.get(kind, float("inf")):
            found[kind], line["tile"][kind] = own, vars(given.tile)
    line["us_per_step"] = {name: round(1e3 * own / steps, 3) for name, own in found.items()}
    timing.write(**line)


def compile_part(timing: Timing, batch: int, part: str) -> None:
    """Compile this part of all kernels, which the cache on the disk keeps."""
    index, many = map(int, part.split("/"))
    chosen = [(shape, *how) for shape in LAYERS for how in tried(shape, quick=False)]
    for shape, kind, tile in chosen[index::many]:
        try:
            case(timing, shape, kind, tile, min(batch, ALIKE)).run()
        except Exception as error:  # as in measure
            print(f"not compiled: {shape} {kind} {tile}: {error}", file=sys.stderr)
    timing.finish()


def compile_all(command: list[str]) -> None:
    """All parts beside each other, for a limited time; a kernel that is missing then is compiled when it is used."""
    made = [subprocess.Popen([*command, "--part", f"{part}/{PROCESSES}"]) for part in range(PROCESSES)]
    end = time.monotonic() + PATIENCE
    for process in made:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    options: dict[str, Any] = {"batch": {"type": int, "default": 64}, "part": {"metavar": "I/N"}}
    timing, got = asked("fused", __doc__ or "", arguments, **options)
    if importlib.util.find_spec("triton") is None:
        raise SystemExit("fused: needs Triton, which is not installed: nothing is timed")
    again = [sys.executable, __file__, "--device", got.device, "--output", str(got.output), "--batch", str(got.batch)]
    if not timing.gpu and os.environ.get("TRITON_INTERPRET") != "1":
        done = subprocess.run([*again, *["--quick"] * got.quick], env={**os.environ, "TRITON_INTERPRET": "1"})
        raise SystemExit(done.returncode)
    if got.part:
        return compile_part(timing, got.batch, got.part)
    if timing.gpu:
        compile_all(again)
    for shape in SMALL if timing.quick else LAYERS:
        measure(timing, shape, 2 if timing.quick else got.batch)
    return None


if __name__ == "__main__":
    main()
