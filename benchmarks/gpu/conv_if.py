"""Prototype in Triton: a convolution of spikes with the membrane update as its epilogue, all steps in one launch.

A program holds a tile of one image's pixels by output channels. Its membranes stay in registers over all steps, and its
currents never reach memory. With int8 weights the sums are exact in int32; with float16 they add up in float32, and a
second float16 weight times 2^-11 gives 22 bits (``low``). It needs Triton alone; without a GPU it runs, slowly, where
``TRITON_INTERPRET=1`` is set before it is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A convolution and the neurons behind it.

    Attributes:
        weight: ``[N, KH, KW, C]``, int8 or float16.
        threshold: ``[N]``, int32 or float32, as the membranes are.
        bias: ``[N]``, of the same type.
        stride: of the convolution.
        padding: of the convolution.
        scale: ``[N]``, of the shortcut's spikes, or None.
        low: what float16 weights leave, times 2^11, or None.
    """

    weight: Tensor
    threshold: Tensor
    bias: Tensor
    stride: int = 1
    padding: int = 0
    scale: Tensor | None = None
    low: Tensor | None = None


@dataclass(frozen=True)
class Tile:
    """What a program works on at a time: pixels, output channels, input channels; loads under way, warps."""

    pixels: int
    channels: int
    depth: int
    stages: int
    warps: int


@triton.jit
def _currents(
    x, weight, low, row, column, there, n,
    H, W, C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SPLIT: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The weights summed over the spikes of one step and image, for pixels whose windows begin at (row, column)."""
    total = tl.zeros((row.shape[0], n.shape[0]), dtype=SUM)
    rest = tl.zeros((row.shape[0], n.shape[0]), dtype=SUM)
    k = tl.arange(0, DEPTH)
    BLOCKS: tl.constexpr = (C + DEPTH - 1) // DEPTH
    for i in tl.range(0, KH * KW * BLOCKS, num_stages=STAGES):
        tap = i // BLOCKS
        c = (i % BLOCKS) * DEPTH + k
        iy = row + tap // KW
        ix = column + tap % KW
        inside = there & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        spikes = tl.load(x + ((iy * W + ix) * C)[:, None] + c[None, :], inside[:, None] & (c < C)[None, :], 0)
        at = (n * (KH * KW * C))[None, :] + (tap * C + c)[:, None]
        known = (c < C)[:, None] & (n < N)[None, :]
        total = tl.dot(spikes, tl.load(weight + at, known, 0), total, out_dtype=SUM)
        if SPLIT:
            rest = tl.dot(spikes, tl.load(low + at, known, 0), rest, out_dtype=SUM)
    if SPLIT:
        total = total + rest * 0.00048828125
    return total


@triton.jit
def _convolve_and_fire(
    x, weight, low, v, out, branch, scale, bias, threshold, counts,
    S: tl.constexpr, B, H, W, OH, OW, C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PAD: tl.constexpr, BRANCH: tl.constexpr, SPLIT: tl.constexpr, COUNT: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    SUM: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    # A tile lies within one image, so that counts do not mix images.
    tiles = tl.cdiv(OH * OW, PIXELS)
    image = tl.program_id(1) // tiles
    pixel = (tl.program_id(1) % tiles) * PIXELS + tl.arange(0, PIXELS)
    n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = pixel < OH * OW
    mine = there[:, None] & (n < N)[None, :]
    at = image.to(tl.int64) * OH * OW * N + pixel[:, None] * N + n[None, :]
    u = tl.load(v + at, mine, 0)
    theta = tl.load(threshold + n, n < N, 1)[None, :]
    each = tl.load(bias + n, n < N, 0)[None, :]
    gain = tl.load(scale + n, n < N, 0)[None, :]
    row = (pixel // OW) * STRIDE - PAD
    column = (pixel % OW) * STRIDE - PAD
    for t in range(S):
        frame = x + (t * B + image).to(tl.int64) * H * W * C
        u += _currents(frame, weight, low, row, column, there, n, H, W, C, N, KH, KW, SPLIT, DEPTH, STAGES, SUM)
        u += each
        step = at + t * B.to(tl.int64) * OH * OW * N
        if BRANCH:
            u += tl.load(branch + step, mine, 0).to(SUM) * gain
        fires = u >= theta
        u = tl.where(fires, u - theta, u)
        tl.store(out + step, fires.to(out.dtype.element_ty), mine)
        if COUNT:
            fired = tl.sum(tl.sum((fires & mine).to(tl.int32), 1), 0)
            tl.atomic_add(counts + t * B + image, fired)
    tl.store(v + at, u, mine)


def convolve_and_fire(
    x: Tensor, v: Tensor, layer: Layer, tile: Tile, branch: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """For each step ``u += conv(x[t]) + bias + scale * branch[t]``; it fires where ``u >= threshold``, which it loses.

    Args:
        x: ``[S, B, H, W, C]``, spikes: whole numbers in int8 or float16, as the weights are.
        v: ``[B, OH, OW, N]``, int32 or float32; it is written over with the membrane after the last step.
        branch: ``[S, B, OH, OW, N]``, spikes of the shortcut, or None.
        counts: ``[S, B]`` int32, to which the spikes of each step and image are added, or None.

    Returns:
        spikes ``[S, B, OH, OW, N]`` of the type of ``x``.
    """
    (steps, images, height, width, channels), (outputs, kh, kw, _) = x.shape, layer.weight.shape
    out = torch.empty(steps, *v.shape, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(outputs, tile.channels), images * triton.cdiv(v.shape[1] * v.shape[2], tile.pixels))

    def given(tensor: Tensor | None, unused: Tensor) -> Any:
        return unused if tensor is None else tensor

    _convolve_and_fire[grid](
        *(x, layer.weight, given(layer.low, layer.weight), v, out, given(branch, out)),
        *(given(layer.scale, layer.bias), layer.bias, layer.threshold, given(counts, out)),
        *(steps, images, height, width, v.shape[1], v.shape[2], channels, outputs, kh, kw),
        *(layer.stride, layer.padding, branch is not None, layer.low is not None, counts is not None),
        *(tile.pixels, tile.channels, tile.depth, tile.stages),
        num_warps=tile.warps,
    )
    return out
