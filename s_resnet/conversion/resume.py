"""What an interrupted reconstruction has finished: the file that keeps it, and whose it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidArtifact
from ..graph.artifact import load, save
from ..graph.graph import Graph
from ..graph.ops import Node
from ..simulation.lockstep import blocks
from .spill import Spill

LEARNED = ("spiking_weight", "gain", "threshold", "correction")
PART = 32  # images that are read at a time
Done = dict[str, object]  # of a block: its steps, and whether it is better for them


def kept_at(graph: Graph, path: str | os.PathLike[str] | None, key: str, said: list[Done]) -> Graph:
    """The graph, also written to ``path`` as far as it is."""
    if path is not None:
        save(graph.with_provenance(reconstruction={"key": key, "blocks": said}), path)
    return graph


def key_of(graph: Graph, images: Tensor | Spill, settings: Mapping[str, float]) -> str:
    """What tells one reconstruction from another."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for first in range(0, len(images), PART):
        sha.update(images[first : first + PART].cpu().contiguous().numpy().tobytes())
    for node in graph.nodes:
        sha.update(repr((node.name, type(node.op).__name__, node.inputs)).encode())
        for field in fields(node.op):  # type: ignore[arg-type]
            value = getattr(node.op, field.name)
            tensor = isinstance(value, Tensor)
            sha.update(value.cpu().contiguous().numpy().tobytes() if tensor else repr(value).encode())
    return sha.hexdigest()


def resumed(graph: Graph, path: str | os.PathLike[str] | None, key: str) -> tuple[Graph, list[Done]]:
    """The graph with the blocks that an interrupted call has finished, and what is said of each."""
    if path is None or not Path(path).exists():
        return graph, []
    kept = load(path)
    entry = kept.provenance.get("reconstruction", {})
    said = entry.get("blocks", [])
    finished = [one.get("block") for one in said]
    expected = [part[-1].name for part in blocks(graph)] + ["all together"]
    whole = all({"block", "steps", "better"} <= one.keys() for one in said)
    alike = len(kept.nodes) == len(graph.nodes) and all(map(_alike, kept.nodes, graph.nodes))
    if entry.get("key") != key or not said or not whole or finished != expected[: len(said)] or not alike:
        raise InvalidArtifact(
            f"{path}: got the reconstruction of another network, other images or other settings; expected this one's. "
            "Delete the file, or repeat the command that it is from."
        )
    return replace(graph, nodes=kept.to(graph.device).nodes), said


def _alike(kept: Node, node: Node) -> bool:
    """Whether a node is another one but for what is learned."""
    if (kept.name, type(kept.op), kept.inputs) != (node.name, type(node.op), node.inputs):
        return False
    for field in fields(node.op):  # type: ignore[arg-type]
        then, now = getattr(kept.op, field.name), getattr(node.op, field.name)
        if field.name in LEARNED:
            continue
        if isinstance(then, Tensor) and isinstance(now, Tensor):
            if then.dtype != now.dtype or not torch.equal(then.cpu(), now.cpu()):
                return False
        elif isinstance(then, Tensor) or isinstance(now, Tensor) or then != now:
            return False
    return True
