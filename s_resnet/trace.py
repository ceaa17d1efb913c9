"""From an ``nn.Module`` to an analog Graph, by torch.fx. Neurons belong to call sites: every call is a node."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import ops, trained_layers
from .batchnorm_check import check_answer, check_statistics
from .errors import InvalidData, UnsupportedModel
from .graph import Graph
from .ops import Node, Op
from .source_lines import first_line, line_of_error, line_of_trace


def trace(model: nn.Module, example_batch: Tensor) -> Graph:
    """The Graph of ``model``, analog or, of a directly trained one, spiking; ``graph.run(x)`` equals it in evaluation.

    Args:
        model: any module whose forward torch.fx can follow. It is not changed: tensors are copied and its training
            flags stay. ``DataParallel`` and ``torch.compile`` are unwrapped.
        example_batch: ``[B, C, H, W]``; run once, to learn shapes (``F.avg_pool2d(x, x.size()[3])``).

    Raises:
        UnsupportedModel: an operation cannot be converted (named with its node and source line), or the forward
            depends on the values of its input.
        InvalidData: the example does not fit the model, or its answer or BatchNorm statistics are not finite.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(example_batch, Tensor) or example_batch.ndim != 4:
        shape = tuple(example_batch.shape) if isinstance(example_batch, Tensor) else type(example_batch).__name__
        raise InvalidData(f"trace: got an example of {shape}; expected a tensor [B, C, H, W]. Pass a batch of images.")
    example = example_batch.detach().cpu()
    copied, traced = _symbolic(model)
    recorder = _Recorder(traced)
    builder = _Builder(traced, recorder)
    try:
        with torch.inference_mode(False), torch.no_grad():  # inference mode does not tell what is changed in place
            expected = copied(example.clone())
            recorder.run(example.clone())
    except Exception as error:
        raise InvalidData(
            f"trace: the model failed on the example, got shape {tuple(example_batch.shape)} and "
            f"{first_line(error)}; expected images that fit the model. Check input size and channels."
        ) from error
    graph = same = builder.build()
    if graph.trained:  # a spike more or less, by rounding, would make other logits: in float64 that does not happen
        expected, example = copied.double()(example.double()), example.double()
        same = _Builder(traced, recorder).build().to(torch.float64)
    check_answer(same, example, expected, type(model).__name__)
    if not torch.allclose(same.run(example), expected, 1e-3, 1e-3 * float(expected.abs().max())):
        raise UnsupportedModel(
            f"{type(model).__name__}: got a graph with other outputs on the example; expected the model's own. "
            "Remove forward hooks, and whatever changes a result outside of forward."
        )
    return graph


class _Tracer(fx.Tracer):
    """Takes the layers of directly trained networks whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, trained_layers.LAYERS) or super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """Runs the module once. ``values``: per node a tensor's shape (a torch.Size), or the value of anything else;
    ``overwritten``: the nodes whose memory this node changes, and whether they now have its very value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}
        self.overwritten: dict[fx.Node, dict[fx.Node, bool]] = {}

    def run_node(self, n: fx.Node) -> Any:
        alive = {node: value for node, value in self.env.items() if isinstance(value, Tensor)}
        versions = {node: alive[node]._version for node in n.all_input_nodes if node in alive}
        value = super().run_node(n)
        changed = [alive[node] for node, version in versions.items() if alive[node]._version != version]
        memory = {tensor.untyped_storage().data_ptr() for tensor in changed}
        self.overwritten[n] = {
            node: tensor.shape == value.shape and tensor.data_ptr() == value.data_ptr()
            for node, tensor in alive.items()
            if memory and tensor.untyped_storage().data_ptr() in memory
        }
        keep = isinstance(value, Tensor) and n.op != "get_attr"
        self.values[n] = value.shape if keep else tuple(value) if isinstance(value, torch.Size) else value
        return value


def _symbolic(model: nn.Module) -> tuple[nn.Module, fx.GraphModule]:
    try:
        copied = copy.deepcopy(model).eval().cpu().requires_grad_(False)
        tracer = _Tracer()
        tracer.record_stack_traces = True  # for the source lines in messages
        pool, reshape = _followed(F.avg_pool2d), _followed(torch.reshape)
        with mock.patch.object(F, "avg_pool2d", pool), mock.patch.object(torch, "reshape", reshape):
            return copied, fx.GraphModule(copied, tracer.trace(copied))
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__}{line_of_error(error, __file__)}: torch.fx cannot follow its forward, got "
            f"{first_line(error)}; expected a module without control flow on values. Make its forward static."
        ) from error


