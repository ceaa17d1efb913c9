"""The Artifact: a Graph in one ``.snn`` file, which is a safetensors file with one JSON text in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from . import neuron, ops
from .errors import InvalidArtifact, SResNetError
from .graph import Graph
from .ops import Node, Op

# 2: whole numbers besides the weights. 3: schedules, spike alphabets, and what spiking runs alone use. 4: also for
# shortcuts. 5: neurons that were trained.
FORMAT = 5
_KEY = "s_resnet"
_OPS = {
    kind.__name__: kind
    for kind in (
        *(ops.Input, ops.Conv2d, ops.Linear, ops.Scale, ops.Affine, ops.BatchNorm2d, ops.ReLU, ops.QCFS, ops.Add),
        *(ops.MaxPool2d, ops.AvgPool2d, ops.AdaptiveAvgPool2d, ops.Flatten, ops.Pad, ops.Slice),
        *(neuron.Neuron, neuron.SpikingMaxPool2d, neuron.Readout),
    )
}


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``graph`` with its provenance; the file appears whole or not at all, and an old one survives a failure.

    Metadata: format version, nodes, provenance, and a SHA-256 over those and every tensor.
    Raises SResNetError when the file cannot be written (disk full, no permission).
    """
    tensors, nodes = _pack(graph)
    header: dict[str, Any] = {"format": FORMAT, "nodes": nodes, "provenance": dict(graph.provenance)}
    try:
        header = json.loads(json.dumps(header))  # as it will be read: keys are texts, tuples are lists
    except (TypeError, ValueError) as error:
        raise SResNetError(
            f"{path}: cannot be written, got provenance that is not JSON ({error}); expected "
            "texts, numbers, lists and dicts. Change what with_provenance was given."
        ) from error
    header["digest"] = _digest(header, tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(header, sort_keys=True)})


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``; what is written there takes ``path``'s place at the end, synced, or not at all.

    Raises SResNetError when the file cannot be written (disk full, no permission); an old file then survives.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # that of any new file here; safetensors would leave one for the owner's eyes only
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise SResNetError(
            f"{path}: cannot be written, got {_reason(error)}; expected a writable folder with room. "
            "Free some space or choose another place."
        ) from error
    finally:
        with suppress(OSError):  # the reason is already on its way
            temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Graph:
    """Read what :func:`save` wrote. No code is run and no pickle is read.

    Raises InvalidArtifact for a missing, truncated, edited or foreign file, and for one of a newer format.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InvalidArtifact(
            f"{path}: cannot be read, got {_reason(error)}; expected a .snn file. Convert the checkpoint again."
        ) from error
    if text is None:
        raise InvalidArtifact(
            f"{path}: got a safetensors file without a network; expected a .snn file. Run `sresnet convert` on it."
        )
    try:
        header = json.loads(text)
        version = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _edited(path, "a header that is not ours") from error
    if not isinstance(version, int) or version > FORMAT:
        raise InvalidArtifact(
            f"{path}: got format version {version}; expected at most {FORMAT}. Upgrade: pip install --upgrade s-resnet."
        )
    if header.get("digest") != _digest(header, tensors):
        raise _edited(path, "a digest that does not match the content")
    try:
        nodes = tuple(_unpack(entry, tensors) for entry in header["nodes"])
        return Graph(nodes, dict(header["provenance"])).validate()
    except (LookupError, TypeError, ValueError, AttributeError, SResNetError) as error:
        raise _edited(path, f"nodes that fit no network ({error})") from error


def _edited(path: Path, got: str) -> InvalidArtifact:
    return InvalidArtifact(
        f"{path}: damaged or edited, got {got}; expected what `sresnet convert` wrote. Convert the checkpoint again."
    )


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _pack(graph: Graph) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The tensors by ``node/field``, and everything else as JSON."""
    tensors: dict[str, Tensor] = {}
    nodes = []
    for node in graph.nodes:
        settings: dict[str, Any] = {}
        for field in fields(node.op):  # type: ignore[arg-type]
            value = getattr(node.op, field.name)
            if isinstance(value, Tensor):
                tensors[f"{node.name}/{field.name}"] = value.detach().cpu().contiguous().clone()
            else:
                settings[field.name] = value
        nodes.append({"name": node.name, "op": type(node.op).__name__, "inputs": node.inputs, "settings": settings})
    return tensors, nodes


def _unpack(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Node:
    kind = _OPS[entry["op"]]
    values = {name: _tuples(value) for name, value in entry["settings"].items()}
    for field in fields(kind):
        key = f"{entry['name']}/{field.name}"
        if key in tensors:
            values[field.name] = tensors[key]
    op: Op = kind(**values)
    return Node(entry["name"], op, tuple(entry["inputs"]))


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
