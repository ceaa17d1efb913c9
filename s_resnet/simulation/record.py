"""The recorder: spikes and membrane potentials of chosen neurons over time, for one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import as_maps
from ..errors import InvalidData, message
from ..graph.engine import StreamSettings, arithmetic
from ..graph.graph import Graph
from ..graph.inputs import count_images
from ..graph.neuron import Neuron
from ..graph.ops import Node, Op
from ..kernels import per_channel
from ..runtime.display import Displayed, Table, plain
from .lockstep import Pair, propagate_both


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Displayed):
    """What ``n`` neurons of one layer did, for one image.

    Attributes:
        layer: the name of the layer.
        neurons: their positions in the layer's flattened ``[C, H, W]``, the most active first.
        begins: steps from the network's first input to this layer's first input, when layers before it wait.
        lag: steps that the layer itself waits (:meth:`Neuron.delay`).
        spikes: ``[T, n]``, thresholds emitted at t, negative if taken back (spikes, for directly trained neurons); row
            t is step ``begins + lag + t``.
        membrane: ``[lag + T, n]``, v after each step from ``begins + 1`` on, in thresholds; the first membrane of
            multi-threshold firing. None for an integer network whose layers wait for their window, as those compute
            all steps at once.
    """

    layer: str
    neurons: tuple[int, ...]
    begins: int
    lag: int
    spikes: Tensor
    membrane: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, spikes and membranes as lists."""
        membrane = None if self.membrane is None else plain(self.membrane.tolist())
        return {**super().to_dict(), "spikes": plain(self.spikes.tolist()), "membrane": membrane}

    def _parts(self) -> Iterator[str | Table]:
        """How much every neuron emitted, and at which steps."""
        first, rows = self.begins + self.lag + 1, []
        yield f"{self.layer}   {len(self.neurons)} neurons, T = {len(self.spikes)}, from step {first} on"
        for neuron, emitted in zip(self.neurons, self.spikes.T, strict=True):
            steps = (emitted.nonzero()[:, 0] + first).tolist()
            rows.append((str(neuron), f"{float(emitted.sum()):g}", ", ".join(map(str, steps))))
        yield Table(("neuron", "emitted", "at steps"), tuple(rows))


def record(graph: Graph, image: Tensor, timesteps: int, layers: Sequence[str], count: int) -> tuple[Trace, ...]:
    """Simulate one image and record ``count`` neurons of each of ``layers``.

    They are spread evenly over the neurons that fire, from the most active to the least active; if fewer fire, silent
    ones follow. Spikes are those of :func:`s_resnet.simulate`, and so are membranes if all layers are active in every
    step. If layers wait, membranes follow the equation of
    :func:`s_resnet.kernels.membrane.reference.integrate_and_fire` with the currents of
    :mod:`s_resnet.simulation.lockstep`.

    Args:
        graph: a converted network.
        image: ``[1, C, H, W]``, preprocessed, or events ``[T, 1, C, H, W]``, on the graph's device.
        timesteps: T >= 1.
        layers: names of neuron layers.
        count: how many of each, at most.

    Raises:
        InvalidData: there is not exactly one image, a layer does not exist, or a setting is out of range.
    """
    image, graph = as_maps(image), graph.at(timesteps)
    ops = {node.name: node.op for node in graph.neurons if isinstance(node.op, Neuron)}
    wrong = [name for name in layers if name not in ops]
    if wrong or count_images(image) != 1 or count < 1:
        got = f"layer {wrong[0]!r}" if wrong else f"{count_images(image)} images, count={count}"
        expected, remedy = "neuron layers, one image and a count of at least 1", "Take names from graph.neurons"
        raise InvalidData(message("record", "", got, expected, remedy if wrong else "Pass images[:1] and a count"))
    waited = graph.waited(timesteps)
    active: dict[str, Tensor] = {}

    def count_spikes(name: str, values: Tensor) -> None:
        if name in layers:
            total = (values != 0).sum(0)
            active[name] = active[name] + total if name in active else total

    for _ in graph.stream(image, timesteps, settings=StreamSettings(observe=count_spikes)):
        pass
    chosen = {name: _spread(active[name].flatten().cpu(), count) for name in layers}
    spikes, membranes = _watched(graph, image, timesteps, chosen)
    if graph.windowed and not graph.is_integer:
        membranes = _waiting(graph, image, timesteps, chosen, spikes)
    return tuple(
        Trace(
            layer=name,
            neurons=tuple(chosen[name].tolist()),
            begins=waited[name] - ops[name].delay(timesteps),
            lag=ops[name].delay(timesteps),
            spikes=spikes[name],
            membrane=membranes.get(name),
        )
        for name in layers
    )


