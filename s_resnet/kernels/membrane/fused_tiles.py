"""Tiles of the fused kernel: which there are for a layer, which one is taken, and what was measured, kept on disk.

A tile is how much a program works on at a time. Where cuDNN looks for its fastest algorithm, the fastest tile is
looked for too, once for each shape and device; else a rule decides, which follows what was measured on an H200.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...files import replacing
from ..build.cache import folder

REPEATS = 3
SHARED = 220_000  # bytes of shared memory that a tile may take at most
COLUMNS = 512  # of tensor memory
OTHER = 4096  # bytes that the compiler takes besides
HELD = 48_000  # bytes of weights that a tile keeps there over all steps


@dataclass(frozen=True)
class Layer:
    """What of a layer decides on its tile.

    Attributes:
        kind: of the weights, ``"int8"``, ``"float16"`` or ``"two-part"``.
        channels: C of the input.
        outputs: N.
        kernel: KH, KW.
        stride: of the convolution.
        branch: C of a second convolution, or 0.
        shortcut: whether spikes or currents of a shortcut are read.
        binary: whether spikes are 0 and 1.
        pixels: of all images.
    """

    kind: str
    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    branch: int
    shortcut: bool
    binary: bool
    pixels: int

    @property
    def taps(self) -> int:
        """Places that the kernel reads."""
        return self.kernel[0] * self.kernel[1]

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return {"int8": 1, "float16": 2, "two-part": 4}[self.kind]


@dataclass(frozen=True)
class Tile:
    """How much a program works on at a time.

    Attributes:
        pixels: output pixels.
        channels: output channels.
        depth: input channels of a part of the sum.
        stages: parts that are on their way.
        warps: of the program.
        registers: of a thread at most; 0: as the compiler likes.
        held: whether weights stay in shared memory over all steps.
        flat: whether one loop goes over steps and parts of the sum.
    """

    pixels: int
    channels: int
    depth: int
    stages: int
    warps: int
    registers: int = 0
    held: bool = False
    flat: bool = False

    def constants(self) -> dict[str, object]:
        """For the program, by its names."""
        found: dict[str, object] = {"PIXELS": self.pixels, "CHANNELS": self.channels, "DEPTH": self.depth}
        return found | {"STAGES": self.stages, "HELD": self.held, "FLAT": self.flat}

    def options(self) -> dict[str, int]:
        """For Triton's launch."""
        limited = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages} | limited


SMALL = Tile(32, 32, 32, 2, 4)  # for a device where no other has room


@dataclass(frozen=True)
class Room:
    """What a device has for a tile.

    Attributes:
        shared: bytes of shared memory.
        columns: of tensor memory, where sums are kept there and not in registers (compute capability 10 and 11), or 0.
    """

    shared: int = SHARED
    columns: int = 0


@cache
def room(device: torch.device) -> Room:
    """What is there of a device."""
    if device.type != "cuda":
        return Room()
    found: Any = torch.cuda.get_device_properties(device)  # whose stubs leave out what follows
    return Room(min(SHARED, found.shared_memory_per_block_optin), COLUMNS if found.major in (10, 11) else 0)


@cache
def candidates(layer: Layer, there: Room) -> tuple[Tile, ...]:
    """The tiles that are tried for a layer, those that have room; the first is taken where nothing was measured."""
    found = dict.fromkeys(
        tile
        for tile in _tiles(layer)
        if shared(layer, tile) <= there.shared and (not there.columns or columns(layer, tile) <= there.columns)
    )
    return tuple(found) or (SMALL,)


