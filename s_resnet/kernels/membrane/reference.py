"""The specification of the membrane update: a loop over time in plain torch, without in-place operations.

It is the one place in Python where the equation is written. Every other kernel is compared with it, and what has to be
traced, as an exported program, runs it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import check
from .update import Update


def missing(device: torch.device) -> str | None:
    """Why it does not run on ``device``: it runs everywhere."""
    return None


def takes(current: Tensor, v: Tensor, update: Update) -> bool:
    """Whether it does this update: it does all."""
    return True


def integrate_and_fire(current: Tensor, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Integrate ``T`` steps of current into the membrane and fire.

    For t = 1 ... T, with ``I[t] = current[t] + bias[t] + shortcut_scale * shortcut[t]``, which is nothing for t > T::

        v[0] = v + I[1] + ... + I[d]        the delay d: 0 streaming, 1 lagged, T phased
        u[t] = decay * v[t-1] + I[t+d]
        k[t] = 1 if u[t] >= threshold else 0                     binary: levels = 1, without emitted
        k[t] = clamp(floor(u[t] / threshold), low[t], L)         every other alphabet, with L = 2^levels - 1
        v[t] = u[t] - threshold * k[t]      reset = "subtract"
        v[t] = u[t] * (1 - k[t])            reset = "zero", binary only

    A window of a lagged neuron may come in chunks: only the first has d = 1, and only the last fires once more than it
    integrates. ``spikes[t]`` is ``k[t]``. Without ``emitted`` no neuron takes anything back: ``low`` is 0. With it
    neurons are signed and remember: ``c[0] = emitted``, ``c[t] = c[t-1] + k[t]`` and ``low[t] = max(-L, -c[t-1])``, so
    that ``c`` never falls below 0: a neuron takes back only what it has emitted, which makes its sum a ReLU of its
    charge. The caller carries ``emitted + spikes.sum(0, dtype=emitted.dtype)`` on.

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
        v: ``[B, *]``, membrane potential before the first step; left as it is, unless ``update.after`` is the same
            tensor.
        update: what the layer does, and where results are written.

    Returns:
        spikes ``[T, B, *]``, whole numbers between ``low`` and ``L``, and the membrane ``[B, *]`` after step T. A part
        of a lagged window has as many steps of spikes as :meth:`Update.answers` says.

    Raises:
        InvalidData: tensors whose shapes, types or devices do not go together.

    Source: the If layer of the released code of Hu, Tang and Pan, "Spiking Deep Residual Network"
    (arXiv:1805.01352): reset by subtraction, firing at ``>=``, no lower clamp. Signed neurons that remember: Wang et
    al., "Signed Neuron with Memory" (IJCAI 2022), and the ST-BIF neuron of "SpikeZIP-TF" (ICML 2024). Amplitudes in
    powers of two from cascaded thresholds: H-MT (AAAI 2026).
    """
    check.membrane(current, v, update)
    dtype, emitted, fired, end = update.spike_dtype or v.dtype, update.emitted, [], v.clone()
    for k, membrane in steps(current, v, update):
        end = membrane
        if k is not None:
            fired.append(k)
            emitted = None if emitted is None else emitted + k
    spikes = torch.stack(fired).contiguous() if fired else v.new_empty(0, *v.shape)
    if update.counts is not None:
        each = spikes if update.binary else amplitudes(spikes, update.levels)
        update.counts.add_(each.flatten(2).sum(2, dtype=torch.int32))
    if emitted is not None and update.emitted_after is not None:
        update.emitted_after.copy_(emitted)
    return spikes.to(dtype), end if update.after is None else update.after.copy_(end)


def steps(current: Tensor, v: Tensor, update: Update) -> Iterator[tuple[Tensor | None, Tensor]]:
    """What the neurons emit at each of the ``T + d`` steps, None while they wait, and their membrane after it."""
    theta, emitted = update.threshold.to(v), update.emitted
    wait = update.wait(len(current))
    for now in range(wait + update.answers(len(current))):
        if now < len(current):
            v = _integrate(current[now], v, update, now)
        if now < wait:
            yield None, v
            continue
        if update.binary:
            k = v >= theta
        else:
            k = v // theta if v.dtype == torch.int32 else torch.floor(v / theta)
            low = v.new_zeros(()) if emitted is None else -emitted.clamp(max=update.most)
            k = torch.fmax(k, low).clamp(max=update.most)
            emitted = None if emitted is None else emitted + k
        v = v - theta * k if update.reset == "subtract" else v * ~k
        yield k, v


def _integrate(current: Tensor, v: Tensor, update: Update, now: int) -> Tensor:
    """The membrane after the terms of step ``now``."""
    charge, bias, branch = current.to(v.dtype), update.bias, None
    if bias is not None:
        bias = (bias[now] if update.by_step(v) else bias).to(v)
    if update.shortcut is not None:
        branch = update.shortcut[now].to(v.dtype)
        branch = branch if update.shortcut_scale is None else branch * update.shortcut_scale.to(v)
    if update.schedule == "streaming":
        v = (v if update.decay == 1.0 else update.decay * v) + charge
        v = v if bias is None else v + bias
        return v if branch is None else v + branch
    charge = charge if branch is None else charge + branch
    return v + (charge if bias is None else charge + bias)


def amplitudes(k: Tensor, levels: int) -> Tensor:
    """How many powers of two each ``abs(k)`` is the sum of, in int32."""
    magnitude = k.abs().to(torch.int32)
    bits = [magnitude >> level & 1 for level in range(levels)]
    return torch.stack(bits).sum(0, dtype=torch.int32)
