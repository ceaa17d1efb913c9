"""Pass: make max-pooling correct for spikes."""

from __future__ import annotations

from dataclasses import replace

from ...errors import ConversionError, message
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import UNIT_PRESERVING, MaxPool2d, Node
from ...graph.readout import SpikingMaxPool2d
from ..context import Context


def move_maxpool(graph: Graph, context: Context) -> Graph:
    """Move a max-pool before its neurons where that is exact, and gate it by spike counts elsewhere.

    ReLU and max commute, ``max(relu(x)) = relu(max(x))``. A pool after a layer whose input current is the same at every
    step (a stem under direct coding) may thus pool the currents instead, which is exact at every T and computed once.
    In deeper layers the maximum of momentary currents is not the maximum of their means, and the pool becomes the
    paper's :class:`~s_resnet.graph.SpikingMaxPool2d`. The analog run is preserved exactly.

    Under Poisson coding the stem's current varies too; a moved pool then takes the maximum of noisy currents.

    Args:
        graph: a network with its neurons.
        context: not used.

    Raises:
        ConversionError: a deeper max-pool reads currents whose sign matters (a sum or BatchNorm comes after it).
    """
    nodes = {node.name: node for node in graph.nodes}
    changed = False
    for node in graph.nodes:
        if not isinstance(node.op, MaxPool2d):
            continue
        before = graph[node.inputs[0]]
        if isinstance(before.op, Neuron) and graph.users[before.name] == (node.name,) and _constant(graph, before):
            # The two swap places and names, so that readers of the pool now read the neuron.
            nodes[before.name] = Node(node.name, node.op, before.inputs)
            nodes[node.name] = Node(before.name, before.op, (node.name,))
            changed = True
        elif before.name not in graph.static:
            if not _spikes(graph, before) and not _rectified(graph, node):
                got = "a max-pool over currents, which no gate on spikes can compute"
                remedy = "Put the ReLU before the pool"
                raise ConversionError(message(node.name, "", got, "one over ReLU outputs", remedy))
            op = node.op
            gate = SpikingMaxPool2d(op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
            nodes[node.name] = replace(node, op=gate)
            changed = True
    return replace(graph, nodes=_renamed(nodes)) if changed else graph


def _constant(graph: Graph, neuron: Node) -> bool:
    return len(neuron.inputs) == 1 and neuron.inputs[0] in graph.static


def _spikes(graph: Graph, node: Node) -> bool:
    """Whether a value is a neuron's output, possibly pooled."""
    while isinstance(node.op, UNIT_PRESERVING):
        node = graph[node.inputs[0]]
    return isinstance(node.op, Neuron)


def _rectified(graph: Graph, node: Node) -> bool:
    """Whether only neurons without other inputs read a value: negative currents, which a gate drops, emit nothing."""
    readers = [graph[name] for name in graph.users[node.name]]
    return all(isinstance(reader.op, Neuron) and len(reader.inputs) == 1 for reader in readers)


def _renamed(nodes: dict[str, Node]) -> tuple[Node, ...]:
    """The nodes in their old places, readers of a moved pool now reading its neuron."""
    moved = {old: node.name for old, node in nodes.items() if isinstance(node.op, Neuron) and old != node.name}
    out = []
    for node in nodes.values():
        inputs = node.inputs
        if node.name not in moved.values():
            inputs = tuple(moved.get(name, name) for name in inputs)
        out.append(replace(node, inputs=inputs))
    return tuple(out)
