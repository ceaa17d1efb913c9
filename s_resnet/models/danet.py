"""DANet, our interpretation: densely additive connections between the stages of a spiking ResNet.

The paper (Li, Lei and Yang, Neurocomputing 616, 2025, 128950) says that it abstracts the best residual connection into
a "densely additive connection"; its equations are in no source that we have. What is built here is **our
interpretation**: dense reuse as in DenseNet, by addition instead of concatenation. Within a stage, additions of
currents unroll to ``U_L = U_0 + sum_k F_k``: each block receives the sum of all before it. Between stages::

    U^(s) = stage_s(U^(s-1)) + sum_{j < s} D_js(U^(j)),    U^(0) the stem,
    D_js(U) = BN0(conv1x1(pool(LIF(U)))),                  pool: the mean over what the stages between have halved

so that every stage reads the currents of all stages before. :class:`DenselyAdditive` holds this wiring.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import TDBatchNorm2d, convolution, lif
from .spiking_resnet import Layout, SpikingResNet, stages, stem

START = 0.5  # initial weight of tdBN: the neurons' threshold


class DABottleneck(nn.Module):
    """``Sc(U) + F(U)``; F is three times LIF, convolution (1x1, 3x3, 1x1) and tdBN, the last one starting at weight 0.

    ``[T * B, in_channels, H, W] -> [T * B, channels, ceil(H / stride), ceil(W / stride)]``. The inner convolutions have
    a quarter of ``channels``. Part of our interpretation of DANet.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, timesteps: int) -> None:
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            lif(timesteps),
            convolution(in_channels, inner, 1),
            TDBatchNorm2d(inner, START),
            lif(timesteps),
            convolution(inner, inner, 3, stride),
            TDBatchNorm2d(inner, START),
            lif(timesteps),
            convolution(inner, channels, 1),
            TDBatchNorm2d(channels, 0.0),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(convolution(in_channels, channels, 1, stride), TDBatchNorm2d(channels, START))

    def forward(self, u: Tensor) -> Tensor:
        total: Tensor = self.shortcut(u) + self.branch(u)
        return total


class DenselyAdditive(nn.Module):
    """Stages to whose sums all earlier currents are added, by 1x1 convolutions of their spikes: our interpretation.

    Args:
        stages: the modules.
        channels: channels of the stem and of each stage.
        halved: by how much each stage divides the height and width.
        timesteps: T.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int], halved: Sequence[int], timesteps: int):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.dense = nn.ModuleList()
        for s in range(len(stages)):
            links: list[nn.Module] = []
            for j in range(s + 1):
                factor = 1
                for step in halved[j : s + 1]:
                    factor *= step
                pool = [nn.AvgPool2d(factor, ceil_mode=True)] if factor > 1 else []
                to = channels[s + 1]
                links.append(
                    nn.Sequential(lif(timesteps), *pool, convolution(channels[j], to, 1), TDBatchNorm2d(to, 0.0))
                )
            self.dense.append(nn.ModuleList(links))

    def forward(self, u: Tensor) -> Tensor:
        reached = [u]
        for stage, links in zip(self.stages, self.dense, strict=True):
            total = stage(reached[-1])
            for earlier, link in zip(reached, links, strict=True):  # type: ignore[call-overload]
                total = total + link(earlier)
            reached.append(total)
        return reached[-1]


def danet(layout: Layout, classes: int, timesteps: int, channels: int = 3) -> SpikingResNet:
    """DANet (our interpretation) of bottlenecks: 3, 4, 6, 3 blocks are DANet-50.

    Neurons and normalization are those of MS-ResNet (:func:`s_resnet.models.ms_resnet.ms_resnet`), since the paper's
    are not known to us.

    Args:
        layout: the stages; the widths are four times those inside a bottleneck.
        classes: N, the number of logits.
        timesteps: T.
        channels: C of the images or frames.
    """
    halving = layout.kind != "cifar"

    def block(before: int, width: int, stride: int) -> nn.Module:
        return DABottleneck(before, width, stride, timesteps)

    first = layout.widths[0] // 4
    parts = stages(block, first, layout, halving)
    halved = [2 if index or halving else 1 for index in range(len(parts))]
    body = nn.Sequential(DenselyAdditive(parts, (first, *layout.widths), halved, timesteps), lif(timesteps))
    start = stem(channels, first, layout.kind, TDBatchNorm2d(first, START))
    return SpikingResNet(timesteps, start, body, nn.Linear(layout.widths[-1], classes))
