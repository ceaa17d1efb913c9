"""Passes: functions ``(graph, context, **settings) -> graph``, one per file, each stating what it preserves.

A pass that finds nothing to rewrite returns the very graph it was given.
"""

from .add_half_step import add_half_step
from .attach_readout import attach_readout
from .balance_thresholds import balance_thresholds
from .calibrate_neurons import calibrate_neurons
from .compensate import compensate
from .delay_readout import delay_readout
from .dyadic_weights import dyadic_weights
from .fit_readout import fit_readout
from .fit_thresholds import fit_thresholds
from .fold_batchnorm import fold_batchnorm
from .iterate_thresholds import iterate_thresholds
from .match_every_step import match_every_step
from .match_means import match_means
from .move_maxpool import move_maxpool
from .normalize import normalize
from .peak_thresholds import peak_thresholds
from .quantize_weights import quantize_weights
from .reconstruct import reconstruct
from .relu_to_neuron import relu_to_neuron

__all__ = [
    "add_half_step",
    "attach_readout",
    "balance_thresholds",
    "calibrate_neurons",
    "compensate",
    "delay_readout",
    "dyadic_weights",
    "fit_readout",
    "fit_thresholds",
    "fold_batchnorm",
    "iterate_thresholds",
    "match_every_step",
    "match_means",
    "move_maxpool",
    "normalize",
    "peak_thresholds",
    "quantize_weights",
    "reconstruct",
    "relu_to_neuron",
]
