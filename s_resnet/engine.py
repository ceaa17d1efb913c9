"""The engine: a spiking network's layers over chunks of time steps, each value in the form its readers want.

``chunk`` steps go through one layer at a time: convolutions see ``[S * B, ...]``, the membrane kernel ``[S, B, ...]``.
Spikes that convolutions read travel as bytes on the CPU, and a convolution costs their number (``kernels/events.py``);
a layer that fires in more than ``DENSE`` of its neurons goes through torch's dense convolution instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .errors import InvalidData
from .kernels import events, narrow_dtype
from .neuron import Memory, Neuron, Readout, SpikingMaxPool2d
from .ops import SYNAPSES, Conv2d, Input, Node, Op, Scale, channels_last, compensated, whole

PRECISIONS = ("exact", "fast")
# Share of active neurons from which the dense convolution is faster: measured, docs/notes/simulator.md.
DENSE = 0.4
# Neurons times steps of the largest layer that go through at a time: on a CPU what the caches hold (dense convolutions
# also keep their currents), on a GPU what keeps it busy. And steps at most, since answers come once in a chunk.
EVENTS, CURRENTS, GPU, LONGEST = 2**21, 2**20, 2**28, 32


# Gets the name and the value ``[S * B, *]`` of a node after each chunk of S steps; spikes may come as bytes.
Observe = Callable[[str, Tensor], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is prepared once for a network and a precision: operations, biases, and who reads what in which form."""

    nodes: tuple[Node, ...]
    ops: Mapping[str, Op]
    static: frozenset[str]
    deferred: Mapping[str, str]  # a shortcut synapse applied inside the membrane kernel -> the node it scales
    freed: list[list[str]]
    unit: frozenset[str]  # neuron layers whose spikes are sent on as they are
    binary: frozenset[str]  # those of them that emit {0, 1}
    bias: Mapping[str, Tensor | None]  # per neuron layer, the sum of its convolutions' biases
    spiking: Mapping[str, str]  # a convolution whose input is spikes in {0, 1} -> the neuron layer it reads
    fused: frozenset[str]  # those that one neuron layer alone reads, which can take the currents as they arise
    dtype: torch.dtype  # of analog values and dense exact convolutions
    narrow: torch.dtype | None  # of dense fast convolutions
    precision: str
    integer: bool
    reach: int  # of an integer network: what the membrane can move in one step, at most
    dense: dict[str, Conv2d] = field(default_factory=dict)
    packed: dict[tuple[str, int, int], events.Packed] = field(default_factory=dict)


def plan(nodes: tuple[Node, ...], users: Mapping[str, tuple[str, ...]], static: frozenset[str], precision: str) -> Plan:
    """Prepare a spiking network. Raises InvalidData for an unknown precision."""
    if precision not in PRECISIONS:
        raise InvalidData(f"simulate: got precision {precision!r}; expected exact or fast. Choose one of them.")
    neurons = {node.name: node.op for node in nodes if isinstance(node.op, Neuron)}
    integer = any(op.integer is not None for op in neurons.values())
    unit = frozenset(name for name, op in neurons.items() if integer or op.unit)
    binary = frozenset(name for name in unit if neurons[name].binary)
    ops = {node.name: whole(node.op) if integer else _prepared(node.op) for node in nodes}
    weights = [op.weight for op in ops.values() if isinstance(op, Conv2d)]
    dtype = weights[0].dtype if weights else torch.float32
    narrowed = precision == "fast" and weights and dtype == torch.float32 and not integer
    # A shortcut synapse that only neurons read is applied inside the membrane kernel, without a pass of its own.
    deferred = {
        node.name: node.inputs[0]
        for node in nodes
        if isinstance(node.op, Scale) and users[node.name] and all(user in neurons for user in users[node.name])
    }
    bias: dict[str, Tensor | None] = dict.fromkeys(neurons)
    for node in nodes:
        op = ops[node.name]
        if not isinstance(op, Conv2d) or op.bias is None or node.name in static:
            continue
        if all(user in neurons for user in users[node.name]):  # the membrane kernel adds it, in full precision
            for user in users[node.name]:
                before = bias[user]
                bias[user] = op.bias if before is None else before + op.bias
            ops[node.name] = replace(op, bias=None)
    return Plan(
        *(nodes, ops, static, deferred, freed(nodes, deferred), unit, binary),
        bias={name: None if value is None else value.view(-1, 1, 1) for name, value in bias.items()},
        spiking={n.name: n.inputs[0] for n in nodes if isinstance(n.op, Conv2d) and n.inputs[0] in binary},
        fused=frozenset(n.name for n in nodes if len(users[n.name]) == 1 and users[n.name][0] in neurons),
        dtype=dtype,
        narrow=narrow_dtype(weights[0].device) if narrowed else None,
        precision=precision,
        integer=integer,
        reach=_reach(nodes) if integer else 0,
    )


