"""The shortcut conversion model of a network, as figures: what every residual branch is multiplied by, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..runtime.display import Displayed
from .neuron import Neuron
from .ops import Node, Scale
from .provenance import Provenance


class Network(Protocol):
    """What of a :class:`s_resnet.Graph` is looked at here; it shows its own shortcuts, so that it lies above."""

    @property
    def neurons(self) -> tuple[Node, ...]: ...

    @property
    def provenance(self) -> Provenance: ...

    def __getitem__(self, name: str) -> Node: ...


@dataclass(frozen=True, repr=False)
class Shortcut(Displayed):
    """One residual branch.

    Attributes:
        neuron: the layer that integrates it.
        synapse: the node that it arrives through.
        kind: ``"identity"``, whose weight is the ratio itself, or ``"projection"``, whose convolution's weights
            include it.
        ratio: lambda_in / lambda_out, mean over channels.
        scale: lambda_out, what a spike of the neuron stands for in the source network.
    """

    neuron: str
    synapse: str
    kind: str
    ratio: float
    scale: float


def scales(snn: Network) -> dict[str, float]:
    """The value of one spike of a layer (or unit of the logits) in the source network, the mean over channels."""
    found = {name: float(value) for name, value in (snn.provenance.calibration.scales or {}).items()}
    for node in snn.neurons:
        assert isinstance(node.op, Neuron)
        if node.op.scale is not None:
            found[node.name] = float(node.op.scale.mean())
    return found


def shortcuts(snn: Network) -> tuple[Shortcut, ...]:
    """Every residual branch in execution order. Source: the shortcut conversion model of arXiv:1805.01352."""
    known = scales(snn)
    found = []
    for node in snn.neurons:
        for name in node.inputs[1:]:
            op, out = snn[name].op, known.get(node.name, 1.0)
            identity = isinstance(op, Scale)
            ratio = float(op.weight.mean()) if isinstance(op, Scale) else _feeder(snn, name, known) / out
            found.append(Shortcut(node.name, name, "identity" if identity else "projection", ratio, out))
    return tuple(found)


def _feeder(snn: Network, name: str, known: dict[str, float]) -> float:
    """The scale of the neuron that feeds a projection."""
    feeder = snn[name].inputs[0]
    while feeder not in known and snn[feeder].inputs:
        feeder = snn[feeder].inputs[0]
    return known.get(feeder, 1.0)
