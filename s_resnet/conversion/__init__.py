"""Conversion: a trained network becomes a spiking one."""

from . import passes
from .alternatives import Alternative, alternatives
from .apply_recipe import apply_recipe
from .auto import choose_recipe
from .batchnorm import calibrate_from_batchnorm
from .calibrate import Calibration, calibrate
from .convert import convert
from .recipes import RECIPES, Recipe, Step
from .request import Request
from .source_check import SourceCheck, check_source

__all__ = [
    "RECIPES",
    "Alternative",
    "Calibration",
    "Recipe",
    "Request",
    "SourceCheck",
    "Step",
    "alternatives",
    "apply_recipe",
    "calibrate",
    "calibrate_from_batchnorm",
    "check_source",
    "choose_recipe",
    "convert",
    "passes",
]
