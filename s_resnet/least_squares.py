"""Synapses refitted to the spikes they really get: least squares in closed form, nothing to train."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import Conv2d, Linear, Scale, compensated

PENALTIES = (1.0, 0.1, 0.01, 0.001)  # of the inputs' mean variance, the strongest first
CHECKED = 8  # one image of so many is kept apart, to choose the penalty by
ROOM = 2**24  # values of the unfolded inputs that are in memory at a time


def refit(op: Conv2d | Linear, inputs: Tensor, wanted: Tensor) -> Conv2d | Linear:
    """The synapse with the spiking weights ``W + D`` that bring its outputs closest to what is wanted.

    D minimizes, over images and places, with x the unfolded inputs and all means taken out::

        E[|(wanted - W x - b) - D x|^2] + penalty E[x^2] |D|^2

    which is a system of normal equations per group. The penalty is the one of four with the least error on images kept
    apart, one of eight; where none is better than D = 0 there, the synapse stays as it is. The mean error that is left
    is for the neuron layer's correction.

    Args:
        inputs: mean inputs over the time steps, ``[B, C, H, W]`` or ``[B, features]``.
        wanted: ``[B, C_out, *]``, in the units of the outputs.

    The source's weight is kept beside the spiking one. Source: ridge regression; towards what the unquantized layer
    gives, on inputs that are quantized already, as in the asymmetric reconstruction of Nagel et al., ICML 2020
    (arXiv:2004.10568).
    """
    checked = torch.arange(len(inputs), device=inputs.device) % CHECKED == 0
    if bool(checked.all()):
        return op
    now = compensated(op)
    assert not isinstance(now, Scale)
    gram, right = _moments(now, inputs[~checked], wanted[~checked])
    gram_checked, right_checked = _moments(now, inputs[checked], wanted[checked])
    variance = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
    least, best = 0.0, None
    diagonal = gram.diagonal(dim1=1, dim2=2)
    unlifted = diagonal.clone()
    for penalty in PENALTIES:
        diagonal.copy_(unlifted + penalty * variance[:, None])
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed.any()):
            break  # of few images, whose float32 sums are off by more than this penalty
        change = torch.cholesky_solve(right, factor)
        error = float((change * (gram_checked @ change - 2 * right_checked)).sum())
        if error >= least:
            break  # weaker penalties fit what is particular to these images even more closely
        least, best = error, change
    if best is None:
        return op
    weight = now.weight + best.transpose(1, 2).reshape(now.weight.shape).to(now.weight.dtype)
    return replace(op, spiking_weight=weight, gain=1.0)


def _moments(op: Conv2d | Linear, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances of the unfolded inputs, ``[G, K, K]``, and of them with what is lacking, ``[G, K, C_out / G]``."""
    size = inputs[:1].numel() if isinstance(op, Linear) else _unfolded(op, inputs[:1]).numel()
    parts = max(1, ROOM // size)
    groups = 1 if isinstance(op, Linear) else op.groups
    ins, outs = op.weight[0].numel(), len(op.weight) // groups
    zeros = partial(torch.zeros, dtype=torch.float64, device=inputs.device)
    gram, right = zeros(groups, ins, ins), zeros(groups, ins, outs)
    first, second = zeros(groups, ins), zeros(groups, outs)
    count = 0
    for x, y in zip(torch.split(inputs, parts), torch.split(wanted, parts), strict=True):
        lacking = y - op.run(x)
        if isinstance(op, Linear):
            seen, lacking = x[None], lacking[None]
        else:
            seen = _unfolded(op, x)
            lacking = _by_group(lacking.flatten(2), op.groups)
        gram += seen.transpose(1, 2) @ seen
        right += seen.transpose(1, 2) @ lacking
        first += seen.sum(1)
        second += lacking.sum(1)
        count += seen.shape[1]
    # In place: with 512 channels the covariances alone are 170 MB.
    gram -= (first[:, :, None] * first[:, None]).div_(count)
    right -= (first[:, :, None] * second[:, None]).div_(count)
    return gram.div_(count), right.div_(count)


def _unfolded(op: Conv2d, x: Tensor) -> Tensor:
    """What each output place sees, ``[G, B * places, K]``."""
    kernel = (op.weight.shape[2], op.weight.shape[3])
    return _by_group(F.unfold(x, kernel, op.dilation, op.padding, op.stride), op.groups)


def _by_group(value: Tensor, groups: int) -> Tensor:
    """``[B, G * n, places]`` as ``[G, B * places, n]``."""
    batch, channels, places = value.shape
    return value.view(batch, groups, channels // groups, places).permute(1, 0, 3, 2).flatten(1, 2)
