"""Layouts of checkpoints: which program gives which names to the layers of a ResNet. One row is one layout.

Every layout is read by way of one naming, torchvision's: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``layer1.0.bn1``,
``layer1.0.downsample.0``, ``fc``. Two additions: the convolutions of a stem of three are ``conv1.0``, ``conv1.3`` and
``conv1.6``, as in timm, and the BatchNorm behind the last stage of a pre-activated network is ``norm``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .shapes import Shape, is_preactivated

# Other names of the classifier, and of the BatchNorm behind the last stage of a pre-activated network.
CLASSIFIERS = ("linear", "classifier", "last_linear", "head.fc", "head")
LAST_NORMS = ("bn1", "bn", "bn_last", "last_bn", "bn_final", "final_bn", "norm1")


@dataclass(frozen=True)
class Layout:
    """The names of one program.

    Attributes:
        name: what it is called in messages and in the reference.
        networks: which networks are read from it, for the reference.
        example: the name of a tensor, for the reference.
        signs: patterns; a file is of this layout where each is found in the name of a tensor.
        prefix: a pattern of what may stand before its names.
        stages: a pattern of the beginning of a block's names, with groups for the numbers of stage and block.
        first: the number of the first stage.
        parts: layers of a block, and their names in torchvision's layout.
        top: layers outside of blocks, and theirs.
        preactivated: whether it is for pre-activated networks alone; None for either.
        usual: the words for what its code does and weights do not tell
            (:data:`s_resnet.frontend.weights.architectures.WORDS`).
        fixed: those words that its code leaves no choice about.
        asks: words of a question that its code leaves open and others do not.
    """

    name: str
    networks: str
    example: str
    signs: tuple[str, ...] = ()
    prefix: str = ""
    stages: str = r"layer(\d)\.(\d+)"
    first: int = 1
    parts: Mapping[str, str] = field(default_factory=dict)
    top: Mapping[str, str] = field(default_factory=dict)
    preactivated: bool | None = None
    usual: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()

    def standard(self, name: str) -> str:
        """The name of a tensor in torchvision's layout; the same name where this layout has no such tensor."""
        bare = re.sub(f"^(?:{self.prefix})", "", name) if self.prefix else name
        if found := re.match(rf"{self.stages}\.(.+)", bare):
            stage = int(found[1]) - self.first + 1
            return f"layer{stage}.{found[2]}.{_replaced(found[3], self.parts)}"
        return _replaced(bare, self.top)


def _replaced(name: str, layers: Mapping[str, str]) -> str:
    """The name with another beginning, if it begins with one of these layers."""
    for layer, other in layers.items():
        if name.startswith(f"{layer}."):
            return other + name[len(layer) :]
    return name


