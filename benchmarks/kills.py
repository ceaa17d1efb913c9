"""What does `kill -9` leave behind? Every command is killed at random moments, its files are read, and it is run again.

    python benchmarks/kills.py FIXTURES [--moments N] [--commands NAME ...] [--seed N]

FIXTURES is the folder of `conversion.py`: CIFAR ResNet-20 and CIFAR-10 images. Moments are uniform over the processor
time that the command takes when nobody disturbs it, which a busy machine does not stretch; every second time the output
of an earlier run is there before. After a kill each file must be whole: the old one, the new one, or none. The same
command must then end well and sweep what was left; of `train` and `reconstruct` it must give the weights, to the last
bit, of a run that was never stopped.

One JSON line per moment is appended to `benchmarks/results/kills.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import s_resnet

RESULTS = Path(__file__).parent / "results" / "kills.jsonl"
RECONSTRUCT = """
import sys, s_resnet
model, data = s_resnet.load_checkpoint(sys.argv[1]).model, s_resnet.data.open_data(sys.argv[2], "calibration")
chosen, preprocessing = s_resnet.data.choose(data, 32), s_resnet.data.preprocessing_for(32)
images = s_resnet.data.ImageLoader(data, chosen, preprocessing, 32, workers=0)
recipe = s_resnet.RECIPES["phased"].reconstructed(steps=4, joint=8, resume="out.snn.partial")
s_resnet.save(s_resnet.convert(model, images, recipe, timesteps=4), "out.snn")
"""


@dataclass(frozen=True)
class Case:
    """A command, what it writes, and how that is read; the last gives what two runs must agree in."""

    command: tuple[str, ...]
    outputs: tuple[str, ...]
    read: Callable[[Path], Any]
    repeatable: bool = False


def network(path: Path) -> list[Any]:
    """The tensors of a network."""
    return list(s_resnet.load(path).tensors().values())


def checkpoint(path: Path) -> list[Any]:
    """The weights of a training checkpoint."""
    return list(torch.load(path, weights_only=True)["state_dict"].values())


def arrays(path: Path) -> None:
    with np.load(path) as file:
        assert [file[name] for name in file.files]


def page(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    else:
        assert path.read_text().rstrip().endswith("</html>")


def cases(fixtures: Path, base: Path) -> dict[str, Case]:
    weights = str(fixtures / "checkpoints" / "resnet20-12fca82f.th")
    train, test = (str(fixtures / "cifar10" / split) for split in ("train", "test"))
    program = (sys.executable, "-m", "sresnet_cli")
    calibrated = ("--calibration", train, "--calibration-images", "32", "--timesteps", "8")
    tested = (str(base), "--data", test, "--timesteps", "8")
    return {
        "convert": Case((*program, "convert", weights, *calibrated, "--force", "-o", "out.snn"), ("out.snn",), network),
        "evaluate": Case(
            (*program, "evaluate", *tested, "--limit", "24", "--force", "--json", "out.json"),
            ("out.json",),
            lambda path: json.loads(path.read_text()) and None,
        ),
        "report": Case(
            (*program, "report", *tested, "--limit", "8", "--force", "-o", "page"),
            ("page/index.html", "page/report.json"),
            page,
        ),
        "export": Case(
            (*program, "export", str(base), "--format", "npz", "--force", "-o", "out.npz"), ("out.npz",), arrays
        ),
        "train": Case(
            (
                *(*program, "train", "ms_resnet8", "--data", train, "--limit", "100", "--test-limit", "20", "--width"),
                *("4", "--batch-size", "32", "--timesteps", "2", "--epochs", "6", "--workers", "0", "-o", "out.pt"),
            ),
            ("out.pt",),
            checkpoint,
            repeatable=True,
        ),
        "reconstruct": Case((sys.executable, "-c", RECONSTRUCT, weights, train), ("out.snn",), network, True),
    }


def used(process: int) -> float:
    """Seconds of processor time that a process has had; Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(case: Case, folder: Path) -> tuple[float, str]:
    """The processor time in seconds of a run to its end, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(case.command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(case.command)}: exit {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def half(case: Case, folder: Path, name: str) -> str:
    """What an output is: none, whole, or why it cannot be read."""
    if not (folder / name).exists():
        return "none"
    try:
        case.read(folder / name)
    except Exception as error:  # any failure to read it is the finding
        return f"HALF: {error}"
    return "whole"


def left(folder: Path) -> list[str]:
    """Temporary files and folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def killed(case: Case, reference: Path, seconds: float, chance: random.Random, there: bool) -> dict[str, Any]:
    """One moment: what the kill leaves, and what comes of the same command afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if there and not case.repeatable:  # those would find themselves finished
            shutil.copytree(reference, folder, dirs_exist_ok=True)
        moment = chance.uniform(0, seconds)
        process = subprocess.Popen(
            case.command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and used(process.pid) < moment:
            time.sleep(0.001)
        ended = process.poll() is not None
        process.kill()
        process.wait()
        line: dict[str, Any] = {"moment": round(moment, 3), "of": round(seconds, 3), "ended": ended, "there": there}
        line["outputs"] = {output: half(case, folder, output) for output in case.outputs}
        line["left"] = left(folder)
        line["kept"] = [path.name for path in (*folder.glob("*.partial"), *folder.glob("*.pt"))]
        _, said = finished(case, folder)
        line["afterwards"] = {output: half(case, folder, output) for output in case.outputs}
        line["left_afterwards"] = left(folder)
        line["goes_on"] = "goes on from there" in said or "holds this run, finished" in said
        if case.repeatable:
            (output,) = case.outputs
            line["same"] = same(case.read(folder / output), case.read(reference / output))
        return line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--moments", type=int, metavar="N", default=100, help="Of all commands together.")
    parser.add_argument("--commands", nargs="+", metavar="NAME")
    parser.add_argument("--seed", type=int, metavar="N", default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    got = parser.parse_args(arguments)
    chance, counts = random.Random(got.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base.snn"
        known = cases(got.fixtures.resolve(), base)
        model = s_resnet.load_checkpoint(got.fixtures / "checkpoints" / "resnet20-12fca82f.th").model
        prepared = s_resnet.data.preprocessing_for(32)
        s_resnet.save(s_resnet.convert(model, (3, 32, 32), "s-resnet").with_provenance(preprocessing=prepared), base)
        chosen = got.commands or list(known)
        references, seconds = {}, {}
        for command in chosen:
            references[command] = Path(name) / command
            references[command].mkdir()
            seconds[command], _ = finished(known[command], references[command])
        for index in range(got.moments):
            command = chosen[index % len(chosen)]
            line = killed(known[command], references[command], seconds[command], chance, index // len(chosen) % 2 == 1)
            line |= {"command": command, "torch": torch.__version__, "s_resnet": s_resnet.__version__}
            line |= {"machine": platform.machine(), "cores": os.cpu_count(), "seed": got.seed}
            with got.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            for name_ in ("ended", "goes_on"):
                counts[f"{command}: {name_}"] += line[name_]
            counts[f"{command}: moments"] += 1
            counts[f"{command}: kept a part"] += bool(line["kept"])
            counts[f"{command}: half"] += sum(said.startswith("HALF") for said in line["outputs"].values())
            counts[f"{command}: left"] += bool(line["left"])
            counts[f"{command}: left afterwards"] += bool(line["left_afterwards"])
            counts[f"{command}: not whole afterwards"] += set(line["afterwards"].values()) != {"whole"}
            counts[f"{command}: other weights"] += not line.get("same", True)
            print(index + 1, json.dumps(line), flush=True)
    for what, count in counts.items():
        print(f"{what} {count}")


if __name__ == "__main__":
    main()
