"""ResNets as plain ``torch.nn.Module``s."""

from .catalog import ARCHITECTURES, build
from .layers import Encode, Repeat, SpikingNeuron, TDBatchNorm2d, TimeMean
from .ms_resnet import MSBlock
from .resnet import CifarResNet
from .sew_resnet import sew_resnet
from .spiking_resnet import PlainBlock
from .torchvision_resnets import variants_of

__all__ = [
    "ARCHITECTURES",
    "CifarResNet",
    "Encode",
    "MSBlock",
    "PlainBlock",
    "Repeat",
    "SpikingNeuron",
    "TDBatchNorm2d",
    "TimeMean",
    "build",
    "sew_resnet",
    "variants_of",
]
