"""The specification of the membrane update: a loop over time in plain torch.

Every other kernel has this signature and is compared with this function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InvalidData
from .. import check

LEVELS = 8  # so that every number of thresholds fits a byte, and bfloat16
SCHEDULES = ("streaming", "lagged", "phased")


def integrate_and_fire(
    current: Tensor,
    v: Tensor,
    *,
    threshold: Tensor,
    decay: float = 1.0,
    reset: str = "subtract",
    bias: Tensor | None = None,
    shortcut: Tensor | None = None,
    shortcut_scale: Tensor | None = None,
    spike_dtype: torch.dtype | None = None,
    counts: Tensor | None = None,
    levels: int = 1,
    emitted: Tensor | None = None,
    schedule: str = "streaming",
    after: Tensor | None = None,
    emitted_after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Integrate ``T`` steps of current into the membrane and fire.

    For t = 1 ... T, with ``I[t] = current[t] + bias[t] + shortcut_scale * shortcut[t]``, which is nothing for t > T::

        v[0] = v + I[1] + ... + I[d]        the delay d: 0 streaming, 1 lagged, T phased
        u[t] = decay * v[t-1] + I[t+d]
        k[t] = 1 if u[t] >= threshold else 0                     binary: levels = 1, without emitted
        k[t] = clamp(floor(u[t] / threshold), low[t], L)         every other alphabet, with L = 2^levels - 1
        v[t] = u[t] - threshold * k[t]      reset = "subtract"
        v[t] = u[t] * (1 - k[t])            reset = "zero", binary only

    ``spikes[t]`` is ``k[t]``. Without ``emitted`` no neuron takes anything back: ``low`` is 0. With it neurons are
    signed and remember: ``c[0] = emitted``, ``c[t] = c[t-1] + k[t]`` and ``low[t] = max(-L, -c[t-1])``, so that ``c``
    never falls below 0: a neuron takes back only what it has emitted, which makes its sum a ReLU of its charge. The
    caller carries ``emitted + spikes.sum(0, dtype=emitted.dtype)`` on.

    The quotient is rounded as IEEE division of the membrane's type does, and exact in an integer network; product and
    difference are rounded apart. A membrane that is not a number emits ``low``.

    The membrane is not clamped below. With ``decay = 1`` and ``reset = "subtract"`` charge is conserved:
    ``sum(I) = v[T] - v + threshold * sum(k)``. Steps are integrated in their order. The terms of
    a step: a streaming neuron adds current, bias and shortcut to the membrane one by one; one that waits adds their sum
    ``(current + shortcut) + bias``, since its membrane grows large meanwhile.

    All terms are converted to the membrane's dtype first: float32, whatever the narrower dtype of the currents; or
    int32 in an integer network, where every term is a whole number and ``decay`` is 1.

    Args:
        current: ``[T, B, *]``, charge per step, in the units of the threshold.
        v: ``[B, *]``, membrane potential before the first step; left as it is, unless ``after`` is the same tensor.
        threshold: positive, 0-dimensional or broadcastable to ``[B, *]``.
        decay: factor on the membrane per step; 1 is the integrate-and-fire neuron.
        reset: ``"subtract"`` (soft) or ``"zero"`` (hard).
        bias: current at every step, broadcastable to ``[B, *]``; or a row for each step, ``[T, 1, C, 1, ...]`` with as
            many axes as ``current``; or None.
        shortcut: ``[T, B, *]``, the shortcut branch: spikes ``k`` of any alphabet, or a current when it comes without a
            scale; or None.
        shortcut_scale: weight of the shortcut synapse, broadcastable to ``[B, *]``; None is 1.
        spike_dtype: of the spikes; by default the membrane's. It must hold every ``k``: uint8 none below 0, int8 none
            of 8 levels.
        counts: int32 ``[T, B]``; the number of spikes of each step and image is added to it. An emission is one spike
            for each power of two that ``abs(k)`` is the sum of, whether it gives or takes back.
        levels: 1 to 8 amplitudes 1, 2, 4, ... that a step may emit, in thresholds.
        emitted: ``[B, *]`` of the membrane's dtype, the sum of what each neuron emitted before, at least 0; left as it
            is, unless ``emitted_after`` is the same tensor. Given exactly for signed neurons.
        schedule: ``"streaming"``: a neuron fires at each step as it integrates it. ``"lagged"``: after one step more,
            with nothing to integrate at its last. ``"phased"``: T times, after it has integrated all T steps.
        after: where the membrane after step T is written, like ``v``; ``v`` itself: in place. None: a new tensor.
        emitted_after: of signed neurons, where ``emitted`` plus the sum of all ``k`` is written, like ``emitted``;
            ``emitted`` itself: in place. None: nowhere.

    Returns:
        spikes ``[T, B, *]``, whole numbers between ``low`` and ``L``, and the membrane ``[B, *]`` after step T.

    Raises:
        InvalidData: there are no such levels or no such schedule; an alphabet that is not binary comes with reset to
            zero, an ``emitted`` that is not like ``v``, or a ``spike_dtype`` that does not hold it; a neuron that waits
            has a decay; a bias has another number of rows; ``after`` is not like ``v``, or ``emitted_after``.

    Source: the If layer of the released code of Hu, Tang and Pan, "Spiking Deep Residual Network"
    (arXiv:1805.01352): reset by subtraction, firing at ``>=``, no lower clamp. Signed neurons that remember: Wang et
    al., "Signed Neuron with Memory" (IJCAI 2022), and the ST-BIF neuron of "SpikeZIP-TF" (ICML 2024). Amplitudes in
    powers of two from cascaded thresholds: H-MT (AAAI 2026).
    """
    spread = {"threshold": threshold, "bias": bias, "shortcut_scale": shortcut_scale}
    check.update(current, v, shortcut, spread, counts, (decay, reset))
    binary = check_alphabet(v, levels, emitted, reset, spike_dtype)
    check_results(v, after, emitted, emitted_after)
    steps, most, theta = len(current), 2**levels - 1, threshold.to(v)
    wait, rows = delay(schedule, steps, decay), by_step(bias, v, steps)
    after = torch.empty_like(v) if after is None else after
    spikes = current.new_empty(current.shape, dtype=spike_dtype or v.dtype)
    for now in range(steps + wait):
        if now < steps:
            charge, constant, branch = current[now].to(v.dtype), bias, None
            if bias is not None and rows:
                constant = bias[now]
            if shortcut is not None:
                branch = shortcut[now].to(v.dtype)
                branch = branch if shortcut_scale is None else branch * shortcut_scale
            if schedule == "streaming":
                v = (v if decay == 1.0 else decay * v) + charge
                v = v if constant is None else v + constant
                v = v if branch is None else v + branch
            else:
                charge = charge if branch is None else charge + branch
                v = v + (charge if constant is None else charge + constant)
        t = now - wait
        if t < 0:
            continue
        if binary:
            k = v >= threshold
            v = v - threshold * k if reset == "subtract" else v * ~k
        else:
            k = v // theta if v.dtype == torch.int32 else torch.floor(v / theta)
            low = v.new_zeros(()) if emitted is None else -emitted.clamp(max=most)
            k = torch.fmax(k, low).clamp(max=most)
            v = v - theta * k
            emitted = None if emitted is None else emitted + k
        spikes[t] = k
        if counts is not None:
            counts[t] += (k if binary else amplitudes(k, levels)).flatten(1).sum(1)
    if emitted is not None and emitted_after is not None:
        emitted_after.copy_(emitted)
    return spikes, after.copy_(v)


