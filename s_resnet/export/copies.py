"""Neurons that stand for several, written one by one: the plain neurons that a chip has to have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..errors import ConversionError, message
from ..graph.alphabet import Binary
from ..graph.graph import Graph, check_spiking
from ..graph.neuron import Neuron
from ..graph.ops import AdaptiveAvgPool2d, Add, AvgPool2d, Conv2d, Linear, Node, Scale

_SUMS = (Conv2d, Linear, Scale, AvgPool2d, AdaptiveAvgPool2d, Add)


def split_copies(snn: Graph) -> Graph:
    """The same network with every one of its plain neurons: each layer of n copies becomes n layers and their sum.

    Layer ``name`` becomes ``name.copy1 ... name.copyn``, of threshold n and spikes of 1, which start at ``(p + i) / n``
    of it, and a sum ``name`` of their spikes, which all readers read. Synapses and pools that the layer alone reads are
    repeated for each of the n, unless their value is the same at every step; other currents are shared.

    Spiking runs are preserved: bit for bit if weights and images are dyadic, up to rounding otherwise. The analog run
    is not, as all n are ReLUs there: compare with the ANN before. A network without copies is returned as it is.

    Args:
        snn: a spiking network.

    Raises:
        ConversionError: neurons in place of one send anything but spikes of 1.
        InvalidData: the network has no neurons.
    """
    check_spiking(snn, "split_copies")
    if snn.copies == 1:
        return snn
    sums = frozenset(n.name for n in snn.nodes if _copies(snn, n) > 1 and not isinstance(n.op, Neuron))
    nodes = (written for node in snn.nodes for written in _written(snn, node, sums))
    return replace(snn, nodes=tuple(nodes)).validate()


def _written(snn: Graph, node: Node, sums: frozenset[str]) -> Iterator[Node]:
    """A node as it is, or once for each copy; ``sums`` are repeated for each copy of the neurons that read them."""
    op, count = node.op, _copies(snn, node)
    if count == 1:
        yield node
        return
    if isinstance(op, Neuron) and not op.emits_unit_spikes:
        expected, remedy = "1 for several neurons in place of one", "Run passes.normalize on the network"
        raise ConversionError(message(node.name, "", f"threshold {float(op.threshold.max()):g}", expected, remedy))
    names = tuple(f"{node.name}.copy{index + 1}" for index in range(count))
    for index, name in enumerate(names):
        inputs = tuple(f"{source}.copy{index + 1}" if source in sums else source for source in node.inputs)
        yield Node(name, _plain(op, count, index) if isinstance(op, Neuron) else op, inputs)
    if isinstance(op, Neuron):
        yield Node(node.name, Add(), names)


def _plain(op: Neuron, count: int, index: int) -> Neuron:
    """One of the neurons that a layer stands for."""
    start = (op.initial_potential + index) / count
    return replace(op, threshold=op.threshold * count, initial_potential=start, spikes=Binary(), amplitude=1.0)


def _copies(snn: Graph, node: Node) -> int:
    """For how many neurons in place of one a value is formed."""
    if isinstance(node.op, Neuron):
        return node.op.copies
    readers = snn.users[node.name]
    alone = len(readers) == 1 and isinstance(node.op, _SUMS) and node.name not in snn.static
    reader = snn[readers[0]] if alone else None
    return _copies(snn, reader) if reader is not None and isinstance(reader.op, Neuron | Add) else 1
