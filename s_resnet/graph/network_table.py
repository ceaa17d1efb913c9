"""A network as people read it: in five lines, and as tables of its nodes, shortcuts and provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from ..runtime.display import Table
from . import shortcuts
from .alphabet import Differential, Surrogate, for_each
from .neuron import Neuron
from .ops import SYNAPSES, Node, Op, ReLU

STEEP = ("arctan", "sigmoid")  # surrogates whose width is a steepness


class Network(shortcuts.Network, Protocol):
    """What of a :class:`s_resnet.Graph` is shown."""

    @property
    def nodes(self) -> tuple[Node, ...]: ...

    @property
    def trained(self) -> bool: ...

    @property
    def is_integer(self) -> bool: ...

    @property
    def fitted(self) -> tuple[int, ...]: ...

    @property
    def alphabet(self) -> str: ...

    def end_to_end_steps(self, timesteps: int) -> int: ...


def lines(network: Network) -> Iterable[str]:
    """What a console shows of a network."""
    yield f"Graph of {title(network)}"
    known = network.provenance
    steps, made = known.recipe.timesteps, known.calibration
    weights = sum(_numbers(getattr(node.op, "weight", None)) for node in network.nodes)
    size = f"{len(network.nodes)} nodes, {len(network.neurons)} neuron layers, {weights:,} weights"
    if network.neurons:
        size += f"{' of 8 bits' if network.is_integer else ''}; spikes: {network.alphabet}"
    if found := limits(network):
        size += f"; ReLUs clipped at {_between(*found)}"
    if network.neurons and steps is not None:
        size += f"; an answer after {network.end_to_end_steps(steps)} steps"
    yield size
    if names := known.classes:
        yield f"{len(names)} classes: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
    if made:
        kind = {"data": "images", "distilled": "distilled images"}.get(made.source or "")
        yield f"calibrated on {f'{made.fitted or made.images or 0:,} {kind}' if kind else made.source}"
    yield "print(_.table()) lists the nodes, .provenance says how it was made"


def limits(network: Network) -> tuple[float, float] | None:
    """The smallest and the largest limit of its ReLUs, in the units of the source network; None if none has one."""
    found = [limit for node in network.nodes if (limit := _limit(node.op)) is not None]
    return (min(float(v.min()) for v in found), max(float(v.max()) for v in found)) if found else None


def _limit(op: Op) -> Tensor | None:
    """That of a ReLU, or of the neurons that stand for one."""
    if isinstance(op, Neuron) and op.limit is not None and op.scale is not None:
        return op.limit * op.scale
    return op.limit if isinstance(op, ReLU | Neuron) else None


def title(network: Network) -> str:
    """What it is, in a few words."""
    recipe, what = network.provenance.recipe, network.provenance.source.arch or "a module from Python"
    if not network.neurons:
        return f"{what}, not spiking"
    made = "directly trained" if network.trained else f"recipe {recipe.name}, tuned"
    steps = ", ".join(map(str, network.fitted or (recipe.timesteps,)))
    return f"{what} as a spiking network, {made} for T = {steps}"


def parts(network: Network) -> Iterable[str | Table]:
    """All that there is to read: nodes, shortcuts of a converted network, provenance."""
    yield f"{title(network)}; {len(network.nodes)} nodes, {len(network.neurons)} neuron layers"
    if network.fitted:
        yield f"The nodes are those of T = {network.provenance.recipe.timesteps}; at(T) has those of another."
    yield _nodes(network)
    if network.neurons and not network.trained:  # there nothing is scaled
        yield _shortcuts(network)
    if network.provenance:
        known = sorted(network.provenance.without_lists().to_dict().items())
        yield "\n".join(f"{name}: {json.dumps(value)}" for name, value in known)


def _nodes(network: Network) -> Table:
    """One line per node; the scale is what one spike (or unit of current) stands for in the source network."""
    scales = shortcuts.scales(network)
    rows = []
    for node in network.nodes:
        op = node.op
        scale = _range(getattr(op, "scale", None)) or (f"{scales[node.name]:.4g}" if node.name in scales else "")
        weight = getattr(op, "weight", None)
        weights = "" if weight is None else "x".join(map(str, weight.shape)) or "1"
        if isinstance(op, SYNAPSES) and op.integer is not None:
            weights += f" {str(op.integer.weight.dtype).removeprefix('torch.')}"
        kind = type(op).__name__ + _kind(op)
        rows.append((node.name, kind, _threshold(op), scale, weights, ", ".join(node.inputs)))
    return Table(("node", "operation", "threshold", "scale", "weights", "inputs"), tuple(rows), texts=6)


def _shortcuts(network: Network) -> Table | str:
    """The shortcut conversion model: what each residual branch is multiplied by."""
    rows = tuple(
        (branch.neuron, branch.synapse, branch.kind, f"{branch.ratio:.4f}", f"{branch.scale:.4g}")
        for branch in shortcuts.shortcuts(network)
    )
    titles = ("neuron", "shortcut synapse", "kind", "lambda_in / lambda_out", "lambda_out")
    return Table(titles, rows, texts=5) if rows else "No residual branches."


def _threshold(op: Op) -> str:
    if not isinstance(op, Neuron):
        return ""
    if op.integer is not None:
        return f"{int(op.integer.threshold.min())} ... {int(op.integer.threshold.max())}"
    return ", ".join(f"{float(threshold.max()):g}" for threshold in op.thresholds)


def _range(scale: Tensor | None) -> str:
    """A scale per channel from its smallest to its largest."""
    return "" if scale is None else _between(float(scale.min()), float(scale.max()))


def _between(low: float, high: float) -> str:
    ends = f"{low:.4g}", f"{high:.4g}"
    return ends[0] if ends[0] == ends[1] else " ... ".join(ends)


def _kind(op: Op) -> str:
    """What is special about a ReLU or a neuron layer."""
    limit = [] if (found := _limit(op)) is None else [f"limit {_range(found)}"]
    if not isinstance(op, Neuron):
        return f" ({limit[0]})" if limit else ""
    words = [op.schedule] if op.waits else []
    words += ["signed"] if op.spikes.signed else []
    words += [f"{op.spikes.amplitudes} levels"] if op.spikes.amplitudes > 1 and op.copies == 1 else []
    words += [for_each(op.copies)] if op.copies > 1 else []
    words += ["differential"] if isinstance(op.spikes, Differential) else []
    if op.surrogate is not None:  # directly trained
        words += [f"decay {op.decay:g}", "reset to zero" if op.reset == "zero" else "reset by subtraction"]
        words += [_gradient(op.surrogate)]
    words += limit
    return f" ({', '.join(words)})" if words else ""


def _gradient(surrogate: Surrogate) -> str:
    measure = "steepness" if surrogate.shape in STEEP else "width"
    return f"{surrogate.shape} of {measure} {surrogate.width:g}"


def _numbers(weight: Tensor | None) -> int:
    return 0 if weight is None else weight.numel()
