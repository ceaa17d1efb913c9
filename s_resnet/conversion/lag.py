"""Which layers of a network wait a step before they fire."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConversionError, message
from ..graph.graph import Graph
from ..graph.ops import QCFS, Add, AvgPool2d, Conv2d, MaxPool2d, ReLU

LAGS = ("layers", "blocks", "alternate-blocks", "stages")  # from the most layers that wait to the fewest


def waiting_layers(graph: Graph, lag: str) -> frozenset[str]:
    """The layers that wait a step.

    * ``"layers"``: all that have another one before them; the others receive the same current at every step.
    * ``"blocks"``: the last of each residual block, which is the one that reads a sum of branches.
    * ``"alternate-blocks"``: the last of the second block, the fourth and so on.
    * ``"stages"``: the last of each stage: the blocks between two changes of the spatial size by a stride, and those
      before the readout.

    Args:
        graph: the analog network.
        lag: one of these.

    Raises:
        ConversionError: the lag is unknown, or the network has no layer that would wait.
    """
    if lag not in LAGS:
        expected, remedy = f"one of {', '.join(LAGS)}", "Set one of these in the recipe"
        raise ConversionError(message("relu_to_neuron", "", f"lag={lag!r}", expected, remedy))
    layers, ends = _layers(graph)
    if lag == "layers":
        return frozenset(layers)
    if lag == "alternate-blocks":
        chosen: Sequence[str] = ends[1::2]
    else:
        chosen = ends if lag == "blocks" else _last_of_stages(graph, ends)
    if not chosen:
        got, remedy = f"a network of {len(ends)} residual blocks", "Set lag='layers', or choose the recipe calibrated"
        raise ConversionError(message("relu_to_neuron", f"lag={lag!r}", got, "a block that ends with it", remedy))
    return frozenset(chosen)


def different_lags(graph: Graph) -> tuple[str, ...]:
    """The lags that let some layers wait, each others than those before it in :data:`LAGS`."""
    layers, ends = _layers(graph)
    choices = (layers, ends, ends[1::2], _last_of_stages(graph, ends))
    found: dict[frozenset[str], str] = {}
    for lag, chosen in zip(LAGS, choices, strict=True):
        found.setdefault(frozenset(chosen), lag)
    return tuple(lag for chosen, lag in found.items() if chosen)


def _layers(graph: Graph) -> tuple[list[str], list[str]]:
    """The activations with another one before them, and those among them that read a sum, in execution order."""
    later: set[str] = set()
    sums: set[str] = set()  # nodes with a sum before them and no activation between
    layers, ends = list[str](), list[str]()
    for node in graph.nodes:
        after = any(name in later for name in node.inputs)
        summed = isinstance(node.op, Add) or any(name in sums for name in node.inputs)
        activation = isinstance(node.op, ReLU | QCFS)
        if after or activation:
            later.add(node.name)
        if summed and not activation:
            sums.add(node.name)
        if activation and after:
            layers.append(node.name)
            ends += [node.name] if summed else []
    return layers, ends


def _last_of_stages(graph: Graph, ends: Sequence[str]) -> list[str]:
    """The last of the layers at each spatial size, counted by the strides before them."""
    strides: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        rows, columns = max((strides[name] for name in node.inputs), default=(1, 1))
        if isinstance(node.op, Conv2d | MaxPool2d | AvgPool2d):
            rows, columns = rows * node.op.stride[0], columns * node.op.stride[1]
        strides[node.name] = rows, columns
    return list({strides[name]: name for name in ends}.values())