def _followed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that takes sizes under tracing: torch 2.6 refuses ``F.avg_pool2d(x, x.size()[3])``."""

    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, fx.Proxy):
            return x.tracer.create_proxy("call_function", function, (x, *args), kwargs)
        return function(x, *args, **kwargs)

    return call


class _Builder:
    """Reads fx nodes in order and writes ours."""

    def __init__(self, traced: fx.GraphModule, recorder: _Recorder) -> None:
        self.modules = dict(traced.named_modules())
        self.source = traced.graph
        self.values, self.overwritten = recorder.values, recorder.overwritten
        self.nodes: list[Node] = []
        self.names: dict[fx.Node, str] = {}  # an fx node -> our node that holds its value
        self.taken: set[str] = set()
        for n in [n for n in self.source.nodes if n.op == "placeholder"][1:]:
            if n.users:
                raise self.unsupported(n, "a second input", "one batch of images")

    def build(self) -> Graph:
        output = ""
        for n in self.source.nodes:
            if n.op == "output":
                output = self.result(n)
            elif n.op == "placeholder" and not self.nodes:
                self.add(n, ops.Input(), (), "input")
            elif n.op.startswith("call") and isinstance(self.values[n], torch.Size):
                self.convert(n)
        timesteps = trained_layers.timesteps(self.modules.values())
        origin = {} if timesteps is None else {"recipe": {"name": "trained", "timesteps": timesteps}}
        return Graph(_reachable(self.nodes, output), origin).validate()

    def result(self, n: fx.Node) -> str:
        result = n.args[0]
        if not isinstance(result, fx.Node) or result not in self.names:
            raise self.unsupported(n, f"an output of type {type(result).__name__}", "one tensor of logits")
        return self.names[result]

    def convert(self, n: fx.Node) -> None:
        module = self.modules[str(n.target)] if n.op == "call_module" else None
        make = _MAKERS.get(n.target if module is None else type(module))
        if make is None and module is not None:
            raise self.unsupported(n, f"module {type(module).__name__}", _SUPPORTED_MODULES)
        if make is None:
            raise self.unsupported(n, f"operation {_target_name(n)}", "one that S-ResNet knows")
        self.input(n, _first(n))
        chain = make(self, n) if module is None else make(self, n, module)
        operands = _operands(n) if chain and isinstance(chain[0], ops.Add) else (_first(n),)
        inputs = tuple(self.input(n, operand) for operand in operands)
        self.names[n] = inputs[0]
        for op in chain:
            self.add(n, op, inputs)
            inputs = (self.names[n],)
        for other, same in self.overwritten[n].items():
            if not same:
                raise self.unsupported(n, f"an in-place operation on memory shared with {other}", "a copy")
            self.names[other] = self.names[n]

    def input(self, n: fx.Node, argument: Any) -> str:
        if not isinstance(argument, fx.Node) or argument not in self.names:
            raise self.unsupported(n, f"the operand {argument!r}", "an activation of the network")
        return self.names[argument]

    def add(self, n: fx.Node, op: Op, inputs: tuple[str, ...], name: str | None = None) -> None:
        name = base = name or self.label(n)
        count = 0
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        self.names[n] = name
        self.nodes.append(Node(name, op, inputs))

    def label(self, n: fx.Node) -> str:
        """Module path, plus the function's name where it is not a module that is called."""
        if n.op == "call_module":
            return str(n.target)
        stack = n.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        return f"{path}.{_target_name(n)}" if path else _target_name(n)

    def argument(self, n: fx.Node, position: int, keyword: str, default: Any = None) -> Any:
        """An argument of a call, with sizes and the like replaced by their values on the example."""
        value = n.args[position] if len(n.args) > position else n.kwargs.get(keyword, default)
        return fx.node.map_arg(value, lambda a: a if a in self.names else self.values[a])

    def unsupported(self, n: fx.Node, got: str, expected: str) -> UnsupportedModel:
        place = line_of_trace(n.stack_trace, __file__)
        return UnsupportedModel(
            f"node {self.label(n)}{place}: cannot be converted, got {got}; expected {expected}. "
            "Rewrite this line of the model, or take it out of the converted part."
        )


