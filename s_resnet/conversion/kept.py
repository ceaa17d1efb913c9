"""The values of both networks' layers on many images, in temporary files that are read image by image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..graph.alphabet import Differential
from ..graph.forms import spiking
from ..graph.neuron import Neuron
from ..graph.ops import Input
from ..simulation.lockstep import Pair, emitted
from .spill import Spill


class Shown:
    """The images, as both networks see them."""

    def __init__(self, op: Input, images: Tensor | Spill, steps: int) -> None:
        self._op, self._images, self._steps = spiking(op), images, steps

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, images: slice | Tensor) -> Pair:
        analog = self._images[images]
        return Pair(self._op.run(analog).expand(self._steps, *analog.shape), analog)


class Kept:
    """The spikes of a neuron layer, stored as bits, bytes or words, and the source's activations.

    Of layers that :func:`in_bits` stores as bits it takes the spikes themselves too, in uint8.

    Values come back bit for bit; feature maps come in the channels-last layout, which is fastest for convolutions.
    """

    def __init__(self, op: Neuron, timesteps: int, values: Iterable[Pair]) -> None:
        self._op, self._timesteps = op, timesteps
        self._spikes, self._analog = Spill(), Spill()
        for value in values:
            self._steps, self._shape = len(value.spiking), value.analog.shape[1:]
            self._spikes.append(self._packed(value))
            self._analog.append(_channels_behind(value.analog))

    def __len__(self) -> int:
        return len(self._analog)

    def __getitem__(self, images: slice | Tensor) -> Pair:
        analog = self.analog(images)
        spikes = self._steps_first(images, analog.dtype)
        if self._mean:
            spikes = spikes / self._timesteps
        sent = spikes if self._differential else emitted(self._op, spikes)
        return Pair(sent.view(self._steps, len(analog), *self._shape), analog)

    def analog(self, images: slice | Tensor) -> Tensor:
        """The source's activations ``[B, *]``."""
        return _channels_before(self._analog[images])

    def spikes(self, images: slice | Tensor) -> Tensor | None:
        """The spikes ``[S * B, *]`` of plain neurons as they are stored, uint8 in {0, 1}; None for others."""
        return self._steps_first(images, torch.uint8) if self._bits else None

    def _steps_first(self, images: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """What is stored of some images, ``[S * B, *]``."""
        stored = self._spikes[images]
        if self._bits:
            places = self._steps * self._shape.numel()
            bits = np.unpackbits(stored.cpu().numpy(), axis=1, count=places)
            stored = torch.from_numpy(bits).to(stored.device)
        order = self._shape if len(self._shape) != 3 else (*self._shape[1:], self._shape[0])
        steps = stored.view(len(stored), self._steps, *order).transpose(0, 1).to(dtype)
        return _channels_before(steps.flatten(0, 1))

    @property
    def _differential(self) -> bool:
        return isinstance(self._op.spikes, Differential)

    @property
    def _mean(self) -> bool:
        """Whether counts over T steps are kept, as mean rates."""
        return self._steps < self._timesteps and not self._differential

    @property
    def _bits(self) -> bool:
        return in_bits(self._op, self._steps, self._timesteps)

    def _packed(self, value: Pair) -> Tensor:
        """The spikes of all steps, packed per image."""
        spiking = _channels_behind(value.spiking.flatten(0, 1)).view(*value.spiking.shape[:2], -1)
        if self._bits:
            bits = (spiking != 0).transpose(0, 1).flatten(1)
            return torch.from_numpy(np.packbits(bits.cpu().numpy(), axis=1))
        if self._differential:
            return spiking.transpose(0, 1).contiguous()
        one = _channels_behind(self._op.scale_output(torch.ones_like(value.analog[:1]))).flatten(1)
        counts = (spiking / one * (self._timesteps if self._mean else 1)).round()
        largest = self._op.max_emission * (self._timesteps if self._mean else 1)
        fits = next(kind for kind in (torch.int8, torch.int16, torch.int32) if largest <= torch.iinfo(kind).max)
        return counts.to(fits).transpose(0, 1).contiguous()


def in_bits(op: Neuron, steps: int, timesteps: int) -> bool:
    """Whether a layer's values are spikes in {0, 1} of every step, and not means."""
    return op.binary and steps == timesteps


Values = Pair | Kept | Shown  # values on many images, indexed by image


def _channels_behind(value: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``[B, H, W, C]``; others as they are."""
    return value.permute(0, 2, 3, 1).contiguous() if value.ndim == 4 else value.contiguous()


def _channels_before(value: Tensor) -> Tensor:
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value
