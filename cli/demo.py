"""``sresnet demo``: train, convert, evaluate and draw, offline and in minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .convert import convert
from .evaluate import evaluate
from .say import say

SIZE = 32  # pixels; scikit-learn's digits are 8 x 8
TIMESTEPS = 256
EPOCHS = 6
IMAGES = 200


@click.command()
@click.option("-o", "--output", metavar="DIR", type=click.Path(), default="demo", show_default=True)
@click.pass_context
def demo(context: click.Context, output: str) -> None:
    """Train a torchvision ResNet-18 on handwritten digits, convert it, and evaluate it at T = 1 ... 256.

    Needs no network access: the images are scikit-learn's (pip install 's-resnet[demo]').
    """
    folder = Path(output)
    _make(folder)
    checkpoint, network, figures = (folder / f"digits.{kind}" for kind in ("pth", "snn", "json"))
    say(f"1. Train a torchvision ResNet-18 on 1,297 handwritten digits, {EPOCHS} epochs: {checkpoint}")
    _train(checkpoint)
    say(f"\n2. $ sresnet convert {checkpoint} --calibration digits --input-size {SIZE} --timesteps {TIMESTEPS}")
    context.invoke(convert, checkpoint=str(checkpoint), calibration="digits", input_size=SIZE, timesteps=TIMESTEPS)
    say(f"\n3. $ sresnet evaluate {network} --timesteps {TIMESTEPS} --limit {IMAGES} --json {figures}")
    context.invoke(
        evaluate, network=str(network), timesteps=TIMESTEPS, limit=IMAGES, batch_size=50, json_file=str(figures)
    )
    picture = folder / "accuracy.png"
    _draw(json.loads(figures.read_text()), picture)
    say(f"\nAccuracy over time steps: {picture}\n\nTry next:")
    say(f"  sresnet inspect {network}")
    say(f"  sresnet convert {checkpoint} --input-size {SIZE} -o {folder / 'no-data.snn'}   # without any data")
    say("  sresnet convert YOUR_RESNET.pth --calibration YOUR_IMAGES/train")


def _make(folder: Path) -> None:
    import s_resnet

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise s_resnet.SResNetError(
            f"{folder}: cannot be made, got {error.strerror}; expected a writable place. Choose another with -o."
        ) from error


def _train(checkpoint: Path) -> None:
    """Train with SGD and a one-cycle schedule; the weights go to ``checkpoint``."""
    import torch
    import torchvision

    import s_resnet

    data = s_resnet.open_data("digits", "calibration")
    loader = s_resnet.loader_for(data, range(len(data)), s_resnet.preprocessing_for(SIZE), batch_size=64, workers=0)
    batches = list(loader)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    with s_resnet.Progress[None](total=steps, desc="train", unit="batch", shown=True) as bar:
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
    with s_resnet.replacing(checkpoint) as temporary, open(temporary, "wb") as file:
        torch.save(model.state_dict(), file)


def _draw(figures: dict[str, Any], picture: Path) -> None:
    """Accuracy over T, with the ANN's as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    import s_resnet

    steps = [row["timesteps"] for row in figures["snn"]]
    plot, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(100 * figures["ann"]["top1"], color="0.4", linestyle="--", label="its own ANN")
    axes.plot(
        steps, [100 * row["top1"] for row in figures["snn"]], marker="o", color="#1f6fb2", label="spiking network"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_ylim(0, 102)
    axes.set_xlabel("time steps T")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(f"ResNet-18 on handwritten digits, recipe {figures['recipe']}, {figures['images']} images")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    with s_resnet.replacing(picture) as temporary:
        plot.savefig(temporary, dpi=150, format="png")
    pyplot.close(plot)
