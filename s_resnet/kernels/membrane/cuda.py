"""The membrane update on a CUDA device (``membrane.cu``): one launch per neuron layer for a whole chunk of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, library

from ...errors import InvalidData, SResNetError
from .. import check
from ..build import nvrtc
from .eager import empty_steps
from .reference import by_step, check_alphabet, check_results, delay

# As in membrane.cu.
TYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}
MEMBRANES = {torch.float32: "float", torch.int32: "int"}
AHEAD = 4  # steps whose currents are on their way while one is computed
LIMIT = 2**31
# What a network in half precision runs most; also the instance that shows whether the device can run any.
PROBE = ("f16", "f32", "f16", "float", "8", "true", "false", "SUBTRACT", "ONE", "EACH", "NONE", str(AHEAD))

_torch_library: Any = library  # its types differ between versions of torch
_library = _torch_library.Library("s_resnet", "FRAGMENT")
# Inputs must reach the kernel as they lie: channels_last, or the same current at every step (stride 0).
_tags = [getattr(torch.Tag, name, None) for name in ("pt2_compliant_tag", "needs_fixed_stride_order")]
_exact = getattr(torch.Tag, "needs_exact_strides", None)
_library.define(
    "integrate_and_fire(Tensor current, Tensor v, Tensor(a!) after, Tensor threshold, float decay, bool hard, "
    "Tensor? bias, Tensor? shortcut, Tensor? shortcut_scale, ScalarType? spike_dtype, Tensor(b!)? counts, int levels, "
    "Tensor? emitted, Tensor(c!)? emitted_after, str schedule) -> Tensor",
    tags=[tag for tag in (_tags[0], _exact or _tags[1]) if tag is not None],
)


def integrate_and_fire(
    current: Tensor,
    v: Tensor,
    *,
    threshold: Tensor,
    decay: float = 1.0,
    reset: str = "subtract",
    bias: Tensor | None = None,
    shortcut: Tensor | None = None,
    shortcut_scale: Tensor | None = None,
    spike_dtype: torch.dtype | None = None,
    counts: Tensor | None = None,
    levels: int = 1,
    emitted: Tensor | None = None,
    schedule: str = "streaming",
    after: Tensor | None = None,
    emitted_after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does, with its arguments and results.

    The equation and the order of its operations are the reference's, without fused multiply-adds: equal bit for bit.
    The operator ``s_resnet::integrate_and_fire`` is the same for torch.compile; before a CUDA graph is captured,
    :func:`warm_up` must have seen the same arguments.

    current: ``[T, B, *]`` float32, float16, bfloat16, int32, int8 or uint8; every step in the memory layout of ``v``.
        The same current at every step may have stride 0 in time.
    v: ``[B, *]`` float32 or int32, contiguous or channels_last. The spikes take its layout.
    threshold, bias, shortcut_scale: one number or one per channel (dimension 1); of a bias also one row per step.
    shortcut: as ``current``. counts: int32 ``[T, B]``, contiguous. emitted: copied where it does not lie as ``v`` does.
    after, emitted_after: in the memory layout of ``v``.

    Raises:
        InvalidData: a layout, dtype, shape or device that the kernel does not take.
        BackendUnavailable: the kernel cannot be compiled or loaded.
    """
    if reset not in ("subtract", "zero"):
        raise InvalidData(f"cuda kernel: reset, got {reset!r}; expected 'subtract' or 'zero'. Choose one of them.")
    if v.device.type != "cuda":
        raise InvalidData(f"cuda kernel: membrane, got one on {v.device}; expected a CUDA device. Move it there.")
    after = torch.empty_like(v) if after is None else after
    rest = (bias, shortcut, shortcut_scale, spike_dtype, counts, levels, emitted, emitted_after, schedule)
    spikes = torch.ops.s_resnet.integrate_and_fire(current, v, after, threshold, decay, reset == "zero", *rest)
    return spikes, after


def warm_up(current: Tensor, v: Tensor, *, counts: Tensor | None = None, **settings: object) -> None:
    """Compile, load and launch once what :func:`integrate_and_fire` would run; ``counts`` are left as they are."""
    integrate_and_fire(current, v, **settings)  # type: ignore[arg-type]


_reasons: dict[torch.device, str | None] = {}


