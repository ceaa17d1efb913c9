"""SpikingJelly 2.0.0's conversions of a network for `latency.py`: its own recipes, its own readout.

* `spikingjelly-max`: `RateCodingRecipe` as it comes, layer-wise thresholds at the largest activation.
* `spikingjelly-robust`: the same at the 99.9th percentile. Its max-pool reads scaled spikes.
* `spikingjelly-channels`: the setting of its ImageNet example: the 99.9th percentile per channel, max-pool before the
  neuron, half a threshold to start with, delayed readout.
* `spikingjelly-ltb`: `LocalThresholdBalancingRecipe`, delayed readout. With each batch a threshold grows by twice the
  mean of what exceeds it, so that many are needed: its example shows 391. The calibration images are shown PASSES
  times, which with 1,024 images in batches of 32 is 384 batches.

The readout is the sum of the outputs from the step on that its `estimate_delay_start` gives for this T.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import peers
import torch
from torch import Tensor, nn

import s_resnet

PASSES = 12
Batches = Sequence[Tensor]


@dataclass(frozen=True)
class Peer:
    """A recipe of SpikingJelly's, whether its readout is delayed, and the T that are asked of it."""

    recipe: Callable[[Any, Batches], Any]  # from spikingjelly.activation_based.ann2snn and calibration batches
    delayed: bool
    timesteps: tuple[int, ...]


PEERS = {
    "spikingjelly-max": Peer(lambda a, batches: a.RateCodingRecipe(batches), False, (16, 32, 64, 128, 256)),
    "spikingjelly-robust": Peer(
        lambda a, batches: a.RateCodingRecipe(batches, mode="99.9%"), False, (16, 32, 64, 128, 256)
    ),
    "spikingjelly-channels": Peer(
        lambda a, batches: a.RateCodingRecipe(
            batches, mode="99.9%", channel_wise=True, pre_spike_maxpool=True, half_threshold=True
        ),
        True,
        (8, 16, 32, 64),
    ),
    "spikingjelly-ltb": Peer(
        lambda a, batches: a.LocalThresholdBalancingRecipe([*batches] * PASSES), True, (8, 16, 32, 64)
    ),
}


def traceable(model: nn.Module, images: Tensor) -> nn.Module:
    """The model, or where it calls F.relu, which SpikingJelly passes over, a copy with nn.ReLU."""
    if any(isinstance(module, nn.ReLU) for module in model.modules()):
        return copy.deepcopy(model)
    return peers.Copy(s_resnet.trace(model, images[:2])).eval()


@torch.no_grad()
def measure(
    name: str, model: nn.Module, calibration: Batches, tests: Sequence[tuple[Tensor, Tensor]], steps: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Convert once, simulate once, and give what is right at each of these T, beside the model itself."""
    from spikingjelly.activation_based import ann2snn
    from spikingjelly.activation_based.neuron import BaseNode

    peer, start = PEERS[name], time.perf_counter()
    net = ann2snn.Converter(peer.recipe(ann2snn, calibration)).convert(traceable(model, calibration[0])).eval()
    convert_seconds = time.perf_counter() - start
    delays = {t: ann2snn.estimate_delay_start(net, calibration, "cpu", t) if peer.delayed else 0 for t in steps}
    start = time.perf_counter()
    sums = {t: torch.zeros(4, dtype=torch.int64) for t in steps}  # right: the ANN, at T; differ in that; answers agree
    spikes = dict.fromkeys(steps, 0.0)
    neurons = [module for module in net.modules() if isinstance(module, BaseNode)]
    for images, labels in tests:
        answer = model(images).argmax(1)
        for t, logits, rate in simulated(net, neurons, images, delays):
            choice = logits.argmax(1)
            right, ann = choice == labels, answer == labels
            sums[t] += torch.stack([part.sum() for part in (ann, right, ann != right, choice == answer)])
            spikes[t] += rate * t * len(images)
    images_in_all = sum(len(labels) for _, labels in tests)
    for t in steps:
        ann, top1, differing, agreement = (sums[t].double() / images_in_all).tolist()
        yield {
            "timesteps": t,
            "readout_from": delays[t],
            "ann": ann,
            "top1": top1,
            "differing": differing,
            "agreement": agreement,
            "spikes_per_neuron": spikes[t] / images_in_all,
            "images": images_in_all,
            "convert_seconds": round(convert_seconds, 1),
            "evaluate_seconds": round(time.perf_counter() - start, 1),
            "simulated_steps": max(steps),
        }


def simulated(
    net: nn.Module, neurons: Sequence[nn.Module], images: Tensor, delays: dict[int, int]
) -> Iterator[tuple[int, Tensor, float]]:
    """One simulation up to the largest T: each T with its readout and the spikes per neuron and step until then."""
    from spikingjelly.activation_based import functional

    functional.reset_net(net)
    upto = [torch.zeros(())]
    with peers.counting(neurons) as counts:
        for t in range(1, max(delays) + 1):
            upto.append(upto[-1] + net(images))
            if t in delays:
                yield t, upto[t] - upto[delays[t]], counts["spikes"] / counts["outputs"]
