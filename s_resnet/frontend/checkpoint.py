"""Reading a trained network from a file: weights only, never code."""

import os
from pathlib import Path

from torch import nn

from ..models.torchvision_resnets import base_of
from .checkpoint_file import read
from .loaded import Checkpoint
from .program_files import load_program
from .recognize import check_arch, recognize
from .state_dict import fill, find_state, stored
from .state_names import plain_weights, renamed, stripped, without_extras
from .trained_file import is_trained, trained

SMALL_STEM = "nomaxpool"  # the variant for images of 32 pixels


def load_checkpoint(path: str | os.PathLike[str], arch: str | None = None) -> Checkpoint:
    """Read a ResNet from a file of ``torch.save`` or ``.safetensors``; no code in the file is ever run.

    The architecture is recognized from names and shapes: torchvision's ResNets, ResNeXts and wide ResNets, and
    :class:`s_resnet.models.CifarResNet`, with any number of classes and channels. Files of ``sresnet train`` say
    themselves which network of :func:`s_resnet.models.build` they hold.

    Counters of operations, and tensors of losses and metrics, are left out. Weight and spectral normalization are
    computed. Weights in half or double precision become float32.

    Args:
        path: the file.
        arch: the architecture that the file must hold; by default any known one.

    Raises:
        InvalidCheckpoint: the file cannot be read, holds no such network, or has a weight that is not finite.
    """
    path = Path(path)
    if (found := load_program(path, arch)) is not None:
        return found
    where = str(path)
    content, digest = read(path)
    if is_trained(content):
        return trained(content, arch, digest, path)
    if arch is not None:
        check_arch(arch, where)
    weights, left_out = without_extras(find_state(content, where))
    state = plain_weights(stored(renamed(stripped(weights)), path))
    arch, model = recognize({name: tuple(tensor.shape) for name, tensor in state.items()}, arch, where)
    fill(model, state, where)
    (classifier,) = (module for module in model.modules() if isinstance(module, nn.Linear))
    size, channels = 224 if base_of(arch) and SMALL_STEM not in arch else 32, state["conv1.weight"].shape[1]
    classes, model = classifier.out_features, model.eval()
    return Checkpoint(model, arch, classes, size, digest, path.name, channels=channels, left_out=left_out)
