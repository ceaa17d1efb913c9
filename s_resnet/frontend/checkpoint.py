"""Reading a trained network from a file: weights only, never code."""

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InvalidCheckpoint, message
from .exported import file as exported_program
from .loaded import Checkpoint
from .onnx import file as onnx_file
from .weights.recognize import check_arch, recognize
from .weights.state_dict import fill, find_state, stored
from .weights.state_names import plain_weights, stripped, without_extras
from .weights.trained_file import is_trained, trained
from .weights.weight_files import check_config, read_weights


def load_checkpoint(path: str | os.PathLike[str], arch: str | None = None, ema: bool = False) -> Checkpoint:
    """Read a ResNet from a file of PyTorch, safetensors, ONNX or ``torch.export``; no code in the file is ever run.

    A Hugging Face folder is read too. Of weights in several files, the index or any of the parts may be named.

    The architecture is recognized from names and shapes: ResNets, ResNeXts, wide and pre-activated ResNets for
    ImageNet and CIFAR, of any width and with any number of classes and channels, in the layouts of
    ``docs/reference/checkpoints.md``. What no checkpoint records, such as max-pools and strides, is as usual for the
    layout, and listed in ``assumed``. Files of ``sresnet train`` record which network of
    :func:`s_resnet.models.build` they hold.

    Counters of operations, and tensors of losses and metrics, are left out. Weight and spectral normalization are
    computed. Weights in half or double precision become float32.

    Args:
        path: the file.
        arch: the architecture that the file must hold, by default any known one; with words for what no checkpoint
            records, as in ``"resnet18-nomaxpool"``.
        ema: whether to take the moving average of the weights that the file holds beside them.

    Raises:
        InvalidCheckpoint: the file cannot be read, holds no such network or no average, or has a weight that is not
            finite.
    """
    path = Path(path)
    where = str(path)
    reader = _reader(path)
    if reader is not None:
        _check_none(arch, where)
        program = reader(path)
        _check_no_average(ema, where)
        return program
    content = read_weights(path)
    if is_trained(content.value):
        _check_no_average(ema, where)
        return trained(content.value, arch, content.digest, path)
    if arch is not None:
        check_arch(arch, where)
    found = find_state(content.value, where, ema)
    check_config(path, found.state, arch)
    tensors, left_out = without_extras(found.state)
    state = plain_weights(stored(stripped(tensors), where, content.size))
    found_as = recognize({name: tuple(tensor.shape) for name, tensor in state.items()}, arch, where)
    shapes = {name: tensor.shape for name, tensor in found_as.model.state_dict().items()}
    weights = {found_as.names[name]: tensor for name, tensor in state.items()}
    fill(found_as.model, {name: tensor.reshape(shapes[name]) for name, tensor in weights.items()}, where)
    return Checkpoint(
        model=found_as.model.eval(),
        arch=found_as.arch,
        num_classes=found_as.num_classes,
        input_size=found_as.input_size,
        digest=content.digest,
        name=path.name,
        channels=found_as.channels,
        left_out=left_out,
        assumed=found_as.assumed,
        variants=found_as.variants,
        weights=found.said,
        ema=ema,
    )


def _reader(path: Path) -> Callable[[Path], Checkpoint] | None:
    """Who reads a file that holds the network itself; None where it holds weights alone."""
    if exported_program.is_exported_program(path):  # its name can end in anything
        return exported_program.load
    return onnx_file.load if path.suffix.lower() == ".onnx" else None


def _check_none(arch: str | None, where: str) -> None:
    if arch is not None:
        got, expected = f"arch {arch!r}", "none, since this file says which network it holds"
        raise InvalidCheckpoint(message(where, "architecture", got, expected, "Leave out arch"))


def _check_no_average(ema: bool, where: str) -> None:
    if ema:
        got, expected = "a file that holds one network", "an average of weights beside them"
        raise InvalidCheckpoint(message(where, "average", got, expected, "Leave out ema"))
