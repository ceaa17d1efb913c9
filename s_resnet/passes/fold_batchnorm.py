"""Pass: BatchNorm becomes part of the convolution before it, or a synapse of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..calibrate import Calibration
from ..graph import Graph
from ..ops import BatchNorm2d, Conv2d, Node


def fold_batchnorm(graph: Graph, calibration: Calibration) -> Graph:
    """Fold every BatchNorm; the network's function is preserved (to 1e-12 in float64).

    ``W_f = W * gamma / sqrt(var + eps)``, ``b_f = beta + (b - mean) * gamma / sqrt(var + eps)`` per output channel. A
    BatchNorm whose convolution has another reader, or that does not follow a convolution, becomes a depthwise 1x1
    convolution instead: nothing else may see the folded weights.
    """
    return folded(graph)


def folded(graph: Graph) -> Graph:
    """The pass, which needs no calibration."""
    found: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        if not isinstance(node.op, BatchNorm2d):
            found[node.name] = replace(node, inputs=inputs)
            continue
        before = graph[node.inputs[0]]
        if isinstance(before.op, Conv2d) and graph.users[before.name] == (node.name,):
            found[before.name] = replace(found[before.name], op=_fold(before.op, node.op))
            renamed[node.name] = before.name
        else:
            found[node.name] = Node(node.name, _as_convolution(node.op), inputs)
    if not renamed and all(found[node.name].op is node.op for node in graph.nodes):
        return graph
    return replace(graph, nodes=tuple(found.values()))


def _fold(conv: Conv2d, norm: BatchNorm2d) -> Conv2d:
    factor = norm.weight / torch.sqrt(norm.var + norm.eps)
    bias = norm.mean.new_zeros(()) if conv.bias is None else conv.bias
    return replace(conv, weight=conv.weight * factor.view(-1, 1, 1, 1), bias=norm.bias + (bias - norm.mean) * factor)


def _as_convolution(norm: BatchNorm2d) -> Conv2d:
    channels = len(norm.mean)
    identity = Conv2d(norm.mean.new_ones(channels, 1, 1, 1), None, groups=channels)
    return _fold(identity, norm)
