"""S-ResNet: turn a trained ResNet into a spiking ResNet, run it, and say how good it is and what it costs.

For example::

    import s_resnet

    snn = s_resnet.convert(model, calibration_batches)      # a Graph
    logits = snn(images, timesteps=16)                      # [B, N], in the units of the model's logits
    report = s_resnet.evaluate(snn, loader, timesteps=16)
    s_resnet.save(snn, "network.snn")
"""

from . import (
    analysis,
    conversion,
    data,
    errors,
    export,
    files,
    frontend,
    graph,
    kernels,
    models,
    report,
    runtime,
    simulation,
    training,
)
from .analysis import Report, evaluate, verify
from .conversion import RECIPES, Calibration, Recipe, calibrate, convert
from .errors import SResNetError
from .frontend import load_checkpoint, trace
from .graph import Graph, load, save
from .simulation import Simulation, simulate
from .training import Training, fine_tune, train
from .version import __version__

__all__ = [
    "RECIPES",
    "Calibration",
    "Graph",
    "Recipe",
    "Report",
    "SResNetError",
    "Simulation",
    "Training",
    "__version__",
    "analysis",
    "calibrate",
    "conversion",
    "convert",
    "data",
    "errors",
    "evaluate",
    "export",
    "files",
    "fine_tune",
    "frontend",
    "graph",
    "kernels",
    "load",
    "load_checkpoint",
    "models",
    "report",
    "runtime",
    "save",
    "simulate",
    "simulation",
    "trace",
    "train",
    "training",
    "verify",
]
