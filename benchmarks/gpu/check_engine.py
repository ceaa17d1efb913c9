"""Does the engine on the device answer as on the CPU? Every recipe and kind of weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

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
