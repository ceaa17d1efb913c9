"""The fused kernel in Triton's interpreter against the specification, on sums that are exact: equal bit for bit.

Triton reads whether it interprets when it is imported, so `test_fused.py` runs this file in a process of its own.
"""

import itertools
import random
from dataclasses import dataclass, fields, replace

import pytest
import torch
import torch.nn.functional as F

from s_resnet.errors import InvalidData
from s_resnet.kernels import Update
from s_resnet.kernels.membrane import fused, fused_tiles, reference

STEPS = 3
TILES = {
    "default": None,
    "held": fused_tiles.Tile(32, 32, 32, 2, 4, held=True),
    "flat": fused_tiles.Tile(32, 32, 32, 2, 4, flat=True),
    "nested": fused_tiles.Tile(32, 32, 32, 2, 4),
}


@dataclass(frozen=True)
class Case:
    """One launch; the fields are the values that are paired with each other."""

    kind: str = "int8"
    kernel: int = 3
    stride: int = 1
    channels: tuple[int, int] = (32, 32)
    pixels: tuple[int, int] = (4, 4)  # a side of the output, images: 64 pixels are a tile
    arrives: str = "binary"  # or "amounts", -3 to 3
    shortcut: str = "none"  # "scaled" spikes, a "current", or a "second" convolution
    threshold: str = "each"
    bias: str = "each"
    levels: int = 1
    memory: str = "none"  # of signed neurons: "kept", written to "another", "in place"
    schedule: str = "streaming"
    results: str = "new"  # "given", "in place"
    spikes: torch.dtype | None = torch.int8
    counted: bool = True
    tile: str = "default"

    @property
    def possible(self):
        """The kernel has no such tiles, and spikes no such types."""
        alone = self.shortcut != "second" and self.kind != "two-part"
        held = (self.levels == 1 and self.memory == "none") or self.spikes != torch.uint8
        return held and (alone or self.tile in ("default", "nested"))


VALUES = {
    "kind": ("int8", "float16", "two-part"),
    "kernel": (1, 3),
    "stride": (1, 2),
    "channels": ((32, 32), (20, 24), (48, 72)),
    "pixels": ((4, 4), (3, 1), (7, 2)),
    "arrives": ("binary", "amounts"),
    "shortcut": ("none", "scaled", "current", "second"),
    "threshold": ("one", "each"),
    "bias": ("none", "one", "each", "rows"),
    "levels": (1, 3, 7),
    "memory": ("none", "kept", "another", "in place"),
    "schedule": ("streaming", "lagged", "phased"),
    "results": ("new", "given", "in place"),
    "spikes": (torch.int8, torch.uint8, None),
    "counted": (True, False),
    "tile": tuple(TILES),
}


def pairs(case):
    """Every two of its values."""
    return set(itertools.combinations([(field.name, getattr(case, field.name)) for field in fields(case)], 2))


def pairwise(seed=3):
    """Cases in which every two values that go together do so once at least, the richest of some first."""
    draw = random.Random(seed)

    def drawn():
        return Case(**{name: draw.choice(values) for name, values in VALUES.items()})

    left = set().union(*(pairs(case) for case in (drawn() for _ in range(3000)) if case.possible))
    while left:
        best = max(
            (case for case in (drawn() for _ in range(300)) if case.possible), key=lambda c: len(pairs(c) & left)
        )
        if pairs(best) & left:
            left -= pairs(best)
            yield best


def innermost(values):
    """``[*, C, H, W]`` with its channels innermost in memory."""
    return values.movedim(-3, -1).contiguous().movedim(-1, -3)


