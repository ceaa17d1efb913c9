"""Whether nodes form a network: an input first, unique names, inputs before their readers, nothing left over."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConversionError, message
from .ops import Input, Node


def check_structure(nodes: Sequence[Node]) -> None:
    """Check that nodes, in execution order, form a network.

    Raises:
        ConversionError: a name is used twice, an input does not exist, or nothing reads a value.
    """
    seen: set[str] = set()
    if not nodes:
        raise ConversionError(message("graph", "", "no nodes", "an input first", "Start with an Input node"))
    for node in nodes:
        if isinstance(node.op, Input) != (node is nodes[0]) or isinstance(node.op, Input) == bool(node.inputs):
            got = f"{type(node.op).__name__} with {len(node.inputs)} inputs as node {len(seen)}"
            expected = "the images as node 0, and every other node to read one"
            raise ConversionError(message(node.name, "", got, expected, "Give each node its inputs"))
        if node.name in seen:
            what, remedy = "node names must be unique", "Rename a node"
            raise ConversionError(message("graph", what, f"{node.name!r} twice", "one", remedy))
        missing = [name for name in node.inputs if name not in seen]
        if missing:
            got, remedy = f"input {missing[0]!r}", "Put the nodes in execution order"
            raise ConversionError(message(node.name, "", got, "an earlier node", remedy))
        seen.add(node.name)
    read = {name for node in nodes for name in node.inputs}
    lost = [node.name for node in nodes[:-1] if node.name not in read]
    if lost:
        expected, remedy = "every node but the last to be read", "Leave the node out"
        raise ConversionError(message(lost[0], "", "no reader", expected, remedy))
