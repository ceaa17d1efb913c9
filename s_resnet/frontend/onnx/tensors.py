"""Tensors of an ONNX file: sizes are checked against the bytes that are there before memory is taken."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidCheckpoint, message, printable
from ...files import opened, reason

if TYPE_CHECKING:
    from onnx import TensorProto

EXTERNAL = 1  # TensorProto.data_location
RANK, LARGEST = 8, 2**33  # axes of a tensor; bytes of a file beside the model
SHARED = 4  # how often tensors may share the bytes of such a file
AGAIN = "Copy or download the file again, or export it again"


@dataclass(frozen=True)
class _Kind:
    """A type of numbers: its name, how they are written as raw bytes, and the field that may hold them instead."""

    name: str
    raw: str
    field: str


# By TensorProto.DataType. Half precision is written as whole numbers of 16 bits.
_KINDS = {
    1: _Kind("float32", "<f4", "float_data"),
    2: _Kind("uint8", "<u1", "int32_data"),
    3: _Kind("int8", "<i1", "int32_data"),
    4: _Kind("uint16", "<u2", "int32_data"),
    5: _Kind("int16", "<i2", "int32_data"),
    6: _Kind("int32", "<i4", "int32_data"),
    7: _Kind("int64", "<i8", "int64_data"),
    9: _Kind("bool", "<u1", "int32_data"),
    10: _Kind("float16", "<u2", "int32_data"),
    11: _Kind("float64", "<f8", "double_data"),
    12: _Kind("uint32", "<u4", "uint64_data"),
    13: _Kind("uint64", "<u8", "uint64_data"),
    16: _Kind("bfloat16", "<u2", "int32_data"),
}
FLOATS = {code for code, kind in _KINDS.items() if "float" in kind.name}


@dataclass
class Tensors:
    """Reads the tensors of one file.

    Attributes:
        path: the .onnx file.
        digest: SHA-256 of the file and, behind it, of the bytes of every tensor that was read from files beside it.
        numbers: how many numbers were read.
        taken: how many bytes were read of each file beside it.
    """

    path: Path
    digest: Any = field(default_factory=hashlib.sha256)
    numbers: int = 0
    taken: dict[Path, int] = field(default_factory=dict)

    def read(self, proto: TensorProto) -> Tensor:
        """The tensor: float32, int64 or bool.

        Raises:
            InvalidCheckpoint: its type has no such numbers, its size is not that of its data, or a file beside the
                model that should hold the data lies elsewhere or cannot be read.
        """
        kind = _KINDS.get(proto.data_type)
        if kind is None:
            remedy = "Export the network in float32, without quantization"
            raise self._error(proto, f"data type {proto.data_type}", "floating-point or whole numbers", remedy)
        shape = tuple(proto.dims)
        if len(shape) > RANK or any(not 0 <= size < 2**48 for size in shape):
            raise self._error(proto, f"a shape of {len(shape)} axes {shape[:RANK]}", f"at most {RANK} sizes from 0 on")
        count = math.prod(shape)
        numbers = self._numbers(proto, kind, count).reshape(shape)
        if kind.name == "uint64" and count and int(numbers.max()) >= 2**63:
            raise self._error(proto, f"the number {int(numbers.max())}", "numbers below 2^63")
        self.numbers += count
        return _converted(numbers, kind.name)

    def _numbers(self, proto: TensorProto, kind: _Kind, count: int) -> np.ndarray[Any, Any]:
        wanted = count * np.dtype(kind.raw).itemsize
        if proto.data_location == EXTERNAL:
            return np.frombuffer(self._outside(proto, wanted), kind.raw)
        if proto.HasField("raw_data"):
            if len(proto.raw_data) != wanted:
                raise self._error(proto, f"{len(proto.raw_data)} bytes", f"{wanted} for its shape {tuple(proto.dims)}")
            return np.frombuffer(proto.raw_data, kind.raw)
        held = getattr(proto, kind.field)
        if len(held) != count:
            raise self._error(proto, f"{len(held)} numbers in {kind.field}", f"{count} for {tuple(proto.dims)}")
        return np.array(held).astype(kind.raw)

    def _outside(self, proto: TensorProto, wanted: int) -> bytes:
        """The bytes of a tensor in a file beside the model."""
        said = {entry.key: entry.value for entry in proto.external_data}
        place = self._beside(proto, said.get("location", ""))
        offset = self._whole(proto, "offset", said.get("offset"), 0)
        length = self._whole(proto, "length", said.get("length"), wanted)
        if length != wanted:
            raise self._error(proto, f"{length} bytes", f"{wanted} for its shape {tuple(proto.dims)}")
        try:
            with opened(place, LARGEST) as file:
                size = os.fstat(file.fileno()).st_size
                if offset + length > size:
                    got = f"bytes {offset} to {offset + length} of {place.name}, which has {size}"
                    raise self._error(proto, got, "data that are there", "Copy the file with the weights again")
                self.taken[place] = self.taken.get(place, 0) + length
                if self.taken[place] > SHARED * size:
                    got = f"{self.taken[place]} bytes of {place.name}, which has {size}"
                    raise self._error(proto, got, "each weight stored once", "Export the network again")
                file.seek(offset)
                content = file.read(length)
        except OSError as error:
            remedy = f"Copy {place.name} into the folder of the .onnx file"
            raise self._error(proto, f"{place.name}: {reason(error)}", "a readable file of weights", remedy) from None
        self.digest.update(content)
        return content

    def _beside(self, proto: TensorProto, location: str) -> Path:
        """The file at ``location``, which must lie in the folder of the model, links followed."""
        folder = self.path.parent.resolve()
        plain = re.fullmatch(r"[^\\:\0]+", location) and not location.startswith("/") and len(location) < 4096
        try:
            found = (folder / location).resolve() if plain and ".." not in Path(location).parts else None
        except (OSError, RuntimeError, ValueError):  # a loop of links, or no name of a file
            found = None
        if found is None or folder not in found.parents:
            got, expected = (
                f"weights in {location[:80]!r}",
                "a file in the folder of the .onnx file, no link out of it",
            )
            raise self._error(proto, got, expected, "Copy the file with the weights beside it, and export it again")
        return found

    def _whole(self, proto: TensorProto, name: str, text: str | None, rest: int) -> int:
        if text is None:
            return rest
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise self._error(proto, f"{name} {text[:80]!r}", "a number of bytes")
        return int(text)

    def _error(self, proto: TensorProto, got: str, expected: str, remedy: str = AGAIN) -> InvalidCheckpoint:
        return InvalidCheckpoint(message(str(self.path), f"tensor {short(proto.name)}", got, expected, remedy))


def short(name: str) -> str:
    """A name of the file for messages and nodes: in one line, and not without end."""
    name = printable(name)
    return name if len(name) <= 120 else f"{name[:117]}..."


def _converted(numbers: np.ndarray[Any, Any], kind: str) -> Tensor:
    if kind == "float16":
        return torch.from_numpy(numbers.view("<f2").astype("f4"))
    if kind == "bfloat16":
        return torch.from_numpy((numbers.astype("u4") << 16).view("f4"))
    if kind.startswith("float"):
        with np.errstate(over="ignore"):  # infinite numbers are refused where they are used
            return torch.from_numpy(numbers.astype("f4"))
    return torch.from_numpy(numbers.astype(bool if kind == "bool" else "i8"))
