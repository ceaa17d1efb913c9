"""Neurons that are trained, on a CUDA device (``surrogate.cu``): one launch forward and one back for all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check, fallback
from ..build import nvrtc
from ..layout import inner_of
from ..membrane import cuda
from .reference import Affine, Firing

FILE = "surrogate.cu"
TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
THRESHOLDS = 8  # as in surrogate.cu
REGISTERS = 40  # membranes of a thread that works on more than one neuron: with more, some assemblers spill
MOST = 512  # membranes of one neuron


def takes(current: Tensor, firing: Firing) -> bool:
    """Whether the kernel takes this current, on a device that it runs on; if it is the device, one warning."""
    if current.dtype not in TYPES or len(current) * len(firing.thresholds) > MOST or current[0].numel() >= cuda.LIMIT:
        return False
    reason = cuda.unavailable(current.device)
    if reason is not None:
        fallback.warn(current.device, reason)
    return reason is None


def run(current: Tensor, grad: Tensor | None, out: Tensor, firing: Firing, affine: Affine | None) -> None:
    """Write the spikes into ``out``; or, given the gradient of the spikes, the gradient of the current.

    Args:
        current: ``[T, B, *]``, with dense steps that are adjacent or all the same memory (stride 0).
        grad: the gradient of the spikes in the same type, shape and memory order; None to run forward.
        out: likewise.
        firing: what the neurons do.
        affine: scale and shift ``[C]`` in float32, which turn the given values into the current; then steps are
            contiguous or channels_last.
    """
    check.firing(current, grad, out, affine, TYPES)
    with torch.cuda.device(current.device):
        todo = plan(current, grad, out, firing, affine)
        nvrtc.loaded(todo.instance, current.device.index, FILE)(todo.blocks, todo.arguments)


def plan(
    current: Tensor,
    grad: Tensor | None,
    out: Tensor,
    firing: Firing,
    affine: Affine | None = None,
    block: int = nvrtc.BLOCK,
) -> cuda.Plan:
    """The instance and its arguments for at least one neuron; block: threads of a block."""
    steps, levels, neurons = len(current), len(firing.thresholds), current[0].numel()
    width = 16 // current.element_size()
    while width > 1 and levels * (1 if grad is None else steps) * width > REGISTERS:
        width //= 2
    if neurons % width or any(x is not None and x.data_ptr() % 16 for x in (current, grad, out)):
        width = 1
    hard, detached = (str(flag).lower() for flag in (firing.reset == "zero", firing.detach_reset))
    channels, inner = (1, 1) if affine is None else (current.shape[2], inner_of(current[0]))
    where = "UNSCALED" if affine is None else "INNERMOST" if inner == 1 else "AROUND"
    whole = int((channels if inner == 1 else inner) % width == 0)
    parts = [f"sresnet::{TYPES[current.dtype]}", str(width), str(steps), str(levels), hard, f"sresnet::{where}"]
    if grad is not None:
        parts += [detached, f"sresnet::{firing.surrogate.upper()}"]
    thresholds = [*map(float, firing.thresholds), *[0.0] * (THRESHOLDS - levels)]
    times = [0 if x is None or x.stride(0) == 0 else 1 for x in (current, grad)]
    return cuda.Plan(
        f"sresnet::surrogate_{'forward' if grad is None else 'backward'}<{', '.join(parts)}>",
        -(-neurons // (width * block)),
        (
            current,
            grad,
            out,
            *(affine or (None, None)),
            float(firing.decay),
            float(firing.initial),
            *map(float, firing.shape()),
            *thresholds,
            neurons,
            *times,
            channels,
            inner,
            whole,
        ),
    )