def _reachable(nodes: list[Node], output: str) -> tuple[Node, ...]:
    """The nodes that the output depends on, the output last; what a model computes and drops is left out."""
    needed = {output, "input"}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    kept = [node for node in nodes if node.name in needed]
    return tuple(sorted(kept, key=lambda node: node.name == output))


def _target_name(n: fx.Node) -> str:
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", n.name).strip("_")


# ---- what each module, function and method becomes: a chain of ops, empty when it passes its input on ----

Chain = tuple[Op, ...]


def _first(n: fx.Node) -> Any:
    return n.args[0] if n.args else n.kwargs.get("input")


def _operands(n: fx.Node) -> tuple[Any, ...]:
    return (*n.args, *(n.kwargs[name] for name in ("input", "other") if name in n.kwargs))[:2]


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return (int(values[0]), int(values[-1]))


def _conv(b: _Builder, n: fx.Node, m: nn.Conv2d) -> Chain:
    if m.padding_mode != "zeros":
        raise b.unsupported(n, f"padding_mode={m.padding_mode!r}", "'zeros'")
    return (ops.Conv2d(*_weights(m), _pair(m.stride), _padding(b, n, m), _pair(m.dilation), m.groups),)


def _weights(m: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    return m.weight.detach(), None if m.bias is None else m.bias.detach()


def _padding(b: _Builder, n: fx.Node, m: nn.Conv2d) -> tuple[int, int]:
    if m.padding != "same":
        return _pair(0 if m.padding == "valid" else m.padding)
    total = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise b.unsupported(n, f"padding='same' with an even kernel {m.kernel_size}", "an odd kernel")
    return (total[0] // 2, total[1] // 2)


def _batch_norm(b: _Builder, n: fx.Node, m: nn.BatchNorm2d) -> Chain:
    if m.running_mean is None or m.running_var is None:
        raise b.unsupported(n, "batch normalization without running statistics", "track_running_stats=True")
    check_statistics(b.label(n), m.running_mean, m.running_var)
    ones = torch.ones_like(m.running_var)
    weight = ones if m.weight is None else m.weight.detach()
    bias = torch.zeros_like(ones) if m.bias is None else m.bias.detach()
    return (ops.BatchNorm2d(weight, bias, m.running_mean, m.running_var, float(m.eps)),)


def _linear(b: _Builder, n: fx.Node, m: nn.Linear) -> Chain:
    if len(b.values[_first(n)]) != 2:
        raise b.unsupported(n, f"a linear layer over {tuple(b.values[_first(n)])}", "[B, features]")
    return (ops.Linear(*_weights(m)),)


def _settings(b: _Builder, n: fx.Node, m: nn.Module | None, names: Mapping[str, Any]) -> Iterator[Any]:
    """The settings of a module, or of a call with these parameters after its input."""
    for position, (name, default) in enumerate(names.items(), 1):
        yield getattr(m, name) if m is not None else b.argument(n, position, name, default)


_MAX_POOL = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": 0}
_AVG_POOL = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False}
_AVG_POOL |= {"count_include_pad": True, "divisor_override": None}


def _max_pool(b: _Builder, n: fx.Node, m: nn.MaxPool2d | None = None) -> Chain:
    kernel, stride, padding, dilation, ceil_mode, indices = _settings(b, n, m, _MAX_POOL)
    if indices:
        raise b.unsupported(n, "return_indices=True", "a plain max-pool")
    return (ops.MaxPool2d(_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation), bool(ceil_mode)),)


def _avg_pool(b: _Builder, n: fx.Node, m: nn.AvgPool2d | None = None) -> Chain:
    kernel, stride, padding, ceil_mode, include_pad, divisor = _settings(b, n, m, _AVG_POOL)
    if divisor is not None:
        raise b.unsupported(n, "divisor_override", "a plain average")
    if _pair(kernel) == b.values[_first(n)][2:] and _pair(padding) == (0, 0):
        return (ops.AdaptiveAvgPool2d((1, 1)),)
    return (ops.AvgPool2d(_pair(kernel), _pair(stride or kernel), _pair(padding), bool(ceil_mode), bool(include_pad)),)


def _adaptive(b: _Builder, n: fx.Node, m: nn.AdaptiveAvgPool2d | None = None) -> Chain:
    (size,) = _settings(b, n, m, {"output_size": None})
    got = b.values[_first(n)]
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    height, width = (got[2 + i] if s is None else int(s) for i, s in enumerate(pair))
    return (ops.AdaptiveAvgPool2d((height, width)),)


