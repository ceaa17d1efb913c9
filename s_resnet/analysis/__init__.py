"""Analysis: how good a spiking network is, where it loses, and what it costs."""

from .candidates import Candidate, Measured, MeasuringSettings, measure_ann, measure_candidates
from .comparison import Comparison, ComparisonRow, compare
from .cost.energy import Constants, Cost, Energy, energy, load_constants
from .cost.layers import LayerOperations, SourceOperations, Traffic
from .cost.operations import Operations, count_operations
from .evaluate import EvaluationSettings, evaluate, powers_of_two
from .figures import EarlyExit, Report, Row, described
from .measured_on import every_fitted, fitted_for
from .verification import LayerVerification, Verification
from .verify import verify

__all__ = [
    "Candidate",
    "Comparison",
    "ComparisonRow",
    "Constants",
    "Cost",
    "EarlyExit",
    "Energy",
    "EvaluationSettings",
    "LayerOperations",
    "LayerVerification",
    "Measured",
    "MeasuringSettings",
    "Operations",
    "Report",
    "Row",
    "SourceOperations",
    "Traffic",
    "Verification",
    "compare",
    "count_operations",
    "described",
    "energy",
    "evaluate",
    "every_fitted",
    "fitted_for",
    "load_constants",
    "measure_ann",
    "measure_candidates",
    "powers_of_two",
    "verify",
]
