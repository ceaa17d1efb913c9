"""Simulation: a spiking network over T time steps."""

from .closed_form import closed_form
from .features import features
from .record import Trace, record
from .simulate import AnytimeSimulation, Simulation, simulate, simulate_until_confident

__all__ = [
    "AnytimeSimulation",
    "Simulation",
    "Trace",
    "closed_form",
    "features",
    "record",
    "simulate",
    "simulate_until_confident",
]
