"""The Graph: an immutable network of operations, how it runs, and its file."""

from . import ops, provenance
from .alphabet import Amplitudes, Binary, Copies, Differential, MultiThreshold, Signed, Surrogate
from .artifact import load, save
from .engine import StreamSettings
from .graph import Graph
from .module import GraphModule
from .neuron import Neuron
from .ops import Node, Scale
from .readout import Readout, SpikingMaxPool2d
from .shortcuts import Shortcut, scales, shortcuts
from .state import State

__all__ = [
    "Amplitudes",
    "Binary",
    "Copies",
    "Differential",
    "Graph",
    "GraphModule",
    "MultiThreshold",
    "Neuron",
    "Node",
    "Readout",
    "Scale",
    "Shortcut",
    "Signed",
    "SpikingMaxPool2d",
    "State",
    "StreamSettings",
    "Surrogate",
    "load",
    "ops",
    "provenance",
    "save",
    "scales",
    "shortcuts",
]
