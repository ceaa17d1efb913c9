"""Run a NIR file step by step in plain torch: every node after its inputs, whatever the file's order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArtifact, message
from .nir import EXTRA, require

# One step of a neuron layer that keeps its memory: currents [B, C, H, W] in, spikes of the same shape out.
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """An IF or LIF node.

    Attributes:
        name: the node's name in the network that it was exported from.
        threshold: ``[C, H, W]`` or one number.
        start: the membrane at the start, likewise.
        reset: ``"subtract"`` or ``"zero"``.
        decay: factor on the membrane per step, below 1 for a LIF node.
    """

    name: str
    threshold: Tensor
    start: Tensor
    reset: str
    decay: float = 1.0


def integrate_and_fire(layer: Layer) -> Step:
    """A neuron layer in plain torch: ``v = decay v + I``, a spike where ``v >= threshold``, then the reset."""
    v = layer.start

    def step(current: Tensor) -> Tensor:
        nonlocal v
        v = layer.decay * v + current
        spikes = (v >= layer.threshold).to(current.dtype)
        v = v - spikes * layer.threshold if layer.reset == "subtract" else v * (1 - spikes)
        return spikes

    return step


@dataclass(frozen=True)
class Program:
    """A NIR graph in execution order.

    Attributes:
        nodes: name, NIR node, and the names of its inputs; the last one is the output.
        layers: the IF and LIF nodes, by name.
        metadata: the graph's metadata.
        dtype: the type to compute in.
    """

    nodes: tuple[tuple[str, Any, tuple[str, ...]], ...]
    layers: Mapping[str, Layer]
    metadata: Mapping[str, Any]
    dtype: torch.dtype = torch.float32

    def to(self, dtype: torch.dtype) -> Program:
        """The same program computed in ``dtype``."""
        layers = {
            name: replace(layer, threshold=layer.threshold.to(dtype), start=layer.start.to(dtype))
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers, dtype=dtype)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of one image."""
        return tuple(int(n) for n in self.nodes[0][1].input_type["input"])

    def run(
        self, images: Tensor, timesteps: int, neuron: Callable[[Layer], Step] = integrate_and_fire
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Run the program step by step.

        Args:
            images: ``[B, C, H, W]``, the same at every step.
            timesteps: T.
            neuron: makes the neuron layers, each with a fresh memory.

        Yields:
            The output ``[B, N, 1, 1]`` of a step, and the spikes ``[B, C, H, W]`` of every IF node by original name.
        """
        steps = {name: neuron(layer) for name, layer in self.layers.items()}
        for _ in range(timesteps):
            values: dict[str, Tensor] = {}
            for name, node, inputs in self.nodes:
                x = sum((values[before] for before in inputs[1:]), values[inputs[0]]) if inputs else images
                values[name] = steps[name](x).to(x) if name in steps else _apply(node, x)
            yield values[self.nodes[-1][0]], {layer.name: values[name] for name, layer in self.layers.items()}


def read_nir(path: str | os.PathLike[str]) -> Program:
    """Read a file of Input, Conv2d, IF, LIF and Output nodes.

    Raises:
        InvalidArtifact: the file cannot be read, or has other nodes.
        BackendUnavailable: nir is not installed.
    """
    nir = require("nir", EXTRA)
    try:
        graph = nir.read(Path(path))
        kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        expected = f"a file of nir {nir.version}"
        remedy = "Export it again, or upgrade nir: a network that resets to zero needs a newer version than 1.0.4"
        raise InvalidArtifact(message(f"{path}", "cannot be read", reason, expected, remedy)) from error
    for name, kind in kinds.items():
        if kind not in ("Input", "Conv2d", "IF", "LIF", "Output"):
            expected = "Input, Conv2d, IF, LIF, Output, as export writes them"
            remedy = "Use the engine that wrote the file"
            raise InvalidArtifact(message(f"{path}: {name}", "", f"a {kind} node", expected, remedy))
    order = _ordered(graph, path)
    if [kinds[order[0][0]], kinds[order[-1][0]]] != ["Input", "Output"] or [*kinds.values()].count("Input") != 1:
        got = "no single way from one input to one output"
        raise InvalidArtifact(message(f"{path}", "", got, "one", "Export it again"))
    reset = str(graph.metadata.get("reset", "subtract"))
    layers = {name: _layer(name, node, reset, path) for name, node, _ in order if kinds[name] in ("IF", "LIF")}
    return Program(order, layers, dict(graph.metadata))


def _ordered(graph: Any, path: str | os.PathLike[str]) -> tuple[tuple[str, Any, tuple[str, ...]], ...]:
    inputs: dict[str, tuple[str, ...]] = dict.fromkeys(graph.nodes, ())
    for before, after in graph.edges:
        inputs[after] = (*inputs[after], before)
    order: dict[str, None] = {}
    while len(order) < len(inputs):
        ready = [name for name, needed in inputs.items() if name not in order and all(n in order for n in needed)]
        if not ready:
            raise InvalidArtifact(message(f"{path}", "", "a cycle of nodes", "none", "Export it again"))
        order |= dict.fromkeys(ready)
    # The output comes last, even if other nodes are as far from the input.
    names = sorted(order, key=lambda name: type(graph.nodes[name]).__name__ == "Output")
    return tuple((name, graph.nodes[name], inputs[name]) for name in names)


def _layer(name: str, node: Any, reset: str, path: str | os.PathLike[str]) -> Layer:
    threshold = torch.from_numpy(node.v_threshold)
    start = torch.as_tensor(node.metadata.get("v_initial", 0.0), dtype=torch.float32)
    start = start.view(-1, 1, 1).expand(threshold.shape)
    return Layer(str(node.metadata.get("name", name)), threshold, start, reset, _decay(name, node, path))


def _decay(name: str, node: Any, path: str | os.PathLike[str]) -> float:
    """The decay of a LIF node at dt = 1, from its metadata, since float32 may round tau; its tau has to agree."""
    if not hasattr(node, "tau"):
        return 1.0
    said = float(node.metadata.get("decay", 1 - 1 / float(node.tau.flat[0])))
    told = bool((abs(1 - 1 / node.tau - said) < 1e-6).all())
    if not told or bool((node.r != node.tau).any()) or bool(node.v_leak.any()):
        expected = "r = tau = 1 / (1 - decay) and v_leak 0, as export writes them"
        got, remedy = "a LIF node of other tau, r or v_leak", "Use the engine that wrote the file"
        raise InvalidArtifact(message(f"{path}: {name}", "", got, expected, remedy))
    return said


def _apply(node: Any, x: Tensor) -> Tensor:
    if not hasattr(node, "weight"):
        return x
    weight, bias = (torch.from_numpy(part).to(x) for part in (node.weight, node.bias))
    stride, padding, dilation = (tuple(int(n) for n in part) for part in (node.stride, node.padding, node.dilation))
    return F.conv2d(x, weight, bias, stride, padding, dilation, int(node.groups))
