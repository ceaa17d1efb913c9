"""DS-ResNet: blocks that fire before the addition, with multi-level firing neurons (Feng et al., arXiv:2210.06386)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .layers import TDBatchNorm2d, convolution, fired, mlf
from .spiking_resnet import Layout, Neurons, Norm, SpikingResNet, stages, stem

THRESHOLD = 0.6  # the lowest of the neurons: a factor in tdBN


class SpikeAddBlock(nn.Module):
    """Adds spikes: ``neuron(BN(conv(neuron(BN(conv(x)))))) + Sc(x)``.

    ``[T * B, in_channels, H, W] -> [T * B, channels, ceil(H / stride), ceil(W / stride)]``. Sc is the identity, or
    ``neuron(BN(conv1x1(x)))`` where the shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, neuron: Neurons, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1, self.neuron1 = convolution(in_channels, channels, stride=stride), norm(channels), neuron()
        self.conv2, self.bn2, self.neuron2 = convolution(channels, channels), norm(channels), neuron()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(convolution(in_channels, channels, 1, stride), norm(channels), neuron())

    def forward(self, x: Tensor) -> Tensor:
        out = fired(self.bn1, self.neuron1, self.conv1(x))
        out = fired(self.bn2, self.neuron2, self.conv2(out))
        total: Tensor = out + self.shortcut(x)
        return total


def ds_resnet(
    layout: Layout,
    classes: int,
    timesteps: int,
    channels: int = 3,
    levels: int = 3,
    normalize_input: bool = False,
) -> SpikingResNet:
    """The spiking DS-ResNet with multi-level firing: 3, 3, 3 blocks are DS-ResNet-20.

    Its tdBN adds eps to the root, and has the lowest threshold as a factor.

    Args:
        layout: the stages; the stem is that of ``"cifar"``.
        classes: N, the number of logits.
        timesteps: T.
        channels: C of the images or frames.
        levels: how many thresholds a neuron has.
        normalize_input: put a batch normalization without weights before the stem, as for DVS-Gesture.

    Source: arXiv:2210.06386 and its released code (3 levels; widths 64, 128, 256 for CIFAR-10, 32, 64, 128 for
    CIFAR10-DVS, 16, 32, 64 for DVS-Gesture).
    """
    norm = partial(TDBatchNorm2d, threshold=THRESHOLD, eps_outside=True)
    neuron = partial(mlf, timesteps, levels)

    def block(before: int, width: int, stride: int) -> nn.Module:
        return SpikeAddBlock(before, width, stride, neuron, norm)

    first = layout.widths[0]
    start = stem(channels, first, "cifar", norm(first))
    if normalize_input:
        start = nn.Sequential(nn.BatchNorm2d(channels, affine=False), *start)
    body = nn.Sequential(neuron(), *stages(block, first, layout, halving=False))
    return SpikingResNet(timesteps, start, body, nn.Linear(layout.widths[-1], classes))
