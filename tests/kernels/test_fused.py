"""The fused kernel in Triton's interpreter, compiled for GPUs without one, and what decides whether and how it runs."""

import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
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

from s_resnet import kernels
from s_resnet.kernels import Update, events, pending
from s_resnet.kernels.membrane import fused, fused_tiles
from s_resnet.kernels.membrane.fused import Currents, Packed
from s_resnet.kernels.membrane.fused_tiles import Layer, Room, Tile

TESTS = Path(__file__).parents[1]
INTERPRETED = (TESTS / "kernels" / "fused_in_triton.py", TESTS / "graph" / "one_kernel_in_triton.py")
GPU = torch.device("cuda:0")


def without_triton(oldest):
    """Why there is no Triton to test with, or None."""
    if importlib.util.find_spec("triton") is None:
        return "no Triton, which comes with torch's builds for CUDA"
    found = importlib.metadata.version("triton")
    old = tuple(map(int, found.split(".")[:2])) < oldest
    return f"Triton {found} is older than {oldest[0]}.{oldest[1]}" if old else None


def needs_triton(oldest):
    return pytest.mark.skipif(without_triton(oldest) is not None, reason=str(without_triton(oldest)))


@needs_triton((3, 8))  # the interpreters of 3.5 and 3.6 fail with NumPy 2.4
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
    """A launch of such a layer, in int8, and what decides on its tile."""

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
    return fused._Launch(current, update, v, update.emitted, spikes), fused.layer(current, update)


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
        launch(shape)[0].run(tile)
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


PARTS = {80: RESNET50[1::2], 90: RESNET50, 100: RESNET50[::2]}  # each of them for two of the three
ROOMS = {80: Room(166_912), 90: Room(), 100: Room(columns=fused_tiles.COLUMNS)}
INSTRUCTIONS = {
    80: r"mma\.sync\.\S*m16n8k32\S*s8",
    90: r"wgmma\.mma_async\S*s8",
    100: r"tcgen05\.mma\S*kind::i8|mma\.sync\S*s8",
}


@needs_triton((3, 5))
@pytest.mark.parametrize("arch", ROOMS)
def test_defaults_spill_nothing_use_tensor_cores_and_have_room(arch):
    for index, shape in enumerate(PARTS[arch]):
        _, layer = launch(shape)
        first, *others = fused_tiles.candidates(layer, ROOMS[arch])
        # And one that goes through the sum in another way, without a limit on registers.
        ways = [tile for tile in others if not tile.registers and (tile.flat, tile.held) != (first.flat, first.held)]
        for tile in [first, *ways[:1]] if arch == 90 and index < 2 else [first]:
            found = compiled(shape, tile, arch)
            with case(arch, shape, tile):
                assert 32 <= found.registers <= 255 and found.stack == 0
                assert found.shared <= fused_tiles.shared(layer, tile) <= ROOMS[arch].shared
                assert found.columns <= fused_tiles.columns(layer, tile)
                assert re.search(INSTRUCTIONS[arch], found.ptx) and "trap;" not in found.ptx


@needs_triton((3, 5))
def test_the_check_of_spills_and_columns_sees_them():
    """With few registers, and with nine sums of 64 channels: too many columns, where Triton uses them (from 3.6 on)."""
    shape = RESNET50[0]
    _, layer = launch(shape)
    first = fused_tiles.candidates(layer, Room())[0]
    assert compiled(shape, replace(first, registers=64), 90).stack > 0
    assert fused_tiles.columns(layer, first) > fused_tiles.COLUMNS
    assert compiled(shape, first, 100).columns in (0, fused_tiles.columns(layer, first))


# ---- whether it runs ----


def currents(packed=None, channels=32, steps=2, images=2, side=4):
    """A 3x3 convolution of int8 spikes."""
    spikes = torch.ones(steps * images, side, side, channels, dtype=torch.int8).movedim(-1, 1)
    return Currents(spikes, packed or packing((16, channels, 3, 3)), steps)


def packing(shape, dtype=torch.int8, padding=1, stride=1, two_part=False):
    return fused.pack(torch.ones(shape, dtype=dtype), (stride, stride), (padding, padding), two_part)


