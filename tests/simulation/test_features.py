"""Features at named nodes: by hand, against the module's own activations, and against the spikes that were sent."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images, randomized
from test_program import DIFFERENTIAL, FIRING_LEVELS, LEAKY, LEVELS, SIGNED, SPIKES_READOUT, WEIGHTED, X, tiny
from test_schedules import PLANS, THETA, network, pictures, recorded

from s_resnet import RECIPES, Graph, convert, trace
from s_resnet.conversion import Context
from s_resnet.conversion.passes import quantize_weights
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear
from s_resnet.models import CifarResNet
from s_resnet.simulation import features
from s_resnet.simulation.features import unit_of


def activations(model, x):
    """What every module of ``model`` returns at every call, by trace's names: the second call of ``a`` is ``a_1``."""
    found, handles = {}, []

    def hook(name):
        def keep(module, arguments, output):
            calls = [other for other in found if other == name or other.rpartition("_")[0] == name]
            found[name if not calls else f"{name}_{len(calls)}"] = output.clone()

        return keep

    for name, module in model.named_modules():
        if name and not list(module.children()):
            handles.append(module.register_forward_hook(hook(name)))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


# ---- by hand ----


def test_a_trace_by_hand():
    """Current 0.7 on a threshold of 1, from 0: spikes at t = 2, 3, 5. One is worth 3; the classifier sees 2 s - 1."""
    nodes = (
        Node("input", Input(), ()),
        Node("conv", Conv2d(torch.full((1, 1, 1, 1), 0.7), None), ("input",)),
        Node("relu", Neuron(torch.ones(()), scale=torch.tensor(3.0)), ("conv",)),
        Node("flat", Flatten(), ("relu",)),
        Node("fc", Linear(torch.tensor([[2.0]]), torch.tensor([-1.0])), ("flat",)),
        Node("readout", Readout(torch.tensor(10.0)), ("fc",)),
    )
    snn, x = Graph(nodes).validate(), torch.ones(1, 1, 1, 1)
    rates = [features(snn, x, t, ["relu"])["relu"].item() for t in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx([0, 3 / 2, 6 / 3, 6 / 4, 9 / 5])
    found = features(snn, x, 5, ["flat", "fc", "conv", "input", "readout"])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"flat": 9 / 5, "fc": 10 * (2 * 3 / 5 - 1), "conv": 3 * 0.7, "input": 1.0, "readout": 10 * (2 * 3 / 5 - 1)}
    )


# ---- against the source's own activations ----


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=4, shortcut="B"))


@pytest.fixture(scope="module")
def batches():
    return [(images(20, 8, seed=seed), torch.arange(20) % 10) for seed in range(3)]


def test_rates_of_the_first_layer_are_within_a_spike_of_the_clipped_relu(model, batches):
    recipe = RECIPES["s-resnet"]  # without its compensation, which makes currents larger on purpose
    recipe = replace(recipe, steps=tuple(step for step in recipe.steps if step.name != "compensate"))
    snn, x = convert(model, batches, recipe), images(3, 8, seed=7)
    first = snn.neurons[0]
    with torch.no_grad():
        target = F.relu(model.bn1(model.conv1(x))).clamp(max=float(first.op.scale))
    for steps in (1, 2, 5, 16, 64, 200):
        rate = features(snn, x, steps, [first.name])[first.name]
        assert (rate - target).abs().max() <= float(first.op.scale) / steps + 1e-5, steps


def test_rates_approach_every_relu_as_the_steps_grow():
    """No activation is above its scale: thresholds are the maxima of these very images."""
    model = Net(lambda self, x: self.head(self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))))
    x = images(8, 8, seed=3)
    snn = convert(model, [x], RECIPES["s-resnet"].with_percentile(100.0))
    expected = {name: value for name, value in activations(model, x).items() if name.startswith("relu")}
    assert list(expected) == ["relu", "relu_1"] == [node.name for node in snn.neurons]
    errors = []
    for steps in (8, 64, 512):
        rates = features(snn, x, steps, list(expected))
        errors.append([(rates[name] - value).abs().mean() / value.abs().mean() for name, value in expected.items()])
    assert all((torch.tensor(b) < 0.4 * torch.tensor(a)).all() for a, b in pairwise(errors))
    assert max(errors[-1]) < 0.03


