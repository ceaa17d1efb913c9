"""Inputs for the membrane kernels: every type, layout, tail and kind of parameter, on dyadic numbers."""

import random
from dataclasses import dataclass, fields, replace

import torch

from s_resnet.kernels import Update

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SPIKES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32)
# Whole vectors; vectors that straddle pixels; odd sizes, which only the scalar path takes; several blocks and a tail.
SHAPES = ((2, 8, 3, 5), (3, 6, 2, 4), (1, 3, 5, 7), (1, 16, 9, 9), (3, 40), (2, 17), (1, 1), (2, 5, 8), (2, 4, 2, 3, 2))
STEPS = (1, 7, 16, 40)  # 40: the counts of 32 steps leave, and those of the rest
# The fields of an Update in their order, but for those of a part of a window: the operator takes it whole.
OPERATOR_TAKES = tuple(field.name for field in fields(Update) if field.name not in ("begins", "ends"))


@dataclass(frozen=True)
class Case:
    """The settings of a kernel, without its sizes.

    Kinds are "none", "one" and "each"; of a shortcut also "bare", of a bias also "rows": one per channel and step.
    """

    current: torch.dtype = torch.float32
    spikes: torch.dtype | None = None
    branch: torch.dtype = torch.float32
    threshold: str = "one"
    bias: str = "each"
    shortcut: str = "each"
    decay: float = 1.0
    reset: str = "subtract"
    last: bool = True
    constant: bool = False
    integer: bool = False
    counted: bool = True
    levels: int = 1
    signed: bool = False
    schedule: str = "streaming"
    results: str = "new"  # "given": room for them; "in place": where the membrane and the memory were

    def __str__(self):
        names = [str(dtype).removeprefix("torch.") for dtype in (self.current, self.branch, self.spikes)]
        flags = [name for name in ("last", "constant", "integer", "counted", "signed") if getattr(self, name)]
        flags += [f"{self.levels} levels"] * (self.levels > 1)
        flags += [name for name in (self.schedule, self.results) if name not in ("streaming", "new")]
        return "-".join([*names, self.threshold, self.bias, self.shortcut, str(self.decay), self.reset, *flags])


def _some(count, seed=5):
    """Cases drawn so that each value of each setting comes up, in many combinations."""
    draw = random.Random(seed)
    cases = []
    for i in range(count):
        integer = i % 4 == 3
        cases.append(
            Case(
                current=draw.choice((torch.int32, torch.float32) if integer else FLOATS),
                spikes=draw.choice((None, *SPIKES)),
                branch=draw.choice(SPIKES),
                threshold=draw.choice(("one", "each")),
                bias=draw.choice(("none", "one", "each")),
                shortcut=draw.choice(("none", "one", "each", "bare")),
                decay=1.0 if integer else draw.choice((1.0, 0.5)),
                reset=draw.choice(("subtract", "zero")),
                last=draw.random() < 0.6,
                constant=draw.random() < 0.3,
                integer=integer,
                counted=draw.random() < 0.7,
            )
        )
    return cases


def _alphabets(count, seed=6):
    """Cases of every number of levels, with and without signs, in spikes that hold them."""
    draw = random.Random(seed)
    cases = []
    for i, case in enumerate(_some(count, seed)):
        levels, signed = 1 + i % 8, i % 3 > 0 or i % 8 == 0
        held = [d for d in SPIKES if not (signed and d == torch.uint8) and not (levels == 8 and d == torch.int8)]
        spikes = draw.choice((None, *held))
        cases.append(replace(case, reset="subtract", levels=levels, signed=signed, spikes=spikes))
    return cases


def _waiting(count, seed=7):
    """Cases of every schedule with and without rows of biases, of every alphabet, written anywhere."""
    draw = random.Random(seed)
    cases = []
    for i, case in enumerate(_some(count, seed)):
        schedule = ("lagged", "phased", "streaming")[i % 3]
        case = replace(
            case,
            schedule=schedule,
            decay=case.decay if schedule == "streaming" else 1.0,
            reset="subtract" if schedule == "phased" else case.reset,  # to zero it fires once, and seldom
            bias="rows" if schedule == "streaming" or draw.random() < 0.5 else case.bias,
            results=("in place", "given", "new", "in place")[i % 4],
        )
        if i % 5 > 2:
            signed = i % 2 > 0
            spikes = torch.int8 if case.spikes == torch.uint8 and signed else case.spikes
            levels = 1 + i // 5 % 4 + (not signed)
            case = replace(case, reset="subtract", levels=levels, signed=signed, spikes=spikes)
        cases.append(case)
    return cases


