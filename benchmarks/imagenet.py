"""The question of `latency.py` on ImageNet: torchvision's pretrained ResNet-18/34/50 (V1 weights), your own images.

    python benchmarks/imagenet.py IMAGENET --download
    python benchmarks/imagenet.py IMAGENET --checkpoint resnet50=FILE [--networks resnet50] [--recipes NAME ...]
                                           [--timesteps T ...] [--limit N] [--calibration-images N]

IMAGENET holds `train/` for calibration and `val/` for evaluation, each with one folder of images per class. Weights are
files of yours, or with `--download` fetched through torchvision into the work folder. Lines as those of `latency.py`
are appended to `benchmarks/results/imagenet.jsonl`.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from latency import RECIPES, Case, measure, write, written

RESULTS = Path(__file__).parent / "results" / "imagenet.jsonl"
NETWORKS = ("resnet18", "resnet34", "resnet50")
TIMESTEPS = (8, 16, 32)


def named_file(text: str) -> tuple[str, Path]:
    """NAME=FILE of the command line."""
    name, _, file = text.partition("=")
    if name not in NETWORKS or not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"got {text!r}; expected NAME=FILE with a name of {', '.join(NETWORKS)}")
    return name, Path(file)


def download(network: str, folder: Path) -> Path:
    """The V1 weights that torchvision names, in the folder; fetched where they are not there, and checked."""
    url = torchvision.models.get_model_weights(network)["IMAGENET1K_V1"].url
    file = folder / url.rpartition("/")[2]
    if not file.exists():
        digest = re.search(r"-([0-9a-f]+)\.", file.name)
        torch.hub.download_url_to_file(url, str(file), digest and digest[1])
    return file


def cases(asked: argparse.Namespace) -> list[Case]:
    """Every conversion that is asked for; SystemExit where a network has no weights."""
    given = dict(asked.checkpoint)
    found = []
    for network in asked.networks:
        if network not in given and not asked.download:
            raise SystemExit(f"{network}: got no weights; expected --checkpoint {network}=FILE, or --download.")
        checkpoint = given.get(network) or download(network, asked.work)
        for recipe in asked.recipes:
            options = f"{RECIPES[recipe]} --calibration-images {asked.calibration_images}"
            options += f" --input-size {asked.input_size}" if asked.input_size else ""
            data = (("imagenet", asked.imagenet, asked.limit),)
            found += [
                Case(network, recipe, steps, checkpoint, options, ("imagenet", asked.imagenet), data)
                for steps in asked.timesteps
            ]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("imagenet", type=Path)
    parser.add_argument("--networks", nargs="+", metavar="NAME", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--checkpoint", action="append", type=named_file, metavar="NAME=FILE", default=[])
    parser.add_argument("--download", action="store_true", help="fetch the weights that are not given")
    known = [name for name in RECIPES if name != "s-resnet"]
    parser.add_argument("--recipes", nargs="+", metavar="NAME", choices=list(RECIPES), default=known)
    parser.add_argument("--timesteps", nargs="+", type=int, metavar="T", default=TIMESTEPS)
    parser.add_argument("--limit", type=int, metavar="N", help="only N images of val/, a seeded choice; by default all")
    parser.add_argument("--calibration-images", type=int, metavar="N", default=1024)
    parser.add_argument("--input-size", type=int, metavar="N", help="pixels per side; by default 224")
    parser.add_argument("--missing", action="store_true", help="skip what has a line")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    asked.work.mkdir(parents=True, exist_ok=True)
    done = written(asked.results) if asked.missing else set()
    for case in cases(asked):
        write(measure(case.without(done), asked.work), asked.results)


if __name__ == "__main__":
    main()
