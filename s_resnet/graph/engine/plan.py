"""What is prepared once for a network and a precision, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import InvalidData, message
from ...kernels import events, narrow_dtype
from ...kernels.membrane import fused
from ...kernels.membrane.fused import Packed
from ..alphabet import Differential
from ..forms import GridConv2d
from ..neuron import Neuron
from ..ops import LARGEST_PIXEL, SYNAPSES, Conv2d, Node, Op, Scale, channels_last
from .replay import Replays
from .rounds import Wiring, lagging, wired

K = TypeVar("K")
V = TypeVar("V")
PRECISIONS = ("exact", "fast")
LARGEST_BYTE = 127  # what a step emits at most, if its spikes travel as signed bytes
SIZES = 4  # of images, whose packed weights are kept
Shape = tuple[torch.dtype, torch.Size, int]  # of images and steps
Key = tuple[torch.dtype, torch.Size, int, str | int | None]  # and the memory limit


class Recent(dict[K, V]):
    """The values that were made for the keys asked for last, ``most`` of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def found(self, key: K, make: Callable[[], V]) -> V:
        """The value of that key, made where it is not there."""
        value = self.pop(key, None)
        self[key] = value = make() if value is None else value  # the last of them
        while len(self) > self.most:
            self.pop(next(iter(self)), None)
        return value


