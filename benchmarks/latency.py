"""How much accuracy is left at few time steps? Every recipe, tuned for each T by itself, against its own ANN.

    python benchmarks/latency.py FIXTURES [--networks NAME ...] [--recipes NAME ...] [--timesteps T ...]
    python benchmarks/latency.py FIXTURES --ablation [--timesteps T ...]

FIXTURES is the folder of `conversion.py`. Our recipes run through the real commands: `sresnet convert` for this T
alone, then `sresnet evaluate` at this T on each data set. SpikingJelly's recipes (`balancing.py`) get the same
checkpoint, calibration images and test images; they know no T, so that one conversion and one simulation give all of
theirs.
`--ablation` leaves out each mechanism of recipe `calibrated-lagged`, and has each alone.

One JSON line per figure is appended to `benchmarks/results/latency.jsonl`. `drop` is in points against the own ANN on
the same images, `standard_error` that of this paired difference: exact where both answers to each image were kept
(`paired`), else an upper bound from how many answers agree (`paired, at most`). `ann_standard_error` is the binomial
one of the ANN's accuracy, the test set's own noise. `--missing` skips what has a line already.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import platform
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import balancing
import torch
import torchvision
from conversion import JPEG, LOSSLESS, place, sresnet
from recipe_names import current, today
from torch import Tensor, nn

import s_resnet
from s_resnet import Recipe

RESULTS = Path(__file__).parent / "results" / "latency.jsonl"
CALIBRATION = 1024  # images: the default of convert
Line = dict[str, Any]
Key = tuple[Any, ...]
Variation = Callable[[Recipe], Recipe]


@dataclass(frozen=True)
class Network:
    """A checkpoint, what it is calibrated and evaluated on, and the T that are asked of it."""

    checkpoint: str
    size: int
    calibration: str
    data: tuple[tuple[str, int], ...]  # (where below FIXTURES or unpacked, images)
    timesteps: tuple[int, ...]
    peers: tuple[str, ...] = ("spikingjelly-channels", "spikingjelly-ltb")
    peer_data: tuple[str, int] = (JPEG, 500)


NETWORKS = {
    "resnet20": Network(
        *("resnet20-12fca82f.th", 32, "cifar10/train", ((LOSSLESS, 500), (JPEG, 5000)), (4, 8, 16, 32)),
        *(tuple(balancing.PEERS), (LOSSLESS, 500)),
    ),
    "resnet56": Network(
        *("resnet56-4bfd9763.th", 32, "cifar10/train", ((LOSSLESS, 500), (JPEG, 5000)), (8, 16, 32)),
        peer_data=(LOSSLESS, 500),
    ),
    "resnet18": Network(
        *("resnet18-cifar10-64px.pth", 64, "jpeg-train", ((JPEG, 5000), (JPEG, 500)), (4, 8, 16, 32)),
        tuple(balancing.PEERS),
    ),
    "resnet50": Network("resnet50-cifar10-64px.pth", 64, "jpeg-train", ((JPEG, 5000), (JPEG, 500)), (4, 8, 16, 32)),
}
NAMES = ("calibrated", "calibrated+reconstruct", "calibrated-constant", "calibrated-fission", "calibrated-lagged")
NAMES += ("calibrated-lagged+reconstruct", "phased", "phased+reconstruct", "signed", "signed+reconstruct", "multilevel")
RECIPES = {name: f"--recipe {name.replace('+', ' --')}" for name in (*NAMES, "s-resnet")}  # options of convert


def without(step: str) -> Variation:
    """A recipe without one of its steps."""

    def vary(recipe: Recipe) -> Recipe:
        if step not in [s.name for s in recipe.steps]:
            raise SystemExit(f"recipe {recipe.name}: got no step {step!r}; expected one to leave out. See MECHANISMS.")
        return recipe.without(step)

    return vary


def setting(step: str, **settings: Any) -> Variation:
    """A recipe with other settings of one step."""
    return lambda recipe: recipe.set(step, **settings)


ABLATED = ("resnet20", "calibrated-lagged", (8, 16))
MECHANISMS: dict[str, Variation] = {  # each: how it is left out of the recipe
    "v(0) = 1/2": setting("relu_to_neuron", initial_potential=0.0),
    "layers one step behind": setting("relu_to_neuron", schedule="streaming"),
    "thresholds fitted to T": without("fit_thresholds"),
    "currents corrected": without("calibrate_neurons"),
    "readout fitted": without("fit_readout"),
}
PARTS: dict[str, Variation] = {  # of a mechanism
    "synapses fitted to the spikes": setting("calibrate_neurons", weights=False),
    "currents corrected per step": setting("calibrate_neurons", time_indexed=False),
    "steps weighed in the readout": setting("fit_readout", weighted=False),
}


def variations(mechanisms: Mapping[str, Variation], parts: Mapping[str, Variation]) -> dict[str, Variation]:
    """The whole recipe, each mechanism and each part of one left out, each mechanism alone, none."""

    def off(names: Iterable[str]) -> Variation:
        return lambda recipe: functools.reduce(lambda r, name: mechanisms[name](r), names, recipe)

    return {
        "all": off(()),
        **{f"without {name}": vary for name, vary in (*mechanisms.items(), *parts.items())},
        **{f"only {name}": off([other for other in mechanisms if other != name]) for name in mechanisms},
        "none": off(mechanisms),
    }


@dataclass(frozen=True)
class Case:
    """One conversion through the command line, and what it is evaluated on."""

    network: str
    recipe: str
    timesteps: int
    checkpoint: Path
    options: str  # of convert, but for T and calibration
    calibration: tuple[str, Path]  # its name, where it lies
    data: tuple[tuple[str, Path, int | None], ...]  # name, where it lies, images; None: all

    def convert(self, checkpoint: object, calibration: object) -> list[str]:
        """The arguments of convert, without the output."""
        options = [*shlex.split(self.options), "--timesteps", str(self.timesteps)]
        return ["convert", str(checkpoint), *options, "--calibration", str(calibration)]

    def evaluate(self, network: object, data: object, limit: int | None) -> list[str]:
        """The arguments of evaluate, without the output."""
        steps = ["--timesteps", str(self.timesteps), "--at", str(self.timesteps)]
        return ["evaluate", str(network), *steps, "--data", str(data), *(["--limit", str(limit)] if limit else [])]

    def identity(self, data: str, limit: int | None) -> Line:
        """What names a figure of this case."""
        return {
            "question": "recipe",
            "network": self.network,
            "recipe": self.recipe,
            "timesteps": self.timesteps,
            "data": data,
            "limit": limit,
        }

    def without(self, done: set[Key]) -> Case:
        """The case without the data sets that have a line."""
        return replace(self, data=tuple(d for d in self.data if key(self.identity(d[0], d[2])) not in done))


def key(line: Line) -> Key:
    """What was measured, whatever came out and whichever commit it was."""
    return tuple(line.get(n) for n in ("question", "network", "recipe", "variation", "timesteps", "data", "limit"))


def figures(ann: float, top1: float, differing: float, images: int, exact: bool) -> Line:
    """Accuracies in percent; the drop and the standard errors in points.

    ``differing`` is the share of images on which the network is right and its ANN wrong, or the other way round. An
    upper limit of it, the share of answers that differ, gives an upper limit of the error.
    """
    drop = ann - top1
    return {
        "images": images,
        "ann_top1": round(100 * ann, 4),
        "top1": round(100 * top1, 4),
        "drop": round(100 * drop, 4),
        "standard_error": round(100 * math.sqrt(max(differing - drop**2, 0) / images), 4),
        "standard_error_kind": "paired" if exact else "paired, at most",
        "ann_standard_error": round(100 * math.sqrt(ann * (1 - ann) / images), 4),
    }


def from_report(report: Line, timesteps: int) -> Line:
    """The figures of a Report's JSON at one T."""
    (row,) = (row for row in report["snn"] if row["timesteps"] == timesteps)
    found = figures(report["ann"]["top1"], row["top1"], 1 - row["agreement"], report["images"], exact=False)
    kept = {name: row[name] for name in ("end_to_end_steps", "agreement", "spikes_per_neuron")}
    kept["alphabet"] = report.get("alphabet", "binary")
    return {**found, **kept, "device": report["device"], "kernel": report["kernel"]}


