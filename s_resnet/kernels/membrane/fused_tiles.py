"""Tiles of the fused kernel: which there are for a layer, which one is taken, and what was measured, kept on disk.

A tile is how much a program works on at a time. Where cuDNN looks for its fastest algorithm, the fastest tile is
looked for too, once for each shape and device; else a rule decides, which follows what was measured on an H200.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from ...files import replacing
from ..build.cache import folder

REPEATS = 3
SHARED = 220_000  # bytes of shared memory that a tile may take
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


def candidates(layer: Layer) -> list[Tile]:
    """The tiles that are tried for a layer; the first one is taken where nothing was measured."""
    found = dict.fromkeys(tile for tile in _tiles(layer) if _shared(layer, tile) <= SHARED)
    return list(found)


def _tiles(layer: Layer) -> Iterator[Tile]:
    """By what the layer lets stay in shared memory, the likeliest first."""
    most = 2 ** (max(16, layer.outputs) - 1).bit_length()
    wide = min(64, most)
    sizes = [(64, wide, 4, 128), (64, wide, 8, 0), (128, wide, 8, 128)]
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


def _shared(layer: Layer, tile: Tile) -> int:
    """Bytes of shared memory, about."""
    parts = layer.taps * -(-layer.channels // tile.depth) if tile.held else 1
    spikes = parts * tile.pixels * tile.depth * tile.stages
    weights = parts * tile.channels * tile.depth * layer.itemsize * (1 if tile.held else tile.stages)
    return spikes + weights + tile.stages * tile.pixels * tile.channels * layer.shortcut


def tunes(device: torch.device) -> bool:
    """Whether tiles are tried on a device now: where cuDNN tries its algorithms."""
    return device.type == "cuda" and torch.backends.cudnn.benchmark and not torch.cuda.is_current_stream_capturing()


def chosen(layer: Layer, timed: Callable[[Tile], float] | None) -> Tile:
    """The tile for a layer: as it was measured, or is now by ``timed``; else the first candidate."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    table = _table(device)
    key = _key(layer)
    if key not in table:
        if timed is None:
            return candidates(layer)[0]
        table[key] = _fastest(layer, timed)
        _write(device, table)
    return table[key]


def _fastest(layer: Layer, timed: Callable[[Tile], float]) -> Tile:
    """By the clock; a tile that the device has no room for is none."""
    times: dict[Tile, float] = {}
    for tile in candidates(layer):
        try:
            times[tile] = timed(tile)
        except RuntimeError as error:
            if "out of resource" not in str(error).lower():
                raise
    return min(times, key=lambda tile: times[tile])


def _key(layer: Layer) -> str:
    """Pixels count by their power of two."""
    values = asdict(layer) | {"pixels": layer.pixels.bit_length()}
    return json.dumps(list(values.values()))


@cache
def _table(device: int | None) -> dict[str, Tile]:
    """What was measured on a device, in this process and before."""
    path = None if device is None else _path(device)
    if path is None or not path.exists():
        return {}
    found: dict[str, Tile] = {}
    try:
        stored = json.loads(path.read_text())
    except ValueError:  # written by something else: it is measured again
        return {}
    for key, values in stored.items() if isinstance(stored, dict) else ():
        kind, channels, outputs, kernel, stride, branch, shortcut, binary, pixels = json.loads(key)
        layer = Layer(kind, channels, outputs, tuple(kernel), stride, branch, shortcut, binary, 2 ** (pixels - 1))
        known = {json.dumps(asdict(tile)): tile for tile in candidates(layer)}
        if json.dumps(values) in known:
            found[key] = known[json.dumps(values)]
    return found


def _write(device: int | None, table: dict[str, Tile]) -> None:
    if device is not None:
        with replacing(_path(device)) as temporary:
            temporary.write_text(json.dumps({key: asdict(tile) for key, tile in table.items()}))


def _path(device: int) -> Path:
    """By device, Triton's version and the program, whose times they are."""
    program = Path(__file__).with_name("fused_program.py").read_bytes()
    what = f"{torch.cuda.get_device_name(device)} {importlib.metadata.version('triton')}".encode()
    return folder() / f"tiles-{hashlib.sha256(what + program).hexdigest()[:32]}.json"
