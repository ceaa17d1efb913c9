"""Does it keep to streams, devices and memory? What only a GPU has."""

from __future__ import annotations

import inside
import torch
from checking import check, expect
from networks import Networks

import s_resnet


@check("memory does not grow from run to run", gpu=True)
def _memory(given: Networks) -> object:
    snn, seen = given.load("s-resnet"), []
    for _ in range(8):
        s_resnet.simulate(snn, given.images, 24, s_resnet.simulation.SimulationSettings(chunk=4, precision="fast"))
        seen.append((torch.cuda.memory_allocated() >> 20, torch.cuda.memory_reserved() >> 20))
    told = {"MiB allocated, reserved": seen}
    expect(seen[-1][0] <= seen[2][0] + 8 and seen[-1][1] <= seen[2][1] + 64, told)
    return told


@check("memory does not grow with T", gpu=True)
def _long(given: Networks) -> object:
    peaks = []
    for steps in (16, 256):
        snn = given.load("s-resnet")
        for _ in range(3):  # the first prepares, the second may record a graph
            torch.cuda.reset_peak_memory_stats()
            s_resnet.simulate(snn, given.images, steps, s_resnet.simulation.SimulationSettings(chunk=8))
        peaks.append(torch.cuda.max_memory_allocated() >> 20)
        del snn
    expect(peaks[1] <= 1.2 * peaks[0] + 8, peaks)
    return {"MiB at T = 16, 256": peaks}


@check("on a side stream the results are the same", gpu=True)
def _side(given: Networks) -> None:
    snn, side = given.load("dyadic"), torch.cuda.Stream()
    want = s_resnet.simulate(snn, given.images, 24, s_resnet.simulation.SimulationSettings(chunk=4)).outputs
    late = torch.zeros_like(given.images)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # work on another stream would read zeros
        late.copy_(given.images)
        got = s_resnet.simulate(snn, late, 24, s_resnet.simulation.SimulationSettings(chunk=4)).outputs
    torch.cuda.current_stream().wait_stream(side)
    expect(torch.equal(got, want), "differs")


@check("images that are copied ahead arrive whole", gpu=True)
def _ahead(given: Networks) -> None:
    batches = [(torch.full((64, 3, 64, 64), float(i)), torch.full((64,), i)) for i in range(12)]
    for i, (images, labels) in enumerate(inside.prefetch(batches, given.device)):
        torch.cuda._sleep(20_000_000)
        expect(bool((images == i).all()) and bool((labels == i).all()), f"batch {i} is not its own")
        del images, labels


@check("a network on the second device runs there", gpu=True)
def _second(given: Networks) -> object:
    if torch.cuda.device_count() < 2:
        return "not checked: one device"
    snn, x = given.load("dyadic", "cuda:1"), given.images.to("cuda:1")
    got = s_resnet.simulate(snn, x, 30, s_resnet.simulation.SimulationSettings(chunk=4)).outputs
    want = s_resnet.simulate(
        given.load("dyadic"), given.images, 30, s_resnet.simulation.SimulationSettings(chunk=4)
    ).outputs
    expect(got.device.index == 1 and torch.equal(got.cpu(), want.cpu()), "differs")
    return None


@check("the kernel is compiled, and the CPU's reference does not stand in for it", gpu=True)
def _kernel(given: Networks) -> object:
    expect(inside.kernel(given.device) == "cuda", inside.unavailable(given.device))
    return s_resnet.kernels.describe()
