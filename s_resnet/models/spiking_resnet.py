"""The parts that all spiking ResNets share; and the plain one, whose blocks fire after the addition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..runtime.display import Displayed
from .layers import Encode, Repeat, TDBatchNorm2d, TimeMean, convolution, fired

# Builders: a residual block from its channels in, channels out and stride; a layer of neurons; a normalization from its
# channels.
Block = Callable[[int, int, int], nn.Module]
Neurons = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True, repr=False)
class Layout(Displayed):
    """The stages of a ResNet.

    Attributes:
        blocks: how many residual blocks each stage has.
        widths: the channels of each stage's output.
        kind: the stem: ``"cifar"``, a 3x3 convolution; ``"imagenet"``, 7x7 of stride 2; ``"imagenet-deep"``, three 3x3,
            the first of stride 2.
    """

    blocks: Sequence[int]
    widths: Sequence[int]
    kind: str = "cifar"


class SpikingResNet(nn.Module):
    """A spiking network over T steps: images ``[B, C, H, W]`` or events ``[T, B, C, H, W]`` to logits ``[B, N]``.

    The spikes of ``body`` are averaged over space, classified by a linear layer, and averaged over time.

    Args:
        timesteps: T.
        stem: the first convolution and its normalization. Of an image, which is the same at every step, it is computed
            once.
        body: the network from the stem to spikes ``[T * B, features, H', W']``.
        linear: the classifier, from the channels of these spikes to N classes.
        dropout: rate before the linear layer.
    """

    def __init__(
        self, timesteps: int, stem: nn.Module, body: nn.Module, linear: nn.Linear, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encode, self.repeat = Encode(timesteps), Repeat(timesteps)
        self.stem, self.body = stem, body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = linear
        self.mean = TimeMean(timesteps)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.body(self.repeat(self.stem(self.encode(images)), images))
        logits: Tensor = self.mean(self.linear(self.dropout(torch.flatten(self.pool(spikes), 1))))
        return logits


def stem(channels: int, width: int, kind: str, norm: nn.Module) -> nn.Sequential:
    """The first convolution, or three of them, with its normalization; ``kind`` is that of :class:`Layout`."""
    if kind == "imagenet-deep":
        rest = (convolution(width, width, bias=True) for _ in range(2))
        return nn.Sequential(convolution(channels, width, 3, 2, bias=True), *rest, norm)
    return nn.Sequential(convolution(channels, width, *((7, 2) if kind == "imagenet" else (3, 1))), norm)


def stages(block: Block, first: int, layout: Layout, halving: bool) -> list[nn.Module]:
    """The stages behind a stem of ``first`` channels; each halves the image, the first one only if ``halving``."""
    found: list[nn.Module] = []
    for index, (before, width) in enumerate(pairwise((first, *layout.widths))):
        entry = block(before, width, 2 if index or halving else 1)
        found.append(nn.Sequential(entry, *(block(width, width, 1) for _ in range(layout.blocks[index] - 1))))
    return found


class PlainBlock(nn.Module):
    """Fires after the addition: ``neuron(BN(conv(neuron(BN(conv(x))))) + Sc(x))``.

    ``[T * B, in_channels, H, W] -> [T * B, channels, ceil(H / stride), ceil(W / stride)]``. Sc is the identity, or
    ``BN(conv1x1(x))`` where the shape changes. This is the direct translation of a ResNet's block, with which the
    residual blocks of the papers are compared.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, neuron: Neurons, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1, self.neuron1 = convolution(in_channels, channels, stride=stride), norm(channels), neuron()
        self.conv2, self.bn2, self.neuron2 = convolution(channels, channels), norm(channels), neuron()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(convolution(in_channels, channels, 1, stride), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(fired(self.bn1, self.neuron1, self.conv1(x))))
        spikes: Tensor = self.neuron2(out + self.shortcut(x))
        return spikes


def plain_resnet(layout: Layout, classes: int, timesteps: int, channels: int, neuron: Neurons) -> SpikingResNet:
    """The plain spiking ResNet with a CIFAR stem; weights of normalizations start at 0.5, as MS-ResNet's do.

    Args:
        layout: the stages.
        classes: N, the number of logits.
        timesteps: T.
        channels: C of the images or frames.
        neuron: builds a layer of neurons over T steps.
    """

    def norm(width: int) -> nn.Module:
        return TDBatchNorm2d(width, 0.5)

    def block(before: int, width: int, stride: int) -> nn.Module:
        return PlainBlock(before, width, stride, neuron, norm)

    first = layout.widths[0]
    body = nn.Sequential(neuron(), *stages(block, first, layout, halving=False))
    return SpikingResNet(
        timesteps, stem(channels, first, "cifar", norm(first)), body, nn.Linear(layout.widths[-1], classes)
    )
