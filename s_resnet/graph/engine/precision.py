"""How float32 is multiplied: as a simulation says, whatever the caller has set; the caller's settings come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

# What torch calls float32 that is multiplied as float32, and the attribute that says so.
IEEE, PRECISION = ("ieee", "none"), "fp32_precision"


@contextmanager
def arithmetic(images: Tensor, tf32: bool, autotune: bool | None = None) -> Iterator[None]:
    """Multiply float32 exactly or, in convolutions on a GPU only, in TF32; never in the 16 bits of autocast.

    The settings belong to the process: threads that run in different precisions at once disturb each other.

    Args:
        images: their device decides which settings are changed.
        tf32: whether convolutions on a GPU may use TF32.
        autotune: whether cuDNN tries its algorithms at every new shape; None keeps the caller's choice.
    """
    kind = images.device.type
    backends: Any = torch.backends
    with ExitStack() as back:
        if torch.is_autocast_enabled(kind):
            back.enter_context(torch.autocast(kind, enabled=False))
        if kind == "cuda":
            cudnn, products = backends.cudnn, backends.cuda.matmul
            if not (_is(cudnn.conv, tf32) and _is(products, False)):
                _multiply_on_gpu(back, cudnn, cudnn.conv, products, tf32)
            _set(back, cudnn, "enabled", True)
            _set(back, cudnn, "benchmark", cudnn.benchmark if autotune is None else autotune)
        elif kind == "cpu":
            for operation in (backends.mkldnn.conv, backends.mkldnn.matmul):
                if not _is(operation, False):
                    back.callback(setattr, operation, PRECISION, _own(operation, backends))
                    operation.fp32_precision = "ieee"
        yield


def _is(operation: Any, tf32: bool) -> bool:
    return operation.fp32_precision in (("tf32",) if tf32 else IEEE)


def _set(back: ExitStack, owner: Any, name: str, value: object) -> None:
    """Set an attribute until ``back`` is left."""
    before = getattr(owner, name)
    if value != before:
        setattr(owner, name, value)
        back.callback(setattr, owner, name, before)


def _multiply_on_gpu(back: ExitStack, backend: Any, convolution: Any, product: Any, tf32: bool) -> None:
    """Convolutions in TF32 or not, products never, until ``back`` is left.

    A convolution's first setting follows its backend, and is TF32 where that says nothing. Once it is overwritten no
    value brings it back: so a convolution that follows is left alone, and its backend is set.
    """
    own = [_own(operation, backend) for operation in (convolution, product)]
    back.callback(setattr, backend, PRECISION, _own(backend, torch.backends))
    backend.fp32_precision = "tf32" if tf32 else "ieee"
    for operation, before, wanted in zip((convolution, product), own, (tf32, False), strict=True):
        if not _is(operation, wanted):
            back.callback(setattr, operation, PRECISION, before)
            operation.fp32_precision = "tf32" if wanted else "ieee"


def _own(owner: Any, above: Any) -> str:
    """A setting as it was made, ``"none"`` where it follows the one above it: reading does not tell the two apart."""
    seen, before = owner.fp32_precision, _made(above)
    above.fp32_precision = "ieee" if seen == "tf32" else "tf32"
    follows = owner.fp32_precision != seen
    above.fp32_precision = before
    return "none" if follows else str(seen)


def _made(owner: Any) -> str:
    """The setting of a backend, or of all, as it was made."""
    return str(owner.fp32_precision) if owner is torch.backends else _own(owner, torch.backends)
