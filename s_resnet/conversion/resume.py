"""The file that keeps what an interrupted reconstruction has finished, and the key that it belongs to."""

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
from ..runtime.processes import all_gather, is_first
from ..simulation.lockstep import blocks
from .spill import Spill

LEARNED = ("spiking", "threshold", "correction")
PART = 32  # images that are read at a time


def kept_at(graph: Graph, path: str | os.PathLike[str] | None, key: str, blocks: list[ReconstructedBlock]) -> Graph:
    """The graph, after writing its finished blocks to ``path``."""
    if path is not None and is_first():
        save(graph.with_provenance(reconstruction=Reconstruction(tuple(blocks), key=key)), path)
    return graph


def key_of(graph: Graph, images: Tensor | Spill, settings: Mapping[str, float]) -> str:
    """A key that identifies a reconstruction: network, images and settings."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for first in range(0, len(images), PART):
        sha.update(images[first : first + PART].cpu().contiguous().numpy().tobytes())
    for node in graph.nodes:
        sha.update(repr((node.name, type(node.op).__name__, node.inputs)).encode())
        sha.update(repr(settings_of(node.op)).encode())
        for name, value in tensors(node.op):
            sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    own = sha.hexdigest()
    every = all_gather(own)  # of several processes each has other images
    return own if len(every) == 1 else hashlib.sha256("".join(every).encode()).hexdigest()


def resumed(graph: Graph, path: str | os.PathLike[str] | None, key: str) -> tuple[Graph, list[ReconstructedBlock]]:
    """The graph with the blocks that an interrupted call has finished, and the record of each."""
    if path is None or not Path(path).exists():
        return graph, []
    kept = load(path)
    found = kept.provenance.reconstruction
    done = list(found.blocks or ())
    finished = [one.block for one in done]
    expected = [part[-1].name for part in blocks(graph)] + ["all together"]
    alike = len(kept.nodes) == len(graph.nodes) and all(map(_alike, kept.nodes, graph.nodes))
    if found.key != key or not done or finished != expected[: len(done)] or not alike:
        got = "the reconstruction of another network, other images or other settings"
        remedy = "Delete the file, or repeat the command that wrote it"
        raise InvalidArtifact(message(f"{path}", "", got, "this one's", remedy))
    return replace(graph, nodes=kept.to(graph.device).nodes), done


def _alike(kept: Node, node: Node) -> bool:
    """Whether two nodes differ at most in what is learned."""
    if (kept.name, type(kept.op), kept.inputs) != (node.name, type(node.op), node.inputs):
        return False
    (then, held), (now, own) = (_fixed(kept.op), _fixed(node.op))
    same = held.keys() == own.keys() and all(held[name].dtype == own[name].dtype for name in own)
    return then == now and same and all(torch.equal(held[name].cpu(), own[name].cpu()) for name in own)


def _fixed(op: Op) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The settings and tensors of an operation, without what is learned."""
    settings = {name: value for name, value in settings_of(op).items() if name not in LEARNED}
    return settings, {name: value for name, value in tensors(op) if name.partition(".")[0] not in LEARNED}
