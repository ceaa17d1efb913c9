"""The ANN quantized to as many levels as a spiking network can express: its rival at equal bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..data.arguments import Batches, check_batches, images_of, whole_number
from ..errors import ConversionError, message
from ..graph.graph import Graph
from ..graph.neuron import Neuron
from .calibrate import Calibration
from .context import Context
from .passes.fit_thresholds import fit_thresholds
from .portions import analog_parts
from .spill import gather

HALF = 0.5  # v(0) in thresholds: the quantizer rounds to the nearest level


def quantized_ann(snn: Graph, calibration_batches: Batches, levels: int) -> Graph:
    """The source network of ``snn`` with every activation quantized to ``levels + 1`` values, log2(levels + 1) bits::

        Q(x) = lambda / L * clip(floor(x L / lambda + 1/2), 0, L)

    with lambda per channel, the full scale of least mean squared error on the calibration images
    (:func:`s_resnet.conversion.passes.fit_thresholds`). Weights, biases and the images stay as they are in the source
    network, and so do the logits. This is what a spiking network has to be compared with: in T steps of at most n
    thresholds its neurons can express T n + 1 values as well.

    Args:
        snn: a converted network.
        calibration_batches: images ``[B, C, H, W]``, alone or as (images, labels): those that ``snn`` was made with.
        levels: L >= 1: T of a network that sends 0 or 1.

    Returns:
        A graph whose ``run(images)`` gives the logits. It is for that alone, not to be simulated.

    Raises:
        InvalidData: levels or images do not fit.
        ConversionError: the network is not converted, has no ANN, or an ANN that is quantized already.
    """
    levels = whole_number(levels, "quantized_ann", "levels")
    check_batches(calibration_batches, "quantized_ann")
    _check(snn)
    nodes = tuple(
        replace(node, op=Neuron(torch.ones_like(node.op.threshold), HALF, limit=node.op.limit))
        if isinstance(node.op, Neuron)
        else node
        for node in snn.nodes
    )
    plain = replace(snn, nodes=nodes)
    images = gather(_images(plain, calibration_batches))
    known = Calibration({}, 100.0, len(images), "data", fitting=images)
    fitted = fit_thresholds(plain, Context(known, timesteps=levels))
    return replace(
        fitted,
        nodes=tuple(
            replace(node, op=replace(node.op, limit=None, quantization_levels=levels))
            if isinstance(node.op, Neuron)
            else node
            for node in fitted.nodes
        ),
    )


def _images(graph: Graph, batches: Batches) -> Iterator[Tensor]:
    """The images of all batches, on the device of the network."""
    for batch in batches:
        for part in analog_parts(graph, images_of(batch, "quantized_ann"), "quantized_ann"):
            yield part.to(graph.device)


def _check(snn: Graph) -> None:
    """Check that there is an ANN to quantize.

    Raises:
        ConversionError: there is none.
    """
    ops = [node.op for node in snn.neurons if isinstance(node.op, Neuron)]
    got = None
    if not ops:
        got, remedy = "a network without neurons", "Call convert first"
    elif snn.trained:
        got, remedy = "a network that was trained as a spiking one", "Leave it out: it has no ANN"
    elif any(op.quantization_levels for op in ops):
        got, remedy = "an ANN whose activations are quantized already", "Leave it out: its own ANN is the rival"
    if got is not None:
        raise ConversionError(message("quantized_ann", "", got, "a converted network", remedy))
