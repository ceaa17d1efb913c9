"""The operators of exported programs that are known, by their names in the file, as functions of torch.

The file names an operator, and this table says what computes it; nothing that the file names is looked up elsewhere.
Whether a known operator can be converted is for ``trace`` to say.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = 2**12  # the most parts of a split

# Called as they are: trace knows them by these names, or computes them from weights alone.
_PLAIN = (
    "conv1d.default conv1d.padding conv2d.default conv2d.padding linear.default matmul.default mm.default "
    "batch_norm.default mv.default dot.default vdot.default "
    "relu.default relu_.default clamp.default clamp_.default clamp_min.default clamp_min_.default hardtanh.default "
    "hardtanh_.default relu6.default relu6_.default leaky_relu.default leaky_relu_.default prelu.default "
    "threshold.default threshold_.default maximum.default minimum.default "
    "elu.default elu_.default selu.default selu_.default celu.default celu_.default gelu.default silu.default "
    "silu_.default mish.default mish_.default hardswish.default hardswish_.default hardsigmoid.default "
    "hardsigmoid_.default sigmoid.default sigmoid_.default tanh.default tanh_.default softplus.default "
    "softmax.int log_softmax.int _softmax.default _log_softmax.default "
    "group_norm.default layer_norm.default native_group_norm.default native_layer_norm.default "
    "max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default adaptive_avg_pool1d.default "
    "adaptive_avg_pool2d.default adaptive_max_pool2d.default mean.default mean.dim sum.default sum.dim_IntList "
    "amax.default "
    "add.Tensor add.Scalar add_.Tensor add_.Scalar sub.Tensor sub.Scalar sub_.Tensor sub_.Scalar rsub.Tensor "
    "rsub.Scalar mul.Tensor mul.Scalar mul_.Tensor mul_.Scalar div.Tensor div.Scalar div_.Tensor div_.Scalar "
    "neg.default cat.default concat.default concatenate.default "
    "view.default view_as.default reshape.default reshape_as.default flatten.using_ints squeeze.default squeeze.dim "
    "squeeze.dims unsqueeze.default unflatten.int expand.default expand_as.default repeat.default flip.default "
    "index_select.default split_with_sizes.default channel_shuffle.default native_channel_shuffle.default "
    "permute.default transpose.int t.default "
    "clone.default detach.default contiguous.default alias.default lift_fresh_copy.default "
    "dropout.default dropout_.default feature_dropout.default alpha_dropout.default "
    "abs.default exp.default log.default sqrt.default rsqrt.default reciprocal.default pow.Tensor_Scalar "
    "var.correction var_mean.correction linalg_vector_norm.default norm.ScalarOpt_dim "
    "zeros_like.default ones_like.default full_like.default new_zeros.default new_ones.default new_full.default"
)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    stride, padding, dilation, transposed, _, groups = settings
    if transposed or weight.ndim not in (3, 4):
        return torch.convolution(x, weight, bias, *settings)
    convolve = torch.conv1d if weight.ndim == 3 else torch.conv2d
    return convolve(x, weight, bias, stride, padding, dilation, groups)


def _linear(bias: Tensor, x: Tensor, matrix: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``b + x @ W``."""
    if beta != 1 or alpha != 1 or bias.ndim != 1:
        return torch.addmm(bias, x, matrix, beta=beta, alpha=alpha)
    return F.linear(x, matrix.t(), bias)


def _normalized(x: Tensor, *given: Any) -> tuple[Tensor, None, None, None]:
    """Batch normalization by running statistics; the statistics that it also returns are for training."""
    weight, bias, mean, var, momentum, eps = given
    return torch.batch_norm(x, weight, bias, mean, var, False, momentum, eps, False), None, None, None


def _normalized_if(x: Tensor, *given: Any) -> tuple[Tensor, None, None, None]:
    weight, bias, mean, var, training, momentum, eps = given
    return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, False), None, None, None


def _max_pool(x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False) -> Any:
    pool = torch.max_pool1d if x.ndim == 3 else torch.max_pool2d
    return pool(x, kernel, stride or kernel, padding, dilation, ceil), None


def _instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *given: Any) -> Tensor:
    mean, var, own, momentum, eps, _ = given
    return F.instance_norm(x, mean, var, weight, bias, own, momentum, eps)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / |v|``, after the checks of shapes that torch's own function lacks."""
    fits = 0 <= dim < v.ndim and g.shape == tuple(n if axis == dim else 1 for axis, n in enumerate(v.shape))
    if not fits or v.numel() == 0 or not v.is_floating_point() or g.dtype != v.dtype:
        raise ValueError(f"lengths of {tuple(g.shape)} for {tuple(v.shape)}")
    return torch._weight_norm(v, g, dim)


