"""The whole engine over the CUDA source, run on the CPU: every recipe, bit for bit what the reference kernel gives."""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import cuda_on_cpu
import pytest
import torch
from conftest import images
from every_recipe import BATCH, NETWORKS, SIZE, STEPS, chunk, chunks, everywhere, network
from test_cuda import needs_compiler

import s_resnet
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.membrane import reference

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
PRECISIONS = ("exact", "fast")
# What a recipe's neurons must have asked of the kernel: elsewhere is no place to do it.
MODES = {
    "calibrated": {"SUBTRACT", "ROWS"},
    "calibrated-currents": {"SUBTRACT", "ROWS"},
    "calibrated-fission": {"LEVELS", "ROWS"},
    "calibrated-lagged": {"SUBTRACT", "LAGGED", "ROWS"},
    "calibrated-lagged int8": {"SUBTRACT", "LAGGED", "ROWS"},
    "phased": {"SUBTRACT", "PHASED"},
    "signed": {"SIGNED", "LAGGED"},
    "multilevel": {"SIGNED"},
    "ms_resnet8": {"ZERO"},
    "ds_resnet8": {"ZERO"},
}
HALVES = (
    "s-resnet",
    "s-resnet-v0",
    "s-resnet-released",
    "s-resnet dyadic",
    "calibrated",
    "calibrated-constant",
    "calibrated-fission",
    "calibrated-lagged",
    "phased",
)


@contextmanager
def through(kernel):
    """Every neuron layer goes through ``kernel``, as on a GPU: dense convolutions, no bytes, halves to be fast."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("s_resnet.kernels.integrate_and_fire", kernel)
        monkeypatch.setattr("s_resnet.kernels.events.usable", lambda *_: False)
        everywhere(monkeypatch, "narrow_dtype", lambda device: torch.float16)
        yield


def simulated(name, precision, kernel):
    graph = network(name)
    with through(kernel):
        # A graph of its own: what is prepared for another device or kernel stays with the other.
        return s_resnet.simulate(
            replace(graph),
            images(BATCH, SIZE, seed=4),
            STEPS,
            s_resnet.simulation.SimulationSettings(chunk=chunk(graph), precision=precision),
        )


@cache
def expected(name):
    """By precision: what the reference gives, and the instances that the calls would launch."""
    found = {}
    for precision in PRECISIONS:
        launched = []

        def kernel(current, v, update, launched=launched):
            launched.append(cuda_on_cpu.prepare(current, v, update)[0].instance)
            return reference.integrate_and_fire(current, v, update)

        found[precision] = simulated(name, precision, kernel), launched
    return found


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_every_recipe_gives_the_references_spikes(name):
    cuda_on_cpu.kernels([instance for _, launched in expected(name).values() for instance in launched])
    for precision, (want, launched) in expected(name).items():
        calls = []

        def kernel(current, v, update, calls=calls):
            calls.append(cuda_on_cpu.prepare(current, v, update)[0].instance)
            return cuda_on_cpu.integrate_and_fire(current, v, update)

        got = simulated(name, precision, kernel)
        assert torch.equal(got.outputs, want.outputs) and want.outputs.std() > 0, precision
        assert all(torch.equal(got.spikes[layer], count) for layer, count in want.spikes.items()), precision
        assert all(count.sum() > 0 for count in want.spikes.values()), "a layer never fires: nothing was compared"
        for layer, memory in want.state.memory.items():
            assert all(map(torch.equal, got.state.memory[layer], memory)), (precision, layer)
        membranes = sum(len(node.op.thresholds) for node in network(name).neurons)
        assert calls == launched and len(calls) == membranes * chunks(network(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_does_what_the_recipe_asks(name):
    """And in halves where binary spikes are to be fast."""
    modes = MODES.get(name, {"SUBTRACT"})
    for precision, (_, launched) in expected(name).items():
        assert all(f"sresnet::{mode}" in launched[-1] for mode in modes)
        others = {"SIGNED", "LAGGED", "PHASED", "ROWS"} - modes
        assert not any(f"sresnet::{mode}" in instance for mode in others for instance in launched)
        halves = any("sresnet::f16" in instance for instance in launched)
        assert halves or precision == "exact" or name not in HALVES


@pytest.mark.skipif(nvrtc.compiler()[0] is None, reason=nvrtc.compiler()[1])
def test_what_the_engine_launches_compiles_for_every_gpu():
    launched = sorted({i for name in NETWORKS for _, found in expected(name).values() for i in found})
    assert len(launched) > 40
    for index, instance in enumerate(launched[::4]):
        assert nvrtc.binary(instance, ARCHITECTURES[index % 4])[1].startswith(b"\x7fELF")
