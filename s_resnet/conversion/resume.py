"""What an interrupted reconstruction has finished: the file that keeps it, and whose it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidArtifact, message
from ..graph.artifact import load, save
from ..graph.graph import Graph
from ..graph.ops import Node, Op
from ..graph.parts import settings as settings_of
from ..graph.parts import tensors
from ..graph.provenance import ReconstructedBlock, Reconstruction
from ..simulation.lockstep import blocks
from .spill import Spill

LEARNED = ("spiking", "threshold", "correction")
PART = 32  # images that are read at a time


def kept_at(graph: Graph, path: str | os.PathLike[str] | None, key: str, blocks: list[ReconstructedBlock]) -> Graph:
    """The graph, also written to ``path`` as far as it is."""
    if path is not None:
        save(graph.with_provenance(reconstruction=Reconstruction(tuple(blocks), key=key)), path)
    return graph


def key_of(graph: Graph, images: Tensor | Spill, settings: Mapping[str, float]) -> str:
    """What tells one reconstruction from another."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for first in range(0, len(images), PART):
        sha.update(images[first : first + PART].cpu().contiguous().numpy().tobytes())
    for node in graph.nodes:
        sha.update(repr((node.name, type(node.op).__name__, node.inputs)).encode())
        sha.update(repr(settings_of(node.op)).encode())
        for name, value in tensors(node.op):
            sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def resumed(graph: Graph, path: str | os.PathLike[str] | None, key: str) -> tuple[Graph, list[ReconstructedBlock]]:
    """The graph with the blocks that an interrupted call has finished, and what is said of each."""
    if path is None or not Path(path).exists():
        return graph, []
    kept = load(path)
    found = kept.provenance.reconstruction
    done = list(found.blocks or ())
    finished = [one.block for one in done]
    expected = [part[-1].name for part in blocks(graph)] + ["all together"]
    alike = len(kept.nodes) == len(graph.nodes) and all(map(_alike, kept.nodes, graph.nodes))
    if found.key != key or not done or finished != expected[: len(done)] or not alike:
        raise InvalidArtifact(
            message(
                f"{path}",
                "",
                "the reconstruction of another network, other images or other settings",
                "this one's",
                "Delete the file, or repeat the command that it is from",
            )
        )
    return replace(graph, nodes=kept.to(graph.device).nodes), done


def _alike(kept: Node, node: Node) -> bool:
    """Whether a node is another one but for what is learned."""
    if (kept.name, type(kept.op), kept.inputs) != (node.name, type(node.op), node.inputs):
        return False
    (then, held), (now, own) = (_fixed(kept.op), _fixed(node.op))
    same = held.keys() == own.keys() and all(held[name].dtype == own[name].dtype for name in own)
    return then == now and same and all(torch.equal(held[name].cpu(), own[name].cpu()) for name in own)


def _fixed(op: Op) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The settings and the tensors of an operation but for what is learned."""
    settings = {name: value for name, value in settings_of(op).items() if name not in LEARNED}
    return settings, {name: value for name, value in tensors(op) if name.partition(".")[0] not in LEARNED}
