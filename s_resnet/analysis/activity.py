"""What a neuron layer of a directly trained network does; there is no source network to compare it with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InvalidData, message
from ..graph.alphabet import Binary, MultiThreshold
from ..graph.neuron import Neuron
from ..graph.ops import Node
from ..kernels import per_channel
from ..kernels.surrogate.reference import Firing, slope

EVERYWHERE = ("arctan", "sigmoid")  # surrogates that are zero nowhere


def check_trained(node: Node) -> None:
    """Check that a neuron layer is one that a directly trained network can have.

    Raises:
        InvalidData: it is not.
    """
    op = node.op
    assert isinstance(op, Neuron)
    if op.surrogate is None or op.waits or not isinstance(op.spikes, Binary | MultiThreshold):
        got = f"a converted, waiting or {op.alphabet} neuron in a trained network"
        expected, remedy = "only neurons with a surrogate gradient", "Verify the network that it was trained from"
        raise InvalidData(message("verify", node.name, got, expected, remedy))


def activity(op: Neuron, currents: Tensor, timesteps: int, trained_for: int) -> Iterator[tuple[str, Tensor]]:
    """What a layer does, neuron by neuron and image by image.

    A neuron is dormant where no membrane lies in the window of its surrogate, before it fires, at any of T steps:
    there the gradient is 0. The layer fires one step at a time, so that every membrane is seen.

    Args:
        op: the neuron layer.
        currents: ``[S, B, *]``, S at least T and the T trained for.
        timesteps: T.
        trained_for: the T that it was trained for.

    Yields:
        Names and values ``[B, *]``: ``emitted`` (spikes in T steps), ``saturated`` and ``dormant`` (1 where true),
        ``drift`` (square of the mean output after T steps minus that after the T trained for), and ``signal``, the
        square of the latter.
    """
    memory = op.start(currents[0])
    wide = memory[0].dtype
    thresholds = [per_channel(level, memory[0].ndim).to(wide) for level in op.thresholds]
    correction = op.bias_current(0, len(currents), currents.ndim)
    awake = torch.zeros_like(memory[0], dtype=torch.bool)
    full = torch.ones_like(awake)
    sent = torch.zeros_like(memory[0], dtype=torch.float64)
    after: dict[int, Tensor] = {}
    for step, now in enumerate(currents.to(wide) if correction is None else currents.to(wide) + correction):
        before = memory
        spikes, memory = op.advance([now[None]], before)
        if step < timesteps:
            for v, threshold in zip(before, thresholds, strict=True):
                awake |= _in_window(op, op.decay * v + now - threshold)
            full &= spikes[0] == op.max_emission
        sent += spikes[0]
        if step + 1 in (timesteps, trained_for):
            after[step + 1] = sent.clone()
    yield "emitted", after[timesteps]
    yield "saturated", full.double()
    yield "dormant", (~awake).double()
    trained = after[trained_for] / trained_for
    yield "drift", (after[timesteps] / timesteps - trained) ** 2
    yield "signal", trained**2


def _in_window(op: Neuron, above: Tensor) -> Tensor:
    """Whether a gradient passes at a membrane that exceeds its threshold by ``above``."""
    assert op.surrogate is not None
    if op.surrogate.shape in EVERYWHERE:
        return torch.ones_like(above, dtype=torch.bool)
    return slope(above, Firing((1.0,), surrogate=op.surrogate.shape, width=op.surrogate.width)) > 0
