"""Networks with the names that programs give their layers, written anew: each is the oracle of its layout."""

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    return nn.BatchNorm2d(channels)


def conv(before, behind, kernel=3, stride=1, **options):
    return nn.Conv2d(before, behind, kernel, stride, kernel // 2, **{"bias": False, **options})


# ---- names shortcut and linear


class CifarBasic(nn.Module):
    expansion = 1

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(before, width, 3, stride), norm(width)
        self.conv2, self.bn2 = conv(width, width), norm(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(conv(before, width, 1, stride), norm(width))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarBottleneck(nn.Module):
    expansion = 4

    def __init__(self, before, width, stride, groups=1):
        super().__init__()
        self.conv1, self.bn1 = conv(before, width, 1), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride, groups=groups), norm(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), norm(4 * width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != 4 * width:
            self.shortcut = nn.Sequential(conv(before, 4 * width, 1, stride), norm(4 * width))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + self.shortcut(x))


def stage(block, before, width, count, stride):
    """Blocks in a Sequential, and the channels behind them."""
    behind = width * block.expansion
    blocks = [block(before, width, stride)] + [block(behind, width, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks), behind


class Cifar(nn.Module):
    """A 3x3 stem without max-pool, three or four stages."""

    def __init__(self, block, counts, width=8, channels=3, classes=6):
        super().__init__()
        self.conv1, self.bn1, before = conv(channels, width), norm(width), width
        for number, count in enumerate(counts):
            layers, before = stage(block, before, width * 2**number, count, 2 if number else 1)
            self.add_module(f"layer{number + 1}", layers)
        self.counts, self.linear = len(counts), nn.Linear(before, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(self.counts):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


# ---- pre-activated


class Preactivated(nn.Module):
    expansion = 1

    def __init__(self, before, width, stride):
        super().__init__()
        self.bn1, self.conv1 = norm(before), conv(before, width, 3, stride)
        self.bn2, self.conv2 = norm(width), conv(width, width)
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(conv(before, width, 1, stride))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreactivatedBottleneck(nn.Module):
    expansion = 4

    def __init__(self, before, width, stride):
        super().__init__()
        self.bn1, self.conv1 = norm(before), conv(before, width, 1)
        self.bn2, self.conv2 = norm(width), conv(width, width, 3, stride)
        self.bn3, self.conv3 = norm(width), conv(width, 4 * width, 1)
        if stride != 1 or before != 4 * width:
            self.shortcut = nn.Sequential(conv(before, 4 * width, 1, stride))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return self.conv3(F.relu(self.bn3(out))) + shortcut


class PreactResNet(Cifar):
    """Without BatchNorm behind the stem, and with one behind the last stage if it has a name."""

    def __init__(self, block, counts, width=8, last=None):
        super().__init__(block, counts, width)
        del self.bn1
        if last is not None:
            self.add_module(last, norm(self.linear.in_features))
        self.last = last

    def forward(self, x):
        x = self.conv1(x)
        for number in range(self.counts):
            x = getattr(self, f"layer{number + 1}")(x)
        if self.last is not None:
            x = F.relu(getattr(self, self.last)(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    """The shortcut is a convolution of its own name, of the activation."""

    def __init__(self, before, behind, stride):
        super().__init__()
        self.bn1, self.conv1 = norm(before), conv(before, behind, 3, stride)
        self.bn2, self.conv2 = norm(behind), conv(behind, behind)
        self.convShortcut = None if before == behind else conv(before, behind, 1, stride)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, count, before, behind, stride):
        super().__init__()
        blocks = [WideBlock(before, behind, stride)] + [WideBlock(behind, behind, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, times, classes=6):
        super().__init__()
        count, width = (depth - 4) // 6, 16 * times
        self.conv1 = conv(3, 16)
        self.block1 = WideStage(count, 16, width, 1)
        self.block2 = WideStage(count, width, 2 * width, 2)
        self.block3 = WideStage(count, 2 * width, 4 * width, 2)
        self.bn1, self.fc = norm(4 * width), nn.Linear(4 * width, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class BiasedWideBlock(nn.Module):
    """Biases, the stride in the second convolution, and a shortcut of the input itself."""

    expansion = 1

    def __init__(self, before, width, stride):
        super().__init__()
        self.bn1, self.conv1 = norm(before), conv(before, width, bias=True)
        self.bn2, self.conv2 = norm(width), conv(width, width, 3, stride, bias=True)
        self.dropout, self.shortcut = nn.Dropout(0.3), nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(conv(before, width, 1, stride, bias=True))

    def forward(self, x):
        out = self.dropout(self.conv1(F.relu(self.bn1(x))))
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class BiasedWideResNet(nn.Module):
    def __init__(self, depth, times, classes=6):
        super().__init__()
        count, before = (depth - 4) // 6, 16
        self.conv1 = conv(3, 16, bias=True)
        self.layer1, before = stage(BiasedWideBlock, before, 16 * times, count, 1)
        self.layer2, before = stage(BiasedWideBlock, before, 32 * times, count, 2)
        self.layer3, before = stage(BiasedWideBlock, before, 64 * times, count, 2)
        self.bn1, self.linear = norm(before), nn.Linear(before, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.layer3(self.layer2(self.layer1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


# ---- residual_function


class ResidualFunction(nn.Module):
    def __init__(self, before, width, stride, expansion):
        super().__init__()
        behind = width * expansion
        layers = [conv(before, width, 3, stride), norm(width), nn.ReLU(), conv(width, behind), norm(behind)]
        if expansion == 4:
            layers = [conv(before, width, 1), norm(width), nn.ReLU(), conv(width, width, 3, stride), norm(width)]
            layers += [nn.ReLU(), conv(width, behind, 1), norm(behind)]
        self.residual_function, self.shortcut = nn.Sequential(*layers), nn.Sequential()
        if stride != 1 or before != behind:
            self.shortcut = nn.Sequential(conv(before, behind, 1, stride), norm(behind))

    def forward(self, x):
        return F.relu(self.residual_function(x) + self.shortcut(x))


class ResidualFunctions(nn.Module):
    def __init__(self, counts, expansion, width=8, classes=6):
        super().__init__()
        self.conv1, before = nn.Sequential(conv(3, width), norm(width), nn.ReLU(inplace=True)), width
        for number, count in enumerate(counts):
            blocks = nn.Sequential()
            for place in range(count):
                stride = 2 if number and not place else 1
                blocks.append(ResidualFunction(before, width * 2**number, stride, expansion))
                before = width * 2**number * expansion
            self.add_module(f"conv{number + 2}_x", blocks)
        self.avg_pool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(before, classes)

    def forward(self, x):
        x = self.conv5_x(self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x)))))
        return self.fc(self.avg_pool(x).flatten(1))


# ---- stems and shortcuts of timm and OpenMMLab


def deep_stem(width):
    half = width // 2
    layers = [conv(3, half, 3, 2), norm(half), nn.ReLU(), conv(half, half), norm(half), nn.ReLU()]
    return [*layers, conv(half, width)]


class DBottleneck(nn.Module):
    """The shortcut of ResNet-D, which averages before its convolution, or a strided one."""

    def __init__(self, before, width, stride, first, average, caffe=False):
        super().__init__()
        self.conv1, self.bn1 = conv(before, width, 1, stride if caffe else 1), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, 1 if caffe else stride), norm(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), norm(4 * width)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if first and average:
            pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
            self.downsample = nn.Sequential(pool, conv(before, 4 * width, 1), norm(4 * width))
        elif first:
            self.downsample = nn.Sequential(conv(before, 4 * width, 1, stride), norm(4 * width))

    def forward(self, x):
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Timm(nn.Module):
    """ResNet-C (a deep stem), -D (also averages) and -T (averages alone)."""

    def __init__(self, deep, average, width=8, classes=6, counts=(1, 1, 1, 1), caffe=False):
        super().__init__()
        self.conv1 = nn.Sequential(*deep_stem(width)) if deep else conv(3, width, 7, 2)
        self.bn1, self.act1, self.maxpool = norm(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        before = width
        for number, count in enumerate(counts):
            blocks = nn.Sequential()
            for place in range(count):
                stride = 2 if number and not place else 1
                blocks.append(DBottleneck(before, width * 2**number, stride, not place, average, caffe))
                before = 4 * width * 2**number
            self.add_module(f"layer{number + 1}", blocks)
        self.fc = nn.Linear(before, classes)

    def features(self, x):
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Backbone(nn.Module):
    """A stem in one Sequential with its BatchNorm and ReLU."""

    def __init__(self, width, average):
        super().__init__()
        inner = Timm(True, average, width)
        self.stem = nn.Sequential(*deep_stem(width), norm(width), nn.ReLU(inplace=True))
        self.maxpool = inner.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = inner.layer1, inner.layer2, inner.layer3, inner.layer4

    def forward(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(self.stem(x))))))


class Headed(nn.Module):
    """A backbone and a head whose linear layer is ``fc``, as in OpenMMLab."""

    def __init__(self, backbone, features, classes=6):
        super().__init__()
        self.backbone, self.head = backbone, nn.Module()
        self.head.fc = nn.Linear(features, classes)

    def forward(self, x):
        return self.head.fc(self.backbone(x).mean((2, 3)))


# ---- Hugging Face


class Convolution(nn.Module):
    def __init__(self, before, behind, kernel=3, stride=1, active=True):
        super().__init__()
        self.convolution, self.normalization, self.active = conv(before, behind, kernel, stride), norm(behind), active

    def forward(self, x):
        x = self.normalization(self.convolution(x))
        return F.relu(x) if self.active else x


class FaceLayer(nn.Module):
    def __init__(self, before, behind, stride, bottleneck, early):
        super().__init__()
        inner = behind // 4
        if bottleneck:
            first = Convolution(before, inner, 1, stride if early else 1)
            second = Convolution(inner, inner, 3, 1 if early else stride)
            self.layer = nn.Sequential(first, second, Convolution(inner, behind, 1, active=False))
        else:
            self.layer = nn.Sequential(
                Convolution(before, behind, 3, stride), Convolution(behind, behind, active=False)
            )
        changes = before != behind or stride != 1
        self.shortcut = Convolution(before, behind, 1, stride, active=False) if changes else nn.Identity()

    def forward(self, x):
        return F.relu(self.layer(x) + self.shortcut(x))


class FaceStage(nn.Module):
    def __init__(self, before, behind, stride, count, bottleneck, early):
        super().__init__()
        layers = [FaceLayer(before, behind, stride, bottleneck, early)]
        layers += [FaceLayer(behind, behind, 1, bottleneck, early) for _ in range(count - 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Face(nn.Module):
    """``early``: the bottlenecks halve the image in their first convolution."""

    def __init__(self, counts, bottleneck, early=False, width=8, classes=6):
        super().__init__()
        self.resnet, behind = nn.Module(), width * (4 if bottleneck else 1)
        self.resnet.embedder, self.resnet.encoder = nn.Module(), nn.Module()
        self.resnet.embedder.embedder = Convolution(3, width, 7, 2)
        stages, before = nn.ModuleList(), width
        for number, count in enumerate(counts):
            stages.append(FaceStage(before, behind * 2**number, 2 if number else 1, count, bottleneck, early))
            before = behind * 2**number
        self.resnet.encoder.stages = stages
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(before, classes))

    def forward(self, x):
        x = F.max_pool2d(self.resnet.embedder.embedder(x), 3, 2, 1)
        for part in self.resnet.encoder.stages:
            x = part(x)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)))


