"""ResNets as plain ``torch.nn.Module`` objects: the papers' spiking networks, and ANNs to convert."""

from ..kernels.surrogate.reference import Firing
from .catalog import ARCHITECTURES, build
from .layers import LIF, Encode, Repeat, SpikingNeuron, TDBatchNorm2d, TimeMean
from .ms_resnet import MSBlock
from .resnet import CifarResNet
from .sew_resnet import sew_resnet
from .spiking_resnet import Layout, PlainBlock

__all__ = [
    "ARCHITECTURES",
    "LIF",
    "CifarResNet",
    "Encode",
    "Firing",
    "Layout",
    "MSBlock",
    "PlainBlock",
    "Repeat",
    "SpikingNeuron",
    "TDBatchNorm2d",
    "TimeMean",
    "build",
    "sew_resnet",
]
