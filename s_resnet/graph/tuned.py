"""Networks for several T: the weights are shared, and for each other T the few numbers that differ are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InvalidData, message
from .alphabet import MultiThreshold
from .neuron import Neuron
from .normalize import normalized
from .ops import Node, Op
from .provenance.parts import STEPS
from .readout import Readout

MOST = 64  # T that one network is for
Numbers = Mapping[str, Tensor]  # by "node/field"
# What is fitted for a T once the weights are there. A threshold is in units of the one that its layer has.
DIFFER: Mapping[type[Op], tuple[str, ...]] = {
    Neuron: ("threshold", "correction"),
    Readout: ("weights", "correction"),
}


def check_tuned(tuned: Mapping[int, Numbers], own: int | None) -> None:
    """Check for which T there are numbers.

    Args:
        tuned: those for other T.
        own: the T of the network's own.

    Raises:
        InvalidData: one is no T, or the network does not say its own or has it twice.
    """
    if len(tuned) >= MOST:
        raise _invalid("tuned", f"numbers for {len(tuned)} other T", f"fewer than {MOST}")
    for steps in (*tuned, own):
        if type(steps) is not int or not 1 <= steps <= STEPS:
            raise _invalid("tuned", f"numbers for T = {steps!r}", f"whole numbers from 1 to {STEPS}")
    if own in tuned:
        raise _invalid("tuned", f"numbers for T = {own} beside the network's own", "those for other T")


def numbers_of(nodes: Iterable[Node]) -> dict[str, Tensor]:
    """The numbers of a network that differ from T to T."""
    found = {f"{node.name}/{name}": getattr(node.op, name) for node in nodes for name in DIFFER.get(type(node.op), ())}
    return {name: value for name, value in found.items() if value is not None}


def with_numbers(nodes: Iterable[Node], numbers: Numbers) -> tuple[Node, ...]:
    """The nodes with these numbers in place of their own; what is not among them, they do not have.

    Raises:
        InvalidData: a number is of no such node, or a neuron layer has no threshold, or cannot have another.
    """
    left, found = dict(numbers), []
    for node in nodes:
        names = DIFFER.get(type(node.op), ())
        own = {name: left.pop(f"{node.name}/{name}", None) for name in names}
        if isinstance(node.op, Neuron):
            _check_neuron(node.name, node.op, own["threshold"])
        found.append(replace(node, op=replace(node.op, **own)) if own else node)  # type: ignore[type-var]
    if left:
        raise _invalid(next(iter(left)), "a number for another T", "those of neuron layers and of the readout")
    return tuple(found)


def _check_neuron(name: str, op: Neuron, threshold: Tensor | None) -> None:
    """Check that a neuron layer can have another threshold.

    Raises:
        InvalidData: there is none, or other numbers hang on the threshold.
    """
    if threshold is None:
        raise _invalid(name, "no threshold for another T", "one")
    if op.integer is not None or op.surrogate is not None or isinstance(op.spikes, MultiThreshold):
        got = "numbers for another T, of whole numbers, several thresholds or a trained neuron"
        raise _invalid(name, got, "them for converted neurons in floating point")


def retuned(nodes: Sequence[Node], numbers: Numbers, device: torch.device) -> tuple[Node, ...]:
    """The nodes with these numbers, thresholds 1 again: what they were goes into the weights.

    Raises:
        InvalidData: the numbers do not fit.
    """
    return normalized(with_numbers(nodes, numbers), {}, device)


def nearest(fitted: Sequence[int], timesteps: int) -> int:
    """Of the T that there are numbers for, those to use for another: the largest that is not above it, else the first.

    A network runs on after its own T with the means of its currents. Read before it, its currents are not the ones that
    it was fitted with.
    """
    return max((steps for steps in fitted if steps <= timesteps), default=min(fitted))


def _invalid(where: str, got: str, expected: str) -> InvalidData:
    return InvalidData(message(where, "", got, expected, "Convert the network again"))
