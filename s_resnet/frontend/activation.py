"""A tensor that tells who runs the model of every call of torch that it takes part in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import UnsupportedModel


@dataclass(frozen=True)
class Value:
    """Where the Graph has a value: a node, and its shape on the example, ``[B, C, H, W]`` or ``[B, F]``.

    The module may see it as ``[B, C, L]`` with ``L = H W``, or flattened; ``flat`` names the Flatten that would be.
    """

    node: str
    shape: tuple[int, ...]
    flat: str = "flatten"


class Watcher(Protocol):
    """What an activation reports to."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any: ...


class Activation(Tensor):
    """A value that depends on the images, on the example.

    value: where the Graph has it; None where it has not, for the reason in ``refusal``.
    """

    watcher: Watcher
    value: Value | None
    refusal: UnsupportedModel | None

    @classmethod
    def of(cls, tensor: Tensor, watcher: Watcher, value: Value | None, refusal: UnsupportedModel | None) -> Activation:
        """``tensor``, watched from now on."""
        activation = tensor.as_subclass(cls)
        activation.watcher, activation.value, activation.refusal = watcher, value, refusal
        return activation

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Have the watcher run a call of torch; within it activations are plain tensors."""
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
