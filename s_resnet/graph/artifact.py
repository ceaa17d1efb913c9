"""The Artifact: a Graph in one ``.snn`` file, which is a safetensors file with one JSON text in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InvalidArtifact, InvalidData, SResNetError, message
from ..files import read, reason, replacing
from . import ops, readout, validate
from .formats import upgraded
from .graph import Graph, check_spiking
from .ops import Node, Op
from .parts import settings
from .provenance import Provenance
from .shapes import image_of, shapes
from .tuned import check_tuned, with_numbers

FORMAT = 9  # what earlier ones lacked: s_resnet/graph/formats.py
_KEY = "s_resnet"
LARGEST = 2**32  # bytes of a file
LONGEST = 2**25  # letters of its JSON, which unfolds to twenty times as much
_OPS = {
    kind.__name__: kind
    for kind in (
        *(ops.Input, ops.Conv2d, ops.Linear, ops.Scale, ops.Affine, ops.BatchNorm2d, ops.ReLU, ops.QCFS, ops.Add),
        *(ops.MaxPool2d, ops.AvgPool2d, ops.AdaptiveAvgPool2d, ops.Flatten, ops.Pad, ops.Slice),
        *readout.STATEFUL,
    )
}


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``graph`` with its provenance; the file appears whole or not at all, and an old one survives a failure.

    The metadata hold the format version, nodes, provenance, and a SHA-256 over those and every tensor.

    Raises:
        SResNetError: the file cannot be written (disk full, no permission), or :func:`load` would refuse it.
    """
    if not isinstance(graph, Graph):
        check_spiking(graph, "save")
    check(graph.validate())
    held, nodes = _pack(graph)
    header: dict[str, Any] = {"format": FORMAT, "nodes": nodes, "provenance": graph.provenance.to_json()}
    header["tuned"] = sorted(graph.tuned)
    try:
        header = json.loads(json.dumps(header))  # as it will be read: keys are strings, tuples are lists
    except (TypeError, ValueError) as error:
        got, remedy = f"provenance that is not JSON ({error})", "Pass such values to with_provenance"
        expected = "texts, numbers, lists and dicts"
        raise SResNetError(message(str(path), "cannot be written", got, expected, remedy)) from error
    header["digest"] = _digest(header, held)
    text = json.dumps(header, sort_keys=True)
    if len(text) > LONGEST:
        got, remedy = f"{len(text)} letters of provenance and settings", "Shorten the provenance"
        raise SResNetError(message(str(path), "cannot be written", got, f"at most {LONGEST}", remedy))
    with replacing(path) as temporary:
        save_file(held, temporary, {_KEY: text})


