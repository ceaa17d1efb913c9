"""Does a deep network learn? MS-ResNet against the plain spiking ResNet of the same depth, data, seed and budget.

    python benchmarks/depth.py [--depth 110] [--epochs N] [--width N] [--timesteps T] [--work DIR]

A small real task: scikit-learn's handwritten digits (1,297 to train on, 500 test images). Before and after training
the norm of the loss's gradient at every block's output is taken on the same batch: where it dies on its way, the
blocks below cannot learn. Both networks have the same convolutions and neurons; what differs is where shortcuts go.

One JSON line per network is appended to `benchmarks/results/depth.jsonl`; the picture is `docs/pictures/depth.svg`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import s_resnet
from s_resnet.models import MSBlock, PlainBlock, build
from s_resnet.training import Execution

RESULTS = Path(__file__).parent / "results" / "depth.jsonl"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "depth.svg"
FAMILIES = {"ms_resnet": ("#0072B2", "MS-ResNet"), "spiking_resnet": ("#D55E00", "plain spiking ResNet")}
SIZE, BATCH, CLASSES = 16, 64, 10


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The Euclidean norm of the loss's gradient at each block's output, in order."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, MSBlock | PlainBlock)]
    nn.functional.cross_entropy(model.train()(images), labels).backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    return [0.0 if output.grad is None else float(output.grad.norm()) for output in outputs]


def measure(arch: str, settings: Any, work: Path) -> dict[str, Any]:
    """One network trained and its gradients before and after."""
    data, test = (s_resnet.data.open_data("digits", split) for split in ("calibration", "evaluation"))
    loader = s_resnet.data.ImageLoader(data, range(BATCH), s_resnet.data.preprocessing_for(SIZE), BATCH, workers=0)
    ((images, labels),) = list(loader)
    torch.manual_seed(settings.seed)
    fresh = build(arch, CLASSES, timesteps=settings.timesteps, input_shape=(3, SIZE, SIZE), width=settings.width)
    before = gradient_norms(fresh, images, labels)
    start = time.perf_counter()
    path = work / f"{arch}.pt"
    trained = s_resnet.train(arch, data, path, settings, test=test, execution=Execution(workers=0, progress=True))
    seconds = time.perf_counter() - start
    after = gradient_norms(trained.model, images, labels)
    history = [{key: entry[key] for key in ("epoch", "loss", "train_top1", "test_top1")} for entry in trained.history]
    return {"seconds": seconds, "history": history, "gradient_before": before, "gradient_after": after}


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss over epochs, and the gradient's norm over blocks before training."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "s-resnet"  # the same file again from the same results
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for line in lines:
        color, name = FAMILIES[line["family"]]
        epochs = [entry["epoch"] for entry in line["history"]]
        left.plot(epochs, [entry["loss"] for entry in line["history"]], "o-", color=color, markersize=3, label=name)
        left.set_xticks(epochs)
        for which, style in (("before", "-"), ("after", ":")):
            norms = [max(norm, 1e-30) for norm in line[f"gradient_{which}"]]
            right.plot(range(1, len(norms) + 1), norms, style, color=color, label=f"{name}, {which} training")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss")
    right.set_yscale("log")
    right.set_xlabel("block, from the input")
    right.set_ylabel("gradient norm at its output")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{lines[0]['depth']} layers, handwritten digits, T = {lines[0]['timesteps']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--work", type=Path, help="where checkpoints go; by default a folder that is thrown away")
    got = parser.parse_args(arguments)
    settings = s_resnet.Training(
        epochs=got.epochs,
        batch_size=BATCH,
        lr=got.lr,
        timesteps=got.timesteps,
        width=got.width,
        size=SIZE,
        augmentation=(),
    )
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            line = {"question": "depth", "family": family, "depth": got.depth, "timesteps": got.timesteps}
            line |= {"width": got.width, "epochs": got.epochs, "lr": got.lr, "device": "cpu"}
            line |= measure(f"{family}{got.depth}", settings, got.work or Path(folder))
            line |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
            print(family, [(entry["loss"], entry["test_top1"]) for entry in line["history"]], flush=True)
    draw(lines, PICTURE)


if __name__ == "__main__":
    main()
