"""The bytes that a run takes at most, found from the shapes of its values without computing them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...kernels import events
from ..alphabet import Differential, MultiThreshold
from ..neuron import Neuron
from ..ops import Conv2d, Node, Op
from ..readout import SpikingMaxPool2d
from ..shapes import Shape, numbers
from .plan import Plan, freed
from .rounds import behind


def analog(nodes: tuple[Node, ...], shapes: Mapping[str, Shape], itemsize: int) -> int:
    """Bytes of one image's values that live at once in an analog run, and of an operand in another layout."""
    sizes = {name: numbers(shape) * itemsize for name, shape in shapes.items()}
    alive = peak = 0
    for node, unread in zip(nodes, freed(nodes, {}), strict=True):
        alive += sizes[node.name]
        peak = max(peak, alive + max((sizes[name] for name in node.inputs), default=0))
        alive -= sum(sizes[name] for name in unread)
    return peak


def spiking(plan: Plan, shapes: Mapping[str, Shape], images: int, steps: int) -> int:
    """Bytes of the tensors that live at once while ``steps`` steps of so many images go through each layer.

    It is an upper bound: how densely layers will fire is not known, so it is the larger one of all spikes in lists and
    all of them in dense tensors. Not counted: weights, and what a library of dense convolutions takes for itself.
    """
    ways = (False, True) if events.available() else (False,)
    return max(_Walk(plan, shapes, images, steps, listed).peak() for listed in ways)


def packed(plan: Plan) -> int:
    """Bytes of the weights that a run will lay out for its convolutions of spikes."""
    ops = [(plan.ops[name], plan.bytes.get(source)) for name, source in plan.spiking.items()]
    return sum(
        op.weight.numel() * op.weight.element_size() * (2 if byte == torch.int8 else 1)  # some also negative
        for op, byte in ops
        if isinstance(op, Conv2d)
    )


class _Walk:
    """The run's way through the nodes: what each makes, and when it is freed."""

    def __init__(self, plan: Plan, shapes: Mapping[str, Shape], images: int, steps: int, listed: bool) -> None:
        self.plan, self.shapes, self.images, self.steps, self.listed = plan, shapes, images, steps, listed
        self.wide = plan.dtype.itemsize

    def peak(self) -> int:
        plan = self.plan
        held = sum(self._once(name) * self.wide for name in plan.kept)
        held += self._stem()
        if not plan.at_once:  # all layers remember something from one chunk to the next
            held += sum(self._memory(node) for node in plan.nodes) + self._late()
        alive: dict[str, int] = {}
        peak = held
        for index, node in enumerate(plan.nodes):
            if node.name in plan.static or node.name in plan.deferred:
                continue
            made, meanwhile = self._made(node)
            if plan.at_once:
                meanwhile += self._memory(node)
            alive[node.name] = made
            peak = max(peak, held + sum(alive.values()) + meanwhile)
            for name in plan.freed[index]:
                alive.pop(name, None)
        return peak

    def _once(self, name: str) -> int:
        """Numbers of a node's value at one step."""
        return self.images * numbers(self.shapes[name])

    def _stem(self) -> int:
        """What the constant part holds beside the values that are kept, before the steps begin."""
        return max((self._once(name) * self.wide for name in self.plan.static), default=0)

    def _late(self) -> int:
        """Bytes of the steps that wait for readers behind lagged layers: before a round, and joined to its own."""
        late = {name: steps + 2 for name, steps in behind(self.plan.wiring, self.plan.lagged).items() if steps}
        return sum(self._once(name) * self.wide * (2 * steps + self.steps) for name, steps in late.items())

    def _memory(self, node: Node) -> int:
        """Bytes of what a node remembers."""
        op, own = node.op, self._once(node.name)
        if isinstance(op, SpikingMaxPool2d):
            return (own + self._once(node.inputs[0])) * self.wide
        if not isinstance(op, Neuron):
            return 0
        several = len(op.spikes.thresholds) if isinstance(op.spikes, MultiThreshold) else 1
        also = isinstance(op.spikes, Differential) or op.spikes.signed
        return own * self.wide * (several + also)

    def _made(self, node: Node) -> tuple[int, int]:
        """Bytes of a node's value, and of what is there only while it is computed."""
        steps = self.steps if self.plan.at_once else self.steps + (node.name in self.plan.lagged)
        op, count = self.plan.ops[node.name], self._once(node.name) * steps
        if isinstance(op, Neuron):
            spikes = count if self._in_bytes(node.name) else count * self.wide
            lists = self._lists(node.name) if self._in_bytes(node.name) else 0
            scaled = 0 if node.name in self.plan.unit else count * self.wide
            plain = op.binary and len(node.inputs) <= 2
            return spikes + lists + scaled, 0 if plain else count * self.wide
        if node.name in self.plan.spiking and self._in_bytes(node.inputs[0]) and node.name in self.plan.fused:
            return 0, 0  # its neurons take the currents as they arise
        biased = isinstance(op, Conv2d) and op.bias is not None
        operands = sum(self._once(name) * self.steps for name in node.inputs)
        return count * self.wide, (operands + count * biased) * self.wide

    def _in_bytes(self, name: str) -> bool:
        """Whether spikes come as bytes, with a list of their places."""
        readers = [self.plan.ops[reader] for reader, source in self.plan.spiking.items() if source == name]
        return self.listed and name in self.plan.bytes and bool(readers) and all(map(self._takes, readers))

    def _takes(self, op: Op) -> bool:
        return isinstance(op, Conv2d) and op.groups == 1 and op.dilation == (1, 1)

    def _lists(self, name: str) -> int:
        """Bytes of the list of places of spikes, which has room for all of them."""
        height = self.shapes[name][-2] or 1
        return 2 * self.steps * (self._once(name) + self.images * height * events.ROOM)
