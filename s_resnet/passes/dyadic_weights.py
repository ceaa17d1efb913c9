"""Pass: weights on a grid of a power of two, so that float32 adds them exactly in any order, on any engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..calibrate import Calibration
from ..errors import ConversionError
from ..graph import Graph
from ..neuron import Neuron, SpikingMaxPool2d
from ..ops import (
    GRID,
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
    compensated,
)

FINEST = 16  # binary digits behind the point, at most
EXACT = 24  # binary digits that float32 adds exactly
STEPS = 16  # worst steps that a membrane may be away from zero and still be exact
MOVES = (MaxPool2d, SpikingMaxPool2d, Flatten, Pad, Slice)  # what gives values on as they are


def dyadic_weights(graph: Graph, calibration: Calibration) -> Graph:
    """Round the weights, biases, corrections and v(0) of a neuron layer to multiples of ``2^-k``; thresholds are 1.

    k is one number for all that a neuron layer sums, at most 16 and such that with ``R = max_c (sum |W_c| + |b_c| +
    |correction_c|)``, what a step can bring at most, ``16 R 2^k <= 2^24``. Spikes are whole, so all currents and the
    membrane are multiples of 2^-k below 2^24 of them, float32 adds them without rounding, and no order of additions
    gives other spikes: kernels, devices and engines that work in float32 agree spike for spike. The images are read as
    whole multiples of 1/64 within +-8 (of the field's normalized 8-bit pixels about the step), the first convolution's
    weights are finer by that factor, and k is such that its sums are exact.

    The analog run keeps the source's weights, and changes by the rounding of biases. Answers stay in floating point.

    Raises ConversionError for neurons that leak, whose threshold is not 1 (run normalize before), that send means
    (differential), or whose inputs are not spikes or images times weights.
    """
    if not graph.neurons:
        return graph
    digits = {node.name: _digits(graph, node) for node in graph.neurons}
    nodes = tuple(replace(node, op=_rounded(graph, node, digits)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _digits(graph: Graph, node: Node) -> int:
    """Binary digits behind the point of all that a neuron layer sums."""
    op = node.op
    assert isinstance(op, Neuron)
    if not bool((op.threshold == 1).all()) or op.decay != 1.0 or op.differential:
        raise ConversionError(
            f"{node.name}: got a threshold other than 1, a leak or differential coding; expected a normalized "
            "integrate-and-fire network. Run normalize before, or leave weights as they are."
        )
    reach, images = torch.zeros(()), False
    for source in _summed(graph, node):
        synapse, most = source.op, _most(graph, source)
        assert isinstance(synapse, SYNAPSES)
        weight = most * compensated(synapse).weight.abs()
        reach = reach + (weight.flatten(1).sum(1) if weight.ndim > 1 else weight)
        if isinstance(synapse, Conv2d | Linear) and synapse.bias is not None:
            reach = reach + synapse.bias.abs()
        images = images or isinstance(graph[source.inputs[0]].op, Input)
    if op.correction is not None:
        reach = reach + (op.correction.abs() if op.correction.ndim < 2 else op.correction.abs().amax(0))
    room = EXACT - int(math.log2(GRID if images else STEPS))
    return min(FINEST, math.floor(room - math.log2(max(float(reach.max()), 2.0**-EXACT))))


def _summed(graph: Graph, node: Node) -> Iterator[Node]:
    """The synapses that a neuron layer sums."""
    for name in node.inputs:
        source = graph[name]
        if isinstance(source.op, (*MOVES, Add)):
            yield from _summed(graph, source)
        elif isinstance(source.op, SYNAPSES):
            yield source
        else:
            raise ConversionError(
                f"{node.name}: got current from {name}, {type(source.op).__name__}; expected convolutions, linear "
                "layers and shortcut synapses. Leave weights as they are."
            )


def _most(graph: Graph, node: Node) -> int:
    """The most that one input of a synapse can be: of the images within +-8, of spikes their largest amplitude."""
    source = graph[node.inputs[0]]
    while isinstance(source.op, MOVES):
        source = graph[source.inputs[0]]
    if isinstance(source.op, Input):
        return 8
    if isinstance(source.op, Neuron):
        return source.op.most
    raise ConversionError(
        f"{node.name}: got input from {source.name}, {type(source.op).__name__}; expected spikes or the images. Leave "
        "weights as they are."
    )


def _rounded(graph: Graph, node: Node, digits: Mapping[str, int]) -> Op:
    op = node.op
    if isinstance(op, Input):
        return replace(op, grid=GRID)
    if isinstance(op, Neuron):
        unit, correction = 2.0 ** digits[node.name], op.correction
        correction = None if correction is None else _to(correction, digits[node.name])
        return replace(op, initial_potential=round(op.initial_potential * unit) / unit, correction=correction)
    places = _digits_of(graph, node, digits) if isinstance(op, SYNAPSES) else None
    if places is None or not isinstance(op, SYNAPSES):
        return op
    weight = _to(compensated(op).weight, places)
    if isinstance(graph[node.inputs[0]].op, Input):
        weight = weight / GRID  # the images come in whole numbers
    op = replace(op, spiking_weight=weight, gain=1.0)
    return op if isinstance(op, Scale) or op.bias is None else replace(op, bias=_to(op.bias, places))


def _digits_of(graph: Graph, node: Node, digits: Mapping[str, int]) -> int | None:
    """Binary digits behind the point of a synapse: those of the coarsest neuron layer that reads it, None without."""
    found: list[int | None] = []
    for name in graph.users[node.name]:
        user = graph[name]
        if isinstance(user.op, Neuron):
            found.append(digits[name])
        elif isinstance(user.op, (*MOVES, Add)):
            found.append(_digits_of(graph, user, digits))
    return min((one for one in found if one is not None), default=None)


def _to(value: Tensor, digits: int) -> Tensor:
    return torch.ldexp((value * 2.0**digits).round(), torch.tensor(-digits))
