"""A spiking Graph as an ``nn.Module`` for gradient descent: the same simulation, with surrogate gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arguments import as_maps, whole_number
from ..errors import InvalidData, message
from ..kernels.surrogate.fire import fire
from ..kernels.surrogate.reference import Firing
from .alphabet import Binary, MultiThreshold
from .engine import freed
from .graph import Graph, check_spiking
from .neuron import Neuron
from .ops import SYNAPSES, Affine, BatchNorm2d, Conv2d, Linear, Node, Op, Scale, SpikingWeights
from .parts import tensors
from .readout import Readout, SpikingMaxPool2d

TUNABLE = "s-resnet, s-resnet-v0, calibrated, calibrated-constant, calibrated-lagged or phased"


class GraphModule(nn.Module):
    """The network over ``timesteps`` steps: images ``[B, C, H, W]``, or ``[T, B, C, H, W]``, to the answer ``[B, N]``.

    The forward pass is the simulation itself, spike by spike, and equals ``graph(images, timesteps)``. Time is folded
    into the batch, ``[T * B, *]``, and values that are the same at every step are computed once.

    In the backward pass a spike has the surrogate gradient of :func:`s_resnet.kernels.surrogate.fire.fire`. For a
    converted network this is by default the rectangle of width 1 (in thresholds), and the gradient flows through the
    reset. With reset by subtraction it is then conserved like the charge, ``ds + dw = du``: a change of the charge
    reaches one spike, or none if the neuron stays silent or fires at every step. If all charge arrives before the first
    spike (recipe phased), this is the derivative of ``clip(charge, 0, T)``. With the reset detached one change would
    reach up to T spikes in every layer. A directly trained network keeps the gradient that it was trained with.

    Parameters are named by node. A converted network has the ``weight`` of every synapse in its spiking form (gain and
    earlier tuning folded in), and the ``correction`` of every neuron layer and of the readout in place of biases. A
    directly trained network has ``weight`` and ``bias``.

    Raises:
        InvalidData: spikes are not 0 and 1 with reset as above (signed, multi-level, differential or integer), the
            network is not normalized or is scored by spike counts, or ``timesteps`` is below 1.
    """

    def __init__(
        self,
        graph: Graph,
        timesteps: int,
        surrogate: str = "rectangle",
        width: float = 1.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        timesteps = whole_number(timesteps, "fine-tuning", "timesteps")
        check_spiking(graph, "fine-tuning")
        graph = graph.at(timesteps)
        self.source, self.running, self.timesteps = graph, graph.spiking(), timesteps
        self.network = nn.Module()  # one part of it per node
        self.gradient = {"surrogate": surrogate, "width": width, "detach_reset": detach_reset}
        self.freed = freed(graph.nodes, {})
        self.places: dict[str, nn.Module] = {}
        for node in graph.nodes:
            _check(node.name, node.op)
        for node in graph.nodes:
            learned, fixed = _tensors(graph, self.running[node.name])
            if learned or fixed:
                place = self.places[node.name] = submodule(self.network, node.name)
                for name, value in learned.items():
                    place.register_parameter(name, nn.Parameter(value.detach().clone()))
                for name, value in fixed.items():
                    place.register_buffer(name, value.detach().clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The answer after T steps."""
        images = as_maps(images)
        static = self.source.static if images.ndim == 4 else frozenset()
        values: dict[str, Tensor] = {}  # [B, *] of static nodes, [T * B, *] of the others
        for index, node in enumerate(self.running.nodes):
            op = self._op(node)
            if not node.inputs:
                value = op.run(images if images.ndim == 4 else images.flatten(0, 1))
            elif node.name in static:
                value = op.run(*(values[name] for name in node.inputs))
            elif isinstance(op, Neuron):
                value = self._fire(op, [self._in_time(values[name], name in static) for name in node.inputs])
            elif isinstance(op, Readout):
                value = self._answer(op, self._in_time(values[node.inputs[0]], node.inputs[0] in static))
            elif isinstance(op, SpikingMaxPool2d):
                spikes = self._in_time(values[node.inputs[0]], node.inputs[0] in static)
                value = op.advance([spikes.expand(self.timesteps, *spikes.shape[1:])], None)[0].flatten(0, 1)
            else:
                value = op.run(*(self._folded(values[name], name in static) for name in node.inputs))
            values[node.name] = value
            for name in self.freed[index]:
                del values[name]
        return values[self.source.nodes[-1].name]

    def _op(self, node: Node) -> Any:
        """The operation with what has been learned so far, where this module is."""
        if node.name not in self.places:
            return node.op
        place = self.places[node.name]
        tensors = {**dict(place.named_parameters(recurse=False)), **dict(place.named_buffers(recurse=False))}
        return replace(node.op, **tensors)  # type: ignore[type-var]

    def _in_time(self, value: Tensor, constant: bool) -> Tensor:
        """``[T, B, *]``, or ``[1, B, *]`` of what is the same at every step."""
        return value[None] if constant else value.view(self.timesteps, -1, *value.shape[1:])

    def _folded(self, value: Tensor, constant: bool) -> Tensor:
        return value.expand(self.timesteps, *value.shape).flatten(0, 1) if constant else value

    def _fire(self, op: Neuron, currents: Sequence[Tensor]) -> Tensor:
        """What a neuron layer sends, ``[T * B, *]``."""
        total = currents[0]
        for current in currents[1:]:
            total = total + current
        correction = op.bias_current(0, self.timesteps, total.ndim)
        if correction is not None:
            total = total + correction
        total = _delayed(op.schedule, total.expand(self.timesteps, *total.shape[1:]))
        thresholds = _thresholds(op)
        gradient = self.gradient
        if op.surrogate is not None:
            shape, width, detach_reset = op.surrogate.shape, op.surrogate.width, op.surrogate.detach_reset
            gradient = {"surrogate": shape, "width": width, "detach_reset": detach_reset}
        firing = Firing(
            thresholds,
            decay=op.decay,
            reset=op.reset,
            initial=op.initial_potential * thresholds[0],
            **gradient,  # type: ignore[arg-type]
        )
        spikes = fire(total, firing).flatten(0, 1)
        amplitude = thresholds[0] if op.amplitude is None else op.amplitude
        return spikes if amplitude == 1 else spikes * amplitude

    def _answer(self, op: Readout, currents: Tensor) -> Tensor:
        """The mean of the currents ``[T, B, N]``, weighted, in the units of the source's logits."""
        weights = torch.ones(self.timesteps, dtype=currents.dtype, device=currents.device)
        if op.weights is not None:
            at = torch.arange(self.timesteps, device=currents.device).clamp_max(len(op.weights) - 1)
            weights = op.weights.to(currents.dtype)[at]
        currents = currents.expand(self.timesteps, *currents.shape[1:])
        answer = torch.einsum("t,tbn->bn", weights / weights.sum(), currents) * op.scale
        return answer if op.correction is None else answer + op.correction

    def graph(self) -> Graph:
        """The Graph with what has been learned; of a converted network the analog run stays the source's."""
        return replace(self.source, nodes=tuple(replace(node, op=self._tuned(node)) for node in self.source.nodes))

    def _tuned(self, node: Node) -> Op:
        if node.name not in self.places:
            return node.op
        names = dict(self.places[node.name].named_parameters(recurse=False))
        home = next(value.device for _, value in tensors(node.op))
        learned = {name: value.detach().to(home, copy=True) for name, value in names.items()}
        op = node.op
        if isinstance(op, SYNAPSES):
            if not self.source.trained:
                return replace(op, spiking=SpikingWeights(learned["weight"]))
            op = replace(op, spiking=None)
        return replace(op, **learned)  # type: ignore[type-var]


