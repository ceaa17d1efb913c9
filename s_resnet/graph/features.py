"""Features of a spiking network: what a node gives on average over the steps, in the units of the source network."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InvalidData
from ..kernels import per_channel
from .neuron import Neuron, Readout, SpikingMaxPool2d
from .ops import (
    SYNAPSES,
    UNIT_PRESERVING,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Input,
    MaxPool2d,
    Node,
    Op,
    carried,
    compensated,
    whole,
)

# The mean over the steps of what these give is what they give for the means of their inputs.
_AFFINE = (*SYNAPSES, Affine, BatchNorm2d, Add, *(kind for kind in UNIT_PRESERVING if kind is not MaxPool2d))
# What lies between a synapse and the neurons that set its unit.
_BETWEEN = (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Add, Flatten)


def check(nodes: Sequence[Node], wanted: Sequence[str]) -> None:
    """InvalidData for a name that no node has; the message lists near ones."""
    names = [node.name for node in nodes]
    if isinstance(wanted, str):
        raise InvalidData(f"features: got nodes={wanted!r}; expected a list of names. Pass [{wanted!r}].")
    for name in wanted:
        if name in names:
            continue
        layers = [node.name for node in nodes if isinstance(node.op, Neuron)]
        near = [layer for layer in layers if layer.startswith(f"{name}.")][-3:]
        near += [other for other in difflib.get_close_matches(str(name), names, 5, 0.5) if other not in near]
        raise InvalidData(
            f"features: got node {name!r}; expected {', '.join(near or [*layers[:2], '...', *layers[-2:]])}. "
            "Choose a node of the network: BatchNorm is part of its convolution, an addition of the neurons after it."
        )


class Sums:
    """Sums over the steps, ``[B, *]`` in float64, of the values from which the means of ``wanted`` follow."""

    def __init__(self, nodes: Mapping[str, Node], static: frozenset[str], wanted: Sequence[str], batch: int) -> None:
        self.batch, self.totals = batch, {name: torch.zeros(()) for name in _recorded(nodes, static, wanted)}

    def add(self, name: str, value: Tensor) -> None:
        """Add the steps of a node's value ``[S * B, *]``: an observer for :meth:`s_resnet.Graph.stream`."""
        if name in self.totals:
            steps = value.view(-1, self.batch, *value.shape[1:])
            self.totals[name] = self.totals[name].to(value.device) + steps.sum(0, dtype=torch.float64)

    def means(self, timesteps: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The mean of each of T steps."""
        return {name: (total / timesteps).to(dtype) for name, total in self.totals.items()}


def _recorded(nodes: Mapping[str, Node], static: frozenset[str], wanted: Sequence[str]) -> set[str]:
    """``wanted``, or in place of what is affine the nodes before; nothing of what is constant."""
    found: set[str] = set()
    todo = [name for name in wanted if name not in static]
    while todo:
        node = nodes[todo.pop()]
        if isinstance(node.op, _AFFINE):
            todo.extend(name for name in node.inputs if name not in static)
        else:
            found.add(node.name)
    return found


def features(
    nodes: Mapping[str, Node],
    users: Mapping[str, tuple[str, ...]],
    images: Tensor,
    means: dict[str, Tensor],
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """The mean of each wanted node over the steps, ``[B, *]``, in the source network's units.

    means: those of :class:`Sums`, as the engine has them; more are added to it.
    """
    integer = any(isinstance(node.op, Neuron) and node.op.integer is not None for node in nodes.values())
    found: dict[str, Tensor] = {}
    for name in wanted:
        value = _mean(nodes, name, images, means, integer)
        unit = worth(nodes, users, name).to(value)
        if unit.ndim and isinstance(nodes[name].op, Flatten):
            unit = unit.repeat_interleave(value.shape[1] // len(unit))
        found[name] = value * per_channel(unit, value.ndim)
    return found


def _mean(nodes: Mapping[str, Node], name: str, images: Tensor, means: dict[str, Tensor], integer: bool) -> Tensor:
    if name not in means:
        node = nodes[name]
        inputs = [_mean(nodes, before, images, means, integer) for before in node.inputs] or [images]
        means[name] = _spiking(node.op, inputs, integer)
    return means[name]


def _spiking(op: Op, inputs: list[Tensor], integer: bool) -> Tensor:
    """What a spiking run's operation gives for mean inputs."""
    if isinstance(op, SYNAPSES) and not integer:
        return compensated(op).run(*inputs)
    op = whole(op)
    if isinstance(op, Conv2d) and op.integer is not None and op.bias is not None:
        return replace(op, bias=None).run(*inputs) + op.bias.view(-1, 1, 1)
    return op.run(*inputs)


def worth(nodes: Mapping[str, Node], users: Mapping[str, tuple[str, ...]], name: str) -> Tensor:
    """What one unit of a node's value is worth in the source network's units, 0-dimensional or ``[C]``.

    Of spikes their layer's scale; of a current the scale of the neurons that integrate it, as the pass normalize made
    it; of the images and of the logits 1. Whole numbers of an integer network count parts of it.
    """
    op, inputs = nodes[name].op, nodes[name].inputs
    if isinstance(op, Neuron):
        return torch.ones(()) if op.scale is None else op.scale
    if isinstance(op, Input):
        return torch.tensor(1 / (op.grid or 1))
    if isinstance(op, (*UNIT_PRESERVING, SpikingMaxPool2d)):
        return carried(op, worth(nodes, users, inputs[0]))
    if isinstance(op, (*SYNAPSES, Add)):
        return _arriving(nodes, users, name)
    return torch.ones(())


def _arriving(nodes: Mapping[str, Node], users: Mapping[str, tuple[str, ...]], name: str) -> Tensor:
    """The unit in which the one reader of a current counts; with several readers normalize leaves the source's."""
    if len(users[name]) != 1:
        return torch.ones(())
    user = users[name][0]
    op = nodes[user].op
    if isinstance(op, Neuron):
        unit = torch.ones(()) if op.scale is None else op.scale
        return unit if op.integer is None else unit / op.integer
    if isinstance(op, Readout):
        return op.scale
    if isinstance(op, _BETWEEN):
        unit = _arriving(nodes, users, user)
        return unit if unit.ndim == 0 or not isinstance(op, Flatten) else torch.ones(())
    return torch.ones(())
