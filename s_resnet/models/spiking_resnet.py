"""What all spiking ResNets share, from images to logits; and the plain one, whose blocks fire after the addition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import Encode, Repeat, TDBatchNorm2d, TimeMean, convolution, fired

# A residual block by its channels in, channels out and stride; a layer of neurons; a normalization by its channels.
Block = Callable[[int, int, int], nn.Module]
Neurons = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]


class SpikingResNet(nn.Module):
    """A spiking network over ``timesteps`` steps: images ``[B, C, H, W]`` or events ``[T, B, C, H, W]`` to ``[B, N]``.

    stem: the convolution and its normalization, computed once for an image, which is the same at every step. body: what
    follows up to the spikes ``[T * B, features, H', W']`` that are averaged over space, classified by a linear layer
    and averaged over time.
    """

    def __init__(
        self, timesteps: int, stem: nn.Module, body: nn.Module, features: int, classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.encode, self.repeat = Encode(timesteps), Repeat(timesteps)
        self.stem, self.body = stem, body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(features, classes)
        self.mean = TimeMean(timesteps)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.body(self.repeat(self.stem(self.encode(images)), images))
        logits: Tensor = self.mean(self.linear(self.dropout(torch.flatten(self.pool(spikes), 1))))
        return logits


def stem(channels: int, width: int, kind: str, norm: nn.Module) -> nn.Sequential:
    """A 3x3 convolution; for ``"imagenet"`` 7x7 of stride 2, for ``"imagenet-deep"`` three 3x3, the first of 2."""
    if kind == "imagenet-deep":
        rest = (convolution(width, width, bias=True) for _ in range(2))
        return nn.Sequential(convolution(channels, width, 3, 2, bias=True), *rest, norm)
    return nn.Sequential(convolution(channels, width, *((7, 2) if kind == "imagenet" else (3, 1))), norm)


def stages(block: Block, first: int, widths: Sequence[int], blocks: Sequence[int], halving: bool) -> list[nn.Module]:
    """Stages of ``blocks[i]`` blocks with ``widths[i]`` channels; each halves the image, the first if ``halving``."""
    found: list[nn.Module] = []
    for index, (before, width) in enumerate(pairwise((first, *widths))):
        entry = block(before, width, 2 if index or halving else 1)
        found.append(nn.Sequential(entry, *(block(width, width, 1) for _ in range(blocks[index] - 1))))
    return found


class PlainBlock(nn.Module):
    """Fires after the addition: ``neuron(BN(conv(neuron(BN(conv(x))))) + Sc(x))``.

    Sc is the identity or ``BN(conv1x1(x))``.

    The direct translation of the ResNet's block, which the residual blocks of the papers are compared with.
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


def plain_resnet(
    blocks: Sequence[int], widths: Sequence[int], classes: int, timesteps: int, channels: int, neuron: Neurons
) -> SpikingResNet:
    """The plain spiking ResNet with a CIFAR stem; normalizations start at 0.5 as MS-ResNet's do."""

    def norm(width: int) -> nn.Module:
        return TDBatchNorm2d(width, 0.5)

    def block(before: int, width: int, stride: int) -> nn.Module:
        return PlainBlock(before, width, stride, neuron, norm)

    body = nn.Sequential(neuron(), *stages(block, widths[0], widths, blocks, halving=False))
    return SpikingResNet(timesteps, stem(channels, widths[0], "cifar", norm(widths[0])), body, widths[-1], classes)
