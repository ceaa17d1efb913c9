"""How good are the published methods on the same images, and do ours agree with SpikingJelly's where it has them?

    python benchmarks/published.py FIXTURES [--methods NAME ...] [--timesteps T ...] [--peers] [--images N]

FIXTURES is the folder of `conversion.py`: a CIFAR ResNet-20, 512 of its training images for calibration, and the 500
lossless test images. Each method is converted for each T alone. One JSON line per figure goes to stdout: `drop` and its
95 % interval in points against the own ANN, paired image by image.

`--peers` converts with SpikingJelly 2.0.0 too (`balancing.py`), and adds `difference`, ours minus SpikingJelly's in
points with its 95 % interval, and `same`, the share of equal answers. SpikingJelly averages the largest activation over
batches: for the two normalizations it gets all calibration images as one batch. For LTB it gets them in the same
batches as often as ours shows them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import balancing
import latency
import torch
from conversion import LOSSLESS
from torch import Tensor

import s_resnet

NETWORK, CALIBRATION, BATCH = "resnet20", 512, 32
PEERS = {"max-norm": "spikingjelly-max", "robust-norm": "spikingjelly-robust", "ltb": "spikingjelly-ltb"}
Pairs = Sequence[tuple[Tensor, Tensor]]


def compared(first: Tensor, second: Tensor) -> dict[str, Any]:
    """The first minus the second in points, each the images on which an answer is right, with its 95 % interval."""
    counts = [int((a & b).sum()) for a, b in ((first, second), (first, ~second), (~first, second), (~first, ~second))]
    low, high = s_resnet.data.paired_difference(*counts)
    return {"points": round(100 * (counts[1] - counts[2]) / len(first), 2), "interval": [100 * low, 100 * high]}


@torch.no_grad()
def peer_answers(name: str, asked: latency.Asked, batches: Sequence[Tensor], tests: Pairs, timesteps: int) -> Tensor:
    """The classes that SpikingJelly's conversion gives at T."""
    from spikingjelly.activation_based import ann2snn
    from spikingjelly.activation_based.neuron import BaseNode

    peer, model = balancing.PEERS[name], asked.model(NETWORK)
    shown = batches if peer.delayed else [torch.cat(list(batches))]
    net = ann2snn.Converter(peer.recipe(ann2snn, shown)).convert(balancing.traceable(model, batches[0])).eval()
    delay = ann2snn.estimate_delay_start(net, batches, "cpu", timesteps, len(batches)) if peer.delayed else 0
    neurons = [module for module in net.modules() if isinstance(module, BaseNode)]
    found = [balancing.simulated(net, neurons, images, {timesteps: delay}) for images, _ in tests]
    return torch.cat([logits.argmax(1) for one in found for _, logits, _ in one])


def measure(
    asked: latency.Asked, methods: Sequence[str], timesteps: Sequence[int], peers: bool
) -> Iterator[dict[str, Any]]:
    """A line for each method and T."""
    split = latency.NETWORKS[NETWORK].calibration
    batches = [images for images, _ in asked.images(NETWORK, split, "calibration", CALIBRATION)]
    tests = asked.images(NETWORK, LOSSLESS, "evaluation", asked.limited(500))
    labels, model = torch.cat([labels for _, labels in tests]), asked.model(NETWORK)
    with torch.no_grad():
        ann = torch.cat([model(images).argmax(1) for images, _ in tests]) == labels
    for name in methods:
        for t in timesteps:
            recipe = s_resnet.conversion.PUBLISHED[name].recipe.at(t)
            if peers and name == "ltb":  # as often as balancing.py shows them to SpikingJelly
                recipe = recipe.set("balance_thresholds", updates=balancing.PASSES * len(batches), batch=BATCH)
            start = time.perf_counter()
            snn = s_resnet.convert(model, batches, recipe)
            seconds = time.perf_counter() - start
            answers = torch.cat([snn(images, t).argmax(1) for images, _ in tests])
            line = {"method": name, "timesteps": t, "end_to_end_steps": snn.end_to_end_steps(t), "images": len(labels)}
            line |= {"top1": 100 * float((answers == labels).double().mean()), "convert_seconds": round(seconds, 1)}
            line["drop"] = compared(ann, answers == labels)
            if peers:
                theirs = peer_answers(PEERS[name], asked, batches, tests, t)
                line["difference"] = compared(answers == labels, theirs == labels)
                line["same"] = float((answers == theirs).double().mean())
            yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=list(s_resnet.conversion.PUBLISHED))
    parser.add_argument("--timesteps", nargs="+", type=int, metavar="T", default=[8, 16, 32])
    parser.add_argument("--images", type=int, metavar="N", help="at most so many test images")
    parser.add_argument("--peers", action="store_true", help="beside SpikingJelly; by default the methods that it has")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sresnet-benchmark")
    got = parser.parse_args()
    methods = got.methods or list(PEERS if got.peers else s_resnet.conversion.PUBLISHED)
    if got.peers and (missing := [name for name in methods if name not in PEERS]):
        raise SystemExit(f"SpikingJelly has no {missing[0]}. Choose among {', '.join(PEERS)}.")
    asked = latency.Asked(got.fixtures, got.work, (NETWORK,), (), (), got.images)
    for line in measure(asked, methods, got.timesteps, got.peers):
        print(json.dumps({**line, **latency.versions()}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
