"""Membrane kernels: tensors in, tensors out. ``reference`` is the specification, the others do the same faster."""

from .select import KERNELS, Kernel, describe, narrow_dtype, per_channel, select

__all__ = ["KERNELS", "Kernel", "describe", "narrow_dtype", "per_channel", "select"]
