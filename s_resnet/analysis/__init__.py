"""Analysis: how good a spiking network is, where it loses, and what it costs."""

from .cost.energy import Constants, Cost, Energy, energy, load_constants
from .cost.layers import LayerOperations, SourceOperations, Traffic
from .cost.operations import Operations, count_operations
from .evaluate import EvaluationSettings, evaluate, powers_of_two
from .figures import EarlyExit, Report, Row, described
from .measured_on import fitted_for
from .verification import LayerVerification, Verification
from .verify import verify

__all__ = [
    "Constants",
    "Cost",
    "EarlyExit",
    "Energy",
    "EvaluationSettings",
    "LayerOperations",
    "LayerVerification",
    "Operations",
    "Report",
    "Row",
    "SourceOperations",
    "Traffic",
    "Verification",
    "count_operations",
    "described",
    "energy",
    "evaluate",
    "fitted_for",
    "load_constants",
    "powers_of_two",
    "verify",
]
