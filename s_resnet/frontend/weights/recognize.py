"""Which architecture has the names and shapes of a state dict.

The layout tells which name is which layer (:mod:`s_resnet.frontend.weights.layouts`). The shapes tell stem, width and
shortcuts (:mod:`s_resnet.frontend.weights.shapes`), and the number of blocks tells the possible architectures. These
are built on the meta device, without memory, and all their names and shapes are compared with those of the file. What
no checkpoint records is as usual for the layout, or as the words in ``arch`` say
(:mod:`s_resnet.frontend.weights.architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ...errors import InvalidCheckpoint, message
from ...models.planned_resnet import Plan, PlannedResNet
from ...models.resnet import CifarResNet
from ...models.torchvision_resnets import TORCHVISION
from .architectures import (
    GROUPS,
    QUESTIONS,
    SHORTCUT,
    WORDS,
    Architecture,
    Question,
    answer,
    candidates,
    choose,
    others,
    parse,
    spelled,
)
from .checkpoint_file import first
from .classifier import PYTHON, classifier
from .layouts import LAYOUTS, Layout, layout_of
from .shapes import Shape, blocks_per_stage, plan_of, with_shapes
from .state_dict import COUNTER

KNOWN = ", ".join(TORCHVISION) + ", preact_resnet18, wrn28_10, cifar_resnet20, ... (depth 6n + 2)"
WIDTH_IN_NAME = "wrn"
# timm's resnetblur18, resnetaa34d and others have the same names and shapes, since blurs have no weights.
PLAIN = "plain strides, not blurred ones (of an anti-aliased network pass the module to s_resnet.convert)"
# Layers of other networks, by their names: what they are.
FOREIGN = {
    r"\.(se|se_module|se_layer|selayer|se_block|squeeze\w*|excitation\w*)\.": "squeeze-and-excitation",
    r"\.(cbam|ca|sa|eca|attn|attention|gc|context_block|non_?local|mhsa)\.|layer\d\.\d+\.fc[12]\.": "attention",
    r"(^|\.)(Mixed_\d|inception\d|branch\d)": "Inception modules",
    r"^(features|blocks|conv_stem|patch_embed|cls_token|pos_embed|encoder\.layers?)\b": "another kind of network",
    r"\.(thresh|clip_val|act_alpha|up)$": "learned thresholds",
}


@dataclass(frozen=True)
class Recognized:
    """A network that has the names and shapes of a file.

    Attributes:
        arch: the name that reads the file in this way.
        model: the module, on the meta device.
        names: the names of the file's tensors, and theirs in the module.
        num_classes: the number of logits, or of features where there is no classifier.
        channels: C of the images.
        input_size: the side of the images that the stem is usual for.
        assumed: what no checkpoint records and ``arch`` did not say, in words.
        variants: the names that read the file otherwise.
    """

    arch: str
    model: nn.Module
    names: Mapping[str, str]
    num_classes: int
    channels: int
    input_size: int
    assumed: tuple[str, ...]
    variants: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """The shapes of a file by its own names, its layout, and its names in torchvision's layout."""

    where: str
    shapes: Mapping[str, Shape]
    layout: Layout
    names: Mapping[str, str]

    @property
    def standard(self) -> dict[str, Shape]:
        return {self.names[name]: shape for name, shape in self.shapes.items()}

    def asks(self, question: Question, plan: Plan) -> bool:
        """Whether neither the shapes nor the program of the layout answer a question."""
        asked = question.open(plan) or bool(question.words & {*self.layout.asks})
        return asked and not question.words & {*self.layout.fixed}

    def head(self) -> dict[str, Shape]:
        """The shapes of the classifier's tensors; a 1x1 convolution of one pixel is a linear layer."""
        found = {name.removeprefix("fc."): shape for name, shape in self.standard.items() if name.startswith("fc.")}
        return {name: shape[:2] if shape[2:] == (1, 1) else shape for name, shape in found.items()}


