"""Passes: functions ``(graph, calibration, **settings) -> graph``, one per file, each stating what it preserves.

A pass that finds nothing to rewrite returns the very graph it was given.
"""

from .attach_readout import attach_readout
from .compensate import compensate
from .fold_batchnorm import fold_batchnorm
from .move_maxpool import move_maxpool
from .normalize import normalize
from .quantize_weights import quantize_weights
from .relu_to_neuron import relu_to_neuron

__all__ = [
    "attach_readout",
    "compensate",
    "fold_batchnorm",
    "move_maxpool",
    "normalize",
    "quantize_weights",
    "relu_to_neuron",
]
