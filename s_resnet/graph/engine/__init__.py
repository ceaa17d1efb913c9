"""The engine: what runs the layers of a Graph, analog one node after another, spiking over chunks of time steps."""

from .analog import activations
from .chunks import analog_portions, together
from .plan import Plan, at_once, freed, prepare, windowed
from .precision import arithmetic
from .run import USUAL, Encode, Job, StreamSettings, Whole, constants
from .steps import advance, portions

__all__ = [
    "USUAL",
    "Encode",
    "Job",
    "Plan",
    "StreamSettings",
    "Whole",
    "activations",
    "advance",
    "analog_portions",
    "arithmetic",
    "at_once",
    "constants",
    "freed",
    "portions",
    "prepare",
    "together",
    "windowed",
]
