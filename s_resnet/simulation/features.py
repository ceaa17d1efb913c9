"""Features of a spiking network: what a node gives on average over the steps, in the units of the source network."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.arguments import as_maps, check_dense, whole_number
from ..errors import InvalidData, message
from ..graph.engine import StreamSettings, Whole, arithmetic
from ..graph.graph import Graph, check_spiking
from ..graph.inputs import count_images
from ..graph.neuron import Neuron
from ..graph.ops import (
    SYNAPSES,
    UNIT_PRESERVING,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Flatten,
    Input,
    MaxPool2d,
    propagate_unit,
)
from ..graph.readout import Readout, SpikingMaxPool2d
from ..kernels import per_channel

# Affine operations: the mean of their outputs over the steps is their output for the mean input.
_AFFINE = (*SYNAPSES, Affine, BatchNorm2d, Add, *(kind for kind in UNIT_PRESERVING if kind is not MaxPool2d))
# Operations between a synapse and the neurons that set its unit.
_BETWEEN = (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Add, Flatten)


def features(
    snn: Graph, images: Tensor, timesteps: int, names: Sequence[str], precision: str = "exact"
) -> dict[str, Tensor]:
    """The mean values of nodes over T steps from a fresh state, in the units of the source network's activations.

    A neuron layer gives its rate::

        rate = sum_t scale * threshold * spikes_t / T

    Rates approach the source's ReLU as T grows. Any other node gives the mean of its current or value, without what a
    recipe adds at the neurons; the last node gives the answer.

    Args:
        snn: a network with neurons.
        images: ``[B, C, H, W]``; or events ``[T, B, C, H, W]``, where step t receives frame t.
        timesteps: T >= 1.
        names: names of nodes. They follow the calls in the source module: ``layer3.1.relu`` is the first call of that
            module (or of ``F.relu`` in ``layer3.1``), ``layer3.1.relu_1`` the second. A convolution includes the
            BatchNorm folded into it.
        precision: as in :class:`s_resnet.graph.StreamSettings`.

    Returns:
        ``[B, *]`` by name, in the order of ``names``; ``[B, N]`` for the last node.

    Raises:
        InvalidData: no node has the name, T is below 1, or images do not fit.
    """
    timesteps = whole_number(timesteps, "simulate", "timesteps")
    check_spiking(snn, "simulate")
    snn = snn.at(timesteps)
    _check_names(snn, names)
    check_dense(images, "simulate")
    images = as_maps(images)
    sizes = snn.portions(images, timesteps, precision)
    # An observer sees all images of a chunk at once, so they are split here.
    parts = [_portion(snn, part, timesteps, names, precision) for part in torch.split(images, sizes, -4)]
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def _portion(snn: Graph, images: Tensor, timesteps: int, names: Sequence[str], precision: str) -> dict[str, Tensor]:
    """The features of images that go through the layers together."""
    wanted = [name for name in names if name != snn.nodes[-1].name]
    sums = _Sums(_recorded(snn, wanted, constant=images.ndim == 4), count_images(images))
    with torch.no_grad(), arithmetic(images, tf32=False):
        for chunk in snn.stream(
            images, timesteps, settings=StreamSettings(precision=precision, observe=sums.add, whole=Whole(state=False))
        ):
            answer = chunk.outputs[-1]
        means = sums.means(timesteps, answer.dtype)
        running = snn.running()
        found = {name: _in_units(snn, name, _mean(running, name, images, means)) for name in wanted}
    return {name: found.get(name, answer) for name in names}


def _check_names(snn: Graph, wanted: Sequence[str]) -> None:
    """Check that nodes have these names.

    Raises:
        InvalidData: no node has a name; the message lists similar ones.
    """
    names = [node.name for node in snn.nodes]
    if isinstance(wanted, str):
        raise InvalidData(message("features", "names", repr(wanted), "a list of names", f"Pass [{wanted!r}]"))
    for name in wanted:
        if name in names:
            continue
        layers = [node.name for node in snn.neurons]
        near = [layer for layer in layers if layer.startswith(f"{name}.")][-3:]
        near += [other for other in difflib.get_close_matches(str(name), names, 5, 0.5) if other not in near]
        expected = ", ".join(near or [*layers[:2], "...", *layers[-2:]])
        remedy = "Name a node of the network: BatchNorm is part of its convolution, an addition of the neurons after it"
        raise InvalidData(message("features", "", f"node {name!r}", expected, remedy))


class _Sums:
    """Sums of some nodes' values over the steps, ``[B, *]`` in float64."""

    def __init__(self, names: set[str], batch: int) -> None:
        self.batch, self.totals = batch, {name: torch.zeros(()) for name in names}

    def add(self, name: str, value: Tensor) -> None:
        """Add the steps of a node's value ``[S * B, *]``: an observer for :meth:`s_resnet.Graph.stream`."""
        if name in self.totals:
            steps = value.view(-1, self.batch, *value.shape[1:])
            self.totals[name] = self.totals[name].to(value.device) + steps.sum(0, dtype=torch.float64)

    def means(self, timesteps: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The mean of each sum over T steps."""
        return {name: (total / timesteps).to(dtype) for name, total in self.totals.items()}


def _recorded(snn: Graph, wanted: Sequence[str], constant: bool) -> set[str]:
    """The nodes to record: ``wanted``, with affine nodes replaced by their inputs, without constants if images are."""
    static = snn.static if constant else frozenset[str]()
    found: set[str] = set()
    todo = [name for name in wanted if name not in static]
    while todo:
        node = snn[todo.pop()]
        if isinstance(node.op, _AFFINE):
            todo.extend(name for name in node.inputs if name not in static)
        else:
            found.add(node.name)
    return found


def _in_units(snn: Graph, name: str, value: Tensor) -> Tensor:
    """A node's value ``[B, *]`` in the source network's units."""
    unit = unit_of(snn, name).to(value)
    if unit.ndim and isinstance(snn[name].op, Flatten):
        unit = unit.repeat_interleave(value.shape[1] // len(unit))
    return value * per_channel(unit, value.ndim)


def _mean(running: Graph, name: str, images: Tensor, means: dict[str, Tensor]) -> Tensor:
    """The mean of a node over the steps, in the engine's units; adds the means that it needs to ``means``."""
    if name not in means:
        inputs = [_mean(running, before, images, means) for before in running[name].inputs] or [images]
        means[name] = running[name].op.run(*inputs)
    return means[name]


def unit_of(snn: Graph, name: str) -> Tensor:
    """What one unit of a node's value is worth in the source network's units, 0-dimensional or ``[C]``.

    For spikes it is the scale of their layer; for a current the scale of the neurons that integrate it, as set by the
    pass normalize; for the images and the logits 1. In an integer network one is a fraction of this unit.
    """
    op, inputs = snn[name].op, snn[name].inputs
    if isinstance(op, Neuron):
        return torch.ones(()) if op.scale is None else op.scale
    if isinstance(op, Input):
        return torch.tensor(1 / (op.grid or 1))
    if isinstance(op, (*UNIT_PRESERVING, SpikingMaxPool2d)):
        return propagate_unit(op, unit_of(snn, inputs[0]))
    if isinstance(op, (*SYNAPSES, Add)):
        return _arriving(snn, name)
    return torch.ones(())


def _arriving(snn: Graph, name: str) -> Tensor:
    """The unit of the one reader of a current; with several readers normalize keeps the source's unit."""
    if len(snn.users[name]) != 1:
        return torch.ones(())
    user = snn.users[name][0]
    op = snn[user].op
    if isinstance(op, Neuron):
        unit = torch.ones(()) if op.scale is None else op.scale
        return unit if op.integer is None else unit / op.integer.threshold
    if isinstance(op, Readout):
        return op.scale
    if isinstance(op, _BETWEEN):
        unit = _arriving(snn, user)
        return unit if unit.ndim == 0 or not isinstance(op, Flatten) else torch.ones(())
    return torch.ones(())
