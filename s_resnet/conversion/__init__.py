"""Conversion: a trained network becomes a spiking one."""

from . import passes
from .alternatives import Alternative, alternatives
from .auto import Auto, choose_recipe
from .batchnorm import calibrate_from_batchnorm
from .calibrate import Calibration, calibrate
from .context import Context
from .convert import convert
from .distill import distill_images
from .latency import timesteps_within, with_neurons
from .published import PUBLISHED, PublishedMethod, recipe_named
from .quantized_ann import quantized_ann
from .recipes import RECIPES, Recipe, default_recipe
from .several import own_and_others
from .source_check import SourceCheck, check_source
from .step import Step

__all__ = [
    "PUBLISHED",
    "RECIPES",
    "Alternative",
    "Auto",
    "Calibration",
    "Context",
    "PublishedMethod",
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
    "distill_images",
    "own_and_others",
    "passes",
    "quantized_ann",
    "recipe_named",
    "timesteps_within",
    "with_neurons",
]
