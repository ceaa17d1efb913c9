"""The Triton program of :mod:`s_resnet.kernels.membrane.fused`: a tile of neurons through all steps of a chunk.

A program holds a tile of output pixels by output channels; pixels are counted through all images, so that small maps
fill a tile together. The membranes are the accumulator of the matrix products and stay in registers over all steps: the
currents never reach memory. Its arguments:

* ``x`` ``[S, B, H, W, C]`` int8, ``weight`` ``[N, KH, KW, C]`` int8 or float16; ``low``: what float16 leaves of the
  weights, times 2^11, where ``TWO``;
* ``x2`` ``[S, B, H2, W2, C2]`` and ``weight2`` ``[N, C2]``: a 1x1 convolution that arrives at the same neurons, where
  ``C2`` is not 0;
* ``v`` and ``memory`` ``[B, OH, OW, N]``, read and written; int32, or float32 of float16 weights. ``memory``, what was
  emitted before, where ``SIGNED``;
* ``out`` ``[S, B, OH, OW, N]`` int8; ``rows`` ``[S, N / CHANNELS, B, OH, OW]`` int16, spikes of each pixel, where
  ``COUNT``;
* ``branch`` like ``out``, where ``BRANCH``, times ``scale`` ``[N]``, where ``SCALED``; ``threshold`` ``[N]``; ``bias``
  ``[N]`` where ``BIAS`` is 1, ``[S, N]`` where it is 2.

``SCHEDULE`` is 0 streaming, 1 lagged, 2 phased. ``EVEN`` says that tiles cover pixels and channels exactly. Weights are
held in shared memory over all steps where ``HELD``; else they stream through it again at each step, in one loop over
steps and parts of the sum where ``FLAT``.

This module needs Triton, which comes with every build of torch for CUDA; nothing imports it before a launch.
"""