def sliced(x: Tensor, *parts: tuple[int, int | None, int | None, int]) -> Tensor:
    """Slices ``(axis, begin, end, step)`` of several axes at once."""
    index = [slice(None)] * x.ndim
    for axis, begin, end, step in parts:
        whole = begin in (None, 0) and step == 1 and (end is None or end >= x.shape[axis])
        index[axis] = slice(None) if whole else slice(begin, None if end == 2**63 - 1 else end, step)
        if index[axis].start == 0 and step > 1 and index[axis].stop is None:
            index[axis] = slice(None, None, step)
    return x if all(part == slice(None) for part in index) else x[tuple(index)]


def sliced_along(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """A slice of one axis, with the file's order of arguments."""
    return sliced(x, (dim, start, end, step))


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    return x[(slice(None),) * (dim % x.ndim) + (index,)]


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _split(x: Tensor, size: int, dim: int = 0) -> Any:
    if size < 1 or x.shape[dim] > PARTS * size:
        raise ValueError(f"parts of {size} of {x.shape[dim]}")
    return torch.split(x, size, dim)


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> Any:
    if not 1 <= chunks <= PARTS:
        raise ValueError(f"{chunks} parts")
    return torch.chunk(x, chunks, dim)


def _pad_with(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    return F.pad(x, pad, "constant", value)


def _cast(x: Tensor, dtype: torch.dtype | None = None, *_: Any, **__: Any) -> Tensor:
    """A cast; where to, and how memory is laid out, does not matter here."""
    return x if dtype is None else x.to(dtype)


def _cast_at(x: Tensor, _device: None, dtype: torch.dtype, *_: Any, **__: Any) -> Tensor:
    return x.to(dtype)


def _size(x: Tensor, dim: int) -> int:
    return x.shape[dim]


# What torch calls otherwise than the file, or what trace knows in another form.
_ADAPTED: dict[str, Callable[..., Any]] = {
    "convolution.default": _convolution,
    "addmm.default": _linear,
    "_native_batch_norm_legit_no_training.default": _normalized,
    "_batch_norm_no_update.default": _normalized,
    "_native_batch_norm_legit.default": _normalized_if,
    "_native_batch_norm_legit_functional.default": _normalized_if,
    "native_batch_norm.default": _normalized_if,
    "cudnn_batch_norm.default": _normalized_if,
    "instance_norm.default": _instance_norm,
    "_weight_norm.default": _weight_norm,
    "detach_.default": torch.Tensor.detach,
    "max_pool2d_with_indices.default": _max_pool,
    "max_pool1d_with_indices.default": _max_pool,
    "_adaptive_avg_pool2d.default": F.adaptive_avg_pool2d,
    "slice.Tensor": sliced_along,
    "select.int": _select,
    "index.Tensor": _index,
    "split.Tensor": _split,
    "chunk.default": _chunk,
    "pad.default": F.pad,
    "constant_pad_nd.default": _pad_with,
    "_unsafe_view.default": torch.reshape,
    "_to_copy.default": _cast,
    "to.dtype": _cast,
    "to.dtype_layout": _cast,
    "to.device": _cast_at,
    "type_as.default": torch.Tensor.type_as,
    "sym_size.int": _size,
    "zeros.default": torch.zeros,
    "ones.default": torch.ones,
    "full.default": torch.full,
    "scalar_tensor.default": torch.scalar_tensor,
    "arange.default": torch.arange,
    "arange.start": torch.arange,
    "arange.start_step": torch.arange,
}
# Arithmetic with sizes.
_SIZES: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
}

PREFIX, SIZES = "torch.ops.aten.", "_operator."
OPERATORS: dict[str, Callable[..., Any]] = {
    **{f"{PREFIX}{name}": function for name, function in _ADAPTED.items()},
    **{f"{SIZES}{name}": function for name, function in _SIZES.items()},
}


def overload(name: str) -> Any:
    """Torch's own operator of an overload such as ``conv2d.default``; None where this torch has none."""
    packet, _, kind = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), kind, None)


OPERATORS |= {f"{PREFIX}{name}": found for name in _PLAIN.split() if (found := overload(name)) is not None}
# Operators that make a tensor of given sizes, the first of which can be the number of images, and those that give one
# such sizes.
FILLED = frozenset(f"{PREFIX}{name}" for name in ("zeros.default", "ones.default", "full.default"))
FRESH = frozenset(f"{PREFIX}{name}" for name in ("new_zeros.default", "new_ones.default", "new_full.default"))
RESHAPED = frozenset(
    f"{PREFIX}{name}" for name in ("view.default", "reshape.default", "_unsafe_view.default", "expand.default")
)