def recognize(shapes: Mapping[str, Shape], arch: str | None = None, where: str = "checkpoint") -> Recognized:
    """The architecture with exactly these names and shapes, and its module on the meta device.

    BatchNorm's counters (``num_batches_tracked``) may be missing. The classifier may have any number of classes, lack
    its bias, be in a Sequential, or be missing.

    Args:
        shapes: the shapes of the tensors by name.
        arch: the architecture that they must fit; by default any known one.
        where: the file, for the message.

    Raises:
        InvalidCheckpoint: no known architecture has these names and shapes.
    """
    file = _File(where, shapes, *layout_of(shapes))
    told = plan_of(file.standard)
    names = [arch] if arch else candidates(told.blocks, told)
    differences: list[tuple[int, str, str]] = []
    for name in names:
        asked = parse(name)
        if asked is None:
            raise _unknown(name, where)
        fitted = with_shapes(asked.plan, told, asked.base.startswith(WIDTH_IN_NAME))
        usual = choose(fitted, (*file.layout.usual, *file.layout.fixed))
        plan = choose(usual, asked.chosen)
        model, own = _built(plan)
        count, differing = _compared(model, own, file)
        if not count:
            _check_words(asked, plan, where)
            return _recognized(file, asked, (plan, usual), (model, own))
        differences.append((count, differing, asked.base))
    raise _unlike(arch, differences, file)


def check_arch(arch: str, where: str) -> None:
    """Check the name of an architecture.

    Raises:
        InvalidCheckpoint: there is none of that name.
    """
    if parse(arch) is None:
        raise _unknown(arch, where)


def _unknown(arch: str, where: str) -> InvalidCheckpoint:
    base, *words = arch.split("-")
    wrong = [word for word in words if word not in WORDS]
    if parse(base) and wrong:
        remedy = f"Choose among them, as in {base}-{WORDS[3]}"
        return InvalidCheckpoint(
            message(where, "unknown architecture", repr(arch), f"{base} with words among {', '.join(WORDS)}", remedy)
        )
    if parse(base):
        given = [[word for word in words if word in group] for group in GROUPS]
        got = " and ".join(map(repr, next(group for group in given if len(group) > 1)))
        expected = "one word for each thing that no checkpoint tells"
        return InvalidCheckpoint(message(where, "architecture", got, expected, "Leave out all of these but one"))
    return InvalidCheckpoint(
        message(where, "unknown architecture", repr(arch), KNOWN, "Pass one of these, or leave out arch")
    )


def _check_words(asked: Architecture, plan: Plan, where: str) -> None:
    """Refuse a word that says nothing about this network."""
    idle = [
        choice.word
        for question in QUESTIONS
        for choice in question.choices
        if choice.word in asked.chosen and not question.about(plan)
    ]
    if idle:
        got = f"{idle[0]!r}, which says nothing about this network"
        raise InvalidCheckpoint(message(where, "architecture", got, "words that do", f"Leave out {idle[0]!r}"))


def _recognized(
    file: _File, asked: Architecture, plans: tuple[Plan, Plan], built: tuple[nn.Module, Mapping[str, str]]
) -> Recognized:
    """The network that fits, with its classifier."""
    (plan, usual), (model, own) = plans, built
    name = spelled(asked, plan, usual)
    head = "linear" if isinstance(model, CifarResNet) else "fc"
    last = classifier(plan.features, file.head(), name, asked.head, file.where)
    setattr(model, head, last)
    linear = [layer for layer in last.modules() if isinstance(layer, nn.Linear)]
    module_names = {f"fc.{inner}": f"{head}.{inner}" for inner in last.state_dict()} | dict(own)
    asks = [question for question in QUESTIONS if question.about(plan) and file.asks(question, plan)]
    unanswered = [question for question in asks if not question.words & {*asked.chosen}]
    assumed = [_said(asked, plan, usual, question) for question in unanswered]
    if file.layout is LAYOUTS[-1] and plan.stem_stride == 2:
        assumed.append(PLAIN)
    if not linear:
        assumed.append(f"no classifier: the file has none, so the answer is its {plan.features} features")
    return Recognized(
        arch=name,
        model=model,
        names={stored: module_names[standard] for stored, standard in file.names.items()},
        num_classes=linear[-1].out_features if linear else plan.features,
        channels=plan.channels,
        input_size=32 if plan.stem_stride * (2 if plan.maxpool else 1) < 4 else 224,
        assumed=tuple(assumed),
        variants=others(asked, plan, usual, asks + [SHORTCUT] * (SHORTCUT not in asks and SHORTCUT.about(plan))),
    )


def _said(asked: Architecture, plan: Plan, usual: Plan, question: Question) -> str:
    """What a network does by one of the questions, and the name of one that does not."""
    made = answer(plan, question)
    other = next(choice for choice in question.choices if choice != made)
    return f"{made.says} (else {spelled(asked, replace(plan, **other.settings), usual)})"


