"""Is `exact` float32, and are whole numbers exact, whatever the caller has set in torch?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import inside
import torch
import torch.nn.functional as F
from check_engine import APART, apart, last
from checking import check, expect
from networks import Networks
from torch import Tensor

import s_resnet

# Input and output channels, size, kernel, stride: convolutions of ResNet-50, a stem among them.
SHAPES = (
    *((64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1)),
    *((512, 2048, 7, 1, 1), (256, 512, 28, 1, 2), (16, 16, 32, 3, 1), (3, 64, 224, 7, 2)),
)
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def _legacy() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_float32_matmul_precision("high")


def _new() -> None:
    torch.backends.fp32_precision = "tf32"


# What callers do to torch, each in a process of its own: it cannot be taken back.
CALLERS: dict[str, Callable[[], None]] = {"legacy": _legacy, "new": _new}


@check("exact is float32")
def _exact(given: Networks) -> dict[str, Any]:
    """The source network's logits against float64, and spikes against the CPU's."""
    cpu = given.load("s-resnet", "cpu")
    want = cpu.to(torch.float64).run(given.images.cpu().double())
    got = given.load("s-resnet").run(given.images).cpu()
    name = given.reference["networks"]["s-resnet"]
    spikes = last(s_resnet.simulate(given.load("s-resnet"), given.images, name["timesteps"]).spikes)
    told = {"logits": float((got - want).norm() / want.norm()), "spikes": apart(spikes, name["spikes"])}
    # float32 is off by about 1e-7 in each layer, TF32 by 1e-3.
    expect(told["logits"] < 1e-5 and told["spikes"] <= APART["exact"], told)
    return told


@check("exact is float32 whatever the caller has set", gpu=True)
def _whatever(given: Networks) -> dict[str, str]:
    program = [sys.executable, str(Path(__file__).with_name("checks.py")), "--only", "exact is float32"]
    options = ["--networks", str(given.folder), "--output", "/dev/null"]

    def ask(caller: str) -> subprocess.CompletedProcess[str]:
        command = [*program, "--caller", caller, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    with ThreadPoolExecutor(len(CALLERS)) as at_once:
        done = dict(zip(CALLERS, at_once.map(ask, CALLERS), strict=True))
    told = {each: (got.stdout.splitlines() or got.stderr.splitlines()[-1:] or [""])[0] for each, got in done.items()}
    expect(not any(got.returncode for got in done.values()), told)
    return told


@check("the caller's settings are as they were after a simulation")
def _kept(given: Networks) -> object:
    def settings() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return (
            cudnn.enabled,
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
        )

    before = settings()
    for precision in inside.PRECISIONS:
        s_resnet.simulate(
            given.load("s-resnet"), given.images[:2], 4, s_resnet.simulation.SimulationSettings(precision=precision)
        )
    expect(settings() == before, f"{before} before, {settings()} after")
    return before


def convolved(shape: tuple[int, int, int, int, int], layout: torch.memory_format, device: torch.device) -> Tensor:
    """How far whole numbers are off: int8 weights over spikes, or over the stem's fixed-point image."""
    inputs, outputs, size, kernel, stride = shape
    generator = torch.Generator(device).manual_seed(0)
    low, high = (-512, 513) if inputs == 3 else (0, 2)

    def whole(first: int, beyond: int, *sizes: int) -> Tensor:
        drawn = torch.randint(first, beyond, sizes, generator=generator, device=device)
        return drawn.float().contiguous(memory_format=layout)

    x = whole(low, high, 16, inputs, size, size)
    weight = whole(-127, 128, outputs, inputs, kernel, kernel)
    want = F.conv2d(x.double(), weight.double(), None, stride, kernel // 2)
    return (F.conv2d(x, weight, None, stride, kernel // 2) - want).abs().max()


@check("convolutions of whole numbers are exact in TF32 and in float32", gpu=True)
def _whole(given: Networks) -> None:
    """An integer network runs so: what an algorithm that transforms its inputs (Winograd) would spoil."""
    off = {}
    for shape in SHAPES:
        for layout in LAYOUTS:
            for tf32 in (True, False):
                with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
                    off[f"{shape}, {layout}, {'TF32' if tf32 else 'float32'}"] = float(
                        convolved(shape, layout, given.device)
                    )
    wrong = {name: value for name, value in off.items() if value}
    expect(not wrong, wrong)


@check("float16 convolutions add up in float32", gpu=True)
def _wide(given: Networks) -> float:
    ones = torch.ones(8, 512, 7, 7, device=given.device, dtype=torch.float16).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.ones(512, 512, 3, 3, device=given.device, dtype=torch.float16)
    middle = float(F.conv2d(ones, weight.contiguous(memory_format=torch.channels_last), None, 1, 1)[0, 0, 3, 3])
    expect(middle == 4608, f"4608 ones add up to {middle}")
    return middle
