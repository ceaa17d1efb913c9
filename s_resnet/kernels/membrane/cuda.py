"""The membrane update on a CUDA device (``membrane.cu``): one launch per neuron layer for a whole chunk of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, library

from ...errors import InvalidData, SResNetError, message
from .. import check
from ..build import nvrtc
from ..layout import empty_steps
from .update import Update

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
# An operator takes plain arguments: the fields of an Update, in their order.
_FIELDS = tuple(field.name for field in fields(Update) if field.name not in ("begins", "ends"))
_library.define(
    "integrate_and_fire(Tensor current, Tensor v, Tensor threshold, float decay, str reset, Tensor? bias, "
    "Tensor? shortcut, Tensor? shortcut_scale, int levels, Tensor? emitted, str schedule, ScalarType? spike_dtype, "
    "Tensor(a!)? counts, Tensor(b!) after, Tensor(c!)? emitted_after) -> Tensor",
    tags=[tag for tag in (_tags[0], _exact or _tags[1]) if tag is not None],
)


def missing(device: torch.device) -> str | None:
    """Why it does not run on ``device``; None where it does."""
    return unavailable(device) if device.type == "cuda" else f"device {device}"


def takes(current: Tensor, v: Tensor, update: Update) -> bool:
    """Whether it does this update. Double precision is for checking, and a lagged window comes whole on a GPU.

    Everything else it does, or says why not: to fall back on a slower kernel in silence would be worse than an error.
    """
    return v.dtype in MEMBRANES and update.whole


def integrate_and_fire(current: Tensor, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Do what :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` does, with its arguments and results.

    The equation and the order of its operations are the reference's, without fused multiply-adds: equal bit for bit.
    The operator ``s_resnet::integrate_and_fire`` is the same for torch.compile; before a CUDA graph is captured,
    :func:`warm_up` must have seen the same arguments.

    Args:
        current: ``[T, B, *]`` float32, float16, bfloat16, int32, int8 or uint8; every step in the memory layout of
            ``v``. The same current at every step may have stride 0 in time.
        v: ``[B, *]`` float32 or int32, contiguous or channels_last. The spikes take its layout.
        update: threshold, bias and shortcut_scale are one number or one per channel (dimension 1), of a bias also one
            row per step; the shortcut lies as ``current`` does; counts are contiguous; ``emitted`` is copied where it
            does not lie as ``v`` does; results lie as ``v`` does.

    Raises:
        InvalidData: a layout, dtype, shape or device that the kernel does not take.
        BackendUnavailable: the kernel cannot be compiled or loaded.
    """
    if v.device.type != "cuda":
        raise _wrong("membrane", f"one on {v.device}", "a CUDA device", "Move it there")
    if not update.whole:
        raise _wrong("schedule", "a part of a lagged window", "all of it", "Pass all steps at once")
    after = torch.empty_like(v) if update.after is None else update.after
    plain = [after if name == "after" else getattr(update, name) for name in _FIELDS]
    return torch.ops.s_resnet.integrate_and_fire(current, v, *plain), after


def warm_up(current: Tensor, v: Tensor, update: Update) -> None:
    """Compile, load and launch once what :func:`integrate_and_fire` would run; nothing that is given is changed."""
    integrate_and_fire(current, v, replace(update, counts=None, after=None, emitted_after=None))


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
            integrate_and_fire(*_probe(device))
    except Exception as error:  # an odd version of the bindings may raise anything; what it was is the reason
        return str(error) if isinstance(error, SResNetError) else f"{type(error).__name__}: {error}"
    return None


def _probe(device: torch.device) -> tuple[Tensor, Tensor, Update]:
    """What PROBE is the instance for, with few neurons."""
    current = torch.zeros(2, 1, 8, device=device, dtype=torch.float16)
    v, bias, threshold = (torch.ones(shape, device=device, dtype=torch.float32) for shape in ((1, 8), (8,), ()))
    return current, v, Update(threshold, bias=bias, spike_dtype=torch.float16)


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


