"""The network of T steps as a ``torch.export`` program: runs where torch is and this package is not."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from ..errors import InvalidData, message
from ..files import replacing
from ..graph import engine
from ..graph.execution import Execution
from ..graph.graph import Graph, check_spiking
from ..graph.inputs import check_size
from ..graph.neuron import Neuron
from ..graph.ops import Conv2d, Op
from ..graph.readout import STATEFUL, Readout, SpikingMaxPool2d
from ..kernels import per_channel
from ..kernels.membrane import reference
from ..version import __version__

Memory = tuple[Tensor, ...]
# The most steps to unroll; with more a network without windows becomes a loop.
UNROLLED, LONGEST = 16, 256
TRACEABLE = Execution(kernel=reference.integrate_and_fire)
_ORIGIN = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"}


def export_torch(
    snn: Graph, path: str | os.PathLike[str], timesteps: int, input_shape: Sequence[int] | None = None
) -> None:
    """Write ``snn`` over ``timesteps`` steps as a program: images ``[B, C, H, W]`` to logits ``[B, N]``.

    ``torch.export.load(path).module()(images)`` runs it on a CPU, with torch and without this package: every operation
    is torch's own, B is free, and H and W are fixed. The answer is that of ``snn(images, timesteps)``: equal if weights
    and images are dyadic; with equal spikes and an answer up to rounding for an integer network. Otherwise sums may be
    rounded differently, and a membrane within rounding of its threshold may fire a step apart.

    Layers run one after the other over all T steps, so memory grows with T, and so does the program, which unrolls
    every step of every neuron layer. From T = 17 on, a network whose layers do not wait for a window becomes a loop
    over steps instead (torch's ``while_loop``), in which neither grows.

    The file also holds ``s_resnet.json``: T, the input's shape, the alphabet and the provenance (preprocessing,
    classes). Read it with ``torch.export.load(path, extra_files={"s_resnet.json": ""})``.

    Args:
        snn: a converted network.
        timesteps: T >= 1.
        input_shape: ``[C, H, W]`` of an image; by default that of the calibration images.

    Raises:
        InvalidData: T or the shape is missing or does not fit, or there are too many steps to unroll.
        SResNetError: the file cannot be written.
    """
    check_spiking(snn, "export")
    shape = _input_shape(snn, input_shape)
    snn = snn.at(timesteps)
    program = _program(snn.to("cpu"), timesteps, shape)
    header = {"s_resnet": __version__, "timesteps": timesteps, "input_shape": shape, "alphabet": snn.alphabet}
    text = json.dumps({**header, "provenance": snn.provenance.to_json()}, sort_keys=True)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"s_resnet.json": text})
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _input_shape(snn: Graph, given: Sequence[int] | None) -> list[int]:
    shape = snn.provenance.input_shape if given is None else given
    if shape is None or len(shape) != 3:
        remedy = "Pass the shape of one image"
        raise InvalidData(message("export", "", f"input_shape={shape}", "[C, H, W]", remedy))
    check_size(snn.provenance, shape[1:], "export")
    return [int(size) for size in shape]


def _program(snn: Graph, timesteps: int, shape: list[int]) -> torch.export.ExportedProgram:
    if not isinstance(snn.nodes[-1].op, Readout):
        got = f"{type(snn.nodes[-1].op).__name__} as the last node"
        raise InvalidData(message(snn.nodes[-1].name, "", got, "a readout", "Run attach_readout before"))
    rolled = timesteps > UNROLLED and not snn.windowed
    if timesteps > LONGEST and not rolled:
        got = f"T = {timesteps} for a network whose layers wait for their window"
        expected = f"at most {LONGEST}, since every step is unrolled"
        raise InvalidData(message("export", "", got, expected, "Lower T"))
    # Raises the errors that a simulation of T steps would raise.
    one = torch.zeros(1, *shape, dtype=_dtype(snn))
    next(snn.stream(one, timesteps, None if snn.windowed else 1))
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, *shape, dtype=_dtype(snn))
    with torch.no_grad():
        network = _Network(snn, timesteps, rolled)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for origin in _ORIGIN & node.meta.keys():  # source lines and paths of this machine, half of the file's size
                del node.meta[origin]
    return program


def _dtype(snn: Graph) -> torch.dtype:
    return next((node.op.weight.dtype for node in snn.nodes if isinstance(node.op, Conv2d)), torch.float32)


class _Network(nn.Module):
    """The prepared operations of a network, their tensors as buffers, over T steps of one constant input."""

    def __init__(self, snn: Graph, timesteps: int, rolled: bool) -> None:
        super().__init__()
        self.plan = engine.prepare(snn, "exact")
        self.timesteps, self.rolled = timesteps, rolled
        self.weighed = _weighed(snn.nodes[-1].op, timesteps)
        self.tensors: dict[str, str] = {}  # the buffer of each tensor, by the tensor's place in the network
        for name, op in self.plan.ops.items():
            self.hold_all(name, op)
        for name, bias in self.plan.bias.items():
            self.hold(f"{name}/bias", bias)
        for node in snn.nodes:
            if isinstance(node.op, Neuron):
                self.hold(f"{node.name}/rows", _rows(node.op))
            if isinstance(node.op, Readout) and node.op.weights is not None:
                self.hold(f"{node.name}/rows", node.op.weights.to(torch.float64))

    def hold(self, what: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self.tensors[what] = f"b{len(self.tensors)}_{what.replace('.', '_').replace('/', '_')}"
            self.register_buffer(self.tensors[what], tensor.detach().clone(memory_format=torch.contiguous_format))

    def hold_all(self, where: str, op: Any) -> None:
        """Register every tensor of an operation, and of operations inside it."""
        for field in fields(op):
            value, what = getattr(op, field.name), f"{where}/{field.name}"
            if isinstance(value, Tensor):
                self.hold(what, value)
            elif is_dataclass(value):
                self.hold_all(what, value)

    def held(self, what: str) -> Tensor | None:
        return self.get_buffer(self.tensors[what]) if what in self.tensors else None

    def with_held(self, where: str, op: Any) -> Any:
        """The operation with its tensors from the buffers."""
        values = {field.name: getattr(op, field.name) for field in fields(op)}
        changed: dict[str, Any] = {k: self.held(f"{where}/{k}") for k, v in values.items() if isinstance(v, Tensor)}
        changed |= {k: self.with_held(f"{where}/{k}", v) for k, v in values.items() if is_dataclass(v)}
        return replace(op, **changed)

    def forward(self, images: Tensor) -> Tensor:
        run = _Run(self, images)
        if not self.rolled:
            return run.answer(run.advance({}, 0, self.timesteps))
        memory = run.advance({}, 0, 1)
        names = list(memory)
        sizes = [len(memory[name]) for name in names]

        def named(flat: Sequence[Tensor]) -> dict[str, Memory]:
            parts = iter(flat)
            return {name: tuple(next(parts) for _ in range(size)) for name, size in zip(names, sizes, strict=True)}

        def more(step: Tensor, *flat: Tensor) -> Tensor:
            return step < self.timesteps

        def body(step: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
            after = run.advance(named(flat), step, 1)
            return (step + 1, *(part for name in names for part in after[name]))

        start = (torch.ones((), dtype=torch.int64), *(part for name in names for part in memory[name]))
        _, *flat = while_loop(more, body, start)  # type: ignore[no-untyped-call]
        return run.answer(named(flat))


def _unfold(value: Tensor, steps: int) -> Tensor:
    """``[S * B, *]`` as ``[S, B, *]``."""
    return value.view(steps, -1, *value.shape[1:])


def _weighed(op: Op, timesteps: int) -> float:
    """The sum of the readout's weights over all steps."""
    if not isinstance(op, Readout) or op.weights is None:
        return float(timesteps)
    weights = op.weights.tolist()
    return float(sum(weights[:timesteps]) + weights[-1] * max(0, timesteps - len(weights)))


