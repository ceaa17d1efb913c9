"""The architectures by name: those of the papers, and ANNs to convert. One row of ``FAMILIES`` is one family."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from ..errors import InvalidData, message
from .danet import danet
from .ds_resnet import ds_resnet
from .layers import lif
from .ms_resnet import ms_resnet
from .resnet import CifarResNet
from .sew_resnet import sew_resnet
from .spiking_resnet import Layout, plain_resnet
from .torchvision_resnets import TORCHVISION, build_torchvision

# Blocks per stage, by depth.
BASIC = {depth: TORCHVISION[f"resnet{depth}"] for depth in (18, 34)}
BOTTLENECK = {depth: TORCHVISION[f"resnet{depth}"] for depth in (50, 101, 152)}
DEEP = (3, 8, 32, 8)  # MS-ResNet-104
SMALL = 64  # pixels: up to this size a stem does not halve the image
LARGEST = 482  # of the depths 6n + 2: the deepest network of the papers


@dataclass(frozen=True)
class _Wanted:
    """What a family is to build; the fields are the arguments of :func:`build`."""

    arch: str
    depth: int
    classes: int
    timesteps: int | None
    input_shape: tuple[int, int, int]
    width: int | None
    normalize_input: bool

    @property
    def channels(self) -> int:
        return self.input_shape[0]

    @property
    def kind(self) -> str:
        """The stem of a network of four stages."""
        return "cifar" if self.input_shape[1] <= SMALL else "imagenet"

    def layout(self, blocks: Sequence[int], usual: int, kind: str = "cifar", expansion: int = 1) -> Layout:
        """Stages whose first has ``width`` channels, or ``usual`` ones, and each other twice as many as before."""
        first = expansion * (self.width or usual)
        return Layout(blocks, tuple(first * 2**stage for stage in range(len(blocks))), kind)

    def thirds(self, layers: int = 6) -> Sequence[int]:
        """Blocks of three stages of a depth ``layers * n + 2``."""
        if self.depth < layers + 2 or (self.depth - 2) % layers or self.depth > LARGEST:
            raise _wrong_depth(self.arch, self.depth, layers)
        return ((self.depth - 2) // layers,) * 3


@dataclass(frozen=True)
class Family:
    """Architectures that share a builder; their names are ``name`` and a depth.

    Attributes:
        name: the beginning of the names.
        timesteps: T of the papers' image experiments, which is the default; None for ANNs.
        depths: the depths that are listed; a builder may accept others.
        known: the names in words, for messages.
        make: the builder.
    """

    name: str
    timesteps: int | None
    depths: tuple[int, ...]
    known: str
    make: Callable[[_Wanted], nn.Module]


def build(
    arch: str,
    classes: int,
    *,
    timesteps: int | None = None,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    width: int | None = None,
    normalize_input: bool = False,
) -> nn.Module:
    """The untrained network of that name: images ``[B, C, H, W]`` to logits ``[B, classes]``.

    Spiking families are ``ms_resnet``, ``ds_resnet``, ``danet`` (our interpretation), ``sew_resnet`` and
    ``spiking_resnet`` (plain). With depth 18 and 34 (and 104 for ms_resnet; 50, 101, 152 for danet and sew_resnet) they
    have four stages as for ImageNet, with depth 6n + 2 (danet: 9n + 2) three stages as for CIFAR. ANNs are
    ``cifar_resnet`` with depth 6n + 2, and torchvision's ``resnet18`` ... ``resnet152``.

    Args:
        arch: the name of the architecture, such as ``"ms_resnet18"``.
        classes: N, the number of logits.
        timesteps: T of a spiking network; by default the paper's.
        input_shape: ``(C, H, W)`` of an image or frame. Up to 64 pixels the stem of a four-stage network does not halve
            the image.
        width: channels of the first stage, by default the paper's; the other stages have multiples of it.
        normalize_input: as in :func:`s_resnet.models.ds_resnet.ds_resnet`; for that family only.

    Raises:
        InvalidData: there is no such architecture, or it does not have such a setting.
    """
    if classes < 1:
        raise InvalidData(message(arch, "classes", classes, "at least 1", "Pass the number of classes"))
    if timesteps is not None and timesteps < 1:
        raise InvalidData(message(arch, "timesteps", timesteps, "at least 1", "Leave it out for the paper's"))
    if width is not None and (width < 4 or width % 4):
        raise InvalidData(message(arch, "width", width, "a multiple of 4", "Leave it out for the paper's"))
    if normalize_input and not arch.startswith("ds_resnet"):
        raise InvalidData(message(arch, "", "normalize_input", "it for ds_resnet alone", "Leave it out"))
    family, depth = _family(arch)
    return family.make(
        _Wanted(arch, depth, classes, timesteps or family.timesteps, input_shape, width, normalize_input)
    )


def timesteps_of(arch: str) -> int | None:
    """The T that an architecture is trained for by default; None for an ANN."""
    return next((family.timesteps for family in FAMILIES if arch.startswith(family.name)), None)


def _family(arch: str) -> tuple[Family, int]:
    """The family and the depth in the name of an architecture."""
    found = re.fullmatch(r"([a-z_]+)([1-9]\d{0,3})", arch)
    family = next((family for family in FAMILIES if found and family.name == found[1]), None)
    if found is None or family is None:
        raise _unknown(arch)
    return family, int(found[2])


def _unknown(arch: str) -> InvalidData:
    near = difflib.get_close_matches(arch, ARCHITECTURES, 1)
    remedy = f"Pass {near[0]!r}, the nearest name" if near else f"Pass one of them, such as {ARCHITECTURES[0]!r}"
    return InvalidData(message("architecture", "", f"{arch!r}", f"one of {KNOWN}", remedy))


def _wrong_depth(arch: str, depth: int, layers: int) -> InvalidData:
    """The error for a depth that is not ``layers * n + 2``."""
    below = min(LARGEST, max(layers + 2, depth - (depth - 2) % layers))
    others = [
        name for name in ARCHITECTURES if re.fullmatch(arch.rstrip("0123456789") + r"(18|34|50|101|104|152)", name)
    ]
    named = f", or {', '.join(others)}" if others else ""
    expected = f"{layers} n + 2 from {layers + 2} to {LARGEST}{named}"
    remedy = f"Choose one, such as {below}{f' or {below + layers}' if below + layers <= LARGEST else ''}"
    return InvalidData(message(arch, "depth", depth, expected, remedy))


# ---- the builders


def _steps(wanted: _Wanted) -> int:
    assert wanted.timesteps is not None  # a spiking family has a default
    return wanted.timesteps


def _ms(wanted: _Wanted) -> nn.Module:
    if wanted.depth in BASIC:
        layout = wanted.layout(BASIC[wanted.depth], 64, wanted.kind)
    elif wanted.depth == 104:
        layout = wanted.layout(DEEP, 64, "imagenet-deep" if wanted.kind == "imagenet" else wanted.kind)
    else:
        layout = wanted.layout(wanted.thirds(), 16)
    return ms_resnet(layout, wanted.classes, _steps(wanted), wanted.channels)


def _ds(wanted: _Wanted) -> nn.Module:
    layout = wanted.layout(wanted.thirds(), 64)
    normalize = wanted.normalize_input
    return ds_resnet(layout, wanted.classes, _steps(wanted), wanted.channels, normalize_input=normalize)


def _danet(wanted: _Wanted) -> nn.Module:
    if wanted.depth in BOTTLENECK:
        layout = wanted.layout(BOTTLENECK[wanted.depth], 64, wanted.kind, expansion=4)
    else:
        layout = wanted.layout(wanted.thirds(9), 16, expansion=4)
    return danet(layout, wanted.classes, _steps(wanted), wanted.channels)


def _sew(wanted: _Wanted) -> nn.Module:
    if wanted.depth in BOTTLENECK:
        layout = wanted.layout(BOTTLENECK[wanted.depth], 64, wanted.kind, expansion=4)
    elif wanted.depth in BASIC:
        layout = wanted.layout(BASIC[wanted.depth], 64, wanted.kind)
    else:
        layout = wanted.layout(wanted.thirds(), 16)
    bottleneck = wanted.depth in BOTTLENECK
    return sew_resnet(layout, wanted.classes, _steps(wanted), wanted.channels, bottleneck)


def _plain(wanted: _Wanted) -> nn.Module:
    steps = _steps(wanted)
    return plain_resnet(wanted.layout(wanted.thirds(), 16), wanted.classes, steps, wanted.channels, partial(lif, steps))


def _cifar(wanted: _Wanted) -> nn.Module:
    _check_ann(wanted)
    return CifarResNet(wanted.depth, wanted.classes, wanted.width or 16)


def _torchvision(wanted: _Wanted) -> nn.Module:
    if wanted.arch not in ARCHITECTURES:
        raise _unknown(wanted.arch)
    _check_ann(wanted)
    if wanted.width is not None:
        raise InvalidData(message(wanted.arch, "", f"width={wanted.width}", "torchvision's own", "Leave it out"))
    return build_torchvision(wanted.arch, wanted.classes)


def _check_ann(wanted: _Wanted) -> None:
    if wanted.channels != 3:
        remedy = "Pass images of three channels, or the name of a spiking network"
        raise InvalidData(message(wanted.arch, "channels", wanted.channels, "3, of images", remedy))
    if wanted.timesteps is not None:
        got = f"{wanted.timesteps} for an ANN"
        raise InvalidData(message(wanted.arch, "timesteps", got, "none", "Leave it out"))


FAMILIES = (
    Family(
        "ms_resnet",
        6,
        (18, 34, 104, 20, 32, 44, 56, 110, 482),
        "ms_resnet18, ms_resnet34, ms_resnet104, ms_resnet20 ... ms_resnet482",
        _ms,
    ),
    Family("ds_resnet", 4, (14, 20, 32, 44, 68), "ds_resnet14 ... ds_resnet68", _ds),
    Family(
        "danet",
        4,
        (50, 101, 152, 29),
        "danet50, danet101, danet152, danet29 (CIFAR-size; danet is our interpretation)",
        _danet,
    ),
    Family("sew_resnet", 4, (18, 34, 50, 101, 152, 20), "sew_resnet18 ... sew_resnet152, sew_resnet20", _sew),
    Family("spiking_resnet", 4, (20, 110), "spiking_resnet20 ... (plain)", _plain),
    Family("cifar_resnet", None, (20, 56), "cifar_resnet20 ... (ANNs)", _cifar),
    Family("resnet", None, (18, 34, 50, 101, 152), "resnet18 ... resnet152 (ANNs of torchvision)", _torchvision),
)
ARCHITECTURES = tuple(f"{family.name}{depth}" for family in FAMILIES for depth in family.depths)
"""Names that :func:`build` knows. Further depths of the same families work too."""
KNOWN = ", ".join(family.known for family in FAMILIES)
