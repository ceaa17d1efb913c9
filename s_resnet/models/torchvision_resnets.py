"""torchvision's ResNets by name, and the variants of them that no checkpoint tells apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

# Blocks per stage. Of these networks only those with the numbers of a file are built and compared with it.
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
BASIC = ("resnet18", "resnet34")  # the others have bottlenecks


def _nomaxpool(model: nn.Module) -> None:
    model.register_module("maxpool", nn.Identity())


def _stem1(model: nn.Module) -> None:
    assert isinstance(model.conv1, nn.Conv2d)
    model.conv1.stride = (1, 1)


def _v1(model: nn.Module) -> None:
    for block in model.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and hasattr(block, "conv3"):
            first.stride, second.stride = second.stride, first.stride


# nomaxpool has no max-pool in the stem, and the convolution of stem1 has stride 1: both are common for small images. v1
# halves the image in the first convolution of a bottleneck, as the paper does; torchvision does in the second.
VARIANTS: Mapping[str, Callable[[nn.Module], None]] = {"nomaxpool": _nomaxpool, "stem1": _stem1, "v1": _v1}


def base_of(arch: str) -> str | None:
    """torchvision's name in ``arch``: ``resnet18`` for ``resnet18-nomaxpool``. None where it has no such name."""
    base, *variants = arch.split("-")
    fits = all(name in VARIANTS and not (name == "v1" and base in BASIC) for name in variants)
    return base if base in TORCHVISION and fits and len(set(variants)) == len(variants) else None


def variants_of(arch: str) -> tuple[str, ...]:
    """The other architectures with the same names and shapes of weights; empty for an unknown ``arch``."""
    base = base_of(arch)
    if base is None:
        return ()
    found = (base, f"{base}-nomaxpool", f"{base}-stem1", f"{base}-stem1-nomaxpool")
    return tuple(name for name in (*found, *(() if base in BASIC else (f"{base}-v1",))) if name != arch)


def build_torchvision(arch: str, classes: int = 1000) -> nn.Module:
    """The untrained network of a name that :func:`base_of` knows."""
    import torchvision  # late: importing it takes longer than all else here

    base, *variants = arch.split("-")
    model: nn.Module = torchvision.models.get_model(base, weights=None, num_classes=classes)
    for name in variants:
        VARIANTS[name](model)
    return model