def unavailable(device: torch.device) -> str | None:
    """Why the kernel cannot run on a CUDA device; None when it can. The first call launches one instance."""
    if device not in _reasons:
        if torch.version.hip is not None:
            return "no NVRTC: this torch is for ROCm"
        if nvrtc.compiler()[0] is None:
            return nvrtc.compiler()[1]
        if torch.cuda.is_current_stream_capturing():
            return None  # too late to try, and no reason to say no; the launch will tell
        _reasons[device] = _tried(device)
    return _reasons[device]


def _tried(device: torch.device) -> str | None:
    try:
        with torch.cuda.device(device):
            nvrtc.loaded(_instance(*PROBE), torch.cuda.current_device())
            integrate_and_fire(**_probe(device))
    except Exception as error:  # an odd version of the bindings may raise anything; what it was is the reason
        return str(error) if isinstance(error, SResNetError) else f"{type(error).__name__}: {error}"
    return None


def _probe(device: torch.device) -> dict[str, Any]:
    """What PROBE is the instance for, with few neurons."""
    current = torch.zeros(2, 1, 8, device=device, dtype=torch.float16)
    v, bias, threshold = (torch.ones(shape, device=device, dtype=torch.float32) for shape in ((1, 8), (8,), ()))
    return {"current": current, "v": v, "threshold": threshold, "bias": bias, "spike_dtype": torch.float16}


def path(device: torch.device) -> str:
    """What runs on a CUDA device, in words, such as ``cuda (NVRTC 13.0 by cuda-bindings 13.5.0, sm_90)``."""
    reason = unavailable(device)
    if reason is not None:
        return f"reference ({reason})"
    return "cuda ({}, sm_{}{})".format(nvrtc.compiler()[1], *torch.cuda.get_device_capability(device))


@dataclass(frozen=True)
class Plan:
    """One launch: the template instance, the number of blocks, and the kernel's arguments in its order."""

    instance: str
    blocks: int
    arguments: tuple[nvrtc.Argument, ...]


