"""The operations of a Graph without memory: frozen dataclasses that own their tensors and know how to run.

Shapes: ``B`` batch, ``C`` channels, ``H W`` space, ``N`` classes. A *synapse* (:class:`Conv2d`, :class:`Linear`,
:class:`Scale`) holds the source's weight, and apart from it what other runs use: ``spiking`` and ``integer``.
:mod:`s_resnet.graph.forms` makes one operation of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import per_channel
from ..kernels.surrogate.qcfs import qcfs
from ..runtime.display import Displayed

Pair = tuple[int, int]


class Op(Protocol):
    """What every operation can do: compute its output from its inputs, analog."""

    def run(self, *inputs: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False, repr=False)
class Node(Displayed):
    """One operation under a name; ``inputs`` are the names of earlier nodes."""

    name: str
    op: Op
    inputs: tuple[str, ...]


# Steps per unit of images on a grid: pixels of 8 bits, divided by a standard deviation of 1/4, are about as fine.
GRID = 64
LARGEST_PIXEL = 8  # on a grid: images lie within +- that


def on_grid(images: Tensor, grid: int) -> Tensor:
    """The images in whole multiples of 1 / grid, within +-8."""
    return (images * grid).round().clamp(-LARGEST_PIXEL * grid, LARGEST_PIXEL * grid)


@dataclass(frozen=True, eq=False, repr=False)
class Input(Displayed):
    """The images ``[B, C, H, W]``, preprocessed.

    Attributes:
        grid: spiking runs see them in whole multiples of 1 / grid, within +-8; 0: as they are.
    """

    grid: int = 0

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


@dataclass(frozen=True, eq=False, repr=False)
class SpikingWeights(Displayed):
    """What spiking runs use in place of a synapse's own weight, so that the analog run stays the source network.

    Attributes:
        weight: in the shape of the synapse's own; of :class:`Scale` 0-dimensional or ``[C]``; None: its own.
        gain: the compensation factor c: it multiplies the weight, never the bias.
    """

    weight: Tensor | None = None
    gain: float = 1.0


@dataclass(frozen=True, eq=False, repr=False)
class IntegerWeights(Displayed):
    """The whole numbers that an integer network's runs use in place of a synapse's weight and bias.

    Attributes:
        weight: int8, in units of the threshold of the neuron layer that reads it, of :class:`Linear` in units of
            ``step``; of :class:`Scale` int32 ``[C]``.
        bias: int32 ``[C_out]`` of a convolution, in the same units, or None.
        step: of :class:`Linear`.
        grid: that of the images, of the convolution that reads them; else 0.
    """

    weight: Tensor
    bias: Tensor | None = None
    step: float = 1.0
    grid: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Conv2d(Displayed):
    """``y = W * x + b``: zero padding.

    Attributes:
        weight: ``[C_out, C_in / groups, kh, kw]``.
        bias: ``[C_out]`` or None; one of whole numbers is added after the products.
        stride: as the three after it, of rows and columns.
        padding: on both sides.
        dilation: between the places that a kernel reads.
        groups: of channels.
        spiking: what spiking runs use; None: the weight.
        integer: what runs of an integer network use; None: it is of no such network.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    spiking: SpikingWeights | None = None
    integer: IntegerWeights | None = None

    def run(self, *inputs: Tensor) -> Tensor:
        bias, rest = self.bias, (self.stride, self.padding, self.dilation, self.groups)
        if bias is None or bias.is_floating_point():
            return F.conv2d(inputs[0], self.weight, bias, *rest)
        return F.conv2d(inputs[0], self.weight, None, *rest) + bias.view(-1, 1, 1)


@dataclass(frozen=True, eq=False, repr=False)
class Linear(Displayed):
    """``y = W x + b``.

    Attributes:
        weight: ``[N, features]``.
        bias: ``[N]`` or None.
        spiking: as in :class:`Conv2d`.
        integer: as in :class:`Conv2d`; currents and bias stay in floating point.
    """

    weight: Tensor
    bias: Tensor | None
    spiking: SpikingWeights | None = None
    integer: IntegerWeights | None = None

    def run(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight, self.bias)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Displayed):
    """A one-to-one synapse ``y = w x`` without bias: the identity branch of the shortcut conversion model.

    Attributes:
        weight: 0-dimensional (one factor for the layer) or ``[C]``.
        spiking: as in :class:`Conv2d`.
        integer: as in :class:`Conv2d`.

    Source: Hu, Tang and Pan, "Spiking Deep Residual Network", arXiv:1805.01352, shortcut conversion.
    """

    weight: Tensor
    spiking: SpikingWeights | None = None
    integer: IntegerWeights | None = None

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * per_channel(self.weight, inputs[0].ndim)


