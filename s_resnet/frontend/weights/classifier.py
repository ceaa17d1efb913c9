"""The classifier of a checkpoint: one linear layer, several, or none."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from ...errors import InvalidCheckpoint, message
from .architectures import HEADS
from .checkpoint_file import first
from .shapes import Shape
from .state_dict import COUNTER

PYTHON = "use s_resnet.convert(model) from Python"
MOST = 100  # layers of a Sequential


def classifier(features: int, shapes: Mapping[str, Shape], arch: str, head: str | None, where: str) -> nn.Module:
    """The classifier on the meta device, an Identity where there is none.

    It is a linear layer, or a Sequential at the places in the names. A BatchNorm is told by its statistics; a place
    without weights is dropout, which does nothing here, or the ReLU that ``head`` asks for.

    Args:
        features: how many features it reads.
        shapes: the shapes of its tensors, by their names in it.
        arch: the name of the architecture, for the message.
        head: the word about what is between several linear layers.
        where: the file, for the message.

    Raises:
        InvalidCheckpoint: it is something else, or several linear layers without a word about what is between.
    """
    places = sorted(int(place) for name in shapes if (place := name.partition(".")[0]).isdecimal() and len(place) < 4)
    places = list(dict.fromkeys(places))
    linear = [place for place in places if len(shapes.get(f"{place}.weight", ())) == 2]
    if len(linear) > 1 and head is None:
        got = f"{len(linear)} linear layers ({first(f'fc.{place}.weight' for place in linear)})"
        asked = " or ".join(f"arch={f'{arch}-{word}'!r} for {says}" for word, says in HEADS.items())
        expected = "to be told what is between them, which no checkpoint says"
        raise InvalidCheckpoint(message(where, "classifier fc", got, expected, f"Pass {asked}"))
    if len(linear) < 2 and head is not None:
        got, expected = f"{head!r} of a network with one linear layer at the end", "several"
        raise InvalidCheckpoint(message(where, "architecture", got, expected, f"Leave out {head!r}"))
    built = nn.Identity() if not shapes else _single(features, shapes) or _several(features, shapes, places, head)
    wanted = {} if built is None else {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    if {name: shape for name, shape in wanted.items() if not name.endswith(COUNTER) or name in shapes} != dict(shapes):
        got = first(f"fc.{name} {shape}" for name, shape in shapes.items())
        remedy = f"Where the network ends in something else than linear layers, {PYTHON}"
        raise InvalidCheckpoint(message(where, "classifier fc", got, f"fc.weight (classes, {features})", remedy))
    assert built is not None
    return built


def _single(features: int, shapes: Mapping[str, Shape]) -> nn.Module | None:
    """One linear layer that is not in a Sequential."""
    weight = shapes.get("weight", ())
    return _linear(features, weight, "bias" in shapes) if len(weight) == 2 and weight[0] else None


def _linear(features: int, weight: Shape, bias: bool) -> nn.Module:
    return nn.Linear(features, weight[0], bias=bias, device="meta", dtype=torch.float32)


def _several(features: int, shapes: Mapping[str, Shape], places: list[int], head: str | None) -> nn.Module | None:
    """The layers at these places of a Sequential; None where one of them is neither linear nor a BatchNorm."""
    if not places or places[-1] >= MOST or any(not re.match(r"\d+\.", name) for name in shapes):
        return None
    layers = OrderedDict[str, nn.Module]()
    rectified = True  # nothing hidden so far
    for place in places:
        weight = shapes.get(f"{place}.weight", ())
        is_linear = len(weight) == 2 and weight[0] > 0
        if is_linear and not rectified and head == "fcrelu":
            layers[f"relu{place}"] = nn.ReLU()
        if is_linear:
            layers[str(place)] = _linear(features, weight, f"{place}.bias" in shapes)
            features, rectified = weight[0], False
        elif f"{place}.running_mean" in shapes:
            if not rectified and place - 1 not in places and head == "fcrelu":
                layers[f"relu{place}"], rectified = nn.ReLU(), True
            layers[str(place)] = nn.BatchNorm1d(features, device="meta", dtype=torch.float32)
        else:
            return None
    return nn.Sequential(layers)
