"""Export: a spiking network for other engines and machines, and the proof that it runs there with the same spikes."""

from .engines import ENGINES, Comparison, LayerComparison, verify_export
from .lower import host_input
from .nir import export_nir

__all__ = ["ENGINES", "Comparison", "LayerComparison", "export_nir", "host_input", "verify_export"]