def _spread(active: Tensor, count: int) -> Tensor:
    """``count`` positions spread evenly over those that fire, by falling number of spikes; then silent ones."""
    order = active.argsort(descending=True, stable=True)
    among = max(int((active > 0).sum()), min(count, len(order)))
    return order[torch.linspace(0, among - 1, min(count, among)).round().long()]


def _watched(
    graph: Graph, image: Tensor, timesteps: int, chosen: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Spikes ``[T, n]`` of chosen neurons from the engine, and their membranes unless layers wait for their window."""
    spikes: dict[str, list[Tensor]] = {name: [] for name in chosen}
    membranes: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def keep(name: str, values: Tensor) -> None:
        if name in chosen:
            amplitude: float | None = graph[name].op.amplitude  # type: ignore[attr-defined]
            unit = _threshold(graph[name], values, chosen[name]) if amplitude is None else amplitude
            spikes[name].append(_at(values, chosen[name]) / unit)

    running = graph.running()
    for chunk in graph.stream(image, timesteps, None if graph.windowed else 1, settings=StreamSettings(observe=keep)):
        for name in () if graph.windowed else chosen:
            v = chunk.state.memory[name][0]
            unit = _threshold(running[name], v, chosen[name])
            membranes[name].append(_at(v, chosen[name]) / unit)
    joined = {name: torch.cat(parts) for name, parts in membranes.items() if parts}
    return {name: torch.cat(parts) for name, parts in spikes.items()}, joined


def _waiting(
    graph: Graph, image: Tensor, timesteps: int, chosen: Mapping[str, Tensor], spikes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Membranes ``[lag + T, n]`` of layers that wait, from the currents of all steps and the emitted spikes."""
    membranes: dict[str, Tensor] = {}

    def visit(node: Node, currents: Tensor, _: Tensor) -> Op:
        if node.name in chosen and isinstance(node.op, Neuron):
            bias = node.op.bias_current(0, timesteps, currents.ndim)
            total = currents if bias is None else currents + bias
            unit = _threshold(node, currents[0], chosen[node.name])
            arrived = _at(total.flatten(0, 1), chosen[node.name]) / unit
            membranes[node.name] = membrane(node.op, arrived, spikes[node.name])
        return node.op

    shown = image[:timesteps] if image.ndim == 5 else image.expand(timesteps, *image.shape)
    start = {graph.nodes[0].name: Pair(shown, image.mean(0) if image.ndim == 5 else image)}
    with torch.no_grad(), arithmetic(image, tf32=False):
        propagate_both(graph.nodes, start, timesteps, visit)
    return membranes


def membrane(op: Neuron, arrived: Tensor, emitted: Tensor) -> Tensor:
    """The potential after each step, ``[lag + T, n]``, of neurons that got and emitted ``[T, n]``, all in thresholds.

    During the lag charge accumulates. Then, with ``I[t]`` zero beyond T and k the spikes::

        v[t] = decay v[t-1] + I[t] - k[t], or 0 after a spike with reset to zero
    """
    timesteps, lag = len(arrived), op.delay(len(arrived))
    v = torch.full_like(arrived[0], op.initial_potential)
    path = []
    for step in range(lag + timesteps):
        if step < lag:
            v = v + arrived[step]
        else:
            fired = emitted[step - lag]
            v = op.decay * v + (arrived[step] if step < timesteps else 0.0)
            v = torch.where(fired > 0, 0.0, v) if op.reset == "zero" else v - fired
        path.append(v)
    return torch.stack(path)


def _at(values: Tensor, chosen: Tensor) -> Tensor:
    """``[S, C, *]`` at flattened positions, ``[S, n]``, on the CPU."""
    return values.flatten(1)[:, chosen.to(values.device)].float().cpu()


def _threshold(node: Node, like: Tensor, chosen: Tensor) -> Tensor:
    """The thresholds of chosen neurons, ``[n]``; those of an integer membrane in its own unit."""
    op = node.op
    assert isinstance(op, Neuron)
    return _at(per_channel(op.threshold, like.ndim).expand(1, *like.shape[1:]), chosen)[0]
