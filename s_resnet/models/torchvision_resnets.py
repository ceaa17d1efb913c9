"""torchvision's ResNets by name."""

from __future__ import annotations

from torch import nn

# Blocks per stage.
TORCHVISION: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
    "resnext101_64x4d": (3, 4, 23, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
    "wide_resnet101_2": (3, 4, 23, 3),
}


def build_torchvision(arch: str, classes: int = 1000) -> nn.Module:
    """torchvision's untrained network of that name."""
    import torchvision  # late: importing it takes longer than all else here

    model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    return model
