"""Reading a trained network from a checkpoint file: weights only, never code.

A checkpoint holds tensors by name and no network, so the architecture has to be recognized: candidates are built
without memory (on the meta device), and all their names and shapes are compared with those of the file. What shapes do
not tell (strides, padding, max-pools, nonlinearities) is as in torchvision and in :mod:`s_resnet.models.resnet`, or as
in the variant that ``arch`` names.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..data.events import Binning
from ..data.images import Preprocessing
from ..errors import InvalidCheckpoint, InvalidData, message
from ..graph.provenance import Provenance, SeenData
from ..models.catalog import build
from ..models.resnet import CifarResNet
from ..models.torchvision_resnets import TORCHVISION, base_of, build_torchvision
from ..runtime.display import Displayed
from .checkpoint_file import SAVE, first, read
from .qcfs import QCFSModule
from .state_names import plain_weights, renamed, stripped, without_extras

Shape: TypeAlias = tuple[int, ...]

KNOWN = ", ".join(TORCHVISION) + ", or cifar_resnet20, cifar_resnet56, ... (depth 6n + 2)"
SMALL_STEM = "nomaxpool"  # the variant for images of 32 pixels

# Where training scripts put the weights, the best place first. Averages come last: papers report the plain weights.
NESTS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")

FORMAT = 1  # the version of what ``sresnet train`` writes
COUNTER = ".num_batches_tracked"
# The largest sensible settings of a training checkpoint, so that no file makes us build an enormous network.
MOST = {"timesteps": 2**16, "channels": 2**10, "size": 2**10, "classes": 2**20, "width": 2**16, "levels": 2**16}
DEEPEST = 100  # nested dicts
PYTHON = "use s_resnet.convert(model) from Python"


@dataclass(frozen=True, repr=False)
class Checkpoint(Displayed):
    """A trained network that was read from a file.

    Attributes:
        model: ``[B, C, H, W] -> [B, num_classes]``, in float32 and evaluation mode.
        arch: torchvision's name, also with a variant as in ``resnet18-nomaxpool``; ``cifar_resnet<depth>``; or a name
            of :func:`s_resnet.models.build`.
        num_classes: the number of logits.
        input_size: the side of the images that the architecture was made for, in pixels: 224 for torchvision, 32 for
            CIFAR.
        digest: SHA-256 of the file in hexadecimal.
        name: the file's name without its folder.
        timesteps: T of a spiking network; None for an ANN.
        channels: C of the images.
        classes: the names of the classes, where ``sresnet train`` wrote the file.
        preprocessing: how its images are prepared, where ``sresnet train`` wrote the file.
        data: what it was trained on, where ``sresnet train`` wrote the file.
        left_out: tensors of the file that belong to no layer.
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
    preprocessing: Preprocessing | Binning | None = None
    data: SeenData | None = None
    left_out: tuple[str, ...] = ()


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
    where = str(path)
    content, digest = read(path)
    if isinstance(content, dict) and {"format", "arch", "settings"} <= content.keys():
        return _trained(content, arch, digest, path)
    if arch is not None:
        _check_arch(arch, where)
    found, left_out = without_extras(_find_state(content, where))
    state = plain_weights(_stored(renamed(stripped(found)), path))
    arch, model = recognize({name: tuple(tensor.shape) for name, tensor in state.items()}, arch, where)
    _fill(model, state, where)
    (classifier,) = (module for module in model.modules() if isinstance(module, nn.Linear))
    size, channels = 224 if base_of(arch) and SMALL_STEM not in arch else 32, state["conv1.weight"].shape[1]
    classes, model = classifier.out_features, model.eval()
    return Checkpoint(model, arch, classes, size, digest, path.name, channels=channels, left_out=left_out)