def _rows(op: Neuron) -> Tensor | None:
    """A time-indexed correction with the row of all later steps, or None."""
    table = op.correction
    if table is None or table.ndim < 2:
        return None
    after = op.bias_current(len(table), 1, 3)
    assert after is not None
    return torch.cat([table, after.view(1, -1)])


class _Run:
    """The network on one batch: constants are computed once, then all layers in turn for some steps at a time."""

    def __init__(self, network: _Network, images: Tensor) -> None:
        self.plan, self.steps, self.weighed = network.plan, network.timesteps, network.weighed
        self.ops: dict[str, Op] = {name: network.with_held(name, op) for name, op in self.plan.ops.items()}
        self.bias = {name: network.held(f"{name}/bias") for name in self.plan.bias}
        self.rows = {name: network.held(f"{name}/rows") for name in self.plan.ops}
        self.constant: dict[str, Tensor] = {}
        for node in self.plan.nodes:
            if node.name in self.plan.static:
                inputs = [self.constant[name] for name in node.inputs] or [images]
                self.constant[node.name] = self.ops[node.name].run(*inputs)

    def advance(self, memory: Mapping[str, Memory], first: int | Tensor, steps: int) -> dict[str, Memory]:
        """The memory after ``steps`` more steps, of which the first is step ``first``, counted from 0."""
        after: dict[str, Memory] = {}
        values: dict[str, Tensor] = {}  # [S * B, *]
        for node in self.plan.nodes:
            if node.name in self.constant:
                continue
            op, before = self.ops[node.name], memory.get(node.name)
            inputs = [self.constant[n] if n in self.constant else values[n] for n in node.inputs]
            fixed = [n in self.constant for n in node.inputs]
            if isinstance(op, STATEFUL):
                parts = [
                    x.expand(steps, *x.shape) if c else _unfold(x, steps) for x, c in zip(inputs, fixed, strict=True)
                ]
                rows = self.rows[node.name]
                if rows is not None:
                    at = (first + torch.arange(steps)).clamp_max(len(rows) - 1)
                    rows = rows.index_select(0, at)
                if isinstance(op, Neuron):
                    bias = _bias(op, self.bias[node.name], rows, parts[0].ndim)
                    spikes, after[node.name] = op.advance(parts, before, None, bias, TRACEABLE)
                    value = spikes.flatten(0, 1)
                    value = value if node.name in self.plan.unit else op.scale_output(value)
                    values[node.name] = value.to(self.plan.dtype)
                elif isinstance(op, SpikingMaxPool2d):
                    value, after[node.name] = _gate(op, parts[0], before)
                    values[node.name] = value.flatten(0, 1)
                else:
                    after[node.name] = _read(op, parts[0], rows, before)
            else:
                wide = [x.expand(steps, *x.shape).flatten(0, 1) if c else x for x, c in zip(inputs, fixed, strict=True)]
                values[node.name] = op.run(*wide)
        return after

    def answer(self, memory: Mapping[str, Memory]) -> Tensor:
        """The answer of the readout after the last step."""
        last = self.plan.nodes[-1]
        op, (total, *v) = self.ops[last.name], memory[last.name]
        assert isinstance(op, Readout)
        if op.mode == "spikes":
            answer = (total + v[0].softmax(-1)) / self.steps * op.scale
        else:
            answer = total / self.weighed * op.scale
            answer = answer if op.correction is None else answer + op.correction
        return answer.to(self.plan.dtype)


