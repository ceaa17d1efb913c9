"""MS-ResNet: residual additions in the membrane domain, no neuron behind them (Hu et al., arXiv:2112.08954)."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import TDBatchNorm2d, convolution, fired, lif
from .spiking_resnet import Layout, SpikingResNet, stages, stem

START = 0.5  # initial weight of tdBN: the neurons' threshold


class MSBlock(nn.Module):
    """``Sc(U) + BN0(conv(LIF(BN(conv(LIF(U))))))``: a sum of currents, on which the next block's neurons fire.

    ``[T * B, in_channels, H, W] -> [T * B, channels, ceil(H / stride), ceil(W / stride)]``. ``BN0`` starts at weight 0,
    so that a block starts as its shortcut: the identity, or ``BN(conv1x1(U))`` where the shape changes.

    Args:
        in_channels: channels of U.
        channels: channels of the result.
        stride: of the first convolution.
        timesteps: T.
        pooled: halve the shortcut by average pooling before its convolution, as in MS-ResNet-104.
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


def ms_resnet(layout: Layout, classes: int, timesteps: int, channels: int = 3) -> SpikingResNet:
    """MS-ResNet: a stem without neurons, stages of :class:`MSBlock`, and neurons before the pooling.

    The neurons are LIF with decay 0.25, threshold 0.5, hard and detached reset, and a rectangular surrogate.

    Args:
        layout: the stages; 2, 2, 2, 2 blocks are MS-ResNet-18, 3, 8, 32, 8 are MS-ResNet-104. With kind ``"imagenet"``
            every stage halves the image, and nothing is pooled; ``"imagenet-deep"`` (MS-ResNet-104) has nothing
            between the three convolutions of its stem, pooled shortcuts, and dropout 0.2.
        classes: N, the number of logits.
        timesteps: T.
        channels: C of the images or frames.

    Source: arXiv:2112.08954 and its released code, which averages over time before the linear layer. The result is the
    same.
    """
    deep, first = layout.kind == "imagenet-deep", layout.widths[0]

    def block(before: int, width: int, stride: int) -> nn.Module:
        return MSBlock(before, width, stride, timesteps, pooled=deep)

    body = nn.Sequential(*stages(block, first, layout, halving=layout.kind != "cifar"), lif(timesteps))
    start = stem(channels, first, layout.kind, TDBatchNorm2d(first, START))
    return SpikingResNet(timesteps, start, body, nn.Linear(layout.widths[-1], classes), dropout=0.2 if deep else 0.0)
