"""Neurons that are trained: they fire as the others do, and pass a surrogate gradient back through their spikes.

:func:`fire_reference` is the specification, whose gradient autograd makes; :func:`fire` does the same in one pass
forward and one back, and keeps nothing but the current between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..display import Displayed
from ..errors import InvalidData
from . import native, surrogate_cuda, surrogate_host
from .surrogate_host import LEVELS, SURROGATES, Affine

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RESETS = ("subtract", "zero")


@dataclass(frozen=True, repr=False)
class Firing(Displayed):
    """What a layer of neurons does, the same for all of them; the fields are the arguments of :func:`fire`.

    Raises InvalidData, as there, for settings that are not possible.
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
            raise InvalidData(
                f"fire: thresholds, got {self.thresholds}; expected 1 to {LEVELS} positive numbers. Choose such."
            )
        for name, value, known in (("reset", self.reset, RESETS), ("surrogate", self.surrogate, SURROGATES)):
            if value not in known:
                raise InvalidData(
                    f"fire: {name}, got {value!r}; expected one of {', '.join(known)}. Choose one of them."
                )
        if not 0 < self.width < math.inf:
            raise InvalidData(f"fire: width, got {self.width}; expected a positive number. Choose such.")
        if not 0 <= self.decay <= 1:
            raise InvalidData(f"fire: decay, got {self.decay}; expected 0 to 1. Choose such.")
        if not math.isfinite(self.initial):
            raise InvalidData(f"fire: initial, got {self.initial}; expected a finite number. Choose such.")

    def check(self, current: Tensor) -> None:
        """Raise InvalidData, as :func:`fire` says, where this current is not possible."""
        if current.dtype not in TYPES:
            raise InvalidData(
                f"fire: current, got {current.dtype}; expected float32, float64, float16 or bfloat16. Convert it."
            )
        if current.ndim < 2 or len(current) == 0:
            raise InvalidData(
                f"fire: current, got {list(current.shape)}; expected [T, B, *] with at least one step. Reshape it."
            )

    def shape(self) -> tuple[float, float]:
        """The two numbers of the surrogate: what scales or bounds its argument, and its height at 0, or nearly so."""
        a = self.width
        return {"rectangle": (a / 2, 1 / a), "triangle": (1 / a, 1 / a), "arctan": (math.pi / 2 * a, a / 2)}.get(
            self.surrogate, (a, a)
        )


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


