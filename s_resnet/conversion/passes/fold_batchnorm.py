"""Pass: BatchNorm and constants per channel become part of the synapse before them, or a synapse of their own."""

from __future__ import annotations

from ...graph.fold import folded
from ...graph.graph import Graph
from ..context import Context


def fold_batchnorm(graph: Graph, context: Context) -> Graph:
    """Fold every BatchNorm and every affine map per channel; the function is preserved (to 1e-12 in float64).

    Both are ``y = f x + s``, of a BatchNorm ``f = gamma / sqrt(var + eps)`` and ``s = beta - f mean``. Per output
    channel of the convolution or linear layer before, ``W_f = f W``, ``b_f = f b + s``. Behind a sum that nothing else
    reads, its summands are scaled instead: a convolution as above, another one by a shortcut synapse. Features
    ``[B, F]`` that only linear layers read are scaled in these, ``W_f = W f``, ``b_f = b + W s``. Where none of that is
    possible, since nothing else may see the folded weights, it becomes a scale or, with a shift, a depthwise 1x1
    convolution, of features a diagonal linear layer.

    Args:
        graph: the analog network.
        context: nothing of it is needed.

    Raises:
        ConversionError: there are more than 4,096 features of which none of this is possible.
    """
    return folded(graph)
