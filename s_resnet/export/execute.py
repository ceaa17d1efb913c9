"""Run a NIR file step by step in plain torch: every node after all that it reads, whatever the file's order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArtifact
from .nir import EXTRA, require

# One step of a neuron layer with a memory of its own: currents [B, C, H, W] in, spikes of the same shape out.
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """An IF node: threshold and membrane at the start, ``[C, H, W]`` or one number; reset ``"subtract"`` / ``"zero"``.

    decay: factor on the membrane per step, of a LIF node below 1.
    name: the node's name in the network that it was exported from.
    """

    name: str
    threshold: Tensor
    start: Tensor
    reset: str
    decay: float = 1.0


def integrate_and_fire(layer: Layer) -> Step:
    """Plain torch: ``v = decay v + I``; a spike where ``v >= threshold``; then minus the threshold, or to zero."""
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
    """A NIR graph in an order to run it in.

    nodes: name, NIR node, and the names that it reads; the last is the output. layers: the IF nodes, by name.
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
        """For each step the output ``[B, N, 1, 1]`` and the spikes of every IF node ``[B, C, H, W]``, by original name.

        images: ``[B, C, H, W]``, the same at every step. neuron: makes the neuron layers, each with a fresh memory.
        """
        steps = {name: neuron(layer) for name, layer in self.layers.items()}
        for _ in range(timesteps):
            values: dict[str, Tensor] = {}
            for name, node, inputs in self.nodes:
                x = sum((values[before] for before in inputs[1:]), values[inputs[0]]) if inputs else images
                values[name] = steps[name](x).to(x) if name in steps else _apply(node, x)
            yield values[self.nodes[-1][0]], {layer.name: values[name] for name, layer in self.layers.items()}


def read_nir(path: str | os.PathLike[str]) -> Program:
    """Read a file of Input, Conv2d, IF, LIF and Output nodes. Raises InvalidArtifact for any other."""
    nir = require("nir", EXTRA)
    try:
        graph = nir.read(Path(path))
        kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidArtifact(
            f"{path}: cannot be read, got {reason}; expected a file of nir {nir.version}. Export it again, or upgrade "
            "nir: a network that resets to zero needs a newer one than 1.0.4."
        ) from error
    for name, kind in kinds.items():
        if kind not in ("Input", "Conv2d", "IF", "LIF", "Output"):
            raise InvalidArtifact(
                f"{path}: {name}: got a {kind} node; expected Input, Conv2d, IF, LIF, Output, as export writes them. "
                "Use the engine that wrote the file."
            )
    order = _ordered(graph, path)
    if [kinds[order[0][0]], kinds[order[-1][0]]] != ["Input", "Output"] or [*kinds.values()].count("Input") != 1:
        raise InvalidArtifact(f"{path}: got no single way from one input to one output; expected one. Export it again.")
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
            raise InvalidArtifact(f"{path}: got a cycle of nodes; expected none. Export it again.")
        order |= dict.fromkeys(ready)
    # The output last, also where nodes beside it are as far from the input.
    names = sorted(order, key=lambda name: type(graph.nodes[name]).__name__ == "Output")
    return tuple((name, graph.nodes[name], inputs[name]) for name in names)


def _layer(name: str, node: Any, reset: str, path: str | os.PathLike[str]) -> Layer:
    threshold = torch.from_numpy(node.v_threshold)
    start = torch.as_tensor(node.metadata.get("v_initial", 0.0), dtype=torch.float32)
    start = start.view(-1, 1, 1).expand(threshold.shape)
    return Layer(str(node.metadata.get("name", name)), threshold, start, reset, _decay(name, node, path))


def _decay(name: str, node: Any, path: str | os.PathLike[str]) -> float:
    """The decay of a LIF node at dt = 1: as its metadata says, which float32 may round, and as its tau says."""
    if not hasattr(node, "tau"):
        return 1.0
    said = float(node.metadata.get("decay", 1 - 1 / float(node.tau.flat[0])))
    told = bool((abs(1 - 1 / node.tau - said) < 1e-6).all())
    if not told or bool((node.r != node.tau).any()) or bool(node.v_leak.any()):
        raise InvalidArtifact(
            f"{path}: {name}: got a LIF node of other tau, r or v_leak; expected r = tau = 1 / (1 - decay) and "
            "v_leak 0, as export writes them. Use the engine that wrote the file."
        )
    return said


def _apply(node: Any, x: Tensor) -> Tensor:
    if not hasattr(node, "weight"):
        return x
    weight, bias = (torch.from_numpy(part).to(x) for part in (node.weight, node.bias))
    stride, padding, dilation = (tuple(int(n) for n in part) for part in (node.stride, node.padding, node.dilation))
    return F.conv2d(x, weight, bias, stride, padding, dilation, int(node.groups))
