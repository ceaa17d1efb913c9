"""The architectures by name: those of the papers, and the ANNs beside them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from ..errors import InvalidData
from .danet import danet
from .ds_resnet import ds_resnet
from .layers import lif
from .ms_resnet import ms_resnet
from .resnet import CifarResNet
from .sew_resnet import sew_resnet
from .spiking_resnet import plain_resnet

# Blocks per stage, by depth.
BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DEEP = (3, 8, 32, 8)  # MS-ResNet-104
WIDTHS = (64, 128, 256, 512)
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# The steps a network is trained for where nothing is said: those of the papers' image experiments.
TIMESTEPS = {"ms_resnet": 6, "ds_resnet": 4, "danet": 4, "sew_resnet": 4, "spiking_resnet": 4}
SMALL = 64  # pixels, up to which a stem does not halve the image
LARGEST = 482  # of the depths 6n + 2: the deepest of the papers
ARCHITECTURES = (
    *("ms_resnet18", "ms_resnet34", "ms_resnet104", "ms_resnet20", "ms_resnet32", "ms_resnet44", "ms_resnet56"),
    *("ms_resnet110", "ms_resnet482", "ds_resnet14", "ds_resnet20", "ds_resnet32", "ds_resnet44", "ds_resnet68"),
    *("danet50", "danet101", "danet152", "danet29", "sew_resnet18", "sew_resnet34", "sew_resnet50", "sew_resnet101"),
    *("sew_resnet152", "sew_resnet20", "spiking_resnet20", "spiking_resnet110", "cifar_resnet20", "cifar_resnet56"),
    *TORCHVISION,
)
"""Names that :func:`build` knows. Further depths of the same families work too."""
KNOWN = (
    "ms_resnet18, ms_resnet34, ms_resnet104, ms_resnet20 ... ms_resnet482, ds_resnet14 ... ds_resnet68, danet50, "
    "danet101, danet152, danet29 (CIFAR-size; danet is our interpretation), sew_resnet18 ... sew_resnet152, "
    "sew_resnet20, spiking_resnet20 ... (plain); ANNs: cifar_resnet20 ..., resnet18 ... resnet152 (torchvision)"
)


def build(
    arch: str,
    classes: int,
    *,
    timesteps: int | None = None,
    channels: int = 3,
    size: int = 32,
    width: int | None = None,
    normalize_input: bool = False,
) -> nn.Module:
    """The untrained network of that name: images ``[B, channels, size, size]`` to logits ``[B, classes]``.

    Spiking families ``ms_resnet``, ``ds_resnet``, ``danet`` (our interpretation), ``sew_resnet`` and ``spiking_resnet``
    (plain): with depth 18 and 34 (104 of ms_resnet; 50, 101, 152 of danet and sew_resnet) four stages as for ImageNet;
    with depth 6n + 2 (danet: 9n + 2) three stages as for CIFAR. ANNs: ``cifar_resnet`` with depth 6n + 2, and
    torchvision's ``resnet18`` ... ``resnet152``.

    Args:
        timesteps: T of a spiking network; by default the papers'.
        size: of the images; up to 64 pixels the stem of a four-stage network does not halve them.
        width: channels of the first stage, by default the papers'; the others are multiples of it.
        normalize_input: of ds_resnet, as there.

    Raises:
        InvalidData: no such architecture, or a setting that it does not have.
    """
    if timesteps is not None and timesteps < 1:
        raise InvalidData(f"{arch}: timesteps, got {timesteps}; expected at least 1. Leave it out for the paper's.")
    if width is not None and (width < 4 or width % 4):
        raise InvalidData(f"{arch}: width, got {width}; expected a multiple of 4. Leave it out for the paper's.")
    if normalize_input and not arch.startswith("ds_resnet"):
        raise InvalidData(f"{arch}: got normalize_input; expected it for ds_resnet alone. Leave it out.")
    if arch in TORCHVISION or arch.startswith("cifar_resnet"):
        return _ann(arch, classes, timesteps, channels, width)
    found = re.fullmatch(r"(ms_resnet|ds_resnet|danet|sew_resnet|spiking_resnet)([1-9]\d{0,2})", arch)
    if found is None:
        raise _unknown(arch)
    family, depth = found[1], int(found[2])
    steps = timesteps or TIMESTEPS[family]
    kind = "cifar" if size <= SMALL else "imagenet"
    make = _FAMILIES[family](arch, depth, kind, width)
    return make(
        classes=classes, timesteps=steps, channels=channels, **({"normalize_input": True} if normalize_input else {})
    )


def timesteps_of(arch: str) -> int | None:
    """The T that an architecture is trained for by default; None of an ANN."""
    return next((steps for family, steps in TIMESTEPS.items() if arch.startswith(family)), None)


Make = Callable[..., nn.Module]


def _unknown(arch: str) -> InvalidData:
    near = difflib.get_close_matches(arch, ARCHITECTURES, 1)
    advice = f"Did you mean {near[0]}?" if near else "Choose one of them."
    return InvalidData(f"architecture: got {arch!r}; expected one of {KNOWN}. {advice}")


def _thirds(arch: str, depth: int, layers: int = 6, largest: int = LARGEST) -> Sequence[int]:
    """Blocks of three stages of a depth ``layers * n + 2``."""
    if depth < layers + 2 or (depth - 2) % layers or depth > largest:
        below = min(largest, max(layers + 2, depth - (depth - 2) % layers))
        others = [
            name for name in ARCHITECTURES if re.fullmatch(arch.rstrip("0123456789") + r"(18|34|50|101|104|152)", name)
        ]
        named = f", or {', '.join(others)}" if others else ""
        raise InvalidData(
            f"{arch}: depth, got {depth}; expected {layers} n + 2 from {layers + 2} to {largest}{named}. Choose one, "
            f"such as {below}{f' or {below + layers}' if below + layers <= largest else ''}."
        )
    return ((depth - 2) // layers,) * 3


def _widths(width: int, count: int) -> Sequence[int]:
    return tuple(width * 2**stage for stage in range(count))


def _ms(arch: str, depth: int, kind: str, width: int | None) -> Make:
    if depth in BASIC or depth == 104:
        deep = kind == "imagenet" and depth == 104
        blocks = DEEP if depth == 104 else BASIC[depth]
        return partial(ms_resnet, blocks, _widths(width or 64, 4), kind="imagenet-deep" if deep else kind)
    return partial(ms_resnet, _thirds(arch, depth), _widths(width or 16, 3))


def _ds(arch: str, depth: int, kind: str, width: int | None) -> Make:
    return partial(ds_resnet, _thirds(arch, depth), _widths(width or 64, 3))


def _danet(arch: str, depth: int, kind: str, width: int | None) -> Make:
    if depth in BOTTLENECK:
        return partial(danet, BOTTLENECK[depth], _widths(4 * (width or 64), 4), kind=kind)
    return partial(danet, _thirds(arch, depth, 9), _widths(4 * (width or 16), 3))


def _sew(arch: str, depth: int, kind: str, width: int | None) -> Make:
    if depth in BOTTLENECK:
        return partial(sew_resnet, BOTTLENECK[depth], _widths(4 * (width or 64), 4), kind=kind, bottleneck=True)
    if depth in BASIC:
        return partial(sew_resnet, BASIC[depth], _widths(width or 64, 4), kind=kind)
    return partial(sew_resnet, _thirds(arch, depth), _widths(width or 16, 3))


def _plain(arch: str, depth: int, kind: str, width: int | None) -> Make:
    blocks, widths = _thirds(arch, depth), _widths(width or 16, 3)

    def make(classes: int, timesteps: int, channels: int) -> nn.Module:
        return plain_resnet(blocks, widths, classes, timesteps, channels, partial(lif, timesteps))

    return make


_FAMILIES = {"ms_resnet": _ms, "ds_resnet": _ds, "danet": _danet, "sew_resnet": _sew, "spiking_resnet": _plain}


def _ann(arch: str, classes: int, timesteps: int | None, channels: int, width: int | None) -> nn.Module:
    if channels != 3:
        raise InvalidData(f"{arch}: channels, got {channels}; expected 3, of images. Choose a spiking network.")
    if timesteps is not None:
        raise InvalidData(f"{arch}: timesteps, got {timesteps} for an ANN; expected none. Leave it out.")
    if arch in TORCHVISION:
        if width is not None:
            raise InvalidData(f"{arch}: got width={width}; expected torchvision's own. Leave it out.")
        import torchvision  # late: it takes longer than all else here

        model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
        return model
    found = re.fullmatch(r"cifar_resnet([1-9]\d{0,3})", arch)
    if found is None:
        raise _unknown(arch)
    return CifarResNet(int(found[1]), classes, width or 16)
