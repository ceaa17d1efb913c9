"""The layers of directly trained networks as operations of a Graph."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import UnsupportedModel, message
from ..graph.alphabet import Binary, MultiThreshold, Surrogate
from ..graph.neuron import Neuron
from ..graph.ops import BatchNorm2d, Op
from ..graph.readout import Readout
from ..models.layers import Encode, Repeat, SpikingNeuron, TDBatchNorm2d, TimeMean

# Modules that become one operation, or none: a Graph runs one step at a time, so Encode and Repeat vanish.
LAYERS = (SpikingNeuron, TDBatchNorm2d, Encode, Repeat, TimeMean)


def layer(module: nn.Module) -> tuple[Op, ...]:
    """The operations of a module of :data:`LAYERS`; empty where it only passes its input on."""
    if isinstance(module, SpikingNeuron):
        return (_neuron(module),)
    if isinstance(module, TDBatchNorm2d):
        return (_batch_norm(module),)
    return (Readout(torch.ones(())),) if isinstance(module, TimeMean) else ()


def timesteps(modules: Iterable[nn.Module]) -> int | None:
    """The T of a network of these modules; None for an ANN.

    Raises:
        UnsupportedModel: a layer is missing, or layers have different T.
    """
    timed = [module for module in modules if isinstance(module, Encode | Repeat | SpikingNeuron | TimeMean)]
    if not timed:
        return None
    lacking = [kind.__name__ for kind in (Repeat, TimeMean) if not any(isinstance(module, kind) for module in timed)]
    if lacking:
        got, expected = f"none of type {' and '.join(lacking)}", "neurons between Repeat and TimeMean"
        raise UnsupportedModel(message("spiking network", "its layers", got, expected, "Add the layer"))
    found = sorted({module.timesteps for module in timed})
    if len(found) > 1:
        got, expected = " and ".join(map(str, found)), "the same T in every layer"
        raise UnsupportedModel(message("spiking network", "timesteps", got, expected, "Change the others"))
    return found[0]


def _neuron(module: SpikingNeuron) -> Neuron:
    firing = module.firing
    thresholds = torch.tensor(firing.thresholds, dtype=torch.float32)
    return Neuron(
        thresholds[0].clone(),
        reset=firing.reset,
        decay=firing.decay,
        amplitude=1.0,
        spikes=MultiThreshold(thresholds) if len(thresholds) > 1 else Binary(),
        surrogate=Surrogate(firing.surrogate, firing.width, firing.detach_reset),
    )


def _batch_norm(module: TDBatchNorm2d) -> BatchNorm2d:
    assert module.running_mean is not None
    var, eps = module.root()
    return BatchNorm2d(module.weight.detach() * module.threshold, module.bias.detach(), module.running_mean, var, eps)