def submodule(root: nn.Module, path: str) -> nn.Module:
    """The part of ``root`` at this dotted path; empty ones are made where there is none."""
    for name in path.split("."):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root


def _check(name: str, op: Op) -> None:
    """Check that an operation has a gradient here.

    Raises:
        InvalidData: it has none.
    """
    if isinstance(op, Neuron):
        problem = None
        if op.integer is not None:
            problem = "an integer network", f"recipe {TUNABLE}, in float32"
        elif not isinstance(op.spikes, Binary | MultiThreshold):
            problem = f"a {op.alphabet} neuron", f"spikes of 0 and 1, by recipe {TUNABLE}"
        elif bool((op.threshold != op.threshold.flatten()[0]).any()):
            problem = "thresholds that differ by channel", "a normalized network, as convert makes it"
        elif isinstance(op.spikes, MultiThreshold) and op.initial_potential:
            problem = f"several thresholds from v(0) = {op.initial_potential}", "v(0) = 0"
        if problem:
            remedy = f"Convert with recipe {TUNABLE}, or train a new network"
            raise InvalidData(message(name, "cannot be fine-tuned", problem[0], problem[1], remedy))
    elif isinstance(op, Readout) and op.mode != "current":
        expected, remedy = "the classifier's current", f"Convert with recipe {TUNABLE}"
        raise InvalidData(message(name, "cannot be fine-tuned", "a score by spike count", expected, remedy))


