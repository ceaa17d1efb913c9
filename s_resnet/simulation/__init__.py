"""Simulation: a spiking network over T time steps."""

from .anytime import AnytimeSimulation, simulate_with_early_exit
from .closed_form import closed_form
from .features import features
from .record import Trace, record
from .simulate import Simulation, SimulationSettings, simulate

__all__ = [
    "AnytimeSimulation",
    "Simulation",
    "SimulationSettings",
    "Trace",
    "closed_form",
    "features",
    "record",
    "simulate",
    "simulate_with_early_exit",
]