# ---- ResNetV2 of timm


class SecondBlock(nn.Module):
    expansion = 4

    def __init__(self, before, width, stride):
        super().__init__()
        self.downsample = None
        if before != 4 * width:
            self.downsample = nn.Module()
            self.downsample.conv = conv(before, 4 * width, 1, stride)
        self.norm1, self.conv1 = norm(before), conv(before, width, 1)
        self.norm2, self.conv2 = norm(width), conv(width, width, 3, stride)
        self.norm3, self.conv3 = norm(width), conv(width, 4 * width, 1)

    def forward(self, x):
        active = F.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample.conv(active)
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return self.conv3(F.relu(self.norm3(out))) + shortcut


class Second(nn.Module):
    """Its classifier is a 1x1 convolution."""

    def __init__(self, counts, width=8, classes=6):
        super().__init__()
        self.stem, self.stages, self.head, before = nn.Module(), nn.ModuleList(), nn.Module(), width
        self.stem.conv = conv(3, width, 7, 2)
        for number, count in enumerate(counts):
            part = nn.Module()
            part.blocks, before = stage(SecondBlock, before, width * 2**number, count, 2 if number else 1)
            self.stages.append(part)
        self.norm, self.head.fc = norm(before), nn.Conv2d(before, classes, 1)

    def forward(self, x):
        x = F.max_pool2d(self.stem.conv(x), 3, 2, 1)
        for part in self.stages:
            x = part.blocks(x)
        return self.head.fc(F.adaptive_avg_pool2d(F.relu(self.norm(x)), 1)).flatten(1)


