"""A look at the bytes of an ONNX file before they are parsed: a few of them can unfold to many objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

FIELDS = 2**18  # of a whole file; ResNet-18 has fewer than 10,000; each may become an object of some 100 bytes
DEPTH = 64  # of messages in each other, below the parser's own limit of 100
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # how a field is written


class Damaged(Exception):
    """The bytes are no message of this kind."""


class Excess(Exception):
    """The bytes hold more fields, or deeper ones, than any network needs."""


def scan(content: bytes, kind: Descriptor) -> None:
    """Walk through a protobuf message and count what parsing it would make; tensors are stepped over.

    Args:
        content: the file.
        kind: the type of its outermost message.

    Raises:
        Damaged: a field reaches beyond its message, is written in a way that protobuf does not have, or is a name in
            another encoding than UTF-8, which the parser would give as bytes.
        Excess: there are more than ``FIELDS`` fields, or messages nested deeper than ``DEPTH``.
    """
    inner: dict[str, Mapping[int, FieldDescriptor]] = {}
    todo, fields = [(0, len(content), kind, 0)], 0
    while todo:
        at, end, kind, depth = todo.pop()
        if depth > DEPTH:
            raise Excess(f"messages nested more than {DEPTH} deep")
        if kind.full_name not in inner:
            inner[kind.full_name] = {field.number: field for field in kind.fields}
        known = inner[kind.full_name]
        while at < end:
            fields += 1
            if fields > FIELDS:
                raise Excess(f"more than {FIELDS} fields")
            key, at = _varint(content, at, end)
            length = 0
            if key & 7 == VARINT:
                _, at = _varint(content, at, end)
            elif key & 7 == LENGTH:
                length, at = _varint(content, at, end)
                field = known.get(key >> 3)
                if field is not None and field.message_type is not None:
                    todo.append((at, at + length, field.message_type, depth + 1))
                elif field is not None and field.type == field.TYPE_STRING and field.name != "doc_string":
                    _check_text(content[at : at + length])
            elif key & 7 in (FIXED32, FIXED64):
                length = 4 if key & 7 == FIXED32 else 8
            else:
                raise Damaged
            at += length
            if at > end:
                raise Damaged


def _check_text(name: bytes) -> None:
    try:
        name.decode()
    except UnicodeDecodeError:
        raise Damaged from None


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """The number that begins at ``at``, seven bits a byte, and where it ends."""
    number, shift = 0, 0
    while at < end and shift < 70:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise Damaged
