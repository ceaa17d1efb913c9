"""What was read from a file: a trained network, and what the file says about it."""

from dataclasses import dataclass

from torch import nn

from ..data.arrays import AsStored
from ..data.events import Binning
from ..data.images import Preprocessing
from ..graph.provenance import SeenData
from ..runtime.display import Displayed


@dataclass(frozen=True, repr=False)
class Checkpoint(Displayed):
    """A trained network that was read from a file.

    Attributes:
        model: ``[B, C, H, W] -> [B, num_classes]``, in float32 and evaluation mode.
        arch: torchvision's name, ``cifar_resnet<depth>`` or another name of the reference, with words for what the
            weights do not tell, as in ``resnet18-nomaxpool``; or a name of :func:`s_resnet.models.build`.
        num_classes: the number of logits, or of features where the file has no classifier.
        input_size: the side of the images that the architecture was made for, in pixels: 32 for a stem that halves
            them at most once, else 224.
        digest: SHA-256 of the file in hexadecimal.
        name: the file's name without its folder.
        timesteps: T of a spiking network; None for an ANN.
        channels: C of the images.
        classes: the names of the classes, where ``sresnet train`` wrote the file.
        preprocessing: how its images are prepared, where ``sresnet train`` wrote the file.
        data: what it was trained on, where ``sresnet train`` wrote the file.
        left_out: tensors of the file that belong to no layer.
        assumed: what the network does as no checkpoint records, where ``arch`` did not say it either; each with the
            ``arch`` for something else. Of a file that holds the network itself: the size of its images, where it takes
            several.
        variants: the other ``arch`` that the file can be read as.
        weights: which of the file's weights these are, where it holds averages.
        ema: whether the average was asked for.
    """

    model: nn.Module
    arch: str
    num_classes: int
    input_size: int
    digest: str
    name: str
    timesteps: int | None = None
    channels: int = 3
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | AsStored | Binning | None = None
    data: SeenData | None = None
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    weights: str = ""
    ema: bool = False
