"""How a chunk of steps reaches a membrane kernel: the terms that it adds, and what computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..kernels import Update, per_channel
from ..kernels.layout import empty_steps
from ..kernels.pending import Currents, joined


@dataclass(frozen=True, eq=False)
class Execution:
    """How a chunk of steps of a neuron layer is computed, and where the results go.

    Attributes:
        spike_dtype: as of :class:`s_resnet.kernels.Update`.
        counts: as there.
        in_place: whether the memory may be overwritten with what is returned.
        begins: of a lagged layer, whether the chunk is the first of its window.
        ends: of a lagged layer, whether it is the last.
        kernel: what computes them; None: the fastest kernel that takes them.
    """

    spike_dtype: torch.dtype | None = None
    counts: Tensor | None = None
    in_place: bool = False
    begins: bool = True
    ends: bool = True
    kernel: Callable[[Tensor, Tensor, Update], tuple[Tensor, Tensor]] | None = None

    def compute(self, current: Tensor | Currents, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        """Spikes and membrane."""
        if self.kernel is None:
            return kernels.integrate_and_fire(current, v, update)
        if isinstance(current, Currents):
            current, update = current.in_memory(update)
        return self.kernel(current, v, update)


FASTEST = Execution()


def tensor(current: Tensor | Currents) -> Tensor:
    """The currents, computed where they are not yet."""
    return current.tensor() if isinstance(current, Currents) else current


def terms(
    inputs: Sequence[Tensor | Currents], shortcut: tuple[Tensor, Tensor] | None, v: Tensor
) -> tuple[Tensor | Currents, Tensor | None, Tensor | None]:
    """The terms that a kernel adds: a current, and a shortcut with or without its scale; the rest is added up before.

    One convolution may stay as it is, not computed yet; or two, where there is nothing else.
    """
    pending = next((index for index, x in enumerate(inputs) if isinstance(x, Currents)), 0)
    current, others = inputs[pending], [x for index, x in enumerate(inputs) if index != pending]
    branch, scale = (None, None) if shortcut is None else (shortcut[0], per_channel(shortcut[1], v.ndim))
    if shortcut is None and len(others) == 1 and isinstance(current, Currents) and isinstance(others[0], Currents):
        both = joined(current, others[0])
        if both is not None:
            return both, None, None
    if shortcut is None and others:
        branch = tensor(others.pop())
    for other in others:
        current = tensor(current).to(v.dtype) + tensor(other)
    return current, branch, scale


def total(
    inputs: Sequence[Tensor | Currents], shortcut: tuple[Tensor, Tensor] | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """All that arrives at the membrane, ``[S, B, *]``, in the membrane's ``dtype`` before anything is added."""
    parts = [tensor(x).to(dtype) for x in inputs]
    if shortcut is not None:
        spikes, weight = shortcut
        parts.append(spikes.to(dtype) * per_channel(weight.to(dtype), spikes.ndim - 1))
    if bias is not None:
        parts.append(bias.to(dtype))
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


def delayed(schedule: str, v: Tensor, current: Tensor, how: Execution = FASTEST) -> tuple[Tensor, Tensor]:
    """Membrane and currents at the first step at which the layer may fire; then nothing arrives at the last steps."""
    if schedule == "lagged":
        arrived = current[1:] if how.begins else current
        later = empty_steps(len(arrived) + how.ends, current[0], current.dtype)
        later[: len(arrived)] = arrived
        later[len(arrived) :] = 0
        return v + current[0] if how.begins else v, later
    if schedule == "phased":
        for now in current:  # in order, as a membrane does
            v = v + now
        return v, torch.zeros_like(current[:1]).expand(current.shape)
    return v, current
