"""Event-driven convolution on the CPU: a layer costs its spikes, not its zeros. The C++ is in ``events.cpp``.

A spike of channel c at pixel (y, x) adds the weight row ``W[dy][dx][c][:]`` to every output pixel that sees it, so the
cost is (spikes) x (taps) x (output channels) additions. The row of a spike that is worth more than 1, or less than 0,
is multiplied by its amount first. Each output is summed in one fixed order, so results do not depend on the batch, the
chunk or the number of threads, bit for bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InvalidData
from . import check
from .build import compiler
from .membrane import layer
from .membrane.update import Update, wrong

Pair = tuple[int, int]
ROOM = 64  # as in events.cpp
IDS = 2**16 - 1  # positions in a line of pixels, and rows of a weight, are counted in 16 bits
LANES = {torch.float32: 16, torch.int16: 32}
RUN = 64  # rows of 16-bit weights between two visits of the wide sum: more of them cost precision, fewer cost time
# Output channels that fill the registers well: narrower layers do several output pixels at once.
WIDE = 64


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            *("images", "height", "width", "channels", "out_height", "out_width", "out_channels"),
            *("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "limit", "below", "threads"),
        )
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [("shape", _Shape), *((name, ctypes.c_void_p) for name in ("ids", "amounts", "start", "weight", "step"))]


@dataclass(frozen=True, eq=False)
class Events:
    """The spikes of ``[N, C, H, W]`` as lists of positions, one list for each line of pixels.

    Attributes:
        shape: N, C, H, W.
        ids: int16, the positions.
        start: int32, where in its list each pixel begins.
        amounts: int8, what the spike at each position is worth; None: every spike is 1.
        most: the largest of their absolute values that may be.
    """

    shape: tuple[int, int, int, int]
    ids: Tensor
    start: Tensor
    amounts: Tensor | None = None
    most: int = 1


@dataclass(frozen=True, eq=False)
class Packed:
    """A convolution's weight as rows for events, for images of one width.

    Attributes:
        rows: ``[kernel_h * kernel_w * C + 1, out_channels padded]``, with zeros in the last row. ``group`` neighboring
            output pixels are one pixel of ``group * C_out`` channels, under a kernel as wide as their joint input.
        step: the value of one unit of int16 weights per output channel; None for float32 weights or integer output.
        limit: the number of int16 rows that can be summed without overflow.
        group: output pixels that are computed together.
        out_channels: C_out.
        out_size: height and width of the output.
        kernel: height and width of the kernel of a group.
        stride: stride of a group.
        padding: padding of a group.
        signed: whether all rows but that of zeros come once more, negative: a spike of -1 costs no more than one of 1.
    """

    rows: Tensor
    step: Tensor | None
    limit: int
    group: int
    out_channels: int
    out_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    signed: bool = False

    @property
    def integer(self) -> bool:
        """Whether the currents are whole numbers."""
        return self.rows.dtype == torch.int16 and self.step is None

    @property
    def dtype(self) -> torch.dtype:
        """Of the currents."""
        return torch.int32 if self.integer else torch.float32


def available() -> bool:
    """Whether the kernel is there."""
    return compiler.compiled()[0] is not None


def usable(weight: Tensor, groups: int, dilation: Pair, size: Pair) -> bool:
    """Whether the kernel is there and takes such a convolution over images of that height and width."""
    channels, (height, width) = weight.shape[1], weight.shape[2:]
    fits = channels * size[1] < IDS and channels * height * width < IDS
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and groups == 1 and dilation == (1, 1)
    return plain and fits and available()


def find(spikes: Tensor, most: int = 127) -> Events:
    """The events of spikes ``[N, C, H, W]``, uint8 in {0, 1} or int8 within +- ``most``; fastest in channels_last."""
    library, reason = compiler.compiled()
    assert library is not None, reason
    _check_spikes(spikes)
    spikes = spikes.contiguous(memory_format=torch.channels_last)
    n, c, h, w = spikes.shape
    ids = torch.empty(n * h * (w * c + ROOM), dtype=torch.int16)
    start = torch.empty(n * h * (w + 1), dtype=torch.int32)
    amounts = None if spikes.dtype == torch.uint8 else torch.empty(len(ids), dtype=torch.int8)
    shape = _Shape(images=n, height=h, width=w, channels=c, threads=torch.get_num_threads())
    library.sresnet_find_events(ctypes.byref(shape), *map(_pointer, (spikes, ids, start, amounts)))
    return Events((n, c, h, w), ids, start, amounts, 1 if amounts is None else most)


def pack(
    weight: Tensor, stride: Pair, padding: Pair, size: Pair, precision: str = "exact", signed: bool = False
) -> Packed:
    """Lay out a weight for images of one size.

    Args:
        weight: ``[C_out, C, kh, kw]``; int8 weights are kept as they are and give int32.
        stride: the convolution's stride.
        padding: the convolution's padding.
        size: height and width of the images.
        precision: ``"exact"`` for float32; ``"fast"`` for 16-bit fixed point, with the finest step per output channel
            for which no sum of ``RUN`` weights can overflow.
        signed: whether it is for spikes of -1, 0 and 1 alone: quicker than others that are worth an amount. It takes
            the memory of two weights.
    """
    _check_weight(weight, stride, padding, size)
    out_channels, channels, kh, kw = weight.shape
    out_size = tuple((size[i] + 2 * padding[i] - (kh, kw)[i]) // stride[i] + 1 for i in (0, 1))
    step = None
    limit = 2**16
    if weight.dtype == torch.int8:
        limit = 2**15 // max(1, int(weight.to(torch.int16).abs().max())) - 1
        weight = weight.to(torch.int16)
    elif precision == "fast":
        limit = RUN
        largest = weight.abs().flatten(1).topk(min(RUN, channels * kh * kw), dim=1).values.sum(1)
        step = largest / (2**15 - 1 - RUN)  # rounding adds at most half a unit to each
        step = torch.where(step > 0, step, torch.ones_like(step))
        weight = (weight / step.view(-1, 1, 1, 1)).round().to(torch.int16)
    groups = [g for g in (2, 4, 8) if g * out_channels <= WIDE and out_size[1] % g == 0]
    group = max((g for g in groups if kh * (kw + (g - 1) * stride[1]) * channels < IDS), default=1)
    wide = kw + (group - 1) * stride[1]
    rows = weight.new_zeros(kh, wide, channels, group, out_channels)
    taps = weight.permute(2, 3, 1, 0)
    for g in range(group):
        rows[:, g * stride[1] : g * stride[1] + kw, :, g] = taps
    lanes = LANES[weight.dtype]
    padded = weight.new_zeros(kh * wide * channels + 1, -(-group * out_channels // lanes) * lanes)
    padded[:-1, : group * out_channels] = rows.flatten(3).flatten(0, 2)
    signed = signed and 2 * len(padded) < IDS
    return Packed(
        torch.cat([padded[:-1], -padded]) if signed else padded,
        None if step is None else step.repeat(group).contiguous(),
        limit,
        group,
        out_channels,
        (out_size[0], out_size[1]),
        (kh, wide),
        (stride[0], stride[1] * group),
        padding,
        signed,
    )


@dataclass(frozen=True, eq=False)
class Currents:
    """A convolution of ``steps`` times B images of spikes that is not computed yet: neurons may take it by lines.

    Attributes:
        events: the spikes.
        packed: the weight.
        steps: S.
        branch: a second one of the same shape, which the neurons take as their shortcut; or None.
    """

    events: Events
    packed: Packed
    steps: int
    branch: Currents | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one step, ``[B, C_out, H_out, W_out]``.

        Raises:
            InvalidData: the images cannot be divided into equal steps.
        """
        images = self.events.shape[0]
        if self.steps < 1 or images % self.steps:
            raise _invalid(f"{images} images for {self.steps} steps", "as many at each step")
        return (images // self.steps, self.packed.out_channels, *self.packed.out_size)

    def tensor(self) -> Tensor:
        """The currents ``[S, B, C_out, H_out, W_out]``, without the branch."""
        return conv2d(self.events, self.packed).view(self.steps, *self.shape)

    def empty(self) -> Tensor:
        """An uninitialized tensor shaped and laid out as one step, ``[B, C_out, H_out, W_out]``."""
        return torch.empty(self.shape, dtype=self.packed.dtype, memory_format=torch.channels_last)

    def joined(self, other: Currents) -> Currents:
        """Both as one: the other as the branch of this."""
        return replace(self, branch=other)

    def in_memory(self, update: Update) -> tuple[Tensor, Update]:
        """The currents, and the update with the branch as its shortcut."""
        if self.branch is None:
            return self.tensor(), update
        return self.tensor(), replace(update, shortcut=self.branch.tensor())


def conv2d(events: Events, packed: Packed) -> Tensor:
    """The convolution of the spikes with the packed weight, without bias: ``[N, C_out, H_out, W_out]`` channels_last.

    float32, or int32 for int8 weights.
    """
    current = Currents(events, packed, 1)
    out = current.empty()
    _convolve(current, out, None)
    return out


def takes(current: Currents, v: Tensor, update: Update) -> bool:
    """Whether :func:`integrate_and_fire` does this update.

    It takes a membrane in channels_last of the currents' kind, a branch computed as the currents are and in place of a
    shortcut, and what else the C++ takes (:func:`s_resnet.kernels.membrane.layer.takes`).
    """
    return (
        v.ndim == 4
        and v.is_contiguous(memory_format=torch.channels_last)
        and (v.dtype == torch.int32) == current.packed.integer
        and (current.branch is None or (update.shortcut is None and _alike(current.packed, current.branch.packed)))
        and layer.takes(v, update)
    )


def _alike(packed: Packed, other: Packed) -> bool:
    """Whether two weights are in the same numbers, and give the same groups of pixels."""
    same_numbers = packed.rows.dtype == other.rows.dtype and (packed.step is None) == (other.step is None)
    return same_numbers and packed.group == other.group


def integrate_and_fire(current: Currents, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does with ``current.in_memory(update)``.

    Each line of currents goes from the registers to its neurons, and memory never sees it.

    Raises:
        InvalidData: also where :func:`takes` says no.
    """
    check.membrane(current.steps, v, update)
    if tuple(v.shape) != current.shape:
        raise _invalid(f"a membrane {list(v.shape)}", f"{list(current.shape)}, as the currents")
    if current.branch is not None and (current.branch.steps, current.branch.shape) != (current.steps, current.shape):
        got = f"a branch of {current.branch.steps} steps {list(current.branch.shape)}"
        raise _invalid(got, f"{current.steps} steps {list(current.shape)}, as the currents")
    if not takes(current, v, update):
        raise wrong("events", "an update that it does not take", "one that it does", "Use kernels.integrate_and_fire")
    ready = layer.prepare(current.steps, v, update)
    ready.layer.inner = 1
    _convolve(current, None, ready.layer)
    return ready.spikes, ready.after


def _convolve(current: Currents, out: Tensor | None, neurons: layer.Layer | None) -> None:
    library, reason = compiler.compiled()
    assert library is not None, reason
    exact = current.packed.rows.dtype == torch.float32
    function = library.sresnet_convolve_float if exact else library.sresnet_convolve_fixed
    first, second = _convolution(current), None if current.branch is None else _convolution(current.branch)
    function(
        ctypes.byref(first),
        None if second is None else ctypes.byref(second),
        _pointer(out),
        None if neurons is None else ctypes.byref(neurons),
    )


def _convolution(current: Currents) -> _Convolution:
    """The convolution as the C++ takes it, checked."""
    events, packed = current.events, current.packed
    _check_fit(events, packed)
    n, c, h, w = events.shape
    shape = _Shape(
        images=n,
        height=h,
        width=w,
        channels=c,
        out_height=packed.out_size[0],
        out_width=packed.out_size[1] // packed.group,
        out_channels=packed.out_channels * packed.group,
        kernel_h=packed.kernel[0],
        kernel_w=packed.kernel[1],
        stride_h=packed.stride[0],
        stride_w=packed.stride[1],
        pad_h=packed.padding[0],
        pad_w=packed.padding[1],
        limit=packed.limit,
        below=len(packed.rows) // 2 if packed.signed else 0,
        threads=torch.get_num_threads(),
    )
    pointers = (
        None if held is None else held.data_ptr()
        for held in (events.ids, events.amounts, events.start, packed.rows, packed.step)
    )
    return _Convolution(shape, *pointers)


# ---- what is checked before memory is touched ----


def _check_spikes(spikes: Tensor) -> None:
    if spikes.ndim != 4 or spikes.dtype not in (torch.uint8, torch.int8) or spikes.device.type != "cpu":
        got = f"{spikes.dtype} {list(spikes.shape)} on {spikes.device}"
        raise _invalid(got, "uint8 or int8 [N, C, H, W] on the CPU")
    n, c, h, w = spikes.shape
    if spikes.numel() == 0 or w * c >= IDS or n * h >= 2**31:
        raise _invalid(f"spikes {[n, c, h, w]}", f"at least one, C * W below {IDS} and N * H below 2^31")


def _check_weight(weight: Tensor, stride: Pair, padding: Pair, size: Pair) -> None:
    if weight.ndim != 4 or weight.dtype not in (torch.float32, torch.int8) or weight.device.type != "cpu":
        raise _invalid(f"a weight {weight.dtype} {list(weight.shape)}", "float32 or int8 [C_out, C, kh, kw] on the CPU")
    channels, kernel = weight.shape[1], tuple(weight.shape[2:])
    sums = zip(size, padding, kernel, strict=True)
    if weight.numel() == 0 or min(stride) < 1 or min(padding) < 0 or any(s + 2 * p < k for s, p, k in sums):
        got = f"a weight {list(weight.shape)}, stride {stride} and padding {padding} over images of {size}"
        raise _invalid(got, "a stride from 1 on and a kernel that fits into the padded image")
    if channels * size[1] >= IDS or channels * kernel[0] * kernel[1] >= IDS or max(*size, *stride, *padding) >= IDS:
        raise _invalid(f"a weight {list(weight.shape)} over images of {size}", f"rows and lines below {IDS} entries")


def _check_fit(events: Events, packed: Packed) -> None:
    """Check that the events' positions are rows of the weight, and that the weight was laid out for their width."""
    (n, c, h, w), (kh, kw), group = events.shape, packed.kernel, packed.group
    if min(n, c, h, w) < 1 or w * c >= IDS or n * h >= 2**31 or n * max(packed.out_size) >= 2**31:
        raise _invalid(f"spikes {[n, c, h, w]}", f"at least one, C * W below {IDS} and N * H below 2^31")
    lanes = LANES[packed.rows.dtype]
    rows = (kh * kw * c * (2 if packed.signed else 1) + 1, -(-group * packed.out_channels // lanes) * lanes)
    if packed.rows.shape != rows or not packed.rows.is_contiguous():
        raise _invalid(f"a weight of {list(packed.rows.shape)} rows", f"{list(rows)} for spikes of {c} channels")
    stride = (packed.stride[0], packed.stride[1] // group)
    kernel = (kh, kw - (group - 1) * stride[1])
    places = zip((h, w), packed.padding, kernel, stride, strict=True)
    if packed.out_size != tuple((s + 2 * p - k) // d + 1 for s, p, k, d in places) or packed.out_size[1] % group:
        raise _invalid(f"spikes of {h} x {w}", f"those that the weight was laid out for, which give {packed.out_size}")
    held = {
        "ids": (events.ids, torch.int16, n * h * (w * c + ROOM)),
        "start": (events.start, torch.int32, n * h * (w + 1)),
        "amounts": (events.amounts, torch.int8, n * h * (w * c + ROOM)),
    }
    for name, (value, dtype, count) in held.items():
        if value is None:
            continue
        if value.dtype != dtype or value.numel() != count or not value.is_contiguous():
            raise _invalid(f"{name} {value.dtype} {list(value.shape)}", f"{count} of {dtype}")
    if packed.signed and events.most > 1:
        raise _invalid(f"spikes of up to {events.most} for a weight of signs", "spikes of -1, 0 and 1")
    if packed.step is not None and packed.step.numel() != group * packed.out_channels:
        raise _invalid(f"{packed.step.numel()} steps", f"{group * packed.out_channels}")


def _invalid(got: str, expected: str) -> InvalidData:
    return wrong("events", got, expected, "Check the convolution and the spikes it reads")


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
