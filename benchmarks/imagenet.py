"""The question of `latency.py` on ImageNet: ResNet-18, 34 and 50 at 224 pixels, recipes at equal end-to-end latency.

    python benchmarks/imagenet.py DATA --checkpoint resnet50=FILE [--checkpoint resnet18=FILE] [--resume]
    python benchmarks/imagenet.py DATA --download       torchvision's own weights (V1), the 50,000 validation images

DATA is as of `sresnet convert`: `imagenet:DIR`, or a folder with `train/` for calibration and `val/` or `test/` for
evaluation. T is chosen for each network and recipe so that the answer comes after 16, 32 and 64 steps, where there is
such a T. Which recipe of plain neurons is best at each latency is decided on calibration images that no recipe was
fitted to (`--choice-images`), by agreement with the ANN, never on test images.

Converted networks and the answers to every image are kept in the work folder. `--resume` takes both from there and
goes on, also in the middle of a network. To share the images over processes or machines, run `--only-convert` first,
then `--shard 1/N` to `--shard N/N` on copies of the work folder, then `--resume` on a work folder with all files of
answers: its lines are those of a single run. Lines are appended to `benchmarks/results/imagenet.jsonl`, and the claim
sheet, `imagenet-claims.md` beside it, is written anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

import answers
import claims
import latency
import recipe_names
import torch
import torchvision
from answers import Line
from imagenet_case import BARE, LAGGED, LAGS, RECIPES, SEED, Case, Settings, evaluate, images_for, made_with

import s_resnet

RESULTS = Path(__file__).parent / "results" / "imagenet.jsonl"
NETWORKS = ("resnet18", "resnet34", "resnet50")
# T of the recipes that are not compared at these latencies; of the bare conversion one simulation gives all.
STEPS = {"multilevel": (4, 8), "phased": (8, 16), BARE: (256,)}
USUAL = ("calibrated-constant", "calibrated", *LAGS, LAGGED, "signed", "multilevel", "phased", BARE)
FITTED = ("fit_thresholds", "calibrate_neurons", "fit_readout")


# ---- which cases ----


def steps_for(checkpoint: Path, recipe: str, size: int | None) -> list[int]:
    """The T of a recipe for this network, such that the answer comes after `claims.LATENCIES` steps."""
    if recipe in STEPS:
        return list(STEPS[recipe])
    loaded = s_resnet.load_checkpoint(checkpoint)
    size = size or loaded.input_size
    plain = recipe.partition("+")[0]
    lagged = s_resnet.RECIPES[LAGGED]
    named = lagged.set("relu_to_neuron", lag=LAGS[plain]) if plain in LAGS else s_resnet.RECIPES[plain]
    known = named.without(*FITTED)
    snn = s_resnet.convert(loaded.model, (loaded.channels, size, size), known, timesteps=1)
    late = {snn.end_to_end_steps(steps): steps for steps in range(1, max(claims.LATENCIES) + 1)}
    return [late[steps] for steps in claims.LATENCIES if steps in late]


def named_file(text: str) -> tuple[str, Path]:
    """NAME=FILE of the command line."""
    name, _, file = text.partition("=")
    if name not in NETWORKS or not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"got {text!r}; expected NAME=FILE with a name of {', '.join(NETWORKS)}")
    return name, Path(file)


def part_of(text: str) -> tuple[int, int]:
    """I/N of the command line."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected I/N with I from 1 to N, such as 1/4")
    return int(found[1]), int(found[2])


def download(network: str, folder: Path) -> Path:
    """The V1 weights that torchvision names, in the folder; fetched where they are not there, and checked."""
    url = torchvision.models.get_model_weights(network)["IMAGENET1K_V1"].url
    file: Path = folder / url.rpartition("/")[2]
    if not file.exists():
        digest = re.search(r"-([0-9a-f]+)\.", file.name)
        torch.hub.download_url_to_file(url, str(file), digest and digest[1])
    return file


def cases(asked: argparse.Namespace, settings: Settings) -> list[Case]:
    """Every conversion that is asked for; SystemExit where a network has no weights."""
    given = dict(asked.checkpoint)
    found = []
    for network in asked.networks or list(given) or NETWORKS:
        if network not in given and not asked.download:
            raise SystemExit(f"{network}: got no weights; expected --checkpoint {network}=FILE, or --download.")
        file = given.get(network) or download(network, settings.work)
        theirs = file.name if network in given else "torchvision, IMAGENET1K_V1"
        for recipe in asked.recipes:
            for steps in asked.timesteps or steps_for(file, recipe, settings.input_size):
                found.append(Case(network, recipe, steps, file, asked.weights_are or theirs, settings))
    return found


# ---- conversion ----


