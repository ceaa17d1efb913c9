"""How long does a training step take, and how much memory, against SpikingJelly? SEW-ResNet-18, T = 4, same weights.

    python benchmarks/training.py [--images N] [--size PIXELS] [--steps N] [--rounds N] [--threads N]

A step is forward, cross entropy, backward and SGD with momentum on images repeated over T. Each contender runs in a
process of its own, the two in turns; the figure is the median over rounds of a process's median step. SpikingJelly runs
as its examples do: multi-step mode, its torch backend (on a CPU it has no other), images repeated T times before the
network. Both networks start from the same weights, and their first losses are compared.

`saved_bytes` is what autograd holds between forward and backward, `peak_bytes` the growth of the process's memory over
all its steps. One JSON line per contender is appended to `benchmarks/results/training.jsonl`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import s_resnet
from s_resnet.models import Layout, sew_resnet

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
CONTENDERS = ("s-resnet", "spikingjelly")
TIMESTEPS, CLASSES = 4, 10


def ours() -> nn.Module:
    torch.manual_seed(0)
    return sew_resnet(Layout((2, 2, 2, 2), (64, 128, 256, 512), "imagenet"), CLASSES, TIMESTEPS)


class Peer(nn.Module):
    """SpikingJelly's SEW-ResNet-18 as its examples run it: images repeated over T, the mean over T."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, neuron, surrogate
        from spikingjelly.activation_based.model.sew_resnet import sew_resnet18

        surrogates = surrogate.ATan()  # of steepness 2, as in ours
        self.functional = functional
        self.network = sew_resnet18(
            cnf="ADD",
            spiking_neuron=neuron.IFNode,
            num_classes=CLASSES,
            surrogate_function=surrogates,
            detach_reset=True,
        )
        functional.set_step_mode(self.network, "m")

    def forward(self, images: Tensor) -> Tensor:
        self.functional.reset_net(self.network)
        answers: Tensor = self.network(images.expand(TIMESTEPS, *images.shape))
        return answers.mean(0)


def same_weights(model: nn.Module, source: nn.Module) -> None:
    """Copy parameters in their order, which is that of the layers in both; SystemExit where shapes differ."""
    to, given = list(model.parameters()), list(source.parameters())
    if [p.shape for p in to] != [p.shape for p in given]:
        raise SystemExit("the two networks have other parameters, or in another order: nothing to compare")
    with torch.no_grad():
        for mine, theirs in zip(to, given, strict=True):
            mine.copy_(theirs)


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """What autograd holds after a forward pass, each storage once, without parameters and images."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), images)}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images).sum()
    return sum(held.values())


def run(contender: str, images: int, size: int, steps: int, threads: int) -> dict[str, Any]:
    """One process's figures."""
    torch.set_num_threads(threads)
    model = ours() if contender == "s-resnet" else Peer()
    if contender == "spikingjelly":
        same_weights(model, ours())
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(images, 3, size, size, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    saved = saved_bytes(model, batch)
    seconds, losses = [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds_per_step": statistics.median(seconds[1:]),  # the first one warms
        "saved_bytes": saved,
        "peak_bytes": 1024 * peak,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)  # one contender, in this process
    parser.add_argument("--results", type=Path, default=RESULTS)
    got = parser.parse_args(arguments)
    if got.only:
        print(json.dumps(run(got.only, got.images, got.size, got.steps, got.threads)))
        return
    settings = {"images": got.images, "size": got.size, "steps": got.steps, "threads": got.threads}
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(got.rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--only", name, *options]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[name].append(json.loads(done.stdout.splitlines()[-1]))
    versions = {"s_resnet": s_resnet.__version__, "torch": torch.__version__}
    versions |= {"spikingjelly": importlib.metadata.version("spikingjelly"), "machine": platform.machine()}
    for name in CONTENDERS:
        line: dict[str, Any] = {"question": "training-step", "network": "sew_resnet18", "contender": name}
        line |= {"timesteps": TIMESTEPS, "device": "cpu", "rounds": got.rounds, **settings}
        line |= {key: statistics.median(each[key] for each in figures[name]) for key in figures[name][0]}
        with got.results.open("a") as file:
            file.write(json.dumps({**line, **versions}) + "\n")
        print(line)
    mine, peer = ([each["seconds_per_step"] for each in figures[name]] for name in CONTENDERS)
    print(f"times faster, per round: {', '.join(f'{b / a:.2f}' for a, b in zip(mine, peer, strict=True))}")


if __name__ == "__main__":
    main()