def test_it_takes_updates_in_its_layout_and_alphabet():
    current, one = currents(), torch.ones(16, 1, 1, dtype=torch.int32)
    v = torch.zeros(2, 4, 4, 16, dtype=torch.int32).movedim(-1, 1)
    plain, contiguous = Update(one, bias=one), v.contiguous()
    rows = torch.ones(2, 1, 16, 1, 1, dtype=torch.int32)
    branch = torch.ones(2, 2, 4, 4, 16, dtype=torch.int8).movedim(-1, 2)
    for update in (
        *(plain, Update(one[0], bias=rows), replace(plain, emitted=v, emitted_after=v, levels=7, after=v)),
        *(replace(plain, schedule="lagged"), replace(plain, schedule="phased", shortcut=branch, shortcut_scale=one)),
    ):
        with case(update):
            assert fused.takes(current, v, update)
    for update in (
        *(replace(plain, decay=0.5), replace(plain, reset="zero"), replace(plain, levels=8)),
        *(replace(plain, schedule="lagged", ends=False), replace(plain, bias=v), Update(v)),
        *(replace(plain, shortcut=branch, shortcut_scale=v), replace(plain, shortcut=branch.contiguous())),
        *(replace(plain, after=contiguous), replace(plain, emitted=contiguous)),
        replace(plain, emitted=v, emitted_after=contiguous),
    ):
        with case(update):
            assert not fused.takes(current, v, update)
    uint8 = replace(current, spikes=current.spikes.to(torch.uint8))
    planes = replace(current, spikes=current.spikes.contiguous())
    other = replace(current, branch=currents(packing((16, 32, 1, 1), padding=0)))
    assert fused.takes(other, v, plain)
    for given, membrane in ((uint8, v), (planes, v), (current, contiguous), (current, v.float()), (current, v[:1])):
        assert not fused.takes(given, membrane, plain)
    assert not fused.takes(replace(other, branch=planes), v, plain)
    for smaller in (packing((16, 32, 1, 1), padding=0, stride=2), packing((8, 32, 1, 1), padding=0)):
        assert not fused.takes(replace(current, branch=currents(smaller)), v, plain), "a branch of another shape"
    assert not fused.takes(other, v, replace(plain, shortcut=branch))


def test_what_it_does_not_take_goes_through_memory():
    """With the branch as a shortcut: 9, 6 or 4 taps of 32 channels, and 32 of the branch, at each of two steps."""
    both = replace(currents(), branch=currents(packing((16, 32, 1, 1), padding=0)))
    v = torch.zeros(2, 16, 4, 4, dtype=torch.int32)
    spikes, after = kernels.integrate_and_fire(both, v, Update(torch.tensor(500, dtype=torch.int32), reset="zero"))
    row = [320, 448, 448, 320]
    assert after[1, 5].tolist() == [row, [448, 0, 0, 448], [448, 0, 0, 448], row]
    assert [int(step.sum()) for step in spikes] == [0, 2 * 16 * 4]


def test_convolutions_that_it_can_do():
    weight = torch.ones(8, 8, 3, 3)
    assert fused.usable(weight, (2, 2), (1, 1), (1, 1), 1) and fused.usable(
        torch.ones(8, 8, 1, 31), (1, 1), (0, 0), (1, 1), 1
    )
    for changed in (((2, 1), (1, 1), (1, 1), 1), ((1, 1), (1, 0), (1, 1), 1), ((1, 1), (1, 1), (2, 2), 1)):
        assert not fused.usable(weight, *changed)
    assert not fused.usable(weight, (1, 1), (1, 1), (1, 1), 2)
    assert not fused.usable(torch.ones(8, 8, 1, 32), (1, 1), (0, 0), (1, 1), 1)


def test_two_that_arrive_together_are_joined_where_one_is_a_projection():
    wide, small = currents(), currents(packing((16, 32, 1, 1), padding=0))
    assert wide.joined(small).branch is small and small.joined(wide).branch is small
    assert pending.joined(wide, small).packed is wide.packed and wide.joined(wide) is None
    assert currents(packing((16, 32, 1, 1))).joined(wide) is None, "padded"
    assert wide.joined(small).joined(small) is None and small.joined(wide.joined(small)) is None
    kinds = [packing((16, 32, 1, 1), torch.float32, 0, two_part=two) for two in (False, True)]
    assert wide.joined(currents(kinds[0])) is None and currents(kinds[0]).joined(currents(kinds[1])) is None
    listed = events.Currents(None, None, 2)
    assert pending.joined(listed, small) is None and pending.joined(small, listed) is None