def _reach(nodes: tuple[Node, ...]) -> int:
    """How far an integer membrane can move in one step, at most."""
    reach: dict[str, int] = {}
    for node in nodes:
        op = node.op
        below = sum(reach[name] for name in node.inputs)
        if isinstance(op, Conv2d) and op.integer is not None:
            rows = op.integer.to(torch.int64).abs().flatten(1).sum(1) * (8 if op.grid else 1)
            below = int((rows if op.integer_bias is None else rows + op.integer_bias.abs()).max())
        elif isinstance(op, Scale) and op.integer is not None:
            below = int(op.integer.abs().max())
        elif not isinstance(op, Neuron):
            below = max((reach[name] for name in node.inputs), default=0)
        if isinstance(op, Neuron) and op.integer_correction is not None:
            below += int(op.integer_correction.abs().max())
        reach[node.name] = below
    return max(reach.values())


def _prepared(op: Op) -> Op:
    """The operation as a spiking run uses it: compensated, its convolution weights in channels_last."""
    if isinstance(op, Input):
        return whole(op)
    if not isinstance(op, SYNAPSES):
        return op
    op = compensated(op)
    return op if isinstance(op, Scale) else replace(op, weight=channels_last(op.weight))


def freed(nodes: tuple[Node, ...], deferred: Mapping[str, str]) -> list[list[str]]:
    """For each position the names that no later node reads; a deferred node is read as the node it stands for."""
    last = {
        deferred.get(name, name): index
        for index, node in enumerate(nodes)
        if node.name not in deferred
        for name in (node.name, *node.inputs)
    }
    freed: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        if name != nodes[-1].name:
            freed[index].append(name)
    return freed


def advance(
    plan: Plan,
    images: Tensor,
    timesteps: int,
    chunk: int | None,
    memory: Mapping[str, Memory],
    step: int,
    encode: Callable[[int], Tensor] | None,
    observe: Observe | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor], dict[str, Memory]]]:
    """Run ``timesteps`` steps from ``step`` on.

    For each chunk its answers ``[S, B, N]``, spikes per layer ``[S, B]``, and the memory.
    """
    # TF32 multiplies whole numbers up to 2^11 exactly, so an integer network may have it.
    tf32 = plan.integer or plan.precision == "fast"
    with arithmetic(images, tf32):
        run = Run(plan, images, memory, step, encode, observe)
        chunk = timesteps if windowed(plan.nodes) else chunk or _chunk(run, images)
    # A recording repeats the corrections of its own steps.
    replayable = images.is_cuda and encode is None and observe is None and not _time_indexed(plan)
    replay: Replay | None = None
    done = 0
    while done < timesteps:
        steps = min(chunk, timesteps - done)
        with arithmetic(images, tf32):
            # The first chunk runs eagerly, which compiles and warms everything that a recording must find ready.
            if replayable and done and replay is None and timesteps - done >= 2 * chunk:
                replay = Replay(run, chunk)
            if replay is not None and steps == chunk:
                outputs, counts = replay.advance()
                run.memory = {name: tuple(t.clone() for t in tensors) for name, tensors in replay.memory.items()}
            else:
                outputs, counts = run.advance(steps)
        done += steps
        yield outputs, counts, dict(run.memory)


def windowed(nodes: tuple[Node, ...]) -> bool:
    """Whether a layer waits for a part of its window, so that all steps go through it at once."""
    return any(isinstance(node.op, Neuron) and node.op.schedule != "streaming" for node in nodes)


def _time_indexed(plan: Plan) -> bool:
    corrections = [op.correction for op in plan.ops.values() if isinstance(op, Neuron)]
    return any(correction is not None and correction.ndim == 2 for correction in corrections)


def arithmetic(images: Tensor, tf32: bool) -> AbstractContextManager[None]:
    """How a GPU multiplies in float32: exactly, or in TF32, which is torch's default for convolutions."""
    if not images.is_cuda:
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32)


