"""The archive that ``torch.export.save`` writes, as data: its parts, its JSON and its tensors.

It is a zip archive of uncompressed parts in one folder: ``models/NAME.json`` is the program, ``data/weights`` and
``data/constants`` hold the bytes of its tensors, each beside a JSON that says their types and shapes. Files of torch
2.8 hold the tensors in one file of ``torch.save`` instead.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from ...errors import InvalidCheckpoint, message

JSON = 2**26  # bytes of a part that is JSON
BRANCHES = 2**20  # lists and dicts in it
UNFOLDED = 4  # times the file's size: the bytes of all tensors, which may share stored numbers
VERSION = "0"  # of the archive's layout
SCHEMA = 8  # of the program's JSON: its major version
AGAIN = "Export the network again with torch.export.export, and save it with torch.export.save of torch 2.9 or newer"
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}  # by torch's numbers for them in a file

T = TypeVar("T")


class Malformed(Exception):
    """What a part of the archive is, and what it should be."""


def field(tree: Any, name: str, kind: type[T]) -> T:
    """The entry of a dict of the file, which has this type.

    Raises:
        Malformed: it has not.
    """
    value = tree.get(name) if isinstance(tree, Mapping) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Malformed(f"{type(value).__name__} as {name!r}")
    return value


def only(tree: Any) -> tuple[str, Any]:
    """The name and value of a dict of one entry, which is how the file writes one of several kinds.

    Raises:
        Malformed: it is no such dict.
    """
    if not isinstance(tree, Mapping) or len(tree) != 1:
        raise Malformed(f"{type(tree).__name__} instead of one of several kinds")
    ((name, value),) = tree.items()
    return name, value


def whole(tree: Any) -> int:
    """A size as the file writes it: a number, or of a free size that of the example.

    Raises:
        Malformed: it is neither.
    """
    kind, value = only(tree)
    if kind == "as_expr":
        kind, value = only(field(value, "hint", dict))
    if kind != "as_int" or type(value) is not int or not 0 <= value < 2**62:
        raise Malformed(f"{kind} {value!r:.40} as a size")
    return value


@dataclass(frozen=True)
class Shape:
    """What the file says of a tensor: its type, sizes, and where its numbers are in the stored ones."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, meta: Any) -> Shape:
        """From the file's JSON.

        Raises:
            Malformed: it says no such thing.
        """
        number, layout = field(meta, "dtype", int), field(meta, "layout", int)
        if number not in DTYPES or layout != 7:
            raise Malformed(f"a tensor of type {number} and layout {layout}")
        sizes, strides = (tuple(map(whole, field(meta, name, list))) for name in ("sizes", "strides"))
        if len(sizes) != len(strides) or len(sizes) > 8:
            raise Malformed(f"{len(strides)} strides for {len(sizes)} sizes")
        return cls(DTYPES[number], sizes, strides, whole(field(meta, "storage_offset", dict)))

    @property
    def reach(self) -> int:
        """How many stored numbers it needs."""
        if 0 in self.sizes:
            return 0
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.sizes, self.strides, strict=True))


