"""The networks that a visit to a GPU checks, with what the CPU says of them: every recipe, every kind of weights.

    python benchmarks/gpu/networks.py FOLDER [--fixtures DIR] [--quick]

Of a real ResNet-20 where FIXTURES (as in `conversion.py`) are given: calibrated on training images, simulated on test
images. Else of a seeded one, whose weights and images are random: good for comparing devices, not for accuracy.
FOLDER gets a file for each network and `reference.pt` with images, labels and the spikes and answers of the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import s_resnet

LONGEST = 64  # steps
# Beside the recipes: name, recipe, weights.
WEIGHTS = {
    "dyadic": ("s-resnet", "dyadic"),
    "int8": ("s-resnet", "int8"),
    "calibrated-lagged-int8": ("calibrated-lagged", "int8"),
}
NAMES = (*s_resnet.RECIPES, *WEIGHTS)
CHECKPOINT = "resnet20-12fca82f.th"


@dataclass(frozen=True)
class Networks:
    """A folder of them, on a device."""

    folder: Path
    device: torch.device

    @cached_property
    def reference(self) -> dict[str, Any]:
        """What the CPU says: images, labels, and of each network timesteps, outputs ``[B, N]`` and spikes ``[B]``."""
        made: dict[str, Any] = torch.load(self.folder / "reference.pt", weights_only=True)
        return made

    @cached_property
    def images(self) -> Tensor:
        return self.reference["images"].to(self.device)

    @cached_property
    def labels(self) -> Tensor:
        return self.reference["labels"].to(self.device)

    def load(self, name: str, device: torch.device | str | None = None) -> s_resnet.Graph:
        return s_resnet.load(self.folder / f"{name}.snn").to(self.device if device is None else device)


@dataclass(frozen=True)
class Source:
    """A network that is converted, images to calibrate it on, and images to simulate it on."""

    model: nn.Module
    calibration: list[Tensor]
    images: Tensor
    labels: Tensor


def real(fixtures: Path, count: int = 64) -> Source:
    """The checkpoint of FIXTURES."""
    checkpoint = s_resnet.load_checkpoint(fixtures / "checkpoints" / CHECKPOINT)
    preprocessing = s_resnet.data.preprocessing_for(32, s_resnet.data.IMAGENET_MEAN, s_resnet.data.IMAGENET_STD)

    def read(split: str, use: str, number: int) -> list[tuple[Tensor, Tensor]]:
        data = s_resnet.data.open_data(str(fixtures / "cifar10" / split), use)
        return list(
            s_resnet.data.ImageLoader(data, s_resnet.data.choose(data, number), preprocessing, count, workers=0)
        )

    ((images, labels),) = read("test", "evaluation", count)
    return Source(checkpoint.model, [images for images, _ in read("train", "calibration", 128)], images, labels)


def made_up(depth: int = 20, width: int = 16, size: int = 32, count: int = 64) -> Source:
    """Seeded weights and images; BatchNorm's statistics are those of the images, so that activations stay sound."""
    torch.manual_seed(0)
    model = s_resnet.models.CifarResNet(depth, width=width)
    batches = list(torch.randn(5, count, 3, size, size).unbind())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        for batch in batches[1:]:
            model.train()(batch)
        labels = model.eval()(batches[0]).argmax(1)
    return Source(model, batches[1:], batches[0], labels)


def make(folder: Path, source: Source, longest: int = LONGEST) -> None:
    """Convert and simulate all of NAMES."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in NAMES:
        recipe, weights = WEIGHTS.get(name, (name, "float32"))
        steps = min(longest, s_resnet.RECIPES[recipe].timesteps)
        asked = s_resnet.RECIPES[recipe].at(steps).with_weights(weights)
        snn = s_resnet.convert(source.model, source.calibration, asked)
        s_resnet.save(snn, folder / f"{name}.snn")
        got = s_resnet.simulate(snn, source.images, steps)
        spikes = {layer: counts[-1].clone() for layer, counts in got.spikes.items()}
        found[name] = {"timesteps": steps, "outputs": got.outputs[-1].clone(), "spikes": spikes}
        right = (found[name]["outputs"].argmax(1) == source.labels).double().mean()
        print(f"{name}: T = {steps}, {sum(float(s.sum()) for s in spikes.values()):.0f} spikes, top-1 {right:.3f}")
    torch.save({"images": source.images, "labels": source.labels, "networks": found}, folder / "reference.pt")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fixtures", type=Path, help="a real network; without it weights and images are random")
    parser.add_argument("--quick", action="store_true", help="a small network and few steps, for a dry run")
    got = parser.parse_args(arguments)
    if got.quick:
        make(got.folder, made_up(8, 8, 16, 8), 8)
    else:
        make(got.folder, made_up() if got.fixtures is None else real(got.fixtures))


if __name__ == "__main__":
    main()
