"""SEW-ResNet with element-wise addition, the baseline of directly trained residual networks (arXiv:2102.04159)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from .ds_resnet import SpikeAddBlock
from .layers import SpikingNeuron, convolution
from .spiking_resnet import Neurons, Norm, SpikingResNet, stages, stem

# Integrate-and-fire, threshold 1, hard and detached reset, arctan surrogate of steepness 2: as in its released code.
integrate_and_fire = partial(SpikingNeuron, thresholds=(1.0,), decay=1.0, surrogate="arctan", width=2.0)


class SpikeAddBottleneck(nn.Module):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions, each normalized and fired, whose spikes are added to ``Sc(x)``.

    The 1x1 convolutions have a quarter of ``channels``; Sc is the identity or ``neuron(BN(conv1x1(x)))``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, neuron: Neurons, norm: Norm) -> None:
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            *(convolution(in_channels, inner, 1), norm(inner), neuron()),
            *(convolution(inner, inner, 3, stride), norm(inner), neuron()),
            *(convolution(inner, channels, 1), norm(channels), neuron()),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(convolution(in_channels, channels, 1, stride), norm(channels), neuron())

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


def sew_resnet(
    blocks: Sequence[int],
    widths: Sequence[int],
    classes: int,
    timesteps: int,
    channels: int = 3,
    kind: str = "cifar",
    bottleneck: bool = False,
) -> SpikingResNet:
    """SEW-ResNet: 2, 2, 2, 2 blocks are SEW-ResNet-18; bottlenecks of 3, 4, 6, 3 blocks SEW-ResNet-50.

    widths: the channels that stages give, four times those inside a bottleneck. kind ``"imagenet"``: a 7x7 stem and a
    3x3 max-pool of its spikes, each of stride 2, and all stages but the first halve; ``"cifar"``: a 3x3 stem.
    Source: Fang et al., "Deep Residual Learning in Spiking Neural Networks" (arXiv:2102.04159) and its released code.
    """
    neuron = partial(integrate_and_fire, timesteps)
    make = SpikeAddBottleneck if bottleneck else SpikeAddBlock

    def block(before: int, width: int, stride: int) -> nn.Module:
        return make(before, width, stride, neuron, nn.BatchNorm2d)

    first = widths[0] // 4 if bottleneck else widths[0]
    pool = [nn.MaxPool2d(3, 2, 1)] if kind == "imagenet" else []
    body = nn.Sequential(neuron(), *pool, *stages(block, first, widths, blocks, halving=False))
    return SpikingResNet(timesteps, stem(channels, first, kind, nn.BatchNorm2d(first)), body, widths[-1], classes)
