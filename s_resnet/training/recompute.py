"""Gradient checkpointing: residual blocks keep their input alone and compute the rest again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InvalidData, message


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """The innermost modules with parts of their own that stand in a Sequential: the blocks of every ResNet here."""
    listed = [
        child
        for module in model.modules()
        if isinstance(module, nn.Sequential)
        for child in module
        if not isinstance(child, nn.Sequential) and any(True for _ in child.children())
    ]
    known = set(listed)
    return [block for block in listed if not known & set(list(block.modules())[1:])]


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """In the block, residual blocks store nothing between forward and backward but their input, all time steps of it.

    Gradients are those without it, and so are running statistics: they are those of the first computation. Raises
    InvalidData where there are no residual blocks.
    """
    blocks = residual_blocks(model)
    if not blocks:
        raise InvalidData(
            message("train", "recompute", f"no residual blocks in {type(model).__name__}", "a ResNet's", "Leave it out")
        )
    for block in blocks:
        block.forward = _checkpointed(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _checkpointed(block: nn.Module, forward: Any) -> Any:
    def run(*inputs: Any) -> Any:
        return checkpoint(
            forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_aside(block))
        )

    return run


@contextmanager
def _buffers_aside(block: nn.Module) -> Iterator[None]:
    """In the block, what is written to running statistics and counters is written to copies."""
    kept = [
        (module, name, buffer) for module in block.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
