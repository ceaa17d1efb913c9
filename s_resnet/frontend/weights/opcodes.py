"""A look at a pickle's opcodes before it is read: how many objects it makes, how deep, and from which storages.

The reader of weights runs no code, but a few bytes can make it build objects without end: a tuple that holds another
one twice, thirty times over, takes minutes to hash.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

DEEPEST = 100  # nested containers
LARGEST = 10**7  # objects; one that occurs twice counts twice
BYTES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4, "QInt32": 4} | {
    "Half": 2,
    "BFloat16": 2,
    "Short": 2,
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4", "Untyped"), 1),
}
# Functions that the reader of weights allows and no weights need. They allocate as much as their argument says.
MAKERS = (
    "builtins bytearray",
    "__builtin__ bytearray",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor",
    "torch._utils _rebuild_device_tensor_from_numpy",
)


class Excess(Exception):
    """A pickle that would make too many objects."""


@dataclass(eq=False)
class _Item:
    """An object on the stack.

    Attributes:
        weight: how many objects it contains, itself included.
        depth: how many containers are nested in it.
        value: the object itself, where it is small.
    """

    weight: int = 1
    depth: int = 0
    value: Any = None


_MARK = _Item()
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INTO = {"APPEND": 1, "SETITEM": 2}  # how many items go into the container below them
_INTO_MARKED = ("APPENDS", "SETITEMS", "ADDITEMS")
_KEEP = ("BINPUT", "LONG_BINPUT", "PUT")
_GET = ("BINGET", "LONG_BINGET", "GET")


def scan(file: Any) -> dict[str, int]:
    """The number of bytes that a pickle claims of each storage, by the storage's key.

    Args:
        file: bytes, or a file.

    Raises:
        Excess: it would make too many objects, or nest them too deep.
        ValueError: it is not a pickle.
    """
    return _Scan().run(file)


class _Scan:
    def __init__(self) -> None:
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}
        self.claimed: dict[str, int] = {}

    def run(self, file: Any) -> dict[str, int]:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > LARGEST:
                raise Excess(f"more than {LARGEST} steps")
            try:
                self._step(opcode, argument)
            except (IndexError, KeyError) as error:
                raise ValueError("no pickle: something is missing on its stack") from error
        return self.claimed

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = opcode.name, self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(_joined(self._taken(_TUPLES[name]), with_values=True))
        elif name == "TUPLE":
            stack.append(_joined(self._marked(), with_values=True))
        elif name in _INTO or name in _INTO_MARKED:
            parts = self._taken(_INTO[name]) if name in _INTO else self._marked()
            stack[-1].weight += sum(part.weight for part in parts)
            stack[-1].depth = max([stack[-1].depth, *(1 + part.depth for part in parts)])
        elif name in _KEEP or name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in _GET:
            stack.append(self.memo[argument])
        elif name in ("BINPERSID", "PERSID"):
            self._storage(stack.pop())
            stack.append(_Item())
        elif name == "GLOBAL" and argument in MAKERS:
            raise Excess(f"{argument.split()[1]}, which allocates whatever it is told")
        else:
            self._other(opcode, argument)
        if stack and (stack[-1].weight > LARGEST or stack[-1].depth > DEEPEST):
            raise Excess(f"objects nested {stack[-1].depth} deep, {stack[-1].weight} in all")

    def _other(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Any other opcode, by its description in ``pickletools``."""
        before, after = opcode.stack_before, opcode.stack_after
        parts = self._marked() if pickletools.markobject in before else []
        if pickletools.markobject in before:
            before = before[: before.index(pickletools.markobject)]
        parts = [*self._taken(len(before)), *parts]
        for _ in after:
            made = _joined(parts) if parts else _Item()
            made.value = argument if isinstance(argument, str | int) else None
            self.stack.append(made)

    def _taken(self, count: int) -> list[_Item]:
        if count > len(self.stack):
            raise IndexError(count)
        parts = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return parts

    def _marked(self) -> list[_Item]:
        at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        parts = self.stack[at + 1 :]
        del self.stack[at:]
        return parts

    def _storage(self, item: _Item) -> None:
        """Record the claim of a persistent id, ``("storage", class, key, location, length)``."""
        value = item.value
        if not isinstance(value, tuple) or len(value) < 5 or not isinstance(value[1], str):
            raise ValueError("no storage that torch.save wrote")
        _, kind, key, _, length = value[:5]
        size = BYTES.get(kind.split()[-1].removesuffix("Storage"), 16)
        if not isinstance(length, int) or length < 0:
            raise ValueError("a storage without a length")
        self.claimed[str(key)] = max(self.claimed.get(str(key), 0), length * size)


def _joined(parts: list[_Item], with_values: bool = False) -> _Item:
    """A container of these items."""
    values = tuple(part.value for part in parts) if with_values and len(parts) <= 8 else None
    weight, depth = 1 + sum(part.weight for part in parts), 1 + max((part.depth for part in parts), default=0)
    return _Item(weight, depth, values)
