"""The analog run: the source network, one node after another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops import Node
from .plan import freed
from .precision import arithmetic


def activations(nodes: tuple[Node, ...], images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each node's analog value for images ``[B, C, H, W]`` in execution order; it is freed after its last reader."""
    values: dict[str, Tensor] = {}
    for node, unread in zip(nodes, freed(nodes, {}), strict=True):
        arguments = tuple(values[name] for name in node.inputs) if node.inputs else (images,)
        with torch.no_grad(), arithmetic(images, tf32=False):
            values[node.name] = node.op.run(*arguments)
        yield node.name, values[node.name]
        for name in unread:
            del values[name]
