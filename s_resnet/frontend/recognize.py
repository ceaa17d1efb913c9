"""Which architecture has the names and shapes of a state dict.

Candidates are built without memory (on the meta device), and all their names and shapes are compared with those of the
file. What shapes do not tell (strides, padding, max-pools, nonlinearities) is as in torchvision and in
:mod:`s_resnet.models.resnet`, or as in the variant that ``arch`` names.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn

from ..errors import InvalidCheckpoint, message
from ..models.resnet import CifarResNet
from ..models.torchvision_resnets import TORCHVISION, base_of, build_torchvision
from .checkpoint_file import first
from .state_dict import COUNTER

Shape: TypeAlias = tuple[int, ...]

KNOWN = ", ".join(TORCHVISION) + ", or cifar_resnet20, cifar_resnet56, ... (depth 6n + 2)"
PYTHON = "use s_resnet.convert(model) from Python"


def recognize(shapes: Mapping[str, Shape], arch: str | None = None, where: str = "checkpoint") -> tuple[str, nn.Module]:
    """The architecture with exactly these names and shapes, and its module on the meta device.

    BatchNorm's counters (``num_batches_tracked``) may be missing. The classifier may have any number of classes, lack
    its bias, or be the only layer with weights in a Sequential.

    Args:
        shapes: the shapes of the tensors by name.
        arch: the architecture that they must fit; by default any known one.
        where: the file, for the message.

    Raises:
        InvalidCheckpoint: no known architecture has these names and shapes.
    """
    blocks = _blocks_per_stage(shapes)
    candidates = [arch] if arch else [name for name, known in TORCHVISION.items() if known == blocks]
    if not arch and len(blocks) == 3 and len(set(blocks)) == 1:
        candidates.append(f"cifar_resnet{6 * blocks[0] + 2}")
    differences: list[tuple[int, str, str]] = []
    for candidate in candidates:
        model = _build(candidate, shapes)
        head = "fc" if base_of(candidate) else "linear"
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        count, differing = difference(_without(head, expected), _without(head, shapes))
        if not count:
            setattr(model, head, _classifier(head, expected[f"{head}.weight"][1], shapes, where))
            return candidate, model
        differences.append((count, differing, candidate))
    if arch:
        remedy = f"Leave out arch to have the architecture read from the file, or {PYTHON}"
        raise InvalidCheckpoint(
            message(where, "names and shapes", differences[0][1], f"exactly those of {arch}", remedy)
        )
    if differences:
        _, differing, nearest = min(differences)
        got, remedy = f"nearly those of {nearest}: {differing}", f"Build the network in Python and {PYTHON}"
        raise InvalidCheckpoint(
            message(where, "names and shapes of no known architecture", got, f"exactly those of {nearest}", remedy)
        )
    got = f"stages of {', '.join(map(str, blocks))} blocks" if blocks else f"{len(shapes)} tensors ({first(shapes)})"
    remedy = f"Pass arch=NAME to see in what the file differs from that network, or {PYTHON}"
    raise InvalidCheckpoint(
        message(where, "names and shapes of no known architecture", got, f"those of {KNOWN}", remedy)
    )


def check_arch(arch: str, where: str) -> None:
    depth = re.fullmatch(r"cifar_resnet([1-9]\d{0,3})", arch)
    if base_of(arch) or (depth and int(depth[1]) >= 8 and int(depth[1]) % 6 == 2):
        return
    raise InvalidCheckpoint(
        message(where, "unknown architecture", repr(arch), KNOWN, "Pass one of these, or leave out arch")
    )


def _blocks_per_stage(shapes: Mapping[str, Shape]) -> Shape:
    blocks = {match[0] for name in shapes if (match := re.match(r"layer[1-4]\.\d+\.", name))}
    counts = [sum(block.startswith(f"layer{stage}.") for block in blocks) for stage in (1, 2, 3, 4)]
    return tuple(count for count in counts if count)


def _build(arch: str, shapes: Mapping[str, Shape]) -> nn.Module:
    """The architecture on the meta device, with as many channels in the first convolution as the file."""
    model = _built(arch, shapes)
    stem, found = model.get_submodule("conv1"), shapes.get("conv1.weight", ())
    assert isinstance(stem, nn.Conv2d)
    if len(found) == 4 and 1 <= found[1] <= 1024:
        weight = stem.weight.new_empty(stem.out_channels, found[1], *stem.kernel_size)
        stem.in_channels, stem.weight = found[1], nn.Parameter(weight)
    return model


def _built(arch: str, shapes: Mapping[str, Shape]) -> nn.Module:
    """The architecture on the meta device; a CIFAR network has the width and shortcuts of the file."""
    with torch.device("meta"):
        if base_of(arch):
            return build_torchvision(arch).float()
        stem = shapes.get("conv1.weight", ())
        return CifarResNet(
            int(arch.removeprefix("cifar_resnet")),
            width=max(1, stem[0]) if stem else 16,
            shortcut="B" if any(".shortcut." in name for name in shapes) else "A",
            project_first="layer1.0.shortcut.0.weight" in shapes,
        ).float()


def _without(head: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(f"{head}.")}


def difference(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> tuple[int, str]:
    """In how many tensors ``found`` differs from ``expected``, and how, in words."""
    both = [name for name in expected if name in found]
    parts = {
        "missing": [name for name in expected if name not in found and not name.endswith(COUNTER)],
        "unexpected": [name for name in found if name not in expected],
        "mis-shaped": [f"{n} is {found[n]}, not {expected[n]}" for n in both if found[n] != expected[n]],
    }
    said = [f"{len(names)} {word} ({first(names)})" for word, names in parts.items() if names]
    return sum(map(len, parts.values())), ", ".join(said)


def _classifier(head: str, features: int, shapes: Mapping[str, Shape], where: str) -> nn.Module:
    """The linear layer of the file on the meta device, in a Sequential if it is in one there."""
    found = {name.removeprefix(f"{head}."): shapes[name] for name in shapes if name.startswith(f"{head}.")}
    matrices = [name for name, shape in found.items() if len(shape) == 2]
    if len(matrices) > 1:
        got = f"{len(matrices)} linear layers ({first(f'{head}.{name}' for name in matrices)})"
        remedy = f"The nonlinearity between them is not in the file: {PYTHON}"
        raise InvalidCheckpoint(message(where, f"classifier {head}", got, "one linear layer", remedy))
    match = re.fullmatch(r"((?:0|[1-9]\d?)\.)?weight", matrices[0]) if matrices else None
    classes = found[matrices[0]][0] if matrices else 0
    prefix = (match and match[1]) or ""
    bias = f"{prefix}bias" in found
    wanted = {f"{prefix}weight": (classes, features)} | ({f"{prefix}bias": (classes,)} if bias else {})
    if not match or not classes or found != wanted:
        got = first(f"{head}.{name} {shape}" for name, shape in found.items()) or f"no {head}.weight"
        remedy = f"Where the network ends in something else than one linear layer, {PYTHON}"
        raise InvalidCheckpoint(
            message(where, f"classifier {head}", got, f"{head}.weight (classes, {features})", remedy)
        )
    linear = nn.Linear(features, classes, bias=bias, device="meta", dtype=torch.float32)
    if not prefix:
        return linear
    # Layers without weights before it are dropout in practice, which does nothing in evaluation mode.
    return nn.Sequential(*(nn.Identity() for _ in range(int(prefix[:-1]))), linear)
