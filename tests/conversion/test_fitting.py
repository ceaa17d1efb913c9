"""The passes that fit to calibration images, against searches and sums in plain numpy; and normalize after them."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images
from test_schedules import dyadic, recorded
from torch import nn

from s_resnet import Graph, calibrate, trace
from s_resnet.conversion import Context
from s_resnet.conversion.calibrate import Calibration
from s_resnet.conversion.passes import (
    attach_readout,
    calibrate_neurons,
    fit_readout,
    fit_thresholds,
    fold_batchnorm,
    move_maxpool,
    normalize,
    relu_to_neuron,
)
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph import Neuron, Node, Readout, SpikingMaxPool2d, parts
from s_resnet.graph.alphabet import Amplitudes, power_of_two
from s_resnet.graph.ops import AvgPool2d, Conv2d, Flatten, Input, Linear, SpikingWeights

fitting = importlib.import_module(
    "s_resnet.conversion.passes.calibrate_neurons"
)  # the package has the function under this name
readouts = importlib.import_module("s_resnet.conversion.passes.fit_readout")
WINDOWED = {"streaming": {}, "lagged": {"schedule": "lagged"}, "phased": {"schedule": "phased"}}
ALPHABETS = {
    **WINDOWED,
    "signed": {"schedule": "lagged", "spikes": "signed"},
    "levels": {"spikes": "signed", "amplitudes": 3},
}
NEURONS = {
    **WINDOWED,
    "signed": {"schedule": "lagged", "signed": True},
    "levels": {"signed": True, "levels": 3},
}  # as they are


def body(s, x):
    x = F.max_pool2d(F.relu(s.bn1(s.conv1(x))), 2)
    x = F.relu(s.bn2(s.conv2(x)) + x)
    x = F.max_pool2d(F.relu(s.bn3(s.conv3(x)) + s.short(x)), 2)
    return s.head(F.relu(s.conv4(x) + x))


def model():
    more = {"conv3": nn.Conv2d(8, 8, 3, padding=1), "bn3": nn.BatchNorm2d(8), "short": nn.Conv2d(8, 8, 1)}
    return Net(body, **more, conv4=nn.Conv2d(8, 8, 3, padding=1))


@pytest.fixture(scope="module")
def given():
    """The analog graph of a residual network with both kinds of shortcut and of pools, and 40 images to fit to."""
    x = images(40, 16, seed=3)
    graph = trace(model(), x)
    calibration = calibrate(graph, [x], 99.9, 0, False, True)
    assert calibration.fitting.shape == x.shape
    return graph, calibration


def spiking(given, **neuron):
    """Neurons that start at 1/2, up to the fitting passes."""
    graph, calibration = given
    graph = relu_to_neuron(
        fold_batchnorm(graph, Context(calibration)), Context(calibration), initial_potential=0.5, **neuron
    )
    return attach_readout(move_maxpool(graph, Context(calibration)), Context(calibration))


def activations(graph, x):
    return {name: value.clone() for name, value in graph.activations(x)}


def same(a, b):
    """Two graphs, tensor for tensor."""
    for old, new in zip(a.nodes, b.nodes, strict=True):
        assert (old.name, old.inputs, type(old.op)) == (new.name, new.inputs, type(new.op))
        assert parts.settings(old.op) == parts.settings(new.op), old.name
    assert a.tensors().keys() == b.tensors().keys()
    assert all(torch.equal(value, b.tensors()[name]) for name, value in a.tensors().items())
    return True


FITS = [fit_thresholds, calibrate_neurons, fit_readout]


@pytest.mark.parametrize("fit", FITS)
def test_without_images_there_is_nothing_to_fit_to(given, fit):
    graph = spiking(given)
    with pytest.raises(ConversionError, match=rf"^{fit.__name__}: got no calibration images.*calibration_batches"):
        fit(graph, Context(replace(given[1], fitting=None), 4))
    with pytest.raises(ConversionError, match=rf"^{fit.__name__}: got no T to fit to.*timesteps=16"):
        fit(graph, Context(given[1]))


@pytest.mark.parametrize("fit", FITS)
def test_a_network_without_neurons_is_given_back(given, fit):
    graph, calibration = given
    assert fit(graph, Context(calibration, 4)) is graph


@pytest.mark.parametrize("name", ["lagged", "phased", "levels"])
@pytest.mark.parametrize("fit", FITS)
def test_the_analog_run_stays_bit_for_bit_and_the_fit_is_the_same_again(given, fit, name):
    graph, (_, calibration), x = spiking(given, **ALPHABETS[name]), given, images(4, 16, seed=8)
    settings = {"time_indexed": True} if fit is calibrate_neurons else {}
    fitted = fit(graph, Context(calibration, 4), **settings)
    assert fitted is not graph and torch.equal(fitted.run(x), graph.run(x))
    assert not torch.equal(fitted(x, 4), graph(x, 4))
    assert same(fitted, fit(graph, Context(calibration, 4), **settings))


# ---- fit_thresholds ----

GRID = np.logspace(-1, 0, 80)  # of the largest activation: the full scales that are tried


def errors_by_search(values, timesteps, most, start):
    """The mean squared error of the quantizer at every full scale of the grid, over the activations themselves."""
    out = []
    for scale in GRID * values.max():
        step = scale / (timesteps * most)
        quantized = step * np.clip(np.floor(values / step + start), 0, timesteps * most)
        out.append(float(((quantized - values) ** 2).mean()))
    return np.array(out)


@pytest.mark.parametrize(("timesteps", "levels", "start"), [(4, 1, 0.5), (16, 1, 0.5), (8, 1, 0.0), (2, 4, 0.5)])
def test_every_threshold_is_the_best_of_the_grid(given, timesteps, levels, start):
    """The pass looks at a histogram; by the activations themselves its choice is as good as the best, nearly."""
    graph, calibration = given
    graph = relu_to_neuron(
        fold_batchnorm(graph, Context(calibration)), Context(calibration), initial_potential=start, amplitudes=levels
    )
    fitted = fit_thresholds(graph, Context(calibration, timesteps))
    values, most = activations(graph, calibration.fitting), 2**levels - 1
    for node in fitted.neurons:
        assert node.op.threshold.shape == (8,)
        for channel in (0, 3, 7):
            active = values[node.name][:, channel].double().numpy().ravel()
            errors = errors_by_search(active, timesteps, most, start)
            full = float(node.op.threshold[channel]) * most / active.max()
            chosen = int(np.abs(GRID - full).argmin())
            assert GRID[chosen] == pytest.approx(full, rel=1e-4)
            assert errors[chosen] <= 1.01 * errors.min(), (node.name, channel)
            assert abs(chosen - int(errors.argmin())) <= 3
            assert 0.1 * errors.max() > errors.min()  # the choice matters


def test_on_the_bins_themselves_it_is_the_best_exactly():
    """Activations at the middles of the 1,024 bins, where the histogram loses nothing."""
    rng = np.random.default_rng(0)
    middles = (np.minimum(rng.exponential(90, 4000).astype(int), 1022) + 0.5) / 1024
    values = np.concatenate([middles, [1.0, -3.0, 0.0]])  # the largest is 1, and falls in the last bin
    x = torch.from_numpy(values).view(-1, 1, 1, 1)
    nodes = (Node("input", Input(), ()), Node("n", Neuron(torch.tensor(9.0), 0.5), ("input",)))
    fitted = fit_thresholds(Graph(nodes), Context(Calibration({}, 100, 1, "data", fitting=x), 5))
    kept = np.concatenate([middles, [1023.5 / 1024]])
    errors = []
    for scale in GRID:
        quantized = scale / 5 * np.clip(np.floor(5 * kept / scale + 0.5), 0, 5)
        errors.append(((quantized - kept) ** 2).sum())
    assert fitted["n"].op.threshold.item() == pytest.approx(GRID[int(np.argmin(errors))], rel=1e-12)


def test_dead_and_almost_dead_channels_get_a_threshold_from_the_others():
    x = images(6, 8, channels=5, seed=4).abs()
    x[:, 1] = -1.0  # never active
    x[:, 2] *= 1e-9  # noise
    nodes = (Node("input", Input(), ()), Node("n", Neuron(torch.ones(()), 0.5, spikes=Amplitudes(2)), ("input",)))
    calibration = Calibration({}, 100, 1, "data", fitting=x)
    threshold = fit_thresholds(Graph(nodes), Context(calibration, 4))["n"].op.threshold * 3
    alive = sorted(threshold[[0, 2, 3, 4]].tolist())
    noise = float(GRID.min() * x[:, 2].max())
    assert threshold[1] == pytest.approx(sorted([noise, *threshold[[0, 3, 4]].tolist()])[1], rel=1e-6)  # their median
    assert threshold[2] == pytest.approx(1e-3 * float(threshold[1]), rel=1e-6) and alive[0] > noise
    silent = fit_thresholds(Graph(nodes), Context(replace(calibration, fitting=-x), 4))["n"].op.threshold
    assert silent.tolist() == [pytest.approx(1 / 3)] * 5


# ---- calibrate_neurons ----


def channel_means(value):
    return value.transpose(0, 1).flatten(1).mean(1)


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_channels_mean_output_is_the_anns(monkeypatch, given, name):
    """In a simulation spike by spike, of the layers as they have become, on the images that were fitted to."""
    (_, calibration), steps = given, 8
    before = fit_thresholds(spiking(given, **ALPHABETS[name]), Context(calibration, steps))
    after = calibrate_neurons(before, Context(calibration, steps))
    want, apart = activations(before, calibration.fitting), {}
    for graph in (before, after):
        trains, _ = recorded(
            monkeypatch, graph, calibration.fitting, steps, **({} if graph.windowed else {"chunk": steps})
        )
        for node in graph.neurons:
            rate = channel_means(trains[node.name].float().mean(0)) * node.op.threshold
            target = channel_means(want[node.name])
            apart.setdefault(node.name, []).append(float((rate - target).abs().max() / target.mean()))
    uncorrected, corrected = (max(errors) for errors in zip(*apart.values(), strict=True))
    assert corrected < 0.5 * uncorrected and corrected < (0.06 if name == "streaming" else 0.02), apart


@pytest.mark.parametrize("name", ALPHABETS)
def test_a_residual_sum_is_corrected_once(given, name):
    """By the one neuron that integrates both branches; nothing else changes."""
    graph, (_, calibration) = spiking(given, **ALPHABETS[name]), given
    fitted = calibrate_neurons(graph, Context(calibration, 4))
    for node in fitted.neurons:
        assert node.op.correction.shape == (8,) and bool((node.op.correction != 0).all())
    assert [len(node.inputs) for node in fitted.neurons] == [1, 2, 2, 2]

    def off(op):
        return replace(op, correction=None) if isinstance(op, Neuron) else op

    assert same(graph, replace(fitted, nodes=tuple(replace(n, op=off(n.op)) for n in fitted.nodes)))


def test_a_correction_by_step_has_a_row_per_step(given):
    graph, (_, calibration) = spiking(given, schedule="lagged"), given
    fitted = calibrate_neurons(graph, Context(calibration, 5), time_indexed=True)
    assert [tuple(node.op.correction.shape) for node in fitted.neurons] == [(8,), (5, 8), (5, 8), (5, 8)]
    counted = calibrate_neurons(spiking(given, schedule="phased"), Context(calibration, 5), time_indexed=True)
    assert all(node.op.correction.shape == (8,) for node in counted.neurons)  # where only counts matter


def two_layers(correction=None):
    """A constant stem, and a layer behind it, 3 channels each."""
    weight = dyadic(1, 3, 3, 1, 1, scale=8) + 0.5
    nodes = (
        Node("input", Input(), ()),
        Node("first", Neuron(torch.tensor(0.75), 0.5), ("input",)),
        Node("conv", Conv2d(weight, dyadic(2, 3)), ("first",)),
        Node("second", Neuron(torch.tensor([0.5, 1.0, 2.0]), 0.5, correction=correction), ("conv",)),
        Node("flat", Flatten(), ("second",)),
        Node("readout", Readout(torch.ones(())), ("flat",)),
    )
    return Graph(nodes).validate(), dyadic(3, 30, 3, 4, 4, scale=8)


def spikes_by_loop(v, currents, theta):
    out = []
    for now in currents:
        v = v + now
        out.append((v >= theta).double())
        v = v - theta * out[-1]
    return torch.stack(out)


@pytest.mark.parametrize("before", [None, torch.tensor([0.25, -0.125, 0.5])], ids=["none", "some"])
@pytest.mark.parametrize("time_indexed", [False, True])
def test_one_sweep_by_hand(monkeypatch, before, time_indexed):
    """b += (E[a] - E[r]) / 2, or b[t] += (E[a] - E[s[t]]) / 2, on what the corrected layer before really sends."""
    graph, x = two_layers(before)
    monkeypatch.setattr(fitting, "SWEEPS", 1)
    calibration = Calibration({}, 100, 30, "data", fitting=x)
    fitted = calibrate_neurons(graph, Context(calibration, 6), time_indexed=time_indexed)
    x, shape, theta = x.double(), (3, 1, 1), torch.tensor(0.75)
    first = theta * spikes_by_loop(0.5 * theta, x.expand(6, *x.shape), theta)
    correction = 0.5 * (channel_means(x.relu()) - channel_means(first.mean(0)))
    assert torch.allclose(fitted["first"].op.correction.double(), correction, atol=1e-6)
    now = fitted["first"].op.correction.double().view(shape)
    first = theta * spikes_by_loop(0.5 * theta, (x + now).expand(6, *x.shape), theta)
    weight, bias = graph["conv"].op.weight.double(), graph["conv"].op.bias.double()
    currents = torch.stack([F.conv2d(s, weight, bias) for s in first])
    start = torch.zeros(3) if before is None else before
    theta = torch.tensor([0.5, 1.0, 2.0]).view(shape).double()
    second = theta * spikes_by_loop(0.5 * theta, currents + start.view(shape), theta)
    target = channel_means(F.conv2d(x.relu(), weight, bias).relu())
    got = torch.stack([channel_means(s) for s in second]) if time_indexed else channel_means(second.mean(0))
    want = start + 0.5 * (target - got)
    assert want.shape == ((6, 3) if time_indexed else (3,))
    assert torch.allclose(fitted["second"].op.correction.double(), want, atol=1e-6)


# ---- fit_readout ----


def currents_of(monkeypatch, graph, x, steps):
    """What the classifier gives at every step, ``[T, B, N]``."""
    taken, plain = [], Readout.advance

    def advance(self, inputs, memory):
        taken.append(inputs[0])
        return plain(self, inputs, memory)

    with monkeypatch.context() as patched:
        patched.setattr(Readout, "advance", advance)
        (_,) = graph.stream(x, steps, None if graph.windowed else steps)
    return taken[0].double()


@pytest.mark.parametrize("name", ["streaming", "lagged", "signed", "levels"])
def test_the_weights_solve_the_constrained_least_squares(monkeypatch, given, name):
    """By the conditions of Karush, Kuhn and Tucker, on the problem as the docstring states it."""
    (_, calibration), steps = given, 9
    graph = fit_thresholds(spiking(given, **ALPHABETS[name]), Context(calibration, steps))
    readout = fit_readout(graph, Context(calibration, steps)).nodes[-1].op
    currents = currents_of(monkeypatch, graph, calibration.fitting, steps).numpy()
    logits = graph.run(calibration.fitting).double().numpy()
    x = (currents - currents.mean(1, keepdims=True)).reshape(steps, -1)
    y = (logits - logits.mean(0)).ravel()
    ridge = readouts.RIDGE * (x**2).sum() / steps
    gram, right = x @ x.T + ridge * np.eye(steps), x @ y + ridge / steps
    shares = readout.weights.double().numpy()
    assert readout.weights.shape == (steps,) and shares.sum() == pytest.approx(1) and shares.min() > 0
    # Only the shares are kept. The best point on their ray has to be the best point there is.
    w = shares * (right @ shares) / (shares @ gram @ shares)
    gradient = (gram @ w - right) / np.abs(right).max()
    least = readouts.LEAST / steps
    held = w < 1.5 * least
    assert np.abs(gradient[~held]).max() < 1e-5
    assert (gradient[held] > -1e-5).all()


def test_steps_that_are_worse_than_none_are_held_at_the_least():
    """Currents ``-z`` and ``z / 2``: without the limit, weights of about -1/2 and 1."""
    target = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first, second = readouts._weights(readouts._Sums.of(torch.stack([-target, target / 2]), target)).tolist()
    least = readouts.LEAST / 2
    # With x the size of z and r the ridge: x ((w / 2 - least) / 2 - 1 / 2) + r (w - 1 / 2) = 0.
    ridge = readouts.RIDGE * (1 + 0.25) / 2
    weight = (0.5 + 0.5 * least + 0.5 * ridge) / (0.25 + ridge)
    assert first == pytest.approx(least / (least + weight), rel=1e-5) and first + second == pytest.approx(1)


def test_constant_currents_weigh_alike():
    target = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    sums = readouts._Sums.of((0.5 * target + 1).expand(6, 50, 4).double(), target.double())
    weights = readouts._weights(sums).float()
    assert torch.allclose(weights, torch.full((6,), 1 / 6), atol=1e-6)
    readout = Readout(torch.tensor(2.0), weights=weights)
    plain = Readout(torch.tensor(2.0))
    answers = [op.advance([target.expand(6, 50, 4)], None)[0] for op in (readout, plain)]
    assert torch.allclose(*answers, atol=1e-6)


def test_one_image_tells_nothing_about_weights(given):
    graph, calibration = spiking(given), replace(given[1], fitting=given[1].fitting[:1])
    weights = fit_readout(graph, Context(calibration, 5)).nodes[-1].op.weights
    assert weights.tolist() == [pytest.approx(0.2)] * 5


def test_many_random_problems_are_solved():
    """Wherever the weights end, free ones have no gradient, held ones one that points below the limit."""
    rng, held = torch.Generator().manual_seed(3), 0
    for size in (1, 2, 7, 40):
        for _ in range(20):
            x = torch.randn(size, 60, generator=rng, dtype=torch.float64)
            x = x + torch.randn(1, 60, generator=rng, dtype=torch.float64)
            gram, right = x @ x.T, x @ torch.randn(60, generator=rng, dtype=torch.float64) + 5
            w = readouts._least_squares(gram, right, 0.01)
            gradient = gram @ w - right
            at_limit = w <= 0.01 + 1e-12
            assert w.min() >= 0.01 - 1e-12
            assert gradient[~at_limit].abs().max() < 1e-8 if bool((~at_limit).any()) else True
            assert gradient[at_limit].min() > -1e-8 if bool(at_limit.any()) else True
            held += int(at_limit.sum())
    assert held > 100


@pytest.mark.parametrize("name", ALPHABETS)
@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_answer_is_the_anns(given, name, weighted):
    (_, calibration), steps = given, 6
    graph = fit_thresholds(spiking(given, **ALPHABETS[name]), Context(calibration, steps))
    fitted = fit_readout(graph, Context(calibration, steps), weighted=weighted)
    readout = fitted.nodes[-1].op
    assert (readout.weights is None) == (not weighted or name == "phased")
    logits = graph.run(calibration.fitting)
    apart = [float((network(calibration.fitting, steps) - logits).mean(0).abs().max()) for network in (graph, fitted)]
    assert apart[1] < 1e-4 * float(logits.abs().max()) and apart[0] > 100 * apart[1]


def test_a_readout_that_counts_spikes_is_not_fitted(given):
    graph, calibration = given
    graph = attach_readout(
        relu_to_neuron(fold_batchnorm(graph, Context(calibration)), Context(calibration)),
        Context(calibration),
        "spikes",
        0.5,
    )
    assert fit_readout(graph, Context(calibration, 4)) is graph


# ---- normalize ----


def powers(seed, *shape):
    return 2.0 ** torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed))


def fitted_by_hand(steps, levels=1, signed=False, **neuron):
    """Thresholds by channel, powers of two; corrections, also by step; weights of spiking runs; a gate; a flat end."""

    def op(seed, channels, rows=None):
        correction = dyadic(seed, channels) if rows is None else dyadic(seed, rows, channels)
        spikes = power_of_two(levels, signed)
        return Neuron(powers(seed, channels), 0.5, spikes=spikes, correction=correction, **neuron)

    first, a1 = replace(op(1, 4), schedule="streaming"), dyadic(14, 6, 2, 3, 3)
    b = dyadic(18, 4, 4, 1, 1) + 0.25
    nodes = (
        Node("input", Input(), ()),
        Node("stem", Conv2d(dyadic(11, 4, 3, 3, 3), dyadic(12, 4), (1, 1), (1, 1)), ("input",)),
        Node("n0", first, ("stem",)),
        Node("a1", Conv2d(dyadic(13, 6, 2, 3, 3), None, (1, 1), (1, 1), (1, 1), 2, SpikingWeights(a1)), ("n0",)),
        Node("na", op(2, 6, steps), ("a1",)),
        Node("a2", Conv2d(dyadic(15, 4, 6, 3, 3), dyadic(16, 4), (1, 1), (1, 1)), ("na",)),
        Node("n1", op(3, 4), ("a2", "n0")),
        Node("gate", SpikingMaxPool2d((2, 2), (2, 2)), ("n1",)),
        Node("b", Conv2d(dyadic(17, 4, 4, 1, 1) + 0.25, None, spiking=SpikingWeights(b)), ("gate",)),
        Node("n2", op(4, 4, steps), ("b",)),
        Node("avg", AvgPool2d((2, 2), (2, 2)), ("n2",)),
        Node("flat", Flatten(), ("avg",)),
        Node("fc", Linear(dyadic(19, 5, 16), dyadic(20, 5), SpikingWeights(dyadic(21, 5, 16))), ("flat",)),
        Node("readout", Readout(torch.tensor(1.0), weights=torch.arange(1.0, 1 + steps), correction=dyadic(22, 5)),
             ("fc",)),
    )  # fmt: skip
    return Graph(nodes).validate()


@pytest.mark.parametrize("name", ALPHABETS)
def test_normalizing_keeps_every_spike_of_a_fitted_network(monkeypatch, name):
    steps, x = 6, dyadic(30, 3, 3, 8, 8, scale=8)
    graph = fitted_by_hand(steps, **NEURONS[name])
    result = normalize(graph, Context(Calibration({"fc": 4.0}, 100, 1, "data"))).validate()
    settings = {} if graph.windowed else {"chunk": steps}
    trains, chunk = recorded(monkeypatch, graph, x, steps, **settings)
    others, other = recorded(monkeypatch, result, x, steps, **settings)
    for neuron, train in trains.items():
        assert torch.equal(train.double(), others[neuron].double()), neuron
        assert train.abs().sum() > 0 and torch.equal(chunk.spikes[neuron], other.spikes[neuron])
    assert torch.equal(chunk.outputs, other.outputs) and chunk.outputs.std() > 0
    assert torch.equal(graph.run(x), result.run(x))
    for node in result.neurons:
        op = graph[node.name].op
        assert node.op.threshold.item() == 1 and torch.equal(node.op.scale, op.threshold)
        assert torch.equal(node.op.correction, op.correction / op.threshold)
    short = result["n1.shortcut"].op.weight
    assert torch.equal(short, graph["n0"].op.threshold / graph["n1"].op.threshold)


def test_normalizing_rescales_both_weights(given):
    graph = fitted_by_hand(4)
    result = normalize(graph, Context(Calibration({}, 100, 1, "data")))
    source, target = graph["n1"].op.threshold, graph["n2"].op.threshold
    for get in (lambda op: op.weight, lambda op: op.spiking.weight):
        want = get(graph["b"].op) * source.view(1, 4, 1, 1) / target.view(4, 1, 1, 1)
        assert torch.equal(get(result["b"].op), want)
    flat = graph["n2"].op.threshold.repeat_interleave(4)  # channel-major
    assert torch.equal(result["fc"].op.spiking.weight, graph["fc"].op.spiking.weight * flat)


def test_a_fitted_network_of_any_threshold_keeps_its_answers(given):
    """Not powers of two: the same up to rounding, so that hardly a spike moves."""
    _, calibration = given
    graph = calibrate_neurons(
        fit_thresholds(spiking(given), Context(calibration, 6)), Context(calibration, 6), time_indexed=True
    )
    graph = fit_readout(graph, Context(calibration, 6))
    result, x = normalize(graph, Context(calibration)), images(8, 16, seed=9)
    assert torch.allclose(result.run(x), graph.run(x), rtol=1e-4, atol=1e-5)
    assert float((result(x, 6) - graph(x, 6)).abs().mean() / graph(x, 6).abs().mean()) < 1e-3


def test_levels_out_of_range_are_refused(given):
    with pytest.raises(InvalidData, match="amplitudes, got 9; expected a whole number from 2 to 8"):
        spiking(given, amplitudes=9)
