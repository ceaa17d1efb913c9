"""The rules for calls of torch by name, and advice about calls that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import arithmetic, layers, reshaping
from .layers import BATCH_NORM, RECTIFIER, RETRAIN
from .network import Call

# A rule returns the value of the call's result, or of each of its results; None for a constant.
Rule = Callable[[Call], Any]
_NAMES: dict[Rule, str] = {
    layers.convolution: "conv1d conv2d",
    layers.linear: "linear",
    layers.product: "matmul mm",
    layers.product_and_sum: "addmm",
    layers.batch_norm: "batch_norm",
    layers.instance_norm: "instance_norm",
    layers.relu: "relu",
    layers.relu6: "relu6",
    layers.clamp: "clamp clip",
    layers.clamp_from: "clamp_min",
    layers.clamp_to: "clamp_max",
    layers.hardtanh: "hardtanh",
    layers.threshold: "threshold",
    layers.leaky_relu: "leaky_relu prelu",
    layers.maximum: "maximum max",
    layers.minimum: "minimum min",
    layers.max_pool: "max_pool1d max_pool2d max_pool1d_with_indices max_pool2d_with_indices",
    layers.avg_pool: "avg_pool1d avg_pool2d",
    layers.adaptive_avg_pool: "adaptive_avg_pool1d adaptive_avg_pool2d",
    layers.mean: "mean",
    layers.total: "sum",
    arithmetic.add: "add",
    arithmetic.subtract: "sub subtract",
    arithmetic.subtract_from: "rsub",
    arithmetic.negative: "neg negative",
    arithmetic.multiply: "mul multiply",
    arithmetic.divide: "div divide true_divide",
    arithmetic.concatenate: "cat concat concatenate",
    reshaping.reshape: "view view_as reshape reshape_as flatten squeeze unsqueeze unflatten",
    reshaping.index: "getitem",
    reshaping.split: "split chunk tensor_split split_with_sizes",
    reshaping.pad: "pad",
    reshaping.unshuffle: "pixel_unshuffle",
    reshaping.repeat: "expand expand_as repeat",
    reshaping.flip: "flip",
    reshaping.select: "index_select",
    reshaping.shuffle: "channel_shuffle native_channel_shuffle",
    reshaping.keep: "clone detach data contiguous to type type_as float double cpu cuda alias lift_fresh requires_grad",
    reshaping.dropout: "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}

EXPECTED = (
    "a convolution, linear layer, BatchNorm, ReLU, sum, constant per channel, average or max-pool, padding, "
    "slice, concatenation of channels or flatten"
)
# By name of a call without a rule: what is expected instead, and what to do.
_ADVICE: dict[str, tuple[str, str]] = {
    "rrelu elu selu celu gelu silu mish hardswish hardshrink softshrink": (RECTIFIER, RETRAIN),
    "tanhshrink softplus softsign tanh logsigmoid glu": (RECTIFIER, RETRAIN),
    "softmax log_softmax": (
        "logits: probabilities at the end of a model have no spiking form",
        "Leave it out: the largest logit is the most probable class",
    ),
    "sigmoid hardsigmoid": (
        "logits at the end, and no gates before",
        f"At the end leave it out: the order of the scores stays the same. {arithmetic.GATE}",
    ),
    "group_norm layer_norm rms_norm local_response_norm": BATCH_NORM,
}
HINTS = {name: advice for names, advice in _ADVICE.items() for name in names.split()}
