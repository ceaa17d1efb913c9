"""Gradient checkpointing: residual blocks keep only their input, and compute the rest again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InvalidData, message


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """The innermost modules with submodules in a Sequential: in every ResNet here these are the residual blocks."""
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
    """In the block, residual blocks store only their input, at all time steps, between forward and backward.

    Gradients and running statistics do not change; the second computation leaves the statistics alone.

    Raises:
        InvalidData: the model has no residual blocks.
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
            del block.forward  # uncovers the class's own


def _checkpointed(block: nn.Module, forward: Any) -> Any:
    def run(*inputs: Any) -> Any:
        return checkpoint(
            forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_aside(block))
        )

    return run


@contextmanager
def _buffers_aside(block: nn.Module) -> Iterator[None]:
    """In the block, updates of running statistics and counters go to copies."""
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
