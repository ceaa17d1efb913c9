"""Pass: turn every ReLU into an integrate-and-fire neuron, which also does the additions before it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from ...errors import ConversionError, message
from ...graph.alphabet import Copies, Differential, Spikes, power_of_two
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import QCFS, Add, Node, ReLU
from ..context import Context
from ..lag import LAGS, waiting_layers

SPIKES = ("unsigned", "signed", "differential")


class NeuronSettings(TypedDict, total=False):
    """The settings of :func:`relu_to_neuron`, as plain data for recipes and files.

    Attributes:
        initial_potential: v(0) as a share of the threshold, in [0, 1); the default 0 is the paper's theory, 0.5 its
            released code.
        reset: ``"subtract"``, the default, or ``"zero"``.
        schedule: ``"streaming"``, the default, ``"lagged"`` or ``"phased"``, as in :class:`s_resnet.graph.Neuron`. A
            layer with no neuron before it receives a constant current and need not wait: its schedule is
            ``"streaming"`` in any case.
        lag: which layers a ``"lagged"`` schedule is for: ``"layers"``, the default, ``"blocks"``,
            ``"alternate-blocks"`` or ``"stages"``, as in :func:`s_resnet.conversion.lag.waiting_layers`. The others are
            ``"streaming"``.
        spikes: ``"unsigned"``, the default; ``"signed"``, for neurons that take back what they sent too early; or
            ``"differential"``, for neurons that send changes of their mean.
        amplitudes: how many amplitudes 1, 2, 4, ... a spike may have; by default 1.
        copies: how many plain neurons stand for each: 1, the default, or 3 or 7, which differ in their initial
            potentials alone (:class:`s_resnet.graph.Copies`).
    """

    initial_potential: float
    reset: str
    schedule: str
    lag: str
    spikes: str
    amplitudes: int
    copies: int


def relu_to_neuron(graph: Graph, context: Context, **settings: Unpack[NeuronSettings]) -> Graph:
    """Replace every ReLU by a neuron that emits up to the calibrated scale of that activation per step.

    A ReLU with a limit gets a scale of at most that, channel by channel, so that its neurons saturate where it does. A
    QCFS activation has its scale from training, and remains the activation of the analog run.

    A residual addition that only the ReLU reads disappears: the neuron integrates both branches, and its bias is the
    sum of theirs. The analog run is preserved exactly; the spiking rate of a neuron under constant current x
    satisfies ``|mean output - clip(x, 0, max_emission threshold)| <= threshold / T``.

    Args:
        graph: the analog network, with its batch normalization folded.
        context: a calibrated scale for every ReLU.
        **settings: the neurons' settings, see :class:`NeuronSettings`.

    Raises:
        ConversionError: the calibration lacks a ReLU of this graph, a setting is out of range, the network has no layer
            that would wait, or a ReLU has a limit and neurons send means, which have none.

    Source: arXiv:1805.01352: "sum layer is no longer needed", the neuron adds by integration.
    """
    like = neuron_like(settings)
    waiting = waiting_layers(graph, settings.get("lag", "layers"))
    absorbed: set[str] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        if not isinstance(node.op, ReLU | QCFS):
            nodes.append(node)
            continue
        neuron = replace(
            like,
            threshold=_scale(node, context, graph.device) / like.max_emission,
            schedule=like.schedule if node.name in waiting else "streaming",
            quantization_levels=node.op.quantization_levels if isinstance(node.op, QCFS) else 0,
            limit=_limit(node, like),
        )
        nodes.append(Node(node.name, neuron, _summands(graph, node, absorbed)))
    if not any(isinstance(node.op, ReLU | QCFS) for node in graph.nodes):
        return graph
    return replace(graph, nodes=tuple(node for node in nodes if node.name not in absorbed))


def neuron_like(settings: NeuronSettings) -> Neuron:
    """A neuron of threshold 1 with these settings.

    Raises:
        ConversionError: a setting is unknown or out of range.
        InvalidData: settings do not go together.
    """
    for name in settings:
        if name not in NeuronSettings.__annotations__:
            expected = f"one of {', '.join(NeuronSettings.__annotations__)}"
            remedy = "Leave the setting out of the recipe"
            raise ConversionError(message("relu_to_neuron", "", f"setting {name!r}", expected, remedy))
    reset, start = settings.get("reset", "subtract"), settings.get("initial_potential", 0.0)
    if reset not in ("subtract", "zero") or not 0 <= start < 1:
        got, remedy = f"reset={reset!r}, initial_potential={start}", "Set both to such values in the recipe"
        expected = "'subtract' or 'zero', and a share of the threshold in [0, 1)"
        raise ConversionError(message("relu_to_neuron", "", got, expected, remedy))
    spikes = settings.get("spikes", "unsigned")
    if spikes not in SPIKES:
        expected, remedy = f"one of {', '.join(SPIKES)}", "Set one of these in the recipe"
        raise ConversionError(message("relu_to_neuron", "", f"spikes={spikes!r}", expected, remedy))
    schedule, lag = settings.get("schedule", "streaming"), settings.get("lag", "layers")
    if lag not in LAGS or ("lag" in settings and schedule != "lagged"):
        got, remedy = f"lag={lag!r} of schedule {schedule!r}", "Choose calibrated-lagged or signed, or leave it out"
        expected = f"one of {', '.join(LAGS)}, of schedule 'lagged'"
        raise ConversionError(message("relu_to_neuron", "", got, expected, remedy))
    return Neuron(torch.ones(()), start, reset, schedule=schedule, spikes=_alphabet(spikes, settings))


def _alphabet(spikes: str, settings: NeuronSettings) -> Spikes:
    count, copies = settings.get("amplitudes", 1), settings.get("copies", 1)
    if copies == 1 and not isinstance(copies, bool):
        return Differential(count) if spikes == "differential" else power_of_two(count, spikes == "signed")
    if spikes != "unsigned" or count != 1:
        got, expected = f"copies={copies} of neurons with {spikes} spikes of {count} amplitudes", "plain neurons"
        remedy = "Set copies, or spikes and amplitudes"
        raise ConversionError(message("relu_to_neuron", "", got, expected, remedy))
    return Copies(copies)


def _scale(node: Node, context: Context, device: torch.device) -> Tensor:
    """The scale of an activation: the one from training, or the calibrated one up to its limit, 0-dim. or ``[C]``."""
    if isinstance(node.op, QCFS):
        return node.op.threshold
    if node.name not in context.calibration.scales:
        remedy = "Calibrate this very graph"
        raise ConversionError(message(node.name, "", "no calibrated scale", "one per ReLU", remedy))
    scale = torch.tensor(context.calibration.scales[node.name], device=device)
    limit = node.op.limit if isinstance(node.op, ReLU) else None
    return scale if limit is None else torch.minimum(scale, limit)


def _limit(node: Node, like: Neuron) -> Tensor | None:
    """The limit of an activation, if it has one."""
    limit = node.op.limit if isinstance(node.op, ReLU) else None
    if limit is not None and isinstance(like.spikes, Differential):
        got, expected = "a ReLU with a limit for neurons that send means", "one without, or spikes that are counted"
        remedy = "Set spikes='signed' or 'unsigned' in the recipe"
        raise ConversionError(message(node.name, "", got, expected, remedy))
    return limit


def _summands(graph: Graph, node: Node, absorbed: set[str]) -> tuple[str, ...]:
    """The inputs of a node, with additions that it alone reads replaced by their summands."""
    names: list[str] = []
    for name in node.inputs:
        before = graph[name]
        if isinstance(before.op, Add) and graph.users[name] == (node.name,):
            absorbed.add(name)
            names.extend(_summands(graph, before, absorbed))
        else:
            names.append(name)
    return tuple(names)
