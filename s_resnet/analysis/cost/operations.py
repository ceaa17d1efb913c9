"""Operation counts of a spiking network and of its source, as :mod:`s_resnet.analysis.cost.layers` defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ...data.arguments import Batches, check_batches, images_of, whole_number
from ...errors import InvalidData, message
from ...graph.engine import StreamSettings
from ...graph.fold import folded
from ...graph.graph import Graph, check_spiking
from ...graph.inputs import count_images
from ...runtime.display import Figures, Table, plain
from ...runtime.progress import Progress
from ...simulation.simulate import encoder
from .fan_out import Shape
from .layers import LayerOperations, OperationCounter, SourceOperations, Traffic
from .spike_flow import SpikeCounter, SpikeFlow

SCHEMA = 1


@dataclass(frozen=True, repr=False)
class Operations(Figures):
    """Operations of a spiking network and of its source, mean per image.

    Attributes:
        timesteps: T.
        images: how many were counted.
        coding: ``"direct"``, ``"poisson"`` or ``"events"``.
        alphabet: what its neurons send, as :attr:`s_resnet.Graph.alphabet`.
        most: the most thresholds that a neuron emits in a step.
        pixels: number of values of an image.
        weight_bytes: 4, or 1 for an integer network.
        layers: the nodes in execution order, without those that compute nothing.
        trained: whether there is no source network; the counts in its place are those of one dense pass through these
            layers.
    """

    timesteps: int
    images: int
    coding: str
    alphabet: str
    most: int
    pixels: int
    weight_bytes: int
    layers: tuple[LayerOperations, ...]
    trained: bool = False

    @property
    def total(self) -> LayerOperations:
        """The sum over the layers."""

        def add(parts: list[Any]) -> dict[str, Any]:
            others = ("name", "op", "traffic", "ann", "from_image", "copies")
            names = [f.name for f in fields(parts[0]) if f.name not in others]
            return {name: sum(getattr(part, name) for part in parts) for name in names}

        layers = list(self.layers)
        traffic, ann = [layer.traffic for layer in layers], [layer.ann for layer in layers]
        return LayerOperations(
            "total", "", **add(layers), traffic=Traffic(**add(traffic)), ann=SourceOperations(**add(ann))
        )

    @property
    def spikes_per_synapse(self) -> float:
        """Synaptic events per MAC of the source network or of a dense pass."""
        total = self.total
        return total.acs / total.ann.macs

    @property
    def bytes(self) -> dict[str, float]:
        """Bytes moved per image: weights of this network's width, spikes in bits, everything else in 4 bytes."""
        moved = self.total.traffic
        return {
            "weights_read": moved.weight_reads * self.weight_bytes,
            "values_read": moved.value_reads * 4,
            "values_written": moved.value_writes * 4,
            "state_read": moved.state_reads * 4,
            "state_written": moved.state_writes * 4,
            "sums_read": moved.sum_reads * 4,
            "sums_written": moved.sum_writes * 4,
            "spikes_read": moved.spike_bits_read / 8,
            "spikes_written": moved.spike_bits_written / 8,
        }

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1."""
        stored = {"schema": SCHEMA, **asdict(self), "layers": [asdict(layer) for layer in self.layers]}
        return dict(plain({**stored, "total": asdict(self.total), "bytes": self.bytes}))

    def _lines(self) -> Iterator[str]:
        total = self.total
        yield f"Operations per image, T = {self.timesteps}, {self.images:,} images, spikes: {self.alphabet}"
        yield (
            f"{total.spikes:,.0f} spikes, {total.acs:,.0f} AC and {total.macs:,.0f} MAC, "
            f"{'dense' if self.trained else 'ANN'} {total.ann.macs:,} MAC"
        )
        yield "print(_.table()) shows every layer, _.to_dict() holds all figures"

    def _parts(self) -> Iterator[str | Table]:
        dense = ("dense MAC", "AC / dense") if self.trained else ("ANN MAC", "AC / ANN MAC")
        rows = []
        for layer in (*self.layers, self.total):
            counts = (layer.spikes, layer.acs, layer.macs, layer.updates, layer.additions, layer.ann.macs)
            share = f"{layer.acs / layer.ann.macs:.3f}" if layer.ann.macs else ""
            rows.append((layer.name, *(f"{count:,.0f}" for count in counts), share))
        yield f"operations per image   T = {self.timesteps}   {self.images} images   spikes: {self.alphabet}"
        yield Table(("", "spikes", "AC", "MAC", "updates", "additions", *dense), tuple(rows), width=12)


def count_operations(
    snn: Graph, batches: Batches, timesteps: int, *, coding: str = "direct", seed: int = 0, progress: bool = False
) -> Operations:
    """Simulate a spiking network and count exactly what it computes and moves per image.

    :mod:`s_resnet.analysis.cost.layers` defines what is counted. BatchNorm is folded first.

    Args:
        snn: a converted or directly trained network. Images are moved to its device.
        batches: images ``[B, C, H, W]`` or events ``[T, B, C, H, W]``, alone or as (images, labels).
        timesteps: T >= 1.
        coding: how images become currents, as in :func:`s_resnet.simulate`.
        seed: the seed of Poisson coding.
        progress: show a bar on stderr when it is a terminal.

    Raises:
        InvalidData: there are no images, a setting is out of range, or an operation cannot be counted; the message
            names it.
    """
    check_spiking(snn, "operations")
    timesteps = whole_number(timesteps, "operations", "timesteps")
    check_batches(batches, "operations")
    snn = folded(snn.at(timesteps))
    flow = SpikeFlow(snn, snn.static if coding == "direct" else frozenset())
    spikes, images, shapes = SpikeCounter(flow), 0, dict[str, Shape]()
    device = snn.neurons[0].op.threshold.device  # type: ignore[attr-defined]
    for batch in Progress(batches, desc="operations", unit="batch", shown=progress):
        x = images_of(batch, "operations").to(device)
        if x.ndim == 5 and coding == "direct" and not images:
            coding, flow = "events", SpikeFlow(snn, frozenset())
            spikes = SpikeCounter(flow)
        if (x.ndim == 5) != (coding == "events"):
            got, expected = f"a batch of shape {tuple(x.shape)} in coding {coding!r}", "only images, or only events"
            remedy = "Count images and events in separate calls"
            raise InvalidData(message("operations", "", got, f"{expected} in coding 'direct'", remedy))
        if count_images(x) == 0:
            raise InvalidData(message("operations", "", "a batch of 0 images", "at least one", "Leave it out"))
        found = {name: tuple(value.shape[1:]) for name, value in snn.activations(x.narrow(-4, 0, 1))}
        if shapes and found != shapes:
            got = f"images of {tuple(x.shape[-3:])} after {shapes[snn.nodes[0].name]}"
            expected = "one size, since counts are means per image"
            raise InvalidData(message("operations", "", got, expected, "Count each size in a call of its own"))
        shapes = found
        images += count_images(x)
        for part in torch.split(x, snn.portions(x, timesteps), -4):
            _show(spikes, snn, part, timesteps, None if coding == "events" else encoder(part, coding, seed, 0))
    if not images:
        remedy = "Pass a loader that yields batches; a generator can be read only once"
        raise InvalidData(message("operations", "", "no images", "at least one batch", remedy))
    counter = OperationCounter(flow, spikes, shapes, timesteps, images)
    layers = [counter.layer(node) for node in snn.nodes]
    return Operations(
        timesteps=timesteps,
        images=images,
        coding=coding,
        alphabet=snn.alphabet,
        most=max(op.max_emission for op in flow.alphabet.values()),
        pixels=torch.Size(shapes[snn.nodes[0].name]).numel(),
        weight_bytes=1 if snn.is_integer else 4,
        layers=tuple(layer for layer in layers if _computes(layer)),
        trained=snn.trained,
    )


def _show(
    spikes: SpikeCounter, snn: Graph, images: Tensor, timesteps: int, encode: Callable[[int], Tensor] | None
) -> None:
    spikes.begin(count_images(images))
    with torch.no_grad():
        for _ in snn.stream(images, timesteps, settings=StreamSettings(encode=encode, observe=spikes)):
            pass


def _computes(layer: LayerOperations) -> bool:
    counts = (layer.spikes, layer.acs, layer.macs, layer.updates, layer.additions, layer.ann.additions, layer.ann.macs)
    return any(counts) or layer.op in ("Neuron", "SpikingMaxPool2d", "Conv2d", "Linear", "Scale")