def load(path: str | os.PathLike[str]) -> Graph:
    """Read what :func:`save` wrote. No code is run and no pickle is read.

    The file is hostile until checked: an abstract run of the network, over shapes, types and ranges and without
    computing a number, accepts or refuses it. Later changes to the file do not affect the network.

    Raises:
        InvalidArtifact: the file is missing, truncated, edited, foreign, or of a newer format.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InvalidArtifact(message(str(path), "", "no such file", "a .snn file", "Check the path"))
    text, held = _read(path)
    if text is None:
        got, remedy = "a safetensors file without a network", "Run `sresnet convert` on it"
        raise InvalidArtifact(message(str(path), "", got, "a .snn file", remedy))
    try:
        header: dict[str, Any] = json.loads(text) if len(text) <= LONGEST else {}
        version = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _edited(path, "a header that is not ours") from error
    if not isinstance(version, int) or version > FORMAT:
        got = f"format version {version}"
        raise InvalidArtifact(message(str(path), "", got, f"at most {FORMAT}", "Upgrade S-ResNet"))
    try:
        if header.get("digest") != _digest(header, held):
            raise _edited(path, "a digest that does not match the content")
        if version < 1:
            raise _edited(path, f"format {version}")
        if version < FORMAT:
            header, held = upgraded(header, held)
        nodes = tuple(_unpack(entry, held) for entry in header["nodes"])
        tuned = _tuned(header["tuned"], held)
        if held:
            raise _edited(path, f"tensors that no node has ({next(iter(held))})")
        if not isinstance(header["provenance"], dict):
            raise _edited(path, "a provenance that is no dict")
        return check(Graph(nodes, Provenance.from_json(header["provenance"]), tuned).validate())
    except InvalidArtifact:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SResNetError) as error:
        raise _edited(path, f"nodes that fit no network ({_short(error)})") from error


def check(graph: Graph) -> Graph:
    """The network, after an abstract run.

    Raises:
        InvalidData: it cannot be simulated, whatever the images.
    """
    for node in graph.nodes:
        named = isinstance(node.name, str) and node.name and all(isinstance(name, str) for name in node.inputs)
        if not named:
            got = f"a node of name {node.name!r}"
            raise InvalidData(message("graph", "", got, "a text", "Convert the network again"))
    validate.check(graph.nodes)
    shapes(graph.nodes, image_of(graph.nodes, graph.provenance))
    validate.check_reach(graph.nodes)
    graph.provenance.checked()
    if graph.tuned:
        check_tuned(graph.tuned, graph.provenance.recipe.timesteps)
    for steps, numbers in graph.tuned.items():
        check(Graph(with_numbers(graph.nodes, numbers), graph.provenance))  # before the weights are made of them
        check(graph.at(steps))
    return graph


def _read(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The JSON text in the metadata and the tensors, in memory of their own."""
    try:
        data = read(path, LARGEST)
        if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[8:9] != b"{"):  # zip, and pickle
            remedy = f"Convert it first: sresnet convert {path}"
            raise InvalidArtifact(message(str(path), "", "a checkpoint of PyTorch", "a .snn file", remedy))
        length = int.from_bytes(data[:8], "little")
        # safetensors checks the header as a whole, but does not return its metadata.
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        return metadata.get(_KEY), tensors
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        remedy = "Convert the checkpoint again"
        raise InvalidArtifact(message(str(path), "cannot be read", _short(error), "a .snn file", remedy)) from error


def _short(error: BaseException) -> str:
    text = reason(error)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _edited(path: Path, got: str) -> InvalidArtifact:
    expected, remedy = "what `sresnet convert` wrote", "Convert the checkpoint again"
    return InvalidArtifact(message(str(path), "damaged or edited", got, expected, remedy))


def _pack(graph: Graph) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The tensors by ``node/field``, and everything else as JSON."""
    every = graph.tensors() | {
        f"{_of(steps)}{name}": value for steps, some in graph.tuned.items() for name, value in some.items()
    }
    held = {name: value.detach().cpu().contiguous().clone() for name, value in every.items()}
    nodes = []
    for node in graph.nodes:
        said = {"name": node.name, "op": type(node.op).__name__, "inputs": node.inputs}
        nodes.append({**said, "settings": settings(node.op)})
    return held, nodes


def _unpack(entry: Mapping[str, Any], held: dict[str, Tensor]) -> Node:
    """A node; its tensors are taken out of ``held``."""
    op: Op = _built(_OPS[entry["op"]], entry["settings"], f"{entry['name']}/", held)
    return Node(entry["name"], op, tuple(entry["inputs"]))


def _built(kind: type, given: Mapping[str, Any], where: str, held: dict[str, Tensor]) -> Any:
    """An operation, or a part of one, from its settings and from the tensors whose names begin with ``where``."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        kinds = {known.__name__: known for known in validate.parts(kind, name)}
        if kinds and value is not None:
            rest = {key: own for key, own in value.items() if key != "kind"}
            values[name] = _built(kinds[value["kind"]], rest, f"{where}{name}.", held)
        else:
            values[name] = _tuples(value)
    for field in fields(kind):
        if f"{where}{field.name}" in held and "Tensor" in str(field.type):
            values[field.name] = held.pop(f"{where}{field.name}")
    return kind(**values)


def _of(steps: int) -> str:
    """What the names of the numbers for another T begin with."""
    return f"T={steps}:"


def _tuned(timesteps: list[int], held: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The numbers for other T; they are taken out of ``held``."""
    found: dict[int, dict[str, Tensor]] = {steps: {} for steps in timesteps}
    of = {_of(steps): steps for steps in found}
    for name in list(held):
        first, colon, rest = name.partition(":")
        if first + colon in of:
            found[of[first + colon]][rest] = held.pop(name)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header without its digest and of every tensor, by name."""
    body = {name: value for name, value in header.items() if name != "digest"}
    sha = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
