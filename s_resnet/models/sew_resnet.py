"""SEW-ResNet with element-wise addition, the baseline of directly trained residual networks (arXiv:2102.04159)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ..kernels.surrogate.reference import Firing
from .ds_resnet import SpikeAddBlock
from .layers import SpikingNeuron, convolution
from .spiking_resnet import Layout, Neurons, Norm, SpikingResNet, stages, stem

# Integrate-and-fire with threshold 1, hard and detached reset, arctan surrogate of steepness 2, as in the released
# code.
IF = Firing((1.0,), decay=1.0, reset="zero", surrogate="arctan", width=2.0)


class SpikeAddBottleneck(nn.Module):
    """Adds the spikes of a bottleneck, ``neuron(BN(conv(...)))`` with 1x1, 3x3 and 1x1 convolutions, to ``Sc(x)``.

    ``[T * B, in_channels, H, W] -> [T * B, channels, ceil(H / stride), ceil(W / stride)]``. The inner convolutions have
    a quarter of ``channels``. Sc is the identity, or ``neuron(BN(conv1x1(x)))`` where the shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, neuron: Neurons, norm: Norm) -> None:
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            convolution(in_channels, inner, 1),
            norm(inner),
            neuron(),
            convolution(inner, inner, 3, stride),
            norm(inner),
            neuron(),
            convolution(inner, channels, 1),
            norm(channels),
            neuron(),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(convolution(in_channels, channels, 1, stride), norm(channels), neuron())

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


def sew_resnet(
    layout: Layout, classes: int, timesteps: int, channels: int = 3, bottleneck: bool = False
) -> SpikingResNet:
    """SEW-ResNet: 2, 2, 2, 2 blocks are SEW-ResNet-18; bottlenecks of 3, 4, 6, 3 blocks are SEW-ResNet-50.

    Args:
        layout: the stages; the widths are four times those inside a bottleneck. With kind ``"imagenet"`` a 3x3 max-pool
            of stride 2 follows the stem's spikes. All stages but the first halve the image.
        classes: N, the number of logits.
        timesteps: T.
        channels: C of the images or frames.
        bottleneck: build the blocks of :class:`SpikeAddBottleneck`.

    Source: Fang et al., "Deep Residual Learning in Spiking Neural Networks" (arXiv:2102.04159) and its released code.
    """
    neuron = partial(SpikingNeuron, timesteps, IF)
    make = SpikeAddBottleneck if bottleneck else SpikeAddBlock

    def block(before: int, width: int, stride: int) -> nn.Module:
        return make(before, width, stride, neuron, nn.BatchNorm2d)

    first = layout.widths[0] // 4 if bottleneck else layout.widths[0]
    pool = [nn.MaxPool2d(3, 2, 1)] if layout.kind == "imagenet" else []
    body = nn.Sequential(neuron(), *pool, *stages(block, first, layout, halving=False))
    start = stem(channels, first, layout.kind, nn.BatchNorm2d(first))
    return SpikingResNet(timesteps, start, body, nn.Linear(layout.widths[-1], classes))
