"""Does the engine on the device answer as on the CPU? Every recipe and kind of weights, and all that is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import inside
import torch
from checking import check, expect
from networks import NAMES, Networks
from torch import Tensor

import s_resnet

# Spikes that may differ, of all: sums are rounded in another order, and one spike moved moves others behind it.
APART = {"exact": 0.002, "fast": 0.01}
ALIKE = 0.95  # images of the same answer, at least
# Their sums are whole numbers, or dyadic ones below 2^24, which are exact in any order.
WHOLE = {("int8", "exact"), ("int8", "fast"), ("calibrated-lagged-int8", "exact"), ("calibrated-lagged-int8", "fast")}
WHOLE |= {("dyadic", "exact")}
TRAINED = ("ms_resnet20", "ds_resnet20", "sew_resnet20", "spiking_resnet20", "danet20")


def apart(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    """Spikes that differ, counted by layer and image, of all."""
    total = sum(float(spikes.double().sum()) for spikes in want.values())
    return sum(float((got[name].cpu().double() - want[name]).abs().sum()) for name in want) / max(1.0, total)


def last(spikes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The counts after the last step."""
    return {name: counts[-1].cpu().double() for name, counts in spikes.items()}


def against_the_cpu(given: Networks, name: str, precision: str) -> dict[str, float]:
    want = given.reference["networks"][name]
    got = s_resnet.simulate(
        given.load(name), given.images, want["timesteps"], s_resnet.simulation.SimulationSettings(precision=precision)
    )
    answers, wanted = got.outputs[-1].cpu(), want["outputs"]
    told = {
        "spikes_apart": apart(last(got.spikes), want["spikes"]),
        "answers_apart": float((answers - wanted).norm() / wanted.norm()),
        "top1_alike": float((answers.argmax(1) == wanted.argmax(1)).double().mean()),
    }
    if (name, precision) in WHOLE:
        expect(told["spikes_apart"] == 0 and told["answers_apart"] < 1e-5, told)
    else:
        alike = precision == "fast" or told["top1_alike"] >= ALIKE
        expect(told["spikes_apart"] <= APART[precision] and alike, told)
    return told


for each in NAMES:
    for how in inside.PRECISIONS:
        whole = ", bit for bit" * ((each, how) in WHOLE)
        check(f"{each} {how} as on the CPU{whole}")(partial(against_the_cpu, name=each, precision=how))


@check("results do not depend on the chunk")
def _chunks(given: Networks) -> object:
    for name in ("int8", "dyadic"):
        snn, runs = given.load(name), []
        for chunk in (None, 1, 3, 8):
            got = s_resnet.simulate(snn, given.images[:16], 24, s_resnet.simulation.SimulationSettings(chunk=chunk))
            runs.append((got.outputs[-1].cpu(), last(got.spikes)))
        for outputs, spikes in runs[1:]:
            expect(torch.equal(outputs, runs[0][0]) and apart(spikes, runs[0][1]) == 0, name)
    return None


@check("a replayed graph equals the eager run, and results of earlier runs stay", gpu=True)
def _replay(given: Networks) -> object:
    told = {}
    names = [("dyadic", "exact"), ("s-resnet", "fast"), ("int8", "exact"), ("s-resnet-released", "exact")]
    for name, precision in [*names, ("calibrated-lagged", "fast"), ("phased", "exact")]:
        snn, batches = given.load(name), [given.images, given.images.flip(0)]
        chunk, eager = None if snn.windowed else 4, []
        with torch.no_grad():
            for x in batches:
                chunks = inside.without_graphs(snn, x, 24, chunk, precision)
                spikes = {k: sum(part.spikes[k].double().sum(0) for part in chunks).cpu() for k in chunks[0].spikes}
                eager.append((chunks[-1].outputs[-1], spikes, chunks[-1].state.memory))
        with inside.counted_graphs() as counts:
            runs = [
                s_resnet.simulate(
                    snn, batches[i % 2], 24, s_resnet.simulation.SimulationSettings(chunk=chunk, precision=precision)
                )
                for i in range(4)
            ]
        told[f"{name} {precision}"] = dict(counts)
        expect(counts["replayed"] > 0, f"{name}: no graph was replayed")
        for index, (got, (outputs, spikes, memory)) in enumerate(zip(runs, 2 * eager, strict=True)):
            same = torch.equal(got.outputs[-1], outputs) and apart(last(got.spikes), spikes) == 0
            same = same and all(all(map(torch.equal, got.state.memory[layer], memory[layer])) for layer in memory)
            off = float((got.outputs[-1] - outputs).abs().max())
            expect(same, f"{name} {precision}: run {index} differs, answers by {off}")
    return told


@check("a simulation goes on from a state")
def _goes_on(given: Networks) -> None:
    snn, x = given.load("dyadic"), given.images[:8]
    whole = s_resnet.simulate(snn, x, 24)
    part = s_resnet.simulate(snn, x, 16)
    rest = s_resnet.simulate(snn, x, 8, state=part.state)
    added = {name: last(part.spikes)[name] + counts for name, counts in last(rest.spikes).items()}
    expect(torch.equal(whole.outputs, rest.outputs) and apart(added, last(whole.spikes)) == 0, "differs")


@check("two runs give the same")
def _twice(given: Networks) -> object:
    snn = given.load("s-resnet")
    same = {}
    for precision in inside.PRECISIONS:
        runs = [
            s_resnet.simulate(
                snn, given.images, 32, s_resnet.simulation.SimulationSettings(precision=precision)
            ).outputs
            for _ in range(2)
        ]
        same[precision] = torch.equal(*runs)
    return same  # told, not asked: cuDNN may choose another algorithm


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


@check("events and Poisson spikes go in")
def _events(given: Networks) -> object:
    snn, x = given.load("s-resnet"), given.images[:8]
    direct = s_resnet.simulate(snn, x, 12, s_resnet.simulation.SimulationSettings(chunk=4))
    events = s_resnet.simulate(
        snn, x.expand(12, *x.shape).contiguous(), 12, s_resnet.simulation.SimulationSettings(chunk=4)
    )
    off = apart(last(events.spikes), last(direct.spikes))
    expect(off <= APART["exact"], f"frames that are all the image: {off} of the spikes apart")
    drawn = [
        s_resnet.simulate(snn, x, 12, s_resnet.simulation.SimulationSettings(chunk=chunk, coding="poisson"))
        for chunk in (4, 12)
    ]
    off = apart(last(drawn[0].spikes), last(drawn[1].spikes))
    expect(off <= APART["exact"], f"Poisson spikes in another chunk: {off} of the spikes apart")
    return off


@check("trained networks fire as on the CPU")
def _trained(given: Networks) -> object:
    told = {}
    x = given.images[:16]
    for arch in TRAINED:
        torch.manual_seed(0)
        model = s_resnet.models.build(arch, 10, timesteps=4, input_shape=tuple(x.shape[-3:]), width=8).eval()
        snn = s_resnet.convert(model, tuple(x.shape[-3:]))
        want = last(s_resnet.simulate(snn, x.cpu(), 4).spikes)
        for precision in inside.PRECISIONS:
            got = s_resnet.simulate(
                snn.to(given.device), x, 4, s_resnet.simulation.SimulationSettings(precision=precision)
            )
            told[f"{arch} {precision}"] = apart(last(got.spikes), want)
    limits = {"exact": 0.001, "fast": 0.05}
    wrong = {name: off for name, off in told.items() if off > limits[name.split()[1]]}
    expect(not wrong, wrong)
    return told
