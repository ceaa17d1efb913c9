"""Export: a spiking network for other engines and machines, and the proof that it runs there with the same spikes."""

from .arrays import export_npz
from .copies import split_copies
from .engines import ENGINES, Comparison, LayerComparison, find_engine, verify_export
from .lower import host_input
from .nir import export_nir
from .program import export_torch

__all__ = [
    "ENGINES",
    "Comparison",
    "LayerComparison",
    "export_nir",
    "export_npz",
    "export_torch",
    "find_engine",
    "host_input",
    "split_copies",
    "verify_export",
]
