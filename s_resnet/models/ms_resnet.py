"""MS-ResNet: residual additions in the membrane domain, no neuron behind them (Hu et al., arXiv:2112.08954)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import TDBatchNorm2d, convolution, fired, lif
from .spiking_resnet import SpikingResNet, stages, stem

START = 0.5  # of tdBN's weight: the neurons' threshold


class MSBlock(nn.Module):
    """``Sc(U) + BN0(conv(LIF(BN(conv(LIF(U))))))``: a sum of currents, on which the next block's neurons fire.

    ``[T * B, in_channels, H, W] -> [T * B, channels, ceil(H / stride), ceil(W / stride)]``. ``BN0`` starts at weight 0,
    so that a block starts as its shortcut: the identity, or ``BN(conv1x1(U))`` where the shape changes. pooled: that
    halves by average pooling before its convolution, as in MS-ResNet-104.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, timesteps: int, pooled: bool = False) -> None:
        super().__init__()
        self.neuron1, self.neuron2 = lif(timesteps), lif(timesteps)
        self.conv1, self.bn1 = convolution(in_channels, channels, stride=stride), TDBatchNorm2d(channels, START)
        self.conv2, self.bn2 = convolution(channels, channels), TDBatchNorm2d(channels, 0.0)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            pool = [nn.AvgPool2d(stride, ceil_mode=True)] if pooled and stride > 1 else []
            project = convolution(in_channels, channels, 1, 1 if pool else stride)
            self.shortcut = nn.Sequential(*pool, project, TDBatchNorm2d(channels, START))

    def forward(self, u: Tensor) -> Tensor:
        out = fired(self.bn1, self.neuron2, self.conv1(self.neuron1(u)))
        out = self.bn2(self.conv2(out))
        total: Tensor = self.shortcut(u) + out
        return total


def ms_resnet(
    blocks: Sequence[int], widths: Sequence[int], classes: int, timesteps: int, channels: int = 3, kind: str = "cifar"
) -> SpikingResNet:
    """MS-ResNet: a stem without neurons, :class:`MSBlock` in stages, and neurons before the pooling.

    Neurons: LIF with decay 0.25, hard reset, threshold 0.5, rectangular surrogate, detached reset.

    Args:
        blocks, widths: per stage; 2, 2, 2, 2 blocks are MS-ResNet-18, 3, 8, 32, 8 are MS-ResNet-104.
        kind: of stem. ``"imagenet"``, where every stage halves and nothing is pooled; ``"imagenet-deep"``, three
            convolutions without anything between them, pooled shortcuts and dropout 0.2 (MS-ResNet-104); ``"cifar"``.

    Source: arXiv:2112.08954 and its released code. It averages over time before the linear layer, which is the same.
    """
    deep = kind == "imagenet-deep"

    def block(before: int, width: int, stride: int) -> nn.Module:
        return MSBlock(before, width, stride, timesteps, pooled=deep)

    body = nn.Sequential(*stages(block, widths[0], widths, blocks, halving=kind != "cifar"), lif(timesteps))
    start = stem(channels, widths[0], kind, TDBatchNorm2d(widths[0], START))
    return SpikingResNet(timesteps, start, body, widths[-1], classes, dropout=0.2 if deep else 0.0)
