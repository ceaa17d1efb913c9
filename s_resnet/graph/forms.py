"""The operations that a run computes: which of the numbers beside the source's are used is decided here, and once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..runtime.display import Displayed
from .neuron import Neuron
from .ops import SYNAPSES, Conv2d, Input, Linear, Op, Scale, channels_last, on_grid

S = TypeVar("S", bound=Conv2d | Linear | Scale)


@dataclass(frozen=True, eq=False, repr=False)
class GridInput(Displayed):
    """The images in whole multiples of 1 / grid (:func:`s_resnet.graph.ops.on_grid`)."""

    grid: int

    def run(self, *inputs: Tensor) -> Tensor:
        return on_grid(inputs[0], self.grid)


@dataclass(frozen=True, eq=False, repr=False)
class GridConv2d(Displayed):
    """The first convolution of an integer network: over whole multiples of 1 / grid, rounded to whole units per image.

    Attributes:
        convolution: without bias, its weights whole numbers in float32.
        bias: int32 ``[C]``, or None.
        grid: that of the images.
    """

    convolution: Conv2d
    bias: Tensor | None
    grid: int

    def run(self, *inputs: Tensor) -> Tensor:
        images = inputs[0].to(self.convolution.weight.dtype)
        current = (self.convolution.run(images) / self.grid).round()
        return current if self.bias is None else current + self.bias.view(-1, 1, 1)


def synapse(op: S) -> S:
    """A synapse as spiking runs use it, without parts: its spiking weight times its gain, and the source's bias."""
    weight = op.weight
    if op.spiking is not None:
        weight = weight if op.spiking.weight is None else op.spiking.weight
        weight = weight if op.spiking.gain == 1.0 else weight * op.spiking.gain
    return replace(op, weight=weight, spiking=None, integer=None)


def spiking(op: Op) -> Op:
    """An operation as spiking runs in floating point use it."""
    if isinstance(op, Input) and op.grid:
        return GridInput(op.grid)
    if isinstance(op, SYNAPSES):
        return synapse(op)
    if isinstance(op, Neuron) and (op.integer is not None or op.limit is not None):
        return replace(op, integer=None, limit=None)
    return op


def integer(op: Op) -> Op:
    """An operation as runs of an integer network use it: whole numbers, held in float32 where torch multiplies them.

    Every sum stays below 2^24, so float32 is exact and the order of additions does not matter. On a GPU there is no
    convolution of integers: these run in TF32, which has every factor, and are exact as long as cuDNN only multiplies
    and adds. An algorithm by Winograd or FFT would not be exact, and nothing forbids cuDNN to choose one.
    """
    match op:
        case Input(grid) if grid:
            return GridInput(grid)
        case Neuron(integer=own) if own is not None:
            one = replace(op, threshold=own.threshold, correction=own.correction, amplitude=1.0)
            return replace(one, integer=None, limit=None)
        case Conv2d(integer=own) if own is not None:
            weight = channels_last(own.weight.to(torch.float32))
            plain = replace(op, weight=weight, bias=own.bias, spiking=None, integer=None)
            return GridConv2d(replace(plain, bias=None), own.bias, own.grid) if own.grid else plain
        case Linear(integer=own) if own is not None:
            return replace(op, weight=own.weight.to(op.weight.dtype) * own.step, spiking=None, integer=None)
        case Scale(integer=own) if own is not None:
            return replace(op, weight=own.weight, spiking=None, integer=None)
    return op
