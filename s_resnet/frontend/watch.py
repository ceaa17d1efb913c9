"""Runs a model's forward once and turns every call of torch into nodes of a Graph."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arguments import as_maps
from ..errors import UnsupportedModel, message
from ..files import reason
from ..graph.ops import BatchNorm2d, Node, Op
from . import spiking_layers
from .activation import Activation, Value, parts
from .network import Call, Network
from .program import WITHOUT, Operation
from .rules import EXPECTED, HINTS, RULES
from .source_lines import library_of, line_here, line_of_error

OWN = str(Path(__file__).parent)  # lines of this folder are not the model's
# Calls that read the values of an activation: what a model does with these cannot be followed.
READS = re.compile(
    "item|tolist|numpy|__(bool|float|int|index|complex|contains|array|dlpack)__|equal|allclose|is_nonzero|"
    "storage|untyped_storage"
)
# Calls whose results have the size of an activation but not its values.
FRESH = re.compile("(zeros|ones|full|empty)_like|new_(zeros|ones|full|empty|tensor)")


def follow(model: nn.Module, example: Tensor) -> tuple[Node, ...]:
    """The nodes of the computation of ``model``, the answer last.

    Sizes, and branches that depend on them, are those of the example. Forward hooks are not followed.

    Args:
        model: the module.
        example: images ``[B, C, H, W]``, or signals ``[B, C, L]``.

    Raises:
        UnsupportedModel: the answer depends on an operation without a rule, or the forward reads values of an
            activation; the message names the line.
    """
    watch = _Watch(type(model).__name__)
    try:
        with watch.modules(model):
            result = model(watch.images(example.clone()))
    except UnsupportedModel:
        raise
    except Exception as error:
        raise watch.lost(line_of_error(error, OWN), reason(error)) from error
    return watch.nodes(result)


def answer_of(result: Any) -> Any:
    """The logits in the result of a model: the tensor itself, or the entry ``logits``, as in models of Hugging Face."""
    if isinstance(result, Tensor):
        return result
    return result.get("logits", result) if isinstance(result, Mapping) else getattr(result, "logits", result)


class _Watch:
    """Records a forward.

    Attributes:
        name: the type of the model, for messages.
        network: the nodes so far.
        stack: paths and modules whose forward is running, the outermost first.
        alive: the activations that still exist.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.network = Network()
        self.stack: list[tuple[str, nn.Module]] = []
        self.alive: list[weakref.ref[Activation]] = []

    @contextmanager
    def modules(self, model: nn.Module) -> Iterator[None]:
        """In the block every module reports the begin and end of its forward, and forward hooks are off."""
        kept = []
        for path, module in model.named_modules():
            hooks = dict(module._forward_hooks)
            kept.append((module, vars(module).get("forward"), hooks))
            module.forward = functools.partial(self.within, path, module, module.forward)
            module._forward_hooks.clear()
        try:
            yield
        finally:
            for module, forward, hooks in kept:
                del module.forward
                if forward is not None:
                    module.forward = forward
                module._forward_hooks.update(hooks)

    def within(self, path: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a module's forward."""
        self.stack.append((path, module))
        try:
            images = [part for part in parts((args, kwargs)) if isinstance(part, Activation)]
            known = _whole(module) if images else None
            if known is None:
                return forward(*args, **kwargs)
            with torch._C.DisableTorchFunctionSubclass():
                result = forward(*args, **kwargs)
                return self.chain(images[0], known, result)
        finally:
            self.stack.pop()

    def images(self, example: Tensor) -> Activation:
        return self.watched(example, self.network.start(tuple(as_maps(example).shape)), None)

    def chain(self, x: Activation, ops: tuple[Op, ...], result: Tensor) -> Any:
        """The result of a module that becomes ``ops`` as a whole."""
        if x.value is None:
            return self.watched(result, None, x.refusal)
        value, shape = self.network.flat(x.value) if x.ndim == 2 else x.value, tuple(result.shape)
        for op in ops:
            value = self.network.add(self.label(""), op, (value,), shape)
        return self.watched(result, Value(value.node, shape), None)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a call of torch, and add it to the network."""
        name = _name(function)
        if READS.fullmatch(getattr(function, "__name__", "")):
            raise self.lost(line_here(OWN, follow.__name__), f"a question for values ({name})")
        tensors = [part for part in parts((args, kwargs)) if isinstance(part, Tensor)]
        versions = [_version(tensor) for tensor in tensors]
        result = function(*args, **kwargs)
        changed = [t for t, version in zip(tensors, versions, strict=True) if _version(t) != version]
        found = [part for part in parts(result) if isinstance(part, Tensor)]
        unchanged = isinstance(result, Activation) and not changed
        if not found or FRESH.fullmatch(name) or unchanged:
            return result  # a size, a new tensor, or an activation that was passed in
        label = self.label(name)
        refuse = functools.partial(self.refuse, label, name)
        values, refusal = self.convert(
            Call(self.network, function, args, kwargs, result, label, bool(changed), refuse),
            name,
            [tensor for tensor in tensors if isinstance(tensor, Activation)],
        )
        if refusal is None and values == (None,):
            return result  # a constant, zero
        for tensor in changed:
            self.overwrite(tensor, values[0], refusal, refuse)
        if isinstance(result, Tensor):
            return result if isinstance(result, Activation) else self.watched(result, values[0], refusal)
        given = iter(values if refusal is None else (None,) * len(found))
        watched = [self.watched(part, next(given), refusal) for part in found]
        return tuple(watched) if isinstance(result, tuple) else watched

    def convert(
        self, call: Call, name: str, activations: list[Activation]
    ) -> tuple[tuple[Value | None, ...], UnsupportedModel | None]:
        """The values of the results by the call's rule, or why there are none."""
        refusal = next((activation.refusal for activation in activations if activation.value is None), None)
        if refusal is not None:
            return (None,), refusal
        try:
            rule = RULES.get(name)
            if rule is None:
                raise call.refuse("", *HINTS.get(name, (EXPECTED, None)))
            values = rule(call)
            return values if isinstance(values, tuple) else (values,), None
        except UnsupportedModel as error:
            return (None,), error

    def watched(self, tensor: Tensor, value: Value | None, refusal: UnsupportedModel | None) -> Activation:
        activation = Activation.of(tensor, self, value, refusal)
        self.alive = [other for other in self.alive if other() is not None]
        self.alive.append(weakref.ref(activation))
        return activation

    def overwrite(
        self, changed: Tensor, value: Value | None, refusal: UnsupportedModel | None, refuse: Callable[..., Any]
    ) -> None:
        """Give the activations that share memory with a tensor changed in place its new value, or a refusal."""
        if not isinstance(changed, Activation):
            raise refuse("an in-place operation on a constant of the model", "a copy")
        for other in (reference() for reference in self.alive):
            if other is None or other.untyped_storage().data_ptr() != changed.untyped_storage().data_ptr():
                continue
            if other.data_ptr() == changed.data_ptr() and other.shape == changed.shape:
                other.value, other.refusal = value, refusal
            else:
                shared = "another activation" if other.value is None else other.value.node
                other.value, other.refusal = (
                    None,
                    refuse(f"an in-place operation on memory shared with {shared}", "a copy"),
                )

    def nodes(self, result: Any) -> tuple[Node, ...]:
        """The nodes of the network that ends in the model's result."""
        answer = answer_of(result)
        if not isinstance(answer, Activation):
            kind = "constant" if isinstance(answer, Tensor) else type(result).__name__
            raise self.refuse("output", "", f"an output of type {kind}", "one tensor of logits, or a field logits")
        if answer.refusal is not None:
            raise answer.refusal
        assert answer.value is not None
        with torch._C.DisableTorchFunctionSubclass():
            shape = tuple(answer.shape)
        value = self.network.flat(answer.value) if len(shape) == 2 else answer.value
        if value.shape != shape:
            raise self.refuse("output", "", f"an output of shape {shape}", "[B, N] or [B, N, H, W]")
        return self.network.reaching(value.node)

    def lost(self, line: str, got: str) -> UnsupportedModel:
        """The error for a forward that depends on values."""
        what, expected = "its forward cannot be followed", "a module without control flow on values"
        return UnsupportedModel(message(f"{self.name}{line}", what, got, expected, "Make its forward static"))

    def label(self, name: str) -> str:
        """The path of the running module, with the call's name where the module is not a single layer."""
        path, module = self.stack[-1] if self.stack else ("", None)
        if isinstance(module, Operation):
            return module.label
        if path and module is not None and _is_layer(module):
            return path
        return f"{path}.{name}" if path and name else name or path or "layer"

    def refuse(
        self, label: str, name: str, got: str, expected: str = EXPECTED, remedy: str | None = None
    ) -> UnsupportedModel:
        """The error for an operation at the model's current line."""
        line = line_here(OWN, follow.__name__) if self.stack else ""
        module = self.stack[-1][1] if self.stack else None
        if isinstance(module, Operation):
            got, remedy = got or f"operator {module.kind}", remedy or WITHOUT
        if not got:
            got = f"module {type(module).__name__}" if module is not None and _is_layer(module) else f"operation {name}"
        if remedy is None:
            library = library_of(line)
            remedy = "Rewrite this line of the model, or leave it out of the converted part"
            if library:
                remedy = f"The line is in {library}: use a network without it, or convert the part before it"
        return UnsupportedModel(message(f"node {label}{line}", "cannot be converted", got, expected, remedy))


def _name(function: Callable[..., Any]) -> str:
    """The plain name of a function, method, operator or property of torch."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__"):
        name = function.__self__.__name__  # type: ignore[attr-defined]
    return str(name).partition(".")[0].strip("_")


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for inference tensors, which do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers, or a subclass of one, and not a container."""
    homes = {kind.__module__ for kind in type(module).__mro__ if kind is not nn.Module}
    layer = any(home.startswith("torch.nn.modules.") for home in homes) and "torch.nn.modules.container" not in homes
    return layer or isinstance(module, spiking_layers.LAYERS)


def _whole(module: nn.Module) -> tuple[Op, ...] | None:
    """The operations of a module that is converted as a whole: a spiking layer or a frozen BatchNorm."""
    if isinstance(module, spiking_layers.LAYERS):
        return spiking_layers.layer(module)
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" == "torchvision.ops.misc.FrozenBatchNorm2d":
        own = dict(module.named_buffers())
        weight, bias, mean, var = (own[name].clone() for name in ("weight", "bias", "running_mean", "running_var"))
        return (BatchNorm2d(weight, bias, mean, var, float(vars(module)["eps"])),)
    return None
