"""Would swapped color channels, another nonlinearity or other strides fit the BatchNorm statistics better?

Some mistakes change activations by less than correct networks and images differ anyway
(:mod:`s_resnet.frontend.batchnorm_check`). On the same images, though, most of that difference is common to two
networks, which tells the better fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SResNetError
from ..frontend.batchnorm_check import Moments
from ..graph.graph import Graph
from ..graph.ops import BatchNorm2d, Conv2d, Node, ReLU
from ..kernels import per_channel
from .portions import analog_images

IMAGES = 32  # to compare on; half as many if they are large
LARGE = 128  # pixels
BATCH = 8
SLOPE = 0.1  # of the leaky ReLU that is tried: a small one, so that larger slopes fit it better than a ReLU, too
FIRST = 3  # layers in which the order of channels shows
LEAST = 1e-3  # smaller distances tell nothing
# Limits from measurements on right and wrong pairs: docs/explanation/batchnorm-check.md.
NEARER, NEARER_REVERSED = 0.8, 0.96


@dataclass(frozen=True)
class Rival:
    """Another network that may fit the BatchNorm statistics better.

    Attributes:
        graph: the network, or only its first layers if ``reverse``.
        note: what to say if it fits better.
        reverse: whether it gets the channels of the images in reverse order.
        layers: the BatchNorm layers that the two are compared in; empty for all.
    """

    graph: Graph
    note: str
    reverse: bool = False
    layers: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class _LeakyReLU:
    """``y = max(x, slope x)``, and at most the limit of the ReLU in whose place it is."""

    slope: float
    limit: Tensor | None

    def run(self, *inputs: Tensor) -> Tensor:
        y = F.leaky_relu(inputs[0], self.slope)
        return y if self.limit is None else torch.minimum(y, per_channel(self.limit, y.ndim))


def rival_notes(graph: Graph, images: Tensor, moments: Moments) -> list[str]:
    """A note on the rival that fits the running statistics best, if it fits better than the network itself.

    Args:
        graph: an analog graph, with its BatchNorm nodes.
        images: ``[B, C, H, W]``, those that ``moments`` has seen, in the same order.
        moments: the network's own statistics on these images.
    """
    if len(moments.norms) < FIRST:
        return []
    some = images[: IMAGES if images.shape[-1] < LARGE else IMAGES // 2]
    found = [
        (ratio(rival, images if rival.reverse else some, moments), rival) for rival in rivals(graph, len(images[0]))
    ]
    nearer = [(share, rival.note) for share, rival in found if share < (NEARER_REVERSED if rival.reverse else NEARER)]
    return [min(nearer)[1]] if nearer else []


def rivals(graph: Graph, channels: int) -> Iterator[Rival]:
    """The same network with one thing changed that a checkpoint does not say and that is often mistaken."""
    if channels == 3:
        norms = [place for place, node in enumerate(graph.nodes) if isinstance(node.op, BatchNorm2d)]
        yield Rival(
            Graph(graph.nodes[: norms[FIRST - 1] + 1]),
            "with red and blue swapped the images would fit the BatchNorm statistics better: the network seems to have "
            "been trained on BGR images, as OpenCV reads them. Pass images.flip(1), or reverse the input channels of "
            "the first convolution.",
            reverse=True,
        )
    leaky = ((node, _LeakyReLU(SLOPE, node.op.limit)) for node in graph.nodes if isinstance(node.op, ReLU))
    relus = {node.name: replace(node, op=op) for node, op in leaky}
    yield Rival(
        _with(graph, relus),
        f"with a leaky ReLU (slope {SLOPE}) activations would fit the BatchNorm statistics better: the network seems "
        "to have been trained with another nonlinearity, so it answers differently here. Use one trained with ReLU.",
    )
    if stem := _stem(graph):
        yield Rival(
            _with(graph, stem),
            "with stride 1 in the first convolution activations would fit the BatchNorm statistics better: the network "
            "seems to be one for small images. Build it that way (a checkpoint: with another arch, as in "
            "resnet18-stem1).",
        )
    if bottlenecks := _bottlenecks(graph):
        yield Rival(
            _with(graph, bottlenecks),
            "with the strides of its bottlenecks in the other convolution (the first, 1x1, or the second, 3x3) "
            "activations would fit the BatchNorm statistics better. Build it that way (a checkpoint: with another "
            "arch, as in resnet50-v1).",
            layers=frozenset(
                user
                for name, node in bottlenecks.items()
                if isinstance(node.op, Conv2d) and node.op.weight.shape[2:] == (3, 3)
                for user in graph.users[name]
            ),
        )


def ratio(rival: Rival, images: Tensor, moments: Moments) -> float:
    """The rival's distance from the running statistics as a share of the network's own; 1 if it cannot take the images.

    For reversed channels it compares sums over the first layers, else the median layer.
    """
    images, other = images.flip(1) if rival.reverse else images, Moments(rival.graph)
    # The layers of a rival with another stride are up to four times as large.
    size = max(1, min(BATCH, analog_images(moments.graph, images, "convert") // 4))
    try:
        for part in torch.split(images, size):
            for _ in other.watch(part):
                pass
    except SResNetError:  # it cannot take images of this size
        return 1.0
    pairs = [
        (mine.distance, own.distance)
        for mine, own in zip(other.fit().layers, moments.fit(len(images)).layers, strict=False)
        if not rival.layers or own.name in rival.layers
    ]
    if rival.reverse:
        return (sum(b for b, _ in pairs) + LEAST) / (sum(a for _, a in pairs) + LEAST)
    return statistics.median([(b + LEAST) / (a + LEAST) for b, a in pairs] or [1.0])


def _with(graph: Graph, nodes: dict[str, Node]) -> Graph:
    """The graph with these nodes in place of those with the same names, for images of any size."""
    return Graph(tuple(nodes.get(node.name, node) for node in graph.nodes))


def _stem(graph: Graph) -> dict[str, Node]:
    """The convolution that reads the images, with stride 1 in place of another."""
    first = graph.nodes[0].name
    found = (node for node in graph.nodes if first in node.inputs)
    return {
        node.name: replace(node, op=replace(node.op, stride=(1, 1)))
        for node in found
        if isinstance(node.op, Conv2d) and node.op.stride != (1, 1)
    }


def _bottlenecks(graph: Graph) -> dict[str, Node]:
    """Pairs of a 1x1 and a 3x3 convolution with different strides, with these exchanged."""
    found: dict[str, Node] = {}
    for node in graph.nodes:
        before = _convolution_before(graph, node)
        if before is None or not isinstance(node.op, Conv2d) or not isinstance(before.op, Conv2d):
            continue
        sizes = (before.op.weight.shape[2:], node.op.weight.shape[2:])
        if sizes == ((1, 1), (3, 3)) and before.op.stride != node.op.stride:
            found[before.name] = replace(before, op=replace(before.op, stride=node.op.stride))
            found[node.name] = replace(node, op=replace(node.op, stride=before.op.stride))
    return found


def _convolution_before(graph: Graph, node: Node) -> Node | None:
    """The convolution that this one reads, with nothing but BatchNorm and ReLU between."""
    while len(node.inputs) == 1:
        node = graph[node.inputs[0]]
        if isinstance(node.op, Conv2d):
            return node
        if not isinstance(node.op, BatchNorm2d | ReLU):
            break
    return None