@dataclass(frozen=True, eq=False, repr=False)
class BatchNorm2d(Displayed):
    """``y = weight (x - mean) / sqrt(var + eps) + bias`` per channel, with the statistics of training; all ``[C]``."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    def run(self, *inputs: Tensor) -> Tensor:
        return F.batch_norm(inputs[0], self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


@dataclass(frozen=True, eq=False, repr=False)
class Affine(Displayed):
    """``y = weight x + bias`` per channel, constants of the source network; both ``[C]``."""

    weight: Tensor
    bias: Tensor

    def run(self, *inputs: Tensor) -> Tensor:
        ndim = inputs[0].ndim
        return inputs[0] * per_channel(self.weight, ndim) + per_channel(self.bias, ndim)


def rectified(x: Tensor, limit: Tensor | None) -> Tensor:
    """``max(x, 0)`` of ``[B, C, *]``, and at most the limit, 0-dimensional or ``[C]``, if there is one."""
    return F.relu(x) if limit is None else torch.minimum(F.relu(x), per_channel(limit, x.ndim))


@dataclass(frozen=True, eq=False, repr=False)
class ReLU(Displayed):
    """``y = max(x, 0)``, or ``min(max(x, 0), limit)``: ReLU6, Hardtanh(0, a), PACT.

    Attributes:
        limit: positive and finite, 0-dimensional or ``[C]``; None: there is none.
    """

    limit: Tensor | None = None

    def run(self, *inputs: Tensor) -> Tensor:
        return rectified(inputs[0], self.limit)


@dataclass(frozen=True, eq=False, repr=False)
class QCFS(Displayed):
    """The ReLU of an ANN trained for conversion: :func:`s_resnet.kernels.surrogate.qcfs.qcfs`.

    Attributes:
        threshold: 0-dimensional.
        quantization_levels: L.
    """

    threshold: Tensor
    quantization_levels: int

    def run(self, *inputs: Tensor) -> Tensor:
        return qcfs(inputs[0], self.threshold, self.quantization_levels)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Displayed):
    """The sum of its inputs, which have one shape."""

    def run(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for other in inputs[1:]:
            total = total + other
        return total


@dataclass(frozen=True, eq=False, repr=False)
class MaxPool2d(Displayed):
    """The maximum over windows; padding counts as minus infinity."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)


@dataclass(frozen=True, eq=False, repr=False)
class AvgPool2d(Displayed):
    """The mean over windows: fixed synapses of weight 1 / window."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def run(self, *inputs: Tensor) -> Tensor:
        return F.avg_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveAvgPool2d(Displayed):
    """The mean over as many windows as ``output_size`` asks for; (1, 1) is the global mean."""

    output_size: Pair

    def run(self, *inputs: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(inputs[0], self.output_size)


@dataclass(frozen=True, eq=False, repr=False)
class Flatten(Displayed):
    """``[B, *] -> [B, features]``, channel-major."""

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(1)


@dataclass(frozen=True, eq=False, repr=False)
class Pad(Displayed):
    """Zero padding, as ``torch.nn.functional.pad`` takes it (last dimension first); shortcut A pads channels."""

    padding: tuple[int, ...]

    def run(self, *inputs: Tensor) -> Tensor:
        return F.pad(inputs[0], self.padding)


@dataclass(frozen=True, eq=False, repr=False)
class Slice(Displayed):
    """``x[:, a:b:c, ...]``: one (start, stop, step) per dimension after the batch; shortcut A subsamples space."""

    slices: tuple[tuple[int | None, int | None, int | None], ...]

    def run(self, *inputs: Tensor) -> Tensor:
        index = (slice(None), *(slice(*part) for part in self.slices))
        return inputs[0][index]


Synapse = Conv2d | Linear | Scale
SYNAPSES = (Conv2d, Linear, Scale)
# Operations that keep what a unit means: value and unit may be exchanged with them.
UNIT_PRESERVING = (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, Pad, Slice)
POOLS = (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d)


def propagate_unit(op: Op, unit: Tensor) -> Tensor:
    """The unit behind an operation that mixes no channels; padded channels stay zero in any unit."""
    if unit.ndim and isinstance(op, Pad) and len(op.padding) > 4:
        return F.pad(unit, op.padding[4:6], value=1.0)
    if unit.ndim and isinstance(op, Slice):
        return unit[slice(*op.slices[0])]
    return unit


def channels_last(x: Tensor) -> Tensor:
    """``x`` in channels_last when it is ``[B, C, H, W]``, else as it is: the layout that the convolutions run in."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
