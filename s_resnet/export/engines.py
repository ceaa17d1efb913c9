"""An exported file in other engines: their neurons with the right settings, and the same spikes or not.

The graph is run by :mod:`s_resnet.export.execute`, since the importers of these engines reset to zero, leak, clip, fire
several times a step, or run residual branches in a wrong order (docs/notes/nir.md); their neurons do not have to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..engine import Run, arithmetic, plan
from ..errors import InvalidData
from ..graph import Graph
from ..neuron import Neuron
from ..ops import Node
from .execute import Layer, Step, integrate_and_fire, read_nir
from .nir import require

_CHOOSE = "Choose one of them."


def _snntorch(layer: Layer) -> Step:
    """``Leaky`` without leak. Its reset waits for the next step, and ``spike_grad`` is what compares."""
    require("snntorch", "nir")
    leaky = require("snntorch._neurons.leaky", "nir").Leaky
    neuron = leaky(
        beta=1.0,
        threshold=layer.threshold,
        spike_grad=lambda above: (above >= 0).to(above.dtype),
        init_hidden=True,
        reset_mechanism=layer.reset,
        reset_delay=True,
    )

    def step(current: Tensor) -> Tensor:
        if neuron.mem.shape != current.shape:
            neuron.mem = layer.start.expand(current.shape).clone()
        spikes: Tensor = neuron(current)
        return spikes

    return step


def _norse(layer: Layer) -> Step:
    """A feed-forward cell with Norse's threshold and reset functions; none of its own cells has no leak and subtracts.

    It fires above the threshold, so that is the next number below.
    """
    cell = require("norse.torch.module.snn", "nir").SNNCell
    compare = require("norse.torch.functional.threshold", "nir").threshold
    resets = require("norse.torch.functional.reset", "nir")
    reset = resets.reset_subtract if layer.reset == "subtract" else resets.reset_value
    below = torch.nextafter(layer.threshold, torch.zeros(()))

    def activation(current: Tensor, v: Tensor, p: Any, dt: float) -> tuple[Tensor, Tensor]:
        v = v + current
        spikes = compare(v - below, "heaviside", 0.0)
        return spikes, reset(spikes, v, torch.zeros(()), layer.threshold)

    neuron, v = cell(activation, lambda current: layer.start.expand(current.shape), None), None

    def step(current: Tensor) -> Tensor:
        nonlocal v
        spikes, v = neuron(current, v)
        return spikes  # type: ignore[no-any-return]

    return step


def _sinabs(layer: Layer) -> Step:
    """``IAF`` with one spike per step and a membrane that may be negative."""
    iaf = require("sinabs.layers", "nir").IAF
    activation = require("sinabs.activation", "nir")
    reset = activation.MembraneSubtract() if layer.reset == "subtract" else activation.MembraneReset()
    neuron = iaf(spike_threshold=layer.threshold, spike_fn=activation.SingleSpike, reset_fn=reset, min_v_mem=None)

    def step(current: Tensor) -> Tensor:
        if not neuron.is_state_initialised():
            neuron.init_state_with_shape(current.shape)
            neuron.v_mem = layer.start.expand(current.shape).clone()
        spikes: Tensor = neuron(current[:, None])[:, 0]
        return spikes

    return step


def _spikingjelly(layer: Layer) -> Step:
    """``IFNode``; ``v_reset`` None is reset by subtraction."""
    node = require("spikingjelly.activation_based.neuron", "nir").IFNode
    thresholds = layer.threshold.unique()
    if len(thresholds) > 1:
        raise InvalidData(
            f"{layer.name}: got {len(thresholds)} thresholds; expected one for the layer, as SpikingJelly knows no "
            "more. Export without --tie-shortcuts."
        )
    neuron = node(v_threshold=float(thresholds), v_reset=None if layer.reset == "subtract" else 0.0).eval()

    def step(current: Tensor) -> Tensor:
        if not isinstance(neuron.v, Tensor):
            neuron.v = layer.start.expand(current.shape).clone()
        spikes: Tensor = neuron(current)
        return spikes

    return step


ENGINES: Mapping[str, Callable[[Layer], Step]] = {
    "nir": integrate_and_fire,
    "norse": _norse,
    "sinabs": _sinabs,
    "snntorch": _snntorch,
    "spikingjelly": _spikingjelly,
}


@dataclass(frozen=True)
class LayerComparison:
    """One neuron layer: our spikes, and how many neurons at how many steps fired in one of the two alone."""

    name: str
    spikes: int
    mismatches: int


@dataclass(frozen=True)
class Comparison:
    """An exported file in an engine against our simulator, on the same images.

    same_answers: images with the same class. difference: the largest of any output, in the units of the logits; None
    where spikes of the output are counted.
    """

    engine: str
    version: str
    images: int
    timesteps: int
    layers: tuple[LayerComparison, ...]
    same_answers: int
    difference: float | None

    @property
    def spikes(self) -> int:
        """Our spikes in all layers."""
        return sum(layer.spikes for layer in self.layers)

    @property
    def mismatches(self) -> int:
        """Neurons and steps with a spike in one of the two alone, in all layers."""
        return sum(layer.mismatches for layer in self.layers)

    def table(self) -> str:
        """The figures as a table for people."""
        width = max(len(layer.name) for layer in self.layers)
        share = self.mismatches / max(1, self.spikes)
        lines = [
            f"{self.engine} {self.version}   {self.images} images   T = {self.timesteps}",
            "",
            f"{'layer'.ljust(width)}  {'spikes':>12}  {'mismatches':>10}",
            *(f"{layer.name.ljust(width)}  {layer.spikes:>12,}  {layer.mismatches:>10,}" for layer in self.layers),
            f"{'all'.ljust(width)}  {self.spikes:>12,}  {self.mismatches:>10,}   ({share:.1e} of the spikes)",
            "",
            f"same class for {self.same_answers} of {self.images} images"
            + ("" if self.difference is None else f", outputs differ by {self.difference:.1e} at most"),
        ]
        return "\n".join(lines)


def verify_export(
    path: str | os.PathLike[str], snn: Graph, images: Tensor, timesteps: int, engine: str = "nir"
) -> Comparison:
    """Run an exported NIR file in another engine and compare it with our simulator, spike for spike.

    Equal bit for bit on dyadic weights and images. Otherwise engines add in different orders, so a membrane that is at
    its threshold up to rounding may fire in one and a step later in the other, and later layers hear of it.

    Args:
        path: what :func:`export_nir` wrote.
        snn: the network that was exported.
        images: ``[B, C, H, W]``, preprocessed, on the CPU.
        timesteps: T >= 1.
        engine: ``"nir"`` (plain torch, ours), ``"norse"``, ``"sinabs"``, ``"snntorch"`` or ``"spikingjelly"``.

    Raises InvalidData for settings or images that do not fit, InvalidArtifact for a file that cannot be read, and
    BackendUnavailable where the engine is not installed.
    """
    if engine not in ENGINES:
        raise InvalidData(f"verify: got engine {engine!r}; expected one of {', '.join(ENGINES)}. {_CHOOSE}")
    if timesteps < 1:
        raise InvalidData(f"verify: got timesteps={timesteps}; expected at least 1. Raise it.")
    program = read_nir(path)
    if images.ndim != 4 or tuple(images.shape[1:]) != program.input_shape:
        raise InvalidData(
            f"verify: got images of shape {tuple(images.shape)}; expected [B, {', '.join(map(str, program.input_shape))}]"
            ". Preprocess them as the network was calibrated."
        )
    names = [node.name for node in snn.neurons]
    missing = sorted(set(names) - {layer.name for layer in program.layers.values()})
    if missing:
        raise InvalidData(f"{path}: got no layer {missing[0]!r}; expected the file of this network. Export it again.")
    spikes, mismatches = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    total = torch.zeros(())
    with torch.no_grad():
        steps = zip(_simulated(snn, images, timesteps), program.run(images, timesteps, ENGINES[engine]), strict=True)
        for (answer, ours), (output, theirs) in steps:
            total = total + output.flatten(1).double()
            for name in names:
                spikes[name] += int(ours[name].sum(dtype=torch.int64))
                mismatches[name] += int((ours[name].view_as(theirs[name]) != theirs[name]).sum())
    counted = snn.nodes[-1].op.mode == "spikes"  # type: ignore[attr-defined]
    chosen = total.gather(1, answer.argmax(1, keepdim=True))[:, 0]
    return Comparison(
        engine=engine,
        version=_version("nir" if engine == "nir" else engine),
        images=len(images),
        timesteps=timesteps,
        layers=tuple(LayerComparison(name, spikes[name], mismatches[name]) for name in names),
        same_answers=int((chosen == total.amax(1)).sum()),
        difference=None if counted else float((total / timesteps - answer).abs().max()),
    )


class _Recorder(Run):
    """The simulator, which leaves behind what every neuron layer has just sent."""

    def _fire(self, node: Node, op: Neuron) -> tuple[Tensor, Tensor]:
        sent = super()._fire(node, op)
        self.sent[node.name] = sent[0]
        return sent

    sent: dict[str, Tensor]


def _simulated(snn: Graph, images: Tensor, timesteps: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Our simulator's answer ``[B, N]`` and the spikes of every neuron layer ``[B, *]``, for each step."""
    with arithmetic(images, tf32=False):
        run = _Recorder(plan(snn.nodes, snn.users, snn.static, "exact"), images)
        for _ in range(timesteps):
            run.sent = {}
            answers, _ = run.advance(1)
            yield answers[0], run.sent


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
