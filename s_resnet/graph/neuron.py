"""The integrate-and-fire neuron.

Like every operation with memory it has two meanings. ``run`` is the analog one, ReLU. ``advance`` takes a chunk of
``S`` steps ``[S, B, *]`` and the memory, and returns the chunk's output and the new memory; the memory passed in is
left as it is, unless the neuron is told that it may write there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.arguments import real_number
from ..errors import InvalidData, message
from ..kernels import Update, per_channel
from ..kernels.membrane import differential
from ..kernels.membrane.update import SCHEDULES, delay
from ..kernels.pending import Currents
from ..kernels.surrogate.qcfs import qcfs
from ..runtime.display import Displayed
from .alphabet import (
    SPIKES,
    Amplitudes,
    Binary,
    Copies,
    Differential,
    MultiThreshold,
    Signed,
    Spikes,
    Surrogate,
    copies_of,
)
from .execution import FASTEST, Execution, delayed, terms, total
from .ops import rectified

Memory = tuple[Tensor, ...]
Pair = tuple[int, int]
BINARY = Binary()


@dataclass(frozen=True, eq=False, repr=False)
class IntegerNeuron(Displayed):
    """A neuron in whole numbers: its runs count currents and membrane in units of 1 / ``threshold`` of the threshold.

    Attributes:
        threshold: int32 ``[C]``.
        correction: the neuron's correction in these units, int32, or None.
    """

    threshold: Tensor
    correction: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Neuron(Displayed):
    """An integrate-and-fire neuron layer; it emits ``threshold * spike`` (so plain spikes once the threshold is 1).

    The membrane starts at ``initial_potential * threshold`` and follows the equation in
    :func:`s_resnet.kernels.membrane.reference.integrate_and_fire`. It sums all its inputs, so a residual addition is
    implicit.

    Attributes:
        threshold: positive, 0-dimensional (one for the layer) or ``[C]``.
        initial_potential: v(0), in thresholds.
        reset: ``"subtract"`` or ``"zero"``.
        decay: factor on the membrane per step; 1 is the integrate-and-fire neuron.
        schedule: when the layer fires within a window of T steps of input. ``"streaming"``: as it integrates.
            ``"lagged"``: one step later, so that it has seen one step more than it has answered. ``"phased"``: T steps
            later, when it has seen all. Everything downstream, shortcuts included, is later by as much, so values that
            meet belong to the same step. The last two take the whole window at once.
        spikes: what a step may send (:mod:`s_resnet.graph.alphabet`).
        correction: current added in spiking runs only, so that the analog run stays the source network: 0-dimensional
            or ``[C]`` at every step, or ``[T, C]``, one row per step, and after step T their mean (a time-indexed
            bias).
        scale: what one spike stands for in the units of the source network, 0-dimensional or ``[C]``; set by normalize.
        amplitude: what a spike sends on; None: the threshold.
        quantization_levels: L of a network trained with :class:`s_resnet.graph.ops.QCFS`; ``run`` is then that; 0:
            ReLU.
        limit: that of the :class:`s_resnet.graph.ops.ReLU` that it stands for, 0-dimensional or ``[C]``, in the units
            of the threshold; None: there is none. Only ``run`` reads it: spiking runs keep to it because a step sends
            at most ``threshold max_emission``, which is no larger.
        surrogate: the gradient of a directly trained neuron; None for a converted one. The ``run`` of a trained neuron
            is its first step.
        integer: what runs of an integer network use; None: it is of no such network.

    Raises:
        InvalidData: these settings are of no neuron that a kernel has.

    Source: arXiv:1805.01352 (Hu, Tang, Pan): integrate-and-fire, reset by subtraction.
    """

    threshold: Tensor
    initial_potential: float = 0.0
    reset: str = "subtract"
    decay: float = 1.0
    schedule: str = "streaming"
    spikes: Spikes = BINARY
    correction: Tensor | None = None
    scale: Tensor | None = None
    amplitude: float | None = None
    quantization_levels: int = 0
    limit: Tensor | None = None
    surrogate: Surrogate | None = None
    integer: IntegerNeuron | None = None

    def __post_init__(self) -> None:
        for name in ("initial_potential", "decay"):
            if not math.isfinite(real_number(getattr(self, name))):
                raise _invalid(name, repr(getattr(self, name)), "a number")
        for name in ("threshold", "correction", "scale", "limit"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (value is not None or name == "threshold"):
                raise _invalid(name, repr(value), "a tensor")
        if self.surrogate is not None and not isinstance(self.surrogate, Surrogate):
            raise _invalid("surrogate", repr(self.surrogate), "a Surrogate")
        _one_of("reset", self.reset, "subtract", "zero")
        _one_of("schedule", self.schedule, *SCHEDULES)
        if not isinstance(self.spikes, SPIKES):
            raise _invalid("spikes", repr(self.spikes), f"one of {', '.join(kind.__name__ for kind in SPIKES)}")
        single = isinstance(self.spikes, Binary | MultiThreshold)
        if self.reset == "zero" and not single:
            raise _invalid("reset", f"'zero' for {self.alphabet} spikes", "'subtract'")
        if isinstance(self.spikes, MultiThreshold):
            if self.schedule != "streaming":
                raise _invalid("schedule", f"{self.schedule!r} for several thresholds", "'streaming'")
            if self.threshold.ndim:
                raise _invalid("threshold", f"{list(self.threshold.shape)} for several", "one number, the first")
        if self.integer is not None and not isinstance(self.spikes, Binary | Signed | Amplitudes):
            raise _invalid("integer", f"whole numbers for {self.alphabet} spikes", "binary, signed or multi-level ones")
        exact = isinstance(self.spikes, Differential | Copies)
        if self.decay != 1 and (self.integer is not None or self.waits or exact):
            got = f"{self.decay} for a neuron that waits, sends means, counts in whole numbers or has copies"
            raise _invalid("decay", got, "1")
        own = self.surrogate is not None or self.quantization_levels
        if self.limit is not None and (own or isinstance(self.spikes, Differential)):
            got = "one for a neuron that sends means, or has an activation of its own"
            raise _invalid("limit", got, "none: means have no upper limit, and trained activations their own")

    @property
    def max_emission(self) -> int:
        """The most that a step emits: thresholds, or spikes of several thresholds."""
        return self.spikes.max_emission

    @property
    def thresholds(self) -> tuple[Tensor, ...]:
        """Those of its membranes: K of several, else the one."""
        return tuple(self.spikes.thresholds) if isinstance(self.spikes, MultiThreshold) else (self.threshold,)

    @property
    def copies(self) -> int:
        """How many plain neurons it stands for: 1, or those of :class:`s_resnet.graph.Copies`."""
        return copies_of(self.spikes)

    @property
    def binary(self) -> bool:
        """Whether a step's spike is 0 or 1."""
        return isinstance(self.spikes, Binary)

    @property
    def membrane_dtype(self) -> torch.dtype:
        """float32 or wider; int32 of a threshold in whole numbers."""
        floating = self.threshold.is_floating_point()
        return torch.promote_types(self.threshold.dtype, torch.float32) if floating else torch.int32

    @property
    def waits(self) -> bool:
        """Whether it fires later than its input comes, so that it takes its window of T steps at once."""
        return self.schedule != "streaming"

    @property
    def alphabet(self) -> str:
        """What it sends, in words: ``"binary"``, ``"signed"``, ``"signed 2-level"``, ``"binary 3-copy"``..."""
        match self.spikes:
            case Binary():
                return "binary"
            case Signed():
                return "signed"
            case Amplitudes(count, signed):
                return f"{'signed ' if signed else ''}{count}-level"
            case Differential():
                return "differential"
            case MultiThreshold(thresholds):
                return f"{len(thresholds)}-threshold"
            case Copies(count):
                return f"binary {count}-copy"

    @property
    def emits_unit_spikes(self) -> bool:
        """Whether its spikes are sent on as they are."""
        return bool((self.threshold == 1).all()) if self.amplitude is None else self.amplitude == 1

    def delay(self, timesteps: int) -> int:
        """Steps from the start of its input to its first chance to fire, beyond the streaming neuron's."""
        return delay(self.schedule, timesteps)

    def run(self, *inputs: Tensor) -> Tensor:
        """The analog meaning: ReLU or QCFS of the sum of the inputs; of a directly trained neuron its first step."""
        arrived = inputs[0]
        for other in inputs[1:]:
            arrived = arrived + other
        if self.quantization_levels:
            full = per_channel(self.threshold * self.max_emission, arrived.ndim)
            return qcfs(arrived, full, self.quantization_levels)
        if self.surrogate is None:
            return rectified(arrived, self.limit)
        spikes, _ = self.advance([arrived[None]], None)
        return self.scale_output(spikes[0])

    def quantize(self, charge: Tensor, timesteps: int) -> Tensor:
        """What it has emitted, in thresholds, once it has answered a total charge ``[B, *]`` of T steps exactly.

        ``N = clip(floor(v(0) / threshold + charge / threshold), 0, T most)``: the (T most + 1)-level quantizer.
        """
        count = torch.floor(self.initial_potential + charge / per_channel(self.threshold, charge.ndim))
        return count.clamp(0, timesteps * self.max_emission)

    def bias_current(self, first: int, steps: int, ndim: int) -> Tensor | None:
        """The correction in steps ``first + 1 ... first + steps``, for currents ``[S, B, C, *]`` of ``ndim`` axes.

        ``[C, ...]`` where it is the same in all of them, else ``[S, 1, C, ...]``.
        """
        table = self.correction
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

        The membrane, one for each of several thresholds; of a signed neuron also the thresholds it has emitted.
        """
        threshold, dtype = per_channel(self.threshold, example.ndim), self.membrane_dtype
        if dtype == torch.int32:
            start = (self.initial_potential * threshold).round().to(dtype)
        else:
            start = self.initial_potential * threshold.to(dtype)
        v = torch.zeros_like(example, dtype=start.dtype) + start
        if isinstance(self.spikes, MultiThreshold):
            return tuple(v + self.initial_potential * (level - self.threshold) for level in self.spikes.thresholds)
        if isinstance(self.spikes, Differential):
            return v, torch.zeros_like(v), v.new_zeros(())
        return (v, torch.zeros_like(v)) if self.spikes.signed else (v,)

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
        if isinstance(self.spikes, MultiThreshold):
            return self._advance_levels(self.spikes, total(inputs, shortcut, bias, v.dtype), memory, how)
        if isinstance(self.spikes, Differential):
            return self._advance_differential(total(inputs, shortcut, bias, v.dtype), memory, how)
        current, branch, scale = terms(inputs, shortcut, v)
        emitted = memory[1] if self.spikes.signed else None
        several = isinstance(self.spikes, Copies)
        # Kernels count a spike for each power of two that a neuron emits; copies send one for each threshold.
        counted = replace(how, counts=None) if several else how
        update = self._update(counted, v, bias=bias, shortcut=branch, shortcut_scale=scale, emitted=emitted)
        spikes, after = how.compute(current, v, update)
        if several and how.counts is not None:
            how.counts.add_(spikes.sum(tuple(range(2, spikes.ndim)), dtype=torch.int32))
        return spikes, (after,) if update.emitted_after is None else (after, update.emitted_after)

    def _update(self, how: Execution, v: Tensor, **given: Tensor | None) -> Update:
        """What the layer does to a chunk, with the terms that it is given."""
        emitted = given.get("emitted")
        return Update(
            per_channel(self.threshold, v.ndim),
            decay=self.decay,
            reset=self.reset,
            levels=self.spikes.amplitudes,
            schedule=self.schedule,
            spike_dtype=how.spike_dtype,
            counts=how.counts,
            begins=how.begins,
            ends=how.ends,
            after=v if how.in_place else None,
            emitted_after=emitted if emitted is None or how.in_place else torch.empty_like(v),
            **given,
        )

    def _advance_levels(
        self, several: MultiThreshold, arrived: Tensor, memory: Memory, how: Execution
    ) -> tuple[Tensor, Memory]:
        """Multi-threshold firing: the same currents into K membranes."""
        fired = [
            # By index: what iterates over a tensor makes views of it, which a traced loop refuses.
            how.compute(arrived, v, replace(self._update(how, v), threshold=several.thresholds[k]))
            for k, v in enumerate(memory)
        ]
        spikes = fired[0][0]
        for more, _ in fired[1:]:  # in place, but where a kernel was asked for: the reference of a traced program
            spikes = spikes.add_(more) if how.kernel is None else spikes + more
        return spikes, tuple(v for _, v in fired)

    def _advance_differential(self, arrived: Tensor, memory: Memory, how: Execution) -> tuple[Tensor, Memory]:
        v, currents = delayed(self.schedule, memory[0], arrived, how)
        threshold = per_channel(self.threshold, v.ndim)
        return differential.integrate_and_fire(
            currents, (v, *memory[1:]), threshold=threshold, levels=self.spikes.amplitudes, counts=how.counts
        )

    def _start(self, first: Tensor | Currents) -> Memory:
        return self.start(first.empty() if isinstance(first, Currents) else first[0])

    def scale_output(self, spikes: Tensor) -> Tensor:
        """What the layer sends on, ``threshold * spike`` or ``amplitude * spike``, for spikes shaped ``[B, *]``."""
        if self.amplitude is not None:
            return spikes if self.amplitude == 1 else spikes * self.amplitude
        return spikes * per_channel(self.threshold, spikes.ndim)


def _one_of(what: str, got: str, *expected: str) -> None:
    if got not in expected:
        raise _invalid(what, repr(got), f"one of {', '.join(expected)}")


def _invalid(what: str, got: object, expected: str) -> InvalidData:
    return InvalidData(message("neuron", what, got, expected, "Change the settings of the neuron"))
