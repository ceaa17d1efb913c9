"""What a neuron layer does to a chunk of steps: the one argument that every membrane kernel shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InvalidData, message
from ...runtime.display import Displayed

LEVELS = 8  # so that every number of thresholds fits a byte, and bfloat16
SCHEDULES = ("streaming", "lagged", "phased")
RESETS = ("subtract", "zero")


@dataclass(frozen=True, eq=False, repr=False)
class Update(Displayed):
    """What a neuron layer does to a chunk of ``T`` steps.

    The equation is that of :func:`s_resnet.kernels.membrane.reference.integrate_and_fire`.

    Attributes:
        threshold: positive, 0-dimensional or broadcastable to ``[B, *]``.
        decay: factor on the membrane per step; 1 is the integrate-and-fire neuron.
        reset: ``"subtract"`` (soft) or ``"zero"`` (hard).
        bias: current at every step, broadcastable to ``[B, *]``; or a row for each step, ``[T, 1, C, 1, ...]`` with as
            many axes as the currents; or None.
        shortcut: ``[T, B, *]``, the shortcut branch: spikes ``k`` of any alphabet, or a current when it comes without a
            scale; or None.
        shortcut_scale: weight of the shortcut synapse, broadcastable to ``[B, *]``; None is 1.
        levels: 1 to 8 amplitudes 1, 2, 4, ... that a step may emit, in thresholds.
        emitted: ``[B, *]`` of the membrane's dtype, the sum of what each neuron emitted before, at least 0; left as it
            is, unless ``emitted_after`` is the same tensor. Given exactly for signed neurons.
        schedule: ``"streaming"``: a neuron fires at each step as it integrates it. ``"lagged"``: after one step more,
            with nothing to integrate at its last. ``"phased"``: T times, after it has integrated all T steps.
        begins: of a lagged neuron, whether the chunk has the first step of its window, at which it only integrates.
        ends: of a lagged neuron, whether the chunk has the last step of its window, after which it fires once more; so
            that it fires ``T - begins + ends`` times.
        spike_dtype: of the spikes; by default the membrane's. It must hold every ``k``: uint8 none below 0, int8 none
            of 8 levels.
        counts: int32 ``[T, B]``, a row for each step at which it fires; the spikes of each step and image are added to
            it. An emission is one spike for each power of two that ``abs(k)`` is the sum of, whether it gives or takes
            back.
        after: where the membrane after step T is written, like ``v``; ``v`` itself: in place. None: a new tensor.
        emitted_after: of signed neurons, where ``emitted`` plus the sum of all ``k`` is written, like ``emitted``;
            ``emitted`` itself: in place. None: nowhere.

    Raises:
        InvalidData: there is no such reset, no such schedule or no such number of levels; an alphabet that is not
            binary comes with a reset to zero; a neuron that waits has a decay; ``emitted_after`` without ``emitted``.
    """

    threshold: Tensor
    decay: float = 1.0
    reset: str = "subtract"
    bias: Tensor | None = None
    shortcut: Tensor | None = None
    shortcut_scale: Tensor | None = None
    levels: int = 1
    emitted: Tensor | None = None
    schedule: str = "streaming"
    spike_dtype: torch.dtype | None = None
    counts: Tensor | None = None
    after: Tensor | None = None
    emitted_after: Tensor | None = None
    begins: bool = True
    ends: bool = True

    def __post_init__(self) -> None:
        if self.reset not in RESETS:
            raise wrong("reset", repr(self.reset), " or ".join(map(repr, RESETS)), "Use 'subtract', the default")
        if not 1 <= self.levels <= LEVELS:
            raise wrong("levels", self.levels, f"1 to {LEVELS}", "Use 1 for plain spikes")
        if not self.binary and self.reset != "subtract":
            got = f"{self.reset!r} with {self.alphabet}"
            raise wrong("reset", got, "'subtract'", "Reset to zero is for one level without signs")
        if self.schedule not in SCHEDULES:
            expected, remedy = f"one of {', '.join(SCHEDULES)}", "Use 'streaming', the default"
            raise wrong("schedule", repr(self.schedule), expected, remedy)
        if self.schedule != "streaming" and self.decay != 1.0:
            got = f"{self.decay} for a {self.schedule} neuron"
            raise wrong("decay", got, "1", "Only a streaming neuron has a decay")
        if self.emitted_after is not None and self.emitted is None:
            raise wrong("emitted_after", "a tensor without emitted", "None", "Only signed neurons have a memory")

    @property
    def binary(self) -> bool:
        """Whether a step's ``k`` is 0 or 1."""
        return self.levels == 1 and self.emitted is None

    @property
    def most(self) -> int:
        """L, the most thresholds that a step emits."""
        return (1 << self.levels) - 1

    @property
    def alphabet(self) -> str:
        """Levels and signs, in words."""
        return f"{self.levels} levels{' and signs' if self.emitted is not None else ''}"

    @property
    def whole(self) -> bool:
        """Whether the chunk is the window of a neuron that waits, or the neuron does not."""
        return self.schedule != "lagged" or (self.begins and self.ends)

    def wait(self, steps: int) -> int:
        """Steps of a chunk of ``steps`` that are integrated before the first at which the neuron fires."""
        return int(self.begins and steps > 0) if self.schedule == "lagged" else delay(self.schedule, steps)

    def answers(self, steps: int) -> int:
        """How many times the neuron fires in a chunk of ``steps``."""
        return steps - self.begins + self.ends if self.schedule == "lagged" else steps

    def by_step(self, v: Tensor) -> bool:
        """Whether the bias has a row for each step."""
        return self.bias is not None and self.bias.ndim > v.ndim


def delay(schedule: str, steps: int) -> int:
    """Steps that a neuron integrates before it may fire first, beyond the first of all."""
    return {"streaming": 0, "lagged": 1, "phased": steps}[schedule]


def wrong(what: str, got: object, expected: object, remedy: str) -> InvalidData:
    """The error of a kernel that was not given what it says."""
    return InvalidData(message("kernel", what, got, expected, remedy))
