"""Pass: weights on a grid of a power of two, so that float32 adds them exactly in any order, on any engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConversionError, message
from ...graph import forms
from ...graph.alphabet import Differential
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import (
    GRID,
    LARGEST_PIXEL,
    SYNAPSES,
    Add,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Op,
    Pad,
    Scale,
    Slice,
    SpikingWeights,
)
from ...graph.readout import SpikingMaxPool2d
from ..context import Context

FINEST = 16  # binary digits after the point, at most
EXACT = 24  # binary digits that float32 adds exactly
STEPS = 16  # a membrane within so many of the largest possible steps from zero is exact
MOVES = (MaxPool2d, SpikingMaxPool2d, Flatten, Pad, Slice)  # operations that pass values on unchanged
MIXES = (Flatten, Pad, Slice)  # those among them that may reorder channels


def dyadic_weights(graph: Graph, context: Context) -> Graph:
    """Round the weights, biases, corrections and v(0) of a neuron layer to multiples of ``2^-k``; thresholds are 1.

    One k holds for everything that a channel of a neuron layer sums. It is at most 16, and such that
    ``16 R 2^k <= 2^24``, where ``R = sum |W| + |b| + |correction|`` is the most that a step can add. Spikes are whole
    numbers, so all currents and the membrane are multiples of 2^-k, fewer than 2^24 of them. float32 adds these without
    rounding, and the order of additions cannot change a spike: kernels, devices and engines that compute in float32
    agree spike for spike. The images are read as whole multiples of 1/64 within +-8 (about the step of normalized 8-bit
    pixels); the first convolution's weights are finer by that factor, with a k for which its sums are exact.

    The analog run keeps the source's weights, and changes only by the rounding of biases. Answers stay in floating
    point.

    Args:
        graph: a normalized network.
        context: not used.

    Raises:
        ConversionError: neurons leak, have a threshold other than 1 (run normalize before), send means (differential),
            or receive anything but weighted spikes or images.
    """
    if not graph.neurons:
        return graph
    digits = {node.name: _digits(graph, node) for node in graph.neurons}
    nodes = tuple(replace(node, op=_rounded(graph, node, digits)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _digits(graph: Graph, node: Node) -> Tensor:
    """Binary digits after the point of all that a neuron layer sums, ``[C]``, or 0-dimensional for all channels."""
    op = node.op
    assert isinstance(op, Neuron)
    if not bool((op.threshold == 1).all()) or op.decay != 1.0 or isinstance(op.spikes, Differential):
        got = "a threshold other than 1, a leak or differential coding"
        remedy = "Run normalize before, or leave weights as they are"
        raise _refused(node, got, "a normalized integrate-and-fire network", remedy)
    reach, room = torch.zeros(()), EXACT - math.log2(STEPS)
    for source, kept in _summed(graph, node):
        synapse, most = source.op, _most(graph, source)
        assert isinstance(synapse, SYNAPSES)
        weight = most * forms.synapse(synapse).weight.abs()
        step = weight.flatten(1).sum(1) if weight.ndim > 1 else weight
        if isinstance(synapse, Conv2d | Linear) and synapse.bias is not None:
            step = step + synapse.bias.abs()
        reach = reach + (step if kept else step.max())
        if isinstance(_origin(graph, source).op, Input):
            room = EXACT - math.log2(GRID)
    if op.correction is not None:
        reach = reach + (op.correction.abs() if op.correction.ndim < 2 else op.correction.abs().amax(0))
    return (room - reach.clamp_min(2.0**-EXACT).log2()).floor().clamp_max(FINEST)


def _summed(graph: Graph, node: Node) -> Iterator[tuple[Node, bool]]:
    """The synapses that a neuron layer sums, and whether their channels are its own."""
    for name in node.inputs:
        source = graph[name]
        if isinstance(source.op, (*MOVES, Add)):
            own = not isinstance(source.op, MIXES)
            yield from ((synapse, kept and own) for synapse, kept in _summed(graph, source))
        elif isinstance(source.op, SYNAPSES):
            yield source, True
        else:
            got = f"current from {name}, {type(source.op).__name__}"
            raise _refused(node, got, "convolutions, linear layers and shortcut synapses")


def _origin(graph: Graph, node: Node) -> Node:
    """What a synapse reads, looking through operations that pass values on unchanged."""
    source = graph[node.inputs[0]]
    while isinstance(source.op, MOVES):
        source = graph[source.inputs[0]]
    return source


def _most(graph: Graph, node: Node) -> int:
    """The largest input of a synapse: 8 in steps of 1/64 for images, the largest amplitude for spikes."""
    source = _origin(graph, node)
    if isinstance(source.op, Input):
        return LARGEST_PIXEL
    if isinstance(source.op, Neuron):
        return source.op.max_emission
    raise _refused(node, f"input from {source.name}, {type(source.op).__name__}", "spikes or the images")


def _rounded(graph: Graph, node: Node, digits: Mapping[str, Tensor]) -> Op:
    op = node.op
    if isinstance(op, Input):
        return replace(op, grid=GRID)
    if isinstance(op, Neuron):
        places = digits[node.name]
        start = float(_to(torch.tensor(op.initial_potential), places.min()))
        correction = None if op.correction is None else _to(op.correction, places)
        return replace(op, initial_potential=start, correction=correction)
    if not isinstance(op, SYNAPSES):
        return op
    found, images = _digits_of(graph, node, digits), isinstance(_origin(graph, node).op, Input)
    if found is None and images:
        raise _refused(node, "the images, and no neuron layer that reads it", "one")
    if found is None:
        return op
    weight = forms.synapse(op).weight
    weight = _to(weight, found.view(-1, *(1,) * (weight.ndim - 1)) if weight.ndim > 1 and found.ndim else found)
    # The images come in whole numbers.
    op = replace(op, spiking=SpikingWeights(weight / GRID if images else weight))
    return op if isinstance(op, Scale) or op.bias is None else replace(op, bias=_to(op.bias, found))


def _digits_of(graph: Graph, node: Node, digits: Mapping[str, Tensor]) -> Tensor | None:
    """Binary digits after the point of a value: those of the neuron layers that sum it; None if there are none."""
    found: Tensor | None = None
    for name in graph.users[node.name]:
        user = graph[name]
        if isinstance(user.op, Neuron):
            one: Tensor | None = digits[name]
        else:
            one = _digits_of(graph, user, digits) if isinstance(user.op, (*MOVES, Add)) else None
            one = one.min() if one is not None and isinstance(user.op, MIXES) else one
        if one is not None:
            found = one if found is None else torch.minimum(found, one)
    return found


def _to(value: Tensor, digits: Tensor) -> Tensor:
    return (value * 2.0**digits).round() / 2.0**digits


def _refused(node: Node, got: str, expected: str, remedy: str = "Leave weights as they are") -> ConversionError:
    return ConversionError(message(node.name, "", got, expected, remedy))