def delay(schedule: str, steps: int, decay: float = 1.0) -> int:
    """Steps that a neuron integrates before it may fire first, beyond the first of all.

    Raises:
        InvalidData: there is no such schedule, or it waits and has a decay.
    """
    if schedule not in SCHEDULES:
        raise InvalidData(
            f"kernel: schedule, got {schedule!r}; expected one of {', '.join(SCHEDULES)}. Choose one of them."
        )
    if schedule != "streaming" and decay != 1.0:
        raise InvalidData(
            f"kernel: decay, got {decay} for a {schedule} neuron; expected 1. Only a streaming one has a decay."
        )
    return {"streaming": 0, "lagged": 1, "phased": steps}[schedule]


def by_step(bias: Tensor | None, v: Tensor, steps: int) -> bool:
    """Whether the bias has a row for each step.

    Raises:
        InvalidData: it has rows, but not T.
    """
    if bias is None or bias.ndim <= v.ndim:
        return False
    if len(bias) != steps or bias.ndim > v.ndim + 1:
        raise InvalidData(
            f"kernel: bias, got {list(bias.shape)} for {steps} steps of a membrane {list(v.shape)}; expected one row "
            f"per step, [{steps}, 1, C, 1, ...]. Give the rows of these steps."
        )
    return True


def check_results(v: Tensor, after: Tensor | None, emitted: Tensor | None, emitted_after: Tensor | None) -> None:
    """Raises InvalidData where a result cannot be written as :func:`integrate_and_fire` says."""
    if emitted_after is not None and emitted is None:
        raise InvalidData(
            "kernel: emitted_after, got a tensor without emitted; expected None. Only signed neurons have a memory."
        )
    for name, result in (("after", after), ("emitted_after", emitted_after)):
        if result is None:
            continue
        if (result.shape, result.dtype, result.device) != (v.shape, v.dtype, v.device):
            raise InvalidData(
                f"kernel: {name}, got {result.dtype} {list(result.shape)} on {result.device}; expected the membrane's "
                f"{v.dtype} {list(v.shape)} on {v.device}. Allocate it with torch.empty_like."
            )
        if any(size > 1 and stride == 0 for size, stride in zip(result.shape, result.stride(), strict=True)):
            raise InvalidData(
                f"kernel: {name}, got strides {result.stride()}; expected a place for each neuron. Allocate it with "
                f"torch.empty_like."
            )


