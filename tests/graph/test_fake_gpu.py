"""The engine on tensors that claim to be on a GPU: devices, layouts and reads of values show themselves without one.

Every launch is planned as on a GPU, from tensors without values; nothing is computed.
"""

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from every_recipe import BATCH, CHUNK, NETWORKS, ROUNDED, SIZE, STEPS, chunk, chunks, everywhere, network
from torch._subclasses.fake_tensor import FakeTensorMode

import s_resnet
from s_resnet.graph import Neuron, validate
from s_resnet.graph.alphabet import Binary, MultiThreshold
from s_resnet.kernels.layout import empty_steps
from s_resnet.kernels.membrane import cuda, fused, fused_tiles
from s_resnet.simulation import features

PRECISIONS = ("exact", "fast")
FUSED = "convolve_and_fire"


@pytest.fixture
def planned(monkeypatch):
    """A GPU of tensors without values; the plans of all launches of the CUDA kernel, and those of the fused one."""
    plans, launch = [], cuda.integrate_and_fire

    def convolve_and_fire(*arguments, **constants):
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} == {"cuda"}
        assert all(type(x) is int for x in arguments[len(tensors) :]) and constants["C"] > 0
        plans.append(SimpleNamespace(instance=FUSED))

    def integrate_and_fire(current, v, update):
        spikes = empty_steps(len(current), v, update.spike_dtype or v.dtype)
        written = torch.empty_like(v) if update.after is None else update.after
        plans.append(cuda.plan(current, v, replace(update, after=written), spikes))
        return launch(current, v, update)

    monkeypatch.setattr(cuda, "integrate_and_fire", integrate_and_fire)
    monkeypatch.setattr(cuda, "unavailable", lambda device: None)
    monkeypatch.setattr(fused, "missing", lambda device: None if device.type == "cuda" else f"device {device}")
    monkeypatch.setattr(fused, "_program", lambda: defaultdict(lambda: convolve_and_fire))  # by its grid
    monkeypatch.setattr(fused_tiles, "room", lambda device: fused_tiles.Room())
    monkeypatch.setattr(fused_tiles, "_table", lambda device: {})
    monkeypatch.setattr(fused_tiles, "tunes", lambda device: False)
    monkeypatch.setattr(cuda, "_aligned", lambda tensor: True)  # which no address says
    # Read once from real numbers, while a network is prepared.
    monkeypatch.setattr(Neuron, "emits_unit_spikes", property(lambda op: op.amplitude in (None, 1)))
    everywhere(monkeypatch, "_max_membrane_step", lambda *_: 100)
    monkeypatch.setattr(validate, "finite", lambda nodes: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (60 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    # A recording runs what it records, and replays nothing.
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=0))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield plans


def layers(graph):
    """Membranes that the kernel advances: K of them where a layer fires at several levels."""
    return sum(len(node.op.thresholds) for node in graph.neurons)


def on_gpu(name):
    return network(name).to("cuda")


def frames(events):
    return torch.empty(*((STEPS,) if events else ()), BATCH, 3, SIZE, SIZE, device="cuda")


@pytest.fixture(params=NETWORKS)
def name(request):
    network(request.param)  # of real tensors, before there are others
    return request.param


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_recipe_runs_its_layers_through_the_cuda_kernel(name, planned, precision):
    snn = on_gpu(name)
    for run in (1, 2) if precision == "exact" else (1,):  # a recording may be made of the second, in either precision
        got = s_resnet.simulate(
            snn, frames(False), STEPS, s_resnet.simulation.SimulationSettings(chunk=chunk(snn), precision=precision)
        )
        assert got.outputs.device.type == "cuda" and got.outputs.shape[1] == BATCH
        assert len(planned) >= run * layers(snn) and len(planned) % layers(snn) == 0
        assert {count.shape for count in got.spikes.values()} == {(len(got.steps), BATCH)}
    # Of integer networks all but the first layer, whose currents come from an image.
    assert {plan.instance == FUSED for plan in planned} == ({True, False} if snn.is_integer else {False})
    for node in snn.neurons:
        assert all(part.device.type == "cuda" for part in got.state.memory[node.name]), node.name


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ROUNDED], indirect=True)
def test_events_step_by_step(name, planned):
    snn = on_gpu(name)
    got = s_resnet.simulate(snn, frames(True), STEPS, s_resnet.simulation.SimulationSettings(chunk=chunk(snn)))
    assert got.outputs.device.type == "cuda" and len(planned) == layers(snn) * chunks(snn)


def test_features_of_every_node(name, planned):
    snn = on_gpu(name)
    names = [node.name for node in snn.nodes[1:]]
    found = features(snn, frames(False), STEPS, names)
    assert list(found) == names and all(value.device.type == "cuda" for value in found.values())
    assert len(planned) >= layers(snn)


def test_the_analog_run(name, planned):
    snn = on_gpu(name)
    assert snn.run(frames(False)).device.type == "cuda"
    assert bool(planned) == snn.trained  # whose run is a simulation


# ---- neurons that no recipe makes ----


@pytest.fixture
def by_step():
    """A network that streams, with the corrections of each step as rows."""
    graph = network("calibrated-constant")
    nodes = []
    for node in graph.nodes:
        if isinstance(node.op, Neuron) and node.op.correction is not None:
            node = replace(node, op=replace(node.op, correction=node.op.correction.expand(STEPS, -1).clone()))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def test_a_layer_that_streams_may_have_corrections_by_step(by_step, planned):
    snn = by_step.to("cuda")
    s_resnet.simulate(snn, frames(False), STEPS, s_resnet.simulation.SimulationSettings(chunk=CHUNK))
    assert sum("sresnet::ROWS" in plan.instance for plan in planned) >= len(planned) / 2 > 0


@pytest.mark.parametrize("firing", [None, (0.5, 1.0, 1.5)], ids=["one threshold", "three"])
def test_double_precision_is_the_references(planned, firing):
    """The CUDA source has no such membranes."""
    wide = {"dtype": torch.float64, "device": "cuda"}
    op = Neuron(
        torch.ones((), **wide), spikes=Binary() if firing is None else MultiThreshold(torch.tensor(firing, **wide))
    )
    spikes, memory = op.advance([torch.empty(STEPS, BATCH, 8, 4, 4, **wide)], None)
    assert spikes.dtype == memory[0].dtype == torch.float64 and spikes.is_cuda and not planned
    op.advance([torch.empty(STEPS, BATCH, 8, 4, 4, device="cuda")], tuple(v.float() for v in memory))
    assert len(planned) == len(memory)