def _tensors(graph: Graph, node: Node) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is learned of an operation of the running network, and what it also needs, by field."""
    op = node.op
    if isinstance(op, Scale):
        return {"weight": op.weight}, {}
    if isinstance(op, Conv2d | Linear):
        weight = {"weight": op.weight}
        bias = {} if op.bias is None else {"bias": op.bias}
        return ({**weight, **bias}, {}) if graph.trained else (weight, bias)
    if isinstance(op, Affine):
        return {}, {"weight": op.weight, "bias": op.bias}
    if isinstance(op, BatchNorm2d):
        return {}, {"weight": op.weight, "bias": op.bias, "mean": op.mean, "var": op.var}
    if isinstance(op, Readout):
        fixed = {"scale": op.scale, **({} if op.weights is None else {"weights": op.weights})}
        return _correction(graph, node, op), fixed
    return (_correction(graph, node, op), {}) if isinstance(op, Neuron) else ({}, {})


def _correction(graph: Graph, node: Node, op: Neuron | Readout) -> dict[str, Tensor]:
    if graph.trained:
        return {} if op.correction is None else {"correction": op.correction}
    if op.correction is not None and op.correction.ndim:
        return {"correction": op.correction}
    weight = _before(graph, node.name).weight
    zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    return {"correction": zeros if op.correction is None else zeros + op.correction}


def _before(graph: Graph, name: str) -> Conv2d | Linear:
    """A synapse whose channels are those of this node."""
    for before in graph[name].inputs:
        op = graph[before].op
        if isinstance(op, Conv2d | Linear):
            return op
    for before in graph[name].inputs:
        if not isinstance(graph[before].op, Neuron):
            return _before(graph, before)
    got, remedy = "no synapse before it", "Convert the source network again"
    raise InvalidData(message(name, "", got, "a convolution or a classifier", remedy))


def _thresholds(op: Neuron) -> tuple[float, ...]:
    """The thresholds as Python numbers; reading them from a GPU at every call would stall it."""
    return tuple(float(threshold.flatten()[0]) for threshold in op.thresholds)


def _delayed(schedule: str, current: Tensor) -> Tensor:
    """Currents ``[T, B, *]`` as they count for the membrane, at the first step at which the layer may fire."""
    if schedule == "lagged":
        later = torch.cat([current[1:], torch.zeros_like(current[:1])])
        return torch.cat([(current[0] + later[0])[None], later[1:]])
    if schedule == "phased":
        return torch.cat([current.sum(0, keepdim=True), torch.zeros_like(current[1:])])
    return current