def amplitudes(k: Tensor, levels: int) -> Tensor:
    """How many powers of two each ``abs(k)`` is the sum of, in int32."""
    magnitude = k.abs().to(torch.int32)
    bits = [magnitude >> level & 1 for level in range(levels)]
    return torch.stack(bits).sum(0, dtype=torch.int32)


def check_alphabet(v: Tensor, levels: int, emitted: Tensor | None, reset: str, spike_dtype: torch.dtype | None) -> bool:
    """Whether the alphabet is the binary one.

    Raises:
        InvalidData: as :func:`integrate_and_fire` says.
    """
    if not 1 <= levels <= LEVELS:
        raise InvalidData(f"kernel: levels, got {levels}; expected 1 to {LEVELS}. Choose one of them.")
    if levels == 1 and emitted is None:
        return True
    if reset != "subtract":
        raise InvalidData(
            f"kernel: reset, got {reset!r} with {levels} levels{' and signs' if emitted is not None else ''}; expected "
            f"'subtract'. Reset to zero is for one level without signs."
        )
    if emitted is not None and (emitted.shape != v.shape or emitted.dtype != v.dtype):
        raise InvalidData(
            f"kernel: emitted, got {emitted.dtype} {list(emitted.shape)}; expected the membrane's {v.dtype} "
            f"{list(v.shape)}. Convert it."
        )
    dtype = spike_dtype or v.dtype
    if not dtype.is_floating_point and (
        dtype == torch.bool
        or torch.iinfo(dtype).max < 2**levels - 1
        or (emitted is not None and torch.iinfo(dtype).min == 0)
    ):
        raise InvalidData(
            f"kernel: spikes, got {dtype} for {levels} levels{' and signs' if emitted is not None else ''}; expected a "
            f"type that holds them. Use the membrane's."
        )
    return False
