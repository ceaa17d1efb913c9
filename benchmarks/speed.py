"""What does one simulated step cost beside other toolkits, the ANN and the convolutions alone? Paired, in one process.

    python benchmarks/speed.py [NETWORK ...] --fixtures DIR [--size N] [--batch N] [--steps T] [--threads N] ...
    python benchmarks/speed.py [NETWORK ...] --fixtures DIR --memory      peak memory, T = 32 and 512

Every repeat runs every contender once, each time in another order, so that a slow moment of the machine meets all;
a ratio is taken within a repeat, and the median of the ratios is reported. A contender runs T steps of one batch:

floor                the network's convolutions alone, in float32: for each convolution but the stem's, which constant
                     input makes a one-time cost, one `F.conv2d` with bias, channels_last, on its true input shape
                     [batch, C, H, W] filled with {0, 1} at the rate that its layer really fires with. All of them
                     once are one step. Dense: a simulator that skips zeros, or folds steps together, may go below.
                     On a GPU also in float16.
ann                  the source network's own forward, as loaded: one pass is one step.
ours ...             `s_resnet.simulate`.
spikingjelly ...     SpikingJelly's own conversion: single-step eager, under torch.compile; multi-step, on a GPU at the
                     largest number of steps at once that fits, where its Triton kernels choose themselves; and there
                     in float16, channels_last, with float32 membranes.
snntorch, norse      their neurons in a hand-converted copy of our network; see `peers.py`.

How each multiplies is in its line. On a GPU float32 is one arithmetic for all contenders of a run: exact, or with
--tf32 TF32, which is torch's default there; who always takes the other one is left out. `ours exact` is float32 made
of two convolutions in TF32, in both. A contender is compared with the floor of its own arithmetic, where there is one;
on a CPU, where there is one floor, with that.

The speed of an event-driven simulator depends on the firing rate. So the networks are trained ones (FIXTURES as in
`conversion.py`), calibrated on training images, fed with test images; timing starts from the state after 32 steps, when
rates are steady. Without --fixtures weights and images are random, and the line says so. At sizes other than the
fixture's own (64 px, CIFAR 32) images are resized: the rates are those of a network outside its size.

Lines are appended to `benchmarks/results/speed.jsonl`.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
import torch
from contenders import CONTENDERS, NETWORKS, WARM, Runner, Setting, float32
from gpu.lines import driver, versions

import s_resnet

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
MEMORY_STEPS = (32, 512)


def seconds(runner: Runner, steps: int, device: str) -> float:
    runner.rewind()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    runner.run(steps)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    digits = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in digits.items()}


def floor_of(setting: Setting, name: str) -> str | None:
    """The floor that a contender is compared with; on a GPU none where there is none of its arithmetic."""
    if setting.device == "cpu":
        return "floor"
    own = CONTENDERS[name].arithmetic(setting.device, setting.tf32)
    floors = {CONTENDERS[each].arithmetic(setting.device, setting.tf32): each for each in ("floor", "floor float16")}
    return floors.get(own)


def faster(own: list[float], other: list[float]) -> dict[str, float]:
    return spread([b / a for a, b in zip(own, other, strict=True)])


def ready(setting: Setting, names: list[str], steps: int) -> tuple[dict[str, Runner], dict[str, str]]:
    """The contenders, warmed with the T that is timed (a GPU tries algorithms at new shapes); and who failed, why."""
    runners, failed = {}, {}
    for name in names:
        try:
            runner = CONTENDERS[name].build(setting)
            seconds(runner, steps, setting.device)
        except (Exception, SystemExit) as error:  # the others are measured all the same, and the line says so
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            print(f"{name:28s} failed: {failed[name]}", file=sys.stderr)
        else:
            runners[name] = runner
    return runners, failed


def measure(setting: Setting, runners: dict[str, Runner], steps: int, repeats: int) -> dict[str, object]:
    """Time per step and image of each contender, and its ratios within each repeat."""
    names = list(runners)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            times[name].append(1e3 * seconds(runners[name], steps, setting.device) / steps / setting.batch)
    lines: dict[str, object] = {}
    theirs = [name for name in times if name.startswith("spikingjelly")]
    fastest = min(theirs, key=lambda name: statistics.median(times[name]), default=None)
    for name, own in times.items():
        arithmetic, bound = CONTENDERS[name].arithmetic(setting.device, setting.tf32), floor_of(setting, name)
        line: dict[str, object] = {"ms_per_step_per_image": spread(own), "rate": runners[name].rate}
        line["arithmetic"] = arithmetic
        if bound is not None and bound in times:
            line["over_floor"] = spread([a / b for a, b in zip(own, times[bound], strict=True)])
            line["floor"] = bound
        if "spikingjelly eager" in times:
            line["times_faster_than_spikingjelly_eager"] = faster(own, times["spikingjelly eager"])
        if fastest is not None:
            line["times_faster_than_fastest_spikingjelly"] = faster(own, times[fastest])
            line["fastest_spikingjelly"] = fastest
        lines[name] = line | runners[name].notes
        print(f"{name:28s} {json.dumps(lines[name])}", flush=True)
    return lines


def peak(setting: Setting, name: str, steps: int) -> dict[str, int]:
    """Bytes at the peak of so many steps, and before them; in a process that has run nothing else."""
    runner = CONTENDERS[name].build(setting)
    seconds(runner, steps, setting.device)  # a GPU tries algorithms at every new shape, which takes memory
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(runner, steps, setting.device)
        return {"before_bytes": before, "peak_bytes": torch.cuda.max_memory_allocated()}
    # Linux: the high-water mark starts again from what is resident now, so that conversion does not count.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    seconds(runner, steps, setting.device)
    return {"before_bytes": before, "peak_bytes": resident("VmHWM")}


def resident(entry: str) -> int:
    """Bytes of this process, now (VmRSS) or at the peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"memory: got no {entry} in /proc/self/status; expected Linux. Measure there, or on a GPU.")


