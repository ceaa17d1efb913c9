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
from ..simulation.lockstep import Pair
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
        analog = _channels_before(self._analog[images])
        stored = self._spikes[images]
        if self._bits:
            places = self._steps * self._shape.numel()
            stored = torch.from_numpy(np.unpackbits(stored.cpu().numpy(), axis=1, count=places)).to(analog.device)
        order = self._shape if len(self._shape) != 3 else (*self._shape[1:], self._shape[0])
        spikes = stored.view(len(analog), self._steps, *order).transpose(0, 1).to(analog.dtype)
        spikes = _channels_before(spikes.flatten(0, 1))
        if self._mean:
            spikes = spikes / self._timesteps
        emitted = spikes if self._differential else self._op.scale_output(spikes)
        return Pair(emitted.view(self._steps, len(analog), *self._shape), analog)

    @property
    def _differential(self) -> bool:
        return isinstance(self._op.spikes, Differential)

    @property
    def _mean(self) -> bool:
        """Whether counts over T steps are kept, as mean rates."""
        return self._steps < self._timesteps and not self._differential

    @property
    def _bits(self) -> bool:
        return self._op.binary and not self._mean

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


Values = Pair | Kept | Shown  # values on many images, indexed by image


def _channels_behind(value: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``[B, H, W, C]``; others as they are."""
    return value.permute(0, 2, 3, 1).contiguous() if value.ndim == 4 else value.contiguous()


def _channels_before(value: Tensor) -> Tensor:
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value