CASES = _some(36)
ALPHABETS = _alphabets(24)
SCHEDULED = _waiting(24)
EVERY = (*CASES, *ALPHABETS, *SCHEDULED)
# What single tests of a GPU run beside them.
OTHERS = (
    *(Case(dtype, dtype, dtype, last=last) for dtype in FLOATS for last in (True, False)),
    *(Case(), Case(constant=True), Case(torch.float16), Case(levels=3, signed=True)),
    Case(torch.bfloat16, torch.uint8, torch.int32, decay=0.5, reset="zero"),
    Case(torch.float16, torch.int8, torch.float16, last=False, levels=2, signed=True),
    Case(torch.float16, torch.int8, bias="rows", schedule="lagged", signed=True, results="in place"),
    *(
        Case(torch.float16, torch.float16, torch.float16, bias="rows", last=last, schedule=schedule)
        for last in (True, False)
        for schedule in ("lagged", "phased")
    ),
)


def launches(case):
    """Shapes and steps for a case: every shape, and steps so that each pair comes up over the cases.

    An instance is compiled for each width and for one step or more; all pairs for all cases would be twice as many.
    """
    first = EVERY.index(case)
    return [(shape, STEPS[(first + index) % len(STEPS)]) for index, shape in enumerate(SHAPES)]


def make(case, shape, steps, seed=0, device="cpu", dyadic=True):
    """current, v and the fields of an ``Update`` with fresh counts."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*sizes, low=-512, high=640):
        if case.integer:
            return torch.randint(low // 8, high // 8, sizes, generator=generator, dtype=torch.int32)
        if not dyadic:
            return torch.rand(sizes, generator=generator) * ((high - low) / 256) + low / 256
        return torch.randint(low, high, sizes, generator=generator) / 256

    def parameter(kind, low, high):
        if kind in ("none", "bare"):
            return None
        if kind == "rows":
            return numbers(steps, 1, shape[1], *(1,) * (len(shape) - 2), low=low, high=high).to(device)
        sizes = () if kind == "one" else (shape[1], *(1,) * (len(shape) - 2))
        return numbers(*sizes, low=low, high=high).to(device)

    def laid(values):
        values = values.to(device)
        if not case.last or values.ndim < 4:
            return values
        return values.movedim(2, -1).contiguous().movedim(-1, 2)

    v = laid(numbers(1, *shape))[0]
    current = laid(numbers(1 if case.constant else steps, *shape).to(case.current)).expand(steps, *shape)
    branch = None
    if case.shortcut == "bare":
        branch = numbers(steps, *shape) if case.integer or case.branch in FLOATS else numbers(steps, *shape).sign()
        branch = branch.abs() if case.branch == torch.uint8 else branch
        branch = branch.clamp(-100, 100) if not case.branch.is_floating_point else branch
    elif case.shortcut != "none":
        most = 2**case.levels
        low = 1 - most if case.signed and case.branch != torch.uint8 else 0
        branch = torch.randint(low, most, (steps, *shape), generator=generator).clamp(-100, 100)
    emitted = laid(numbers(1, *shape, low=0, high=1280).floor())[0] if case.signed else None
    room = {"new": (None, None), "given": (torch.full_like(v, 77), None), "in place": (v, emitted)}[case.results]
    if case.results == "given" and case.signed:
        room = (room[0], torch.full_like(v, 77))
    settings = {
        "threshold": parameter(case.threshold, 64, 512),
        "decay": case.decay,
        "reset": case.reset,
        "bias": parameter(case.bias, -256, 256),
        "shortcut": None if branch is None else laid(branch.to(case.branch)),
        "shortcut_scale": parameter(case.shortcut, -256, 384),
        "spike_dtype": case.spikes,
        # Not from zero: a kernel adds.
        "counts": torch.full((steps, shape[0]), 3, dtype=torch.int32, device=device) if case.counted else None,
        "levels": case.levels,
        "emitted": emitted,
        "schedule": case.schedule,
        "after": room[0],
        "emitted_after": room[1],
    }
    return current, v, settings


def plain(settings):
    """What the operator takes behind current and membrane."""
    return tuple(settings[name] for name in OPERATOR_TAKES)


def run(kernel, current, v, settings):
    """Spikes, membrane and counts of a kernel, and the memory where it writes one; it must leave its arguments alone.

    What it may write is a copy.
    """
    settings, mine = dict(settings), {"after": v, "emitted_after": settings["emitted"]}
    in_place = [name for name, before in mine.items() if before is not None and settings[name] is before]
    for name in ("counts", "after", "emitted_after"):
        settings[name] = None if settings[name] is None else settings[name].clone()
    if "after" in in_place:
        v = settings["after"]
    if "emitted_after" in in_place:
        settings["emitted"] = settings["emitted_after"]
    left = [current, settings["shortcut"], *([] if "after" in in_place else [v])]
    left += [] if "emitted_after" in in_place else [settings["emitted"]]
    kept = [(x, x.clone()) for x in left if x is not None]
    spikes, after = kernel(current, v, Update(**settings))
    assert all(torch.equal(x, copy) for x, copy in kept)
    assert settings["after"] is None or after is settings["after"]
    memory = settings["emitted_after"]
    return spikes, after, settings["counts"], *(() if memory is None else (memory,))


def same(got, want):
    """Bit for bit, and of one dtype and shape; -0 and 0 are one number."""
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
        for a, b in zip(got, want, strict=True)
    )
