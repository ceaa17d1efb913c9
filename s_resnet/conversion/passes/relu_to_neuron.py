"""Pass: every ReLU becomes an integrate-and-fire neuron that does the additions before it itself."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import ConversionError
from ...graph.alphabet import Differential, power_of_two
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import QCFS, Add, Node, ReLU
from ..calibrate import Calibration


def relu_to_neuron(
    graph: Graph,
    calibration: Calibration,
    initial_potential: float = 0.0,
    reset: str = "subtract",
    schedule: str = "streaming",
    levels: int = 1,
    signed: bool = False,
    differential: bool = False,
) -> Graph:
    """Replace every ReLU by a neuron that emits up to the calibrated scale of that activation per step.

    A QCFS activation brings the scale that it was trained with, and stays what the analog run has.

    A residual addition read by nothing but the ReLU disappears: the neuron integrates both branches, and its bias is
    the sum of theirs. The analog run is preserved exactly; the spiking rate of a neuron under constant current x
    satisfies ``|mean output - clip(x, 0, most threshold)| <= threshold / T``.

    Args:
        initial_potential: v(0) as a share of the threshold; 0 is the paper's theory, 0.5 its released code.
        reset: ``"subtract"`` or ``"zero"``.
        schedule, levels, signed, differential: as in :class:`s_resnet.graph.Neuron`. A layer with no neuron before it
            sees a
            constant current, which has no unevenness to wait for: its schedule is ``"streaming"`` in any case.

    Raises:
        ConversionError: the calibration lacks a ReLU of this graph, or a setting is out of range.

    Source: arXiv:1805.01352: "sum layer is no longer needed", the neuron adds by integration.
    """
    if reset not in ("subtract", "zero") or not 0 <= initial_potential < 1:
        raise ConversionError(
            f"relu_to_neuron: got reset={reset!r}, initial_potential={initial_potential}; expected 'subtract' or "
            "'zero', and a share of the threshold in [0, 1). Change the recipe."
        )
    alphabet = Differential(levels) if differential else power_of_two(levels, signed)
    absorbed: set[str] = set()
    spiking: set[str] = set()  # nodes with a neuron before them
    nodes: list[Node] = []
    for node in graph.nodes:
        later = any(name in spiking for name in node.inputs)
        if later or isinstance(node.op, ReLU | QCFS):
            spiking.add(node.name)
        if not isinstance(node.op, ReLU | QCFS):
            nodes.append(node)
            continue
        if isinstance(node.op, ReLU) and node.name not in calibration.scales:
            raise ConversionError(
                f"{node.name}: got no calibrated scale; expected one per ReLU. Calibrate this very graph."
            )
        trained = node.op if isinstance(node.op, QCFS) else None
        neuron = Neuron(
            trained.threshold if trained else torch.tensor(calibration.scales[node.name], device=graph.device),
            initial_potential,
            reset,
            schedule=schedule if later else "streaming",
            spikes=alphabet,
            quantization_levels=trained.quantization_levels if trained else 0,
        )
        neuron = replace(neuron, threshold=neuron.threshold / neuron.max_emission)
        nodes.append(Node(node.name, neuron, _summands(graph, node, absorbed)))
    if not any(isinstance(node.op, ReLU | QCFS) for node in graph.nodes):
        return graph
    return replace(graph, nodes=tuple(node for node in nodes if node.name not in absorbed))


def _summands(graph: Graph, node: Node, absorbed: set[str]) -> tuple[str, ...]:
    """The inputs of a node, with additions that it alone reads replaced by what they add."""
    names: list[str] = []
    for name in node.inputs:
        before = graph[name]
        if isinstance(before.op, Add) and graph.users[name] == (node.name,):
            absorbed.add(name)
            names.extend(_summands(graph, before, absorbed))
        else:
            names.append(name)
    return tuple(names)
