"""The network as plain arrays and one JSON text in an ``.npz`` file, for people who write RTL or code for a chip."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidData, message
from ..files import replacing
from ..graph import engine, forms
from ..graph.alphabet import Differential, MultiThreshold
from ..graph.fold import folded
from ..graph.forms import GridInput
from ..graph.graph import Graph, check_spiking
from ..graph.neuron import Neuron
from ..graph.ops import (
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Op,
    Pad,
    ReLU,
    Scale,
    Slice,
)
from ..graph.readout import Readout, SpikingMaxPool2d
from ..version import __version__
from .copies import split_copies

FORMAT, FIRING = 1, 2  # 2 if a neuron has several thresholds, which readers of 1 do not know
Entry = tuple[dict[str, Any], dict[str, Tensor | None]]  # settings, arrays

# The meaning of the numbers, stored in the file. docs/reference/npz.md explains it at length, with code.
SEMANTICS = {
    "time": "T steps; the images are a constant input. Nodes are in execution order, the last gives the logits. In a "
    "step every node computes from the values of the same step: there is no transport delay.",
    "Input": "the images [B, C, H, W], preprocessed. With grid g > 0: x = clip(round(g x), -8 g, 8 g), round half to "
    "even.",
    "Conv2d": "zero padding [rows, columns] on both sides; + bias[C]. With grid g > 0, on the constant images: "
    "round(conv(x) / g) + bias.",
    "Linear": "W x + bias; with integer weights weight_step * (W x) + bias.",
    "Scale": "weight[c] * x[:, c], or one weight for all channels.",
    "Pad": "zeros before and after, one pair per axis after the batch.",
    "Slice": "start, stop, step per axis after the batch, null for the default.",
    "Neuron": "I[t] is the sum of its inputs and its correction. u = decay * v + I[t]; k = 1 if u >= threshold else 0; "
    "v = u - threshold * k, or 0 where it fired with reset 'zero'; v starts at v0, nothing clamps it. It sends "
    "emission * k.",
    "firing": "K thresholds in place of the one, each with a membrane of its own, which starts at initial_potential of "
    "it; all get the same I[t], each fires and resets by itself, and k is the number of those that fired.",
    "alphabet": "levels n > 1 or signed: k = clip(floor(u / threshold), low, 2^n - 1), with low = 0, or for signed "
    "neurons -min(2^n - 1, what it has emitted so far).",
    "differential": "m is the mean of y so far, 0 at first; u = v + I[t] - threshold * m; "
    "k = clip(floor(u / threshold), -(2^n - 1), 2^n - 1), then at least ceil(-(sum of y so far + m)); "
    "v = u - threshold * k; y = m + k is what it sends, in thresholds.",
    "schedule": "streaming: as above. lagged: it takes I[1] before it first fires, so that in its step t it adds "
    "I[t + 1], and nothing in step T. phased: it takes I[1] ... I[T] before it first fires, then fires T times. Nodes "
    "after it count their steps from its first.",
    "correction": "current [1] or [C] in every step; correction_rows [R, C]: row t in step t, and correction_after in "
    "all steps after R.",
    "SpikingMaxPool2d": "counts c_in += x; z = maxpool(c_in), padding counts as minus infinity; it sends z - z of the "
    "step before, 0 before the first.",
    "Readout": "mode current: scale * sum(w[t] I[t]) / sum(w[t]) + correction, w the weights (1 without), the last one "
    "for all steps after. mode spikes: v += I[t], a spike where v >= 1, which subtracts 1; v starts at v0; "
    "scale / T * (spike count + softmax(v)).",
    "integer": "threshold, v0, corrections and the currents of convolutions and scales are whole numbers; membranes "
    "fit 32 bits as long as T * reach < 2^31.",
}


def export_npz(snn: Graph, path: str | os.PathLike[str]) -> None:
    """Write the spiking network: arrays named ``node/field``, and the graph as JSON in the array ``graph`` (UTF-8).

    ``np.load(path, allow_pickle=False)`` reads it; ``json.loads(bytes(file["graph"]))`` gives the format's version, the
    nodes in execution order (name, op, inputs, settings, arrays), what they mean in words (``semantics``), and the
    provenance. Arrays are float32; in an integer network weights are int8, and thresholds, biases, initial potentials,
    corrections and shortcut weights int32. Compensation factors and weights for spiking runs are already in the
    weights: the file holds the spiking network, not its source. Neurons that stand for several are written one by one
    (:func:`s_resnet.export.split_copies`). docs/reference/npz.md lists every field and simulates
    the file with numpy alone.

    Args:
        snn: a converted or directly trained network; of one for several T what it has without a choice
            (``snn.at(8)`` chooses).
        path: the file to write, whole or not at all.

    Raises:
        InvalidData: the network has no neurons, or is in double precision.
        SResNetError: the file cannot be written.
    """
    check_spiking(snn, "export")
    snn = split_copies(snn)
    if any(isinstance(node.op, Affine) for node in snn.nodes):
        snn = folded(snn)
    shape = snn.provenance.input_shape
    shapes = {} if shape is None else dict(snn.to("cpu").activations(torch.zeros(1, *shape)))
    arrays: dict[str, Any] = {}
    nodes = []
    for node in (snn if snn.is_integer else snn.spiking()).nodes:
        settings, tensors = _ENTRIES[type(snn[node.name].op)](node.op)
        own = {name: _array(node, tensor) for name, tensor in tensors.items() if tensor is not None}
        arrays.update({f"{node.name}/{name}": value for name, value in own.items()})
        entry = {"name": node.name, "op": type(snn[node.name].op).__name__, "inputs": node.inputs, "settings": settings}
        size = list(shapes[node.name].shape[1:]) if shapes else None
        nodes.append({**entry, "arrays": sorted(own), "shape": size})
    header = {
        "format": FIRING if any(name.endswith("/firing") for name in arrays) else FORMAT,
        "s_resnet": __version__,
        "integer": snn.is_integer,
        "alphabet": snn.alphabet,
        "reach": engine.prepare(snn, "exact").max_membrane_step,
        "input_shape": shape,
        "nodes": nodes,
        "semantics": SEMANTICS,
        "provenance": snn.provenance.to_json(),
    }
    arrays["graph"] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def _array(node: Node, tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.float64:
        raise InvalidData(message(node.name, "", "a network in float64", "float32", "Convert a float32 model"))
    return tensor.detach().cpu().contiguous().numpy()


def _conv(op: Op) -> Entry:
    assert isinstance(op, Conv2d)
    settings = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
    if op.integer is not None:
        return {**settings, "grid": op.integer.grid}, {"weight": op.integer.weight, "bias": op.integer.bias}
    return {**settings, "grid": 0}, {"weight": op.weight, "bias": op.bias}


def _linear(op: Op) -> Entry:
    assert isinstance(op, Linear)
    if op.integer is not None:
        return {"weight_step": op.integer.step}, {"weight": op.integer.weight, "bias": op.bias}
    return {"weight_step": 1.0}, {"weight": op.weight, "bias": op.bias}


def _scale(op: Op) -> Entry:
    assert isinstance(op, Scale)
    return {}, {"weight": (op.weight if op.integer is None else op.integer.weight).reshape(-1)}


def _batch_norm(op: Op) -> Entry:
    assert isinstance(op, BatchNorm2d)
    return {"eps": op.eps}, {"weight": op.weight, "bias": op.bias, "mean": op.mean, "var": op.var}


def _pool(op: Op) -> Entry:
    assert isinstance(op, MaxPool2d | SpikingMaxPool2d)
    names = ("kernel", "stride", "padding", "dilation", "ceil_mode")
    return {name: getattr(op, name) for name in names}, {}


def _avg_pool(op: Op) -> Entry:
    assert isinstance(op, AvgPool2d)
    names = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad")
    return {name: getattr(op, name) for name in names}, {}


def _adaptive(op: Op) -> Entry:
    assert isinstance(op, AdaptiveAvgPool2d)
    return {"output_size": op.output_size}, {}


def _pad(op: Op) -> Entry:
    """Padding as one pair per axis after the batch; torch's order has the last axis first."""
    assert isinstance(op, Pad)
    pairs = [op.padding[i : i + 2] for i in range(0, len(op.padding), 2)][::-1]
    return {"padding": [(0, 0)] * (3 - len(pairs)) + pairs}, {}