def peaks(setting: Setting, names: list[str], threads: int) -> dict[str, object]:
    """Peak memory of each contender at T = 32 and 512, every one in a process of its own."""
    given = {"size": setting.size, "batch": setting.batch, "device": setting.device, "layout": setting.layout}
    given |= {"work": setting.work, "threads": threads} | ({"fixtures": setting.fixtures} if setting.fixtures else {})
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    options += ["--tf32"] * setting.tf32
    lines: dict[str, object] = {}
    for name in names:
        got = {}
        for steps in MEMORY_STEPS:
            program = [sys.executable, __file__, setting.network]
            command = [*program, *options, "--only", name, "--peak", "--steps", str(steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            got[steps] = json.loads(done.stdout.splitlines()[-1])
        ratio = got[MEMORY_STEPS[-1]]["peak_bytes"] / got[MEMORY_STEPS[0]]["peak_bytes"]
        lines[name] = {"steps": got, "last_over_first": round(ratio, 3)}
        print(f"{name:28s} {json.dumps(lines[name])}", flush=True)
    return lines


def described(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, where, and how to do it again."""
    options = [f"--{name} {getattr(arguments, name)}" for name in ("batch", "steps", "threads", "repeats", "device")]
    trained = setting.fixtures is not None
    return {
        "question": "memory" if arguments.memory else "speed",
        "network": setting.network,
        "weights": "trained" if trained else "random",
        "size": setting.size,
        "batch": setting.batch,
        "steps": list(MEMORY_STEPS) if arguments.memory else [WARM + 1, WARM + arguments.steps],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else "cpu",
        "driver": driver() if setting.device == "cuda" else None,
        "float32": float32(setting.tf32),
        "layout_of_others": setting.layout,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": versions(),
        "kernels": s_resnet.kernels.describe(),
        "command": " ".join(
            ["python benchmarks/speed.py", setting.network, f"--size {setting.size}", *options]
            + (["--fixtures DIR"] if trained else [])
            + ([f"--layout {setting.layout}"] if setting.layout != "contiguous" else [])
            + ["--tf32"] * setting.tf32
            + ([f"--only '{arguments.only}'"] if arguments.only else [])
            + (["--memory"] if arguments.memory else [])
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; by default two")
    parser.add_argument("--fixtures", type=Path, help="trained networks and their images; without it all is random")
    parser.add_argument("--size", type=int, help="pixels per side; by default 64, CIFAR networks 32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=32, help=f"T, after {WARM} steps that are not timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous", help="of the others")
    parser.add_argument("--tf32", action="store_true", help="float32 as a GPU's TF32, for all that have the choice")
    parser.add_argument("--only", metavar="NAME,...", help=f"contenders, of: {', '.join(CONTENDERS)}")
    parser.add_argument("--memory", action="store_true", help="peak memory at T = 32 and 512 in place of time")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where lines go; by default the project's results")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing is measured")
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True  # as our engine has it
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    arguments.work.mkdir(parents=True, exist_ok=True)
    wanted = arguments.only.split(",") if arguments.only else list(CONTENDERS)
    given = (arguments.device, arguments.tf32)
    missing = {name: reason for name in wanted if (reason := CONTENDERS[name].missing(*given))}
    names = [name for name in wanted if name not in missing]
    for name, reason in missing.items():
        print(f"{name:28s} not measured: {reason}", file=sys.stderr)
    for network in arguments.networks or list(NETWORKS)[:2]:
        size = arguments.size or NETWORKS[network][1]
        where = (arguments.device, arguments.layout, arguments.fixtures, arguments.work, arguments.tf32)
        setting = Setting(network, size, arguments.batch, *where)
        if arguments.peak:
            print(json.dumps(peak(setting, names[0], arguments.steps)))
            return
        print(f"{network}, {size} px, batch {arguments.batch}, {arguments.device}", flush=True)
        line = described(setting, arguments) | {"not_measured": missing}
        if arguments.memory:
            setting.snn  # noqa: B018  converted here, so that every process finds it
            line["contenders"] = peaks(setting, names, arguments.threads)
        else:
            runners, line["failed"] = ready(setting, names, arguments.steps)
            line["contenders"] = measure(setting, runners, arguments.steps, arguments.repeats)
            if any(name.startswith("spikingjelly") for name in runners):
                line["spikingjelly_computed_by"] = sorted(peers.implementations())
        with arguments.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if line.get("failed"):
            raise SystemExit(f"failed: {', '.join(line['failed'])}")


if __name__ == "__main__":
    main()