# ---- candidates


def _built(plan: Plan) -> tuple[nn.Module, dict[str, str]]:
    """The module on the meta device, and by their names in torchvision's layout the names of its tensors."""
    with torch.device("meta"):
        model = _cifar(plan) if _is_cifar(plan) else PlannedResNet(plan)
        model = model.float()
    moved = {name: name.replace(".shortcut.", ".downsample.") for name in model.state_dict()}
    return model, {standard: name for name, standard in moved.items() if not name.startswith(("fc.", "linear."))}


def _is_cifar(plan: Plan) -> bool:
    """Whether :class:`CifarResNet` is this network."""
    own = Plan(
        plan.blocks[:1] * 3,
        channels=plan.channels,
        stem=(plan.width,),
        kernel=3,
        width=plan.width,
        shortcut=plan.shortcut,
        projected=plan.projected,
        stem_stride=1,
        maxpool=False,
    )
    return plan == own


def _cifar(plan: Plan) -> nn.Module:
    shortcut: Literal["A", "B"] = "A" if plan.shortcut == "zeros" else "B"
    model = CifarResNet(6 * plan.blocks[0] + 2, width=plan.width, shortcut=shortcut, project_first=plan.projected)
    model.conv1 = nn.Conv2d(plan.channels, plan.width, 3, padding=1, bias=False)
    return model


def _compared(model: nn.Module, own: Mapping[str, str], file: _File) -> tuple[int, str]:
    """In how many tensors but the classifier's a file differs from a module, and how, in words."""
    stored = {standard: name for name, standard in file.names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {stored.get(standard, name): shapes[name] for standard, name in own.items()}
    found = {name: shape for name, shape in file.shapes.items() if not file.names[name].startswith("fc.")}
    return difference(expected, found)


def difference(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> tuple[int, str]:
    """In how many tensors ``found`` differs from ``expected``, and how, in words."""
    both = [name for name in expected if name in found]
    parts = {
        "missing": [name for name in expected if name not in found and not name.endswith(COUNTER)],
        "unexpected": [name for name in found if name not in expected],
        "mis-shaped": [f"{n} is {found[n]}, not {expected[n]}" for n in both if found[n] != expected[n]],
    }
    said = [f"{len(names)} {word} ({first(names)})" for word, names in parts.items() if names]
    return sum(map(len, parts.values())), ", ".join(said)


# ---- what does not fit


def _unlike(arch: str | None, differences: list[tuple[int, str, str]], file: _File) -> InvalidCheckpoint:
    """The error for a file that is none of the architectures that it was compared with."""
    foreign = _foreign(file)
    if arch:
        _, differing, base = differences[0]
        remedy = foreign or f"Leave out arch to have the architecture read from the file, or {PYTHON}"
        return InvalidCheckpoint(message(file.where, "names and shapes", differing, f"exactly those of {base}", remedy))
    what = "names and shapes of no known architecture"
    if differences:
        _, differing, nearest = min(differences)
        remedy = foreign or f"Build the network in Python and {PYTHON}"
        got = f"nearly those of {nearest}: {differing}"
        return InvalidCheckpoint(message(file.where, what, got, f"exactly those of {nearest}", remedy))
    blocks = blocks_per_stage(file.standard)
    got = f"{len(file.shapes)} tensors ({first(file.shapes)})"
    got = f"stages of {', '.join(map(str, blocks))} blocks" if blocks else got
    remedy = foreign or f"Pass arch=NAME to see in what the file differs from that network, or {PYTHON}"
    return InvalidCheckpoint(message(file.where, what, got, f"those of {KNOWN}", remedy))


def _foreign(file: _File) -> str:
    """What the layers of another kind of network in a file are, and what to do; empty where there are none."""
    for pattern, kind in FOREIGN.items():
        found = [name for name in file.shapes if re.search(pattern, name)]
        if found:
            return f"{found[0]} belongs to {kind}, which S-ResNet does not read: use a ResNet without"
    if len(file.standard.get("conv1.weight", ())) == 3:
        return (
            "The convolutions are over signals [B, C, L], of which no checkpoint is read: export the network to .onnx "
            f"or .pt2, or {PYTHON}"
        )
    if blocks_per_stage(file.standard) and not any(name.endswith("running_mean") for name in file.shapes):
        return f"There are no running statistics of BatchNorm: with other normalizations, or after folding, {PYTHON}"
    return ""
