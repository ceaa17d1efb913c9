"""Names of architectures, and the words after them for what no checkpoint records: ``resnet50-nomaxpool-v1``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...models.planned_resnet import Plan

# Blocks of four stages by the depth of a network of basic blocks (two convolutions) and of bottlenecks (three).
BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
SMALL: Mapping[str, Any] = {"stem_stride": 1, "maxpool": False}  # the stem for images of 32 pixels


@dataclass(frozen=True)
class Choice:
    """A word for what no checkpoint records.

    Attributes:
        word: what is appended to the name of an architecture.
        says: what a network does then.
        settings: the fields of the plan.
    """

    word: str
    says: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """Something that no checkpoint records, and the choices.

    Attributes:
        choices: the answers.
        about: whether the answer changes a network of this plan.
        open: whether it has to be said which answer was taken in a network of this plan. Otherwise the names of the
            layers tell, or programs agree.
    """

    choices: tuple[Choice, ...]
    about: Callable[[Plan], bool]
    open: Callable[[Plan], bool]

    @property
    def words(self) -> set[str]:
        """The words of the answers."""
        return {choice.word for choice in self.choices}


def _always(_: Plan) -> bool:
    return True


def _never(_: Plan) -> bool:
    return False


def _halves_inside(plan: Plan) -> bool:
    return plan.convolutions == 3 or plan.preactivated


def _zeros(plan: Plan) -> bool:
    return plan.shortcut == "zeros"


def _convolved(plan: Plan) -> bool:
    return plan.preactivated and plan.shortcut == "projection"


QUESTIONS = (
    Question(
        (
            Choice("stem2", "stride 2 in the first convolution", {"stem_stride": 2}),
            Choice("stem1", "stride 1 in the first convolution", {"stem_stride": 1}),
        ),
        _always,
        _always,
    ),
    Question(
        (
            Choice("maxpool", "a max-pool after the stem", {"maxpool": True}),
            Choice("nomaxpool", "no max-pool after the stem", {"maxpool": False}),
        ),
        _always,
        _always,
    ),
    Question(
        (
            Choice("v1", "the stride of a block in its first convolution", {"strided": 1}),
            Choice("v15", "the stride of a block in its second convolution", {"strided": 2}),
        ),
        _halves_inside,
        _halves_inside,
    ),
    Question(
        (
            Choice("padboth", "zeros before and after the channels of a shortcut", {"zeros_last": False}),
            Choice("padafter", "zeros after the channels of a shortcut", {"zeros_last": True}),
        ),
        _zeros,
        _zeros,
    ),
    Question(
        (
            Choice("strided", "shortcuts of every second pixel", {"average": False}),
            Choice("averaged", "shortcuts of the mean of 2x2 pixels", {"average": True}),
        ),
        lambda plan: plan.positions[1] == 0,
        _zeros,
    ),
    Question(
        (
            Choice("whole", "stride 1 in the first stage", {"first_stride": 1}),
            Choice("halved", "stride 2 in the first stage", {"first_stride": 2}),
        ),
        lambda plan: plan.projected,
        _never,
    ),
    Question(
        (
            Choice("actshortcut", "convolutions on shortcuts read the activation", {"raw": False}),
            Choice("rawshortcut", "convolutions on shortcuts read the block's input", {"raw": True}),
        ),
        _convolved,
        _convolved,
    ),
)
SHORTCUT = QUESTIONS[4]  # so often mistaken that it is tried where images do not fit, though names tell
# What is between several linear layers at the end, which has no usual answer.
HEADS = {"fcrelu": "a ReLU between the linear layers", "fclinear": "nothing between the linear layers"}
GROUPS = (*([choice.word for choice in question.choices] for question in QUESTIONS), [*HEADS])
WORDS = tuple(word for group in GROUPS for word in group)


@dataclass(frozen=True)
class Architecture:
    """What the name of an architecture says.

    Attributes:
        base: the name without words.
        plan: the network of this name, as usual.
        chosen: the words, in the order of :data:`WORDS`.
    """

    base: str
    plan: Plan
    chosen: tuple[str, ...] = ()

    @property
    def head(self) -> str | None:
        """The word about the linear layers at the end."""
        return next((word for word in self.chosen if word in HEADS), None)


def parse(arch: str) -> Architecture | None:
    """The architecture of that name; None where there is none, or a question is answered twice."""
    base, *words = arch.split("-")
    plan = _plan(base)
    answered = [sum(word in group for word in words) for group in GROUPS]
    if plan is None or not {*words}.issubset(WORDS) or max(answered) > 1:
        return None
    return Architecture(base, plan, tuple(word for word in WORDS if word in words))


def _plan(base: str) -> Plan | None:
    found = re.fullmatch(r"([a-z_]*[a-z])([1-9]\d{0,3})(?:_([1-9]\d{0,3})(?:x([1-9]\d{0,3})d)?)?", base)
    if found is None:
        return None
    family, depth, first, second = found[1], int(found[2]), int(found[3] or 0), int(found[4] or 0)
    cifar = family.removeprefix("cifar_") if family.startswith("cifar_") else None
    preactivated = "preact_" in family
    if family == "wrn" and first and not second:
        return _thirds(depth - 4, 2, Plan((), preactivated=True, width=16 * first, stem=(16,)))
    grouped = Plan((), 3, groups=first or 1, per_group=second or 64 * (first or 1))
    kind = (cifar or family).removeprefix("preact_")
    if preactivated and kind not in ("resnet", "bottleneck_resnet"):
        return None
    if (kind == "resnext" and second) or (kind == "wide_resnet" and first and not second):
        wide = replace(grouped, groups=1) if kind == "wide_resnet" else grouped
        return _stages(depth, BOTTLENECK, wide) if cifar is None else _thirds(depth - 2, 3, wide)
    if first:
        return None
    if cifar is not None and kind in ("resnet", "bottleneck_resnet"):
        convolutions: Literal[2, 3] = 3 if kind == "bottleneck_resnet" else 2
        return _thirds(depth - 2, convolutions, Plan((), convolutions, preactivated, width=16, stem=(16,)))
    if kind == "resnet" and cifar is None:
        shallow = Plan((), 2, preactivated)
        return _stages(depth, BASIC, shallow) or _stages(depth, BOTTLENECK, replace(shallow, convolutions=3))
    return None


def _stages(depth: int, known: Mapping[int, tuple[int, ...]], plan: Plan) -> Plan | None:
    """The plan with the blocks of that depth, of networks of four stages."""
    if depth not in known:
        return None
    plan = replace(plan, blocks=known[depth], strided=plan.convolutions - 1)
    return replace(plan, **SMALL) if plan.preactivated else plan


def _thirds(layers: int, convolutions: int, plan: Plan) -> Plan | None:
    """The plan with the blocks of a network of three stages, with so many layers in them."""
    blocks, rest = divmod(layers, 3 * convolutions)
    if blocks < 1 or rest:
        return None
    return replace(plan, blocks=(blocks,) * 3, strided=convolutions - 1, kernel=3, **SMALL)


def candidates(blocks: tuple[int, ...], seen: Plan) -> list[str]:
    """The bases with as many blocks in each stage and the kind of blocks in ``seen``, torchvision's first."""
    prefix = "preact_" if seen.preactivated else ""
    depth = 3 * seen.convolutions * blocks[0] + 2 if len(set(blocks)) == 1 and len(blocks) == 3 else 0
    if depth and seen.convolutions == 2:
        names = [f"cifar_{prefix}resnet{depth}"]
        wide, rest = divmod(seen.width, 16)
        is_wide = prefix and wide and not rest and seen.width != seen.stem[-1]
        return [f"wrn{depth + 2}_{wide}"] if is_wide else names
    table = BASIC if seen.convolutions == 2 else BOTTLENECK
    depths = [depth] if depth else [deep for deep, known in table.items() if known == blocks]
    cifar, kind = ("cifar_", "bottleneck_resnet") if depth else ("", "resnet")
    names = [f"{cifar}{prefix}{kind}{deep}" for deep in depths]
    if seen.convolutions == 3 and not prefix:
        grouped = ["32x4d", "32x8d", "64x4d", *([f"{seen.groups}x{seen.per_group}d"] if seen.groups > 1 else [])]
        names += [f"{cifar}resnext{deep}_{how}" for deep in depths for how in dict.fromkeys(grouped)]
        times = dict.fromkeys((2, max(1, seen.per_group // 64)))
        names += [f"{cifar}wide_resnet{deep}_{more}" for deep in depths for more in times]
    return [name for name in names if parse(name)]


def answer(plan: Plan, question: Question) -> Choice:
    """The choice that a plan makes."""
    return next(
        choice
        for choice in question.choices
        if all(getattr(plan, field) == value for field, value in choice.settings.items())
    )


def choose(plan: Plan, words: tuple[str, ...]) -> Plan:
    """The plan with these choices."""
    for question in QUESTIONS:
        for choice in question.choices:
            if choice.word in words:
                plan = replace(plan, **choice.settings)
    return plan


def spelled(arch: Architecture, plan: Plan, usual: Plan) -> str:
    """The name with every word that is needed to read a file in this way.

    Args:
        arch: what was asked for.
        plan: the plan of the network.
        usual: the plan that the file gets without words.
    """
    words = []
    for question in QUESTIONS:
        made = answer(plan, question)
        unusual = made != answer(usual, question) or made != answer(arch.plan, question)
        if question.about(plan) and unusual:
            words.append(made.word)
    return "-".join((arch.base, *words, *([arch.head] if arch.head else [])))


def others(arch: Architecture, plan: Plan, usual: Plan, questions: Sequence[Question]) -> tuple[str, ...]:
    """The names that answer one of these questions otherwise, or both about the stem.

    Args:
        arch: what was asked for.
        plan: the plan of the network.
        usual: the plan that the file gets without words.
        questions: the questions.
    """
    changed = [choose(plan, (choice.word,)) for question in questions for choice in question.choices]
    if list(questions[:2]) == list(QUESTIONS[:2]):
        stride, pool = (question.choices for question in questions[:2])
        changed += [choose(plan, (one.word, other.word)) for one in stride for other in pool]
    own = spelled(arch, plan, usual)
    names = dict.fromkeys(spelled(arch, other, usual) for other in changed)
    return tuple(name for name in names if name != own)
