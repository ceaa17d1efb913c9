"""A tensor that reports every call of torch in which it takes part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import UnsupportedModel


@dataclass(frozen=True)
class Value:
    """A value of the Graph. The module may see it as ``[B, C, L]`` with ``L = H W``, or flattened.

    Attributes:
        node: the name of its node.
        shape: its shape on the example, ``[B, C, H, W]`` or ``[B, F]``.
        flat: the name of its Flatten node, should one be needed.
    """

    node: str
    shape: tuple[int, ...]
    flat: str = "flatten"


class Watcher(Protocol):
    """The receiver of an activation's reports."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any: ...


class Activation(Tensor):
    """A tensor of the example that depends on the images.

    Attributes:
        watcher: the receiver of its reports.
        value: its counterpart in the Graph; None where there is none.
        refusal: why there is none.
    """

    watcher: Watcher
    value: Value | None
    refusal: UnsupportedModel | None

    @classmethod
    def of(cls, tensor: Tensor, watcher: Watcher, value: Value | None, refusal: UnsupportedModel | None) -> Activation:
        """``tensor`` as an activation."""
        activation = tensor.as_subclass(cls)
        activation.watcher, activation.value, activation.refusal = watcher, value, refusal
        return activation

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Have the watcher run a call of torch, during which activations are plain tensors."""
        kwargs = kwargs or {}
        first = next(part for part in parts((args, kwargs)) if isinstance(part, Activation))
        with torch._C.DisableTorchFunctionSubclass():
            return first.watcher.call(func, args, kwargs)


def parts(tree: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists, dicts and slices."""
    if isinstance(tree, tuple | list):
        for part in tree:
            yield from parts(part)
    elif isinstance(tree, Mapping):
        yield from parts(tuple(tree.values()))
    elif isinstance(tree, slice):
        yield from parts((tree.start, tree.stop, tree.step))
    else:
        yield tree
