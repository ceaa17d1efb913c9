"""What a neuron sends in one step, and the gradient that it was trained with: the parts of a Neuron.

Every alphabet knows its ``amplitudes`` n (a spike is one of 1, 2, ... 2^(n-1) thresholds), whether it is ``signed``
(it takes back what it has emitted in excess), and ``max_emission``, the most that one step emits: in thresholds, or in
spikes of multi-threshold firing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidData, message
from ..kernels.surrogate.reference import SURROGATES
from ..runtime.display import Displayed

MOST = 8  # amplitudes, and thresholds, at most: so that every number of them fits a byte


@dataclass(frozen=True, repr=False)
class Binary(Displayed):
    """Spikes of 0 and 1."""

    amplitudes: ClassVar[int] = 1
    signed: ClassVar[bool] = False
    max_emission: ClassVar[int] = 1


@dataclass(frozen=True, repr=False)
class Signed(Displayed):
    """Spikes of -1, 0 and 1; -1 takes back what was emitted in excess, and no more than that.

    Source: Wang et al., "Signed Neuron with Memory" (IJCAI 2022).
    """

    amplitudes: ClassVar[int] = 1
    signed: ClassVar[bool] = True
    max_emission: ClassVar[int] = 1


@dataclass(frozen=True, repr=False)
class Amplitudes(Displayed):
    """Spikes of several power-of-two amplitudes; :class:`Binary` and :class:`Signed` have one.

    Attributes:
        count: n, 2 to 8: a step emits up to ``2^n - 1`` thresholds, as a sum of 1, 2, ... 2^(n-1).
        signed: whether a step also takes back, down to ``-(2^n - 1)``, what was emitted in excess.
    """

    count: int
    signed: bool = False

    def __post_init__(self) -> None:
        _whole("amplitudes", self.count, 2)
        _flag("signed", self.signed)

    @property
    def amplitudes(self) -> int:
        """``count``, under the name that all alphabets have for it."""
        return self.count

    @property
    def max_emission(self) -> int:
        """``2^n - 1`` thresholds."""
        return (1 << self.count) - 1


@dataclass(frozen=True, repr=False)
class Differential(Displayed):
    """A step stands for the mean of all steps before it plus what it emits.

    The equation is that of :func:`s_resnet.kernels.membrane.differential.integrate_and_fire`.

    Attributes:
        count: n, 1 to 8 power-of-two amplitudes.
    """

    count: int = 1
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _whole("amplitudes", self.count, 1)

    @property
    def amplitudes(self) -> int:
        """``count``, under the name that all alphabets have for it."""
        return self.count

    @property
    def max_emission(self) -> int:
        """``2^n - 1`` thresholds beyond the mean."""
        return (1 << self.count) - 1


@dataclass(frozen=True, eq=False, repr=False)
class MultiThreshold(Displayed):
    """K membranes integrate the same current; each fires and resets by itself, and the sum of their spikes goes on.

    Attributes:
        thresholds: ``[K]`` ascending, 1 to 8 of them; the first is the neuron's ``threshold``.

    Source: multi-level firing, Feng et al. (arXiv:2210.06386).
    """

    thresholds: Tensor
    amplitudes: ClassVar[int] = 1
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        value = self.thresholds
        if not isinstance(value, Tensor) or value.ndim != 1 or not 1 <= len(value) <= MOST:
            got = list(value.shape) if isinstance(value, Tensor) else value
            raise InvalidData(
                message("neuron", "thresholds", got, f"a tensor of 1 to {MOST} of them", "Pass torch.tensor([...])")
            )

    @property
    def max_emission(self) -> int:
        """K spikes."""
        return len(self.thresholds)


Spikes = Binary | Signed | Amplitudes | Differential | MultiThreshold
SPIKES = (Binary, Signed, Amplitudes, Differential, MultiThreshold)


def power_of_two(amplitudes: int, signed: bool = False) -> Binary | Signed | Amplitudes:
    """The alphabet of n power-of-two amplitudes, of which one is plain spikes."""
    if amplitudes == 1 and not isinstance(amplitudes, bool):
        return Signed() if signed else Binary()
    return Amplitudes(amplitudes, signed)


@dataclass(frozen=True, repr=False)
class Surrogate(Displayed):
    """The gradient that a directly trained neuron was trained with.

    Attributes:
        shape: ``"rectangle"``, ``"triangle"``, ``"arctan"`` or ``"sigmoid"``, as
            :func:`s_resnet.kernels.surrogate.fire.fire` has them.
        width: in units of the threshold, positive; of ``"arctan"`` and ``"sigmoid"`` the steepness.
        detach_reset: whether no gradient passes through the reset.
    """

    shape: str
    width: float = 1.0
    detach_reset: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.shape, str) or self.shape not in SURROGATES:
            expected = f"one of {', '.join(SURROGATES)}"
            raise InvalidData(message("neuron", "surrogate", repr(self.shape), expected, "Use one that is implemented"))
        number = isinstance(self.width, int | float) and not isinstance(self.width, bool)
        if not (number and 0 < self.width < math.inf):
            raise InvalidData(
                message("neuron", "width of the surrogate", self.width, "a positive number", "Use 1.0, the usual one")
            )
        _flag("detach_reset", self.detach_reset)


def _whole(what: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        expected = f"a whole number from {least} to {MOST}"
        raise InvalidData(message("neuron", what, value, expected, f"Use {MOST} at most"))


def _flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidData(message("neuron", what, value, "true or false", "Use one of the two"))
