"""A ResNet by plan: the networks that differ in stem, width, shortcut and order of layers, in one module."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .resnet import ZeroPadding


@dataclass(frozen=True)
class Plan:
    """What kind of ResNet: first what its weights show by their shapes, then what they do not.

    Attributes:
        blocks: the number of blocks of each stage.
        convolutions: of a block: 2 (basic: 3x3, 3x3) or 3 (bottleneck: 1x1, 3x3, 1x1, the last of 4 times the width).
        preactivated: whether BatchNorm and ReLU stand before each convolution of a block, not behind it.
        groups: G, of the 3x3 convolutions of a bottleneck.
        per_group: their channels per group at width 64; a bottleneck has ``width * per_group / 64 * G`` inside.
        channels: C of the images.
        stem: the channels behind each convolution of the stem, which are one or three.
        kernel: the height and width of their kernels.
        width: of the first stage; each other stage has twice that of the one before.
        shortcut: what is on a shortcut that changes the shape: zeros for the new channels, or a 1x1 convolution.
        projected: whether the first block of the first stage has such a shortcut whatever its shape.
        positions: the place of that convolution in its Sequential, in the first stage and in the others: 1 where an
            average pool stands before it.
        normed: whether a BatchNorm follows it.
        biased: which convolutions have biases: some of ``stem``, ``block`` and ``shortcut``.
        last_norm: whether the last stage is followed by BatchNorm and ReLU, as in pre-activated networks.
        stem_stride: the stride of the first convolution.
        maxpool: whether a 3x3 max-pool of stride 2 follows the stem.
        strided: which convolution of a block halves the image, 1 or 2.
        first_stride: the stride of the first stage.
        average: whether a shortcut halves the image by 2x2 averages, not by leaving out pixels.
        zeros_last: whether all channels of zeros stand behind the others, not half of them before.
        raw: whether a convolution on a shortcut of a pre-activated block reads the input itself, not the activation;
            zeros always do.
    """

    blocks: tuple[int, ...]
    convolutions: Literal[2, 3] = 2
    preactivated: bool = False
    groups: int = 1
    per_group: int = 64
    channels: int = 3
    stem: tuple[int, ...] = (64,)
    kernel: int = 7
    width: int = 64
    shortcut: Literal["zeros", "projection"] = "projection"
    projected: bool = False
    positions: tuple[int, int] = (0, 0)
    normed: bool = True
    biased: frozenset[str] = frozenset()
    last_norm: bool = False
    stem_stride: int = 2
    maxpool: bool = True
    strided: int = 1
    first_stride: int = 1
    average: bool = False
    zeros_last: bool = False
    raw: bool = False

    @property
    def expansion(self) -> int:
        """The channels of a block's result by the width of its stage."""
        return 4 if self.convolutions == 3 else 1

    @property
    def features(self) -> int:
        """The channels behind the last stage."""
        return (self.width * self.expansion) << (len(self.blocks) - 1)


@dataclass(frozen=True)
class _Place:
    """Where a block stands: channels before and behind it, its width, its stage from 0 on, and its stride."""

    before: int
    width: int
    behind: int
    stage: int
    stride: int


class PlannedResNet(nn.Module):
    """The untrained ResNet of a plan: ``[B, C, H, W] -> [B, num_classes]``, with the names of torchvision's ResNets.

    The stem is ``conv1``, a Sequential where it has three convolutions. A pre-activated network has ``norm`` behind its
    last stage, and none behind the stem.

    Args:
        plan: what kind of ResNet.
        num_classes: the number of logits.
    """

    def __init__(self, plan: Plan, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _stem(plan)
        self.bn1 = nn.Identity() if plan.preactivated else nn.BatchNorm2d(plan.stem[-1])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if plan.maxpool else nn.Identity()
        before = plan.stem[-1]
        self.stages = len(plan.blocks)
        for stage, count in enumerate(plan.blocks):
            width = plan.width * 2**stage
            behind, blocks = width * plan.expansion, list[nn.Module]()
            for number in range(count):
                stride = 1 if number else 2 if stage else plan.first_stride
                blocks.append(_Block(plan, _Place(before, width, behind, stage, stride), first=not number))
                before = behind
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(before) if plan.last_norm else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc: nn.Module = nn.Linear(before, num_classes)
        self.begins, self.ends = not plan.preactivated, plan.last_norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.begins:
            x = self.relu(self.bn1(x))
        x = self.maxpool(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        if self.ends:
            x = self.relu(self.norm(x))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class _Block(nn.Module):
    """``ReLU(F(x) + shortcut(x))`` with BatchNorm behind each convolution, or the pre-activated ``F(x) + shortcut``."""

    def __init__(self, plan: Plan, place: _Place, *, first: bool) -> None:
        super().__init__()
        self.convolutions, self.preactivated = plan.convolutions, plan.preactivated
        self.raw = plan.raw or plan.shortcut == "zeros"
        bottleneck = plan.convolutions == 3
        inner = max(1, place.width * plan.per_group // 64) * plan.groups if bottleneck else place.width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        channels = (place.before, *[inner] * (plan.convolutions - 1), place.behind)
        for number, kernel in enumerate(kernels, 1):
            convolution = nn.Conv2d(
                channels[number - 1],
                channels[number],
                kernel,
                stride=place.stride if number == plan.strided else 1,
                padding=kernel // 2,
                groups=plan.groups if bottleneck and number == 2 else 1,
                bias="block" in plan.biased,
            )
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(channels[number - (1 if plan.preactivated else 0)]))
        self.relu = nn.ReLU(inplace=not plan.preactivated)
        changes = place.stride != 1 or place.before != place.behind or (first and place.stage == 0 and plan.projected)
        self.downsample = _shortcut(plan, place) if first and changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = skipped = x
        for number in range(1, self.convolutions + 1):
            convolution, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            if self.preactivated:
                active = self.relu(norm(out))
                skipped = active if number == 1 and self.downsample is not None and not self.raw else skipped
                out = convolution(active)
            else:
                out = norm(convolution(out))
                out = out if number == self.convolutions else self.relu(out)
        if self.downsample is not None:
            skipped = self.downsample(skipped)
        return out + skipped if self.preactivated else self.relu(out + skipped)


def _stem(plan: Plan) -> nn.Module:
    """One convolution, or three with BatchNorm and ReLU between."""
    layers = list[nn.Module]()
    before = plan.channels
    for number, channels in enumerate(plan.stem):
        if number:
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
        stride, bias = 1 if number else plan.stem_stride, "stem" in plan.biased
        layers.append(nn.Conv2d(before, channels, plan.kernel, stride, plan.kernel // 2, bias=bias))
        before = channels
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _shortcut(plan: Plan, place: _Place) -> nn.Module:
    """The shortcut of a block that changes the shape."""
    if plan.shortcut == "zeros":
        extra = place.behind - place.before
        return ZeroPadding(extra, place.stride, last=plan.zeros_last, average=plan.average)
    position, parts = plan.positions[min(place.stage, 1)], OrderedDict[str, nn.Module]()
    halves = plan.average and place.stride == 2
    if halves or position:
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if halves else nn.Identity()
        parts["0" if position else "pool"] = pool
    stride, bias = 1 if halves else place.stride, "shortcut" in plan.biased
    parts[str(position)] = nn.Conv2d(place.before, place.behind, 1, stride, bias=bias)
    if plan.normed:
        parts[str(position + 1)] = nn.BatchNorm2d(place.behind)
    return nn.Sequential(parts)
