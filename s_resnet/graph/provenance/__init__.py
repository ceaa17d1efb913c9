"""The provenance: what a network says of where it came from, typed, and as JSON in its file."""

from .parts import (
    AppliedPass,
    AppliedRecipe,
    BatchNormFit,
    CalibrationSummary,
    Choice,
    Compensation,
    ReconstructedBlock,
    Reconstruction,
    ReconstructionSettings,
    SeenData,
    Source,
    SourceSummary,
    Trial,
    TriedFactor,
    Tuning,
    Versions,
)
from .provenance import Parts, Provenance

__all__ = [
    "AppliedPass",
    "AppliedRecipe",
    "BatchNormFit",
    "CalibrationSummary",
    "Choice",
    "Compensation",
    "Parts",
    "Provenance",
    "ReconstructedBlock",
    "Reconstruction",
    "ReconstructionSettings",
    "SeenData",
    "Source",
    "SourceSummary",
    "Trial",
    "TriedFactor",
    "Tuning",
    "Versions",
]