@dataclass(frozen=True)
class Portion:
    """What goes through a layer at a time: steps of the batch, or images with all their steps.

    Attributes:
        images: how many images memory holds.
        steps: how many steps of the batch, or all.
        numbers: how many numbers the largest value of one image has at one step.
    """

    images: int
    steps: int
    numbers: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What is prepared once for a network and a precision: operations, biases, and the form of each value.

    The fields from ``dense`` on are filled while it runs. What is stored there stays, so that a shape is always
    computed in the same way. Packed weights are the exception: only those for the last image sizes are kept, as they
    can be computed again.
    """

    nodes: tuple[Node, ...]
    ops: Mapping[str, Op]
    static: frozenset[str]
    kept: frozenset[str]  # those of them that others read
    deferred: Mapping[str, str]  # a shortcut synapse applied inside the membrane kernel -> the node it scales
    freed: list[list[str]]
    unit: frozenset[str]  # neuron layers whose spikes are sent on as they are
    counted: frozenset[str]  # those of them whose spikes are whole numbers
    bytes: Mapping[str, torch.dtype]  # those of these whose spikes fit a byte -> which: uint8 for {0, 1}, else int8
    most: Mapping[str, int]  # what a step of these emits at most
    bias: Mapping[str, Tensor | None]  # per neuron layer, the sum of its convolutions' biases
    spiking: Mapping[str, str]  # a convolution whose input is such whole numbers -> the neuron layer it reads
    last_reader: Mapping[str, str]  # such a neuron layer -> the last convolution that reads it
    fused: frozenset[str]  # those that one neuron layer alone reads, which can take the currents as they arise
    alone: frozenset[str]  # those of them that are all that this layer reads
    one_kernel: Mapping[str, str]  # those that run in one kernel with their neurons -> the neuron layer they read
    dtype: torch.dtype  # of analog values and dense exact convolutions
    narrow: torch.dtype | None  # of dense fast convolutions
    two_part: bool  # whether exact convolutions of spikes are two in TF32
    precision: str
    integer: bool
    max_membrane_step: int  # of an integer network; 0 of others
    at_once: bool  # whether all steps of an image go through a layer together
    lagged: frozenset[str]  # neuron layers that fire one step after they integrate
    wiring: Wiring  # under constant input
    dense: dict[str, tuple[Conv2d, ...]] = field(default_factory=dict)
    packed: Recent[tuple[str, int, int], events.Packed] = field(default_factory=lambda: Recent(0))
    packed_once: dict[str, Packed] = field(default_factory=dict)  # weights for one kernel, by convolution
    portions: dict[Key, Portion] = field(default_factory=dict)  # how much goes through a layer at a time
    tuned: dict[Shape, bool] = field(default_factory=dict)  # whether cuDNN tries its algorithms
    replays: Replays = field(default_factory=Replays)

    @property
    def tf32(self) -> bool:
        """Whether its convolutions of spikes may use TF32, which multiplies whole numbers up to 2^11 exactly."""
        return self.integer or self.two_part or self.precision == "fast"


class Network(Protocol):
    """What of a :class:`s_resnet.Graph` is prepared; it runs itself, so that it lies above."""

    @property
    def nodes(self) -> tuple[Node, ...]: ...

    @property
    def users(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def static(self) -> frozenset[str]: ...

    @property
    def is_integer(self) -> bool: ...

    def running(self) -> Network: ...


def prepare(network: Network, precision: str) -> Plan:
    """Prepare a spiking network for a precision.

    Raises:
        InvalidData: the precision is unknown.
    """
    nodes, users, static, integer = network.nodes, network.users, network.static, network.is_integer
    _check_precision(precision)
    ops = {node.name: _laid_out(node.op) for node in network.running().nodes}
    neurons = {name: op for name, op in ops.items() if isinstance(op, Neuron)}
    unit = frozenset(name for name, op in neurons.items() if op.emits_unit_spikes)
    weights = [op.weight for op in ops.values() if isinstance(op, Conv2d)]
    single = bool(weights) and weights[0].dtype == torch.float32 and not integer
    dtype = weights[0].dtype if weights else torch.float32
    narrow = narrow_dtype(weights[0].device) if single and precision == "fast" else None
    # Whole numbers, of which every alphabet has so few that bfloat16 holds them; means are none.
    counted = frozenset(name for name in unit if not isinstance(neurons[name].spikes, Differential))
    # A shortcut synapse that only neurons read is applied inside the membrane kernel, without a pass of its own.
    scales = [n for n in nodes if isinstance(n.op, Scale) and users[n.name]]
    deferred = {n.name: n.inputs[0] for n in scales if all(user in neurons for user in users[n.name])}
    most = _max_membrane_step(nodes, ops) if integer else 0  # with the biases, which leave the operations next
    ops, bias = _biases(nodes, ops, users, static)
    prompt = frozenset(n.name for n in nodes if len(users[n.name]) == 1 and users[n.name][0] in neurons)
    reads = {node.name: node.inputs for node in nodes}
    spiking = {n.name: n.inputs[0] for n in nodes if isinstance(n.op, Conv2d) and n.inputs[0] in counted}
    bytes_of = {name: _byte(neurons[name]) for name in counted if neurons[name].max_emission <= LARGEST_BYTE}
    pairs = {name: source for name, source in spiking.items() if integer and name in prompt and source in bytes_of}
    return Plan(
        nodes=nodes,
        ops=ops,
        static=static,
        kept=frozenset(name for n in nodes if n.name not in static or n.name in deferred for name in n.inputs) & static,
        deferred=deferred,
        freed=freed(nodes, deferred),
        unit=unit,
        counted=counted,
        bytes=bytes_of,
        most={name: neurons[name].max_emission for name in counted},
        bias=bias,
        spiking=spiking,
        last_reader={source: name for name, source in spiking.items()},
        fused=prompt,
        alone=frozenset(name for name in prompt if reads[users[name][0]] == (name,)),
        one_kernel={name: source for name, source in pairs.items() if _in_one_kernel(ops[name])},
        dtype=dtype,
        narrow=narrow,
        two_part=single and precision == "exact" and weights[0].device.type == "cuda",
        precision=precision,
        integer=integer,
        max_membrane_step=most,
        at_once=at_once(nodes, weights[0].device if weights else torch.device("cpu")),
        lagged=lagging(nodes),
        wiring=wired(nodes, static, deferred),
        packed=Recent(SIZES * len(spiking)),
    )


def _in_one_kernel(op: Op) -> bool:
    """Whether a kernel takes a convolution of spikes together with its neurons."""
    if not isinstance(op, Conv2d) or fused.missing(op.weight.device) is not None:
        return False
    return fused.usable(op.weight, op.stride, op.padding, op.dilation, op.groups)


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        got, remedy = f"precision {precision!r}", "Pass 'exact' for float32"
        raise InvalidData(message("simulate", "", got, "exact or fast", remedy))


def _byte(op: Neuron) -> torch.dtype:
    """The type of a spike as a byte."""
    return torch.uint8 if op.binary else torch.int8


def _biases(
    nodes: tuple[Node, ...], ops: Mapping[str, Op], users: Mapping[str, tuple[str, ...]], static: frozenset[str]
) -> tuple[dict[str, Op], dict[str, Tensor | None]]:
    """Convolutions without the biases that the membrane kernel adds in full precision; per neuron layer their sum."""
    bias: dict[str, Tensor | None] = {node.name: None for node in nodes if isinstance(node.op, Neuron)}
    without = dict(ops)
    for node in nodes:
        op, readers = ops[node.name], users[node.name]
        if not isinstance(op, Conv2d) or op.bias is None or node.name in static or not readers:
            continue
        if all(reader in bias for reader in readers):
            for reader in readers:
                before = bias[reader]
                bias[reader] = op.bias if before is None else before + op.bias
            without[node.name] = replace(op, bias=None)
    return without, {name: None if value is None else value.view(-1, 1, 1) for name, value in bias.items()}


def _max_membrane_step(nodes: tuple[Node, ...], ops: Mapping[str, Op]) -> int:
    """How far an integer membrane can move in one step, at most."""
    found: dict[str, int] = {}
    sent: dict[str, int] = {}  # the most that a layer emits, also through the pools behind it
    for node in nodes:
        op, below = ops[node.name], [found[name] for name in node.inputs]
        most = max((sent[name] for name in node.inputs), default=1)
        sent[node.name] = op.max_emission if isinstance(op, Neuron) else most
        match op:
            case Conv2d():
                found[node.name] = _largest_current(op, op.bias, most)
            case GridConv2d(convolution, bias):
                found[node.name] = _largest_current(convolution, bias, LARGEST_PIXEL)
            case Scale(weight) if not weight.is_floating_point():
                found[node.name] = int(weight.abs().max()) * most
            case Neuron(correction=correction):
                found[node.name] = sum(below) + (0 if correction is None else int(correction.abs().max()))
            case _:
                found[node.name] = max(below, default=0)
    return max(found.values())


def _largest_current(op: Conv2d, bias: Tensor | None, largest: int) -> int:
    """What a convolution of whole numbers gives at most for inputs within +- ``largest``."""
    rows = op.weight.to(torch.int64).abs().flatten(1).sum(1) * largest
    return int((rows if bias is None else rows + bias.abs()).max())


def _laid_out(op: Op) -> Op:
    """The operation with the weights of a convolution in channels_last."""
    if isinstance(op, Scale) or not isinstance(op, SYNAPSES):
        return op
    return replace(op, weight=channels_last(op.weight))


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


def windowed(nodes: tuple[Node, ...]) -> bool:
    """Whether a layer waits for a part of its window, so that T has to be known beforehand."""
    return any(isinstance(node.op, Neuron) and node.op.waits for node in nodes)


def at_once(nodes: tuple[Node, ...], device: torch.device) -> bool:
    """Whether all steps of an image go through a layer together, so that memory grows with T.

    A phased layer needs its whole window. Lagged ones take it in chunks on the CPU; on a GPU all at once is faster.
    """
    phased = any(isinstance(node.op, Neuron) and node.op.schedule == "phased" for node in nodes)
    return phased or (device.type != "cpu" and windowed(nodes))
