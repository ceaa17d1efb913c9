"""S-ResNet: turn a trained ResNet into a spiking ResNet, run it, and say how good it is and what it costs.

import s_resnet

snn = s_resnet.convert(model, calibration_batches)      # a Graph
logits = snn(images, timesteps=16)                      # [B, N], in the units of the model's logits
report = s_resnet.evaluate(snn, loader, timesteps=16)
s_resnet.save(snn, "network.snn")
"""

from . import passes
from .alternatives import Alternative, alternatives
from .apply_recipe import apply_recipe
from .artifact import load, save
from .auto import choose_recipe
from .batchnorm import calibrate_from_batchnorm
from .calibrate import Calibration, calibrate
from .checkpoint import Checkpoint, load_checkpoint
from .classes import match_classes, natural_order, network_classes, order_note, read_names
from .closed_form import closed_form
from .convert import convert
from .data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageData,
    ImageLoader,
    Preprocessing,
    choose,
    preprocessing_for,
    without_labels,
)
from .device import find_device
from .distributed import exchange, first_process_first, process_group, shard
from .energy import Constants, Cost, Energy, energy, load_constants
from .errors import (
    BackendUnavailable,
    ConversionError,
    InvalidArtifact,
    InvalidCheckpoint,
    InvalidData,
    SResNetError,
    SResNetWarning,
    TrainingDiverged,
    UnsupportedModel,
)
from .event_data import EVENT_BINS, Binning, EventData, EventLoader, Events, bin_events
from .export import (
    ENGINES,
    Comparison,
    LayerComparison,
    export_nir,
    export_npz,
    export_torch,
    find_engine,
    host_input,
    verify_export,
)
from .figures import Exit, Report, Row, described
from .files import replacing
from .graph import Graph, State
from .graph_module import GraphModule
from .heldout import fingerprints, seen
from .kernels import describe as describe_kernels
from .layer_operations import LayerOperations, SourceOperations, Traffic
from .measured_on import fitted_for
from .models.catalog import ARCHITECTURES, build
from .models.resnet import CifarResNet
from .models.spiking import Encode, Repeat, SpikingNeuron, TDBatchNorm2d, TimeMean
from .models.torchvision_resnets import variants_of
from .neuron import Neuron, Readout, SpikingMaxPool2d
from .open_data import held_out_beside, loader_for, open_data, read_preprocessing, stored_preprocessing
from .operations import Operations, count_operations
from .ops import Node, Scale
from .page import Study, study, write_page
from .progress import Progress
from .qcfs import QCFSModule
from .recipes import RECIPES, Recipe, Step
from .recorder import Trace, record
from .report import evaluate, powers_of_two
from .request import Request
from .shortcuts import Shortcut, scales, shortcuts
from .simulate import AnytimeSimulation, Simulation, simulate, simulate_until_confident
from .source_check import SourceCheck, check_source
from .trace import trace
from .training import PRESETS, Preset, Trained, Training, Tuned, fine_tune, preset, train, tuning
from .verify import LayerError, Verification, verify
from .verify_trained import TrainedLayer, TrainedVerification
from .version import __version__

__all__ = [
    "ARCHITECTURES",
    "ENGINES",
    "EVENT_BINS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PRESETS",
    "RECIPES",
    "Alternative",
    "AnytimeSimulation",
    "BackendUnavailable",
    "Binning",
    "Calibration",
    "Checkpoint",
    "CifarResNet",
    "Comparison",
    "Constants",
    "ConversionError",
    "Cost",
    "Encode",
    "Energy",
    "EventData",
    "EventLoader",
    "Events",
    "Exit",
    "Graph",
    "GraphModule",
    "ImageData",
    "ImageLoader",
    "InvalidArtifact",
    "InvalidCheckpoint",
    "InvalidData",
    "LayerComparison",
    "LayerError",
    "LayerOperations",
    "Neuron",
    "Node",
    "Operations",
    "Preprocessing",
    "Preset",
    "Progress",
    "QCFSModule",
    "Readout",
    "Recipe",
    "Repeat",
    "Report",
    "Request",
    "Row",
    "SResNetError",
    "SResNetWarning",
    "Scale",
    "Shortcut",
    "Simulation",
    "SourceCheck",
    "SourceOperations",
    "SpikingMaxPool2d",
    "SpikingNeuron",
    "State",
    "Step",
    "Study",
    "TDBatchNorm2d",
    "TimeMean",
    "Trace",
    "Traffic",
    "Trained",
    "TrainedLayer",
    "TrainedVerification",
    "Training",
    "TrainingDiverged",
    "Tuned",
    "UnsupportedModel",
    "Verification",
    "__version__",
    "alternatives",
    "apply_recipe",
    "bin_events",
    "build",
    "calibrate",
    "calibrate_from_batchnorm",
    "check_source",
    "choose",
    "choose_recipe",
    "closed_form",
    "convert",
    "count_operations",
    "describe_kernels",
    "described",
    "energy",
    "evaluate",
    "exchange",
    "export_nir",
    "export_npz",
    "export_torch",
    "find_device",
    "find_engine",
    "fine_tune",
    "fingerprints",
    "first_process_first",
    "fitted_for",
    "held_out_beside",
    "host_input",
    "load",
    "load_checkpoint",
    "load_constants",
    "loader_for",
    "match_classes",
    "natural_order",
    "network_classes",
    "open_data",
    "order_note",
    "passes",
    "powers_of_two",
    "preprocessing_for",
    "preset",
    "process_group",
    "read_names",
    "read_preprocessing",
    "record",
    "replacing",
    "save",
    "scales",
    "seen",
    "shard",
    "shortcuts",
    "simulate",
    "simulate_until_confident",
    "stored_preprocessing",
    "study",
    "trace",
    "train",
    "tuning",
    "variants_of",
    "verify",
    "verify_export",
    "without_labels",
    "write_page",
]
