"""One run of a spiking network: its layers over chunks of time steps, each value in the form its readers want.

A chunk of S steps goes through one layer at a time: convolutions see ``[S * B, ...]``, the membrane kernel
``[S, B, ...]``. Spikes that convolutions read travel as bytes on the CPU, and a convolution costs their number
(``kernels/events.py``); a layer that fires in more than ``DENSE`` of its neurons goes through torch's dense convolution
instead. On a GPU all convolutions are dense, and their spikes numbers that tensor cores multiply exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels import events, tf32
from ...kernels.membrane import fused
from ...kernels.pending import Currents
from ...runtime.display import Displayed
from ..execution import Execution
from ..neuron import Memory, Neuron
from ..ops import Conv2d, Node, Op, Scale, channels_last
from ..readout import Readout, SpikingMaxPool2d
from .plan import Plan
from .precision import arithmetic
from .rounds import Clock, Turn, wired

# Share of active neurons from which the dense convolution is faster: measured, docs/explanation/simulator.md. Of spikes
# that are worth an amount of several levels.
DENSE, DENSE_AMOUNTS = 0.4, 0.35
# Types of spikes that travel as bytes.
BYTES = (torch.uint8, torch.int8)

# Gives the next S steps of input ``[S, B, C, H, W]``.
Encode = Callable[[int], Tensor]
# Gets the name and the value ``[S * B, *]`` of a node after each chunk of S steps; spikes may come as bytes.
Observe = Callable[[str, Tensor], None]


@dataclass(frozen=True, repr=False)
class Whole(Displayed):
    """Says that a simulation is run to its end, so that memory may be updated in place and need not be kept.

    Attributes:
        state: whether the memory after the last step is needed; that after other chunks is not.
        repeats: how many such simulations the caller expects, as tuning pays only if it is used often.
    """

    state: bool = True
    repeats: int = 1


@dataclass(frozen=True, repr=False)
class StreamSettings(Displayed):
    """How :meth:`s_resnet.Graph.stream` simulates; the defaults are what nearly everyone wants.

    Attributes:
        encode: gives the next ``S`` steps of input ``[S, B, C, H, W]`` instead of the constant images.
        precision: ``"exact"`` is float32 (on a GPU convolutions of spikes are two in TF32, as exact together);
            ``"fast"`` multiplies in 16 bits where that is faster: bfloat16 or fixed-point weights on a CPU, float16 on
            a GPU. Membranes and classifier are float32 in both, whatever precision the caller has set in torch.
        observe: called with the name and the value ``[S * B, *]`` of every node that is computed for each chunk:
            neurons, pools and currents, but not constants, nor currents that go straight into a membrane (a shortcut
            synapse, an event-driven convolution, one in a kernel with its neurons). It must not change them.
        whole: promises that all chunks are taken and that at most the last state is needed; the others come without
            memory. This is faster, and on a GPU short steps are recorded and replayed. None: no promise.
    """

    encode: Encode | None = None
    precision: str = "exact"
    observe: Observe | None = None
    whole: Whole | None = None


USUAL = StreamSettings()


@dataclass(frozen=True, eq=False)
class Job:
    """What to simulate, as in :meth:`s_resnet.Graph.stream`; ``memory`` is that after ``step`` steps."""

    images: Tensor
    timesteps: int
    chunk: int | None = None
    memory: Mapping[str, Memory] = field(default_factory=dict)
    step: int = 0
    encode: Encode | None = None
    observe: Observe | None = None
    whole: Whole | None = None


def constants(plan: Plan, images: Tensor) -> dict[str, Tensor]:
    """The values that are the same at every step, exact in float32, as their errors would add up over steps."""
    found: dict[str, Tensor] = {}
    with arithmetic(images, tf32=False):
        for node in plan.nodes:
            if node.name in plan.static:
                inputs = map(found.get, node.inputs) if node.inputs else [channels_last(images)]
                found[node.name] = plan.ops[node.name].run(*inputs)
    return found


@dataclass(frozen=True, eq=False)
class Stretch:
    """The steps of a value from ``first`` on, ``[S * B, *]``, so that the convolutions see one large batch."""

    first: int
    values: Tensor


class Run:
    """A simulation in progress: the constant part, computed once, the memory, and how densely each layer fired."""

    def __init__(self, plan: Plan, job: Job) -> None:
        self.plan, self.batch, self.step = plan, len(job.images), job.step
        self.encode, self.observe, self.whole = job.encode, job.observe, job.whole
        self.memory: dict[str, Memory] = dict(job.memory)
        self.made: set[str] = set()  # nodes whose memory this run has created
        self.density: dict[str, float] = {}
        self.static = plan.static if job.encode is None else frozenset()
        self.constant = constants(plan, job.images) if job.encode is None else {}
        for name in self.static - plan.kept:
            del self.constant[name]
        # Where all steps go through together and nobody asks for the memory after them, no layer needs another's.
        self.forgets = plan.at_once and job.whole is not None and not job.whole.state
        wiring = plan.wiring if job.encode is None else wired(plan.nodes, frozenset(), plan.deferred)
        self.clock = Clock(wiring, plan.lagged, job.timesteps)
        self.values: dict[str, Stretch] = {}
        self.counts: dict[str, Tensor] = {}  # spikes of steps that are not answered yet

    def advance(self, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The next ``steps`` steps through every layer: answers ``[S, B, N]`` and spikes per neuron node ``[S, B]``.

        Where layers lag, later ones have fewer steps at first, and more rounds at the end; the answers come when they
        are there, the spikes of the same steps with them.
        """
        plan, self.turns = self.plan, self.clock.advance(steps)
        self.events: dict[tuple[str, int, int], events.Events] = {}
        self.pending: dict[str, Currents] = {}  # convolutions that their neurons will compute as they take them
        self.rest: dict[str, Tensor] = {}  # second parts of convolutions, which their neurons will add
        for index, node in enumerate(plan.nodes):
            turn = self.turns.get(node.name)
            if turn is not None and turn.steps:
                self._take(node, turn)
            for name in plan.freed[index]:
                self._free(name)
        last = self.values.pop(plan.nodes[-1].name, None)
        if last is None:
            return torch.empty(0, self.batch, 0), {}
        outputs = last.values.view(len(last.values) // self.batch, self.batch, -1)
        counts = {node.name: self.counts[node.name] for node in plan.nodes if node.name in self.counts}
        self.counts = {name: count[len(outputs) :] for name, count in counts.items()}
        return outputs, {name: count[: len(outputs)] for name, count in counts.items()}

    def _take(self, node: Node, turn: Turn) -> None:
        """Compute a node's turn."""
        plan, op = self.plan, self.plan.ops[node.name]
        found: Tensor | None
        if not node.inputs:
            assert self.encode is not None
            found = op.run(channels_last(self.encode(turn.steps).flatten(0, 1)))
        elif isinstance(op, Neuron):
            found = self._fire(node, op, turn)
        elif isinstance(op, SpikingMaxPool2d | Readout):
            found = self._remember(node, op, turn)
        elif node.name in plan.spiking and isinstance(op, Conv2d):
            found = self._convolve(node, op, turn)
        elif plan.two_part and isinstance(op, Conv2d):  # it reads analog values, which TF32 would round
            with arithmetic(op.weight, tf32=False):
                found = op.run(*(self._analog(name, turn) for name in node.inputs))
        else:
            found = op.run(*(self._analog(name, turn) for name in node.inputs))
        if found is None:
            return
        if self.observe is not None:
            self.observe(node.name, found)
        before = self.values.get(node.name)
        if before is not None:
            self.values[node.name] = Stretch(before.first, torch.cat([before.values, found]))
        elif len(found):
            self.values[node.name] = Stretch(turn.given, found)

    def _free(self, name: str) -> None:
        """Drop the steps of a value that all its readers have read."""
        self.pending.pop(name, None)
        held = self.values.get(name)
        if held is None:
            return
        unread = min(self.turns[reader].last for reader in self.clock.wiring.readers[name])
        if unread == self.turns[name].done:
            del self.values[name]
        elif unread > held.first:
            left = held.values[(unread - held.first) * self.batch :].clone()  # so that the others are freed
            self.values[name] = Stretch(unread, left)

    def _steps(self, name: str, turn: Turn) -> Tensor:
        """The steps ``[S * B, *]`` of a value that a turn reads."""
        held = self.values[name]
        if held.first == turn.first and len(held.values) == turn.steps * self.batch:
            return held.values
        return held.values.narrow(0, (turn.first - held.first) * self.batch, turn.steps * self.batch)

    def _fire(self, node: Node, op: Neuron, turn: Turn) -> Tensor:
        """A neuron layer over its inputs ``[S, B, *]``: what it emits ``[S * B, *]``."""
        plan = self.plan
        shortcut: tuple[Tensor, Tensor] | None = None
        currents: list[Tensor | Currents] = []
        for name in node.inputs:
            scale = plan.ops[name]
            if name in self.pending:
                currents.append(self.pending[name])
            elif name in plan.deferred and shortcut is None and len(node.inputs) > 1 and isinstance(scale, Scale):
                shortcut = (self._in_time(plan.deferred[name], turn), scale.weight)
            else:
                currents.append(self._in_time(name, turn))
            if name in self.rest:
                currents.append(_unfold(channels_last(self.rest.pop(name)), turn.steps))
        counts = torch.zeros(turn.done - turn.given, self.batch, dtype=torch.int32, device=op.threshold.device)
        spikes, memory = op.advance(
            currents,
            self.memory.get(node.name),
            shortcut,
            self._bias(node.name, op, currents[0], turn),
            Execution(
                spike_dtype=self._spike_dtype(node.name, _size(currents[0])),
                counts=counts,
                in_place=(self.whole is not None or bool(plan.lagged)) and node.name in self.made,
                begins=turn.first == 0,
                ends=turn.last == self.clock.timesteps,
            ),
        )
        if not self.forgets:
            self.memory[node.name] = memory
            self.made.add(node.name)
        if events.available() and not spikes.is_cuda and len(spikes):  # on a GPU this would stall the queue
            # A spike of several levels is counted once for each: those that are there are looked up in the last step.
            several = op.spikes.amplitudes > 1
            found = spikes[-1:].count_nonzero() if several else counts.sum()
            self.density[node.name] = int(found) / max(1, spikes[-1:].numel() if several else spikes.numel())
        self.counts[node.name] = torch.cat([self.counts[node.name], counts]) if node.name in self.counts else counts
        folded = spikes.flatten(0, 1)
        return folded if node.name in plan.unit else op.scale_output(folded)

    def _bias(self, name: str, op: Neuron, current: Tensor | Currents, turn: Turn) -> Tensor | None:
        """The convolutions' biases and the layer's correction."""
        bias = self.plan.bias[name]
        correction = op.bias_current(self.step + turn.first, turn.steps, 3 + len(_size(current)))
        if bias is None or correction is None:
            return correction if bias is None else bias
        return bias + correction

    def _remember(self, node: Node, op: SpikingMaxPool2d | Readout, turn: Turn) -> Tensor:
        inputs = [_unfold(self._analog(name, turn), turn.steps) for name in node.inputs]
        out, self.memory[node.name] = op.advance(inputs, self.memory.get(node.name))
        return out.flatten(0, 1)

    def _spike_dtype(self, name: str, size: tuple[int, ...]) -> torch.dtype | None:
        """Bytes for the event-driven convolution; if it is not available, the type that the dense one reads."""
        plan = self.plan
        if name not in plan.counted:
            return None  # the membrane's
        if name in plan.one_kernel.values():
            return torch.int8
        readers = [plan.ops[reader] for reader, source in plan.spiking.items() if source == name]
        byte = plan.bytes.get(name) if readers and len(size) == 2 else None
        sparse = byte == torch.int8 or self.density.get(name, 0.0) <= DENSE  # of amounts every reader says so itself
        if byte is not None and sparse and all(_takes_events(reader, size) for reader in readers):
            return byte
        return plan.narrow if plan.narrow is not None and readers else plan.dtype

    def _convolve(self, node: Node, op: Conv2d, turn: Turn) -> Tensor | None:
        """A convolution of spikes, by events where they are few bytes, else dense; None: left to its neurons."""
        plan, source = self.plan, node.inputs[0]
        spikes, place = self._steps(source, turn), (source, turn.first, turn.last)
        if node.name in plan.one_kernel:
            kept = plan.packed_once.get(node.name)
            if kept is None:
                kept = fused.pack(op.weight.to(torch.int8), op.stride, op.padding)
                plan.packed_once[node.name] = kept
            self.pending[node.name] = fused.Currents(spikes, kept, turn.steps)
            return None
        if source in plan.one_kernel.values():  # bytes for a kernel that takes other readers of them
            return self._convolve_densely(node, op, spikes.to(plan.narrow or plan.dtype))
        amounts = spikes.dtype == torch.int8
        if spikes.dtype not in BYTES or (amounts and self.density[source] > self._dense_from(source)):
            return self._convolve_densely(node, op, spikes.to(plan.narrow or plan.dtype) if amounts else spikes)
        if place not in self.events:
            self.events[place] = events.find(spikes, plan.most[source])
        height, width = spikes.shape[-2:]

        def pack() -> events.Packed:
            weight = op.weight.to(torch.int8) if plan.integer else op.weight
            signed = amounts and plan.most[source] == 1
            return events.pack(weight, op.stride, op.padding, (height, width), plan.precision, signed)

        packed = plan.packed.found((node.name, height, width), pack)
        currents = events.Currents(self.events[place], packed, turn.steps)
        if plan.last_reader[source] == node.name:
            self.events = {other: found for other, found in self.events.items() if other[0] != source}
        if node.name in plan.fused:
            self.pending[node.name] = currents
            return None
        current = currents.tensor().flatten(0, 1)
        return current if op.bias is None else current.add_(op.bias.view(-1, 1, 1))

    def _dense_from(self, source: str) -> float:
        """The share of active neurons from which convolutions of what a layer sends are dense."""
        return DENSE if self.plan.most[source] == 1 else DENSE_AMOUNTS

    def _convolve_densely(self, node: Node, op: Conv2d, spikes: Tensor) -> Tensor:
        plan = self.plan
        if node.name not in plan.dense:
            plan.dense[node.name] = tuple(replace(op, weight=part, bias=None) for part in _parts(plan, op.weight))
        current, *rest = (part.run(spikes) for part in plan.dense[node.name])
        if rest and node.name in plan.alone and self.observe is None:
            self.rest[node.name] = rest[0]
        elif rest:
            current = current.add_(rest[0])
        return current if op.bias is None else current + op.bias.view(-1, 1, 1)

    def _analog(self, name: str, turn: Turn) -> Tensor:
        """The value of ``name`` as ``[S * B, *]``, spikes as numbers of the network's own dtype."""
        if name in self.plan.deferred:
            return self.plan.ops[name].run(self._analog(self.plan.deferred[name], turn))
        if name in self.constant:
            value = self.constant[name]
            return value.expand(turn.steps, *value.shape).flatten(0, 1)
        return self._steps(name, turn).to(self.plan.dtype)

    def _in_time(self, name: str, turn: Turn) -> Tensor:
        """The value of ``name`` as ``[S, B, *]`` for the membrane kernel; a constant is expanded without a copy."""
        if name in self.constant:
            return self.constant[name].expand(turn.steps, *self.constant[name].shape)
        value = self._analog(name, turn) if name in self.plan.deferred else self._steps(name, turn)
        return _unfold(channels_last(value), turn.steps)


def _parts(plan: Plan, weight: Tensor) -> tuple[Tensor, ...]:
    """The weights whose convolutions of spikes, added up, are the dense one."""
    if plan.two_part and weight.dtype == torch.float32:
        return tf32.split(weight)
    return (weight if plan.narrow is None else weight.to(plan.narrow),)


def _unfold(value: Tensor, steps: int) -> Tensor:
    """``[S * B, *]`` as ``[S, B, *]``."""
    return value.view(steps, len(value) // steps, *value.shape[1:])


def _size(current: Tensor | Currents) -> tuple[int, ...]:
    """Height and width of the pixels."""
    return current.shape[3:] if isinstance(current, Tensor) else current.shape[2:]


def _takes_events(op: Op, size: tuple[int, ...]) -> bool:
    assert isinstance(op, Conv2d)
    return events.usable(op.weight, op.groups, op.dilation, (size[0], size[1]))