def _tiles(layer: Layer) -> Iterator[Tile]:
    """By what the layer lets stay in shared memory, the likeliest first."""
    most = 2 ** (max(16, layer.outputs) - 1).bit_length()
    wide = min(64, most)
    # The first one has no limit on registers, and more threads where each neuron holds more: a default spills nothing.
    sizes = [(64, wide, 4 if layer.binary else 8, 0), (64, wide, 4, 128), (128, wide, 8, 128)]
    if most >= 128:
        sizes += [(64, 128, 8, 128), (128, 128, 8, 0)]
    deep = 2 ** (max(32, min(layer.channels, layer.branch or layer.channels, 128)) - 1).bit_length()
    alone = layer.branch == 0 and layer.kind != "two-part"
    for pixels, channels, warps, registers in sizes:
        weights = layer.taps * layer.channels * channels * layer.itemsize
        if layer.taps == 1 and layer.channels <= 256 and alone:
            whole = 2 ** (max(32, layer.channels) - 1).bit_length()
            for stages in (3, 2):
                yield Tile(pixels, channels, whole, stages, warps, registers, held=True)
        elif alone and weights <= HELD:
            yield Tile(pixels, channels, deep, 2, warps, held=True)
        if alone:
            yield Tile(pixels, channels, deep, 3, warps, registers, flat=True)
            if deep > 64:
                yield Tile(pixels, channels, 64, 4, warps, registers, flat=True)
        if layer.taps > 1 or not alone:
            yield Tile(pixels, channels, deep, 3, warps, registers)
        if layer.branch:
            yield Tile(pixels, channels, min(64, deep), 3, warps, registers)
            yield Tile(pixels, channels, deep, 2, warps, registers)


def shared(layer: Layer, tile: Tile) -> int:
    """Bytes of shared memory that it takes at most."""
    kept = _kept(layer, tile)
    spikes = kept * tile.pixels * tile.depth * tile.stages
    weights = kept * tile.channels * tile.depth * layer.itemsize * (1 if tile.held else tile.stages)
    return spikes + weights + tile.pixels * tile.channels * (1 + tile.stages * layer.shortcut) + OTHER


def columns(layer: Layer, tile: Tile) -> int:
    """Columns of tensor memory that it takes: a sum for each part of the convolution that is there at once."""
    return _kept(layer, tile) * tile.channels


def _kept(layer: Layer, tile: Tile) -> int:
    """Parts of a convolution that a program has at once."""
    parts = layer.taps * -(-layer.channels // tile.depth)
    if parts == 1 and 0 < layer.branch <= tile.depth:
        return 2  # both convolutions of a step are on their way together
    return parts if tile.held else 1


def tunes(device: torch.device) -> bool:
    """Whether tiles are tried on a device now: where cuDNN tries its algorithms."""
    return device.type == "cuda" and torch.backends.cudnn.benchmark and not torch.cuda.is_current_stream_capturing()


def chosen(layer: Layer, device: torch.device, timed: Callable[[Tile], float] | None) -> Tile:
    """The tile for a layer on a device: as it was measured, or is now by ``timed``; else the first candidate.

    ``timed`` gives milliseconds, infinitely many for a tile that the device has no room for.
    """
    tiles, table, key = candidates(layer, room(device)), _table(device), _key(layer)
    measured = table.get(key)
    for tile in tiles:
        if vars(tile) == measured:
            return tile
    if timed is None:
        return tiles[0]
    times = {tile: timed(tile) for tile in tiles}
    fastest = min(times, key=lambda tile: times[tile])
    table[key] = asdict(fastest)
    if device.type == "cuda":
        with replacing(_path(device)) as temporary:
            temporary.write_text(json.dumps(table))
    return fastest


@cache
def _key(layer: Layer) -> str:
    """Pixels count by their power of two."""
    return json.dumps([*vars(replace(layer, pixels=layer.pixels.bit_length())).values()])


@cache
def _table(device: torch.device) -> dict[str, object]:
    """What was measured on a device, in this process and before: tiles by layer, as they are written."""
    if device.type != "cuda" or not _path(device).exists():
        return {}
    try:
        stored = json.loads(_path(device).read_text())
    except ValueError:  # written by something else: it is measured again
        return {}
    return stored if isinstance(stored, dict) else {}


def _path(device: torch.device) -> Path:
    """By device, Triton's version and the program, whose times they are."""
    program = Path(__file__).with_name("fused_program.py").read_bytes()
    what = f"{torch.cuda.get_device_name(device)} {importlib.metadata.version('triton')}".encode()
    return folder() / f"tiles-{hashlib.sha256(what + program).hexdigest()[:32]}.json"
