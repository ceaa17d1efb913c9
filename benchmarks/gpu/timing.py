"""How the timings of a GPU take their time, the options that they share, and the network that they time."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from lines import RESULTS, described, write

import s_resnet

NEEDS = "needs a GPU"
AHEAD = 2_000_000  # cycles that the device sleeps while Python puts the work into its queue


@dataclass(frozen=True)
class Timing:
    """Where is timed, whether only a dry run, and the file that lines go to."""

    question: str
    device: torch.device
    quick: bool
    output: Path

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def finish(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.gpu:
            torch.cuda.synchronize()

    def once(self, call: Callable[[], object]) -> float:
        """Milliseconds of the device, which sleeps until Python is through with the call; on a CPU by the clock."""
        if not self.gpu:
            begin = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begin)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def milliseconds(self, *calls: Callable[[], object], repeats: int = 7, warm: int = 2) -> list[list[float]]:
        """Times of each call, one a repeat, all calls in turns; not of the first ``warm`` turns."""
        turns, warm = (1, 0) if self.quick else (repeats, warm)
        rows = [[self.once(call) for call in calls] for _ in range(turns + warm)]
        return [list(column) for column in zip(*rows[-turns:], strict=True)]

    def median(self, call: Callable[[], object], repeats: int = 7, warm: int = 2) -> float:
        """The median of one call's times, in milliseconds."""
        return statistics.median(self.milliseconds(call, repeats=repeats, warm=warm)[0])

    def wall(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Seconds by the clock until the device has done it, the median; warmed by the caller."""
        times = []
        for _ in range(1 if self.quick else repeats):
            self.finish()
            begin = time.perf_counter()
            call()
            self.finish()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def write(self, **line: Any) -> None:
        """A line of results."""
        whole = {"question": self.question, "dry_run": self.quick, **line}
        write(whole | described(self.device), self.output)
        print(self.question, line, flush=True)


def asked(
    question: str, about: str, arguments: Sequence[str] | None, results: str = "gpu_timings", **options: Any
) -> tuple[Timing, argparse.Namespace]:
    """The options of a timing; those beside the shared ones by name, with the settings of ``add_argument``.

    ``results`` names the file of lines.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a dry run: small sizes, once")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{results}.jsonl")
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    got = parser.parse_args(arguments)
    if got.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing is timed")
    return Timing(question, torch.device(got.device), got.quick, got.output), got


def network(quick: bool, recipe: s_resnet.Recipe | str = "s-resnet") -> tuple[s_resnet.Graph, int]:
    """A converted ResNet-50 with random weights on the CPU, and its image size; of a dry run a small network."""
    torch.manual_seed(0)
    model, size = (s_resnet.models.CifarResNet(8), 16) if quick else (torchvision.models.resnet50(), 224)
    return s_resnet.convert(model.eval(), (3, size, size), recipe), size