@pytest.mark.parametrize("recipe", ["s-resnet", "s-resnet-released", "phased", "multilevel"])
def test_every_node_is_in_the_source_networks_units(model, batches, recipe):
    """The analog run times what a unit is worth is what the module's own calls return."""
    snn, x = convert(model, batches, recipe, timesteps=4), images(2, 8, seed=4)
    source = dict(trace(model, x).activations(x))
    after = {name.replace("bn", "conv"): value for name, value in source.items() if "bn" in name}
    after |= {name.replace("shortcut.1", "shortcut.0"): value for name, value in source.items() if "shortcut.1" in name}
    checked = 0
    for name, value in snn.activations(x):
        expected = after.get(name) if after.get(name) is not None else source.get(name)
        if expected is None:
            continue
        unit = unit_of(snn, name)
        unit = unit if unit.ndim == 0 else unit.view(-1, *(1,) * (value.ndim - 2))
        assert torch.allclose(value * unit, expected, 1e-3, 1e-4 * float(expected.abs().max())), name
        checked += 1
    assert checked >= 15


def test_a_constant_current_is_that_of_the_module_at_any_step(model, batches):
    snn, x = convert(model, batches, "calibrated-lagged", timesteps=4), images(2, 8, seed=4)
    with torch.no_grad():
        assert torch.allclose(features(snn, x, 3, ["conv1"])["conv1"], model.bn1(model.conv1(x)), atol=1e-4)
    whole = quantize_weights(snn, Context())
    coarse = features(whole, x, 3, ["conv1", "input"])
    with torch.no_grad():
        expected = model.bn1(model.conv1(x))
    assert (coarse["conv1"] - expected).abs().max() < 0.02 * expected.abs().max()
    assert (coarse["input"] - x).abs().max() <= 0.5 / 64


