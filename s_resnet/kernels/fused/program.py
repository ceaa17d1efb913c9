"""The Triton program: a convolution of spikes with the neurons as its epilogue, all steps of a chunk in one launch.

A program holds a tile of output pixels by output channels. Its membranes stay in registers over all steps, and its
currents never reach memory. Pixels are counted through all images, so that small maps fill a tile together.

This module needs Triton, which comes with every build of torch for CUDA; nothing imports it before a launch. Without a
GPU it runs, slowly, where ``TRITON_INTERPRET=1`` is set before it is imported.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _spikes(
    x, part, origin, row, column, there, H, W,
    C: tl.constexpr, KW: tl.constexpr, PAD: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The spikes ``[PIXELS, DEPTH]`` that a part of the sum reads: some input channels at one tap."""
    BLOCKS: tl.constexpr = (C + DEPTH - 1) // DEPTH
    tap = part // BLOCKS
    c = (part % BLOCKS) * DEPTH + tl.arange(0, DEPTH)
    inside = there
    if PAD:
        y = row + tap // KW
        z = column + tap % KW
        inside = there & (y >= 0) & (y < H) & (z >= 0) & (z < W)
    at = origin[:, None] + (((tap // KW) * W + tap % KW) * C + c)[None, :]
    if C % DEPTH == 0:
        found = tl.load(x + at, inside[:, None], 0)
    else:
        found = tl.load(x + at, inside[:, None] & (c < C)[None, :], 0)
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
    x, weight, low, total, origin, row, column, there, n, H, W,
    C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PAD: tl.constexpr,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """The currents of one step, on top of ``total``; the weights' second parts come in units of 2^-11."""
    PARTS: tl.constexpr = KH * KW * ((C + DEPTH - 1) // DEPTH)
    TYPE: tl.constexpr = weight.dtype.element_ty
    SUM: tl.constexpr = total.dtype
    if TWO:
        rest = tl.zeros_like(total)
    for i in tl.range(0, PARTS, num_stages=STAGES):
        a = _spikes(x, i, origin, row, column, there, H, W, C, KW, PAD, DEPTH).to(TYPE)
        total = tl.dot(a, _weights(weight, i, n, C, N, KH * KW, CHANNELS, DEPTH), total, out_dtype=SUM)
        if TWO:
            rest = tl.dot(a, _weights(low, i, n, C, N, KH * KW, CHANNELS, DEPTH), rest, out_dtype=SUM)
    if TWO:
        total += rest * 0.00048828125
    return total


@triton.jit
def _emit(u, theta, emitted, LEVELS: tl.constexpr, SIGNED: tl.constexpr):
    """What neurons emit, and their membranes after it."""
    MOST: tl.constexpr = (1 << LEVELS) - 1
    if LEVELS == 1 and not SIGNED:
        k = (u >= theta).to(tl.int32)
        u = tl.where(k != 0, u - theta, u)
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
            lowest = -tl.minimum(emitted, MOST)
        k = tl.minimum(tl.maximum(k, lowest), MOST)
        u = u - theta * k.to(u.dtype)
    return k, u


@triton.jit
def _amplitudes(k, LEVELS: tl.constexpr):
    """How many spikes of power-of-two amplitudes an emission is."""
    if LEVELS == 1:
        found = tl.abs(k)
    else:
        found = tl.zeros_like(k)
        for level in tl.static_range(LEVELS):
            found += (tl.abs(k) >> level) & 1
    return found


@triton.jit
def _count(counts, k, pixel, mine, AREA, B, LEVELS: tl.constexpr, SPAN: tl.constexpr):
    """Add the spikes of one step to those of their images, of which a tile touches SPAN at most."""
    fired = tl.sum(tl.where(mine, _amplitudes(k, LEVELS), 0), 1)
    image = pixel // AREA
    first = tl.min(image, 0)
    for j in tl.static_range(SPAN):
        found = tl.sum(tl.where(image == first + j, fired, 0), 0)
        tl.atomic_add(counts + first + j, found, mask=first + j < B, sem="relaxed")


@triton.jit
def _step(
    t, total, u, memory, out, counts, branch, bias, at, pixel, mine, n, theta, each, gain, step, AREA, B,
    N: tl.constexpr, BRANCH: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr,
    LEVELS: tl.constexpr, SIGNED: tl.constexpr, SCHEDULE: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Integrate the currents of step t; fire, and write what is emitted, where the schedule says so."""
    SUM: tl.constexpr = u.dtype
    if BRANCH:
        arrived = tl.load(branch + (at + t * step), mine, 0).to(SUM)
        if SCALED:
            arrived = arrived * gain
    if ROWS:
        each = tl.load(bias + t * N + n, n < N, 0)[None, :]
    if SCHEDULE == 0:
        u += total
        u += each
        if BRANCH:
            u += arrived
    else:
        if BRANCH:
            total += arrived
        u += total + each
    if SCHEDULE == 0:
        u, memory = _fire(t, True, u, memory, out, counts, at, pixel, mine, theta, step, AREA, B, COUNT, LEVELS, SIGNED, SPAN)  # fmt: skip
    if SCHEDULE == 1:
        u, memory = _fire(t - 1, t > 0, u, memory, out, counts, at, pixel, mine, theta, step, AREA, B, COUNT, LEVELS, SIGNED, SPAN)  # fmt: skip
    return u, memory


@triton.jit
def _fire(
    t, now, u, memory, out, counts, at, pixel, mine, theta, step, AREA, B,
    COUNT: tl.constexpr, LEVELS: tl.constexpr, SIGNED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Fire once, as answer t, where it is ``now`` the time."""
    k, left = _emit(u, theta, memory, LEVELS, SIGNED)
    u = tl.where(now, left, u)
    if SIGNED:
        memory = tl.where(now, memory + k, memory)
    tl.store(out + (at + t * step), k.to(tl.int8), mine & now)
    if COUNT:
        _count(counts + t * B, k, pixel, mine & now, AREA, B, LEVELS, SPAN)
    return u, memory


@triton.jit
def convolve_and_fire(
    x, weight, low, x2, weight2, low2, v, emitted, out, counts, branch, scale, bias, threshold,
    S, B, H, W, OH, OW, H2, W2,
    C: tl.constexpr, N: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    C2: tl.constexpr, STRIDE2: tl.constexpr,
    TWO: tl.constexpr, BRANCH: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, COUNT: tl.constexpr,
    LEVELS: tl.constexpr, SIGNED: tl.constexpr, SCHEDULE: tl.constexpr, SPAN: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """All steps of a tile; see :mod:`s_resnet.kernels.fused` for the arguments."""
    TYPE: tl.constexpr = weight.dtype.element_ty
    SUM: tl.constexpr = tl.int32 if TYPE == tl.int8 else tl.float32
    PARTS: tl.constexpr = KH * KW * ((C + DEPTH - 1) // DEPTH)
    TILES: tl.constexpr = (N + CHANNELS - 1) // CHANNELS
    n = (tl.program_id(0) % TILES) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (tl.program_id(0) // TILES) * PIXELS + tl.arange(0, PIXELS)
    AREA = OH * OW
    there = pixel < B * AREA
    mine = there[:, None] & (n < N)[None, :]
    at = (pixel * N)[:, None] + n[None, :]
    image = pixel // AREA
    oy = pixel % AREA // OW
    ox = pixel % OW
    row = oy * STRIDE - PAD
    column = ox * STRIDE - PAD
    origin = ((image * H + row) * W + column) * C
    origin2 = ((image * H2 + oy * STRIDE2) * W2 + ox * STRIDE2) * C2
    u = tl.load(v + at, mine, 0)
    memory = u
    if SIGNED:
        memory = tl.load(emitted + at, mine, 0).to(tl.int32)
    theta = tl.load(threshold + n, n < N, 1)[None, :]
    each = tl.zeros((1, CHANNELS), dtype=SUM)
    if BIAS == 1:
        each = tl.load(bias + n, n < N, 0)[None, :]
    gain = each
    if SCALED:
        gain = tl.load(scale + n, n < N, 0)[None, :]
    total = tl.zeros((PIXELS, CHANNELS), dtype=SUM)
    frame = B.to(tl.int64) * H * W * C
    step = B.to(tl.int64) * AREA * N
    if FLAT:
        for i in tl.range(0, S * PARTS, num_stages=STAGES):
            t = i // PARTS
            a = _spikes(x + t * frame, i % PARTS, origin, row, column, there, H, W, C, KW, PAD, DEPTH).to(TYPE)
            total = tl.dot(a, _weights(weight, i % PARTS, n, C, N, KH * KW, CHANNELS, DEPTH), total, out_dtype=SUM)
            if i % PARTS == PARTS - 1:
                u, memory = _step(
                    t, total, u, memory, out, counts, branch, bias, at, pixel, mine, n, theta, each, gain, step, AREA, B,
                    N, BRANCH, SCALED, BIAS == 2, COUNT, LEVELS, SIGNED, SCHEDULE, SPAN,
                )  # fmt: skip
                total = tl.zeros((PIXELS, CHANNELS), dtype=SUM)
    else:
        if PARTS == 1:
            resident = _weights(weight, 0, n, C, N, KH * KW, CHANNELS, DEPTH)
            if TWO:
                resident_low = _weights(low, 0, n, C, N, KH * KW, CHANNELS, DEPTH)
        for t in tl.range(0, S, num_stages=STAGES):
            total = tl.zeros((PIXELS, CHANNELS), dtype=SUM)
            if PARTS == 1:
                a = _spikes(x + t * frame, 0, origin, row, column, there, H, W, C, KW, PAD, DEPTH).to(TYPE)
                if TWO:
                    total = tl.dot(a, resident_low, total, out_dtype=SUM) * 0.00048828125
                total = tl.dot(a, resident, total, out_dtype=SUM)
            else:
                total = _convolve(
                    x + t * frame, weight, low, total, origin, row, column, there, n, H, W,
                    C, N, KH, KW, PAD, CHANNELS, DEPTH, STAGES, TWO,
                )  # fmt: skip
            if C2:
                total = _convolve(
                    x2 + t * (B.to(tl.int64) * H2 * W2 * C2), weight2, low2, total, origin2, row, column, there, n, H2, W2,
                    C2, N, 1, 1, 0, CHANNELS, DEPTH, STAGES, TWO,
                )  # fmt: skip
            u, memory = _step(
                t, total, u, memory, out, counts, branch, bias, at, pixel, mine, n, theta, each, gain, step, AREA, B,
                N, BRANCH, SCALED, BIAS == 2, COUNT, LEVELS, SIGNED, SCHEDULE, SPAN,
            )  # fmt: skip
    if SCHEDULE == 1:
        u, memory = _fire(S - 1, True, u, memory, out, counts, at, pixel, mine, theta, step, AREA, B, COUNT, LEVELS, SIGNED, SPAN)  # fmt: skip
    if SCHEDULE == 2:
        for t in range(0, S):
            u, memory = _fire(t, True, u, memory, out, counts, at, pixel, mine, theta, step, AREA, B, COUNT, LEVELS, SIGNED, SPAN)  # fmt: skip
    tl.store(v + at, u, mine)
    if SIGNED:
        tl.store(emitted + at, memory.to(SUM), mine)