def plan(
    *,
    current: Tensor,
    v: Tensor,
    threshold: Tensor,
    decay: float,
    hard: bool,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_scale: Tensor | None,
    counts: Tensor | None,
    spikes: Tensor,
    after: Tensor,
    levels: int = 1,
    emitted: Tensor | None = None,
    emitted_after: Tensor | None = None,
    schedule: str = "streaming",
    block: int = nvrtc.BLOCK,
) -> Plan:
    """Choose the instance and the arguments for a chunk of at least one step of at least one neuron.

    spikes, after, emitted_after: where the results go, laid out like the membrane. block: threads of a block.
    """
    neurons, (last, span), channels = v[0].numel(), _layout(v), v.shape[1] if v.ndim > 1 else 1
    strides = [_strides("current", current, v, len(spikes))]
    strides.append((0, 0) if shortcut is None else _strides("shortcut", shortcut, v, len(spikes)))
    check_alphabet(v, levels, emitted, "zero" if hard else "subtract", spikes.dtype)
    delay(schedule, len(spikes), decay)
    check.results(v, spikes, after)
    _check(v, spikes, counts, (current, threshold, bias, shortcut, shortcut_scale, emitted), decay)
    _check_results(v, after, emitted, emitted_after)
    if emitted is not None and emitted.stride() != v.stride():
        emitted = torch.empty_like(v).copy_(emitted)
    rows = by_step(bias, v, len(spikes))
    kinds = [_kind("threshold", threshold, v), _kind("bias", bias[0] if bias is not None and rows else bias, v)]
    kinds.append(_kind("shortcut_scale", shortcut_scale, v))
    if bias is not None and rows:
        kinds[1], bias = "ROWS", bias.flatten(1).expand(-1, channels)
    if shortcut is not None and shortcut_scale is None:
        kinds[2] = "BARE"
    values = [None if x is None else x.to(v.dtype).contiguous() for x in (threshold, bias, shortcut_scale)]
    streams = (current, shortcut, v, emitted, after, emitted_after, spikes)
    # 16 bytes: 8 halves or 4 floats (8 of these, and registers spill); one by one where vectors would straddle images.
    wide = 8 if all(x is None or x.element_size() < 4 for x in (current, shortcut)) else 4
    width = wide if neurons % wide == 0 and all(map(_aligned, streams)) else 1
    whole = last and span % width == 0 and all(map(_aligned, values))
    per_image = -(-neurons // (width * block))
    blocks = per_image * len(v)
    if max(neurons, blocks, *strides[0], *strides[1]) >= LIMIT:
        raise InvalidData(f"cuda kernel: got {neurons} neurons x {len(v)} images; expected fewer. Use a smaller batch.")
    types = [TYPES[current.dtype], TYPES[torch.float32 if shortcut is None else shortcut.dtype], TYPES[spikes.dtype]]
    flags = [str(flag).lower() for flag in (last, decay != 1.0)]
    rule = "SIGNED" if emitted is not None else "LEVELS" if levels > 1 else "ZERO" if hard else "SUBTRACT"
    # Memories, quotients and rows take registers too: four steps of eight halves ahead, and they spill.
    crowded = width == 8 and (rule in ("LEVELS", "SIGNED") or kinds[:2] == ["EACH", "ROWS"])
    ahead = 1 if len(spikes) == 1 else AHEAD // 2 if crowded else AHEAD
    parts = [*types, MEMBRANES[v.dtype], str(width), *flags, rule, *kinds, str(ahead)]
    parts += [] if schedule == "streaming" else [schedule.upper()]
    return Plan(
        _instance(*parts),
        blocks,
        (
            *(current, shortcut, v, emitted, *values, after, emitted_after, spikes, counts, float(decay)),
            *(2**levels - 1, len(spikes), len(v), neurons, span, int(whole), per_image, channels if rows else 0),
            *(*strides[0], *strides[1]),
        ),
    )


def _check(v: Tensor, spikes: Tensor, counts: Tensor | None, others: tuple[Tensor | None, ...], decay: float) -> None:
    if v.dtype not in MEMBRANES:
        raise InvalidData(f"cuda kernel: membrane, got {v.dtype}; expected float32 or int32. Convert it.")
    if v.dtype == torch.int32 and decay != 1.0:
        raise InvalidData(f"cuda kernel: decay, got {decay} with an int32 membrane; expected 1. Use float32.")
    for other in others:
        if other is not None and other.device != v.device:
            raise InvalidData(
                f"cuda kernel: got tensors on {v.device} and {other.device}; expected one device. Move them together."
            )
    if spikes.dtype not in TYPES:
        raise InvalidData(f"cuda kernel: spikes, got {spikes.dtype}; expected {_names()}. Choose one of them.")
    if counts is not None and not (
        counts.dtype == torch.int32
        and counts.shape == spikes.shape[:2]
        and counts.is_contiguous()
        and counts.device == v.device
    ):
        raise InvalidData(
            f"cuda kernel: counts, got {counts.dtype} {list(counts.shape)} strides {counts.stride()} on "
            f"{counts.device}; expected contiguous int32 {list(spikes.shape[:2])} on {v.device}. Allocate them so."
        )


def _check_results(v: Tensor, after: Tensor, emitted: Tensor | None, emitted_after: Tensor | None) -> None:
    check_results(v, after, emitted, emitted_after)
    for name, result in (("after", after), ("emitted_after", emitted_after)):
        if result is not None and result.stride() != v.stride():
            raise InvalidData(
                f"cuda kernel: {name}, got strides {result.stride()}; expected the membrane's {v.stride()}. Allocate "
                f"it with torch.empty_like."
            )


def _layout(v: Tensor) -> tuple[bool, int]:
    """Whether channels are innermost; then their number, else the neurons of a channel."""
    channels = v.shape[1] if v.ndim > 1 else 1
    if v.is_contiguous():
        inner = v[0].numel() // channels
        return (True, channels) if inner == 1 else (False, inner)
    if v.ndim > 2 and v.movedim(1, -1).is_contiguous():
        return True, channels
    raise InvalidData(
        f"cuda kernel: membrane, got {list(v.shape)} with strides {v.stride()}; expected contiguous or channels_last "
        f"memory. Make it so with .contiguous(memory_format=...)."
    )


def _strides(name: str, values: Tensor, v: Tensor, steps: int) -> tuple[int, int]:
    """The strides of ``[T, B, *]`` in time and over images, in images; a step must lie in memory as ``v`` does."""
    neurons = v[0].numel()
    if values.dtype not in TYPES:
        raise InvalidData(f"cuda kernel: {name}, got {values.dtype}; expected {_names()}. Convert it.")
    if values.shape != (steps, *v.shape):
        raise InvalidData(f"cuda kernel: {name}, got {list(values.shape)}; expected {[steps, *v.shape]}. Reshape it.")
    time, image = (values.stride(i) if values.shape[i] > 1 else 0 for i in (0, 1))
    inside = zip(values.shape[2:], values.stride()[2:], v.stride()[1:], strict=True)
    if time % neurons or image % neurons or any(size > 1 and got != want for size, got, want in inside):
        raise InvalidData(
            f"cuda kernel: {name}, got strides {values.stride()}; expected every step to lie in memory as the membrane "
            f"does, {v.stride()}. Bring both into one memory format."
        )
    return time // neurons, image // neurons


def _kind(name: str, value: Tensor | None, v: Tensor) -> str:
    if value is None:
        return "NONE"
    if value.numel() == 1 and value.ndim <= v.ndim:
        return "ONE"
    channels = v.shape[1] if v.ndim > 1 else 1
    shape = (1,) * (v.ndim - value.ndim) + tuple(value.shape)
    if shape != (1, channels, *(1,) * (v.ndim - 2)):
        raise InvalidData(
            f"cuda kernel: {name}, got {list(value.shape)} for a membrane {list(v.shape)}; expected one number or one "
            f"per channel. Use the reference kernel for others."
        )
    return "EACH"


def _aligned(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.data_ptr() % 16 == 0


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)


def _instance(*parameters: str) -> str:
    """The template instance; types and kinds with their namespace, since NVRTC reads the name outside of it."""
    ours = {*TYPES.values(), "NONE", "ONE", "EACH", "BARE", "ROWS", "SUBTRACT", "ZERO", "LEVELS", "SIGNED"}
    ours |= {"LAGGED", "PHASED"}
    return f"sresnet::membrane<{', '.join(f'sresnet::{p}' if p in ours else p for p in parameters)}>"


def _run(
    current: Tensor,
    v: Tensor,
    after: Tensor,
    threshold: Tensor,
    decay: float,
    hard: bool,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_scale: Tensor | None,
    spike_dtype: torch.dtype | None,
    counts: Tensor | None,
    levels: int,
    emitted: Tensor | None,
    emitted_after: Tensor | None,
    schedule: str,
) -> Tensor:
    """The operator on a CUDA device: the spikes."""
    spread = {"threshold": threshold, "bias": bias, "shortcut_scale": shortcut_scale}
    check.update(current, v, shortcut, spread, counts, (decay, "zero" if hard else "subtract"))
    with torch.cuda.device(v.device):
        spikes = empty_steps(len(current), v, spike_dtype or v.dtype)
        if spikes.numel() == 0:
            after.copy_(v)
            if emitted is not None and emitted_after is not None:
                emitted_after.copy_(emitted)
            return spikes
        todo = plan(
            current=current,
            v=v,
            threshold=threshold,
            decay=decay,
            hard=hard,
            bias=bias,
            shortcut=shortcut,
            shortcut_scale=shortcut_scale,
            counts=counts,
            spikes=spikes,
            after=after,
            levels=levels,
            emitted=emitted,
            emitted_after=emitted_after,
            schedule=schedule,
        )
        nvrtc.loaded(todo.instance, v.device.index)(todo.blocks, todo.arguments)
    return spikes


def _fake(
    current: Tensor,
    v: Tensor,
    after: Tensor,
    threshold: Tensor,
    decay: float,
    hard: bool,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_scale: Tensor | None,
    spike_dtype: torch.dtype | None,
    counts: Tensor | None,
    levels: int,
    emitted: Tensor | None,
    emitted_after: Tensor | None,
    schedule: str,
) -> Tensor:
    """The operator's result without values, for torch.compile."""
    return empty_steps(current.shape[0], v, spike_dtype or v.dtype)


_library.impl("integrate_and_fire", _run, "CUDA")
_torch_library.register_fake("s_resnet::integrate_and_fire", _fake, lib=_library)
