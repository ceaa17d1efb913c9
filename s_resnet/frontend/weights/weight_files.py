"""Weights in one file or in several: a file, a folder of Hugging Face, or shards that an index lists.

Sources: ``save_pretrained`` of Hugging Face transformers, whose ``weight_map`` says which file has which tensor.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ... import files
from ...errors import InvalidCheckpoint, message
from .checkpoint_file import LARGEST, RESAVE, first, read
from .foreign_files import IN_FOLDERS

# What a folder's weights are called, the best first.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = ".index.json"
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.safetensors|\.bin)")
PLAIN = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)  # a name without a folder
MOST = 2**26  # bytes of an index
SHARDS = 1000
BLOBS = "blobs"  # where the cache of Hugging Face keeps files; its snapshots are folders of links


@dataclass(frozen=True)
class Content:
    """What was read.

    Attributes:
        value: the object in the file, or the tensors of all shards by name.
        digest: SHA-256 of the file; of shards that of their names and digests.
        size: bytes of all of them.
    """

    value: object
    digest: str
    size: int


def read_weights(path: Path) -> Content:
    """The content of a file, of a folder's weights, or of all shards that belong to an index or to a shard.

    Raises:
        InvalidCheckpoint: there are none, or they cannot be read or are not what the index says.
    """
    where = str(path)
    try:
        if path.is_dir():
            path = _in_folder(path)
        elif (part := SHARD.fullmatch(path.name)) and path.exists():
            path = _index_of(path, part[1] + part[2])
        if path.name.endswith(INDEX) and path.exists():
            return _read_shards(path)
        value, digest = read(path)
        return Content(value, digest, path.stat().st_size)
    except OSError as error:
        remedy = "Change its permissions so that you can read it"
        raise InvalidCheckpoint(
            message(where, "cannot be opened", files.reason(error), "a readable file", remedy)
        ) from None


def _in_folder(folder: Path) -> Path:
    """The weights in a folder of Hugging Face."""
    if found := next((folder / name for name in NAMES if (folder / name).is_file()), None):
        return found
    where, expected = str(folder), f"one of {', '.join(NAMES)} in it"
    other = next((name for name in IN_FOLDERS if (folder / name).is_file()), None)
    if other:
        got = f"a directory of {IN_FOLDERS[other]}'s weights ({other})"
        remedy = "Take the network's PyTorch weights, or convert them with transformers (from_flax, from_tf)"
        raise InvalidCheckpoint(message(where, "checkpoint", got, expected, remedy))
    raise InvalidCheckpoint(message(where, "checkpoint", "a directory", expected, "Name the file itself"))


def _index_of(shard: Path, name: str) -> Path:
    index = shard.with_name(name + INDEX)
    if not index.is_file():
        got, expected = "one part of several", f"{index.name} beside it, which lists all of them"
        raise InvalidCheckpoint(
            message(str(shard), "checkpoint", got, expected, "Download the index and all parts into one folder")
        )
    return index


def _read_shards(index: Path) -> Content:
    """The tensors of all shards, after a check that each shard has those that the index says, and no others."""
    where = str(index)
    shards, total = _listed(index)
    paths = {name: _beside(index, name) for name in sorted(shards)}
    size = sum(path.stat().st_size for path in paths.values())
    if size > LARGEST:
        got, expected = f"{size} bytes in {len(paths)} files", f"at most {LARGEST}"
        raise InvalidCheckpoint(message(where, "size", got, expected, RESAVE))
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    for name, path in paths.items():
        value, own = read(path)
        found = value if isinstance(value, Mapping) else {}
        if found.keys() != shards[name] or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            wrong = sorted(map(str, found.keys() ^ shards[name])) or ["no tensors"]
            got = f"{name} with other tensors ({first(wrong)} in one of the two alone)"
            remedy = "Download index and parts again, all of one version"
            raise InvalidCheckpoint(message(where, "parts", got, "those that the index says", remedy))
        tensors |= found
        digest.update(f"{name} {own}\n".encode())
    held = sum(tensor.nbytes for tensor in tensors.values())
    if total not in (None, held):
        got, expected = f"{held} bytes of tensors", f"{total}, as the index says"
        raise InvalidCheckpoint(message(where, "total size", got, expected, "Download all parts again"))
    return Content(tensors, digest.hexdigest(), size)


def _listed(index: Path) -> tuple[dict[str, set[str]], int | None]:
    """The names of the tensors by the shard that has them, and how many bytes they have, where the index says it."""
    where, wanted = str(index), "an index of Hugging Face: weight_map, with the file of each tensor"
    try:
        said = json.loads(files.read(index, MOST))
        places = said["weight_map"]
        metadata = said.get("metadata") or {}
        total = metadata.get("total_size")
        total = total if type(total) is int else None
        known = [(name, file) for name, file in places.items() if isinstance(file, str)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InvalidCheckpoint(
            message(where, "not an index", "another file", wanted, "Download the index again")
        ) from None
    shards: dict[str, set[str]] = defaultdict(set)
    for name, file in known:
        shards[file].add(name)
    wrong = next((file for file in shards if not PLAIN.fullmatch(file)), None)
    if wrong is not None or len(known) != len(places) or not 0 < len(shards) <= SHARDS:
        got = f"{len(places)} tensors in {len(shards)} files" if wrong is None else f"a file {wrong[:80]!r}"
        expected = f"1 to {SHARDS} files named as model-00001-of-00002.safetensors, in the folder of the index"
        raise InvalidCheckpoint(message(where, "files of the index", got, expected, "Download the index again"))
    return shards, total


def _beside(index: Path, name: str) -> Path:
    """The path of a shard, after a check that it lies in the folder of the index, or in the cache of Hugging Face."""
    path, where = index.with_name(name), str(index)
    if not path.is_file():
        got, remedy = f"no file {name}", "Download all parts into the folder of the index"
        raise InvalidCheckpoint(message(where, "parts", got, "every file that the index names", remedy))
    home, real = index.parent.resolve(), path.resolve()
    if real.parent not in (home, home.parent.parent / BLOBS):
        got, remedy = f"{name}, a link to {real.parent}", "Copy the file there"
        raise InvalidCheckpoint(message(where, "parts", got, "a file in the folder of the index", remedy))
    return path


def check_config(path: Path, names: Mapping[str, Tensor], arch: str | None) -> None:
    """Check that the ``config.json`` beside weights of Hugging Face says what their layout, or ``arch``, stands for.

    Strides and activation are in no weights; a network with others would be read as another network.

    Raises:
        InvalidCheckpoint: the file cannot be read, or says something else.
    """
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file() or not any(name.endswith("embedder.embedder.convolution.weight") for name in names):
        return
    where = str(config)
    try:
        said = json.loads(files.read(config, MOST))
        found = {name: said.get(name, usual) for name, usual in _USUAL.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        got, remedy = files.reason(error), "Download it again"
        raise InvalidCheckpoint(message(where, "cannot be read", got, "the settings of a ResNet", remedy)) from None
    for name, usual in _USUAL.items():
        word = _WORDS.get(name, "") if found[name] is True else ""
        if found[name] != usual and not (word and word in (arch or "").split("-")):
            remedy = "Build the network with transformers, and use s_resnet.convert(model) from Python"
            if word:
                remedy = f"Say so in arch, as in resnet50-{word}"
            raise InvalidCheckpoint(
                message(where, name, repr(found[name])[:80], f"{usual!r}, as of microsoft/resnet-50", remedy)
            )


_USUAL: Mapping[str, object] = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
# The words of an architecture that stand for other settings.
_WORDS: Mapping[str, str] = {"downsample_in_bottleneck": "v1", "downsample_in_first_stage": "halved"}