def run(arguments: Sequence[str]) -> Line:
    """Run Python with these arguments in a process of its own; its seconds, and bytes at its peak."""
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"got exit code {process.returncode} from: {shlex.join(command)}")
    return {
        "convert_seconds": round(time.perf_counter() - start, 1),
        "convert_cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "convert_peak_memory_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def converted(case: Case, resume: bool) -> Line:
    """What the conversion took, which is kept beside the network; it is made unless it is there and may be reused.

    Answers of an earlier conversion are removed with it. SystemExit where another conversion would be reused.
    """
    kept = case.file.with_suffix(".json")
    identity = {
        "checkpoint_sha256": hashlib.sha256(case.checkpoint.read_bytes()).hexdigest(),
        "convert": shlex.join(case.convert(case.checkpoint.name, "DATA", "OUT")),
    }
    if resume and case.file.exists() and kept.exists():
        line: Line = json.loads(kept.read_text())
        if differing := [name for name, value in identity.items() if line[name] != value]:
            raise SystemExit(f"{case.file}: got another {differing[0]} than asked for; expected the same. Use --work.")
        return line
    for file in (kept, *case.files()):
        file.unlink(missing_ok=True)
    _, *arguments = case.convert(case.checkpoint, case.settings.data, case.file)
    took = run(["-m", "sresnet_cli", *arguments])
    line = {**took, **identity, "converted_with": made_with()}
    kept.write_text(json.dumps(line))
    return line


def apart(case: Case) -> None:
    """Evaluate in a process of its own, so that its peak memory is that of this case."""
    process = get_context("spawn").Process(target=evaluate, args=(case,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"got exit code {process.exitcode} from the evaluation of {case.name}")


# ---- lines ----


def lines(case: Case, took: Line) -> Iterator[Line]:
    """A line for each question and T whose images all have an answer."""
    snn = s_resnet.load(case.file)
    for question in case.questions:
        asked, _ = images_for(case, question)
        chunks = answers.kept(case.files(), asked)
        if left := answers.missing(chunks, asked.names):
            print(f"{case.name} {question}: {len(left)} images are still missing; run --resume", flush=True)
            continue
        for steps in case.at:
            yield {
                "question": question,
                "network": case.network,
                "weights": case.weights_are,
                "recipe": case.recipe,
                "timesteps": steps,
                "end_to_end_steps": snn.end_to_end_steps(steps),
                "alphabet": snn.alphabet,
                "data": case.settings.images_are if question == "recipe" else "calibration images, not fitted to",
                "limit": case.limit(question),
                "images_digest": asked.digest,
                "calibration_images": 0 if case.bare else case.settings.calibration_images,
                "seed": SEED,
                **answers.accuracies(chunks, steps),
                **answers.costs(chunks),
                "reconstruct": "--reconstruct" in RECIPES[case.recipe],
                **latency.reconstructed(case.file),
                **took,
                **answers.made_with(chunks),
            }


def write(found: Sequence[Line], results: Path) -> None:
    """Append the lines that are not there yet, and show all of them."""
    old = set(results.read_text().splitlines()) if results.exists() else set()
    shown = ("question", "network", "recipe", "timesteps", "end_to_end_steps", "images", "drop", "agreement")
    for line in found:
        print(*(line[name] for name in shown), flush=True)
        if (text := json.dumps(line)) not in old:
            with results.open("a") as file:
                file.write(f"{text}\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("data", metavar="DATA")
    found.add_argument("--networks", nargs="+", metavar="NAME", choices=NETWORKS, help="by default those with weights")
    found.add_argument("--checkpoint", action="append", type=named_file, metavar="NAME=FILE", default=[])
    found.add_argument("--download", action="store_true", help="fetch the weights that are not given")
    found.add_argument("--weights-are", metavar="TEXT", help="what the weights are, for the claim sheet")
    found.add_argument("--images-are", metavar="TEXT", default="ImageNet val", help="what the test images are")
    found.add_argument(
        "--recipes", nargs="+", metavar="NAME", type=recipe_names.current, choices=list(RECIPES), default=USUAL
    )
    found.add_argument("--timesteps", nargs="+", type=int, metavar="T", help="instead of the T of each recipe")
    found.add_argument("--limit", type=int, metavar="N", help="only N test images, a seeded choice; by default all")
    found.add_argument("--bare-limit", type=int, metavar="N", default=100, help=f"the same for {BARE}")
    found.add_argument("--calibration-images", type=int, metavar="N", default=1024)
    found.add_argument("--choice-images", type=int, metavar="N", default=200, help="0 for no choice of a recipe")
    found.add_argument("--input-size", type=int, metavar="N", help="pixels per side; by default 224")
    found.add_argument("--batch-size", type=int, metavar="B", default=8)
    found.add_argument("--chunk", type=int, metavar="N", default=50, help="images between two saves")
    found.add_argument("--device", default="auto")
    found.add_argument("--resume", action="store_true", help="reuse networks and answers in the work folder")
    found.add_argument("--only-convert", action="store_true")
    found.add_argument("--shard", type=part_of, metavar="I/N", help="only every Nth image, from the Ith on")
    found.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    found.add_argument("--results", type=Path, default=RESULTS)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    asked.work.mkdir(parents=True, exist_ok=True)
    names = Settings.__dataclass_fields__
    given = {name: getattr(asked, name) for name in names if name != "shard"}
    settings = Settings(**given, shard=asked.shard or (1, 1))
    planned = cases(asked, settings)
    print("planned:", ", ".join(case.name for case in planned), file=sys.stderr, flush=True)
    for case in planned:
        if asked.shard and not case.file.exists():
            raise SystemExit(f"{case.file}: got no network to share the images of; run --only-convert first.")
        took = converted(case, asked.resume or asked.shard is not None)
        if asked.only_convert:
            continue
        apart(case)
        if asked.shard is None:
            write(list(lines(case, took)), asked.results)
    if asked.shard is None and not asked.only_convert:
        claims.write(asked.results)


if __name__ == "__main__":
    main()