# ---- Detectron2


class NormedConvolution(nn.Conv2d):
    def __init__(self, *given, **options):
        made = conv(*given, **options)
        super().__init__(made.in_channels, made.out_channels, made.kernel_size, made.stride, made.padding, bias=False)
        self.norm = norm(made.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class DetectronBlock(nn.Module):
    expansion = 4

    def __init__(self, before, width, stride):
        super().__init__()
        changes = before != 4 * width
        self.shortcut = NormedConvolution(before, 4 * width, 1, stride) if changes else None
        self.conv1 = NormedConvolution(before, width, 1, stride)
        self.conv2, self.conv3 = NormedConvolution(width, width), NormedConvolution(width, 4 * width, 1)

    def forward(self, x):
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class Detectron(nn.Module):
    def __init__(self, counts, width=8, classes=6):
        super().__init__()
        self.stem, before = nn.Module(), width
        self.stem.conv1 = NormedConvolution(3, width, 7, 2)
        for number, count in enumerate(counts):
            layers, before = stage(DetectronBlock, before, width * 2**number, count, 2 if number else 1)
            self.add_module(f"res{number + 2}", layers)
        self.linear = nn.Linear(before, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem.conv1(x)), 3, 2, 1)
        return self.linear(self.res5(self.res4(self.res3(self.res2(x)))).mean((2, 3)))


