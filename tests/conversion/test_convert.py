"""Conversion end to end, and the two passes that only show in spiking runs: readout and compensation."""

import copy
import importlib
import json
import math
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images, randomized
from torch import nn

import s_resnet
from s_resnet import Graph, Simulation, convert, simulate, trace
from s_resnet.conversion import Context, passes
from s_resnet.conversion.batchnorm import calibrate_from_batchnorm
from s_resnet.conversion.calibrate import Calibration, Samples
from s_resnet.conversion.passes import attach_readout, compensate, normalize, relu_to_neuron
from s_resnet.conversion.recipes import RECIPES, Recipe
from s_resnet.conversion.step import Step
from s_resnet.errors import ConversionError, InvalidData, UnsupportedModel
from s_resnet.graph import Node, ops
from s_resnet.graph.neuron import Neuron
from s_resnet.graph.provenance import Provenance, TriedFactor, Versions
from s_resnet.graph.readout import Readout
from s_resnet.models import CifarResNet

module = importlib.import_module(
    "s_resnet.conversion.passes.compensate"
)  # the package has the function under this name


def residual(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    return s.head(F.relu(s.bn2(s.conv2(x)) + x))


def analog(model, x):
    with torch.no_grad():
        return model(x)


# ---- attach_readout ----


def by_adaptive_pool(s, x):
    return s.fc(F.adaptive_avg_pool2d(F.relu(s.conv1(x)), 1).flatten(1))


def by_whole_pool(s, x):
    x = F.relu(s.conv1(x))
    return s.fc(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


def by_mean(s, x):
    return s.fc(F.relu(s.conv1(x)).mean([2, 3]))


def converted_up_to_readout(body, mode, **modules):
    model = Net(body, **modules)
    graph = trace(model, images())
    calibration = Calibration({node.name: 3.0 for node in graph.nodes}, 100, 1, "data")
    return (
        model,
        calibration,
        attach_readout(relu_to_neuron(graph, Context(calibration)), Context(calibration), mode, 0.5).validate(),
    )


@pytest.mark.parametrize("body", [by_adaptive_pool, by_whole_pool, by_mean])
@pytest.mark.parametrize("mode", ["current", "spikes"])
def test_the_readout_keeps_the_analog_run_and_spikes_add_a_neuron_after_the_pool(body, mode):
    model, calibration, graph = converted_up_to_readout(body, mode)
    last = graph.nodes[-1]
    assert (last.name, last.inputs, last.op.mode) == ("readout", ("fc",), mode)
    assert last.op.initial_potential == (0.5 if mode == "spikes" else 0.0)
    assert torch.allclose(graph.run(images()), analog(model, images()), rtol=1e-5, atol=1e-6)
    assert len(graph.neurons) == (2 if mode == "spikes" else 1)
    if mode == "spikes":
        (pool,) = (node for node in graph.nodes if isinstance(node.op, ops.AdaptiveAvgPool2d))
        (reader,) = (node for node in graph.nodes if node.inputs == (pool.name,))
        assert isinstance(reader.op, Neuron)
        assert (float(reader.op.threshold), reader.op.initial_potential) == (3.0, 0.5)
        scales = [node for node in normalize(graph, Context(calibration)).nodes if isinstance(node.op, ops.Scale)]
        assert scales == []  # its threshold is that of the ReLU before, so nothing is rescaled


def test_a_readout_of_another_mode_is_refused():
    with pytest.raises(ConversionError, match=r"attach_readout: got mode 'vote'; expected 'current' or 'spikes'"):
        converted_up_to_readout(by_mean, "vote")


def test_a_layer_called_readout_is_another_one():
    def body(s, x):
        return s.readout(s.fc(F.relu(s.conv1(x)).mean([2, 3])))

    model, _, graph = converted_up_to_readout(body, "spikes", readout=nn.Linear(5, 4))
    assert torch.allclose(graph.run(images()), analog(model, images()), rtol=1e-5, atol=1e-6)


def test_a_network_may_end_in_its_pool():
    _, _, graph = converted_up_to_readout(lambda s, x: F.adaptive_avg_pool2d(F.relu(s.conv1(x)), 1), "spikes")
    assert graph.nodes[-1].inputs == ("adaptive_avg_pool2d.neuron",)


@pytest.mark.parametrize("mode", ["current", "spikes"])
def test_answers_by_hand(mode):
    # A neuron at threshold 1 under x = 1 spikes at every step, so the classifier's currents are 0.4 and -0.2.
    names = (("relu", Neuron(torch.ones(()))), ("flatten", ops.Flatten()))
    fc = ops.Linear(torch.tensor([[0.8], [-0.4]]), None)
    nodes = [Node("input", ops.Input(), ())]
    for name, op in (*names, ("fc", fc)):
        nodes.append(Node(name, op, (nodes[-1].name,)))
    calibration = Calibration({"relu": 1.0, "fc": 2.0}, 100, 1, "data")
    graph = normalize(attach_readout(Graph(tuple(nodes)), Context(calibration), mode, 0.5), Context(calibration))
    got = simulate(graph, torch.ones(1, 1, 1, 1), 4, at=range(1, 5)).outputs[:, 0]
    if mode == "current":
        assert torch.allclose(got, torch.tensor([[0.8, -0.4]]).expand(4, 2))
        return
    membranes = [(0.9, 0.3), (0.3, 0.1), (0.7, -0.1), (0.1, -0.3)]  # from 0.5; the first fires at steps 2 and 4
    for t, (count, v) in enumerate(zip((0, 1, 1, 2), membranes, strict=True), 1):
        first = 1 / (1 + math.exp(v[1] - v[0]))
        assert got[t - 1].tolist() == pytest.approx([2 * (count + first) / t, 2 * (1 - first) / t], rel=1e-5)


# ---- compensate ----


def prepared(labels=None, count=12, rounding=None):
    """A normalized residual network and a calibration with samples."""
    model = Net(residual)
    graph = trace(model, images())
    x = images(count, seed=5)
    scales = {name: float(value.max()) for name, value in graph.activations(x)}
    calibration = Calibration(scales, 100, 1, "data", samples=Samples(x, labels), rounding=rounding)
    graph = attach_readout(
        relu_to_neuron(passes.fold_batchnorm(graph, Context(calibration)), Context(calibration)), Context(calibration)
    )
    return graph, normalize(graph, Context(calibration)), calibration


@pytest.mark.parametrize(("start", "share"), [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0)])
def test_what_is_expected_to_be_lost_depends_on_the_start(start, share):
    _, graph, calibration = prepared(rounding=1.5)
    nodes = (replace(n, op=replace(n.op, initial_potential=start)) if n in graph.neurons else n for n in graph.nodes)
    found = compensate(replace(graph, nodes=tuple(nodes)), Context(replace(calibration, samples=None), 5))
    assert found.provenance.compensation.factor == pytest.approx(1 + share * 1.5 / 5)


def test_the_factor_is_on_every_weight_and_on_no_bias():
    _, graph, calibration = prepared()
    result = compensate(graph, Context(calibration, 6))
    factor = result.provenance.compensation.factor
    assert factor > 1  # v(0) = 0: six steps round a lot of charge away
    synapses = [node for node in result.nodes if hasattr(node.op, "spiking")]
    assert [node.name for node in synapses] == ["conv1", "conv2", "relu_1.shortcut", "fc"]
    assert all(node.op.spiking.gain == factor for node in synapses)
    assert torch.equal(result.run(images()), graph.run(images()))

    def by_hand(op):
        return replace(op, weight=op.weight * factor) if hasattr(op, "spiking") else op

    scaled = replace(graph, nodes=tuple(replace(node, op=by_hand(node.op)) for node in graph.nodes))
    assert torch.allclose(result(images(), 6), scaled(images(), 6), atol=1e-5)
    assert not torch.allclose(result(images(), 6), graph(images(), 6), atol=1e-2)


@pytest.mark.parametrize("rounding", [None, 1.5])
def test_the_recorded_curve_is_the_networks_own(rounding):
    _, graph, calibration = prepared(rounding=rounding)
    found = compensate(graph, Context(calibration, 5)).provenance.compensation
    x, logits = calibration.samples.images, graph.run(calibration.samples.images)
    assert found.criterion == "logit error"
    assert (found.timesteps, found.images) == (5, 12)
    assert found.expected == 1 + (rounding or 0) / 5  # from v(0) = 0
    assert 2 <= len(found.curve) <= 6
    factors = [point.factor for point in found.curve]
    assert factors == sorted(set(factors))
    assert factors[0] == 1.0
    assert found.range == (factors[0], factors[-1])
    apart = {}
    for point in found.curve:
        nodes = [
            replace(n, op=replace(n.op, weight=n.op.weight * point.factor)) if hasattr(n.op, "spiking") else n
            for n in graph.nodes
        ]
        answer = replace(graph, nodes=tuple(nodes))(x, 5)
        apart[point.factor] = (answer - logits).abs().mean(1) / logits.abs().mean()
        assert point.logit_error == pytest.approx(float(apart[point.factor].mean()), rel=0.02)
    best = min(factors, key=lambda factor: float(apart[factor].mean()))
    worse = {factor: apart[factor] - apart[best] for factor in factors}
    good = [factor for factor in factors if float(worse[factor].mean()) <= float(worse[factor].std()) / 12**0.5]
    assert found.factor == min(good, key=lambda factor: abs(factor - found.expected))


@pytest.mark.parametrize("recipe", ["s-resnet-v0", "calibrated"])
def test_labels_change_nothing(recipe):
    """Without, right, all of one class as a placeholder, names, and out of range."""
    source, x = randomized(CifarResNet(8, width=4)), [images(12, 8, seed=seed) for seed in range(4)]
    right = [source(part).argmax(1) for part in x]
    variants = {
        "none": x,
        "right": list(zip(x, right, strict=True)),
        "placeholder": [(part, torch.zeros_like(label)) for part, label in zip(x, right, strict=True)],
        "wrong": [(part, 9 - label) for part, label in zip(x, right, strict=True)],
        "names": [(part, ["cat"] * len(part)) for part in x],
    }
    made = {name: convert(source, batches, recipe, timesteps=16) for name, batches in variants.items()}
    for name, snn in made.items():
        assert torch.equal(snn(x[0], 16), made["none"](x[0], 16)), name
        assert snn.provenance.compensation == made["none"].provenance.compensation, name
    assert recipe != "s-resnet-v0" or made["none"].provenance.compensation.factor > 1


def searched(monkeypatch, answer, rounding=None):
    """The factors tried and the one chosen, where the network answers ``answer(factor, logits)``."""
    _, graph, calibration = prepared(rounding=rounding)
    logits = graph.run(calibration.samples.images)
    tried = []

    def fake(network, x, steps):
        tried.append(next(node.op.spiking.gain for node in network.nodes if hasattr(node.op, "spiking")))
        return Simulation((steps,), answer(tried[-1], logits)[None], {}, None)

    monkeypatch.setattr(module, "simulate", fake)
    return tried, compensate(graph, Context(calibration, 100)).provenance.compensation


@pytest.mark.parametrize("rounding", [None, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("peak", [0.9, 1.0, 1.004, 1.02, 1.1, 1.5, 9.0])
def test_the_search_ends_within_six_evaluations_at_the_best_it_saw(monkeypatch, peak, rounding):
    """All images agree, so that the standard error of a difference is small."""
    tried, found = searched(monkeypatch, lambda factor, logits: logits + 1 + abs(factor - peak), rounding)
    assert len(tried) <= module.EVALUATIONS == 6
    assert len(tried) == len(set(tried)) == len(found.curve)
    step = (rounding / 2 if rounding else 2.0) / 100
    assert sorted(tried[:2]) == [1.0, pytest.approx(1.0 + step)]
    assert found.factor == min(tried, key=lambda factor: abs(factor - peak))
    if peak <= 1:
        assert found.factor == 1.0
    elif peak <= 1 + 3 * step:  # farther away the steps are wider
        assert abs(found.factor - peak) <= max(0.51 * step, 0.01)


def test_images_that_disagree_do_not_lead_far_from_the_expected_factor(monkeypatch):
    """Every image has its own best factor, 0.85 to 1.29: that of all is no better, by their scatter, than another."""
    own = 0.85 + 0.04 * torch.arange(12.0)[:, None]
    tried, found = searched(monkeypatch, lambda factor, logits: logits + (factor - own).abs(), rounding=2.0)
    assert found.expected == pytest.approx(1.02) and len(tried) >= 4
    assert abs(found.factor - 1.02) == pytest.approx(min(abs(factor - 1.02) for factor in tried))
    errors = {point.factor: point.logit_error for point in found.curve}
    assert errors[found.factor] > min(errors.values()) + 1e-3


def test_one_wins_where_nothing_is_lost():
    x = torch.tensor([0.25, 0.5, 0.75, 1.0]).view(1, 4, 1, 1).expand(9, 4, 1, 1)
    nodes = [Node("input", ops.Input(), ())]
    for name, op in (
        ("relu", Neuron(torch.ones(()))),
        ("flatten", ops.Flatten()),
        ("fc", ops.Linear(torch.eye(4), None)),
    ):
        nodes.append(Node(name, op, (nodes[-1].name,)))
    nodes.append(Node("readout", Readout(torch.ones(())), ("fc",)))
    calibration = Calibration({}, 100, 1, "data", samples=Samples(x, None))
    found = compensate(Graph(tuple(nodes)), Context(calibration, 8)).provenance.compensation
    assert found.factor == 1.0
    assert found.curve[0] == TriedFactor(1.0, 0.0)


def test_without_samples_the_factor_is_one_with_a_reason():
    _, graph, calibration = prepared()
    result = compensate(graph, Context(replace(calibration, samples=None), 350))
    found = result.provenance.compensation
    assert (found.factor, found.curve, found.reason) == (1.0, (), "no calibration images")
    assert all(node.op.spiking.gain == 1 for node in result.nodes if hasattr(node.op, "spiking"))


@pytest.mark.parametrize("size", [8, 48])
def test_all_held_out_images_are_searched_with(monkeypatch, size):
    """However much they cost."""
    plain, seen = module.simulate, []

    def counting(graph, x, steps):
        seen.append(len(x))
        return plain(graph, x, steps)

    monkeypatch.setattr(module, "simulate", counting)
    snn = convert(randomized(CifarResNet(8, width=4)), [images(100, size)], "s-resnet", timesteps=4)
    found = snn.provenance
    assert set(seen) == {32} and found.compensation.images == found.calibration.held_out == 32
    assert found.calibration.images == 68


def test_a_network_without_synapses_is_given_back():
    graph = Graph((Node("input", ops.Input(), ()), Node("relu", Neuron(torch.ones(())), ("input",))))
    assert compensate(graph, Context(Calibration({}, 100, 1, "data"))) is graph


# ---- convert ----


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=8))


@pytest.fixture(scope="module")
def batches():
    return [(images(10, seed=seed), torch.arange(10)) for seed in range(3)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_end_to_end(model, batches, recipe):
    before = copy.deepcopy(model.state_dict())
    fits = RECIPES[recipe].fits
    asked = RECIPES[recipe].at(48) if fits else RECIPES[recipe].at(256).with_percentile(100)
    steps = asked.timesteps
    model.train()
    snn = convert(model, batches, asked)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    x, expected = images(4, seed=9), analog(model.eval(), images(4, seed=9))
    assert torch.allclose(snn.run(x), expected, rtol=1e-3, atol=1e-4)
    errors = [float((snn(x, t) - expected).abs().mean() / expected.abs().mean()) for t in (4, steps // 8, steps)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < (0.05 if recipe == "s-resnet" else 1)  # counts of spikes cannot be negative
    assert all(torch.equal(node.op.threshold, torch.ones(())) for node in snn.neurons)
    assert torch.equal(convert(model, batches, asked)(x, 8), snn(x, 8))


def test_provenance_is_json_and_tells_what_was_done(model, batches):
    provenance = convert(model, batches, RECIPES["s-resnet"].at(4).with_percentile(99)).provenance
    assert Provenance.from_json(json.loads(json.dumps(provenance.to_json(), allow_nan=False))) == provenance
    assert provenance.recipe.name == "s-resnet"
    assert provenance.recipe.timesteps == 4
    assert provenance.to_json()["recipe"]["passes"] == [
        {"pass": "fold_batchnorm"},
        {"pass": "relu_to_neuron", "initial_potential": 0.5, "reset": "subtract"},
        {"pass": "attach_readout", "mode": "current", "initial_potential": 0.5},
        {"pass": "normalize"},
        {"pass": "compensate", "timesteps": 4},
    ]
    calibration = provenance.calibration
    assert (calibration.images, calibration.held_out, calibration.percentile) == (15, 15, 99)
    assert provenance.input_shape == (3, 16, 16)
    assert provenance.versions == Versions(s_resnet.__version__, torch.__version__)
    assert provenance.compensation.criterion == "logit error"


@pytest.mark.parametrize(("recipe", "held_out"), [("s-resnet", 32), ("s-resnet-released", 0), ("phased", 0)])
def test_images_are_held_out_where_something_is_searched(model, recipe, held_out):
    provenance = convert(model, [images(150, 8)], recipe, timesteps=1).provenance
    assert (provenance.calibration.held_out, provenance.calibration.images) == (held_out, 150 - held_out)


def test_a_recipe_can_be_set(model, batches):
    recipe = RECIPES["s-resnet"].set("relu_to_neuron", reset="zero").at(2)
    snn = convert(model, batches, recipe)
    assert all(node.op.reset == "zero" for node in snn.neurons)
    assert snn.provenance.compensation.timesteps == snn.provenance.recipe.timesteps == 2
    assert RECIPES["s-resnet"].steps[1].settings["reset"] == "subtract" and RECIPES["s-resnet"].timesteps == 350
    assert convert(model, batches, recipe, timesteps=3).provenance.compensation.timesteps == 3
    with pytest.raises(ConversionError, match=r"recipe s-resnet: got step 'prune'; expected one of fold_batchnorm"):
        recipe.set("prune")


def test_an_unknown_recipe_is_refused(model):
    with pytest.raises(ConversionError, match=r"got 's-resnext'; expected one of s-resnet, s-resnet-v0"):
        convert(model, recipe="s-resnext")
    with pytest.raises(ConversionError, match=r"got 'calibrated-streaming'; .* It is now named calibrated-constant\.$"):
        convert(model, recipe="calibrated-streaming")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda recipe: recipe.at(0), "recipe s-resnet: got timesteps=0; expected at least 1"),
        (lambda recipe: recipe.at(-5), "got timesteps=-5"),
        (lambda recipe: recipe.at(2.5), "got timesteps=2.5; expected a whole number"),
        (lambda recipe: recipe.with_percentile(0), "got percentile 0"),
        (lambda recipe: recipe.with_percentile(101.0), "got percentile 101"),
        (lambda recipe: recipe.with_weights("int4"), "got weights 'int4'; expected float32, dyadic, int8"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InvalidData, match=message):
        setting(RECIPES["s-resnet"])


@pytest.mark.parametrize("with_images", [True, False])
def test_steps_out_of_range_are_refused(model, batches, with_images):
    with pytest.raises(InvalidData, match="recipe s-resnet: got timesteps=0; expected at least 1"):
        convert(model, batches if with_images else None, "s-resnet", timesteps=0)


@pytest.mark.parametrize(("given", "recipe"), [("module", "s-resnet"), ("graph", "s-resnet"), ("graph", "s-resnet-v0")])
def test_without_images_the_statistics_of_batchnorm_serve(model, given, recipe):
    source = model if given == "module" else trace(model, images())
    snn = convert(source, recipe=recipe, timesteps=32)
    assert snn.provenance.calibration.source == "batchnorm"
    found = snn.provenance.compensation
    expected = calibrate_from_batchnorm(trace(model, torch.zeros(2, 3, 32, 32))).rounding / found.timesteps
    expected *= recipe == "s-resnet-v0"  # from v(0) = 1/2 nothing is lost on average
    assert found.factor == pytest.approx(1 + expected) and found.reason.startswith("expected rounding")
    assert all(node.op.spiking.gain == found.factor for node in snn.nodes if hasattr(node.op, "spiking"))
    assert snn.provenance.compensation.curve == ()
    assert snn.provenance.input_shape == (3, 32, 32)
    assert snn(images(size=32), 4).shape == (2, 10)


def test_without_images_the_input_size_is_guessed_or_given():
    def body(s, x):
        return s.head(F.relu(s.bn1(s.conv1(s.pool(x)))))

    with_pool = Net(body, pool=nn.MaxPool2d(8))
    found = [
        convert(with_pool, recipe="s-resnet", **given).provenance
        for given in ({}, {"calibration_batches": (3, 96, 96)})
    ]
    assert [p.input_shape for p in found] == [(3, 224, 224), (3, 96, 96)]
    assert [p.calibration.percentile for p in found] == [99.9, 99.9]
    squeezing = Net(lambda s, x: s.fc(F.adaptive_avg_pool2d(F.relu(s.bn1(s.conv1(x))), 1).squeeze()))
    assert convert(squeezing, recipe="s-resnet")(images(1), 2).shape == (1, 5)
    assert convert(squeezing, [images(1), images(1)], timesteps=2)(images(1), 2).shape == (1, 5)


def test_a_pass_that_finds_nothing_is_named(model, batches):
    strict = Recipe("strict", "", 8, (Step(passes.relu_to_neuron), Step(passes.move_maxpool)))
    with pytest.raises(ConversionError, match=r"^move_maxpool: got nothing to rewrite.*recipe strict"):
        convert(model, batches, strict)
    with pytest.raises(ConversionError, match=r"got a spiking network; expected its source"):
        convert(convert(model, batches, timesteps=1), batches)


def test_an_unfolded_batchnorm_is_refused(model, batches):
    unfolded = Recipe("unfolded", "", 8, (Step(passes.relu_to_neuron), Step(passes.normalize)))
    with pytest.raises(ConversionError, match=r"^bn1: got BatchNorm2d, which has no units.*Run fold_batchnorm"):
        convert(model, batches, unfolded)


BAD = {
    "none": ([], "no calibration batch"),
    "dicts": ([{"picture": images()}], "dict with picture"),
    "lists": ([images().tolist()], r"got a batch of list of list, list; expected images \[B, C, H, W\]"),
    "one image": ([images()[0]], r"got a batch of \(3, 16, 16\); expected \[B, C, H, W\].*x\.unsqueeze\(0\)"),
    "a tensor": (images(), r"got one Tensor of shape \(2, 3, 16, 16\); expected a list of batches.*\[images\]"),
    "an empty batch": ([images()[:0]], "at least one"),
    "channels last": ([images().permute(0, 2, 3, 1)], r"They look like \[B, H, W, C\]"),
    "events": ([images()[None]], "mean over their frames"),
    "a generator": ((x for x in [images()]), "one-shot iterator"),
    "bytes": ([(images() * 9).byte()], "got images of uint8.*Divide by 255"),
    "channels": ([images(channels=1)], "the model failed on the example"),
    "not finite": ([images(), images() / 0], "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_batches_of_the_wrong_kind_are_refused(model, name):
    with pytest.raises(InvalidData, match=BAD[name][1]):
        convert(model, BAD[name][0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated")  # from inside torch 2.11's compiler
def test_a_compiled_module_is_unwrapped_and_one_that_cannot_be_copied_refused(model):
    assert torch.equal(trace(torch.compile(model), images()).run(images()), trace(model, images()).run(images()))
    bound = randomized(CifarResNet(8, width=4))
    plain = trace(bound, images()).run(images())
    bound.derived = bound.conv1.weight * 2  # what torch.nn.utils.weight_norm leaves behind
    assert torch.equal(trace(bound, images()).run(images()), plain)
    bound.lock = threading.Lock()
    with pytest.raises(UnsupportedModel, match=r"CifarResNet: cannot be copied.*lock"):
        convert(bound)


def test_without_images_and_without_batchnorm_it_asks():
    with pytest.raises(InvalidData, match=r"without BatchNorm and no images"):
        convert(Net(lambda s, x: s.head(F.relu(s.conv1(x)))))
    with pytest.raises(InvalidData, match=r"Linear without a convolution; expected a ResNet"):
        convert(nn.Linear(3, 3))