def versions() -> Line:
    """What a figure was made with."""
    return {
        "threads": torch.get_num_threads(),
        "s_resnet": s_resnet.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def reconstructed(network: Path) -> Line:
    """Of a reconstruction: how many of its steps fitted in its time, and whether the outcome was taken."""
    said = s_resnet.load(network).provenance.reconstruction
    if said.asked is None:
        return {}
    steps = sum(block.steps for block in said.blocks or ())
    return {"reconstruct_steps": steps, "reconstruct_steps_asked": said.asked.total, "reconstruct_taken": said.taken}


def measure(case: Case, work: Path) -> Iterator[Line]:
    """Convert once, and give a line for each data set."""
    if not case.data:
        return
    network = work / f"{case.network}-{case.recipe}-{case.timesteps}.snn"
    report = network.with_suffix(".json")
    convert_seconds = sresnet(*case.convert(case.checkpoint, case.calibration[1]), "--force", "-o", str(network))
    for name, where, limit in case.data:
        evaluate_seconds = sresnet(*case.evaluate(network, where, limit), "--force", "--json", str(report))
        yield {
            **case.identity(name, limit),
            "reconstruct": "--reconstruct" in case.options,
            **reconstructed(network),
            **from_report(json.loads(report.read_text()), case.timesteps),
            "convert_seconds": round(convert_seconds, 1),
            "evaluate_seconds": round(evaluate_seconds, 1),
            "convert": shlex.join(["sresnet", *case.convert(case.checkpoint.name, case.calibration[0])]),
            "evaluate": shlex.join(["sresnet", *case.evaluate("NETWORK.snn", name, limit)]),
            **versions(),
        }
    network.unlink()


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    fixtures: Path
    work: Path
    networks: tuple[str, ...]
    recipes: tuple[str, ...]
    timesteps: tuple[int, ...]  # none: those of the network or the peer
    limit: int | None  # at most so many images of a data set

    def limited(self, images: int) -> int:
        return min(images, self.limit or images)

    def cases(self) -> list[Case]:
        """Our conversions among them."""
        return [
            self.case(network, recipe, steps)
            for network in self.networks
            for recipe in self.recipes
            if recipe in RECIPES
            for steps in self.timesteps or NETWORKS[network].timesteps
        ]

    def case(self, name: str, recipe: str, steps: int) -> Case:
        """One of our conversions; the JPEG images are unpacked where they are not yet."""
        network = NETWORKS[name]
        size = f" --input-size {network.size}" if network.size != 32 else ""
        places = dict.fromkeys((data, self.place(data), self.limited(images)) for data, images in network.data)
        checkpoint = self.fixtures / "checkpoints" / network.checkpoint
        calibration = (network.calibration, self.place(network.calibration))
        return Case(name, recipe, steps, checkpoint, RECIPES[recipe] + size, calibration, tuple(places))

    def peer_cases(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """SpikingJelly's conversions among them: network, recipe, every T."""
        found = [
            (network, recipe, tuple(t for t in balancing.PEERS[recipe].timesteps if t in (self.timesteps or (t,))))
            for network in self.networks
            for recipe in self.recipes
            if recipe in NETWORKS[network].peers
        ]
        return [one for one in found if one[2]]

    def place(self, name: str) -> Path:
        return place(name, self.fixtures, self.work)

    def model(self, network: str) -> nn.Module:
        return s_resnet.load_checkpoint(self.fixtures / "checkpoints" / NETWORKS[network].checkpoint).model.eval()

    def images(self, network: str, data: str, split: str, images: int) -> list[tuple[Tensor, Tensor]]:
        """Images and labels, those that the command line would choose."""
        found = s_resnet.data.open_data(str(self.place(data)), split)
        chosen, preprocessing = (
            s_resnet.data.choose(found, images),
            s_resnet.data.preprocessing_for(NETWORKS[network].size),
        )
        return list(s_resnet.data.ImageLoader(found, chosen, preprocessing, batch_size=32))

    def calibration(self, network: str) -> list[Tensor]:
        batches = self.images(network, NETWORKS[network].calibration, "calibration", CALIBRATION)
        return [images for images, _ in batches]


def measure_peer(asked: Asked, network: str, recipe: str, steps: Sequence[int], done: set[Key]) -> Iterator[Line]:
    """A line for each T of one of SpikingJelly's recipes."""
    data, images = NETWORKS[network].peer_data
    named = {"question": "recipe", "network": network, "recipe": recipe, "data": data, "limit": asked.limited(images)}
    steps = [t for t in steps if key({**named, "timesteps": t}) not in done]
    if not steps:
        return
    tests = asked.images(network, data, "evaluation", asked.limited(images))
    for got in balancing.measure(recipe, asked.model(network), asked.calibration(network), tests, steps):
        ann, top1, differing, number = (got.pop(name) for name in ("ann", "top1", "differing", "images"))
        yield {
            **named,
            **got,
            **figures(ann, top1, differing, number, exact=True),
            "end_to_end_steps": got["timesteps"],
            "alphabet": "binary",
            "device": "cpu",
            "spikingjelly": importlib.metadata.version("spikingjelly"),
            **versions(),
        }


def measure_ablation(asked: Asked, done: set[Key]) -> Iterator[Line]:
    """A line for each variation of the recipe, T and data set; converted in this process."""
    network, recipe, steps = ABLATED
    named = {"question": "ablation", "network": network, "recipe": recipe}
    for t in asked.timesteps or steps:
        for variation, vary in variations(MECHANISMS, PARTS).items():
            sets = [(data, asked.limited(images)) for data, images in NETWORKS[network].data]
            lines = [{**named, "variation": variation, "timesteps": t, "data": d, "limit": n} for d, n in sets]
            lines = [line for line in lines if key(line) not in done]
            if not lines:
                continue
            start = time.perf_counter()
            snn = s_resnet.convert(
                asked.model(network), asked.calibration(network), vary(s_resnet.RECIPES[recipe]), timesteps=t
            )
            seconds = round(time.perf_counter() - start, 1)
            for line in lines:
                loader = asked.images(network, line["data"], "evaluation", line["limit"])
                report = s_resnet.evaluate(snn, loader, t, at=(t,)).to_dict()
                yield {**line, **from_report(report, t), "convert_seconds": seconds, **versions()}


def write(lines: Iterable[Line], results: Path) -> None:
    """Append the lines as they come."""
    for line in lines:
        print(*(line.get(n) for n in ("network", "recipe", "variation", "timesteps", "data", "drop")), flush=True)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")


def written(results: Path) -> set[Key]:
    """The keys of the lines that are there."""
    return {key(today(json.loads(line))) for line in results.read_text().splitlines()} if results.exists() else set()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    known = [*(name for name in RECIPES if name != "s-resnet"), *balancing.PEERS]
    parser.add_argument("--networks", nargs="+", metavar="NAME", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--recipes", nargs="+", metavar="R", type=current, choices=[*known, "s-resnet"], default=known)
    parser.add_argument("--timesteps", nargs="+", type=int, metavar="T", default=())
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many images of each data set")
    parser.add_argument("--ablation", action="store_true", help="instead: each mechanism left out, and alone")
    parser.add_argument("--missing", action="store_true", help="skip what has a line")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    parser.add_argument("--results", type=Path, default=RESULTS)
    got = parser.parse_args(arguments)
    got.work.mkdir(parents=True, exist_ok=True)
    done = written(got.results) if got.missing else set()
    asked = Asked(got.fixtures, got.work, tuple(got.networks), tuple(got.recipes), tuple(got.timesteps), got.limit)
    if got.ablation:
        write(measure_ablation(asked, done), got.results)
        return
    for case in asked.cases():
        write(measure(case.without(done), got.work), got.results)
    for network, recipe, steps in asked.peer_cases():
        if importlib.util.find_spec("spikingjelly") is None:
            print(f"{network} {recipe}: left out, spikingjelly is not installed")
            continue
        write(measure_peer(asked, network, recipe, steps, done), got.results)


if __name__ == "__main__":
    main()
