"""Membrane kernels: tensors in, tensors out. ``reference`` is the specification, the others do the same faster."""

from .layout import per_channel
from .membrane.update import Update
from .select import KERNELS, Kernel, describe, fastest, integrate_and_fire, narrow_dtype, select

__all__ = [
    "KERNELS",
    "Kernel",
    "Update",
    "describe",
    "fastest",
    "integrate_and_fire",
    "narrow_dtype",
    "per_channel",
    "select",
]
