"""Run an exported file with other engines' neurons in the right settings, and compare the spikes.

The graph is run by :mod:`s_resnet.export.execute`, since the importers of these engines reset to zero, leak, clip, fire
several times per step, or run residual branches in the wrong order (docs/reference/nir.md); their neurons can do
better.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import as_maps, whole_number
from ..errors import InvalidData, message
from ..graph.engine import StreamSettings
from ..graph.fold import folded
from ..graph.graph import Graph
from ..runtime.display import Displayed, Table
from .copies import split_copies
from .execute import Layer, Step, integrate_and_fire, read_nir
from .lower import host_input
from .nir import require


def _snntorch(layer: Layer) -> Step:
    """``Leaky``, without leak for IF. Its reset waits for the next step, and ``spike_grad`` does the comparison."""
    leaky = require("snntorch", "snntorch").Leaky
    neuron = leaky(
        beta=layer.decay,
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
    """A feed-forward cell of Norse's threshold and reset functions, as no cell of its own subtracts without a leak.

    Norse fires above the threshold, so the next smaller float is used.
    """
    cell = require("norse.torch.module.snn", "norse").SNNCell
    compare = require("norse.torch.functional.threshold", "norse").threshold
    resets = require("norse.torch.functional.reset", "norse")
    reset = resets.reset_subtract if layer.reset == "subtract" else resets.reset_value
    below = torch.nextafter(layer.threshold, torch.zeros(()))

    def activation(current: Tensor, v: Tensor, p: Any, dt: float) -> tuple[Tensor, Tensor]:
        v = layer.decay * v + current
        spikes = compare(v - below, "heaviside", 0.0)
        return spikes, reset(spikes, v, torch.zeros(()), layer.threshold)

    neuron, v = cell(activation, lambda current: layer.start.expand(current.shape), None), None

    def step(current: Tensor) -> Tensor:
        nonlocal v
        spikes, v = neuron(current, v)
        return spikes  # type: ignore[no-any-return]

    return step


def _sinabs(layer: Layer) -> Step:
    """``IAF`` with one spike per step and a membrane that may be negative; ``LIF`` if there is a decay."""
    layers = require("sinabs.layers", "sinabs")
    activation = require("sinabs.activation", "sinabs")
    reset = activation.MembraneSubtract() if layer.reset == "subtract" else activation.MembraneReset()
    settings = {"spike_threshold": layer.threshold, "spike_fn": activation.SingleSpike, "reset_fn": reset}
    if layer.decay == 1.0:
        neuron = layers.IAF(**settings, min_v_mem=None)
    else:
        neuron = layers.LIF(tau_mem=1.0, **settings, min_v_mem=None, train_alphas=True, norm_input=False)
        neuron.alpha_mem.data.fill_(layer.decay)

    def step(current: Tensor) -> Tensor:
        if not neuron.is_state_initialised():
            neuron.init_state_with_shape(current.shape)
            neuron.v_mem = layer.start.expand(current.shape).clone()
        spikes: Tensor = neuron(current[:, None])[:, 0]
        return spikes

    return step


def _spikingjelly(layer: Layer) -> Step:
    """``IFNode``, or ``LIFNode`` whose input does not decay; ``v_reset=None`` means reset by subtraction."""
    nodes = require("spikingjelly.activation_based.neuron", "spikingjelly")
    thresholds = torch.unique(layer.threshold)
    if len(thresholds) > 1:
        got, expected = f"{len(thresholds)} thresholds", "one for the layer, as SpikingJelly allows no more"
        raise InvalidData(message(layer.name, "", got, expected, "Export with tie_shortcuts=False"))
    settings: dict[str, Any] = {"v_threshold": float(thresholds), "v_reset": 0.0 if layer.reset == "zero" else None}
    if layer.decay == 1.0:
        neuron = nodes.IFNode(**settings).eval()
    else:
        neuron = nodes.LIFNode(tau=1 / (1 - layer.decay), decay_input=False, **settings).eval()

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
"""By the name of an engine, how it builds the step of one neuron layer. ``nir`` is plain torch."""

MODULES = {"nir": "nir", "norse": "norse.torch", "sinabs": "sinabs", "snntorch": "snntorch",
           "spikingjelly": "spikingjelly.activation_based"}  # fmt: skip
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, repr=False)
class LayerComparison(Displayed):
    """One neuron layer in both engines.

    Attributes:
        name: the layer.
        spikes: our spikes.
        mismatches: neurons and steps with a spike in only one of the engines.
    """

    name: str
    spikes: int
    mismatches: int


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """An exported file in an engine against our simulator, on the same images.

    Attributes:
        engine: its name.
        version: the version of its package.
        images: how many.
        timesteps: T.
        dtype: the type that both computed in.
        layers: the neuron layers.
        same_spikes: images without a mismatch.
        same_answers: images with the same class.
        difference: the largest difference of any output, in the units of the logits; None if spikes of the output are
            counted.
    """

    engine: str
    version: str
    images: int
    timesteps: int
    dtype: str
    layers: tuple[LayerComparison, ...]
    same_spikes: int
    same_answers: int
    difference: float | None

    @property
    def spikes(self) -> int:
        """Our spikes in all layers."""
        return sum(layer.spikes for layer in self.layers)

    @property
    def mismatches(self) -> int:
        """Neurons and steps with a spike in only one of the engines, in all layers."""
        return sum(layer.mismatches for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, and the sums over the layers."""
        return {**super().to_dict(), "spikes": self.spikes, "mismatches": self.mismatches}

    def _lines(self) -> Iterator[str]:
        head, _, foot = self._parts()
        yield f"Comparison with {head}"
        yield f"{self.mismatches:,} of {self.spikes:,} spikes differ"
        yield str(foot)

    def _parts(self) -> Iterator[str | Table]:
        share = self.mismatches / max(1, self.spikes)
        rows = [(layer.name, f"{layer.spikes:,}", f"{layer.mismatches:,}", "") for layer in self.layers]
        rows.append(("all", f"{self.spikes:,}", f"{self.mismatches:,}", f"({share:.1e} of the spikes)"))
        yield f"{self.engine} {self.version}   {self.images} images   T = {self.timesteps}   {self.dtype}"
        yield Table(("layer", "spikes", "mismatches", ""), tuple(rows))
        yield (
            f"{self.same_spikes} of {self.images} images with the same spikes, {self.same_answers} with the same class"
            + ("" if self.difference is None else f", outputs differ by {self.difference:.1e} at most")
        )