def _slice(op: Op) -> Entry:
    assert isinstance(op, Slice)
    return {"slices": [*op.slices, *[(None, None, None)] * (3 - len(op.slices))]}, {}


def _neuron(op: Op) -> Entry:
    assert isinstance(op, Neuron)
    running = forms.integer(op)
    assert isinstance(running, Neuron)
    threshold, correction = running.threshold.reshape(-1), running.correction
    start = op.initial_potential * threshold
    rows = correction if correction is not None and correction.ndim == 2 else None
    after = None if rows is None else running.bias_current(len(rows), 1, 3)
    arrays = {
        "threshold": threshold,
        "firing": op.spikes.thresholds if isinstance(op.spikes, MultiThreshold) else None,
        "v0": start if op.integer is None else start.round().to(torch.int32),
        "emission": running.scale_output(torch.ones_like(op.threshold)).reshape(-1),
        "scale": None if op.scale is None else op.scale.reshape(-1),
        "correction": None if correction is None or rows is not None else correction.reshape(-1),
        "correction_rows": rows,
        "correction_after": None if after is None else after.reshape(-1),
    }
    settings = {name: getattr(op, name) for name in ("reset", "decay", "schedule", "initial_potential")}
    differential = isinstance(op.spikes, Differential)
    alphabet = {"levels": op.spikes.amplitudes, "signed": op.spikes.signed, "differential": differential}
    return settings | alphabet, arrays


def _readout(op: Op) -> Entry:
    assert isinstance(op, Readout)
    arrays = {"scale": op.scale.reshape(-1), "weights": op.weights, "correction": op.correction}
    return {"mode": op.mode, "v0": op.initial_potential}, arrays


def _input(op: Op) -> Entry:
    assert isinstance(op, Input | GridInput)
    return {"grid": op.grid}, {}


def _relu(op: Op) -> Entry:
    assert isinstance(op, ReLU)
    if op.limit is not None:
        got, remedy = "a ReLU with a limit beside spiking layers", "Export it with export_torch"
        raise InvalidData(message("export", "", got, "one without, as the format has no limit", remedy))
    return {}, {}


def _nothing(op: Op) -> Entry:
    return {}, {}


_ENTRIES: dict[type, Callable[[Op], Entry]] = {
    Input: _input,
    Conv2d: _conv,
    Linear: _linear,
    Scale: _scale,
    BatchNorm2d: _batch_norm,
    ReLU: _relu,
    Add: _nothing,
    Flatten: _nothing,
    MaxPool2d: _pool,
    SpikingMaxPool2d: _pool,
    AvgPool2d: _avg_pool,
    AdaptiveAvgPool2d: _adaptive,
    Pad: _pad,
    Slice: _slice,
    Neuron: _neuron,
    Readout: _readout,
}