def plan(current: Tensor, v: Tensor, update: Update, spikes: Tensor, block: int = nvrtc.BLOCK) -> Plan:
    """Choose the instance and the arguments for a checked chunk of at least one step of at least one neuron.

    Args:
        current: as of :func:`integrate_and_fire`.
        v: as there.
        update: as there, with ``after``.
        spikes: where they go, laid out like the membrane.
        block: threads of a block.
    """
    last, span = _layout(v)
    _check(v, update, spikes)
    neurons, channels = v[0].numel(), v.shape[1] if v.ndim > 1 else 1
    strides = _strides("current", current, v)
    branch_strides = (0, 0) if update.shortcut is None else _strides("shortcut", update.shortcut, v)
    kinds, values = _parameters(v, update)
    emitted = update.emitted
    if emitted is not None and emitted.stride() != v.stride():
        emitted = torch.empty_like(v).copy_(emitted)
    streams = (current, update.shortcut, v, emitted, update.after, update.emitted_after, spikes)
    # 16 bytes: 8 halves or 4 floats (8 of these, and registers spill); one by one where vectors would straddle images.
    wide = 8 if all(x is None or x.element_size() < 4 for x in (current, update.shortcut)) else 4
    width = wide if neurons % wide == 0 and all(map(_aligned, streams)) else 1
    whole = last and span % width == 0 and all(map(_aligned, values))
    per_image = -(-neurons // (width * block))
    blocks = per_image * len(v)
    if max(neurons, blocks, *strides, *branch_strides) >= LIMIT:
        raise _wrong("", f"{neurons} neurons x {len(v)} images", "fewer", "Use a smaller batch")
    branch_type = torch.float32 if update.shortcut is None else update.shortcut.dtype
    rule = _rule(update)
    # Memories, quotients and rows take registers too: four steps of eight halves ahead, and they spill.
    crowded = width == 8 and (rule in ("LEVELS", "SIGNED") or list(kinds.values())[:2] == ["EACH", "ROWS"])
    ahead = 1 if len(spikes) == 1 else AHEAD // 2 if crowded else AHEAD
    parts = [TYPES[current.dtype], TYPES[branch_type], TYPES[spikes.dtype], MEMBRANES[v.dtype], str(width)]
    parts += [str(flag).lower() for flag in (last, update.decay != 1.0)]
    parts += [rule, *kinds.values(), str(ahead)]
    parts += [] if update.schedule == "streaming" else [update.schedule.upper()]
    row = channels if kinds["bias"] == "ROWS" else 0
    results = (update.after, update.emitted_after, spikes, update.counts)
    sizes = (update.most, len(spikes), len(v), neurons, span, int(whole), per_image, row)
    arguments = (current, update.shortcut, v, emitted, *values, *results, float(update.decay), *sizes)
    return Plan(_instance(*parts), blocks, (*arguments, *strides, *branch_strides))


def _rule(update: Update) -> str:
    if update.emitted is not None:
        return "SIGNED"
    if update.levels > 1:
        return "LEVELS"
    return "ZERO" if update.reset == "zero" else "SUBTRACT"


def _parameters(v: Tensor, update: Update) -> tuple[Mapping[str, str], list[Tensor | None]]:
    """How many numbers threshold, bias and scale are, and the numbers in the membrane's type."""
    bias, rows = update.bias, update.by_step(v)
    kinds = {
        "threshold": _kind("threshold", update.threshold, v),
        "bias": _kind("bias", bias[0] if bias is not None and rows else bias, v),
        "scale": _kind("shortcut_scale", update.shortcut_scale, v),
    }
    if bias is not None and rows:
        kinds["bias"], bias = "ROWS", bias.flatten(1).expand(-1, v.shape[1] if v.ndim > 1 else 1)
    if update.shortcut is not None and update.shortcut_scale is None:
        kinds["scale"] = "BARE"
    given = (update.threshold, bias, update.shortcut_scale)
    return kinds, [None if value is None else value.to(v.dtype).contiguous() for value in given]


def _check(v: Tensor, update: Update, spikes: Tensor) -> None:
    """What the kernel asks beyond what every kernel does."""
    assert update.after is not None
    check.results(v, spikes, update.after)
    if v.dtype not in MEMBRANES:
        raise _wrong("membrane", v.dtype, "float32 or int32", "Convert it")
    if spikes.dtype not in TYPES:
        raise _wrong("spikes", spikes.dtype, _names(), "Use the membrane's type")
    for name in ("threshold", "bias", "shortcut_scale", "emitted"):
        value = getattr(update, name)
        if value is not None and value.device != v.device:
            raise _wrong(name, f"a tensor on {value.device}", f"one on {v.device}", "Move it there")
    counts = update.counts
    if counts is not None and not (counts.dtype == torch.int32 and counts.is_contiguous()):
        got = f"{counts.dtype} {list(counts.shape)} strides {counts.stride()}"
        raise _wrong("counts", got, f"contiguous int32 {list(spikes.shape[:2])}", "Allocate them with torch.empty")
    for name, result in (("after", update.after), ("emitted_after", update.emitted_after)):
        if result is not None and result.stride() != v.stride():
            got = f"strides {result.stride()}"
            raise _wrong(name, got, f"the membrane's {v.stride()}", "Allocate it with torch.empty_like")


def _layout(v: Tensor) -> tuple[bool, int]:
    """Whether channels are innermost; then their number, else the neurons of a channel."""
    channels = v.shape[1] if v.ndim > 1 else 1
    if v.is_contiguous():
        inner = v[0].numel() // channels
        return (True, channels) if inner == 1 else (False, inner)
    if v.ndim > 2 and v.movedim(1, -1).is_contiguous():
        return True, channels
    got = f"{list(v.shape)} with strides {v.stride()}"
    raise _wrong("membrane", got, "contiguous or channels_last memory", "Call .contiguous(memory_format=...)")


def _strides(name: str, values: Tensor, v: Tensor) -> tuple[int, int]:
    """The strides of ``[T, B, *]`` in time and over images, in images; a step must lie in memory as ``v`` does."""
    neurons = v[0].numel()
    if values.dtype not in TYPES:
        raise _wrong(name, values.dtype, _names(), "Convert it")
    time, image = (values.stride(i) if values.shape[i] > 1 else 0 for i in (0, 1))
    inside = zip(values.shape[2:], values.stride()[2:], v.stride()[1:], strict=True)
    if time % neurons or image % neurons or any(size > 1 and got != want for size, got, want in inside):
        got, want = f"strides {values.stride()}", f"every step to lie in memory as the membrane does, {v.stride()}"
        raise _wrong(name, got, want, "Bring both into one memory format")
    return time // neurons, image // neurons


def _kind(name: str, value: Tensor | None, v: Tensor) -> str:
    if value is None:
        return "NONE"
    if value.numel() == 1 and value.ndim <= v.ndim:
        return "ONE"
    channels = v.shape[1] if v.ndim > 1 else 1
    shape = (1,) * (v.ndim - value.ndim) + tuple(value.shape)
    if shape != (1, channels, *(1,) * (v.ndim - 2)):
        got = f"{list(value.shape)} for a membrane {list(v.shape)}"
        raise _wrong(name, got, "one number or one per channel", "Use the reference kernel for others")
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


def _wrong(what: str, got: object, expected: object, remedy: str) -> InvalidData:
    return InvalidData(message("cuda kernel", what, got, expected, remedy))


def _run(current: Tensor, v: Tensor, *plain: Any) -> Tensor:
    """The operator on a CUDA device: the spikes."""
    update = Update(*plain)
    check.membrane(current, v, update)
    with torch.cuda.device(v.device):
        spikes = empty_steps(len(current), v, update.spike_dtype or v.dtype)
        if spikes.numel():
            todo = plan(current, v, update, spikes)
            nvrtc.loaded(todo.instance, v.device.index)(todo.blocks, todo.arguments)
            return spikes
        for before, after in ((v, update.after), (update.emitted, update.emitted_after)):
            if before is not None and after is not None:
                after.copy_(before)
    return spikes


def _fake(current: Tensor, v: Tensor, *plain: Any) -> Tensor:
    """The operator's result without values, for torch.compile."""
    return empty_steps(current.shape[0], v, Update(*plain).spike_dtype or v.dtype)


_library.impl("integrate_and_fire", _run, "CUDA")
_torch_library.register_fake("s_resnet::integrate_and_fire", _fake, lib=_library)
