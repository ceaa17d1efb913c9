"""The operations with memory: the integrate-and-fire neuron, the gated max-pool and the readout.

``run`` is their analog meaning (ReLU, max-pool, identity). ``advance`` takes a chunk of ``S`` steps ``[S, B, *]`` and
the memory, and returns the chunk's output and the new memory; the memory passed in is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .errors import InvalidData
from .kernels import events, per_channel
from .kernels.events import Currents

Memory = tuple[Tensor, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Neuron:
    """An integrate-and-fire neuron layer; it emits ``threshold * spike`` (so plain spikes once the threshold is 1).

    The membrane starts at ``initial_potential * threshold`` and follows the equation in
    :func:`s_resnet.kernels.reference.integrate_and_fire`. It sums all its inputs, so a residual addition is implicit.

    threshold: positive, 0-dimensional (one for the layer) or ``[C]``.
    integer: the threshold in int32 ``[C]`` of an integer network: its runs count currents and membrane in whole units
    of 1 / integer of the threshold.
    Source: arXiv:1805.01352 (Hu, Tang, Pan): integrate-and-fire, reset by subtraction.
    """

    threshold: Tensor
    initial_potential: float = 0.0
    reset: str = "subtract"
    decay: float = 1.0
    integer: Tensor | None = None

    def __post_init__(self) -> None:
        _one_of("neuron: reset", self.reset, "subtract", "zero")

    def run(self, *inputs: Tensor) -> Tensor:
        """The analog meaning: ReLU of the sum of the inputs."""
        total = inputs[0]
        for other in inputs[1:]:
            total = total + other
        return F.relu(total)

    def start(self, example: Tensor) -> Memory:
        """The membrane before the first step, laid out as ``example`` ``[B, *]``: float32 or wider, or int32."""
        threshold = per_channel(self.threshold if self.integer is None else self.integer, example.ndim)
        if self.integer is not None:
            start = (self.initial_potential * threshold).round().to(torch.int32)
        else:
            start = self.initial_potential * threshold.to(torch.promote_types(threshold.dtype, torch.float32))
        return (torch.zeros_like(example, dtype=start.dtype) + start,)

    def advance(
        self,
        inputs: Sequence[Tensor | Currents],
        memory: Memory | None,
        shortcut: tuple[Tensor, Tensor] | None = None,
        *,
        bias: Tensor | None = None,
        spike_dtype: torch.dtype | None = None,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Integrate ``[S, B, *]`` currents into {0, 1} spikes; ``shortcut``: a branch to scale, (spikes, weight).

        bias, spike_dtype, counts: as in :func:`s_resnet.kernels.reference.integrate_and_fire`.
        """
        pending = next((current for current in inputs if isinstance(current, Currents)), None)
        others = [x.tensor() if isinstance(x, Currents) else x for x in inputs if x is not pending]
        first = pending if pending is not None else others.pop(0)
        (v,) = memory or self.start(first.empty() if isinstance(first, Currents) else first[0])
        branch: Tensor | None = None
        scale: Tensor | None = None
        if shortcut is not None:
            branch, scale = shortcut[0], per_channel(shortcut[1], v.ndim)
        elif others:
            branch = others.pop()
        if others:
            first = first.tensor() if isinstance(first, Currents) else first
            for other in others:
                first = first + other
        update: Callable[..., tuple[Tensor, Tensor]]
        if isinstance(first, Currents):
            update = partial(events.integrate_and_fire, first)
        else:
            # Double precision is for checking: the CUDA source has float32 and int32 membranes only.
            name = "reference" if v.is_cuda and v.dtype == torch.float64 else None
            update = partial(kernels.select(first.device, name)[1], first)
        spikes, v = update(
            v,
            threshold=per_channel(self.threshold if self.integer is None else self.integer, v.ndim),
            decay=self.decay,
            reset=self.reset,
            bias=bias,
            shortcut=branch,
            shortcut_scale=scale,
            spike_dtype=spike_dtype,
            counts=counts,
        )
        return spikes, (v,)

    def emit(self, spikes: Tensor) -> Tensor:
        """What the layer sends on, ``threshold * spike``, for spikes shaped ``[B, *]``."""
        return spikes * per_channel(self.threshold, spikes.ndim)


@dataclass(frozen=True, eq=False)
class SpikingMaxPool2d:
    """The paper's max-pool gate for spikes.

    With ``C_in`` the spike counts of the inputs and ``C_out`` those of the outputs, per step::

        o = maxpool(s);  C_in += s;  z = maxpool(C_in);  o = 0 where z <= C_out;  C_out += o

    so an output fires only while its count is below the largest count in its window. Inputs of one channel share one
    amplitude. Source: the SPooling layer of the released code of arXiv:1805.01352.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        """The analog meaning: max-pool."""
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def advance(self, inputs: list[Tensor], memory: Memory | None) -> tuple[Tensor, Memory]:
        """Gate ``[S, B, C, H, W]`` spikes; memory is the pair of counts (``C_in``, ``C_out``)."""
        (spikes,) = inputs
        pooled = []
        if memory is None:
            memory = (torch.zeros_like(spikes[0]), torch.zeros_like(self.run(spikes[0])))
        count_in, count_out = memory
        for s in spikes:
            count_in = count_in + s
            gate = self.run(count_in) > count_out
            o = self.run(s) * gate
            count_out = count_out + o
            pooled.append(o)
        return torch.stack(pooled), (count_in, count_out)


@dataclass(frozen=True, eq=False)
class Readout:
    """The answer after t steps, in the units of the source network's logits; ``I`` is the classifier's current.

    mode ``"current"``: ``scale / t * sum(I[1..t])``, the accumulated classifier current.
    mode ``"spikes"``: an integrate-and-fire layer of threshold 1 after the classifier, ``scale / t * (spike count +
    softmax(membrane))``, the score of the released code of arXiv:1805.01352; the softmax (< 1) only breaks ties.
    """

    scale: Tensor
    mode: str = "current"
    initial_potential: float = 0.0

    def __post_init__(self) -> None:
        _one_of("readout: mode", self.mode, "current", "spikes")

    def run(self, *inputs: Tensor) -> Tensor:
        """The analog meaning: the logits."""
        return inputs[0] * self.scale

    def advance(self, inputs: list[Tensor], memory: Memory | None) -> tuple[Tensor, Memory]:
        """``[S, B, N]`` currents to ``[S, B, N]`` answers; memory: the step count, the sum or count, the membrane."""
        (current,) = inputs
        if memory is None:
            zero = torch.zeros_like(current[0], dtype=torch.float64)
            memory = (zero.new_zeros(()), zero, zero + self.initial_potential)
        step, total, v = memory
        answers = []
        for now in current:
            step = step + 1
            if self.mode == "current":
                total = total + now
                answers.append(total / step * self.scale)
                continue
            v = v + now
            fired = v >= 1.0
            v, total = v - fired.to(v), total + fired
            answers.append((total + v.softmax(-1)) / step * self.scale)
        return torch.stack(answers).to(current.dtype), (step, total, v)


def _one_of(where: str, got: str, *expected: str) -> None:
    if got not in expected:
        raise InvalidData(f"{where}, got {got!r}; expected one of {', '.join(expected)}. Choose one of them.")


STATEFUL = (Neuron, SpikingMaxPool2d, Readout)
