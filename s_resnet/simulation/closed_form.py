"""The closed form of a phased network: spike counts depend on total charge alone, so one quantized pass gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.arguments import whole_number
from ..errors import InvalidData, message
from ..graph.graph import Graph, State
from ..graph.neuron import Neuron
from ..graph.ops import Node, Op
from ..graph.readout import Readout
from .lockstep import lockstep, order_free
from .simulate import Simulation


def closed_form(graph: Graph, images: Tensor, timesteps: int, at: Sequence[int] | None = None) -> Simulation:
    """What :func:`s_resnet.simulate` answers for a phased network, from one forward pass for each T.

    A phased layer has the charge of its whole window before it fires, so it emits::

        N = clip(floor(v(0) / threshold + T z / threshold), 0, T)

    for its mean current z, in whatever order the spikes came: the quantized network with T + 1 levels. Counts are equal
    to the simulated ones, but where the charge is so close to a threshold that the order of float additions matters.

    Args:
        images: ``[B, C, H, W]``.
        timesteps: T >= 1.
        at: the windows to give answers for; by default T.

    Returns:
        A Simulation without state.

    Raises:
        InvalidData: a network whose counts depend on the order of spikes.
    """
    if images.ndim != 4:
        got, expected = f"a current of shape {tuple(images.shape)}", "images [B, C, H, W], the same at every step"
        raise InvalidData(message("closed_form", "", got, expected, "Simulate events"))
    wanted = (timesteps,) if at is None else tuple(sorted({whole_number(step, "closed_form", "at", 0) for step in at}))
    if not wanted or wanted[0] < 1 or wanted[-1] > timesteps:
        got, expected = f"T = {timesteps} and {list(wanted)} to answer for", "T of at least 1, and none beyond it"
        raise InvalidData(message("closed_form", "", got, expected, "Change them"))
    weighed = any(isinstance(node.op, Readout) and not _plain(node.op) for node in graph.nodes)
    if not order_free(graph) or weighed or graph.is_integer or graph.alphabet != "binary":
        got = "a network whose answer depends on when spikes come, an integer one, or one whose spikes are not 0 and 1"
        raise InvalidData(message("closed_form", "", got, "recipe phased in float32", "Simulate it"))
    answers: list[Tensor] = []
    spikes: dict[str, list[Tensor]] = {node.name: [] for node in graph.neurons}
    for window in wanted:
        outputs, counts = _pass(graph, images, window)
        answers.append(outputs)
        for name, count in counts.items():
            spikes[name].append(count)
    counted = {name: torch.stack(values) for name, values in spikes.items()}
    return Simulation(wanted, torch.stack(answers), counted, State(timesteps, {}))


def _plain(op: Readout) -> bool:
    """Whether the answer is the plain mean of the currents."""
    return op.mode == "current" and op.weights is None


def _pass(graph: Graph, images: Tensor, timesteps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Answers ``[B, N]``, and spikes per layer ``[B]``, of one window of T steps."""
    counts: dict[str, Tensor] = {}
    answers: list[Tensor] = []

    def visit(node: Node, current: Tensor, target: Tensor) -> Op:
        op = node.op
        if isinstance(op, Neuron):
            correction = op.bias_current(0, 1, current.ndim)
            mean = current[0] if correction is None else current[0] + correction
            counts[node.name] = op.quantize(mean * timesteps, timesteps).flatten(1).sum(1, dtype=torch.float64)
        elif isinstance(op, Readout):
            answers.append(op.advance([current], None)[0][0])
        return op

    lockstep(graph, images, timesteps, visit)
    if not answers:
        got = "a network without a readout"
        raise InvalidData(message("closed_form", "", got, "one made by convert", "Simulate it"))
    return answers[0], counts