def _bias(op: Neuron, bias: Tensor | None, rows: Tensor | None, ndim: int) -> Tensor | None:
    """The convolutions' biases and the layer's correction, for currents ``[S, B, C, *]`` of ``ndim`` axes."""
    if rows is not None:
        correction: Tensor | None = rows.view(len(rows), 1, -1, *(1,) * (ndim - 3))
    else:
        correction = None if op.correction is None else per_channel(op.correction, ndim - 1)
    if bias is None or correction is None:
        return correction if bias is None else bias
    return bias + correction


def _gate(op: SpikingMaxPool2d, spikes: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
    """The gated max-pool over all steps at once: the highest counts so far, minus those of the step before."""
    counts = spikes.cumsum(0)
    if memory is not None:
        counts = counts + memory[0]
    highest = _unfold(op.run(counts.flatten(0, 1)), len(spikes))
    before = torch.zeros_like(highest[:1]) if memory is None else memory[1][None]
    return highest - torch.cat([before, highest[:-1]]), (counts[-1], highest[-1])


def _read(op: Readout, current: Tensor, weights: Tensor | None, memory: Memory | None) -> Memory:
    """The readout's sum of currents, or its spike count and membrane."""
    current = current.to(torch.float64)
    zero = torch.zeros_like(current[0])
    if op.mode == "current":
        weighed = (current if weights is None else current * weights.view(-1, 1, 1)).sum(0)
        return ((zero if memory is None else memory[0]) + weighed,)
    total, v = (zero, zero + op.initial_potential) if memory is None else memory
    for t in range(len(current)):
        u = v + current[t]
        fired = (u >= 1.0).to(u.dtype)
        v, total = u - fired, total + fired
    return total, v