# mypy: ignore-errors
# Triton compiles these functions from their source; their arguments have the types of its language.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _spikes(
    x, part, origin, row, column, W,
    C: tl.constexpr, KW: tl.constexpr, PAD: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The spikes ``[PIXELS, DEPTH]`` that a part of the sum reads: some input channels at one tap of the kernel."""
    BLOCKS: tl.constexpr = (C + DEPTH - 1) // DEPTH
    tap = part // BLOCKS
    c = (part % BLOCKS) * DEPTH + tl.arange(0, DEPTH)
    at = origin[:, None] + (((tap // KW) * W + tap % KW) * C + c)[None, :]
    inside = row[:, None] != 0
    if PAD:
        inside = (((row >> (tap // KW)) & (column >> (tap % KW))) & 1)[:, None] != 0
    if C % DEPTH != 0:
        found = tl.load(x + at, inside & (c < C)[None, :], 0)
    elif EVEN and not PAD:
        found = tl.load(x + at)
    else:
        found = tl.load(x + at, inside, 0)
    return found


@triton.jit
def _weights(
    weight, part, n,
    C: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The weights of that part, ``[DEPTH, CHANNELS]``."""
    BLOCKS: tl.constexpr = (C + DEPTH - 1) // DEPTH
    c = (part % BLOCKS) * DEPTH + tl.arange(0, DEPTH)
    at = (n * (TAPS * C))[None, :] + ((part // BLOCKS) * C + c)[:, None]
    if C % DEPTH == 0 and N % CHANNELS == 0:
        found = tl.load(weight + at)
    else:
        found = tl.load(weight + at, (c < C)[:, None] & (n < N)[None, :], 0)
    return found


@triton.jit
def _convolve(
    x, weight, low, u, origin, row, column, n, W,
    C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PAD: tl.constexpr,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, TWO: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The membranes with the currents of one step, of weights that stream through."""
    PARTS: tl.constexpr = KH * KW * ((C + DEPTH - 1) // DEPTH)
    TYPE: tl.constexpr = weight.dtype.element_ty
    SUM: tl.constexpr = u.dtype
    if TWO:
        rest = tl.zeros_like(u)
    for i in tl.range(0, PARTS, num_stages=STAGES):
        a = _spikes(x, i, origin, row, column, W, C, KW, PAD, DEPTH, EVEN).to(TYPE)
        u = tl.dot(a, _weights(weight, i, n, C, N, KH * KW, CHANNELS, DEPTH), u, out_dtype=SUM)
        if TWO:
            rest = tl.dot(a, _weights(low, i, n, C, N, KH * KW, CHANNELS, DEPTH), rest, out_dtype=SUM)
    if TWO:
        u += rest * 0.00048828125
    return u


@triton.jit
def _emit(u, theta, memory, LEVELS: tl.constexpr, SIGNED: tl.constexpr):
    """What neurons emit, and their membranes after it."""
    MOST: tl.constexpr = (1 << LEVELS) - 1
    if LEVELS == 1 and not SIGNED:
        if u.dtype == tl.int32:
            # In arithmetic, since there are few predicates: the sign of u - theta.
            u -= theta
            silent = u >> 31
            u += silent & theta
            k = silent + 1
        else:
            fires = u >= theta
            k = fires.to(tl.int32)
            u = tl.where(fires, u - theta, u)
    else:
        if u.dtype == tl.int32:
            # The quotient to within one, and no farther than is needed; then exactly.
            guess = tl.floor(u.to(tl.float32) / theta.to(tl.float32))
            k = tl.minimum(tl.maximum(guess, -MOST - 1.0), MOST + 1.0).to(tl.int32)
            left = u - k * theta
            k = tl.where(left < 0, k - 1, tl.where(left >= theta, k + 1, k))
        else:
            k = tl.minimum(tl.maximum(tl.floor(tl.div_rn(u, theta)), -MOST - 1.0), MOST + 1.0).to(tl.int32)
        lowest = tl.zeros_like(k)
        if SIGNED:
            lowest = -tl.minimum(memory, MOST)
        k = tl.minimum(tl.maximum(k, lowest), MOST)
        u = u - theta * k.to(u.dtype)
    return k, u


@triton.jit
def _count(rows, k, pixel, there, LEVELS: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr):
    """Write the spikes of each pixel: one for each power of two that an emission is the sum of."""
    if LEVELS == 1:
        fired = tl.abs(k) if SIGNED else k
    else:
        fired = tl.zeros_like(k)
        for level in tl.static_range(LEVELS):
            fired += (tl.abs(k) >> level) & 1
    found = tl.sum(fired, 1).to(tl.int16)
    if EVEN:
        tl.store(rows + pixel, found)
    else:
        tl.store(rows + pixel, found, there)


@triton.jit
def _fire(
    t, now, u, memory, out, rows, at, pixel, mine, theta, step, pixels,
    COUNT: tl.constexpr, LEVELS: tl.constexpr, SIGNED: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Fire once, as answer t, where it is ``now`` the time."""
    k, left = _emit(u, theta, memory, LEVELS, SIGNED)
    if now is not True:
        mine = mine & now
        left = tl.where(now, left, u)
    if not EVEN or now is not True:
        k = tl.where(mine, k, 0)
        tl.store(out + (at + t * step), k.to(tl.int8), mine)
    else:
        tl.store(out + (at + t * step), k.to(tl.int8))
    if SIGNED:
        memory += k
    if COUNT:
        if now is True:
            _count(rows + t * (pixels.to(tl.int64) * TILES), k, pixel, pixel < pixels, LEVELS, SIGNED, EVEN)
        else:
            there = (pixel < pixels) & now
            _count(rows + t * (pixels.to(tl.int64) * TILES), k, pixel, there, LEVELS, SIGNED, False)
    return left, memory


@triton.jit
def _step(
    t, u, memory, out, rows, branch, bias, at, pixel, mine, n, theta, each, gain, step, pixels,
    N: tl.constexpr, BRANCH: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, COUNT: tl.constexpr,
    LEVELS: tl.constexpr, SIGNED: tl.constexpr, SCHEDULE: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Integrate what else arrives at step t, and fire where the schedule says so."""
    if BIAS == 2:
        each = tl.load(bias + t * N + n, n < N, 0)[None, :]
    if BIAS:
        u += each
    if BRANCH:
        if EVEN:
            arrived = tl.load(branch + (at + t * step)).to(u.dtype)
        else:
            arrived = tl.load(branch + (at + t * step), mine, 0).to(u.dtype)
        if SCALED:
            arrived = arrived * gain
        u += arrived
    if SCHEDULE == 0:
        u, memory = _fire(
            t, True, u, memory, out, rows, at, pixel, mine, theta, step, pixels, COUNT, LEVELS, SIGNED, TILES, EVEN
        )
    if SCHEDULE == 1:
        u, memory = _fire(
            t - 1, t > 0, u, memory, out, rows, at, pixel, mine, theta, step, pixels, COUNT, LEVELS, SIGNED, TILES, EVEN
        )
    return u, memory


@triton.jit
def _window(y, x, there, H, W, KH: tl.constexpr, KW: tl.constexpr):
    """Bit i: whether row, or column, i of the kernel lies within the image."""
    row = tl.zeros_like(y)
    column = tl.zeros_like(x)
    for i in tl.static_range(KH):
        row |= ((y + i >= 0) & (y + i < H) & there).to(tl.int32) << i
    for i in tl.static_range(KW):
        column |= ((x + i >= 0) & (x + i < W)).to(tl.int32) << i
    return row, column


@triton.jit
def _held(
    weight, n,
    C: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """All parts of the weights."""
    PARTS: tl.constexpr = TAPS * ((C + DEPTH - 1) // DEPTH)
    kept = ()
    for part in tl.static_range(PARTS):
        kept += (_weights(weight, part, n, C, N, TAPS, CHANNELS, DEPTH),)
    return kept


# One program for all sizes: what has to be known of them is in the constants.
@triton.jit(do_not_specialize=["S", "B", "H", "W", "OH", "OW", "H2", "W2"])
def convolve_and_fire(
    x, weight, low, x2, weight2, low2, v, emitted, out, rows, branch, scale, bias, threshold,
    S, B, H, W, OH, OW, H2, W2,
    C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    C2: tl.constexpr, STRIDE2: tl.constexpr,
    TWO: tl.constexpr, BRANCH: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, COUNT: tl.constexpr,
    LEVELS: tl.constexpr, SIGNED: tl.constexpr, SCHEDULE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    FLAT: tl.constexpr, HELD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """All steps of a tile."""
    TYPE: tl.constexpr = weight.dtype.element_ty
    SUM: tl.constexpr = tl.int32 if tl.int8 == TYPE else tl.float32
    PARTS: tl.constexpr = KH * KW * ((C + DEPTH - 1) // DEPTH)
    TILES: tl.constexpr = (N + CHANNELS - 1) // CHANNELS
    n = (tl.program_id(0) % TILES) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (tl.program_id(0) // TILES) * PIXELS + tl.arange(0, PIXELS)
    pixels = B * OH * OW
    rows += (tl.program_id(0) % TILES) * pixels.to(tl.int64)
    there = pixel < pixels
    mine = there[:, None] & (n < N)[None, :]
    at = (pixel * N)[:, None] + n[None, :]
    image = pixel // (OH * OW)
    oy = pixel % (OH * OW) // OW
    ox = pixel % OW
    origin = ((image * H + oy * STRIDE - PAD) * W + ox * STRIDE - PAD) * C
    row, column = _window(oy * STRIDE - PAD, ox * STRIDE - PAD, there, H, W, KH, KW)
    u = tl.load(v + at, mine, 0)
    memory = u
    if SIGNED:
        memory = tl.load(emitted + at, mine, 0).to(tl.int32)
    theta = tl.load(threshold + n, n < N, 1)[None, :]
    each = theta
    if BIAS == 1:
        each = tl.load(bias + n, n < N, 0)[None, :]
    gain = theta
    if SCALED:
        gain = tl.load(scale + n, n < N, 0)[None, :]
    frame = B.to(tl.int64) * H * W * C
    step = pixels.to(tl.int64) * N
    if FLAT:
        for i in tl.range(0, S * PARTS, num_stages=STAGES):
            t = i // PARTS
            a = _spikes(x + t * frame, i % PARTS, origin, row, column, W, C, KW, PAD, DEPTH, EVEN).to(TYPE)
            u = tl.dot(a, _weights(weight, i % PARTS, n, C, N, KH * KW, CHANNELS, DEPTH), u, out_dtype=SUM)
            if i % PARTS == PARTS - 1:
                u, memory = _step(
                    t, u, memory, out, rows, branch, bias, at, pixel, mine, n, theta, each, gain, step, pixels,
                    N, BRANCH, SCALED, BIAS, COUNT, LEVELS, SIGNED, SCHEDULE, TILES, EVEN,
                )  # fmt: skip
    else:
        if HELD:
            kept = _held(weight, n, C, N, KH * KW, CHANNELS, DEPTH)
        if C2:
            frame2 = B.to(tl.int64) * H2 * W2 * C2
            origin2 = ((image * H2 + oy * STRIDE2) * W2 + ox * STRIDE2) * C2
        for t in tl.range(0, S, num_stages=STAGES):
            if HELD:
                for part in tl.static_range(PARTS):
                    a = _spikes(x + t * frame, part, origin, row, column, W, C, KW, PAD, DEPTH, EVEN).to(TYPE)
                    u = tl.dot(a, kept[part], u, out_dtype=SUM)
            else:
                u = _convolve(
                    x + t * frame, weight, low, u, origin, row, column, n, W,
                    C, N, KH, KW, PAD, CHANNELS, DEPTH, STAGES, TWO, EVEN,
                )  # fmt: skip
            if C2:
                u = _convolve(
                    x2 + t * frame2, weight2, low2, u, origin2, there, column, n, W2,  # every pixel: it has no padding
                    C2, N, 1, 1, 0, CHANNELS, DEPTH, STAGES, TWO, EVEN,
                )  # fmt: skip
            u, memory = _step(
                t, u, memory, out, rows, branch, bias, at, pixel, mine, n, theta, each, gain, step, pixels,
                N, BRANCH, SCALED, BIAS, COUNT, LEVELS, SIGNED, SCHEDULE, TILES, EVEN,
            )  # fmt: skip
    if SCHEDULE == 1:
        u, memory = _fire(
            S - 1, True, u, memory, out, rows, at, pixel, mine, theta, step, pixels, COUNT, LEVELS, SIGNED, TILES, EVEN
        )
    if SCHEDULE == 2:
        for t in range(S):
            u, memory = _fire(
                t, True, u, memory, out, rows, at, pixel, mine, theta, step, pixels, COUNT, LEVELS, SIGNED, TILES, EVEN
            )
    tl.store(v + at, u, mine)
    if SIGNED:
        tl.store(emitted + at, memory.to(SUM), mine)
