"""The fused kernel: in Triton's interpreter, compiled for GPUs without one, and what decides whether and how it runs."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import case

from s_resnet.kernels import Update, events, pending
from s_resnet.kernels.membrane import fused, fused_tiles
from s_resnet.kernels.membrane.fused import Currents, Packed
from s_resnet.kernels.membrane.fused_tiles import Layer, Room, Tile

TESTS = Path(__file__).parents[1]
INTERPRETED = (TESTS / "kernels" / "fused_in_triton.py", TESTS / "graph" / "one_kernel_in_triton.py")
OLDEST = (3, 5)  # with torch 2.9
GPU = torch.device("cuda:0")


def without_triton():
    """Why there is no Triton to test with, or None."""
    if importlib.util.find_spec("triton") is None:
        return "no Triton, which comes with torch's builds for CUDA"
    found = importlib.metadata.version("triton")
    old = tuple(map(int, found.split(".")[:2])) < OLDEST
    return f"Triton {found} is older than {OLDEST[0]}.{OLDEST[1]}" if old else None


needs_triton = pytest.mark.skipif(without_triton() is not None, reason=str(without_triton()))


@needs_triton
def test_in_tritons_interpreter():
    """Every feature of the kernel, and the engine over it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, INTERPRETED)]
    done = subprocess.run(
        command, env=kept | {"TRITON_INTERPRET": "1"}, cwd=TESTS.parent, capture_output=True, text=True, timeout=600
    )
    told = re.search(r"^(\d+) passed in", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and told and int(told[1]) >= 40, done.stdout + done.stderr


# ---- compiled ----


@dataclass(frozen=True)
class Shape:
    """A layer of a network: channels, the side of its output, outputs, kernel, stride, and what else arrives."""

    channels: int
    side: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    shortcut: bool = False
    projection: tuple[int, int] | None = None  # its channels and stride
    signed: bool = False
    schedule: str = "streaming"


RESNET50 = (
    Shape(64, 56, 64, kernel=3),
    Shape(64, 56, 256, shortcut=True),
    Shape(128, 28, 512, projection=(256, 2)),
    Shape(256, 14, 1024, shortcut=True, signed=True),
    Shape(512, 7, 512, kernel=3, schedule="lagged"),
    Shape(2048, 7, 512, schedule="phased"),
)
STEPS, BATCH = 2, 64


def maps(images, channels, side, dtype):
    """Without values, in channels_last."""
    return torch.empty(images, side, side, channels, dtype=dtype, device="meta").movedim(-1, 1)


def launch(shape):
    """A launch of such a layer, in int8."""

    def convolution(channels, kernel, stride):
        weight = torch.empty(shape.outputs, kernel, kernel, channels, dtype=torch.int8, device="meta")
        side = (shape.side - 1) * stride + kernel - 2 * (kernel // 2)
        return Currents(maps(STEPS * BATCH, channels, side, torch.int8), Packed(weight, stride, kernel // 2), STEPS)

    v = maps(BATCH, shape.outputs, shape.side, torch.int32)
    each = torch.empty(shape.outputs, 1, 1, dtype=torch.int32, device="meta")
    spikes = maps(STEPS * BATCH, shape.outputs, shape.side, torch.int8).unflatten(0, (STEPS, BATCH))
    current = convolution(shape.channels, shape.kernel, shape.stride)
    if shape.projection:
        current = replace(current, branch=convolution(shape.projection[0], 1, shape.projection[1]))
    update = Update(
        each,
        bias=each,
        shortcut=spikes if shape.shortcut else None,
        shortcut_scale=each if shape.shortcut else None,
        emitted=v if shape.signed else None,
        schedule=shape.schedule,
        counts=torch.empty(STEPS, BATCH, dtype=torch.int32, device="meta"),
    )
    return fused._Launch(current, update, v, update.emitted, spikes)


class Noted:
    """In place of the program: what it is launched with."""

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **options):
        self.arguments, self.options = arguments, options


@functools.cache
def compiled(shape, tile, arch):
    """The registers, stack, shared memory and instructions of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    noted, program = Noted(), fused._program()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fused, "_program", lambda: noted)
        launch(shape).run(tile)
    constants = {name: value for name, value in noted.options.items() if name.isupper()}
    given = dict(zip(program.arg_names, noted.arguments, strict=False))
    types = {torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32"}
    signature = {name: types[x.dtype] if isinstance(x, torch.Tensor) else "i32" for name, x in given.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(noted.arguments) if isinstance(x, torch.Tensor)}
    source = ASTSource(
        program,
        signature | dict.fromkeys(constants, "constexpr"),
        {(program.arg_names.index(name),): value for name, value in constants.items()},
        aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=tile.options())
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", told).groups())
    return SimpleNamespace(
        registers=registers,
        stack=stack,
        shared=made.metadata.shared,
        columns=getattr(made.metadata, "tmem_size", None) or 0,
        ptx=made.asm["ptx"],
    )


ROOMS = {80: Room(166_912), 90: Room(), 100: Room(columns=fused_tiles.COLUMNS)}
INSTRUCTIONS = {80: r"mma\.sync\.\S*m16n8k32\S*s8", 90: r"wgmma\.mma_async\S*s8", 100: r"tcgen05\.mma\S*kind::i8"}


@needs_triton
@pytest.mark.parametrize("arch", ROOMS)
def test_defaults_spill_nothing_use_tensor_cores_and_have_room(arch):
    for index, shape in enumerate(RESNET50):
        layer = launch(shape).layer
        first, *others = fused_tiles.candidates(layer, ROOMS[arch])
        # And one that goes through the sum in another way, without a limit on registers.
        ways = [tile for tile in others if not tile.registers and (tile.flat, tile.held) != (first.flat, first.held)]
        for tile in [first, *ways[:1]] if arch == 90 and index < 2 else [first]:
            found = compiled(shape, tile, arch)
            with case(arch, shape, tile):
                assert 32 <= found.registers <= 255 and found.stack == 0
                assert found.shared <= fused_tiles.shared(layer, tile) <= ROOMS[arch].shared
                assert found.columns <= fused_tiles.columns(layer, tile)
                assert bool(found.columns) == bool(ROOMS[arch].columns) and "trap;" not in found.ptx
                assert re.search(INSTRUCTIONS[arch], found.ptx)


@needs_triton
def test_the_check_of_spills_and_columns_sees_them():
    """With few registers, and with nine sums of 64 channels, for which Blackwell has no room."""
    shape = RESNET50[0]
    layer = launch(shape).layer
    first = fused_tiles.candidates(layer, Room())[0]
    assert compiled(shape, replace(first, registers=64), 90).stack > 0
    assert compiled(shape, first, 100).columns == fused_tiles.columns(layer, first) > fused_tiles.COLUMNS
