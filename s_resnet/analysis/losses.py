"""What a neuron layer loses against the source network, split by cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidData
from ..graph.neuron import Neuron
from ..kernels import per_channel
from ..simulation.lockstep import respond


@dataclass(frozen=True, eq=False)
class Split:
    """What a neuron layer loses, neuron by neuron and image by image: ``[B, *]``, float64, as :func:`split` says.

    counts: N. settled: whether N is what the total charge is worth. saturated: it is the largest, a is larger still.
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
    """Split the distance of a neuron layer from the source network into four parts that sum to it.

    With N the thresholds that it really emits in T steps, ``r = threshold N / T``, a the source's activation, z the
    mean over T of its real current, correction included, and ``R = threshold most`` its full scale::

        r - a = [r - Q(z)]                   unevenness: the same charge, evenly spread, would give another count
              + [Q(z) - clip(z, 0, R)]       quantization: T steps know T most + 1 values
              + [clip(z, 0, R) - ReLU(z)]    clipping: no more than R can be said
              + [ReLU(z) - a]                inherited: from the layers before; also what corrections change on purpose
        Q(z) = threshold / T * settled(T z)

    What a decay or a reset to zero loses counts as unevenness. A differential layer has no such Q: it is taken as
    ``Q(z) = r``, so quantization stands for both, and R is the most that it can reach.

    Args:
        op: the neuron layer.
        currents: ``[S, B, *]`` without its correction, as :func:`s_resnet.simulation.lockstep.lockstep` gives them.
        source: a, ``[B, *]``, in the same units.
        timesteps: T.
    """
    threshold = per_channel(op.threshold, source.ndim).double()
    charge = _charge(op, currents, timesteps)
    emitted = respond(op, currents, timesteps).sum(0).double() * (timesteps / len(currents)) / threshold
    if op.differential:
        counts = worth = emitted
        cap = timesteps * op.most * sum(1 / t for t in range(1, timesteps + 1))
    else:
        counts, worth = emitted.round(), op.settled(charge, timesteps).double()
        cap = float(timesteps * op.most)
    unit, mean, a = threshold / timesteps, charge.double() / timesteps, source.double()
    rectified = mean.clamp_min(0)
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
        saturated=(counts > cap - 0.5) & (a > unit * cap),
    )


def _charge(op: Neuron, currents: Tensor, timesteps: int) -> Tensor:
    """T z: all that arrives within T steps, ``[B, *]``; for S = 1 < T in the arithmetic in which the layer counts."""
    bias = op.correct(0, len(currents), currents.ndim)
    if len(currents) == 1 < timesteps:
        return (currents[0] if bias is None else currents[0] + bias) * timesteps
    charge = torch.zeros_like(currents[0], dtype=torch.float64)
    for now in currents:  # torch's own sum in another type would copy all steps
        charge += now
    if bias is not None:
        charge += bias.double().sum(0) if bias.ndim == currents.ndim else bias.double() * timesteps
    return charge


def by_channel(values: Iterable[Tensor]) -> Tensor:
    """The sums of values ``[B, C, *]``, ``[len(values), C]`` on the CPU."""
    return torch.stack([value.transpose(0, 1).flatten(1).sum(1) for value in values]).cpu()


def relative(error: Tensor, signal: Tensor) -> Tensor:
    """The root of a quotient of squares: 0 where there is no error, infinite where there is one of nothing."""
    return torch.where(error == 0, 0.0, error / signal).sqrt()


def right(answers: Mapping[str, Tensor], labels: Tensor) -> dict[str, int]:
    """How many of the logits ``[B, N]`` are right, by name. Raises InvalidData for labels that are no class."""
    classes = next(iter(answers.values())).shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise InvalidData(
            f"verify: got label {int(wrong[0])} for a network of {classes} classes; expected labels "
            f"0 ... {classes - 1}. Choose the data that the network was trained on."
        )
    return {name: int((logits.argmax(1) == labels).sum()) for name, logits in answers.items()}
