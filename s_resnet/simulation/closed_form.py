"""The closed form of a phased network: spike counts depend only on the total charge, so one quantized pass suffices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.arguments import as_maps, check_dense, whole_number
from ..errors import InvalidData, message
from ..graph.engine import arithmetic, freed
from ..graph.forms import spiking
from ..graph.graph import Graph
from ..graph.inputs import check_shown
from ..graph.neuron import Neuron
from ..graph.ops import Input
from ..graph.readout import Readout
from ..graph.state import State
from .lockstep import fire_mean, order_free, propagate
from .simulate import Simulation


def closed_form(graph: Graph, images: Tensor, timesteps: int, at: Sequence[int] | None = None) -> Simulation:
    """What :func:`s_resnet.simulate` answers for a phased network, from one forward pass for each T.

    A phased layer has the charge of its whole window before it fires, so with a mean current z it emits::

        N = clip(floor(v(0) / threshold + T z / threshold), 0, T)

    whatever the order of the spikes: it is a quantized network with T + 1 levels. Counts equal the simulated ones
    unless the charge is so close to a threshold that the order of float additions matters.

    Args:
        graph: a converted network.
        images: ``[B, C, H, W]``.
        timesteps: T >= 1.
        at: the windows to give answers for; by default T.

    Returns:
        A Simulation without state.

    Raises:
        InvalidData: the network's counts depend on the order of spikes, images do not fit, or a setting is out of
            range.
    """
    check_dense(images, "closed_form")
    images = as_maps(images)
    if images.ndim != 4:
        got, expected = f"a current of shape {tuple(images.shape)}", "images [B, C, H, W], the same at every step"
        raise InvalidData(message("closed_form", "", got, expected, "Run events through simulate"))
    check_shown(graph.nodes, graph.provenance, images, "closed_form")
    wanted = (timesteps,) if at is None else tuple(sorted({whole_number(step, "closed_form", "at", 0) for step in at}))
    if not wanted or wanted[0] < 1 or wanted[-1] > timesteps:
        got, expected = f"T = {timesteps} and at={list(wanted)}", f"one or more steps within 1 ... {timesteps}"
        raise InvalidData(message("closed_form", "", got, expected, "Raise T, or leave at out"))
    if not has_closed_form(graph):
        got = "a network whose answer depends on when spikes come, an integer one, or one whose spikes are not 0 and 1"
        raise InvalidData(message("closed_form", "", got, "recipe phased in float32", "Run it through simulate"))
    answers: list[Tensor] = []
    spikes: dict[str, list[Tensor]] = {node.name: [] for node in graph.neurons}
    for window in wanted:
        outputs, counts = _pass(graph.at(window), images, window)
        answers.append(outputs)
        for name, count in counts.items():
            spikes[name].append(count)
    counted = {name: torch.stack(values) for name, values in spikes.items()}
    return Simulation(wanted, torch.stack(answers), counted, State(timesteps, {}))


def has_closed_form(graph: Graph) -> bool:
    """Whether :func:`closed_form` takes a network: phased, binary, in float32, with a plain mean as its answer."""
    readouts = [node.op for node in graph.nodes if isinstance(node.op, Readout)]
    plain = all(op.mode == "current" and op.weights is None for op in readouts)
    return bool(readouts) and plain and order_free(graph) and not graph.is_integer and graph.alphabet == "binary"


def _pass(graph: Graph, images: Tensor, timesteps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The answers ``[B, N]``, and the spikes per layer ``[B]``, of one window of T steps.

    Every value is ``[1, B, *]``, the mean over the steps; it is freed after its last reader.
    """
    counts: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    with torch.no_grad(), arithmetic(images, tf32=False):
        for node, unread in zip(graph.nodes, freed(graph.nodes, {}), strict=True):
            op, inputs = node.op, [values[name] for name in node.inputs]
            if isinstance(op, Input):
                values[node.name] = spiking(op).run(images)[None]
            elif isinstance(op, Neuron):
                current = sum(inputs[1:], inputs[0])
                values[node.name] = fire_mean(op, current, timesteps)
                counts[node.name] = _count(op, current, timesteps)
            elif isinstance(op, Readout):
                values[node.name] = op.advance(inputs, None)[0]
            else:
                values[node.name] = propagate(op, inputs)
            for name in unread:
                del values[name]
    return values[graph.nodes[-1].name][0], counts


def _count(op: Neuron, current: Tensor, timesteps: int) -> Tensor:
    """The spikes ``[B]`` of a layer for mean currents ``[1, B, *]``."""
    correction = op.bias_current(0, 1, current.ndim)
    mean = current[0] if correction is None else current[0] + correction
    return op.quantize(mean * timesteps, timesteps).flatten(1).sum(1, dtype=torch.float64)
