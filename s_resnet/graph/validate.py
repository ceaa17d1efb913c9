"""What a network must be to be simulated: types, ranges, alphabets and finite numbers, whoever made it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidData, message
from ..kernels.membrane.update import SCHEDULES
from ..kernels.surrogate.reference import SURROGATES
from . import forms
from .alphabet import COPIES, MOST, SPIKES, Amplitudes, Binary, Copies, Differential, MultiThreshold, Signed, Surrogate
from .neuron import IntegerNeuron, Neuron
from .ops import (
    LARGEST_PIXEL,
    QCFS,
    SYNAPSES,
    AdaptiveAvgPool2d,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Input,
    IntegerWeights,
    Linear,
    MaxPool2d,
    Node,
    Op,
    Pad,
    ReLU,
    Scale,
    Slice,
    SpikingWeights,
    Synapse,
)
from .parts import tensors
from .readout import Readout, SpikingMaxPool2d

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIDE = 2**16  # what counts pixels or steps is below it
LARGE = 2.0**64  # numbers of a network are at most that large: products of two of them are finite
CURRENT = 2.0**90  # what a step may bring: float32 adds up more than 2^31 such steps
IMAGE = 2.0**16  # the largest pixel that is reckoned with
EXACT = 2**24  # sums of whole numbers below it are exact in float32


@torch.no_grad()
def check(nodes: Sequence[Node]) -> None:
    """Check settings and tensors of a network; :func:`s_resnet.graph.shapes.shapes` checks shapes.

    Raises:
        InvalidData: a setting has another type or is out of range, a tensor has another type or numbers that are not
            finite or too large, no kernel has the alphabet, or types are mixed; the message names node and setting.
    """
    finite(nodes)
    for node in nodes:
        _check_settings(node, node.op, "")
        if isinstance(node.op, Neuron):
            _check_neuron(node, node.op)
        if isinstance(node.op, SYNAPSES):
            _check_weights(node, node.op)
        if isinstance(node.op, BatchNorm2d) and not bool((node.op.var + node.op.eps > 1 / LARGE).all()):
            raise _invalid(node, "var", "variances of which eps does not keep the root above 0", "positive ones")
    _check_types(nodes)


def _check_settings(node: Node, part: object, above: str) -> None:
    """Every setting of an operation, and of the parts inside it, by itself."""
    for name, rule in _RULES.get(type(part), {}).items():
        value = getattr(part, name)
        if not rule.fits(value):
            raise _invalid(node, f"{above}{name}", _shown(value), rule.expected)
        if rule.kinds and value is not None:
            _check_settings(node, value, f"{above}{name}.")


def parts(kind: type, name: str) -> tuple[type, ...]:
    """The kinds of part that a field of an operation, or of a part of one, may hold; none where it holds a value."""
    rule = _RULES.get(kind, {}).get(name)
    return () if rule is None else rule.kinds


def finite(nodes: Sequence[Node]) -> None:
    """Check the numbers of a network.

    Raises:
        InvalidData: a number is NaN, infinite or too large; the message names the node.
    """
    for node in nodes:
        for name, value in tensors(node.op):
            value, power = value.detach(), 2 if name == "var" else 1  # of a variance the root counts
            # The largest of numbers of which one is NaN is NaN.
            if value.is_floating_point() and value.numel() and not float(value.abs().max()) <= LARGE**power:
                bad = int((~(value.abs() <= LARGE**power)).sum())
                got = f"{bad} of {value.numel()} values NaN, infinite or beyond 2^{64 * power}"
                remedy = "Check the weights of the source network, and convert it again"
                raise InvalidData(message(node.name, name, got, "finite numbers", remedy))


# ---- each setting by itself ----


@dataclass(frozen=True)
class _Rule:
    """Whether a value is what its field holds, and that in words; ``kinds`` of the part that it holds."""

    expected: str
    fits: Callable[[Any], bool]
    kinds: tuple[type, ...] = ()


def _whole(least: int, most: int = SIDE) -> _Rule:
    return _Rule(f"a whole number from {least} to {most}", lambda value: _is_whole(value, least, most))


def _is_whole(value: Any, least: int, most: int = SIDE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _pair(least: int) -> _Rule:
    return _Rule(
        f"two whole numbers from {least} to {SIDE}",
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(_is_whole(v, least) for v in value),
    )


def _number(least: float = -LARGE, most: float = LARGE) -> _Rule:
    return _Rule(f"a number from {least:g} to {most:g}", lambda value: _is_number(value, least, most))


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _choice(*names: str) -> _Rule:
    return _Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _floats(*ndims: int, least: float = -math.inf) -> _Rule:
    words = "numbers" if least == -math.inf else "positive numbers" if least > 0 else "numbers from 0 on"
    return _Rule(
        f"floating-point {words} of {' or '.join(map(str, ndims))} dimensions",
        lambda value: _is_tensor(value, FLOATS, ndims) and not bool((value < least).any()),
    )


def _whole_numbers(dtype: torch.dtype, *ndims: int, least: int = -(2**30), most: int = 2**30) -> _Rule:
    return _Rule(
        f"{dtype} of {' or '.join(map(str, ndims))} dimensions, from {least} to {most}",
        lambda value: _is_tensor(value, (dtype,), ndims) and least <= int(value.min()) and int(value.max()) <= most,
    )


def _is_tensor(value: Any, dtypes: Sequence[torch.dtype], ndims: Sequence[int]) -> bool:
    return isinstance(value, Tensor) and value.dtype in dtypes and value.ndim in ndims and value.numel() > 0


def _part(*kinds: type) -> _Rule:
    return _Rule(" or ".join(kind.__name__ for kind in kinds), lambda value: isinstance(value, kinds), kinds)


def _or_none(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.expected}, or None", lambda value: value is None or rule.fits(value), rule.kinds)


def _either(one: _Rule, other: _Rule) -> _Rule:
    return _Rule(f"{one.expected}, or {other.expected}", lambda value: one.fits(value) or other.fits(value))


def _is_padding(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(_is_whole(v, -SIDE) for v in value)


def _is_slices(value: Any) -> bool:
    if not isinstance(value, tuple):
        return False
    ends = _Rule("", lambda v: v is None or _is_whole(v, -SIDE))
    steps = _Rule("", lambda v: v is None or _is_whole(v, 1))
    return all(
        isinstance(part, tuple) and len(part) == 3 and ends.fits(part[0]) and ends.fits(part[1]) and steps.fits(part[2])
        for part in value
    )


_FLAG = _Rule("true or false", lambda value: isinstance(value, bool))
_POSITIVE = 1 / LARGE
_PARTS = {"spiking": _or_none(_part(SpikingWeights)), "integer": _or_none(_part(IntegerWeights))}
_WINDOWS = {"kernel": _pair(1), "stride": _pair(1), "padding": _pair(0), "ceil_mode": _FLAG}
_RULES: Mapping[type, Mapping[str, _Rule]] = {
    Input: {"grid": _whole(0, 2**12)},
    Conv2d: {
        "weight": _floats(4),
        "bias": _or_none(_floats(1)),
        "stride": _pair(1),
        "padding": _pair(0),
        "dilation": _pair(1),
        "groups": _whole(1),
        **_PARTS,
    },
    Linear: {
        "weight": _floats(2),
        "bias": _or_none(_floats(1)),
        **_PARTS,
    },
    Scale: {"weight": _floats(0, 1), **_PARTS},
    SpikingWeights: {"weight": _or_none(_floats(0, 1, 2, 4)), "gain": _number()},
    IntegerWeights: {
        "weight": _either(_whole_numbers(torch.int8, 2, 4), _whole_numbers(torch.int32, 1)),
        "bias": _or_none(_whole_numbers(torch.int32, 1)),
        "step": _number(),
        "grid": _whole(0, 2**12),
    },
    Affine: {"weight": _floats(0, 1), "bias": _floats(0, 1)},
    BatchNorm2d: {
        "weight": _floats(1),
        "bias": _floats(1),
        "mean": _floats(1),
        "var": _floats(1, least=0),
        "eps": _number(0, 1),
    },
    ReLU: {"limit": _or_none(_floats(0, 1, least=_POSITIVE))},
    QCFS: {"threshold": _floats(0, least=_POSITIVE), "quantization_levels": _whole(1)},
    MaxPool2d: {**_WINDOWS, "dilation": _pair(1)},
    SpikingMaxPool2d: {**_WINDOWS, "dilation": _pair(1)},
    AvgPool2d: {**_WINDOWS, "count_include_pad": _FLAG},
    AdaptiveAvgPool2d: {"output_size": _pair(1)},
    Pad: {"padding": _Rule("whole numbers", _is_padding)},
    Slice: {"slices": _Rule("(start, stop, step) for each dimension, each step from 1 on", _is_slices)},
    Neuron: {
        "threshold": _floats(0, 1, least=_POSITIVE),
        "initial_potential": _number(-SIDE, SIDE),
        "reset": _choice("subtract", "zero"),
        "decay": _number(0, 1),
        "correction": _or_none(_floats(0, 1, 2)),
        "integer": _or_none(_part(IntegerNeuron)),
        "schedule": _choice(*SCHEDULES),
        "scale": _or_none(_floats(0, 1, least=_POSITIVE)),
        "amplitude": _or_none(_number()),
        "quantization_levels": _whole(0),
        "limit": _or_none(_floats(0, 1, least=_POSITIVE)),
        "spikes": _part(*SPIKES),
        "surrogate": _or_none(_part(Surrogate)),
    },
    IntegerNeuron: {
        "threshold": _whole_numbers(torch.int32, 1, least=1, most=SIDE),
        "correction": _or_none(_whole_numbers(torch.int32, 0, 1, 2)),
    },
    Binary: {},
    Signed: {},
    Amplitudes: {"count": _whole(2, MOST), "signed": _FLAG},
    Differential: {"count": _whole(1, MOST)},
    Copies: {"count": _Rule(" or ".join(map(str, COPIES)), lambda value: _is_whole(value, 1) and value in COPIES)},
    MultiThreshold: {"thresholds": _floats(1, least=_POSITIVE)},
    Surrogate: {"shape": _choice(*SURROGATES), "width": _number(_POSITIVE), "detach_reset": _FLAG},
    Readout: {
        "scale": _floats(0, 1),
        "mode": _choice("current", "spikes"),
        "initial_potential": _number(-SIDE, SIDE),
        "weights": _or_none(_floats(1, least=_POSITIVE)),
        "correction": _or_none(_floats(1)),
    },
}


# ---- what has to go together ----


def _check_neuron(node: Node, op: Neuron) -> None:
    """That several thresholds ascend, and that no step sends more than the limit, up to rounding."""
    if isinstance(op.spikes, MultiThreshold) and not bool((op.spikes.thresholds.diff() > 0).all()):
        raise _invalid(node, "spikes.thresholds", f"{op.spikes.thresholds.tolist()}", "ascending ones")
    if (limit := op.limit) is None:
        return
    sent = op.max_emission * (op.threshold if op.amplitude is None else torch.full_like(limit, abs(op.amplitude)))
    if sent.ndim and limit.ndim and sent.shape != limit.shape:
        raise _invalid(node, "limit", list(limit.shape), f"one number, or {list(sent.shape)} as the threshold")
    if not bool((sent <= limit * (1 + 8 * torch.finfo(limit.dtype).eps)).all()):
        expected = f"at least {float(sent.max()):g}, which a step sends"
        raise _invalid(node, "limit", f"{float(limit.min()):g}", expected)


def _check_weights(node: Node, op: Synapse) -> None:
    """That what stands for the weight has its shape, belongs to such a synapse, and sums of whole numbers are exact."""
    for name, part in (("spiking.weight", op.spiking), ("integer.weight", op.integer)):
        value = None if part is None else part.weight
        if value is not None and not (value.ndim < 2 if isinstance(op, Scale) else value.shape == op.weight.shape):
            raise _invalid(node, name, list(value.shape), f"{list(op.weight.shape)}, as the weight")
    own = op.integer
    if own is None:
        return
    wanted = torch.int32 if isinstance(op, Scale) else torch.int8
    if own.weight.dtype != wanted:
        raise _invalid(node, "integer.weight", own.weight.dtype, str(wanted))
    if not isinstance(op, Conv2d) and (own.bias is not None or own.grid):
        raise _invalid(node, "integer", f"a bias or a grid of a {type(op).__name__}", "none")
    if not isinstance(op, Linear) and own.step != 1:
        raise _invalid(node, "integer.step", own.step, "1, that of the neurons that read it")


def _check_types(nodes: Sequence[Node]) -> None:
    """One type of floating-point numbers; whole numbers in all layers or in none; one grid."""
    found: dict[torch.dtype, str] = {}
    for node in nodes:
        for name, value in tensors(node.op):
            if value.is_floating_point():
                found.setdefault(value.dtype, f"{node.name}.{name}")
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        got = f"{one} at {first} and {other} at {second}"
        raise InvalidData(message("graph", "", got, "one type", "Convert it with to()"))
    if any(isinstance(node.op, Neuron) and node.op.integer is not None for node in nodes):
        _check_integer(nodes)
        return
    for node in nodes:
        if getattr(node.op, "integer", None) is not None:
            raise _invalid(node, "integer", "whole numbers in some layers alone", "them in all, or in none")


def _check_integer(nodes: Sequence[Node]) -> None:
    """That whole numbers meet whole numbers alone: the network is one that quantize_weights makes."""
    kinds = {node.name: node.op for node in nodes}
    users = {node.name: [kinds[user.name] for user in nodes if node.name in user.inputs] for node in nodes}
    most = max(op.max_emission for op in kinds.values() if isinstance(op, Neuron))
    for node in nodes:
        op, sources = node.op, [kinds[name] for name in node.inputs]
        if isinstance(op, Neuron | Conv2d | Scale) and op.integer is None:
            raise _invalid(node, "integer", "none in a network of whole numbers", "them in all layers")
        if isinstance(op, Neuron) and not all(isinstance(source, Conv2d | Scale | MaxPool2d) for source in sources):
            raise _invalid(node, "inputs", "others", "convolutions, shortcut synapses and max-pools of such")
        if isinstance(op, MaxPool2d) and not isinstance(sources[0], Conv2d | Scale | MaxPool2d):
            raise _invalid(node, "inputs", "others", "a synapse or a max-pool")
        if isinstance(op, Conv2d) and op.integer is not None:
            images = isinstance(sources[0], Input)
            gated = isinstance(sources[0], SpikingMaxPool2d) and all(isinstance(u, Neuron) for u in users[node.name])
            grid = op.integer.grid
            rows = op.integer.weight.to(torch.int64).abs().flatten(1).sum(1)
            reach = int(rows.max()) * (LARGEST_PIXEL * grid or most)
            if reach >= EXACT:
                raise _invalid(node, "integer.weight", f"whole numbers whose sums reach {reach}", f"below {EXACT}")
            if images != bool(grid) or not (images or gated or isinstance(sources[0], Neuron)):
                raise _invalid(node, "grid", grid, "that of the images where it reads them, else 0 and spikes")
            if isinstance(sources[0], Input) and grid != sources[0].grid:
                raise _invalid(node, "grid", grid, f"{sources[0].grid}, that of the images")


@torch.no_grad()
def check_reach(nodes: Sequence[Node]) -> None:
    """Check that a step's current stays in the range of float32, with images within +-IMAGE; shapes are checked before.

    Raises:
        InvalidData: it could leave the range.
    """
    if not any(isinstance(node.op, Neuron) for node in nodes):
        return  # an analog network's worst case means nothing: nothing there is reset
    reach: dict[str, float] = {}
    for node in nodes:
        below = sum(reach.get(name, 0.0) for name in node.inputs)
        reach[node.name] = _reach(node.op, below)
        if not (below <= CURRENT and reach[node.name] <= CURRENT):
            got = f"weights with which a step can bring {max(below, reach[node.name]):.3g}"
            expected = f"at most {CURRENT:.3g}, so that sums stay finite"
            raise InvalidData(message(node.name, "", got, expected, "Calibrate it again"))


def _reach(op: Op, below: float) -> float:
    """The largest size of a value that an operation makes of values of size ``below``."""
    if isinstance(op, Input):
        return IMAGE * max(1, op.grid)
    if isinstance(op, SYNAPSES):
        weight = forms.synapse(op).weight
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).abs()
        bias = getattr(op, "bias", None)
        largest = float(weight.flatten(1).sum(1).max() if weight.ndim > 1 else weight.max())
        return largest * below + (0.0 if bias is None else float(bias.double().abs().max()))
    if isinstance(op, Affine):
        return float((op.weight.double().abs() * below + op.bias.double().abs()).max())
    if isinstance(op, BatchNorm2d):
        slope = (op.weight.double() / (op.var.double() + op.eps).sqrt()).abs()
        return float((slope * (below + op.mean.double().abs()) + op.bias.double().abs()).max())
    if isinstance(op, Neuron):
        sent = float(op.threshold.max()) if op.amplitude is None else abs(op.amplitude)
        mean = 64 if isinstance(op.spikes, Differential) else 1  # of T steps, which grows with log T
        return op.max_emission * sent * mean
    return float(op.threshold) if isinstance(op, QCFS) else below


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}" if value.numel() else "an empty tensor"
    return text if len(text := repr(value)) <= 80 else f"{text[:77]}..."


def _invalid(node: Node, name: str, got: object, expected: str) -> InvalidData:
    return InvalidData(message(node.name, name, got, expected, "Convert the network again"))