def _reshape(b: _Builder, n: fx.Node, *_: object) -> Chain:
    """view, reshape, flatten and squeeze, told apart by what they did to the example's shape."""
    before, after = b.values[_first(n)], b.values[n]
    if before == after:
        return ()
    if len(after) != 2 or after[0] != before[0] or after[1] * after[0] != before.numel():
        raise b.unsupported(n, f"a reshape of {tuple(before)} to {tuple(after)}", "[B, *] to [B, features]")
    return (ops.Flatten(),)


def _mean(b: _Builder, n: fx.Node) -> Chain:
    """``x.mean([2, 3])`` is a global average pool."""
    before, after = b.values[_first(n)], b.values[n]
    if len(before) != 4 or after[:2] != before[:2] or after.numel() != before[0] * before[1]:
        raise b.unsupported(n, f"a mean of {tuple(before)} to {tuple(after)}", "the mean over height and width")
    pool = ops.AdaptiveAvgPool2d((1, 1))
    return (pool,) if len(after) == 4 else (pool, ops.Flatten())


def _add(b: _Builder, n: fx.Node) -> Chain:
    if b.argument(n, 2, "alpha", 1) != 1:
        raise b.unsupported(n, "an addition with alpha", "a plain sum")
    values = [b.values[a] if isinstance(a, fx.Node) else a for a in _operands(n)]
    first, second = (tuple(v.shape) if isinstance(v, Tensor) else v for v in values)
    if first != second:
        raise b.unsupported(n, f"an addition of {first} and {second}", "two activations of one shape")
    return (ops.Add(),)


def _pad(b: _Builder, n: fx.Node) -> Chain:
    mode, value = b.argument(n, 2, "mode", "constant"), b.argument(n, 3, "value")
    if mode != "constant" or value not in (None, 0, 0.0):
        raise b.unsupported(n, f"padding mode={mode!r}, value={value}", "constant zeros")
    padding = tuple(int(p) for p in b.argument(n, 1, "pad"))
    if len(padding) > 2 * (len(b.values[_first(n)]) - 1):
        raise b.unsupported(n, "padding of the batch", "padding of channels or space")
    return (ops.Pad(padding),)


def _slice(b: _Builder, n: fx.Node) -> Chain:
    index = b.argument(n, 1, "index")
    index = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(part, slice) for part in index)
    if not plain or index[0] != slice(None) or len(b.values[n]) != len(b.values[_first(n)]):
        raise b.unsupported(n, f"the index {index}", "slices that keep the batch, as in x[:, :, ::2, ::2]")
    return (ops.Slice(tuple((part.start, part.stop, part.step) for part in index[1:])),)


def _dropout(b: _Builder, n: fx.Node) -> Chain:
    if b.argument(n, 2, "training", True):
        raise b.unsupported(n, "dropout that is always on", "training=self.training")
    return ()


def _trained(b: _Builder, n: fx.Node, m: nn.Module) -> Chain:
    return trained_layers.layer(m)


def _pass_on(b: _Builder, n: fx.Node, *_: object) -> Chain:
    return ()


def _relu(b: _Builder, n: fx.Node, *_: object) -> Chain:
    return (ops.ReLU(),)


# What is called: modules by type, functions, and methods by name.
_KNOWN: dict[Callable[..., Chain], tuple[Any, ...]] = {
    _conv: (nn.Conv2d,),
    _batch_norm: (nn.BatchNorm2d, nn.SyncBatchNorm),
    _linear: (nn.Linear,),
    _relu: (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"),
    _add: (operator.add, operator.iadd, torch.add, "add", "add_", "__add__"),
    _max_pool: (nn.MaxPool2d, F.max_pool2d),
    _avg_pool: (nn.AvgPool2d, F.avg_pool2d),
    _adaptive: (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    _mean: (torch.mean, "mean"),
    _reshape: (nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, "view", "reshape", "flatten", "squeeze"),
    _pad: (F.pad,),
    _slice: (operator.getitem,),
    _dropout: (F.dropout,),
    _trained: trained_layers.LAYERS,
    _pass_on: (nn.Identity, nn.Dropout, nn.Dropout2d, "contiguous", "clone"),
}
_MAKERS = {call: make for make, calls in _KNOWN.items() for call in calls}
_SUPPORTED_MODULES = "one of " + ", ".join(call.__name__ for call in _MAKERS if isinstance(call, type))
