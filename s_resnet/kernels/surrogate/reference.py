"""The neuron with a gradient: its settings, its slope, and the loop over time that the fused kernels equal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidData, message
from ...runtime.display import Displayed

Affine = tuple[Tensor, Tensor]
LEVELS = 8  # as in surrogate.cpp
SURROGATES = ("rectangle", "triangle", "arctan", "sigmoid")  # in the order of surrogate.h
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RESETS = ("subtract", "zero")


@dataclass(frozen=True, repr=False)
class Firing(Displayed):
    """What a layer of neurons with a gradient does; the equation is that of :func:`fire_reference`.

    Attributes:
        thresholds: K positive numbers, 1 to 8.
        decay: factor on the membrane per step, 0 to 1; 1 is the integrate-and-fire neuron.
        reset: ``"subtract"`` (soft) or ``"zero"`` (hard).
        surrogate: ``"rectangle"``, ``"triangle"``, ``"arctan"`` or ``"sigmoid"``.
        width: of the first two, in the units of the thresholds; the steepness of the last two.
        detach_reset: whether the gradient leaves out the reset.
        initial: membrane potential before the first step.

    Raises:
        InvalidData: a setting is out of these ranges.
    """

    thresholds: tuple[float, ...]
    decay: float = 1.0
    reset: str = "subtract"
    surrogate: str = "rectangle"
    width: float = 1.0
    detach_reset: bool = True
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.thresholds) <= LEVELS or not all(0 < theta < math.inf for theta in self.thresholds):
            raise _invalid("thresholds", self.thresholds, f"1 to {LEVELS} positive numbers", "Use (1.0,) for one")
        for name, value, known in (("reset", self.reset, RESETS), ("surrogate", self.surrogate, SURROGATES)):
            if value not in known:
                raise _invalid(name, repr(value), f"one of {', '.join(known)}", f"Use {known[0]!r}, the default")
        if not 0 < self.width < math.inf:
            raise _invalid("width", self.width, "a positive number", "Use 1.0, the default")
        if not 0 <= self.decay <= 1:
            raise _invalid("decay", self.decay, "0 to 1", "Use 1.0 for no leak")
        if not math.isfinite(self.initial):
            raise _invalid("initial", self.initial, "a finite number", "Use 0.0, the default")

    def check(self, current: Tensor) -> None:
        """Check that a current can be fired on.

        Raises:
            InvalidData: its type or shape does not fit.
        """
        if current.dtype not in TYPES:
            raise _invalid("current", current.dtype, "float32, float64, float16 or bfloat16", "Convert it")
        if current.ndim < 2 or len(current) == 0:
            raise _invalid("current", list(current.shape), "[T, B, *] with at least one step", "Reshape it")

    def shape(self) -> tuple[float, float]:
        """The two numbers of the surrogate: what scales or bounds its argument, and its height at 0, or nearly so."""
        a = self.width
        return {"rectangle": (a / 2, 1 / a), "triangle": (1 / a, 1 / a), "arctan": (math.pi / 2 * a, a / 2)}.get(
            self.surrogate, (a, a)
        )


def _invalid(what: str, got: object, expected: str, remedy: str) -> InvalidData:
    return InvalidData(message("fire", what, got, expected, remedy))


def slope(x: Tensor, firing: Firing) -> Tensor:
    """The surrogate derivative of the step function at ``x``, the membrane potential above the threshold.

    With ``a = width``::

        rectangle   1 / a  where |x| < a / 2, else 0
        triangle    max(0, 1 - |x| / a) / a
        arctan      (a / 2) / (1 + (pi / 2 * a * x)^2)          the derivative of arctan(pi / 2 * a * x) / pi
        sigmoid     a * sigmoid(a * x) * (1 - sigmoid(a * x))   the derivative of sigmoid(a * x)

    The area under each is 1. The width of the first two is in the units of ``x``, of the last two it is the steepness.
    """
    inside, height = firing.shape()
    if firing.surrogate == "rectangle":
        return (x.abs() < inside).to(x.dtype) * height
    if firing.surrogate == "triangle":
        return (1 - x.abs() * inside).clamp(min=0) * height
    if firing.surrogate == "arctan":
        return height / (1 + (x * inside) ** 2)
    return height * torch.sigmoid(inside * x) * torch.sigmoid(-inside * x)


class _Step(torch.autograd.Function):
    """The step function, which is 1 at 0; backwards its surrogate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, firing: Firing) -> Tensor:
        ctx.save_for_backward(x)
        ctx.firing = firing
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * slope(x, ctx.firing), None


def fire_reference(current: Tensor, firing: Firing) -> Tensor:
    """Fire for ``T`` steps of current, differentiably: a loop over time in plain torch.

    Each of the K levels has a threshold and a membrane of its own, and all receive the same current. For level k and
    t = 1 ... T::

        u_k[t] = decay * w_k[t-1] + I[t]                        w_k[0] = initial
        s_k[t] = 1 if u_k[t] >= threshold_k else 0
        w_k[t] = u_k[t] - threshold_k * s_k[t]                  reset = "subtract"
        w_k[t] = u_k[t] * (1 - s_k[t])                          reset = "zero"
        spikes[t] = s_1[t] + ... + s_K[t]

    Backwards ``ds/du`` is the surrogate at ``u_k[t] - threshold_k``, see :func:`slope`. Where ``detach_reset`` the
    ``s`` in the reset is a constant; else the gradient flows through it as well.

    Args:
        current: ``[T, B, *]``, charge per step, in the units of the thresholds. Types of 16 bits are computed in
            float32, and their spikes come back in their own type.
        firing: what the neurons do.

    Returns:
        spikes ``[T, B, *]``, whole numbers 0 to K in the type of the current.

    Raises:
        InvalidData: a current that is not as said here.

    Source: the neuron of MS-ResNet (arXiv:2112.08954) is ``thresholds=(0.5,), decay=0.25, reset="zero"`` with the
    rectangle of width 1, detached; multi-level firing (MLF, Feng et al., IJCAI 2022, arXiv:2210.06386) is
    ``thresholds=(0.6, 1.6, 2.6), decay=0.25, reset="zero"`` with the same rectangle, not detached. Their released code
    fires at ``>``; here it is ``>=``, as everywhere in this package.
    """
    firing.check(current)
    wide = current if current.dtype == torch.float64 else current.float()
    w = [torch.full_like(wide[0], firing.initial) for _ in firing.thresholds]
    spikes = []
    for now in wide:
        fired = []
        for k, theta in enumerate(firing.thresholds):
            u = firing.decay * w[k] + now
            s = _Step.apply(u - theta, firing)
            held = s.detach() if firing.detach_reset else s
            w[k] = u - theta * held if firing.reset == "subtract" else u * (1 - held)
            fired.append(s)
        spikes.append(torch.stack(fired).sum(0) if len(fired) > 1 else fired[0])
    return torch.stack(spikes).to(current.dtype)
