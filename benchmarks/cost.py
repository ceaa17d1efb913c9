"""What do equal answers cost? Time and synaptic operations of our networks beside SpikingJelly's local balancing.

    python benchmarks/cost.py FIXTURES [--networks NAME ...] [--timesteps T ...] [--images N] [--limit N]

SpikingJelly's `LocalThresholdBalancingRecipe` (`balancing.py`) at T = 32 by its own run, one step after another, beside
recipe `calibrated` at each T, on the same checkpoint, calibration and test images. Time is CPU time of one thread for
one batch, both in turns in one process, the ratio that of each turn. Synaptic operations are counted by one rule for
both: each input of a convolution or classifier that is not zero at a step costs an addition for every output that it
reaches, a scaled shortcut one for each. The convolution of the image is left out of both. One line per network and T in
`benchmarks/results/cost.jsonl`; accuracy with the standard error of the paired difference to the ANN.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import balancing
import torch
import torch.nn.functional as F
from latency import NETWORKS, Asked, figures, versions
from torch import Tensor, nn

import s_resnet
from s_resnet.graph import StreamSettings, ops

RESULTS = Path(__file__).parent / "results" / "cost.jsonl"
PEER, STEPS, REPEATS, BATCH = "spikingjelly-ltb", 32, 5, 32


def additions(
    x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> float:
    """Outputs that the inputs which are not zero reach, each as often as it is reached: by convolving with ones."""
    there = (x != 0).to(torch.float32)
    if weight.ndim == 2:
        return float(there.sum()) * len(weight)
    ones = torch.ones_like(weight[: groups or 1], dtype=torch.float32)
    reached = F.conv2d(there, ones, None, stride, padding, dilation, groups)
    return float(reached.double().sum()) * (len(weight) // groups)


def of_module(layer: nn.Module, x: Tensor) -> float:
    if isinstance(layer, nn.Conv2d):
        return additions(x, layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert isinstance(layer, nn.Linear)
    return additions(x, layer.weight)


def of_op(op: ops.Op, x: Tensor) -> float:
    match op:
        case ops.Conv2d():
            return additions(x, op.weight, op.stride, op.padding, op.dilation, op.groups)
        case ops.Linear():
            return additions(x, op.weight)
        case ops.Scale():
            return float((x != 0).sum())
        case _:
            return 0.0


@dataclass
class Runner:
    """A network that is run: its answers to images, and what its synapses add up meanwhile."""

    name: str
    timesteps: int
    answer: Callable[[Tensor], Tensor]
    operations: Callable[[Tensor], float]
    seconds: list[float] = field(default_factory=list)

    def timed(self, images: Tensor) -> None:
        start = time.process_time()
        self.answer(images)
        self.seconds.append(time.process_time() - start)


def ours(asked: Asked, network: str, steps: int) -> Runner:
    """Recipe `calibrated` for this T."""
    calibration = asked.calibration(network)
    snn = s_resnet.convert(asked.model(network), calibration, s_resnet.RECIPES["calibrated"].at(steps))
    running = snn.running()

    def answer(images: Tensor) -> Tensor:
        return s_resnet.simulate(snn, images, steps).outputs[-1]

    def operations(images: Tensor) -> float:
        values: dict[str, Tensor] = {}
        settings = StreamSettings(observe=lambda name, value: values.__setitem__(name, value.clone()))
        for _ in snn.stream(images, steps, steps, settings=settings):
            pass
        read = [(node.op, node.inputs[0]) for node in running.nodes if node.inputs]
        return sum(additions(op, values[name]) for op, name in read if name in values)

    return Runner("calibrated", steps, answer, operations)


def theirs(asked: Asked, network: str) -> Runner:
    """SpikingJelly's, at STEPS steps."""
    from spikingjelly.activation_based import ann2snn
    from spikingjelly.activation_based.neuron import BaseNode

    calibration = asked.calibration(network)
    recipe = balancing.PEERS[PEER].recipe(ann2snn, calibration)
    net = ann2snn.Converter(recipe).convert(balancing.traceable(asked.model(network), calibration[0])).eval()
    delay = ann2snn.estimate_delay_start(net, calibration, "cpu", STEPS)
    neurons = [module for module in net.modules() if isinstance(module, BaseNode)]
    synapses = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]

    def answer(images: Tensor) -> Tensor:
        return next(logits for _, logits, _ in balancing.simulated(net, neurons, images, {STEPS: delay}))

    def operations(images: Tensor) -> float:
        found = [0.0]

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0] is not images:  # the image's own convolution
                found[0] += additions(module, inputs[0])

        hooks = [module.register_forward_pre_hook(count) for module in synapses]
        answer(images)
        for hook in hooks:
            hook.remove()
        return found[0]

    return Runner(PEER, STEPS, answer, operations)


def accuracy(runner: Runner, model: nn.Module, tests: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    right: list[Tensor] = []
    ann: list[Tensor] = []
    for images, labels in tests:
        right.append(runner.answer(images).argmax(1) == labels)
        ann.append(model(images).argmax(1) == labels)
    a, b = torch.cat(ann), torch.cat(right)
    return figures(float(a.double().mean()), float(b.double().mean()), float((a != b).double().mean()), len(a), True)


@torch.no_grad()
def measure(asked: Asked, network: str, steps: tuple[int, ...], images: int, output: Path) -> None:
    data, number = NETWORKS[network].peer_data
    tests = asked.images(network, data, "evaluation", min(number, images))
    model, batch = asked.model(network), tests[0][0][:BATCH]
    peer = theirs(asked, network)
    runners = [peer, *(ours(asked, network, t) for t in steps)]
    for runner in runners:
        runner.timed(batch)  # what is prepared once
        runner.seconds.clear()
    for _ in range(REPEATS):
        for runner in runners:
            runner.timed(batch)
    base = peer.operations(batch)
    for runner in runners:
        ratios = [a / b for a, b in zip(peer.seconds, runner.seconds, strict=True)]
        operations = base if runner is peer else runner.operations(batch)
        line = {
            "question": "cost",
            "network": network,
            "recipe": runner.name,
            "timesteps": runner.timesteps,
            "data": data,
            **accuracy(runner, model, tests),
            "batch": len(batch),
            "cpu_seconds_per_image": round(statistics.median(runner.seconds) / len(batch), 5),
            "times_faster": {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2)},
            "synaptic_operations_per_image": round(operations / len(batch)),
            "share_of_peer": round(operations / base, 4),
            "spikingjelly": importlib.metadata.version("spikingjelly"),
            **versions(),
        }
        print(json.dumps(line), flush=True)
        with output.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20"])
    parser.add_argument("--timesteps", nargs="+", type=int, default=(16, 32))
    parser.add_argument("--images", type=int, default=500, help="of the test set")
    parser.add_argument("--limit", type=int, help="at most so many images of each data set, for a trial")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    parser.add_argument("--output", type=Path, default=RESULTS)
    got = parser.parse_args()
    asked = Asked(got.fixtures, got.work, tuple(got.networks), (), tuple(got.timesteps), got.limit)
    for network in got.networks:
        measure(asked, network, tuple(got.timesteps), got.images, got.output)


if __name__ == "__main__":
    main()