def _trained(content: Mapping[str, Any], arch: str | None, digest: str, path: Path) -> Checkpoint:
    """The network in a file of ``sresnet train``, after whichever epoch."""
    where, again = str(path), "Train it again, or copy the file again"
    version, name = content["format"], content["arch"]
    if not isinstance(version, int) or version > FORMAT:
        upgrade = "Upgrade S-ResNet"
        raise InvalidCheckpoint(
            message(where, "training checkpoint", f"format {version}", f"at most {FORMAT}", upgrade)
        )
    if arch not in (None, name):
        raise InvalidCheckpoint(message(where, "architecture", repr(name), repr(arch), "Leave out arch"))
    try:
        settings, state = content["settings"], _stored(dict(content["state_dict"]), path)
        steps, channels, size, classes = (settings[key] for key in ("timesteps", "channels", "size", "classes"))
        options = {"width": settings["width"], "normalize_input": settings.get("normalize_input", False)}
        for key, most in MOST.items():
            optional = key in ("timesteps", "width", "levels") and settings.get(key) is None
            if not optional and (type(settings[key]) is not int or not 1 <= settings[key] <= most):
                raise ValueError(f"{key} {settings[key]!r}, expected 1 to {most}")
        with torch.device("meta"):
            shape = (channels, size, size)
            model = build(name, classes, timesteps=steps, input_shape=shape, **options).float()
        said = Provenance.from_json({name: content[name] for name in ("classes", "preprocessing", "data")})
        expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        _, difference = _difference(expected, {key: tuple(tensor.shape) for key, tensor in state.items()})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, InvalidData) as error:
        got, wanted = f"no network ({error})", "what sresnet train wrote"
        raise InvalidCheckpoint(message(where, "training checkpoint", got, wanted, again)) from None
    if difference:
        raise InvalidCheckpoint(message(where, "names and shapes", difference, f"exactly those of {name}", again))
    _fill(model, state, where)
    if "thresholds" in content:
        try:
            model = QCFSModule(model, torch.zeros(2, channels, size, size), settings["levels"], content["thresholds"])
        except (LookupError, TypeError, AttributeError, RuntimeError, InvalidData) as error:
            raise InvalidCheckpoint(
                message(where, "thresholds", str(error), "one tensor for each ReLU", again)
            ) from None
    return Checkpoint(
        model=model.eval(),
        arch=name,
        num_classes=classes,
        input_size=size,
        digest=digest,
        name=path.name,
        timesteps=steps,
        channels=channels,
        classes=said.classes or (),
        preprocessing=said.preprocessing,
        data=said.data,
    )


def recognize(shapes: Mapping[str, Shape], arch: str | None = None, where: str = "checkpoint") -> tuple[str, nn.Module]:
    """The architecture with exactly these names and shapes, and its module on the meta device.

    BatchNorm's counters (``num_batches_tracked``) may be missing. The classifier may have any number of classes, lack
    its bias, or be the only layer with weights in a Sequential.

    Args:
        shapes: the shapes of the tensors by name.
        arch: the architecture that they must fit; by default any known one.
        where: the file, for the message.

    Raises:
        InvalidCheckpoint: no known architecture has these names and shapes.
    """
    blocks = _blocks_per_stage(shapes)
    candidates = [arch] if arch else [name for name, known in TORCHVISION.items() if known == blocks]
    if not arch and len(blocks) == 3 and len(set(blocks)) == 1:
        candidates.append(f"cifar_resnet{6 * blocks[0] + 2}")
    differences: list[tuple[int, str, str]] = []
    for candidate in candidates:
        model = _build(candidate, shapes)
        head = "fc" if base_of(candidate) else "linear"
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        count, difference = _difference(_without(head, expected), _without(head, shapes))
        if not count:
            setattr(model, head, _classifier(head, expected[f"{head}.weight"][1], shapes, where))
            return candidate, model
        differences.append((count, difference, candidate))
    if arch:
        remedy = f"Leave out arch to have the architecture read from the file, or {PYTHON}"
        raise InvalidCheckpoint(
            message(where, "names and shapes", differences[0][1], f"exactly those of {arch}", remedy)
        )
    if differences:
        _, difference, nearest = min(differences)
        got, remedy = f"nearly those of {nearest}: {difference}", f"Build the network in Python and {PYTHON}"
        raise InvalidCheckpoint(
            message(where, "names and shapes of no known architecture", got, f"exactly those of {nearest}", remedy)
        )
    got = f"stages of {', '.join(map(str, blocks))} blocks" if blocks else f"{len(shapes)} tensors ({first(shapes)})"
    remedy = f"Pass arch=NAME to see in what the file differs from that network, or {PYTHON}"
    raise InvalidCheckpoint(
        message(where, "names and shapes of no known architecture", got, f"those of {KNOWN}", remedy)
    )


