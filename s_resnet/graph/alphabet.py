"""What a neuron sends in one step, and the gradient that it was trained with: the parts of a Neuron.

Every alphabet knows its ``amplitudes`` n (a spike is one of 1, 2, ... 2^(n-1) thresholds), whether it is ``signed``
(it takes back what it has emitted in excess), and ``max_emission``, the most that one step emits: in thresholds, or in
spikes of multi-threshold firing and of copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidData, message
from ..kernels.surrogate.reference import SURROGATES
from ..runtime.display import Displayed

MOST = 8  # amplitudes, and thresholds, at most: so that every number of them fits a byte
COPIES = (3, 7)  # neurons in place of one: 2^n - 1, which kernels have as n amplitudes


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


@dataclass(frozen=True, repr=False)
class Copies(Displayed):
    """n plain neurons in place of one, which send spikes of 0 and 1 and differ in their initial potentials alone.

    Each has n times the threshold theta of this layer, resets by subtraction, receives the same currents, and starts at
    ``(p + i) theta``, with p the initial potential of the layer and i = 0 ... n - 1. Their membranes stay theta apart,
    so the lowest is that of one neuron of threshold theta which emits up to n thresholds per step, and as many of them
    fire as it emits. Over constant input this is Hermite's identity, ``sum_i floor(x + (i + 1/2) / n) =
    floor(n x + 1/2)``. The layer is run as that one neuron; its spikes are those of all n, each worth theta, and so is
    its cost (:mod:`s_resnet.analysis.cost.layers`). :func:`s_resnet.export.split_copies` writes all n.

    Attributes:
        count: n, 3 or 7.

    Source: Jiang et al., "Adaptive Fission" (NeurIPS 2025), which splits the most sensitive neurons alone, into groups
    of several scales; the identity is in Graham, Knuth, Patashnik, "Concrete Mathematics", 3.26.
    """

    count: int
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count not in COPIES:
            expected = " or ".join(map(str, COPIES))
            raise InvalidData(message("neuron", "copies", self.count, expected, "Use one of these, or Binary() for 1"))

    @property
    def amplitudes(self) -> int:
        """As many as kernels need to emit 0 to n thresholds."""
        return self.count.bit_length()

    @property
    def max_emission(self) -> int:
        """n spikes, one of each neuron."""
        return self.count


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


Spikes = Binary | Signed | Amplitudes | Differential | MultiThreshold | Copies
SPIKES = (Binary, Signed, Amplitudes, Differential, MultiThreshold, Copies)


def in_words(layers: Iterable[Spikes]) -> str:
    """What all layers of a network send: ``"binary"``, ``"signed"``, or what more there is, ``"signed, 4 levels"``.

    Of multi-threshold firing ``"3 firing levels"``; of copies ``"binary, 3 neurons for each"``.
    """
    found = tuple(layers)
    differential = any(isinstance(spikes, Differential) for spikes in found)
    levels = max((spikes.amplitudes for spikes in found if not isinstance(spikes, Copies)), default=1)
    words = ["signed"] if differential or any(spikes.signed for spikes in found) else []
    words += [f"{levels} levels"] if levels > 1 else []
    words += [f"{spikes.max_emission} firing levels" for spikes in found if isinstance(spikes, MultiThreshold)][:1]
    words += ["differential"] if differential else []
    copies = max((copies_of(spikes) for spikes in found), default=1)
    return ", ".join([*(words or ["binary"]), *([for_each(copies)] if copies > 1 else [])])


def copies_of(spikes: Spikes) -> int:
    """How many neurons stand for one."""
    return spikes.count if isinstance(spikes, Copies) else 1


def for_each(copies: int) -> str:
    """That in words."""
    return f"{copies} neurons for each"


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
