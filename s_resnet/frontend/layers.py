"""Rules for layers: convolutions, linear layers, batch normalization, rectifiers and pools."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..graph import ops
from .activation import Activation, Value
from .arithmetic import per_channel
from .network import Call

RECTIFIER = "ReLU, with an upper limit or without, the only activation that a spiking neuron has"
RETRAIN = "Train the network with nn.ReLU in its place"
CLIP = "Train the network with nn.ReLU, nn.ReLU6 or nn.Hardtanh(0, a) in its place"


def convolution(call: Call) -> Value:
    """A convolution of maps; one of ``[B, C, L]`` becomes a kernel of height or width 1."""
    x, weight, bias, stride, padding, dilation, groups = call.take(
        weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1
    )
    spatial = weight.ndim - 2
    if x.ndim != weight.ndim:
        raise call.refuse(f"a convolution of {tuple(x.shape)}", "a batch of images [B, C, H, W]")
    stride, dilation = _sizes(stride, spatial), _sizes(dilation, spatial)
    padding = _padding(call, padding, weight.shape[2:], dilation)
    kernel = weight.detach().clone()
    if spatial == 1:
        axis = call.along(x)
        kernel = kernel.unsqueeze(axis ^ 1)
        stride, padding, dilation = (_beside(axis, *pair) for pair in ((stride, 1), (padding, 0), (dilation, 1)))
    constant = None if bias is None else bias.detach().clone()
    op = ops.Conv2d(kernel, constant, _pair(stride), _pair(padding), _pair(dilation), groups)
    return call.add(op, call.of(x), shape=_mapped(call, x))


def _padding(call: Call, padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    if padding != "same":
        return _sizes(0 if padding == "valid" else padding, len(kernel))
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):
        raise call.refuse(f"padding='same' with an even kernel {tuple(kernel)}", "an odd kernel")
    return tuple(t // 2 for t in total)


def linear(call: Call) -> Value:
    x, weight, bias = call.take(weight=None, bias=None)
    return _matrix(call, x, weight, bias)


def product(call: Call) -> Value:
    """``x @ W``."""
    x, other = call.take(other=None)
    if isinstance(x, Activation) and isinstance(other, Activation):
        raise call.refuse("a product of two activations", *PRODUCT)
    if not isinstance(x, Activation) or other.ndim != 2:
        raise call.refuse(f"a product of {tuple(x.shape)} and {tuple(other.shape)}", *PRODUCT)
    return _matrix(call, x, other.T, None)


def product_and_sum(call: Call) -> Value:
    """``b + x @ W``."""
    bias, x, matrix, beta, alpha = call.take(mat1=None, mat2=None, beta=1, alpha=1)
    if beta != 1 or alpha != 1:
        raise call.refuse("a scaled product of matrices", "beta = alpha = 1")
    if isinstance(bias, Activation):
        raise call.refuse("a sum of an activation and a product", "a constant bias", "Add it in a line of its own")
    if bias.numel() not in (1, matrix.shape[1]) or bias.shape[-1:] not in ((), (1,), matrix.shape[1:]):
        raise call.refuse(f"a bias of shape {tuple(bias.shape)}", "[N], the same for every image")
    return _matrix(call, x, matrix.T, bias.flatten())


PRODUCT = (
    "activations [B, features] times a constant matrix [features, N]",
    "Write it as F.linear(x, weight), with the activations first",
)


def _matrix(call: Call, x: Any, weight: Tensor, bias: Tensor | None) -> Value:
    if isinstance(x, Tensor) and x.ndim != 2:
        raise call.refuse(f"a linear layer over {tuple(x.shape)}", "[B, features]")
    constant = None if bias is None else bias.detach().expand(len(weight)).clone()
    return call.add(ops.Linear(weight.detach().clone(), constant), call.of(x))


def batch_norm(call: Call) -> Value:
    """``torch.nn.functional.batch_norm``, or ``torch.batch_norm``, whose arguments have another order."""
    if inspect.isfunction(call.function):
        names = dict.fromkeys(("running_mean", "running_var", "weight", "bias"))
    else:
        names = dict.fromkeys(("weight", "bias", "running_mean", "running_var"))
    x, *tensors, training, _, eps, _ = call.take(**names, training=False, momentum=0.1, eps=1e-5, cudnn_enabled=True)
    known = dict(zip(names, tensors, strict=True))
    if training or known["running_mean"] is None or known["running_var"] is None:
        raise call.refuse("batch normalization without running statistics", "track_running_stats=True")
    return _normalized(call, x, known, eps)


def instance_norm(call: Call) -> Value:
    names = dict.fromkeys(("running_mean", "running_var", "weight", "bias"))
    x, *tensors, own, _, eps = call.take(**names, use_input_stats=True, momentum=0.1, eps=1e-5)
    known = dict(zip(names, tensors, strict=True))
    if own or known["running_mean"] is None:
        raise call.refuse("statistics of each image", *BATCH_NORM)
    return _normalized(call, x, known, eps)


BATCH_NORM = (
    "BatchNorm, whose statistics are constants in evaluation mode",
    "Train the network with nn.BatchNorm2d in its place",
)


def _normalized(call: Call, x: Any, known: Mapping[str, Tensor | None], eps: float) -> Value:
    """The normalization with these tensors, by their names in torch; weight and bias may be None."""
    mean, var, weight, bias = (known[name] for name in ("running_mean", "running_var", "weight", "bias"))
    assert mean is not None and var is not None
    ones = torch.ones_like(var)
    weight, bias = ones if weight is None else weight, torch.zeros_like(ones) if bias is None else bias
    weight, bias, mean, var = (tensor.detach().clone() for tensor in (weight, bias, mean, var))
    value = call.of(x)
    return call.add(ops.BatchNorm2d(weight, bias, mean, var, float(eps)), value, shape=value.shape)


# ---- rectifiers ----


def relu(call: Call) -> Value:
    (x,) = call.take()
    return _clipped(call, x, 0, None)


def relu6(call: Call) -> Value:
    (x,) = call.take()
    return _clipped(call, x, 0, 6)


def clamp(call: Call) -> Value:
    x, low, high = call.take(min=None, max=None)
    return _clipped(call, x, low, high)


def clamp_from(call: Call) -> Value:
    x, low = call.take(min=None)
    return _clipped(call, x, low, None)


def clamp_to(call: Call) -> Value:
    x, high = call.take(max=None)
    return _clipped(call, x, None, high)


def hardtanh(call: Call) -> Value:
    x, low, high = call.take(min_val=-1.0, max_val=1.0)
    return _clipped(call, x, low, high)


def threshold(call: Call) -> Value:
    x, limit, other = call.take(threshold=None, value=None)
    if not limit == other == 0:
        raise call.refuse("", RECTIFIER, RETRAIN)
    return _clipped(call, x, 0, None)


def leaky_relu(call: Call) -> Value:
    """A leaky ReLU of slope 0."""
    x, slope = call.take(negative_slope=0.01)
    if not bool((torch.as_tensor(slope) == 0).all()):
        raise call.refuse("", RECTIFIER, RETRAIN)
    return _clipped(call, x, 0, None)


def maximum(call: Call) -> Value:
    """The maximum of an activation and zeros."""
    x, other = _pair_of(call, "maximum")
    return _clipped(call, x, other, None)


def minimum(call: Call) -> Value:
    """The minimum of a rectified activation and its limit."""
    x, other = _pair_of(call, "minimum")
    return _clipped(call, x, None, other)


def _pair_of(call: Call, what: str) -> tuple[Activation, Any]:
    """The activation of an element-wise maximum or minimum, and the constant."""
    if not isinstance(call.result, Tensor) or call.result.ndim == 0:
        remedy = "Write it as F.max_pool2d(x, kernel_size)" if what == "maximum" else None
        raise call.refuse(f"a {what} over an axis", "a max-pool", remedy)
    x, other = call.take(other=None)
    x, other = (x, other) if isinstance(x, Activation) else (other, x)
    if isinstance(other, Activation):
        raise call.refuse(f"a {what} of two activations", RECTIFIER, RETRAIN)
    return x, other


def _clipped(call: Call, x: Any, low: Any, high: Any) -> Value:
    """A clip to ``low`` ... ``high``, None for none, as a ReLU with or without a limit.

    A lower end below 0, or none, is one at 0 where the activation is not negative.

    Raises:
        UnsupportedModel: it is something else.
    """
    value = call.of(x)
    limit = None if high is None else _limit(call, x, high, value.shape[1])
    ends = torch.as_tensor(-math.inf if low is None else low)
    from_zero = bool((ends == 0).all()) or (bool((ends <= 0).all()) and call.network.rectified(value.node))
    if not from_zero:
        raise call.refuse("", RECTIFIER, RETRAIN if limit is None else CLIP)
    before = call.network[value.node]
    if limit is not None and isinstance(before.op, ops.ReLU):  # one neuron layer does both
        limit = limit if before.op.limit is None else torch.minimum(limit, before.op.limit)
        value = Value(before.inputs[0], value.shape, value.flat)
    return call.add(ops.ReLU(limit), value, shape=value.shape)


def _limit(call: Call, x: Any, high: Any, channels: int) -> Tensor | None:
    """The upper end of a clip, 0-dimensional or ``[C]``; None if it is infinite.

    Raises:
        UnsupportedModel: it differs within a channel, or is not above 0 and finite.
    """
    limit = per_channel(call, high, x, channels)
    if bool((limit == math.inf).all()):
        return None
    if not bool(((limit > 0) & (limit < math.inf)).all()):
        got = f"a clip to at most {float(limit[~((limit > 0) & (limit < math.inf))][0]):g}"
        raise call.refuse(got, "a limit above 0, finite or in no channel", CLIP)
    return limit[0].clone() if bool((limit == limit[0]).all()) else limit


# ---- pools ----


def max_pool(call: Call) -> Value:
    x, kernel, stride, padding, dilation, ceil_mode, indices = call.take(
        kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    )
    if indices:
        raise call.refuse("return_indices=True", "a plain max-pool")
    size, step, border, spread = _windows(call, x, kernel, stride or kernel, padding, dilation)
    return call.add(ops.MaxPool2d(size, step, border, spread, bool(ceil_mode)), call.of(x), shape=_mapped(call, x))


def avg_pool(call: Call) -> Value:
    x, kernel, stride, padding, ceil_mode, include_pad, divisor = call.take(
        kernel_size=None, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    )
    if divisor is not None:
        raise call.refuse("divisor_override", "a plain average")
    size, step, border, _ = _windows(call, x, kernel, stride or kernel, padding, 1)
    value, shape = call.of(x), _mapped(call, x)
    if size == value.shape[2:] and border == (0, 0):
        return call.add(ops.AdaptiveAvgPool2d((1, 1)), value, shape=shape)
    return call.add(ops.AvgPool2d(size, step, border, bool(ceil_mode), bool(include_pad)), value, shape=shape)


def adaptive_avg_pool(call: Call) -> Value:
    x, size = call.take(output_size=None)
    value = call.of(x)
    wanted = _sizes(size, x.ndim - 2)
    pair = wanted if x.ndim == 4 else _beside(call.along(x), wanted, 1)
    height, width = (old if new is None else int(new) for old, new in zip(value.shape[2:], pair, strict=True))
    return call.add(ops.AdaptiveAvgPool2d((height, width)), value, shape=_mapped(call, x))


def mean(call: Call) -> Value:
    """The mean over height and width, a global average pool; or over one of them."""
    return _mean(call)[0]


def total(call: Call) -> Value:
    """The sum over height and width: the mean, times the number of pixels."""
    value, pixels = _mean(call)
    weight = torch.full((value.shape[1],), float(pixels), dtype=call.result.dtype)
    return call.named(call.add(ops.Affine(weight, torch.zeros_like(weight)), value, shape=value.shape))


def _mean(call: Call) -> tuple[Value, int]:
    x, dim, _, dtype = call.take(dim=None, keepdim=False, dtype=None)
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, tuple | list) else (dim,)
    axes = {d % x.ndim for d in dims}
    if dtype not in (None, x.dtype) or x.ndim < 3 or not axes or min(axes) < 2:
        raise call.refuse(f"a mean of {tuple(x.shape)} to {tuple(call.result.shape)}", "the mean over height and width")
    value = call.of(x)
    _, _, height, width = value.shape
    # Axes of [B, C, H, W]. The last axis of [B, C, L] is H or W, whichever is more than 1.
    over = axes if x.ndim == 4 else {2, 3}
    size = (1 if 2 in over or height == 1 else height, 1 if 3 in over or width == 1 else width)
    shape = (*value.shape[:2], *size)
    before = call.network.pooled.get(value.node, value) if size == (1, 1) else value
    pooled = call.add(ops.AdaptiveAvgPool2d(size), before, shape=shape)
    call.network.pooled[pooled.node] = before
    return call.named(pooled), height * width // (size[0] * size[1])


# ---- sizes ----


def _mapped(call: Call, x: Tensor) -> tuple[int, ...]:
    """The shape of the result in the Graph: that of the call, with a height or width of 1 added to ``[B, C, L]``."""
    shape = tuple(call.result.shape)
    return shape if x.ndim == 4 else (*shape[:2], *_beside(call.along(x), shape[2:], 1))


def _windows(call: Call, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[tuple[int, int]]:
    """Kernel, stride, padding and dilation, each as a pair for height and width."""
    spatial = x.ndim - 2
    settings = [
        (_sizes(value, spatial), rest) for value, rest in ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    ]
    if spatial == 2:
        return [_pair(sizes) for sizes, _ in settings]
    axis = call.along(x)
    return [_pair(_beside(axis, sizes, rest)) for sizes, rest in settings]


def _sizes(value: Any, count: int) -> tuple[Any, ...]:
    """One number for each of ``count`` axes."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values if len(values) == count else (values[0],) * count


def _beside(axis: int, sizes: Sequence[Any], rest: int) -> tuple[Any, ...]:
    """A size along one axis of height and width, with ``rest`` along the other."""
    return (rest, sizes[0]) if axis == 3 else (sizes[0], rest)


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