class Given:
    """The tensors of a case: whole numbers, or such numbers times a power of two."""

    def __init__(self, case):
        self.case, self.random = case, torch.Generator().manual_seed(1)
        self.dtype = torch.int32 if case.kind == "int8" else torch.float32
        self.bits = {"int8": 0, "float16": 6, "two-part": 13}[case.kind]  # after the point
        self.unit = 64 * 2 ** max(0, self.bits - 6)  # more than any weight
        side, images = case.pixels
        self.shape = (images, case.channels[1], side, side)

    def whole(self, low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=self.random)

    def numbers(self, low, high, *shape):
        """In the membrane's type, in units of the largest weight."""
        whole = self.whole(int(low * self.unit), int(high * self.unit), *shape)
        return (whole.double() / 2**self.bits).to(self.dtype)

    def spikes(self, images, channels, side, amounts=False):
        shape = (images, channels, side, side)
        fires = torch.rand(shape, generator=self.random) < 0.2
        return innermost((fires * (self.whole(-3, 3, *shape) if amounts else 1)).to(torch.int8))

    def convolution(self, channels, kernel, stride, padding):
        """It, not computed yet, and its exact currents."""
        side = (self.shape[2] - 1) * stride + kernel - 2 * padding
        spikes = self.spikes(STEPS * self.shape[0], channels, side, self.case.arrives == "amounts")
        weight = self.whole(-self.unit, self.unit - 1, self.shape[1], channels, kernel, kernel)
        exact = F.conv2d(spikes.double(), weight.double() / 2**self.bits, None, stride, padding)
        weight = weight.to(torch.int8) if self.case.kind == "int8" else weight.float() / 2**self.bits
        packed = fused.pack(weight, (stride, stride), (padding, padding), self.case.kind == "two-part")
        assert packed.kind == self.case.kind and (packed.low is None or packed.low.count_nonzero())
        return fused.Currents(spikes, packed, STEPS), exact.view(STEPS, *self.shape)

    def currents(self):
        case, channels = self.case, self.case.channels[0]
        current, exact = self.convolution(channels, case.kernel, case.stride, case.kernel // 2)
        if case.shortcut == "second":
            other, more = self.convolution(2 * channels, 1, 3 - case.stride, 0)
            current, exact = current.joined(other), exact + more
        rounded = exact.to(self.dtype)
        assert torch.equal(rounded.double(), exact)  # or the order of a sum would count
        return current, rounded

    def per_channel(self, how, low, high):
        if how == "none":
            return None
        steps = (STEPS, 1) if how == "rows" else ()
        return self.numbers(low, high, *steps, 1 if how == "one" else self.shape[1], 1, 1)

    def update(self):
        case, shortcut = self.case, None
        if case.shortcut == "scaled":
            shortcut = self.spikes(STEPS * self.shape[0], *self.shape[1:3]).unflatten(0, (STEPS, -1))
        elif case.shortcut == "current":
            shortcut = innermost(self.numbers(-1, 1, STEPS, *self.shape))
        return Update(
            self.per_channel(case.threshold, 0.5, 2),
            bias=self.per_channel(case.bias, -0.5, 0.5),
            shortcut=shortcut,
            shortcut_scale=self.per_channel("each", -1, 1) if case.shortcut == "scaled" else None,
            levels=case.levels,
            emitted=None if case.memory == "none" else innermost(self.whole(0, 9, *self.shape).to(self.dtype)),
            schedule=case.schedule,
            spike_dtype=case.spikes,
            counts=torch.full((STEPS, self.shape[0]), 5, dtype=torch.int32) if case.counted else None,
        )


def placed(case, v, update):
    """The update with places for its results, and what has to stay as it is."""
    after = {"new": None, "given": torch.empty_like(v), "in place": v}[case.results]
    there = {"another": None if update.emitted is None else torch.empty_like(v), "in place": update.emitted}
    kept = [
        x for x, moved in ((v, after is v), (update.emitted, case.memory == "in place")) if x is not None and not moved
    ]
    counts = None if update.counts is None else update.counts.clone()
    return replace(update, after=after, emitted_after=there.get(case.memory), counts=counts), kept


def equal_to_the_specification(current, exact, v, update, case):
    plain = replace(update, emitted_after=None if update.emitted is None else torch.empty_like(v))
    plain = replace(plain, counts=None if update.counts is None else update.counts.clone())
    want, want_after = reference.integrate_and_fire(exact, v.clone(), plain)
    assert want.count_nonzero() and not bool(want.all())
    update, kept = placed(case, v, update)
    before = [x.clone() for x in kept]
    spikes, after = fused.integrate_and_fire(current, v, update)
    assert spikes.dtype == want.dtype and torch.equal(spikes, want) and torch.equal(after, want_after)
    assert update.after is None or after is update.after
    assert update.counts is None or torch.equal(update.counts, plain.counts)
    assert update.emitted_after is None or torch.equal(update.emitted_after, plain.emitted_after)
    assert all(torch.equal(x, y) for x, y in zip(kept, before, strict=True))


def tile_of(case):
    """In place of what chooses tiles."""
    return (lambda layer, device, timed: TILES[case.tile]) if TILES[case.tile] else fused_tiles.chosen


@pytest.mark.parametrize("case", list(pairwise()), ids=lambda case: "-".join(map(str, vars(case).values())))
def test_every_pair_of_features(case, monkeypatch):
    monkeypatch.setattr(fused_tiles, "chosen", tile_of(case))
    given = Given(case)
    v, update = innermost(given.numbers(-1, 1, *given.shape)), given.update()
    equal_to_the_specification(*given.currents(), v, update, case)


# ---- numbers and shapes that are rare ----


@pytest.mark.parametrize("memory", ["none", "another"])
@pytest.mark.parametrize("levels", [1, 7])
def test_membranes_at_and_beside_every_multiple_of_a_large_threshold(levels, memory):
    """The quotient is guessed in float32, which rounds them."""
    case = Case(kernel=1, channels=(32, 16), pixels=(4, 4), shortcut="none", levels=levels, memory=memory)
    given = Given(case)
    current, exact = given.currents()
    # In float32 the first of them is less and the second more than it is.
    theta = torch.tensor([2**24 + 1, 2**24 + 3, 8_000_003, 5]).repeat(4).view(-1, 1, 1)
    at_first = theta * given.whole(-120, 120, *given.shape) + given.whole(-1, 1, *given.shape)
    v = innermost((at_first - exact[0]).to(torch.int32))
    update = replace(given.update(), threshold=theta.to(torch.int32), bias=None)
    equal_to_the_specification(current, exact, v, update, case)


def test_the_largest_sums():
    """127 levels times -128, through all channels and taps."""
    weight = torch.full((16, 64, 3, 3), -128, dtype=torch.int8)
    spikes = torch.full((2, 64, 4, 4), 127, dtype=torch.int8).to(memory_format=torch.channels_last)
    spikes[1, ::2] *= -1
    current = fused.Currents(spikes, fused.pack(weight, (1, 1), (1, 1)), 2)
    exact = F.conv2d(spikes.double(), weight.double(), None, 1, 1).view(2, 1, 16, 4, 4).to(torch.int32)
    v = torch.zeros(1, 16, 4, 4, dtype=torch.int32).to(memory_format=torch.channels_last)
    update = Update(torch.tensor(-int(exact.min()) // 3, dtype=torch.int32), emitted=v + 1, levels=2)
    spikes, after = fused.integrate_and_fire(current, v, update)
    want, want_after = reference.integrate_and_fire(exact, v, update)
    assert torch.equal(spikes, want.to(spikes.dtype)) and torch.equal(after, want_after) and want.min() < 0


def test_a_second_convolution_reaches_pixels_that_padding_surrounds():
    """Where the first one reads nothing but padding."""
    case = Case(kernel=1, channels=(32, 16), pixels=(3, 1))
    given = Given(case)
    first, exact = given.convolution(32, 1, 1, 1)
    second, more = given.convolution(32, 1, 1, 0)
    current = replace(first, branch=second)
    v, update = innermost(given.numbers(-1, 1, *given.shape)), given.update()
    equal_to_the_specification(current, (exact + more).to(torch.int32), v, update, case)


def test_what_it_does_not_take_is_refused():
    given = Given(Case())
    current, _ = given.currents()
    v, update = innermost(given.numbers(-1, 1, *given.shape)), given.update()
    with pytest.raises(InvalidData, match=r"kernels.integrate_and_fire"):
        fused.integrate_and_fire(current, v, replace(update, reset="zero"))
