"""Names in a state dict that belong to no layer, and weights that are computed from several of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Tensors that tools for counting operations leave in every layer.
COUNTED = re.compile(r"(.*\.)?(total_ops|total_params)")
# Losses and metrics of a training program, by the name of their module: they are not part of the network.
BESIDE = re.compile(
    r"(\w+_)?(criterion|criteria|loss|losses|loss_fn|loss_func|metric|metrics|acc|accuracy|auroc|f1|f1score|precision|"
    r"recall|confmat|confusion_matrix)(_\w+|\d+)?(\..*)?",
    re.IGNORECASE,
)
# Pairs from which weight normalization computes a weight: as a parametrization, and as the older hook.
PAIRS = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)
# Triples of spectral normalization: the weight before it, and two singular vectors.
SPECTRAL = (
    ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
    ("weight_orig", "weight_u", "weight_v"),
)


def without_extras(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict without tensors that no layer has, and the names of these.

    They are counters of operations (``total_ops``, ``total_params``), and tensors of losses and metrics beside the
    network, as Lightning saves them (``criterion.weight`` beside ``model.conv1.weight``).
    """
    left = [name for name in state if COUNTED.fullmatch(name) or ("." in name and BESIDE.fullmatch(name))]
    return {name: tensor for name, tensor in state.items() if name not in left}, tuple(left)


def stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes of wrappers: ``module.``, ``_orig_mod.``, ``backbone.``, ...

    Names that do not begin with the network's prefix are kept.
    """
    state = dict(state)
    while len(prefixes := {name.partition(".")[0] for name in state}) == 1:
        cut = len(prefixes.pop()) + 1
        if any(len(name) <= cut for name in state):
            break
        state = {name[cut:]: tensor for name, tensor in state.items()}
    homes = {name.removesuffix("conv1.weight") for name in state if re.fullmatch(r"(\w+\.)*conv1\.weight", name)}
    homes = {home for home in homes if any(name.startswith(f"{home}layer1.") for name in state)}
    home = homes.pop() if len(homes) == 1 else ""
    return {name.removeprefix(home): tensor for name, tensor in state.items()}


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the weights of weight and spectral normalization in evaluation mode.

    The equations are::

        W = g v / |v|                   (one norm for each number of g)
        W = W_orig / (u^T W_orig v)

    Tensors that do not fit together are kept.
    """
    plain = dict(state)
    for name in state:
        for parts in (*PAIRS, *SPECTRAL):
            layer = name.removesuffix(parts[0])
            found = [plain[layer + part] for part in parts if layer + part in plain]
            if layer == name or (layer and not layer.endswith(".")) or len(found) < len(parts):
                continue
            weight = _computed(found)
            if weight is not None:
                for part in parts:
                    del plain[layer + part]
                plain[f"{layer}weight"] = weight
    return plain


def _computed(tensors: list[Tensor]) -> Tensor | None:
    """The weight of either normalization, in double precision; None where the shapes do not fit."""
    if not all(tensor.is_floating_point() and tensor.numel() for tensor in tensors):
        return None
    if len(tensors) == 2:
        g, v = (tensor.double() for tensor in tensors)
        if g.ndim not in (0, v.ndim) or any(n not in (1, m) for n, m in zip(g.shape, v.shape, strict=False)):
            return None
        over = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
        norm = (v**2).sum(over, keepdim=True).sqrt()
        normed: Tensor = g * v / norm
        return normed
    weight, u, v = (tensor.double() for tensor in tensors)
    matrix = weight.flatten(1) if weight.ndim > 1 else weight
    if matrix.ndim != 2 or u.shape != matrix.shape[:1] or v.shape != matrix.shape[1:]:
        return None
    divided: Tensor = weight / torch.dot(u, matrix @ v)
    return divided
