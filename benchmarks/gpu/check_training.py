"""Do spiking networks train on the device as on the CPU? Kernels first, then losses, with AMP and recomputation too."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import inside
import numpy as np
import torch
from checking import check, expect
from networks import Networks
from torch import Tensor

import s_resnet

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEPS = (1, 2, 4, 6, 8, 17)
FAMILIES = ("ms_resnet20", "ds_resnet20", "sew_resnet20", "danet20")
PIXELS = (2, 24, 5, 7)  # a step: vectors that straddle pixels, and a tail


def neurons() -> Iterator[tuple[int, inside.Firing]]:
    """Steps and neurons: every surrogate at 4 steps, every number of steps for one; one and three levels; resets."""
    pairs = [(4, kind) for kind in inside.SURROGATES] + [(steps, "rectangle") for steps in STEPS if steps != 4]
    for (steps, kind), levels, reset in itertools.product(pairs, (1, 3), ("zero", "subtract")):
        thresholds = tuple(0.625 + level for level in range(levels))
        yield steps, inside.Firing(thresholds, 0.25, reset, kind, 1.0, levels == 1)


def laid(x: Tensor, last: bool) -> Tensor:
    """``[T, B, C, H, W]`` with channels innermost, or as it is."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if last else x


def gradient(fire: object, current: Tensor, grad: Tensor, firing: inside.Firing) -> tuple[Tensor, Tensor]:
    """Spikes, and the gradient of the current."""
    leaf = current.detach().requires_grad_()
    spikes = fire(leaf, firing)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(spikes, leaf, grad)
    return spikes.detach(), gradient


@check("surrogate kernels equal the loop")
def _surrogates(given: Networks) -> str:
    """Dyadic currents, so that spikes are equal to the last bit; gradients within the rounding of their type."""
    generator, wrong, runs = torch.Generator().manual_seed(0), [], 0
    for (steps, firing), dtype, last in itertools.product(neurons(), DTYPES, (True, False)):
        current = torch.randint(-256, 640, (steps, *PIXELS), generator=generator) / 256
        grad = torch.randint(-64, 64, current.shape, generator=generator) / 64
        current, grad = (laid(x.to(dtype), last) for x in (current, grad))
        spikes, got = gradient(inside.fire, current.to(given.device), grad.to(given.device), firing)
        want_spikes, want = gradient(inside.fire_reference, current.float(), grad.float(), firing)
        near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        runs += 1
        if not torch.equal(spikes.cpu().float(), want_spikes) or not torch.allclose(got.cpu().float(), want, **near):
            off = float((got.cpu().float() - want).abs().max())
            wrong.append((str(dtype), steps, firing, last, int((spikes.cpu() != want_spikes).sum()), off))
    expect(not wrong, f"{len(wrong)} of {runs}: {wrong[:3]}")
    return f"{runs} combinations"


def normalized(device: torch.device | str, dtype: torch.dtype, outside: bool, last: bool) -> list[Tensor]:
    """Mean, variance and gradients of normalization and firing, and last the spikes."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2 * 8, 32, 6, 6, generator=generator).to(dtype) for _ in range(2))
    weight, bias = torch.rand(32, generator=generator) + 0.5, torch.randn(32, generator=generator) * 0.1
    # The CPU computes what 16 bits hold in float32.
    kind = torch.float32 if device == "cpu" else dtype
    form = torch.channels_last if last else torch.contiguous_format
    leaves = [x.to(device, kind, memory_format=form), weight.to(device), bias.to(device)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    firing = inside.Firing((0.5,), 0.25, "zero", "arctan", 2.0)
    spikes, statistics = inside.normalize_and_fire(*leaves, firing, 2, inside.Normalization(eps_outside=outside))
    grads = torch.autograd.grad(spikes, leaves, grad.to(device, kind))
    return [value.detach().cpu().double() for value in (*statistics[:2], *grads, spikes)]


@check("normalization and firing equal the CPU's")
def _norm_fire(given: Networks) -> object:
    told, wrong = {}, []
    for dtype, outside, last in itertools.product(DTYPES[:2], (False, True), (True, False)):
        got, want = (normalized(device, dtype, outside, last) for device in (given.device, "cpu"))
        off = [float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True)]
        # A current near the threshold may round to the other side, and its gradient is another's then.
        limits = (1e-4, 1e-4, 0.05, 0.05, 0.05, 0.1) if dtype == torch.float32 else (4e-2, 4e-2, 0.2, 0.2, 0.2, 0.2)
        told[f"{dtype}, eps outside {outside}, channels last {last}"] = [f"{value:.1e}" for value in off]
        wrong += [off] * any(value > limit for value, limit in zip(off, limits, strict=True))
    expect(not wrong, told)
    return told


def colors(size: int = 16, count: int = 64, classes: int = 4) -> s_resnet.data.ImageData:
    """Images whose brightness says their class."""
    generator = np.random.default_rng(0)
    labels = tuple(index % classes for index in range(count))
    pixels = generator.integers(0, 100, (count, size, size, 3), dtype=np.uint8)
    pixels += np.array(labels, dtype=np.uint8)[:, None, None, None] * 40
    names = tuple(str(index) for index in range(count))
    return s_resnet.data.ImageData("made", "train", tuple("abcd"[:classes]), names, labels, pixels=pixels)


def losses(arch: str, device: str, **settings: bool) -> list[float]:
    """The loss of each epoch of a brief training run."""
    chosen = s_resnet.Training(epochs=3, batch_size=16, width=4, timesteps=2, lr=0.05, augmentation=(), **settings)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run.pt"
        execution = s_resnet.training.Execution(device=device, workers=0)
        s_resnet.train(arch, colors(), output, chosen, execution=execution)
        history = torch.load(output, weights_only=True)["history"]
    return [float(entry["loss"]) for entry in history]


@check("losses fall as on the CPU, with AMP and recomputation too")
def _losses(given: Networks) -> object:
    told, wrong = {}, []
    for arch in FAMILIES:
        want = losses(arch, "cpu")
        for settings in ({}, {"amp": True}, {"amp": True, "recompute": True}):
            got = losses(arch, given.device.type, **settings)
            name = f"{arch} {' '.join(settings)}"
            told[name] = [round(value, 4) for value in got]
            # The first epoch is near the CPU's; later ones part, since a spike more moves the weights.
            right = got[-1] < got[0] and abs(got[0] - want[0]) < (0.1 if settings else 0.03) * want[0]
            wrong += [] if right else [f"{name}: {told[name]}, on the CPU {want}"]
    expect(not wrong, wrong)
    return told
