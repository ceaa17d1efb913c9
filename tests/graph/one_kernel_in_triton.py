"""The engine over the fused kernel, in Triton's interpreter: integer networks fire as on the CPU, bit for bit.

`test_fused.py` runs this file beside that of the kernel, in a process of its own.
"""

from dataclasses import replace

import pytest
import torch
from conftest import Net, images
from torch import nn

import s_resnet
from s_resnet.graph import StreamSettings
from s_resnet.graph.engine import prepare
from s_resnet.kernels.membrane import fused
from s_resnet.simulation import SimulationSettings

SIZE, STEPS = 4, 4
# Spikes by steps, one step late, and by windows; amounts; spikes that take back.
RECIPES = ("s-resnet", "calibrated-lagged", "phased", "multilevel", "signed")
OTHERS = {
    "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "halved": nn.Conv2d(8, 24, 3, padding=1, stride=2),
    "projection": nn.Conv2d(8, 24, 1, stride=2),
    "fc": nn.Linear(24, 5),
}


def blocks(net, x):
    """A block around an identity, and one around a projection."""
    x = net.relu(net.bn1(net.conv1(x)))
    x = net.relu(net.bn2(net.conv2(x)) + x)
    return net.head(net.relu(net.halved(x) + net.projection(x)))


def grouped(net, x):
    """Two convolutions of the same spikes, of which the kernel takes one."""
    x = net.relu(net.bn1(net.conv1(x)))
    x = net.relu(net.bn2(net.conv2(x)) + net.grouped(x))
    return net.head(net.relu(net.halved(x)))


def converted(body, recipe="s-resnet"):
    model = Net(body, **OTHERS)
    calibration = [images(16, SIZE, seed=seed) for seed in (2, 3)]
    return s_resnet.convert(model, calibration, s_resnet.RECIPES[recipe].at(STEPS).with_weights("int8"))


@pytest.fixture
def launched(monkeypatch):
    """A CPU on which the kernel runs; the currents of each launch."""
    found, run = [], fused.integrate_and_fire

    def noted(current, v, update):
        found.append(current)
        return run(current, v, update)

    monkeypatch.setattr(fused, "missing", lambda device: None)
    monkeypatch.setattr(fused, "integrate_and_fire", noted)
    return found


def equal(snn, launched, monkeypatch, batch, chunk):
    """Whether a run through the kernel is the CPU's."""
    given, settings = images(batch, SIZE), SimulationSettings(chunk=chunk)
    before = len(launched)
    got = s_resnet.simulate(replace(snn), given, STEPS, settings)
    assert len(launched) > before
    with monkeypatch.context() as cpu:
        cpu.setattr(fused, "missing", lambda device: "not asked for")
        want = s_resnet.simulate(replace(snn), given, STEPS, settings)
    assert torch.equal(got.outputs, want.outputs) and got.spikes.keys() == want.spikes.keys()
    assert all(torch.equal(got.spikes[name], want.spikes[name]) and want.spikes[name].any() for name in want.spikes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_integer_networks_fire_as_on_the_cpu(recipe, launched, monkeypatch):
    """In any batch and chunk."""
    snn = converted(blocks, recipe)
    plan = prepare(snn, "exact")
    assert len(plan.one_kernel) == len(plan.spiking) == 3
    equal(snn, launched, monkeypatch, 3, None)
    assert {current.branch is not None for current in launched} == {True, False}
    equal(snn, launched, monkeypatch, 1, None if snn.windowed else 3)


def test_a_grouped_convolution_goes_through_memory(launched, monkeypatch):
    """Its source sends bytes all the same, to the convolution beside it."""
    snn = converted(grouped)
    plan = prepare(snn, "exact")
    assert len(plan.spiking.keys() - plan.one_kernel.keys()) == 1 and len(plan.one_kernel) == 2
    equal(snn, launched, monkeypatch, 2, 2)


def test_an_observer_sees_what_it_saw(launched):
    """Neurons, and no currents that their neurons take as they arise."""
    snn = converted(blocks)
    seen = {}
    settings = StreamSettings(observe=lambda name, value: seen.setdefault(name, value.shape))
    for _ in snn.stream(images(2, SIZE), STEPS, STEPS, settings=settings):
        pass
    plan = prepare(snn, "exact")
    assert not seen.keys() & plan.one_kernel.keys() and launched
    assert {node.name for node in snn.neurons} <= seen.keys()
    assert {shape[0] for shape in seen.values()} == {2 * STEPS}