class Archive:
    """The parts of one file.

    Args:
        file: the open file.
        where: its name, for messages.

    Raises:
        InvalidCheckpoint: its directory, sizes or checksums are wrong.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.where = where
        self.size = file.seek(0, 2)
        try:
            self.zip = zipfile.ZipFile(file)
            members = self.zip.infolist()
            self._check(members)
            for member in members:
                with self.zip.open(member) as part:
                    while part.read(2**20):
                        pass
        except InvalidCheckpoint:
            raise
        except Exception:  # a damaged directory can fail in any way, a flipped bit by its checksum
            raise self.bad("a truncated or damaged archive") from None
        self.parts = {member.filename.partition("/")[2]: member for member in members}

    def _check(self, members: list[zipfile.ZipInfo]) -> None:
        """Check that the parts are in one folder, each once and as it is, and no larger than the file."""
        names = {member.filename.lower() for member in members}
        packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1]
        if packed or sum(member.file_size for member in members) > self.size:
            raise self.bad("parts that are compressed, encrypted or larger than the file")
        if len(names) != len(members) or len({name.partition("/")[0] for name in names}) != 1:
            raise self.bad("parts of one name, or in several folders")

    def bad(self, got: str) -> InvalidCheckpoint:
        """The error for an archive that is not as torch writes it."""
        remedy = f"Copy the file again. {AGAIN}"
        return InvalidCheckpoint(message(self.where, "exported program", got, "what torch.export.save writes", remedy))

    def text(self, name: str) -> str:
        """A short part, as text; empty where there is none."""
        if name not in self.parts or self.parts[name].file_size > 2**10:
            return ""
        return self.zip.read(self.parts[name]).decode(errors="replace").strip()

    def json(self, name: str) -> Any:
        """The JSON of a part.

        Raises:
            InvalidCheckpoint: there is none.
        """
        if name not in self.parts:
            raise self.bad(f"no part {name}")
        if self.parts[name].file_size > JSON:
            raise self.bad(f"{self.parts[name].file_size} bytes in {name}")
        text = self.zip.read(self.parts[name])
        if text.count(b"{") + text.count(b"[") > BRANCHES:
            raise self.bad(f"more than {BRANCHES} lists and dicts in {name}")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self.bad(f"no JSON in {name}") from None

    def tensors(self, model: str, kind: str) -> dict[str, Tensor]:
        """The tensors of a program by name, views of the stored numbers.

        Args:
            model: the program's name.
            kind: ``"weights"`` or ``"constants"``.

        Raises:
            InvalidCheckpoint: they are not in the file, or not as raw numbers.
        """
        names = (f"{model}_{kind}_config.json", f"{model}_model_param_config.json")
        found = [name for name in names if f"data/{kind}/{name}" in self.parts]
        if not found and f"data/{kind}/{model}.pt" in self.parts:
            got, expected = "tensors in one pickle, as torch 2.8 wrote them", "tensors as raw numbers"
            raise InvalidCheckpoint(message(self.where, "exported program", got, expected, AGAIN))
        if not found:
            raise self.bad(f"no {names[0]}")
        try:
            said = field(self.json(f"data/{kind}/{found[0]}"), "config", dict)
            stored: dict[str, Tensor] = {}
            read = {name: self._tensor(f"data/{kind}/", name, entry, stored) for name, entry in said.items()}
        except Malformed as error:
            raise self.bad(f"{error} in {found[0]}") from None
        unfolded = sum(tensor.numel() * tensor.element_size() for tensor in read.values())
        if unfolded > UNFOLDED * self.size:
            raise self.bad(f"{unfolded} bytes of {kind} from a file of {self.size}")
        return read

    def _tensor(self, folder: str, name: str, entry: Any, stored: dict[str, Tensor]) -> Tensor:
        part = folder + field(entry, "path_name", str)
        if field(entry, "use_pickle", bool):
            what, remedy = f"tensor {name}", "Export it from a network of plain tensors, without quantization"
            got, expected = "a pickled Python object", "plain numbers"
            raise InvalidCheckpoint(message(self.where, what, got, expected, remedy))
        shape = Shape.of(field(entry, "tensor_meta", dict))
        if part not in self.parts or part.endswith(".json"):
            raise Malformed(f"no part {part!r:.80}")
        if part not in stored:
            stored[part] = torch.frombuffer(
                bytearray(self.zip.read(self.parts[part])) or bytearray(1), dtype=torch.uint8
            )
        raw = stored[part]
        numbers = raw[: len(raw) // shape.dtype.itemsize * shape.dtype.itemsize].view(shape.dtype)
        if shape.reach > self.parts[part].file_size // shape.dtype.itemsize:
            raise Malformed(f"{shape.sizes} from {self.parts[part].file_size} bytes as {name!r:.80}")
        return numbers.as_strided(shape.sizes, shape.strides, shape.offset)
