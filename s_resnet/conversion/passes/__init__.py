"""Passes: functions ``(graph, context, **settings) -> graph``, one per file, each stating what it preserves.

A pass that finds nothing to rewrite returns the very graph it was given.
"""

from .attach_readout import attach_readout
from .calibrate_neurons import calibrate_neurons
from .compensate import compensate
from .dyadic_weights import dyadic_weights
from .fit_readout import fit_readout
from .fit_thresholds import fit_thresholds
from .fold_batchnorm import fold_batchnorm
from .move_maxpool import move_maxpool
from .normalize import normalize
from .quantize_weights import quantize_weights
from .reconstruct import reconstruct
from .relu_to_neuron import relu_to_neuron

__all__ = [
    "attach_readout",
    "calibrate_neurons",
    "compensate",
    "dyadic_weights",
    "fit_readout",
    "fit_thresholds",
    "fold_batchnorm",
    "move_maxpool",
    "normalize",
    "quantize_weights",
    "reconstruct",
    "relu_to_neuron",
]
