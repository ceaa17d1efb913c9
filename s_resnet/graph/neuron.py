"""The operations with memory: the integrate-and-fire neuron, the gated max-pool and the readout.

``run`` is their analog meaning (ReLU, max-pool, identity). ``advance`` takes a chunk of ``S`` steps ``[S, B, *]`` and
the memory, and returns the chunk's output and the new memory; the memory passed in is left as it is, unless a neuron is
told that it may write there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidData
from ..kernels import Update, per_channel
from ..kernels.events import Currents
from ..kernels.membrane import differential
from ..kernels.membrane.update import SCHEDULES, delay
from ..kernels.surrogate.qcfs import qcfs
from ..runtime.display import Displayed
from .execution import FASTEST, Execution, delayed, terms, total

Memory = tuple[Tensor, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Neuron(Displayed):
    """An integrate-and-fire neuron layer; it emits ``threshold * spike`` (so plain spikes once the threshold is 1).

    The membrane starts at ``initial_potential * threshold`` and follows the equation in
    :func:`s_resnet.kernels.membrane.reference.integrate_and_fire`. It sums all its inputs, so a residual addition is
    implicit.

    threshold: positive, 0-dimensional (one for the layer) or ``[C]``.
    integer: the threshold in int32 ``[C]`` of an integer network: its runs count currents and membrane in whole units
    of 1 / integer of the threshold.
    correction: current added in spiking runs only, so that the analog run stays the source network: 0-dimensional or
    ``[C]`` at every step, or ``[T, C]``, one row per step, and after step T their mean (a time-indexed bias).
    integer_correction: the same in units of the integer threshold, int32.
    schedule: when the layer fires within a window of T steps of input. ``"streaming"``: as it integrates.
    ``"lagged"``: one step later, so that it has seen one step more than it has answered; ``"phased"``: T steps later,
    when it has seen all. Everything downstream, shortcuts included, is later by as much, so values that meet belong to
    the same step. Both take the whole window at once.
    levels: n power-of-two amplitudes 1, 2, ... 2^(n-1) thresholds; a step emits up to :attr:`most` thresholds.
    signed: it also takes back, down to ``-most`` a step, what it has emitted in excess, and no more than that.
    differential: a step stands for the mean of all steps before plus what it emits
    (:func:`s_resnet.kernels.membrane.differential.integrate_and_fire`).
    scale: what one spike stands for in the units of the source network, 0-dimensional or ``[C]``; set by normalize.
    amplitude: what a spike sends on; None: the threshold.
    firing: ``[K]`` ascending thresholds of multi-level firing, the first of them ``threshold``: K membranes integrate
    the same current, each fires and resets by itself, and the sum of their spikes, 0 ... K, goes on.
    quantization: the levels L of a network trained with :class:`s_resnet.graph.ops.QCFS`; ``run`` is then that; 0:
    ReLU.
    surrogate, width, detach_reset: the gradient that a directly trained neuron was trained with
    (:func:`s_resnet.kernels.surrogate.fire.fire`); None for a converted one. Of a trained neuron ``run`` is its first
    step.
    Source: arXiv:1805.01352 (Hu, Tang, Pan): integrate-and-fire, reset by subtraction; arXiv:2210.06386 (Feng et al.):
    multi-level firing.
    """

    threshold: Tensor
    initial_potential: float = 0.0
    reset: str = "subtract"
    decay: float = 1.0
    integer: Tensor | None = None
    correction: Tensor | None = None
    integer_correction: Tensor | None = None
    schedule: str = "streaming"
    levels: int = 1
    signed: bool = False
    differential: bool = False
    scale: Tensor | None = None
    amplitude: float | None = None
    firing: Tensor | None = None
    quantization: int = 0
    surrogate: str | None = None
    width: float = 1.0
    detach_reset: bool = True

    def __post_init__(self) -> None:
        _one_of("neuron: reset", self.reset, "subtract", "zero")
        _one_of("neuron: schedule", self.schedule, *SCHEDULES)
        if not 1 <= self.levels <= 8:
            raise InvalidData(f"neuron: got levels={self.levels}; expected 1 ... 8. Choose fewer steps or more levels.")

    @property
    def most(self) -> int:
        """The most that a step emits: ``2^levels - 1`` thresholds, or K spikes of multi-level firing."""
        return (1 << self.levels) - 1 if self.firing is None else len(self.firing)

    @property
    def binary(self) -> bool:
        """Whether a step's spike is 0 or 1."""
        return self.levels == 1 and self.firing is None and not self.signed and not self.differential

    @property
    def unit(self) -> bool:
        """Whether its spikes are sent on as they are."""
        return bool((self.threshold == 1).all()) if self.amplitude is None else self.amplitude == 1

    def lag(self, timesteps: int) -> int:
        """Steps from the start of its input to its first chance to fire, beyond the streaming neuron's."""
        return delay(self.schedule, timesteps)

    def run(self, *inputs: Tensor) -> Tensor:
        """The analog meaning: ReLU or QCFS of the sum of the inputs; of a directly trained neuron its first step."""
        arrived = inputs[0]
        for other in inputs[1:]:
            arrived = arrived + other
        if self.quantization:
            return qcfs(arrived, per_channel(self.threshold * self.most, arrived.ndim), self.quantization)
        if self.surrogate is None:
            return F.relu(arrived)
        spikes, _ = self.advance([arrived[None]], None)
        return self.emit(spikes[0])

    def settled(self, charge: Tensor, timesteps: int) -> Tensor:
        """What it has emitted, in thresholds, once it has answered a total charge ``[B, *]`` of T steps exactly.

        ``N = clip(floor(v(0) / threshold + charge / threshold), 0, T most)``: the (T most + 1)-level quantizer.
        """
        count = torch.floor(self.initial_potential + charge / per_channel(self.threshold, charge.ndim))
        return count.clamp(0, timesteps * self.most)

    def correct(self, first: int, steps: int, ndim: int) -> Tensor | None:
        """The correction in steps ``first + 1 ... first + steps``, for currents ``[S, B, C, *]`` of ``ndim`` axes.

        ``[C, ...]`` where it is the same in all of them, else ``[S, 1, C, ...]``.
        """
        table = self.correction if self.integer is None else self.integer_correction
        if table is None:
            return None
        if table.ndim < 2:
            return per_channel(table, ndim - 1)
        rows = table[first : first + steps]
        if len(rows) < steps:
            mean = table.to(torch.float64).mean(0)
            after = mean.to(table.dtype) if table.is_floating_point() else mean.round().to(table.dtype)
            rows = torch.cat([rows, after.expand(steps - len(rows), -1)])
        return rows.view(steps, 1, -1, *(1,) * (ndim - 3))

    def start(self, example: Tensor) -> Memory:
        """The memory before the first step, laid out as ``example`` ``[B, *]``: float32 or wider, or int32.

        The membrane, one for each level of multi-level firing; of a signed neuron also the thresholds it has emitted.
        """
        threshold = per_channel(self.threshold if self.integer is None else self.integer, example.ndim)
        if self.integer is not None:
            start = (self.initial_potential * threshold).round().to(torch.int32)
        else:
            start = self.initial_potential * threshold.to(torch.promote_types(threshold.dtype, torch.float32))
        v = torch.zeros_like(example, dtype=start.dtype) + start
        if self.firing is not None:
            return tuple(v + self.initial_potential * (level - self.threshold) for level in self.firing)
        if self.differential:
            return v, torch.zeros_like(v), v.new_zeros(())
        return (v, torch.zeros_like(v)) if self.signed else (v,)

    def advance(
        self,
        inputs: Sequence[Tensor | Currents],
        memory: Memory | None,
        shortcut: tuple[Tensor, Tensor] | None = None,
        bias: Tensor | None = None,
        how: Execution = FASTEST,
    ) -> tuple[Tensor, Memory]:
        """Integrate ``[S, B, *]`` currents into spikes.

        Args:
            inputs: the currents, one at least.
            memory: after the steps before; None: :meth:`start`.
            shortcut: a branch to scale, (spikes, weight).
            bias: for ``[B, *]``, or ``[S, 1, C, ...]`` where it differs from step to step.
            how: how the steps are computed, and where the results go.
        """
        if memory is None:
            memory, how = self._start(inputs[0]), replace(how, in_place=True)
        v = memory[0]
        if self.firing is not None:
            return self._advance_levels(total(inputs, shortcut, bias, v.dtype), memory, how)
        if self.differential:
            return self._advance_differential(total(inputs, shortcut, bias, v.dtype), memory, how)
        current, branch, scale = terms(inputs, shortcut, v)
        emitted = memory[1] if self.signed else None
        update = self._update(how, v, bias=bias, shortcut=branch, shortcut_scale=scale, emitted=emitted)
        spikes, after = how.compute(current, v, update)
        return spikes, (after,) if update.emitted_after is None else (after, update.emitted_after)

    def _update(self, how: Execution, v: Tensor, **given: Tensor | None) -> Update:
        """What the layer does to a chunk, with the terms that it is given."""
        emitted = given.get("emitted")
        threshold = self.threshold if self.integer is None else self.integer
        return Update(
            per_channel(threshold, v.ndim),
            decay=self.decay,
            reset=self.reset,
            levels=self.levels,
            schedule=self.schedule,
            spike_dtype=how.spike_dtype,
            counts=how.counts,
            after=v if how.in_place else None,
            emitted_after=emitted if emitted is None or how.in_place else torch.empty_like(v),
            **given,
        )

    def _advance_levels(self, arrived: Tensor, memory: Memory, how: Execution) -> tuple[Tensor, Memory]:
        """Multi-level firing: the same currents into K membranes."""
        assert self.firing is not None
        fired = [
            how.compute(arrived, v, replace(self._update(how, v), threshold=threshold))
            for threshold, v in zip(self.firing, memory, strict=True)
        ]
        spikes = fired[0][0]
        for more, _ in fired[1:]:
            spikes = spikes + more
        return spikes, tuple(v for _, v in fired)

    def _advance_differential(self, arrived: Tensor, memory: Memory, how: Execution) -> tuple[Tensor, Memory]:
        v, currents = delayed(self.schedule, memory[0], arrived)
        threshold = per_channel(self.threshold if self.integer is None else self.integer, v.ndim)
        return differential.integrate_and_fire(
            currents, (v, *memory[1:]), threshold=threshold, levels=self.levels, counts=how.counts
        )

    def _start(self, first: Tensor | Currents) -> Memory:
        return self.start(first.empty() if isinstance(first, Currents) else first[0])

    def emit(self, spikes: Tensor) -> Tensor:
        """What the layer sends on, ``threshold * spike`` or ``amplitude * spike``, for spikes shaped ``[B, *]``."""
        if self.amplitude is not None:
            return spikes if self.amplitude == 1 else spikes * self.amplitude
        return spikes * per_channel(self.threshold, spikes.ndim)


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

    mode ``"current"``: ``scale * sum(w[j] I[j]) / sum(w[j]) + correction`` over ``j = 1 ... t``: the mean classifier
    current, weighted. Weights that are small at first make a delayed readout.
    mode ``"spikes"``: an integrate-and-fire layer of threshold 1 after the classifier, ``scale / t * (spike count +
    softmax(membrane))``, the score of the released code of arXiv:1805.01352; the softmax (< 1) only breaks ties.

    weights: ``[T]``, positive, the last one for the steps beyond; None weighs all steps alike.
    correction: ``[N]``, of spiking runs only, or None.
    """

    scale: Tensor
    mode: str = "current"
    initial_potential: float = 0.0
    weights: Tensor | None = None
    correction: Tensor | None = None

    def __post_init__(self) -> None:
        _one_of("readout: mode", self.mode, "current", "spikes")

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


def _one_of(where: str, got: str, *expected: str) -> None:
    if got not in expected:
        raise InvalidData(f"{where}, got {got!r}; expected one of {', '.join(expected)}. Choose one of them.")


STATEFUL = (Neuron, SpikingMaxPool2d, Readout)