def _check_arch(arch: str, where: str) -> None:
    depth = re.fullmatch(r"cifar_resnet([1-9]\d{0,3})", arch)
    if base_of(arch) or (depth and int(depth[1]) >= 8 and int(depth[1]) % 6 == 2):
        return
    raise InvalidCheckpoint(
        message(where, "unknown architecture", repr(arch), KNOWN, "Pass one of these, or leave out arch")
    )


# ---- the state dict


def _find_state(content: object, where: str) -> dict[str, Tensor]:
    """The weights in the saved object: the dict of tensors under the best-known name, or else the largest one."""
    found = sorted(_dicts_of_tensors(content), key=lambda candidate: len(candidate[1]))
    if not found:
        got = f"a {type(content).__name__}"
        if isinstance(content, dict):
            got = f"a dict of {first(map(str, content))}" if content else "an empty dict"
        expected, remedy = "a state dict: tensors by name", f"Load the network in Python and {SAVE}"
        raise InvalidCheckpoint(message(where, "no tensors", got, expected, remedy))
    ranks = {name: rank for rank, name in enumerate((*NESTS, "", *AVERAGES))}

    def rank(path: tuple[str, ...]) -> int:
        return max(ranks.get(name, ranks[""]) for name in path or ("",))

    # A few tensors beside the weights, such as a step counter, are not a state dict.
    large = [(path, state) for path, state in found if 10 * len(state) >= len(found[-1][1])]
    return min(large, key=lambda candidate: (rank(candidate[0]), -len(candidate[1])))[1]