def _chunk(run: Run, images: Tensor) -> int:
    """Steps per layer visit, by the size of the stem's output; on a GPU no more than a quarter of its free memory."""
    constant = run.constant or Run(run.plan, images[:1]).constant
    read_later = {name for node in run.plan.nodes if node.name not in constant for name in node.inputs}
    neurons = len(images) * max(constant[name][0].numel() for name in read_later & constant.keys())
    if images.is_cuda:
        free = torch.cuda.mem_get_info(images.device)[0]
        budget = min(GPU, free // 4 // (8 * 4))  # about eight such tensors live at a time, in float32
    else:
        budget = EVENTS if events.available() else CURRENTS
    return max(1, min(LONGEST, budget // neurons))


class Run:
    """One simulation under way: the constant part computed once, the memory, and how densely each layer fired."""

    def __init__(
        self,
        plan: Plan,
        images: Tensor,
        memory: Mapping[str, Memory] | None = None,
        step: int = 0,
        encode: Callable[[int], Tensor] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.plan, self.batch, self.step, self.encode, self.observe = plan, len(images), step, encode, observe
        self.memory: dict[str, Memory] = dict(memory or {})
        self.density: dict[str, float] = {}
        self.constant: dict[str, Tensor] = {}
        for node in plan.nodes if encode is None else ():
            if node.name in plan.static:
                inputs = [channels_last(images)] if isinstance(node.op, Input) else map(self.constant.get, node.inputs)
                self.constant[node.name] = plan.ops[node.name].run(*inputs)

    def advance(self, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The next ``steps`` steps through every layer: answers ``[S, B, N]`` and spikes per neuron node ``[S, B]``."""
        plan, self.steps = self.plan, steps
        self.values: dict[str, Tensor] = {}  # [S * B, *], so that the convolutions see one large batch
        self.events: dict[str, events.Events] = {}
        self.pending: dict[str, events.Currents] = {}  # convolutions that their neurons will compute line by line
        counts: dict[str, Tensor] = {}
        for index, node in enumerate(plan.nodes):
            op = plan.ops[node.name]
            if node.name in self.constant or node.name in plan.deferred:
                continue
            if isinstance(op, Input):
                assert self.encode is not None
                self.values[node.name] = op.run(channels_last(self.encode(steps).flatten(0, 1)))
            elif isinstance(op, Neuron):
                self.values[node.name], counts[node.name] = self._fire(node, op)
            elif isinstance(op, SpikingMaxPool2d | Readout):
                self.values[node.name] = self._remember(node, op)
            elif node.name in plan.spiking and isinstance(op, Conv2d):
                self._convolve(node, op)
            else:
                self.values[node.name] = op.run(*(self._analog(name) for name in node.inputs))
            if self.observe is not None and node.name in self.values:
                self.observe(node.name, self.values[node.name])
            for name in plan.freed[index]:
                self.values.pop(name, None)
                self.events.pop(name, None)
                self.pending.pop(name, None)
        self.step += steps
        return self.values.pop(plan.nodes[-1].name).view(steps, self.batch, -1), counts

    def _fire(self, node: Node, op: Neuron) -> tuple[Tensor, Tensor]:
        """A neuron layer over its inputs ``[S, B, *]``: what it emits ``[S * B, *]``, its spikes per step and image."""
        plan = self.plan
        shortcut: tuple[Tensor, Tensor] | None = None
        currents: list[Tensor | events.Currents] = []
        for name in node.inputs:
            scale = plan.ops[name]
            if name in self.pending:
                currents.append(self.pending[name])
            elif name in plan.deferred and shortcut is None and len(node.inputs) > 1 and isinstance(scale, Scale):
                shortcut = (self._in_time(plan.deferred[name]), scale.weight)
            else:
                currents.append(self._in_time(name))
        counts = torch.zeros(self.steps, self.batch, dtype=torch.int32, device=op.threshold.device)
        spikes, self.memory[node.name] = op.advance(
            currents,
            self.memory.get(node.name),
            shortcut,
            bias=self._bias(node.name, op, currents[0]),
            spike_dtype=self._spike_dtype(node.name, _size(currents[0])),
            counts=counts,
        )
        if not spikes.is_cuda:  # there it would stop the queue
            self.density[node.name] = int(counts.sum()) / max(1, spikes.numel())
        folded = spikes.flatten(0, 1)
        return folded if node.name in plan.unit else op.emit(folded), counts

    def _bias(self, name: str, op: Neuron, current: Tensor | events.Currents) -> Tensor | None:
        """The convolutions' biases and the layer's correction."""
        bias, correction = self.plan.bias[name], op.correct(self.step, self.steps, 3 + len(_size(current)))
        if bias is None or correction is None:
            return correction if bias is None else bias
        return bias + correction

    def _remember(self, node: Node, op: SpikingMaxPool2d | Readout) -> Tensor:
        inputs = [_unfold(self._analog(name), self.steps) for name in node.inputs]
        out, self.memory[node.name] = op.advance(inputs, self.memory.get(node.name))
        return out.flatten(0, 1)

    def _spike_dtype(self, name: str, size: tuple[int, ...]) -> torch.dtype | None:
        """Bytes for the event-driven convolution; where that is not to be had, what the dense one reads."""
        plan = self.plan
        if name not in plan.binary:
            return None  # the membrane's
        readers = [plan.ops[reader] for reader, source in plan.spiking.items() if source == name]
        sparse = self.density.get(name, 0.0) <= DENSE and len(size) == 2
        if readers and sparse and all(_takes_events(reader, size) for reader in readers):
            return torch.uint8
        return plan.narrow if plan.narrow is not None and readers else plan.dtype

    def _convolve(self, node: Node, op: Conv2d) -> None:
        """A convolution of spikes, by events where they came as bytes, else dense."""
        plan, source = self.plan, node.inputs[0]
        spikes = self.values[source]
        if spikes.dtype != torch.uint8:
            if node.name not in plan.dense:
                narrow = op.weight if plan.narrow is None else op.weight.to(plan.narrow)
                plan.dense[node.name] = replace(op, weight=narrow, bias=None)
            current = plan.dense[node.name].run(spikes)
            self.values[node.name] = current if op.bias is None else current + op.bias.view(-1, 1, 1)
            return
        if source not in self.events:
            self.events[source] = events.find(spikes)
        key = (node.name, *spikes.shape[-2:])
        if key not in plan.packed:
            weight = op.weight if op.integer is None else op.integer
            plan.packed[key] = events.pack(weight, op.stride, op.padding, key[1:], plan.precision)
        currents = events.Currents(self.events[source], plan.packed[key], self.steps)
        if node.name in plan.fused:
            self.pending[node.name] = currents
            return
        current = currents.tensor().flatten(0, 1)
        self.values[node.name] = current if op.bias is None else current.add_(op.bias.view(-1, 1, 1))

    def _analog(self, name: str) -> Tensor:
        """The value of ``name`` as ``[S * B, *]``, spikes as numbers of the network's own dtype."""
        if name in self.plan.deferred:
            return self.plan.ops[name].run(self._analog(self.plan.deferred[name]))
        if name in self.constant:
            value = self.constant[name]
            return value.expand(self.steps, *value.shape).flatten(0, 1)
        return self.values[name].to(self.plan.dtype)

    def _in_time(self, name: str) -> Tensor:
        """The value of ``name`` as ``[S, B, *]`` for the membrane kernel; a constant is expanded without a copy."""
        if name in self.constant:
            return self.constant[name].expand(self.steps, *self.constant[name].shape)
        value = self._analog(name) if name in self.plan.deferred else self.values[name]
        return _unfold(channels_last(value), self.steps)


def _unfold(value: Tensor, steps: int) -> Tensor:
    """``[S * B, *]`` as ``[S, B, *]``."""
    return value.view(steps, len(value) // steps, *value.shape[1:])


def _size(current: Tensor | events.Currents) -> tuple[int, ...]:
    """Height and width of the pixels."""
    return current.packed.out_size if isinstance(current, events.Currents) else current.shape[3:]


def _takes_events(op: Op, size: tuple[int, ...]) -> bool:
    assert isinstance(op, Conv2d)
    return events.usable(op.weight, op.groups, op.dilation, (size[0], size[1]))


class Replay:
    """A chunk of steps as one CUDA graph: launched whole, with no Python and no wait between its kernels."""

    def __init__(self, run: Run, steps: int) -> None:
        self.memory = {name: tuple(tensor.clone() for tensor in tensors) for name, tensors in run.memory.items()}
        self.graph = torch.cuda.CUDAGraph()
        run.memory = dict(self.memory)
        with torch.cuda.graph(self.graph):
            self.outputs, self.counts = run.advance(steps)
            for name, kept in self.memory.items():
                for old, new in zip(kept, run.memory[name], strict=True):
                    old.copy_(new)

    def advance(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps: copies of what the graph leaves in its own tensors, which the next replay overwrites."""
        self.graph.replay()
        return self.outputs.clone(), {name: count.clone() for name, count in self.counts.items()}
