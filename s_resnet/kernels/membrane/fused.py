"""A convolution of spikes and its neurons in one kernel on a CUDA device: the currents never reach memory.

Spikes travel as bytes, and tensor cores multiply them by int8 weights into int32 sums, which are exact: an integer
network gives the same spikes as on the CPU, bit for bit, in any chunk and any batch. With float16 weights the sums are
float32; a second float16 weight times 2^-11 gives 22 bits. The program is in
:mod:`s_resnet.kernels.membrane.fused_program`, its tiles are in :mod:`s_resnet.kernels.membrane.fused_tiles`.

Source: the convolution as an implicit matrix product is that of Chetlur et al., "cuDNN: Efficient Primitives for Deep
Learning" (arXiv:1410.0759).
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sysconfig
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InvalidData, message
from .. import check
from ..layout import empty_steps
from . import fused_tiles
from .fused_tiles import Layer, Tile
from .update import Update

Pair = tuple[int, int]
LIMIT = 2**31
SCHEDULES = {"streaming": 0, "lagged": 1, "phased": 2}
LOW = 2.0**11  # the second part of a weight comes times this
OLDEST = (8, 0)  # the compute capability from which tensor cores multiply int8
LARGEST = torch.iinfo(torch.int8).max  # what a neuron emits at a step at most, in thresholds


@dataclass(frozen=True, eq=False)
class Packed:
    """A convolution's weight, laid out for the kernel.

    Attributes:
        weight: ``[N, KH, KW, C]``, int8 or float16.
        stride: rows and columns alike.
        padding: rows and columns alike.
        low: what float16 weights leave, times 2^11, or None.
    """

    weight: Tensor
    stride: int
    padding: int
    low: Tensor | None = None

    @property
    def kind(self) -> str:
        """Of the weights: ``"int8"``, ``"float16"`` or ``"two-part"``."""
        return "int8" if self.weight.dtype == torch.int8 else "float16" if self.low is None else "two-part"

    @property
    def dtype(self) -> torch.dtype:
        """Of the sums."""
        return torch.int32 if self.weight.dtype == torch.int8 else torch.float32


@dataclass(frozen=True, eq=False)
class Currents:
    """A convolution of ``steps`` times B images of spikes that is not computed yet: neurons take it as it arises.

    Attributes:
        spikes: ``[S * B, C, H, W]`` int8 in channels_last.
        packed: the weight.
        steps: S.
        branch: a second one of the same shape, of a 1x1 kernel without padding, which arrives beside it; or None.
    """

    spikes: Tensor
    packed: Packed
    steps: int
    branch: Currents | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one step, ``[B, C_out, H_out, W_out]``."""
        outputs, height, width, _ = self.packed.weight.shape
        images, _, *size = self.spikes.shape
        sides = (
            (side + 2 * self.packed.padding - kernel) // self.packed.stride + 1
            for side, kernel in zip(size, (height, width), strict=True)
        )
        return (images // self.steps, outputs, *sides)

    def tensor(self) -> Tensor:
        """The currents ``[S, B, C_out, H_out, W_out]`` float32, without the branch, by torch's convolution."""
        packed, spikes = self.packed, self.spikes.to(torch.float32)

        def convolved(weight: Tensor) -> Tensor:
            weight = weight.movedim(-1, 1).to(torch.float32)
            return F.conv2d(spikes, weight, None, packed.stride, packed.padding)

        current = convolved(packed.weight)
        if packed.low is not None:  # apart, as TF32 holds each of the two
            current = current + convolved(packed.low) / LOW
        return current.view(self.steps, *self.shape)

    def empty(self) -> Tensor:
        """An uninitialized tensor shaped and laid out as one step, ``[B, C_out, H_out, W_out]``."""
        dtype, device = self.packed.dtype, self.spikes.device
        return torch.empty(self.shape, dtype=dtype, device=device, memory_format=torch.channels_last)

    def in_memory(self, update: Update) -> tuple[Tensor, Update]:
        """The currents, and the update with the branch as its shortcut."""
        if self.branch is None:
            return self.tensor(), update
        return self.tensor(), replace(update, shortcut=self.branch.tensor())

    def joined(self, other: Currents) -> Currents | None:
        """Both as one, if one of them can be the other's branch."""
        for first, second in ((self, other), (other, self)):
            small = second.packed.weight.shape[1:3] == (1, 1) and second.packed.padding == 0
            alike = first.packed.kind == second.packed.kind
            if small and alike and first.branch is None and second.branch is None:
                return replace(first, branch=second)
        return None


@cache
def missing(device: torch.device) -> str | None:
    """Why the kernel does not run on a device; None where it does."""
    if device.type != "cuda":
        return f"device {device}"
    if importlib.util.find_spec("triton") is None:
        return "no Triton, which comes with torch's builds for CUDA"
    if torch.version.hip is not None:
        return "this torch is for ROCm"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        return f"compute capability {found[0]}.{found[1]}, below {OLDEST[0]}.{OLDEST[1]}"
    # Triton compiles what launches a kernel on the machine where it runs.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler, which Triton needs"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.is_file() else f"no {header}, which Triton needs"


def usable(weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> bool:
    """Whether the kernel takes such a convolution ``[N, C, KH, KW]``."""
    plain = groups == 1 and dilation == (1, 1) and stride[0] == stride[1] and padding[0] == padding[1]
    return plain and max(weight.shape[2:]) < 32  # a bit for each row and column of the kernel


def pack(weight: Tensor, stride: Pair, padding: Pair, two_part: bool = False) -> Packed:
    """Lay out a weight ``[N, C, KH, KW]``: int8 as it is, others in float16, or in two parts of it."""
    if weight.dtype == torch.int8:
        return Packed(weight.movedim(1, -1).contiguous(), stride[0], padding[0])
    high = weight.movedim(1, -1).contiguous().to(torch.float16)
    low = None
    if two_part:
        low = ((weight.movedim(1, -1) - high.to(weight.dtype)) * LOW).to(torch.float16).contiguous()
    return Packed(high, stride[0], padding[0], low)


def takes(current: Currents, v: Tensor, update: Update) -> bool:
    """Whether :func:`integrate_and_fire` does this update; what it does not take goes through memory."""
    branch, scale = update.shortcut, update.shortcut_scale
    reads = [one.spikes for one in (current, current.branch) if one is not None]
    states = [x for x in (v, update.after, update.emitted, update.emitted_after) if x is not None]
    return (
        update.whole
        and update.most <= LARGEST
        and update.decay == 1.0
        and update.reset == "subtract"
        and v.dtype == current.packed.dtype
        and tuple(v.shape) == current.shape
        and (current.branch is None or (current.branch.steps, current.branch.shape) == (current.steps, current.shape))
        and all(x.dtype == torch.int8 and x.movedim(1, -1).is_contiguous() for x in reads)
        and all(x.movedim(1, -1).is_contiguous() for x in states)
        and (branch is None or (current.branch is None and branch.movedim(2, -1).is_contiguous()))
        and _is_per_channel(update.threshold, v)
        and (scale is None or _is_per_channel(scale, v))
        and (update.bias is None or _is_per_channel(update.bias[0] if update.by_step(v) else update.bias, v))
        and max(v.numel(), *(x.numel() // current.steps for x in reads)) < LIMIT
    )


def _is_per_channel(value: Tensor, v: Tensor) -> bool:
    """Whether it is one number, or one for each channel."""
    shape = (1,) * (v.ndim - value.ndim) + tuple(value.shape)
    return value.numel() == 1 or shape == (1, v.shape[1], *(1,) * (v.ndim - 2))


def integrate_and_fire(current: Currents, v: Tensor, update: Update, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does with ``current.in_memory(update)``.

    In whole numbers it is equal bit for bit, as long as no membrane comes within a threshold of 2^31. In float32 the
    sum of a step is rounded in another order, onto the membrane. Spikes come as int8.

    Args:
        current: the convolution, and perhaps a second one.
        v: ``[B, C, H, W]`` in channels_last, int32 for int8 weights, else float32.
        update: what the layer does.
        tile: how the work is divided; None: the one that :func:`fused_tiles.chosen` finds.

    Raises:
        InvalidData: also where :func:`takes` says no.
    """
    check.membrane(current.steps, v, update)
    if not takes(current, v, update):
        expected, remedy = "an update that it takes", "Use kernels.integrate_and_fire"
        raise InvalidData(message("fused kernel", "", "one that it does not", expected, remedy))
    after = v.clone() if update.after is None else update.after if update.after is v else update.after.copy_(v)
    emitted = update.emitted
    if emitted is not None and update.emitted_after is not emitted:
        emitted = emitted.clone() if update.emitted_after is None else update.emitted_after.copy_(emitted)
    out = empty_steps(current.steps, v, torch.int8)
    launch = _Launch(current, update, after, emitted, out)
    timed = launch.timed if fused_tiles.tunes(v.device) else None
    launch.run(tile or fused_tiles.chosen(layer(current, update), v.device, timed))
    dtype = update.spike_dtype or v.dtype
    return out if dtype == torch.int8 else out.to(dtype), after


def layer(current: Currents, update: Update) -> Layer:
    """What of a layer decides on its tile."""
    packed, branch = current.packed, current.branch
    outputs, height, width, channels = packed.weight.shape
    images, _, *sides = current.shape
    return Layer(
        kind=packed.kind,
        channels=channels,
        outputs=outputs,
        kernel=(height, width),
        stride=packed.stride,
        branch=0 if branch is None else branch.packed.weight.shape[3],
        shortcut=update.shortcut is not None,
        binary=update.binary,
        pixels=images * sides[0] * sides[1],
    )


class _Launch:
    """One launch of the program: its arguments, for any tile."""

    def __init__(self, current: Currents, update: Update, v: Tensor, emitted: Tensor | None, out: Tensor) -> None:
        self.current, self.update, self.v, self.emitted, self.out = current, update, v, emitted, out

    def run(self, tile: Tile) -> None:
        """Launch it."""
        self._launch(tile, self.v, self.emitted, self.update.counts)

    def timed(self, tile: Tile) -> float:
        """Milliseconds of a launch that changes nothing; infinitely many where the device has no room for the tile."""
        from triton.runtime.errors import OutOfResources

        v, emitted = self.v.clone(), None if self.emitted is None else self.emitted.clone()
        counts = None if self.update.counts is None else torch.zeros_like(self.update.counts)
        times: list[float] = []
        with torch.cuda.device(v.device):
            for _ in range(fused_tiles.REPEATS):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                try:
                    self._launch(tile, v, emitted, counts)
                except OutOfResources:
                    return math.inf
                end.record()
                end.synchronize()
                times.append(float(start.elapsed_time(end)))
        return min(times)

    def _launch(self, tile: Tile, v: Tensor, emitted: Tensor | None, counts: Tensor | None) -> None:
        update, current, steps = self.update, self.current, self.current.steps
        images, outputs, height, width = v.shape
        tiles = -(-outputs // tile.channels)
        rows = None if counts is None else v.new_empty((steps, tiles, images, height * width), dtype=torch.int16)
        plain = [self._numbers(value) for value in (update.shortcut_scale, update.bias, update.threshold)]
        scale, bias, threshold = plain
        branch = current.branch
        reads = (*_operands(current), *_operands(current if branch is None else branch))
        tensors = (*reads, v, emitted, self.out, rows, update.shortcut, scale, bias, threshold)
        sides = current.spikes.shape[2:], (height, width), (branch or current).spikes.shape[2:]
        sizes = (steps, images, *(side for pair in sides for side in pair))
        even = v[:, 0].numel() % tile.pixels == 0 and outputs % tile.channels == 0
        constants = self._constants() | tile.constants() | {"EVEN": even}
        program = _program()
        with torch.cuda.device(v.device) if v.is_cuda else nullcontext():
            grid = (tiles * -(-v[:, 0].numel() // tile.pixels),)
            program[grid](*(self.out if x is None else x for x in tensors), *sizes, **constants, **tile.options())
        if counts is not None and rows is not None:
            counts.add_(rows.sum((1, 3), dtype=torch.int32))

    def _constants(self) -> dict[str, object]:
        update, packed, branch = self.update, self.current.packed, self.current.branch
        outputs, height, width, channels = packed.weight.shape
        by_step = update.bias is not None and update.by_step(self.v)
        return {
            "C": channels,
            "N": outputs,
            "KH": height,
            "KW": width,
            "STRIDE": packed.stride,
            "PAD": packed.padding,
            "C2": 0 if branch is None else branch.packed.weight.shape[3],
            "STRIDE2": 1 if branch is None else branch.packed.stride,
            "TWO": packed.low is not None,
            "BRANCH": update.shortcut is not None,
            "SCALED": update.shortcut is not None and update.shortcut_scale is not None,
            "BIAS": 0 if update.bias is None else 1 + by_step,
            "COUNT": update.counts is not None,
            "LEVELS": update.levels,
            "SIGNED": update.emitted is not None,
            "SCHEDULE": SCHEDULES[update.schedule],
        }

    def _numbers(self, value: Tensor | None) -> Tensor | None:
        """One number for each channel, of each step where there is a row for each, in the membrane's type."""
        if value is None:
            return None
        channels = self.v.shape[1]
        rows = value.flatten(1) if value.ndim > self.v.ndim else value.reshape(-1)
        return rows.expand(*rows.shape[:-1], channels).to(self.v.dtype).contiguous()


def _operands(current: Currents) -> tuple[Tensor, Tensor, Tensor | None]:
    return current.spikes, current.packed.weight, current.packed.low


@cache
def _program() -> Any:
    """The program; importing it takes Triton."""
    from .fused_program import convolve_and_fire

    return convolve_and_fire