def fire_reference(
    current: Tensor,
    *,
    thresholds: tuple[float, ...],
    decay: float = 1.0,
    reset: str = "subtract",
    surrogate: str = "rectangle",
    width: float = 1.0,
    detach_reset: bool = True,
    initial: float = 0.0,
) -> Tensor:
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
        thresholds: K positive numbers, 1 to 8.
        decay: factor on the membrane per step, 0 to 1; 1 is the integrate-and-fire neuron.
        reset: ``"subtract"`` (soft) or ``"zero"`` (hard).
        surrogate: ``"rectangle"``, ``"triangle"``, ``"arctan"`` or ``"sigmoid"``.
        width: of the first two, in the units of the thresholds; the steepness of the last two.
        detach_reset: whether the gradient leaves out the reset.
        initial: membrane potential before the first step.

    Returns:
        spikes ``[T, B, *]``, whole numbers 0 to K in the type of the current.

    Raises:
        InvalidData: a setting or a current that is not as said here.

    Source: the neuron of MS-ResNet (arXiv:2112.08954) is ``thresholds=(0.5,), decay=0.25, reset="zero"`` with the
    rectangle of width 1, detached; multi-level firing (MLF, Feng et al., IJCAI 2022, arXiv:2210.06386) is
    ``thresholds=(0.6, 1.6, 2.6), decay=0.25, reset="zero"`` with the same rectangle, not detached. Their released code
    fires at ``>``; here it is ``>=``, as everywhere in this package.
    """
    firing = Firing(tuple(thresholds), decay, reset, surrogate, width, detach_reset, initial)
    firing.check(current)
    return _loop(current, firing)


def fire(
    current: Tensor,
    *,
    thresholds: tuple[float, ...],
    decay: float = 1.0,
    reset: str = "subtract",
    surrogate: str = "rectangle",
    width: float = 1.0,
    detach_reset: bool = True,
    initial: float = 0.0,
) -> Tensor:
    """Do what :func:`fire_reference` does, with its arguments, results and errors, fused over time.

    Between forward and backward nothing is kept but the current, whatever T and K: the membranes are computed again.
    The spikes and the gradient take the memory layout of the current's steps (channels_last stays channels_last). A
    gradient of the gradient is refused.

    float32 and float64 on the CPU go through C++, types of 16 bits as float32; all but float64 on a CUDA device through
    a kernel compiled at first use for this T and these levels. Where there is no compiler, plain torch does the same.
    """
    firing = Firing(tuple(thresholds), decay, reset, surrogate, width, detach_reset, initial)
    firing.check(current)
    spikes: Tensor = _Fire.apply(current, firing)
    return spikes


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, firing: Firing) -> Tensor:
        ctx.save_for_backward(current)
        ctx.firing = firing
        return run(current, None, firing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (current,) = ctx.saved_tensors
        return run(current, grad, ctx.firing), None


def run(current: Tensor, grad: Tensor | None, firing: Firing, affine: Affine | None = None) -> Tensor:
    """The spikes; or, given the gradient of the spikes, the gradient of the current.

    affine: ``[C]`` each, of ``[T, B, C, *]``: the current is ``affine[0] * current + affine[1]`` then, and the gradient
    is that of the result.
    """
    if current.device.type == "cpu" and native.compiled()[0] is not None:
        wide = current if current.dtype == torch.float64 else current.float()
        wide_grad = None if grad is None else grad.to(wide.dtype)
        return _fused(surrogate_host.run, wide, wide_grad, firing, affine).to(current.dtype)
    if current.device.type == "cuda" and surrogate_cuda.takes(current, firing):
        return _fused(surrogate_cuda.run, current, grad, firing, affine)
    if affine is not None:
        scale, shift = (value.view(-1, *(1,) * (current.ndim - 3)) for value in affine)
        return run((current * scale + shift).to(current.dtype), grad, firing)
    if grad is None:
        return _loop(current, firing)
    with torch.enable_grad():
        again = current.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_loop(again, firing), again, grad)
    return gradient


Run = Callable[[Tensor, Tensor | None, Tensor, Firing, Affine | None], None]


def _fused(how: Run, current: Tensor, grad: Tensor | None, firing: Firing, affine: Affine | None) -> Tensor:
    # empty_like is dense even where the step is not (expanded, or a slice); its strides are all that is wanted of it.
    first = torch.empty_like(current[0])
    if affine is not None and not first.movedim(1, -1).is_contiguous():
        first = first.contiguous()
    out = _steps(current, first.stride())
    if out.numel():
        placed = _in_step(current, first.stride())
        how(placed, None if grad is None else _in_step(grad, first.stride()), out, firing, affine)
    return out


def _steps(like: Tensor, strides: tuple[int, ...]) -> Tensor:
    """An uninitialized tensor like ``like``, whose steps follow each other and lie in memory as ``strides`` say."""
    return torch.empty_strided(like.shape, (like[0].numel(), *strides), dtype=like.dtype, device=like.device)


def _in_step(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``[T, B, *]`` whose steps follow each other and lie as ``strides`` say; steps that are one tensor stay one."""
    inside = zip(values.shape[1:], values.stride()[1:], strides, strict=True)
    if values.stride(0) in (0, values[0].numel()) and all(size == 1 or got == want for size, got, want in inside):
        return values
    steps = values[:1] if values.stride(0) == 0 else values
    return _steps(steps, strides).copy_(steps).expand(values.shape)


def _loop(current: Tensor, firing: Firing) -> Tensor:
    """What :func:`fire_reference` says."""
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
