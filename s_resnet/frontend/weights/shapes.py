"""What the shapes of the weights tell about a ResNet: stem, width, shortcuts, biases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from ...models.planned_resnet import Plan

Shape: TypeAlias = tuple[int, ...]

STEM = ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")  # of three convolutions
WIDEST = 2**16  # channels, so that no file makes us build an enormous network
# Which convolutions have biases, by a name that tells.
BIASES = {
    "stem": r"conv1\.(0\.)?bias",
    "block": r"layer\d\.\d+\.conv\d\.bias",
    "shortcut": r"layer\d\.\d+\.downsample\.0\.bias",
}
LARGE_KERNEL = 5  # from here on a stem halves the image


def blocks_per_stage(shapes: Mapping[str, Shape]) -> Shape:
    """The number of blocks in each stage, by the names."""
    blocks = {match[0] for name in shapes if (match := re.match(r"layer[1-4]\.\d+\.", name))}
    counts = [sum(block.startswith(f"layer{stage}.") for block in blocks) for stage in (1, 2, 3, 4)]
    return tuple(count for count in counts if count)


def is_preactivated(shapes: Mapping[str, Shape]) -> bool:
    """Whether the first BatchNorm of a block that changes the width has the channels before its convolution."""
    before_behind = shapes.get("layer2.0.conv1.weight", ())[1::-1]
    norm = shapes.get("layer2.0.bn1.weight", ())
    return len(before_behind) == 2 and before_behind[0] != before_behind[1] and norm == before_behind[:1]


def plan_of(shapes: Mapping[str, Shape]) -> Plan:
    """The plan that names and shapes tell, with the usual choices for the rest."""
    convolutions: Literal[2, 3] = 3 if any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", name) for name in shapes) else 2
    stem = [shapes[name] for name in STEM if name in shapes]
    stem = stem if len(stem) == len(STEM) else [shapes.get("conv1.weight", ())]
    kernel = stem[0][2] if len(stem[0]) == 4 and stem[0][2] in (1, 3, 5, 7) else 7
    small = kernel < LARGE_KERNEL and len(stem) == 1  # the stem of networks for images of 32 pixels
    shortcuts = [name for name in shapes if ".downsample." in name]
    plan = Plan(
        blocks_per_stage(shapes),
        convolutions,
        is_preactivated(shapes),
        channels=_channels(stem[0], 1, 3),
        stem=tuple(_channels(shape, 0, 64) for shape in stem),
        kernel=kernel,
        shortcut="projection" if shortcuts or convolutions == 3 else "zeros",
        projected=any(name.startswith("layer1.0.") for name in shortcuts),
        positions=(_position(shortcuts, "layer1.0"), _position(shortcuts, "layer2.0")),
        normed=not shortcuts or any(name.endswith(".running_mean") for name in shortcuts),
        biased=frozenset(part for part, pattern in BIASES.items() if any(map(re.compile(pattern).fullmatch, shapes))),
        last_norm="norm.weight" in shapes,
        stem_stride=1 if small else 2,
        maxpool=not small,
        strided=convolutions - 1,
    )
    first = shapes.get("layer1.0.conv3.weight" if convolutions == 3 else "layer1.0.conv1.weight", ())
    width = max(1, _channels(first, 0, 64 * plan.expansion) // plan.expansion)
    return _grouped(replace(plan, width=width, average=plan.positions[1] == 1), shapes)


def with_shapes(plan: Plan, told: Plan, width: bool) -> Plan:
    """The plan of a name with what the shapes of a file tell; its own are the blocks, their kind and groups.

    Args:
        plan: of the name.
        told: by the shapes.
        width: whether the name says the width.
    """
    kept = ["blocks", "convolutions", "preactivated", "groups", "per_group", "strided", *(["width"] if width else [])]
    own = {name: getattr(plan, name) for name in kept}
    shortcut = told.shortcut if plan.convolutions == 2 else "projection"
    return replace(told, shortcut=shortcut, **own)


def _grouped(plan: Plan, shapes: Mapping[str, Shape]) -> Plan:
    """The plan with the groups of the first bottleneck, and their channels at width 64."""
    middle = shapes.get("layer1.0.conv2.weight", ())
    if plan.convolutions == 2 or not _channels(middle, 0, 0) or not _channels(middle, 1, 0):
        return plan
    groups = max(1, middle[0] // middle[1])
    return replace(plan, groups=groups, per_group=max(1, middle[0] * 64 // (plan.width * groups)))


def _channels(shape: Shape, axis: int, otherwise: int) -> int:
    """A number of channels of a convolution; ``otherwise`` where there is no sensible one."""
    return shape[axis] if len(shape) == 4 and 1 <= shape[axis] <= WIDEST else otherwise


def _position(shortcuts: Sequence[str], block: str) -> int:
    """The place of the convolution of a shortcut in its Sequential."""
    places = {name.split(".")[3] for name in shortcuts if name.startswith(f"{block}.")}
    return 1 if places and places <= {"1", "2"} else 0