def _dicts_of_tensors(content: object) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict with tensors by name, at any depth, with the keys that lead to it."""
    queue: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()  # a pickle can contain itself
    for path, value in queue:
        if not isinstance(value, dict) or id(value) in seen or len(path) > DEEPEST:
            continue
        seen.add(id(value))
        named = {key: item for key, item in value.items() if isinstance(key, str)}
        if tensors := {key: item for key, item in named.items() if isinstance(item, Tensor)}:
            yield path, tensors
        queue.extend(((*path, key), item) for key, item in named.items())


# ---- the architecture


def _blocks_per_stage(shapes: Mapping[str, Shape]) -> Shape:
    blocks = {match[0] for name in shapes if (match := re.match(r"layer[1-4]\.\d+\.", name))}
    counts = [sum(block.startswith(f"layer{stage}.") for block in blocks) for stage in (1, 2, 3, 4)]
    return tuple(count for count in counts if count)


def _build(arch: str, shapes: Mapping[str, Shape]) -> nn.Module:
    """The architecture on the meta device, with as many channels in the first convolution as the file."""
    model = _built(arch, shapes)
    stem, found = model.get_submodule("conv1"), shapes.get("conv1.weight", ())
    assert isinstance(stem, nn.Conv2d)
    if len(found) == 4 and 1 <= found[1] <= 1024:
        weight = stem.weight.new_empty(stem.out_channels, found[1], *stem.kernel_size)
        stem.in_channels, stem.weight = found[1], nn.Parameter(weight)
    return model


def _built(arch: str, shapes: Mapping[str, Shape]) -> nn.Module:
    """The architecture on the meta device; a CIFAR network has the width and shortcuts of the file."""
    with torch.device("meta"):
        if base_of(arch):
            return build_torchvision(arch).float()
        stem = shapes.get("conv1.weight", ())
        return CifarResNet(
            int(arch.removeprefix("cifar_resnet")),
            width=max(1, stem[0]) if stem else 16,
            shortcut="B" if any(".shortcut." in name for name in shapes) else "A",
            project_first="layer1.0.shortcut.0.weight" in shapes,
        ).float()


def _without(head: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(f"{head}.")}


def _difference(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> tuple[int, str]:
    """In how many tensors ``found`` differs from ``expected``, and how, in words."""
    both = [name for name in expected if name in found]
    parts = {
        "missing": [name for name in expected if name not in found and not name.endswith(COUNTER)],
        "unexpected": [name for name in found if name not in expected],
        "mis-shaped": [f"{n} is {found[n]}, not {expected[n]}" for n in both if found[n] != expected[n]],
    }
    said = [f"{len(names)} {word} ({first(names)})" for word, names in parts.items() if names]
    return sum(map(len, parts.values())), ", ".join(said)


def _classifier(head: str, features: int, shapes: Mapping[str, Shape], where: str) -> nn.Module:
    """The linear layer of the file on the meta device, in a Sequential if it is in one there."""
    found = {name.removeprefix(f"{head}."): shapes[name] for name in shapes if name.startswith(f"{head}.")}
    matrices = [name for name, shape in found.items() if len(shape) == 2]
    if len(matrices) > 1:
        got = f"{len(matrices)} linear layers ({first(f'{head}.{name}' for name in matrices)})"
        remedy = f"The nonlinearity between them is not in the file: {PYTHON}"
        raise InvalidCheckpoint(message(where, f"classifier {head}", got, "one linear layer", remedy))
    match = re.fullmatch(r"((?:0|[1-9]\d?)\.)?weight", matrices[0]) if matrices else None
    classes = found[matrices[0]][0] if matrices else 0
    prefix = (match and match[1]) or ""
    bias = f"{prefix}bias" in found
    wanted = {f"{prefix}weight": (classes, features)} | ({f"{prefix}bias": (classes,)} if bias else {})
    if not match or not classes or found != wanted:
        got = first(f"{head}.{name} {shape}" for name, shape in found.items()) or f"no {head}.weight"
        remedy = f"Where the network ends in something else than one linear layer, {PYTHON}"
        raise InvalidCheckpoint(
            message(where, f"classifier {head}", got, f"{head}.weight (classes, {features})", remedy)
        )
    linear = nn.Linear(features, classes, bias=bias, device="meta", dtype=torch.float32)
    if not prefix:
        return linear
    # Layers without weights before it are dropout in practice, which does nothing in evaluation mode.
    return nn.Sequential(*(nn.Identity() for _ in range(int(prefix[:-1]))), linear)


def _stored(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors, after a check that they are dense numbers, of no more bytes than the file can hold."""
    where, unfolded = str(path), 0
    for name, tensor in state.items():
        dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not dense or not (tensor.is_floating_point() or name.endswith(COUNTER)):
            got = type(tensor).__name__
            if isinstance(tensor, Tensor):
                got = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            remedy = f"Undo the quantization or compression and {SAVE}"
            raise InvalidCheckpoint(message(where, f"tensor {name}", got, "dense floating-point weights", remedy))
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        unfolded += 4 * tensor.numel()
        if not 0 < tensor.numel() <= held or unfolded > 8 * path.stat().st_size:
            got = f"{tuple(tensor.shape)} from {held} stored values"
            raise InvalidCheckpoint(
                message(where, f"tensor {name}", got, "weights that are stored one by one", SAVE.capitalize())
            )
    return state


def _fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give a module on the meta device its own memory, and copy the weights there."""
    model.to_empty(device="cpu")
    weights = {name: state.get(name, torch.zeros(())) for name in model.state_dict()}
    for name, tensor in weights.items():
        if name.endswith(COUNTER) and not tensor.isfinite():
            weights[name] = torch.zeros(())  # half precision overflows at 65,504; inference never reads the counter
    model.load_state_dict(weights)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            got = f"{int((tensor < 0).sum())} of {tensor.numel()} values negative"
            remedy = "Take a checkpoint in which they are right; averaging models can make them negative"
            raise InvalidCheckpoint(message(where, f"tensor {name}", got, "variances from 0 on", remedy))
        if not tensor.isfinite().all():
            got = f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values NaN or infinite"
            remedy = "Take a checkpoint from before the training diverged"
            raise InvalidCheckpoint(message(where, f"tensor {name}", got, "finite float32 weights", remedy))
