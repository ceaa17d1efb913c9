"""Does what is built on the engine say on the device what it says on the CPU? Features, counts, verify, evaluate."""

from __future__ import annotations

from functools import partial
from typing import Any

import inside
import torch
from check_engine import APART, WHOLE, apart
from checking import check, expect
from networks import NAMES, Networks
from torch import Tensor

import s_resnet


def on_both(given: Networks, name: str, ask: Any) -> tuple[Any, Any]:
    """The answer of the device and of the CPU."""
    return ask(given.load(name), given.images[:8]), ask(given.load(name, "cpu"), given.images[:8].cpu())


@check("features equal the CPU's")
def _features(given: Networks) -> object:
    told = {}
    for name in NAMES:
        steps = given.reference["networks"][name]["timesteps"]
        nodes = [node.name for node in given.load(name, "cpu").neurons][:3]
        got, want = on_both(given, name, lambda snn, x, t=steps, n=nodes: s_resnet.simulation.features(snn, x, t, n))
        off = {node: float((got[node].cpu() - want[node]).norm() / want[node].norm()) for node in nodes}
        told[name] = max(off.values())
    wrong = {name: off for name, off in told.items() if off > (1e-5 if (name, "exact") in WHOLE else 0.05)}
    expect(not wrong, wrong)
    return told


@check("recorded spikes equal the CPU's")
def _record(given: Networks) -> None:
    for name in NAMES:
        layers = [node.name for node in given.load(name, "cpu").neurons][:2]
        steps = given.reference["networks"][name]["timesteps"]
        ask = partial(_recorded, layers=layers, steps=steps)
        got, want = on_both(given, name, ask)
        for a, b in zip(got, want, strict=True):
            same = a.neurons == b.neurons and torch.equal(a.spikes.cpu(), b.spikes)
            expect(same or (name, "exact") not in WHOLE, f"{name}, {a.layer}")
            expect(a.spikes.shape == b.spikes.shape, f"{name}, {a.layer}: {a.spikes.shape}")


def _recorded(snn: s_resnet.Graph, x: Tensor, layers: list[str], steps: int) -> tuple[s_resnet.simulation.Trace, ...]:
    return s_resnet.simulation.record(snn, x[:1], steps, layers, 4)


@check("counted operations equal the CPU's")
def _operations(given: Networks) -> None:
    for name in NAMES:
        steps = given.reference["networks"][name]["timesteps"]
        got, want = on_both(given, name, lambda snn, x, t=steps: s_resnet.analysis.count_operations(snn, [x], t))
        a, b = got.spikes_per_synapse, want.spikes_per_synapse
        expect(abs(a / b - 1) <= (1e-9 if (name, "exact") in WHOLE else APART["exact"]), f"{name}: {a}, on the CPU {b}")


@check("verify says the same as on the CPU")
def _verify(given: Networks) -> None:
    for name in NAMES:
        if given.load(name, "cpu").is_integer:  # verify refuses those
            continue
        steps = given.reference["networks"][name]["timesteps"]
        got, want = on_both(given, name, lambda snn, x, t=steps: s_resnet.verify(snn, [x], t))
        expect(len(got.layers) == len(want.layers), f"{name}: {len(got.layers)} layers, on the CPU {len(want.layers)}")
        expect(got.verdict == want.verdict or (name, "exact") not in WHOLE, f"{name}: {got.verdict!r}")


@check("evaluate reports what the CPU does")
def _evaluate(given: Networks) -> object:
    batches = [(given.images.cpu(), given.labels.cpu())] * 2
    told = {}
    for precision in inside.PRECISIONS:
        snn = given.load("int8")
        got = s_resnet.evaluate(
            snn, batches, 24, s_resnet.analysis.EvaluationSettings(precision=precision), device=given.device.type
        )
        want = s_resnet.evaluate(
            snn, batches, 24, s_resnet.analysis.EvaluationSettings(precision=precision), device="cpu"
        )
        same = [(a.top1, a.agreement, a.spikes_per_neuron) == (b.top1, b.agreement, b.spikes_per_neuron)
                for a, b in zip(got.snn, want.snn, strict=True)]  # fmt: skip
        expect(all(same) and got.kernel == inside.kernel(given.device), f"{precision}: {got.table()}")
        told[precision] = (got.kernel, round(got.images_per_second, 1))
    return told


@check("images stop when they are confident, as on the CPU")
def _anytime(given: Networks) -> object:
    answers = s_resnet.simulate(given.load("int8", "cpu"), given.images[:8].cpu(), 48).outputs[-1]
    enough = 0.8 * float(answers.softmax(1).amax(1).median())  # some images get there, and some do not
    got, want = on_both(given, "int8", lambda snn, x: s_resnet.simulation.simulate_with_early_exit(snn, x, 48, enough))
    expect(torch.equal(got.steps.cpu(), want.steps), f"steps {got.steps.tolist()}, on the CPU {want.steps.tolist()}")
    expect(apart(got.spikes, {name: spikes.double() for name, spikes in want.spikes.items()}) == 0, "spikes differ")
    return got.steps.tolist()
