"""``sresnet demo``: train, convert, evaluate and draw, offline and in minutes."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import click

from . import shared
from .convert import convert
from .evaluate import evaluate
from .output import check_output, command, network_path
from .report import report
from .say import begin, say

SIZE = 32  # pixels; scikit-learn's digits are 8 x 8
DEFAULT = "calibrated"  # the recipe of convert with images
RECIPES = {DEFAULT: 16, "s-resnet": 256}  # that the picture compares, with the T of each
EPOCHS = 6
IMAGES = 200


@click.command()
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default="demo",
    help="Folder to write into.",
)
@shared.FORCE
def demo(folder: Path, force: bool) -> None:
    """Train a ResNet, convert it, and compare: offline, in minutes.

    A torchvision ResNet-18 learns handwritten digits and is converted twice: for few time steps, and as in the paper.
    Needs scikit-learn, whose images these are, and matplotlib; no network access.

    \b
    Examples:
      sresnet demo
      sresnet demo -o somewhere-else
    """
    begin("scikit-learn's digits")
    _check_packages()
    _make(folder)
    checkpoint, picture, page = folder / "digits.pth", folder / "accuracy.png", folder / "report"
    networks = [network_path(checkpoint, recipe, f"T{steps}") for recipe, steps in RECIPES.items()]
    figures = [network.with_suffix(".json") for network in networks]
    for path in (checkpoint, *networks, *figures, picture, page / "index.html", page / "report.json"):
        if os.path.exists(path):
            check_output(path, force=force)
    say(f"1. Train a torchvision ResNet-18 on 1,297 handwritten digits, {EPOCHS} epochs: {checkpoint}")
    _train(checkpoint)
    over = ["--force"] if force else []
    number = 2
    for (recipe, steps), network, file in zip(RECIPES.items(), networks, figures, strict=True):
        named: list[str | int] = [] if recipe == DEFAULT else ["--recipe", recipe, "--timesteps", steps]
        _run(number, convert, checkpoint, "--calibration", "digits", "--input-size", SIZE, *named, *over)
        _run(number + 1, evaluate, network, "--limit", IMAGES, "--json", file, *over)
        number += 2
    _run(number, report, networks[0], "--limit", IMAGES, "-o", page, *over)
    _draw(figures, picture)
    say(f"\nAccuracy over time steps: {picture}\n\nTry next:")
    say(f"  {command('inspect', networks[0])}")
    say(f"  {command('convert', checkpoint, '--input-size', SIZE)}   # without any data")
    say("  sresnet convert YOUR_RESNET.pth --calibration YOUR_IMAGES/train")


def _run(number: int, what: click.Command, *words: str | int | Path) -> None:
    """Show a command and run it."""
    say(f"\n{number}. $ {command(str(what.name), *words)}")
    what.main([str(word) for word in words], prog_name=f"sresnet {what.name}", standalone_mode=False)


def _check_packages() -> None:
    """Raise before the training if a package that is needed after it is missing."""
    import s_resnet

    for package, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(package) is None:
            remedy = "Run: pip install scikit-learn matplotlib"
            said = s_resnet.errors.message("demo", "", f"no {name}", "it to be installed", remedy)
            raise s_resnet.errors.BackendUnavailable(said)


def _make(folder: Path) -> None:
    """Create the folder to write into."""
    import s_resnet

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got, remedy = str(error.strerror), "Choose another one with -o"
        said = s_resnet.errors.message(str(folder), "cannot be created", got, "a writable place", remedy)
        raise s_resnet.SResNetError(said) from error


def _train(checkpoint: Path) -> None:
    """Train with SGD and a one-cycle schedule; the weights go to ``checkpoint``."""
    import torch
    import torchvision

    import s_resnet

    data = s_resnet.data.open_data("digits", "calibration")
    loader = s_resnet.data.loader_for(
        data, range(len(data)), s_resnet.data.preprocessing_for(SIZE), batch_size=64, workers=0
    )
    batches = list(loader)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    with s_resnet.runtime.Progress[None](total=steps, desc="train", unit="batch", shown=True) as bar:
        for _ in range(EPOCHS):
            for index in torch.randperm(len(batches)).tolist():
                images, labels = batches[index]
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                bar.show(loss=f"{loss.item():.3f}")
                bar.update()
    with s_resnet.files.replacing(checkpoint) as temporary, open(temporary, "wb") as file:
        torch.save(model.state_dict(), file)


def _draw(files: Sequence[Path], picture: Path) -> None:
    """Plot accuracy over the steps until the answer, with the ANN's as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    import s_resnet

    figures = [json.loads(file.read_text()) for file in files]
    plot, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(100 * figures[0]["ann"]["top1"], color="0.4", linestyle="--", label="its own ANN")
    ticks = set()
    for found, color, marker in zip(figures, ("#c8502d", "#1f6fb2"), "so", strict=True):
        steps = [row["end_to_end_steps"] for row in found["snn"]]
        label = f"recipe {found['recipe']}, T = {found['snn'][-1]['timesteps']}"
        axes.plot(steps, [100 * row["top1"] for row in found["snn"]], marker=marker, color=color, label=label)
        ticks |= set(steps) if len(steps) > 1 else set()
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(step) for step in sorted(ticks)])
    axes.set_ylim(0, 102)
    axes.set_xlabel("time steps until the answer")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(f"ResNet-18 on handwritten digits, {figures[0]['images']} images")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    with s_resnet.files.replacing(picture) as temporary:
        plot.savefig(temporary, dpi=150, format="png")
    pyplot.close(plot)