def find_engine(name: str) -> None:
    """Check that an engine is known and installed.

    Raises:
        InvalidData: the engine is unknown.
        BackendUnavailable: it is not installed.
    """
    if name not in ENGINES:
        expected = f"one of {', '.join(ENGINES)}"
        raise InvalidData(message("verify", "", f"engine {name!r}", expected, "Name one of these engines"))
    require(MODULES[name], name)


def verify_export(
    path: str | os.PathLike[str],
    snn: Graph,
    images: Tensor,
    timesteps: int,
    engine: str = "nir",
    dtype: str = "float32",
) -> Comparison:
    """Run an exported NIR file in another engine and compare it with our simulator, spike for spike.

    With dyadic weights and images both are equal bit for bit. Otherwise engines add in different orders, so a membrane
    that is at its threshold up to rounding may fire one step later in one of them, and all later layers get other
    spikes. In float64 this does not happen in practice: a difference there is not due to rounding.

    Args:
        path: a file from :func:`export_nir`.
        snn: the network that was exported.
        images: ``[B, C, H, W]``, preprocessed, on the CPU.
        timesteps: T >= 1.
        engine: ``"nir"`` (plain torch, ours), ``"norse"``, ``"sinabs"``, ``"snntorch"`` or ``"spikingjelly"``.
        dtype: the type that both compute in, ``"float32"`` or ``"float64"``; the weights are those of the file.

    Raises:
        InvalidData: settings or images do not fit.
        InvalidArtifact: the file cannot be read.
        BackendUnavailable: the engine is not installed.
    """
    find_engine(engine)
    if dtype not in _DTYPES:
        expected = f"one of {', '.join(_DTYPES)}"
        raise InvalidData(message("verify", "", f"dtype {dtype!r}", expected, "Pass the name of one of these types"))
    timesteps = whole_number(timesteps, "verify", "timesteps")
    program = read_nir(path).to(_DTYPES[dtype])
    shape = tuple(images.shape)
    snn, images = _settled(split_copies(folded(snn.at(timesteps))), _DTYPES[dtype]), as_maps(images).to(_DTYPES[dtype])
    split = program.metadata.get("input_node", snn.nodes[0].name) != snn.nodes[0].name
    given = host_input(snn, images) if split else snn.nodes[0].op.run(images)
    if given.ndim != 4 or tuple(given.shape[1:]) != program.input_shape:
        got = f"images of shape {shape}, which make {tuple(given.shape)}"
        expected = f"[B, {', '.join(map(str, program.input_shape))}]"
        raise InvalidData(message("verify", "", got, expected, "Preprocess them as for calibration"))
    missing = {node.name for node in snn.neurons} - {layer.name for layer in program.layers.values()}
    if missing:
        got, expected = f"no layer {min(missing)!r}", "this network's file"
        raise InvalidData(message(str(path), "", got, expected, "Export it again"))
    tally = _Tally([node.name for node in snn.neurons], len(images))
    with torch.no_grad():
        theirs = program.run(given, timesteps, ENGINES[engine])
        for ours, (output, spikes) in zip(_simulated(snn, images, timesteps), theirs, strict=True):
            tally.add(ours, output, spikes)
    counted = snn.nodes[-1].op.mode == "spikes"  # type: ignore[attr-defined]
    return Comparison(
        engine=engine,
        version=_version(engine),
        images=len(images),
        timesteps=timesteps,
        dtype=dtype,
        layers=tuple(LayerComparison(name, tally.spikes[name], tally.mismatches[name]) for name in tally.spikes),
        same_spikes=int((~tally.differs).sum()),
        same_answers=tally.agreeing(),
        difference=None if counted else float((tally.total / timesteps - tally.answer).abs().max()),
    )


