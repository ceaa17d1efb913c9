"""ReLUs with a limit become neurons that saturate there: in every recipe, by hand, and from statistics alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import FIXTURES, Net, images, needs_fixtures, randomized
from PIL import Image
from test_calibrate import chain, laplace, norm
from torch import nn

import s_resnet
from s_resnet import RECIPES, Graph, calibrate, convert, trace
from s_resnet.analysis.losses import split
from s_resnet.conversion import Auto, Context, calibrate_from_batchnorm
from s_resnet.conversion.passes import fit_thresholds, relu_to_neuron
from s_resnet.conversion.rivals import rivals
from s_resnet.errors import ConversionError
from s_resnet.frontend import QCFSModule
from s_resnet.graph import Neuron, Node, ops
from s_resnet.graph.alphabet import Amplitudes
from s_resnet.simulation import closed_form

EACH = torch.linspace(1.0, 6.0, 8).view(1, 8, 1, 1)
BOTH = (EACH, 6.0, EACH)  # of its three activations
CALIBRATION = [images(64, 8, seed=2)]


def clipped(limit):
    """A residual network whose activations exceed the limit often, with BatchNorm statistics of its own.

    limit: of each activation, or one for all.
    """
    first, second, third = limit if isinstance(limit, tuple) else (limit,) * 3

    def body(s, x):
        x = s.act(s.bn1(s.conv1(x)), first)
        y = s.act(s.bn2(s.conv2(x)), second)
        return 0.1 * s.head(s.act(s.bn3(s.conv3(y)) + x, third))

    model = Net(body, conv3=nn.Conv2d(8, 8, 3, padding=1, bias=False), bn3=nn.BatchNorm2d(8))
    model.act = lambda x, limit: torch.minimum(F.relu(x), torch.as_tensor(limit))
    for layer in (model.bn1, model.bn2, model.bn3):
        layer.momentum = None
        layer.reset_running_stats()
        nn.init.constant_(layer.weight, 5.0)
    with torch.no_grad():
        model.train()(images(64, 8, seed=9))
    return model.eval()


def answers(model, x):
    """Those of the network, and of the same network without the limit."""
    with torch.no_grad():
        inside, act = model(x), model.act
        model.act = lambda x, limit: F.relu(x)
        outside = model(x)
        model.act = act
    return inside, outside


def check_range(snn, limit):
    """That no step of a neuron can send more than its limit, in the source's units.

    limit: of each activation, or one for all.
    """
    limited = [node for node in snn.neurons if node.op.limit is not None]
    # The others come after a pool, whose mean is no larger.
    assert all(node in limited or node.name.endswith(".neuron") for node in snn.neurons)
    limits = limit if isinstance(limit, tuple) else (limit,) * len(limited)
    for node, most in zip(limited, limits, strict=True):
        full = node.op.threshold * node.op.max_emission * node.op.scale
        assert bool((full <= torch.as_tensor(most).flatten() * (1 + 1e-6)).all()), node.name


# ---- every recipe ----


@pytest.mark.parametrize("recipe", [*RECIPES, "without data"])
def test_with_more_steps_the_answer_tends_to_that_of_the_clipped_network(recipe):
    """With a limit for a layer, as of ReLU6, and limits per channel."""
    x = images(16, 8, seed=4)
    model = clipped(BOTH)
    expected, unclipped = answers(model, x)
    apart = (unclipped - expected).pow(2).mean().sqrt()
    assert float((trace(model, x).run(x) - expected).abs().max()) < 1e-5 < float(apart) / 100
    errors = []
    for steps in (8, 64):
        if recipe == "without data":
            snn = convert(model, (3, 8, 8), "s-resnet", timesteps=steps)
        else:
            snn = convert(model, CALIBRATION, recipe, timesteps=steps)
        check_range(snn, BOTH)
        assert torch.allclose(snn.run(x), expected, 1e-4, 1e-4)
        got, wanted = snn(x, steps), expected
        if recipe == "s-resnet-released":  # there negative logits do not spike
            got, wanted = got.clamp(min=0), wanted.clamp(min=0)
        errors.append(float((got - wanted).pow(2).mean().sqrt() / apart))
    assert errors[1] < 0.03 and errors[1] < errors[0] / 2


@pytest.mark.parametrize("weights", ["int8", "dyadic"])
def test_rounded_weights_saturate_too(weights):
    x, model = images(16, 8, seed=4), clipped(EACH)
    expected, unclipped = answers(model, x)
    snn = convert(model, CALIBRATION, RECIPES["phased"].at(64).with_weights(weights))
    assert float((snn(x, 64) - expected).norm() / (unclipped - expected).norm()) < 0.05


def test_auto_compares_with_the_clipped_network():
    model = clipped(6.0)
    snn = convert(model, [images(128, 8, seed=2)], Auto(latency=8))
    check_range(snn, 6.0)
    assert snn.provenance.choice.trials[0].agreement > 0.8


def test_reconstruction_lets_no_full_scale_grow_beyond_the_limit():
    model = clipped(6.0)
    recipe = RECIPES["phased"].at(16).reconstructed(steps=20, joint=20, minutes=5)
    snn = convert(model, CALIBRATION, recipe)
    check_range(snn, 6.0)
    full = torch.cat([node.op.threshold * node.op.max_emission * node.op.scale for node in snn.neurons])
    assert float(full.max()) > 5.999 and len(set(full.tolist())) > 3  # they learn, and some meet it


# ---- by hand ----


def single(limit=2.0):
    """One ReLU per pixel, read by a classifier that passes values on."""
    nodes = (
        Node("input", ops.Input(), ()),
        Node("conv", ops.Conv2d(torch.ones(1, 1, 1, 1), None), ("input",)),
        Node("relu", ops.ReLU(torch.tensor(limit)), ("conv",)),
        Node("flat", ops.Flatten(), ("relu",)),
        Node("fc", ops.Linear(torch.eye(4), None), ("flat",)),
    )
    return Graph(nodes)


# Currents in eighths of a limit of 2: 3/8 of the steps, all of them, all of them, none.
CURRENTS = torch.tensor([0.75, 2.0, 5.0, -1.0]).view(1, 1, 2, 2)
SPIKES = {
    "s-resnet": [3, 8, 8, 0],
    "phased": [3, 8, 8, 0],
    "signed": [3, 8, 8, 0],
    "multilevel": [45, 120, 120, 0],  # thresholds of 2/15
}


@pytest.mark.parametrize("recipe", SPIKES)
def test_a_neuron_counted_by_hand(recipe):
    """lambda is the limit: 0.75 / 2 of a spike arrives at each of 8 steps, then all that can be sent, then nothing."""
    plain = RECIPES[recipe].at(8).without("compensate", "calibrate_neurons", "fit_readout", "fit_thresholds")
    snn = convert(single(), [CURRENTS.expand(2, 1, 2, 2)], plain)
    op = snn["relu"].op
    assert float(op.threshold * op.scale * op.max_emission) == pytest.approx(2.0)
    answer = snn(CURRENTS, 8)[0]
    assert torch.allclose(answer, torch.tensor(SPIKES[recipe]) * op.scale / 8, atol=1e-6)
    assert torch.allclose(answer, torch.tensor([0.75, 2.0, 2.0, 0.0]), atol=1e-6)


@pytest.mark.parametrize("recipe", ["s-resnet", "calibrated-lagged", "multilevel"])
def test_what_was_silent_in_calibration_saturates_at_its_limit(recipe):
    """Its stand-in for a scale is 1, and its limit a quarter."""
    snn = convert(single(0.25), [-torch.ones(8, 1, 2, 2)], RECIPES[recipe].at(8))
    assert torch.allclose(snn(torch.full((1, 1, 2, 2), 3.0), 8), torch.full((1, 4), 0.25), atol=1e-6)


def test_a_silent_channel_gets_the_median_threshold_up_to_its_own_limit():
    limit = torch.tensor([2.0, 4.0, 0.25])
    graph = chain(("relu", ops.ReLU(limit)), ("flatten", ops.Flatten()))
    x = images(32, 4, seed=3) * 4
    x[:, 2] = -1.0
    calibration = calibrate(graph, [x], fitting=True)
    context = Context(calibration, 8)
    fitted = fit_thresholds(relu_to_neuron(graph, context), context)["relu"].op
    assert float(fitted.threshold[2]) == 0.25 and bool((fitted.threshold <= limit).all())
    assert float(fitted.threshold[:2].median()) > 1


def test_neurons_that_send_means_are_refused_by_name():
    recipe = RECIPES["calibrated-lagged"].set("relu_to_neuron", spikes="differential")
    with pytest.raises(ConversionError, match=r"relu: got a ReLU with a limit for neurons that send means.*'signed'"):
        convert(single(), [CURRENTS.expand(2, 1, 2, 2)], recipe.without("calibrate_neurons"))


# ---- statistics ----


def test_the_percentile_is_that_of_the_clipped_values():
    x = images(50, 8, seed=1)
    for limit, exact in ((0.5, True), (5.0, False)):
        graph = chain(("relu", ops.ReLU(torch.tensor(limit))), ("flatten", ops.Flatten()))
        found = calibrate(graph, [x], 99.0).scales["relu"]
        values = x.clamp(0, limit).flatten().sort().values
        assert found == float(values[math.floor(0.99 * len(values)) - 1]) and (found == limit) == exact


def test_neurons_at_the_limit_lose_nothing_by_rounding():
    x = images(200, 8, seed=1)
    graph = chain(("relu", ops.ReLU(torch.tensor(0.5))), ("flatten", ops.Flatten()))
    inside = x[(x > 0) & (x < 0.5)]
    expected = len(inside) * 0.5 / 2 / float(x.clamp(0, 0.5).double().sum())
    assert calibrate(graph, [x], 99.0).rounding == pytest.approx(expected, rel=0.02)


MEAN, DEVIATION, LIMIT = [0.5, -1.0, 3.0, 0.0], [1.0, 2.0, 0.2, 0.5], [1.0, 0.5, 2.9, 40.0]


def by_samples(limit):
    return laplace(MEAN, DEVIATION).clip(0, np.broadcast_to(np.array(limit), 4)[:, None])


@pytest.mark.parametrize("limit", [0.7, LIMIT], ids=["one", "per channel"])
@pytest.mark.parametrize("percentile", [70.0, 99.9])
def test_scales_from_batchnorm_are_those_of_clipped_samples(limit, percentile):
    graph = chain(("bn", norm(MEAN, DEVIATION)), ("relu", ops.ReLU(torch.tensor(limit))), ("flatten", ops.Flatten()))
    found = calibrate_from_batchnorm(graph, percentile)
    assert found.scales["relu"] == pytest.approx(np.quantile(by_samples(limit), percentile / 100), rel=0.01)
    assert found.scales["relu"] <= np.max(limit)


@pytest.mark.parametrize("limit", [0.7, LIMIT], ids=["one", "per channel"])
def test_expected_rounding_from_batchnorm_is_that_of_clipped_samples(limit):
    graph = chain(("bn", norm(MEAN, DEVIATION)), ("relu", ops.ReLU(torch.tensor(limit))), ("flatten", ops.Flatten()))
    found, x = calibrate_from_batchnorm(graph, 99.0), laplace(MEAN, DEVIATION)
    ends = np.minimum(np.broadcast_to(np.array(limit), 4), found.scales["relu"])[:, None]
    lost = ((x > 0) & (x < np.broadcast_to(np.array(limit), 4)[:, None])) * ends / 2
    assert found.rounding == pytest.approx(lost.mean() / by_samples(limit).mean(), rel=0.02)


@pytest.mark.parametrize(("mean", "limit"), [(1.0, 0.8), (0.0, 2.0), (-0.8, 0.3), (1.0, 50.0)])
def test_moments_behind_a_clip(mean, limit):
    conv = ops.Conv2d(torch.full((1, 1, 1, 1), -1.5), torch.tensor([2.5]))
    named = [("bn", norm([mean], [1.3])), ("relu", ops.ReLU(torch.tensor(limit))), ("conv", conv)]
    graph = chain(*named, ("relu2", ops.ReLU()), ("flatten", ops.Flatten()))
    current = -1.5 * laplace([mean], [1.3]).clip(0, limit) + 2.5
    expected = current.mean() - current.std() / math.sqrt(2) * math.log(2 - 2 * 0.99)
    assert calibrate_from_batchnorm(graph, 99.0).scales["relu2"] == pytest.approx(expected, rel=0.01)


# ---- what looks at networks ----


def test_what_lies_above_the_limit_is_no_loss():
    """The same currents with and without a limit: only without is anything clipped that the source has."""
    currents = torch.tensor([0.3, 0.9, 5.0, -2.0]).view(1, 1, 4, 1, 1).expand(8, -1, -1, -1, -1)
    for limit in (torch.tensor(0.4), None):
        op = Neuron(torch.tensor(0.4), 0.5, limit=limit)
        parts = split(op, currents, op.run(currents[0]), 8)
        lost = parts.clipping.flatten()
        assert lost.tolist() == pytest.approx([0, 0, 0, 0] if limit is not None else [0, -0.5, -4.6, 0])
        assert parts.saturated.flatten().tolist() == [False, limit is None, limit is None, False]
        total = parts.unevenness + parts.quantization + parts.clipping + parts.inherited
        assert torch.allclose(total, parts.output - parts.source)


def test_a_full_scale_that_is_the_limit_but_for_rounding_is_no_loss():
    """Limits whose seventh, seven times, is one ulp less: a source at the limit is not above what can be sent."""
    limit = torch.linspace(1, 6, 51)
    ratio = limit / (limit / 7)
    ratio = ratio[ratio > 7]
    assert len(ratio) > 1
    op = Neuron(torch.ones(()), limit=ratio, spikes=Amplitudes(3))
    currents = torch.full((4, 1, len(ratio), 1, 1), 9.0)
    assert not bool(split(op, currents, op.run(currents[0]), 4).saturated.any())


def test_verify_finds_no_clipping_at_the_limits():
    model, x = clipped(6.0), images(32, 8, seed=4)
    snn = convert(model, CALIBRATION, "phased", timesteps=32)
    layers = s_resnet.verify(snn, [(x, torch.arange(32) % 5)], timesteps=32).layers
    assert len(layers) == 3
    for layer in layers:
        assert layer.errors["clipping"] < 0.01 and not layer.saturated


def test_the_leaky_rival_keeps_the_limit():
    graph = trace(clipped(6.0), images(2, 8))
    leaky = next(rival.graph for rival in rivals(graph, 3) if "leaky" in rival.note)
    x = torch.tensor([-1.0, 2.0, 9.0]).expand(8, 3).view(1, 8, 3, 1)
    ops_of = [node.op for node in leaky.nodes if type(node.op).__name__ == "_LeakyReLU"]
    assert len(ops_of) == 3
    assert torch.allclose(ops_of[0].run(x)[0, 0, :, 0], torch.tensor([-0.1, 2.0, 6.0]))


def test_quantized_activations_start_at_the_limit():
    module = QCFSModule(clipped(EACH), images(2, 8), 4)
    assert {float(value.detach()) for value in module.learned_thresholds().values()} == {6.0}


# ---- whole networks ----


def test_mobilenet_v2_with_its_linear_bottlenecks():
    """Depthwise convolutions with ReLU6, and sums of convolutions that no activation follows."""
    whole = randomized(torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25))
    x, calibration = images(16, 32, seed=4), images(32, 32, seed=6)
    graph = trace(whole, x[:2])
    assert [float(node.op.limit) for node in graph.nodes if isinstance(node.op, ops.ReLU)] == [6.0] * 35
    with torch.no_grad():
        assert torch.allclose(graph.run(x), whole(x), 1e-4, 1e-4)
        snn = convert(whole, [calibration], "phased", timesteps=8)
        check_range(snn, 6.0)
        assert torch.allclose(snn.run(x), whole(x), 1e-3, 1e-3) and snn(x, 8).isfinite().all()
        # All of them with random weights amplify any difference; the first half does not.
        half = nn.Sequential(*whole.features[:8], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        expected = half(x)
        snn = convert(half, [calibration], "multilevel", timesteps=16)
        assert float((snn(x, 16) - expected).norm() / (expected - expected.mean(0)).norm()) < 0.1


def photographs(part, every):
    """CIFAR-10 images as the checkpoints want them, and their classes."""
    files = sorted((FIXTURES / "cifar10" / part).glob("*/*.png"))[::every]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    names = sorted({file.parent.name for file in files})
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1), labels


@needs_fixtures
def test_a_resnet20_clipped_at_its_99th_percentiles(monkeypatch):
    """Its oracle is the checkpoint's own forward, with F.relu replaced call by call."""
    model = s_resnet.load_checkpoint(FIXTURES / "checkpoints" / "resnet20-12fca82f.th").model
    (calibration, _), (x, labels) = photographs("train", 32), photographs("test", 5)
    graph = trace(model, calibration)
    names = [node.name for node in graph.nodes if isinstance(node.op, ops.ReLU)]
    scales = calibrate(graph, [calibration], 99.0).scales
    plain, limits, relu = graph.run(x), iter([scales[name] for name in names]), F.relu
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "relu", lambda x: relu(x).clamp(max=next(limits)))
        ann = model(x)
    assert next(limits, None) is None
    ops_of = {name: ops.ReLU(torch.tensor(scales[name])) for name in names}
    graph = replace(graph, nodes=tuple(replace(node, op=ops_of.get(node.name, node.op)) for node in graph.nodes))
    assert torch.allclose(graph.run(x), ann, 1e-4, 1e-4)
    snn = convert(graph, [calibration], "phased", timesteps=256)
    answer = closed_form(snn, x, 256).outputs[-1]
    assert len(x) == 100 and float((answer - ann).norm() / (plain - ann).norm()) < 0.2
    assert float((answer.argmax(1) == ann.argmax(1)).float().mean()) > 0.98
    assert abs(int((answer.argmax(1) == labels).sum()) - int((ann.argmax(1) == labels).sum())) <= 2