# The first row fits whose signs are all found. The last one has none: torchvision's own names.
LAYOUTS = (
    Layout(
        "Hugging Face transformers",
        "ResNets of basic blocks and of bottlenecks",
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        signs=(r"(^|\.)embedder\.embedder\.convolution\.weight$",),
        prefix=r"resnet\.",
        stages=r"encoder\.stages\.(\d)\.layers\.(\d+)",
        first=0,
        parts={
            **{f"layer.{i}.convolution": f"conv{i + 1}" for i in range(3)},
            **{f"layer.{i}.normalization": f"bn{i + 1}" for i in range(3)},
            "shortcut.convolution": "downsample.0",
            "shortcut.normalization": "downsample.1",
        },
        top={"embedder.embedder.convolution": "conv1", "embedder.embedder.normalization": "bn1", "classifier.1": "fc"},
        fixed=("stem2", "maxpool"),
        asks=("whole",),
    ),
    Layout(
        "timm, ResNetV2",
        "pre-activated ResNets with BatchNorm",
        "stages.0.blocks.0.conv1.weight",
        signs=(r"^stages\.0\.blocks\.0\.norm1\.weight$", r"^stem\.conv\.weight$"),
        stages=r"stages\.(\d)\.blocks\.(\d+)",
        first=0,
        parts={**{f"norm{i}": f"bn{i}" for i in (1, 2, 3)}, "downsample.conv": "downsample.0"},
        top={"stem.conv": "conv1", "head.fc": "fc"},
        fixed=("actshortcut",),
        asks=("averaged",),
    ),
    Layout(
        "Detectron2",
        "backbones of bottlenecks, with a classifier or without",
        "res2.0.conv1.norm.weight",
        signs=(r"(^|\.)res2\.0\.conv1\.norm\.weight$",),
        prefix=r"backbone\.(?:bottom_up\.)?|bottom_up\.",
        stages=r"res(\d)\.(\d+)",
        first=2,
        parts={
            **{f"conv{i}.norm": f"bn{i}" for i in (1, 2, 3)},
            "shortcut.norm": "downsample.1",
            "shortcut": "downsample.0",
        },
        top={"stem.conv1.norm": "bn1", "stem.conv1": "conv1", "linear": "fc"},
        usual=("v1",),
        fixed=("stem2", "maxpool"),
    ),
    Layout(
        "OpenMMLab, stem of three convolutions",
        "ResNetV1c and ResNetV1d of mmpretrain, mmdetection, mmsegmentation",
        "backbone.stem.0.weight",
        signs=(r"(^|\.)stem\.0\.weight$", r"(^|\.)stem\.7\.weight$", r"(^|\.)layer1\.0\.conv1\.weight$"),
        prefix=r"backbone\.",
        top={"stem.7": "bn1", "stem": "conv1", "head.fc": "fc"},
    ),
    Layout(
        "OpenMMLab",
        "ResNet, ResNeXt and ResNet_CIFAR of mmpretrain, mmdetection, mmsegmentation",
        "backbone.layer1.0.conv1.weight, head.fc.weight",
        signs=(r"^head\.fc\.",),
        prefix=r"backbone\.",
        top={"head.fc": "fc"},
    ),
    Layout(
        "residual_function",
        "ResNets for CIFAR of basic blocks and of bottlenecks",
        "conv2_x.0.residual_function.0.weight",
        signs=(r"^conv2_x\.0\.residual_function\.0\.weight$",),
        stages=r"conv(\d)_x\.(\d+)",
        first=2,
        parts={
            **{f"residual_function.{3 * i}": f"conv{i + 1}" for i in range(3)},
            **{f"residual_function.{3 * i + 1}": f"bn{i + 1}" for i in range(3)},
            "shortcut": "downsample",
        },
        top={"conv1.0": "conv1", "conv1.1": "bn1"},
    ),
    Layout(
        "layers in a Sequential",
        "a torchvision ResNet cut into its children, the classifier left out or at the end",
        "0.weight, 4.0.conv1.weight",
        signs=(r"^0\.weight$", r"^4\.0\.conv1\.weight$", r"^7\.0\.conv1\.weight$"),
        stages=r"([4-7])\.(\d+)",
        first=4,
        top={"0": "conv1", "1": "bn1", "9": "fc", "10": "fc"},
    ),
    Layout(
        "layers in a Sequential, without max-pool",
        "the same with the max-pool left out",
        "0.weight, 3.0.conv1.weight",
        signs=(r"^0\.weight$", r"^3\.0\.conv1\.weight$", r"^6\.0\.conv1\.weight$"),
        stages=r"([3-6])\.(\d+)",
        first=3,
        top={"0": "conv1", "1": "bn1", "8": "fc", "9": "fc"},
        fixed=("nomaxpool",),
    ),
    Layout(
        "Wide ResNet, convShortcut",
        "pre-activated Wide ResNets, WRN-n-k",
        "block1.layer.0.bn1.weight, block1.layer.0.convShortcut.weight",
        signs=(r"^block1\.layer\.0\.conv1\.weight$",),
        stages=r"block(\d)\.layer\.(\d+)",
        parts={"convShortcut": "downsample.0"},
        preactivated=True,
    ),
    Layout(
        "Wide ResNet, convolutions with biases",
        "pre-activated Wide ResNets, WRN-n-k, with the stride in the second convolution",
        "layer1.0.bn1.weight, layer1.0.conv1.bias, layer1.0.shortcut.0.bias",
        signs=(r"^layer1\.0\.conv1\.bias$",),
        parts={"shortcut": "downsample"},
        preactivated=True,
        usual=("v15", "rawshortcut"),
    ),
    Layout(
        "shortcut and linear",
        "ResNets and pre-activated ResNets for CIFAR, of three stages (option A or B) or four, any width",
        "layer2.0.shortcut.0.weight, linear.weight",
        signs=(r"^linear\.|\.shortcut\.",),
        parts={"shortcut": "downsample"},
        top={"linear": "fc"},
    ),
    Layout(
        "torchvision and timm",
        "ResNet, ResNeXt and wide ResNet, with any stem; ResNet-B, -C and -D; the same names for CIFAR, any width",
        "layer2.0.downsample.0.weight, fc.weight",
    ),
)


def layout_of(shapes: Mapping[str, Shape]) -> tuple[Layout, dict[str, str]]:
    """The layout of a file, and the names of its tensors in torchvision's layout.

    A name stays as it is where its place is taken: a file with both names is another network.

    Args:
        shapes: the shapes of the tensors by name.
    """
    for layout in LAYOUTS:
        if not all(_found(sign, shapes) for sign in layout.signs):
            continue
        names = _moved(shapes, layout.standard)
        standard = {names[name]: shape for name, shape in shapes.items()}
        if layout.preactivated in (None, is_preactivated(standard)):
            return layout, _last_names(names, standard)
    raise AssertionError("the last layout fits every file")


def _found(sign: str, names: Iterable[str]) -> bool:
    return any(map(re.compile(sign).search, names))


def _moved(names: Iterable[str], move: Callable[[str], str]) -> dict[str, str]:
    """Each name with its new one, or with itself where that is taken."""
    moved: dict[str, str] = {}
    own = set(names)
    for name in own:
        new = move(name)
        moved[name] = name if new in own else new
    counted = Counter(moved.values())
    return {name: new if counted[new] == 1 else name for name, new in moved.items()}


def _last_names(names: Mapping[str, str], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The names with ``fc`` for the classifier, and ``norm`` behind the last stage of a pre-activated network."""
    layers: dict[str, str] = {}
    if not any(name.startswith("fc.") for name in shapes):
        layers |= {head: "fc" for head in CLASSIFIERS if any(name.startswith(f"{head}.") for name in shapes)}
    if is_preactivated(shapes):
        stem = shapes.get("conv1.weight", ())[:1]
        layers |= {norm: "norm" for norm in LAST_NORMS if shapes.get(f"{norm}.running_mean", stem) != stem}
    moved = _moved(shapes, lambda name: _replaced(name, layers))
    return {name: moved[standard] for name, standard in names.items()}
