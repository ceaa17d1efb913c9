"""Conversion: a trained network becomes a spiking one."""

from . import passes
from .alternatives import Alternative, alternatives
from .auto import Auto, choose_recipe
from .batchnorm import calibrate_from_batchnorm
from .calibrate import Calibration, calibrate
from .context import Context
from .convert import convert
from .latency import timesteps_within, with_neurons
from .quantized_ann import quantized_ann
from .recipes import RECIPES, Recipe, Step, default_recipe
from .source_check import SourceCheck, check_source

__all__ = [
    "RECIPES",
    "Alternative",
    "Auto",
    "Calibration",
    "Context",
    "Recipe",
    "SourceCheck",
    "Step",
    "alternatives",
    "calibrate",
    "calibrate_from_batchnorm",
    "check_source",
    "choose_recipe",
    "convert",
    "default_recipe",
    "passes",
    "quantized_ann",
    "timesteps_within",
    "with_neurons",
]