class _Tally:
    """The sums over steps that a Comparison reports."""

    def __init__(self, names: list[str], images: int) -> None:
        self.spikes, self.mismatches = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        self.differs = torch.zeros(images, dtype=torch.bool)
        self.total = self.answer = torch.zeros(())

    def add(self, ours: tuple[Tensor, dict[str, Tensor]], output: Tensor, spikes: dict[str, Tensor]) -> None:
        """Count one step."""
        self.answer, sent = ours
        self.total = self.total + output.flatten(1).double()
        for name in self.spikes:
            other = (sent[name].view_as(spikes[name]) != spikes[name]).flatten(1).sum(1)
            self.spikes[name] += int(sent[name].sum(dtype=torch.int64))
            self.mismatches[name] += int(other.sum())
            self.differs |= other > 0

    def agreeing(self) -> int:
        """Images for which our class is the other engine's largest output, or one of several equal ones."""
        chosen = self.total.gather(1, self.answer.argmax(1, keepdim=True))[:, 0]
        return int((chosen == self.total.amax(1)).sum())


def _settled(snn: Graph, dtype: torch.dtype) -> Graph:
    """The network of spiking runs, rounded to float32 as in the file, then in ``dtype``."""
    return snn.spiking().to(dtype)


def _simulated(snn: Graph, images: Tensor, timesteps: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """At each step our simulator's answer ``[B, N]`` and all values ``[B, *]`` that it computed, spikes included."""
    values: dict[str, Tensor] = {}
    for part in snn.stream(images, timesteps, 1, settings=StreamSettings(observe=values.__setitem__)):
        yield part.outputs[0], values


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
