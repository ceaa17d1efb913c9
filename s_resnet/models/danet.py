"""DANet, our interpretation: densely additive connections between the stages of a spiking ResNet.

The paper (Li, Lei and Yang, Neurocomputing 616, 2025, 128950) says that it abstracts the best residual connection into
a "densely additive connection"; its equations were not published in any source we have. What is built here, and nothing
else, is **our interpretation**: dense reuse as in DenseNet, by addition instead of concatenation. Within a stage,
additions of currents unroll to ``U_L = U_0 + sum_k F_k``, each block getting the sum of all before it. Between stages::

    U^(s) = stage_s(U^(s-1)) + sum_{j < s} D_js(U^(j)),    U^(0) the stem,
    D_js(U) = BN0(conv1x1(pool(LIF(U)))),                  pool: the mean over what the stages between have halved

so that every stage reads the currents of all stages before. All of that wiring is in :class:`DenselyAdditive`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import TDBatchNorm2d, convolution, lif
from .spiking_resnet import SpikingResNet, stages, stem

START = 0.5  # of tdBN's weight: the neurons' threshold


class DABottleneck(nn.Module):
    """``Sc(U) + F(U)``, F three times LIF, convolution (1x1, 3x3, 1x1) and tdBN, the last one starting at 0.

    Part of our interpretation of DANet. The inner convolutions have a quarter of ``channels``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, timesteps: int) -> None:
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            *(lif(timesteps), convolution(in_channels, inner, 1), TDBatchNorm2d(inner, START)),
            *(lif(timesteps), convolution(inner, inner, 3, stride), TDBatchNorm2d(inner, START)),
            *(lif(timesteps), convolution(inner, channels, 1), TDBatchNorm2d(channels, 0.0)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(convolution(in_channels, channels, 1, stride), TDBatchNorm2d(channels, START))

    def forward(self, u: Tensor) -> Tensor:
        total: Tensor = self.shortcut(u) + self.branch(u)
        return total


class DenselyAdditive(nn.Module):
    """Stages, each of which adds what 1x1 convolutions make of the spikes of all before: our interpretation of DANet.

    stages: the modules. channels: of the stem and of each stage. halved: by how much each stage divides the image.
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


def danet(
    blocks: Sequence[int], widths: Sequence[int], classes: int, timesteps: int, channels: int = 3, kind: str = "cifar"
) -> SpikingResNet:
    """DANet (our interpretation) of bottlenecks: 3, 4, 6, 3 blocks are DANet-50.

    widths: the channels that stages give, four times those inside a bottleneck. Neurons and normalization as in
    MS-ResNet (:func:`s_resnet.models.ms_resnet.ms_resnet`), since the paper's are not known to us.
    """
    halving = kind != "cifar"

    def block(before: int, width: int, stride: int) -> nn.Module:
        return DABottleneck(before, width, stride, timesteps)

    first = widths[0] // 4
    parts = stages(block, first, widths, blocks, halving)
    halved = [2 if index or halving else 1 for index in range(len(parts))]
    body = nn.Sequential(DenselyAdditive(parts, (first, *widths), halved, timesteps), lif(timesteps))
    return SpikingResNet(timesteps, stem(channels, first, kind, TDBatchNorm2d(first, START)), body, widths[-1], classes)
