"""Pass: fold BatchNorm and constants per channel into the synapse before them, or make them synapses of their own."""

from __future__ import annotations

from ...graph.fold import folded
from ...graph.graph import Graph
from ..context import Context


def fold_batchnorm(graph: Graph, context: Context) -> Graph:
    """Fold every BatchNorm and every affine map per channel; the function is preserved (to 1e-12 in float64).

    Both compute ``y = f x + s``; for a BatchNorm ``f = gamma / sqrt(var + eps)`` and ``s = beta - f mean``. For each
    output channel of the convolution or linear layer before, ``W_f = f W`` and ``b_f = f b + s``. After a sum that
    nothing else reads, its summands are scaled instead: a convolution as above, any other summand by a shortcut
    synapse. Features ``[B, F]`` that only linear layers read are scaled in these: ``W_f = W f``, ``b_f = b + W s``. If
    other nodes read the same value, so that none of this is possible, the map becomes a scale or, with a shift, a
    depthwise 1x1 convolution (for features, a diagonal linear layer).

    Args:
        graph: the analog network.
        context: not used.

    Raises:
        ConversionError: there are more than 4,096 features of which none of this is possible.
    """
    return folded(graph)