# ---- against the spikes that were sent ----


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", PLANS)
def test_rates_and_currents_are_the_mean_of_what_was_sent(monkeypatch, name, steps):
    graph, x = network(PLANS[name]), pictures()
    sent = {key: value.double() for key, value in recorded(monkeypatch, graph, x, steps)[0].items()}
    found = features(graph, x, steps, [*sent, "c1", "c.short", "flat", "fc", "stem", "gate"])
    emitted = {key: value * THETA[key].double().reshape(-1, 1, 1) for key, value in sent.items()}
    for key, value in emitted.items():
        assert torch.allclose(found[key].double(), value.mean(0), atol=1e-6), key
    c1 = graph["c1"].op
    currents = [F.conv2d(now, c1.weight.double(), c1.bias.double(), c1.stride, c1.padding) for now in emitted["n2"]]
    assert torch.allclose(found["c1"].double(), torch.stack(currents).mean(0), atol=1e-5)
    half = F.pad(emitted["n2"].mean(0)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    assert torch.allclose(found["c.short"].double(), half * torch.arange(1, 11).view(-1, 1, 1) / 8, atol=1e-5)
    flat = F.avg_pool2d(emitted["n3"].mean(0), 2).flatten(1)
    assert torch.allclose(found["flat"].double(), flat, atol=1e-5)
    assert torch.allclose(found["stem"], graph["stem"].op.run(x))
    counts = F.max_pool2d(sent["n1"].sum(0), 3, 1, 1) * THETA["n1"].double()
    assert torch.allclose(found["gate"].double(), counts / steps, atol=1e-5)
    fc = graph["fc"].op
    assert torch.allclose(found["fc"].double(), 4 * F.linear(flat, fc.weight.double(), fc.bias.double()), atol=1e-4)


ALPHABETS = {
    "binary": tiny(),
    "leaky, reset to zero; spikes readout": tiny(SPIKES_READOUT, **LEAKY),
    "signed, corrected": tiny(**SIGNED),
    "levels, weighted readout": tiny(WEIGHTED, **LEVELS),
    "differential": tiny(**DIFFERENTIAL),
    "multi-level firing": tiny(**FIRING_LEVELS),
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_alphabet_and_what_spiking_runs_multiply_with(monkeypatch, name):
    graph = ALPHABETS[name]
    for snn in [graph, quantize_weights(graph, Context())] if name == "binary" else [graph]:
        sent = recorded(monkeypatch, snn, X, 6)[0]
        found = features(snn, X, 6, ["n1", "n0", "conv"])
        assert list(found) == ["n1", "n0", "conv"]
        for key, value in sent.items():
            assert torch.allclose(found[key].double(), value.double().mean(0), atol=1e-6)
        op = graph["conv"].op
        expected = F.conv2d(sent["n0"].double().mean(0), 1.25 * op.weight.double(), op.bias.double(), padding=1)
        rounding = 0.05 if snn.is_integer else 1e-5
        assert torch.allclose(found["conv"].double(), expected, atol=rounding)


def test_many_steps_in_chunks_and_in_fast_precision():
    graph, x = tiny(), torch.cat([X] * 40)
    found = features(graph, x, 100, ["n1"])["n1"]
    assert torch.equal(found[:3], features(graph, X, 100, ["n1"])["n1"])
    fast = features(graph, x, 100, ["n1"], "fast")["n1"]
    assert (fast - found).abs().mean() < 0.02


# ---- names ----


def test_the_answer_comes_under_the_last_nodes_name():
    graph = tiny()
    answer = graph(X, 4)
    assert isinstance(answer, torch.Tensor)
    assert torch.equal(features(graph, X, 4, ["readout"])["readout"], answer)
    both = features(graph, X, 4, ["n0", "readout", "n0"])
    assert list(both) == ["n0", "readout"] and torch.equal(both["readout"], answer)
    assert features(graph, X, 4, []) == {}


def test_functions_are_named_as_modules_and_a_relu_used_twice_has_two_names(batches):
    functional = Net(lambda self, x: self.head(F.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))))
    snn = convert(functional, batches, timesteps=2)
    assert [node.name for node in snn.neurons] == ["relu", "relu_1"]
    found = features(snn, batches[0][0], 2, ["relu", "relu_1"])
    assert found["relu"].shape == found["relu_1"].shape == (20, 8, 8, 8)
    assert not torch.equal(found["relu"], found["relu_1"])


def test_an_unknown_name_lists_near_ones(model, batches):
    snn, x = convert(model, batches, timesteps=2), batches[0][0]
    with pytest.raises(InvalidData, match=r"got node 'layer3\.0\.rely'; expected layer3\.0\.relu, layer3\.0\.relu_1"):
        features(snn, x, 2, ["layer3.0.rely"])
    with pytest.raises(InvalidData, match=r"got node 'layer3'; expected layer3\.0\.relu, layer3\.0\.relu_1"):
        features(snn, x, 2, ["layer3"])
    with pytest.raises(
        InvalidData, match=r"got node 'layer1\.0\.bn1'; expected .*layer1\.0\.conv1.* BatchNorm is part of"
    ):
        features(snn, x, 2, ["layer1.0.bn1"])
    with pytest.raises(InvalidData, match=r"got node 'xyz'; expected relu, .*layer3\.0\.relu_1\. "):
        features(snn, x, 2, ["xyz"])
    with pytest.raises(InvalidData, match=r"names, got 'relu'; expected a list of names\. Pass \['relu'\]"):
        features(snn, x, 2, "relu")
