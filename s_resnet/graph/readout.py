"""The other operations with memory: the gated max-pool and the readout; ``run`` and ``advance`` as for the neuron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidData, message
from ..runtime.display import Displayed
from .neuron import Memory, Neuron
from .ops import Pair


@dataclass(frozen=True, eq=False, repr=False)
class SpikingMaxPool2d(Displayed):
    """The paper's max-pool gate for spikes: an output keeps up with the largest spike count in its window.

    With ``C_in`` the spike counts of the inputs and ``C_out`` those of the outputs, per step::

        C_in += s;  z = maxpool(C_in);  o = z - C_out;  C_out += o

    For spikes in {0, 1} that is the paper's gate (``maxpool(s)`` where ``z > C_out``, else 0), since the largest count
    grows by one at most; for signed and multi-level spikes it is the same idea. Inputs of one channel share one
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
            highest = self.run(count_in)
            pooled.append(highest - count_out)
            count_out = highest
        return torch.stack(pooled), (count_in, count_out)


@dataclass(frozen=True, eq=False, repr=False)
class Readout(Displayed):
    """The answer after t steps, in the units of the source network's logits; ``I`` is the classifier's current.

    Mode ``"current"`` is the weighted mean of the classifier's current over ``j = 1 ... t``. Weights that are small at
    first make a delayed readout::

        scale * sum(w[j] I[j]) / sum(w[j]) + correction

    Mode ``"spikes"`` is an integrate-and-fire layer of threshold 1 after the classifier. The softmax (< 1) only breaks
    ties::

        scale / t * (spike count + softmax(membrane))

    Attributes:
        scale: the logit that a current, or a rate, of 1 stands for: one for all classes, or ``[N]``.
        mode: ``"current"`` or ``"spikes"``.
        initial_potential: of the membranes of mode ``"spikes"``, in thresholds.
        weights: ``[T]``, positive; the last one also counts for later steps. None weights all steps alike.
        correction: ``[N]``, added in spiking runs only; or None.

    Source: the released code of arXiv:1805.01352, for mode ``"spikes"``.
    """

    scale: Tensor
    mode: str = "current"
    initial_potential: float = 0.0
    weights: Tensor | None = None
    correction: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("current", "spikes"):
            expected = "one of current, spikes"
            raise InvalidData(message("readout", "mode", repr(self.mode), expected, "Use 'current', the mean current"))

    def run(self, *inputs: Tensor) -> Tensor:
        """The analog meaning: the logits."""
        return inputs[0] * self.scale

    def advance(self, inputs: list[Tensor], memory: Memory | None) -> tuple[Tensor, Memory]:
        """``[S, B, N]`` currents to ``[S, B, N]`` answers.

        Memory: the step count, the sum or count, the membrane, the sum of the weights.
        """
        (current,) = inputs
        if memory is None:
            zero = torch.zeros_like(current[0], dtype=torch.float64)
            memory = (zero.new_zeros(()), zero, zero + self.initial_potential, zero.new_zeros(()))
        step, total, v, weighed = memory
        answers = []
        for now, weight in zip(current, self._weights(step, len(current)), strict=True):
            step = step + 1
            if self.mode == "current":
                total, weighed = total + weight * now, weighed + weight
                answer = total / weighed * self.scale
                answers.append(answer if self.correction is None else answer + self.correction)
                continue
            v = v + now
            fired = v >= 1.0
            v, total = v - fired.to(v), total + fired
            answers.append((total + v.softmax(-1)) / step * self.scale)
        return torch.stack(answers).to(current.dtype), (step, total, v, weighed)

    def _weights(self, step: Tensor, steps: int) -> Tensor:
        """The weights of the next steps, float64 ``[S]``; looked up on the device, so that nothing waits for it."""
        if self.weights is None:
            return torch.ones(steps, dtype=torch.float64, device=step.device)
        at = (step.to(torch.int64) + torch.arange(steps, device=step.device)).clamp_max(len(self.weights) - 1)
        return self.weights.to(torch.float64)[at]


STATEFUL = (Neuron, SpikingMaxPool2d, Readout)
