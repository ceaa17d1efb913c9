"""Calibration images from the network itself: images on which its BatchNorm layers see what they saw in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.arguments import as_maps, whole_number
from ..errors import InvalidData, message
from ..graph.engine import arithmetic, freed
from ..graph.graph import Graph
from ..graph.ops import BatchNorm2d, Linear, Node
from ..runtime.progress import Progress
from .portions import check_together

IMAGES, SEED = 16, 0  # measured: docs/explanation/distilled-images.md
BATCH = 8  # images at a time at full size
SMALL = 128  # pixels from which the search starts at about half the size, where a step costs a quarter
GRID = 32  # what ResNets divide their size by, and a small size divides by


@dataclass(frozen=True)
class _Search:
    """How long to search, and by what step: a share ``rate`` of a standard deviation at first, a tenth at the end."""

    steps: int
    rate: float


FIRST, SECOND = _Search(100, 0.1), _Search(30, 0.05)


def distill_images(
    graph: Graph, shape: Sequence[int], count: int = IMAGES, seed: int = SEED, progress: bool = False
) -> Tensor:
    """Images ``[count, C, H, W]`` on which every BatchNorm sees the statistics of its training.

    With running mean and variance ``m`` and ``s^2`` of a channel, and mean and variance ``n`` and ``u^2`` over images
    and pixels of what comes in (both variances with BatchNorm's eps)::

        loss = mean over layers of mean over channels of (n - m)^2 / s^2 + log(u / s)^2

    Adam takes Gaussian noise of mean 0 and variance 1 there, 100 steps; the network stays as it is. From 128 pixels on
    these are at about half the size, and 30 steps at the full size follow, 8 images at a time. The number of steps is
    fixed, so the time is that of as many passes, there and back, and the same seed gives the same images on the same
    machine (on GPUs up to the order of their sums).

    They look like no photograph, have no class, and only tell what the statistics tell: calibrate on real images
    where there are any.

    Args:
        graph: an analog graph, with its BatchNorm nodes.
        shape: ``(C, H, W)`` of an image, or ``(C, L)`` of a signal.
        count: how many images, at least 2.
        seed: of the noise.
        progress: show a bar on stderr when it is a terminal.

    Raises:
        InvalidData: the graph has no BatchNorm, the shape does not fit it, the count or seed is out of range, or the
            memory limit does not hold the images that go together.

    Source: Cai et al., ZeroQ, CVPR 2020 (arXiv:2001.00281); Yin et al., DeepInversion, CVPR 2020 (arXiv:1912.08795).
    The distance of the statistics is that of :mod:`s_resnet.frontend.batchnorm_check`.
    """
    count, seed = whole_number(count, "distill_images", "count", 2), whole_number(seed, "distill_images", "seed", 0)
    norms = [place for place, node in enumerate(graph.nodes) if isinstance(node.op, BatchNorm2d)]
    if not norms:
        got = "a network without BatchNorm and no images"
        expected = "one of the two, as images can be made only from BatchNorm statistics"
        raise InvalidData(message("distill_images", "", got, expected, "Pass calibration_batches"))
    head = replace(graph, nodes=graph.nodes[: norms[-1] + 1])
    channels, *size = as_maps(torch.empty(1, *shape)).shape[1:]
    small = size
    if min(size) >= SMALL and not any(isinstance(node.op, Linear) for node in head.nodes):
        small = [-(-side // (2 * GRID)) * GRID for side in size]
    noise = torch.randn(count, channels, *small, generator=torch.Generator().manual_seed(seed))
    images = noise.to(graph.device, graph.dtype)
    check_together(head, images, count, "distill_images")
    check_together(head, images.new_zeros(1, channels, *size), min(count, BATCH), "distill_images")
    parts = -(-count // BATCH) if small != size else 0
    total = FIRST.steps + parts * SECOND.steps
    with Progress[None](total=total, desc="distill images", unit="step", shown=progress) as bar:
        images = _matched(head.nodes, images, FIRST, bar)
        if parts:
            larger = F.interpolate(images, size=size, mode="bilinear")
            images = torch.cat([_matched(head.nodes, part, SECOND, bar) for part in larger.tensor_split(parts)])
    return images if len(shape) == 3 else images.squeeze(2)


def _matched(nodes: tuple[Node, ...], images: Tensor, search: _Search, bar: Progress[None]) -> Tensor:
    """The images after so many steps."""
    with torch.inference_mode(False), torch.enable_grad(), arithmetic(images, tf32=False):
        found = images.clone().requires_grad_()
        adam = torch.optim.Adam([found], lr=search.rate, betas=(0.5, 0.9))
        for step in range(search.steps):
            adam.param_groups[0]["lr"] = search.rate * (1 - 0.9 * step / search.steps)
            apart = torch.stack(list(_distances(nodes, found)))
            (found.grad,) = torch.autograd.grad(apart.mean(), found)
            adam.step()
            bar.update()
        return found.detach()


def _distances(nodes: tuple[Node, ...], images: Tensor) -> Iterator[Tensor]:
    """How far what comes into each BatchNorm is from its statistics."""
    values: dict[str, Tensor] = {}
    for node, unread in zip(nodes, freed(nodes, {}), strict=True):
        inputs = [values[name] for name in node.inputs] if node.inputs else [images]
        if isinstance(node.op, BatchNorm2d):
            var, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), 1, correction=0)
            known = (node.op.var + node.op.eps).clamp_min(1e-12)  # of a channel that was always the same
            spread = 0.5 * torch.log((var + node.op.eps).clamp_min(1e-12) / known)
            yield ((mean - node.op.mean) ** 2 / known + spread**2).mean()
        values[node.name] = node.op.run(*inputs)
        for name in unread:
            del values[name]
