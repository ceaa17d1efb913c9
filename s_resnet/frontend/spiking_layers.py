"""What the layers of directly trained networks are in a Graph."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import UnsupportedModel
from ..graph.neuron import Neuron, Readout
from ..graph.ops import BatchNorm2d, Op
from ..models.layers import Encode, Repeat, SpikingNeuron, TDBatchNorm2d, TimeMean

# Modules that are one operation, or none: a Graph runs one step at a time, so time is not folded there.
LAYERS = (SpikingNeuron, TDBatchNorm2d, Encode, Repeat, TimeMean)


def layer(module: nn.Module) -> tuple[Op, ...]:
    """The operations of a module of :data:`LAYERS`; none where it passes its input on."""
    if isinstance(module, SpikingNeuron):
        return (_neuron(module),)
    if isinstance(module, TDBatchNorm2d):
        return (_batch_norm(module),)
    return (Readout(torch.ones(())),) if isinstance(module, TimeMean) else ()


def timesteps(modules: Iterable[nn.Module]) -> int | None:
    """The T that a network of these modules is for; None of an ANN. Raises UnsupportedModel for layers out of place."""
    timed = [module for module in modules if isinstance(module, Encode | Repeat | SpikingNeuron | TimeMean)]
    if not timed:
        return None
    lacking = [kind.__name__ for kind in (Repeat, TimeMean) if not any(isinstance(module, kind) for module in timed)]
    if lacking:
        raise UnsupportedModel(
            f"spiking network: its layers, got none of type {' and '.join(lacking)}; expected neurons between Repeat "
            "and TimeMean. Add the layer."
        )
    found = sorted({module.timesteps for module in timed})
    if len(found) > 1:
        raise UnsupportedModel(
            f"spiking network: timesteps, got {' and '.join(map(str, found))}; expected the same T in every layer. "
            "Change the others."
        )
    return found[0]


def _neuron(module: SpikingNeuron) -> Neuron:
    thresholds = torch.tensor(module.thresholds, dtype=torch.float32)
    return Neuron(
        thresholds[0].clone(),
        reset=module.reset,
        decay=module.decay,
        amplitude=1.0,
        firing=thresholds if len(thresholds) > 1 else None,
        surrogate=module.surrogate,
        width=module.width,
        detach_reset=module.detach_reset,
    )


def _batch_norm(module: TDBatchNorm2d) -> BatchNorm2d:
    assert module.running_mean is not None
    var, eps = module.root()
    return BatchNorm2d(module.weight.detach() * module.threshold, module.bias.detach(), module.running_mean, var, eps)
