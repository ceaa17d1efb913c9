"""The list of classes in ILSVRC's ``meta.mat``: a reader of just that table of a MATLAB 5 file, which runs nothing.

A MATLAB 5 file is 128 bytes of header and a sequence of elements: a type and a size of 4 bytes each, then the content,
padded to 8 bytes. A content of at most 4 bytes may share 8 bytes with its type and size. An element of type matrix
consists of elements again: flags, dimensions, name, then the values; one of type compressed is a deflated element.

Source: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128
MATRIX, COMPRESSED, UTF16 = 14, 15, 17
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
STRUCT, CHARACTERS = 2, 4  # kinds of a matrix
LARGEST = 2**26  # bytes that it may unpack to; the real one has less than 1 MB


def read_synsets(content: bytes) -> dict[int, str]:
    """ILSVRC's own number of each class and synset, and its WordNet id.

    Raises:
        ValueError: the file is of another form.
    """
    if len(content) < HEADER or content[124:128] != b"\x00\x01IM":
        raise ValueError("no MATLAB 5 file")
    try:
        for kind, data in _elements(content[HEADER:]):
            unpacked = _elements(_inflated(data)) if kind == COMPRESSED else [(kind, data)]
            for inner, matrix in unpacked:
                if inner == MATRIX and (found := _synsets(matrix)):
                    return found
    except (struct.error, zlib.error, StopIteration, IndexError, OverflowError) as error:
        raise ValueError(f"a damaged MATLAB file ({error or 'cut off'})") from error
    raise ValueError("no table 'synsets' with ILSVRC2012_ID and WNID")


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    found = stream.decompress(data, LARGEST)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {LARGEST} bytes packed")
    return found


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, place)
        begin, step = place + 8, -size % 8 if kind != COMPRESSED else 0
        if kind >> 16:
            kind, size, begin, step = kind & 0xFFFF, kind >> 16, place + 4, 0
            place = begin + 4
        else:
            place = begin + size + step
        if begin + size > len(data):
            raise ValueError(f"an element of {size} bytes, of which {len(data) - begin} are there")
        yield kind, data[begin : begin + size]


def _synsets(matrix: bytes) -> dict[int, str]:
    """The columns ILSVRC2012_ID and WNID of the table of that name; empty for another matrix."""
    parts = _elements(matrix)
    flags, shape, name = [next(parts)[1] for _ in range(3)]
    if flags[0] != STRUCT or name != b"synsets":
        return {}
    (width,) = struct.unpack("<i", next(parts)[1])
    joined = next(parts)[1]
    fields = [joined[i : i + width].rstrip(b"\0").decode() for i in range(0, len(joined), max(width, 1))]
    if not {"ILSVRC2012_ID", "WNID"} <= set(fields):
        return {}
    found = {}
    for _ in range(math.prod(np.frombuffer(shape, "<i4").tolist())):
        row = {field: next(parts)[1] for field in fields}
        found[int(_value(row["ILSVRC2012_ID"]))] = str(_value(row["WNID"]))
    return found


def _value(matrix: bytes) -> float | str:
    """The text, or the one number, in a matrix."""
    parts = list(_elements(matrix))
    kind, data = parts[3]
    if parts[0][1][0] == CHARACTERS:
        return data.decode("utf-16-le" if kind in (4, UTF16) else "utf-8")
    numbers = np.frombuffer(data, f"<{NUMBERS[kind]}") if kind in NUMBERS else np.empty(0)
    if numbers.size != 1:
        raise ValueError(f"{numbers.size} numbers where one was expected")
    return float(numbers[0])