# ---- torchvision's names


class Basic(CifarBasic):
    def __init__(self, before, width, stride):
        super().__init__(before, width, stride)
        self.downsample = self.shortcut if len(self.shortcut) else None
        del self.shortcut

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Narrow(nn.Module):
    """torchvision's ResNet of basic blocks at an eighth of its width, with another stem or classifier."""

    def __init__(self, channels=3, kernel=7, stride=2, maxpool=True, head=None):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(channels, 8, kernel, stride), norm(8), nn.ReLU(inplace=True)
        self.maxpool, before = nn.MaxPool2d(3, 2, 1) if maxpool else nn.Identity(), 8
        for number in range(4):
            layers, before = stage(Basic, before, 8 * 2**number, 1, 2 if number else 1)
            self.add_module(f"layer{number + 1}", layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(before, 6) if head is None else head

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x))))).flatten(1))


class Averages(nn.Module):
    """Shortcut option A of every second pixel or of means, with zeros behind the channels."""

    def __init__(self, average):
        super().__init__()
        self.average = average

    def forward(self, x):
        x = F.avg_pool2d(x, 2) if self.average else x[:, :, ::2, ::2]
        return torch.cat([x, x * 0], 1)


class ZeroBasic(CifarBasic):
    def __init__(self, before, width, stride, average=False):
        super().__init__(before, width, stride)
        self.shortcut = Averages(average) if stride != 1 else nn.Sequential()


class AveragedBasic(ZeroBasic):
    def __init__(self, before, width, stride):
        super().__init__(before, width, stride, average=True)


class FunctionalAverage(CifarBasic):
    """An average pool outside of the Sequential of the shortcut, which leaves the names of its layers as they are."""

    def __init__(self, before, width, stride):
        super().__init__(before, width, stride)
        self.halves = stride == 2
        if self.halves:
            self.shortcut = nn.Sequential(conv(before, width, 1), norm(width))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(F.avg_pool2d(x, 2) if self.halves else x))
