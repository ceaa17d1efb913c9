"""What a neuron layer loses against the source network, split by cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import ops
from ..graph.alphabet import Differential
from ..graph.neuron import Neuron
from ..kernels import per_channel
from ..simulation.lockstep import fire_mean
from .measured_on import check_labels

PARTS = ("unevenness", "quantization", "clipping", "inherited")
ROUNDED = 2.0**-20  # shares of a limit by which a full scale that equals it may differ from it
MEASURES = (*PARTS, "own", "total")


@dataclass(frozen=True, eq=False)
class Split:
    """What a neuron layer loses per neuron and image, ``[B, *]`` in float64; :func:`split` defines the symbols.

    Attributes:
        output: r.
        source: a.
        counts: N.
        unevenness: the first part.
        quantization: the second part.
        clipping: the third part.
        inherited: the fourth part.
        settled: whether N is the count that the total charge gives.
        saturated: whether N is the largest count, while a is larger still.
    """

    output: Tensor
    source: Tensor
    counts: Tensor
    unevenness: Tensor
    quantization: Tensor
    clipping: Tensor
    inherited: Tensor
    settled: Tensor
    saturated: Tensor


def split(op: Neuron, currents: Tensor, source: Tensor, timesteps: int) -> Split:
    """Split the error of a neuron layer against the source network into four parts that sum to it.

    N is the number of thresholds that the layer really emits in T steps, ``r = threshold N / T``, a the source's
    activation, z the mean over T of the layer's real current, correction included, and
    ``R = threshold max_emission`` its full scale::

        r - a = [r - Q(z)]                   unevenness: the same charge, evenly spread, would give another count
              + [Q(z) - clip(z, 0, R)]       quantization: T steps can express T max_emission + 1 values
              + [clip(z, 0, R) - ReLU(z)]    clipping: no value above R can be expressed
              + [ReLU(z) - a]                inherited: from the layers before; also what corrections change on purpose
        Q(z) = threshold / T * quantize(T z)

    Where the source's ReLU has a limit, so has that of this sum: what lies above it is no loss.

    The loss from a decay or a reset to zero counts as unevenness. A differential layer has no such Q: it is taken as
    ``Q(z) = r``, so quantization stands for both, and R is the most that it can reach.

    Args:
        op: the neuron layer.
        currents: ``[S, B, *]`` without the correction, as :func:`s_resnet.simulation.lockstep.lockstep` gives them.
        source: a, ``[B, *]``, in the same units.
        timesteps: T.
    """
    threshold = per_channel(op.threshold, source.ndim).double()
    charge = _charge(op, currents, timesteps)
    emitted = fire_mean(op, currents, timesteps).sum(0).double() * (timesteps / len(currents)) / threshold
    if isinstance(op.spikes, Differential):
        counts = worth = emitted
        cap = timesteps * op.max_emission * sum(1 / t for t in range(1, timesteps + 1))
    else:
        counts, worth = emitted.round(), op.quantize(charge, timesteps).double()
        cap = float(timesteps * op.max_emission)
    unit, mean, a = threshold / timesteps, charge.double() / timesteps, source.double()
    rectified = mean.clamp_min(0) if op.limit is None else ops.rectified(mean, op.limit.double())
    clipped = torch.minimum(rectified, unit * cap)
    return Split(
        output=unit * counts,
        source=a,
        counts=counts,
        unevenness=unit * (counts - worth),
        quantization=unit * worth - clipped,
        clipping=clipped - rectified,
        inherited=rectified - a,
        settled=counts == worth,
        saturated=(counts > cap - 0.5) & (a > unit * cap * (1 if op.limit is None else 1 + ROUNDED)),
    )


def _charge(op: Neuron, currents: Tensor, timesteps: int) -> Tensor:
    """T z, the charge that arrives within T steps, ``[B, *]``; for S = 1 < T in the arithmetic of the layer itself."""
    bias = op.bias_current(0, len(currents), currents.ndim)
    if len(currents) == 1 < timesteps:
        return (currents[0] if bias is None else currents[0] + bias) * timesteps
    charge = torch.zeros_like(currents[0], dtype=torch.float64)
    for now in currents:  # torch's own sum in another type would copy all steps
        charge += now
    if bias is not None:
        charge += bias.double().sum(0) if bias.ndim == currents.ndim else bias.double() * timesteps
    return charge


def losses(op: Neuron, currents: Tensor, source: Tensor, timesteps: int) -> Iterator[tuple[str, Tensor]]:
    """What a layer of a converted network loses, neuron by neuron and image by image; arguments as in :func:`split`.

    Yields:
        Names and values ``[B, *]``: ``emitted`` (thresholds in T steps), ``saturated`` and ``unsettled`` (1 where
        true), the squares of all ``MEASURES``, and ``signal``, the square of the source's activation.
    """
    parts = split(op, currents, source, timesteps)
    yield "emitted", parts.counts
    yield "saturated", parts.saturated.double()
    yield "unsettled", (~parts.settled).double()
    for name in PARTS:
        yield name, getattr(parts, name) ** 2
    yield "own", (parts.unevenness + parts.quantization + parts.clipping) ** 2
    yield "total", (parts.output - parts.source) ** 2
    yield "signal", parts.source**2


def relative(error: Tensor, signal: Tensor) -> Tensor:
    """The root of a quotient of squares: 0 where there is no error, infinite where only the signal is 0."""
    return torch.where(error == 0, 0.0, error / signal).sqrt()


def right(answers: Mapping[str, Tensor], labels: Tensor) -> dict[str, int]:
    """How many of the logits ``[B, N]`` are right, by name.

    Raises:
        InvalidData: a label is not a class of the network.
    """
    check_labels(labels, next(iter(answers.values())).shape[1], "verify")
    return {name: int((logits.argmax(1) == labels).sum()) for name, logits in answers.items()}
