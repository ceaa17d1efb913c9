"""The CIFAR ResNet of "Deep Residual Learning for Image Recognition" (He et al. 2015), section 4.2."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidData, message


class ZeroPadding(nn.Module):
    """Shortcut option A, without parameters: every second pixel, and channels of zeros.

    ``[B, C, H, W] -> [B, C + extra, ceil(H / 2), ceil(W / 2)]``. The paper does not say where the zeros go. Here half
    of them stand before the channels and half after, as published CIFAR checkpoints expect.

    Args:
        extra: how many channels of zeros.
        stride: 1 keeps all pixels.
        last: put all zeros after the channels.
        average: take the mean of 2 x 2 pixels in place of every second one.
    """

    def __init__(self, extra: int, stride: int = 2, *, last: bool = False, average: bool = False) -> None:
        super().__init__()
        self.before = 0 if last else extra // 2
        self.after = extra - self.before
        self.stride, self.average = stride, average

    def forward(self, x: Tensor) -> Tensor:
        if self.average and self.stride != 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        elif self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class CifarBlock(nn.Module):
    """``ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))`` with 3x3 convolutions, the first one strided.

    ``[B, in_channels, H, W] -> [B, channels, ceil(H / stride), ceil(W / stride)]``. With ``project`` the shortcut is a
    strided 1x1 convolution with BN; otherwise it is :class:`ZeroPadding` at stride 2 and the identity at stride 1.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module
        if project:
            convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        elif stride == 2:
            self.shortcut = ZeroPadding(channels - in_channels)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """The ResNet for images of 32 x 32 pixels: ``[B, 3, H, W] -> [B, num_classes]``.

    It has a 3x3 stem; three stages of n blocks with ``width``, ``2 width`` and ``4 width`` channels, of which the
    second and third halve the image; global average pooling; and one linear layer.

    Args:
        depth: the number of weighted layers, 6n + 2.
        num_classes: the number of logits.
        width: channels of the stem and the first stage.
        shortcut: the paper's option where a stage halves the image: ``"A"`` zero padding, ``"B"`` projection.
        project_first: put a projection on the first block of stage 1 too, so that every stage begins with one, as in
            S-ResNet; only with ``shortcut="B"``.

    Raises:
        InvalidData: the arguments describe no network.

    Source: arXiv:1512.03385, section 4.2.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        width: int = 16,
        shortcut: Literal["A", "B"] = "A",
        project_first: bool = False,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InvalidData(message("CifarResNet", "depth", depth, "6n + 2", "Pass 8, 14, 20, 26 or so on"))
        if shortcut not in ("A", "B"):
            raise InvalidData(message("CifarResNet", "shortcut", f"{shortcut!r}", "'A' or 'B'", "Pass one of the two"))
        if project_first and shortcut == "A":
            raise InvalidData(message("CifarResNet", "project_first", "shortcut 'A'", "'B'", "Set shortcut='B'"))
        blocks = (depth - 2) // 6
        project = shortcut == "B"
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1, project_first)
        self.layer2 = _stage(width, 2 * width, blocks, 2, project)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, project)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = torch.flatten(self.avgpool(x), 1)
        logits: Tensor = self.linear(x)
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int, project: bool) -> nn.Sequential:
    """``blocks`` blocks, of which the first changes the shape and may have a projection."""
    first = CifarBlock(in_channels, channels, stride, project)
    return nn.Sequential(first, *(CifarBlock(channels, channels, 1, False) for _ in range(blocks - 1)))