def test_why_it_does_not_run(monkeypatch):
    def reason(device=GPU):
        return fused.missing.__wrapped__(device)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(TESTS / "kernels"))
    monkeypatch.setattr(Path, "is_file", lambda path: path == TESTS / "kernels" / "Python.h")
    assert reason() is None and reason(torch.device("cpu")) == "device cpu"
    for owner, name, value, said in (
        (importlib.util, "find_spec", lambda name: None, "no Triton"),
        (torch.version, "hip", "6.4", "ROCm"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "capability 7.5, below 8.0"),
        (Path, "is_file", lambda path: False, "no .*Python.h"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, value)
            assert re.search(said, reason())
    monkeypatch.delenv("CC")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no C compiler" in reason()


# ---- tiles ----

LAYER = Layer("int8", 64, 64, (3, 3), 1, 0, False, True, 5000)


def test_every_layer_has_tiles_and_they_have_room():
    rooms = (Room(), Room(166_912), Room(101_376), Room(columns=fused_tiles.COLUMNS), Room(20_000))
    for kind, channels, outputs, kernel, branch in itertools.product(
        ("int8", "float16", "two-part"), (3, 64, 512, 2048), (5, 64, 2048), ((1, 1), (3, 3), (7, 7)), (0, 256)
    ):
        layer = Layer(kind, channels, outputs, kernel, 1, branch, True, True, 5000)
        for room in rooms:
            with case(layer, room):
                found = fused_tiles.candidates(layer, room)
                assert len(set(found)) == len(found) >= 1 and not found[0].registers
                for tile in found if found != (fused_tiles.SMALL,) else ():
                    assert fused_tiles.shared(layer, tile) <= room.shared
                    assert not room.columns or fused_tiles.columns(layer, tile) <= room.columns
                    assert all(n >= 16 and n & (n - 1) == 0 for n in (tile.pixels, tile.channels, tile.depth))
                    assert tile.depth >= 32 and not (tile.held and tile.flat)
                    assert not (tile.held or tile.flat) or (branch == 0 and kind != "two-part"), (
                        "a loop that it has not"
                    )
    assert fused_tiles.candidates(LAYER, Room())[0].held
    assert not fused_tiles.candidates(LAYER, Room(columns=fused_tiles.COLUMNS))[0].held


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A GPU with a folder for its table; the tiles that were timed, of which the one with most channels is fastest."""
    timed = []

    def choose(layer, tunes=True):
        fused_tiles._table.cache_clear()  # as in another process
        return fused_tiles.chosen(layer, GPU, (lambda tile: timed.append(tile) or 1 / tile.channels) if tunes else None)

    monkeypatch.setattr(fused_tiles, "folder", lambda: tmp_path)
    monkeypatch.setattr(fused_tiles, "room", lambda device: Room())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.8.0")
    yield SimpleNamespace(choose=choose, timed=timed, path=fused_tiles._path(GPU))
    fused_tiles._table.cache_clear()


def test_a_layer_is_measured_once_for_all_processes(measured):
    wide = replace(LAYER, outputs=256)
    first, *_ = tiles = fused_tiles.candidates(wide, Room())
    assert measured.choose(wide, tunes=False) == first and not measured.path.exists()
    fastest = measured.choose(wide)
    assert fastest.channels == max(tile.channels for tile in tiles) != first.channels
    assert measured.timed == list(tiles)
    for alike in (wide, replace(wide, pixels=4096), replace(wide, pixels=8191)):
        assert measured.choose(alike) == measured.choose(alike, tunes=False) == fastest
    assert measured.timed == list(tiles)
    for changed in (
        *({"pixels": 8192}, {"kind": "float16"}, {"channels": 32}, {"outputs": 512}, {"kernel": (1, 3)}, {"stride": 2}),
        *({"branch": 8}, {"shortcut": True}, {"binary": False}),
    ):
        before = len(measured.timed)
        measured.choose(replace(wide, **changed))
        assert len(measured.timed) > before, changed
    assert len(json.loads(measured.path.read_text())) == 10


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "null", "\udc80", '{"a": 1, "[]": {}, "null": null}', "a foreign tile", "no tile"),
        "a tile with more",
    ],
)
def test_garbage_and_foreign_tiles_are_measured_again(measured, text):
    tile = measured.choose(LAYER)
    (key,) = json.loads(measured.path.read_text())
    foreign = {
        "a foreign tile": vars(Tile(8, 8, 8, 1, 1)),
        "no tile": [1],
        "a tile with more": {**vars(tile), "more": 1},
    }
    given = json.dumps({key: foreign[text]}) if text in foreign else text
    measured.path.write_bytes(given.encode(errors="surrogateescape"))
    before = len(measured.timed)
    assert measured.choose(LAYER, tunes=False) == fused_tiles.candidates(LAYER, Room())[0]
    assert measured.choose(LAYER) == tile and len(measured.timed) == 2 * before
    assert json.loads(measured.path.read_text())[key] == vars(tile)


def test_the_table_is_written_whole(measured, monkeypatch):
    measured.choose(LAYER)
    before = measured.path.read_text()

    def broken(path, text):
        with open(path, "w") as file:
            file.write(text[:9])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(Exception, match="disk full"):
        measured.choose(replace(LAYER, stride=2))
    assert measured.path.read_text() == before and list(measured.path.parent.iterdir()) == [measured.path]


def test_a_tile_without_room_is_never_the_fastest(measured):
    tiles = fused_tiles.candidates(LAYER, Room())
    last = tiles[-1]
    assert fused_tiles.chosen(LAYER, GPU, lambda tile: 3.0 if tile == last else math.inf) == last != tiles[0]
