"""Pass: average pooling in place of max-pooling, for targets that have no maximum."""

from __future__ import annotations

from dataclasses import replace

from ...errors import ConversionError
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import AvgPool2d, MaxPool2d, Node
from ...graph.readout import SpikingMaxPool2d
from ..calibrate import Calibration


def average_maxpool(graph: Graph, calibration: Calibration | None = None) -> Graph:
    """Replace every max-pool by the mean over the same windows, padding included, of a neuron layer's spikes.

    A max-pool that :func:`move_maxpool` has put before its neuron goes back behind it, since the mean of spikes is
    nearer to their maximum than the mean of currents of both signs. Nothing is preserved but shapes: this is another
    network, worse unless it was trained with average pooling. Measure it before it is used.

    Raises ConversionError for a dilated max-pool and for one that rounds its size up.
    """
    pools = [node for node in graph.nodes if isinstance(node.op, MaxPool2d | SpikingMaxPool2d)]
    if not pools:
        return graph
    nodes = {node.name: replace(node, op=_average(node)) if node in pools else node for node in graph.nodes}
    order = list(nodes)
    for pool in pools:
        readers = graph.users[pool.name]
        if isinstance(pool.op, MaxPool2d) and len(readers) == 1 and graph[readers[0]].inputs == (pool.name,):
            neuron = graph[readers[0]]
            if isinstance(neuron.op, Neuron):
                _exchange(nodes, order, pool.name, neuron.name)
    return replace(graph, nodes=tuple(nodes[name] for name in order))


def _average(node: Node) -> AvgPool2d:
    op = node.op
    assert isinstance(op, MaxPool2d | SpikingMaxPool2d)
    if op.dilation != (1, 1) or op.ceil_mode:
        raise ConversionError(
            f"{node.name}: got a max-pool with dilation {op.dilation} and ceil_mode {op.ceil_mode}; expected neither, "
            "which a mean over windows has not. Change the model there."
        )
    return AvgPool2d(op.kernel, op.stride, op.padding)


def _exchange(nodes: dict[str, Node], order: list[str], pool: str, neuron: str) -> None:
    """The neuron first, then the pool; whoever read the neuron reads the pool."""
    for name, node in nodes.items():
        nodes[name] = replace(node, inputs=tuple(pool if before == neuron else before for before in node.inputs))
    nodes[neuron] = replace(nodes[neuron], inputs=nodes[pool].inputs)
    nodes[pool] = replace(nodes[pool], inputs=(neuron,))
    first, second = order.index(pool), order.index(neuron)
    order[first], order[second] = neuron, pool
