"""Synapses refitted by least squares, against patches cut by hand and systems solved by numpy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images
from torch import nn

from s_resnet import RECIPES, Graph, calibrate, trace
from s_resnet.conversion import Context, least_squares
from s_resnet.conversion.layerwise import fit_layers
from s_resnet.conversion.least_squares import PENALTIES
from s_resnet.conversion.passes import attach_readout, calibrate_neurons, fit_thresholds, fold_batchnorm, relu_to_neuron
from s_resnet.graph import Neuron, Node
from s_resnet.graph.forms import synapse
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear, SpikingWeights


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CONVS = {
    "plain": {"padding": (1, 1)},
    "strided": {"stride": (2, 1)},
    "dilated": {"dilation": (1, 2), "padding": (0, 2)},
    "grouped": {"groups": 2, "padding": (1, 0)},
    "gain": {"spiking": SpikingWeights(gain=1.25)},
    "spiking weight": {"spiking": SpikingWeights(random(4, 4, 3, 2, seed=7))},
}


def conv(name):
    settings = dict(CONVS[name])
    return Conv2d(random(4, 4 // settings.get("groups", 1), 3, 2, seed=1), random(4, seed=2), **settings)


def patches(op, x):
    """Per group, what every output place of every image sees, ``[B, places, K]``, cut out one by one."""
    (sy, sx), (py, px), (dy, dx) = op.stride, op.padding, op.dilation
    kh, kw = op.weight.shape[2:]
    padded = np.pad(x.double().numpy(), ((0, 0), (0, 0), (py, py), (px, px)))
    high = (padded.shape[2] - dy * (kh - 1) - 1) // sy + 1
    wide = (padded.shape[3] - dx * (kw - 1) - 1) // sx + 1
    cut = [
        padded[:, :, i * sy : i * sy + dy * kh : dy, j * sx : j * sx + dx * kw : dx][:, :, :kh, :kw]
        for i, j in itertools.product(range(high), range(wide))
    ]
    seen = np.stack(cut, 1)  # [B, places, C, kh, kw]
    return [part.reshape(*part.shape[:2], -1) for part in np.split(seen, op.groups, axis=2)]


def refit(op, x, wanted, size=1000):
    """In parts of so many images."""
    return least_squares.refit(op, zip(x.split(size), wanted.split(size), strict=True), len(x))


def by_numpy(weight, seen, lacking):
    """The best change of ``weight`` ``[G, O, K]`` for ``seen`` ``[B, P, K]``, ``lacking`` ``[B, P, O]`` per group."""
    kept = np.arange(len(seen[0])) % 8 != 0
    variance = [s[kept].reshape(-1, s.shape[2]).var(0).mean() for s in seen]

    def solve(penalty):
        changes = []
        for s, y, v in zip(seen, lacking, variance, strict=True):
            a, b = s[kept].reshape(-1, s.shape[2]), y[kept].reshape(-1, y.shape[2])
            ridge = np.sqrt(penalty * v * len(a)) * np.eye(a.shape[1])
            stacked = np.concatenate([a - a.mean(0), ridge]), np.concatenate([b - b.mean(0), 0 * ridge[:, :1] @ b[:1]])
            changes.append(np.linalg.lstsq(*stacked, rcond=None)[0])
        return changes

    def error(changes):
        left = [y[~kept] - s[~kept] @ c for s, y, c in zip(seen, lacking, changes, strict=True)]
        return sum(((e - e.mean((0, 1))) ** 2).sum() for e in left)

    nothing = [np.zeros((s.shape[2], y.shape[2])) for s, y in zip(seen, lacking, strict=True)]
    tried = [nothing, *map(solve, PENALTIES)]
    best = min(tried, key=error)
    return np.stack([w + c.T for w, c in zip(weight, best, strict=True)]), error(best) < error(nothing)


def case(op, noise=0.5, images=24):
    """Inputs, and what is wanted of them: another synapse's answer, with noise on what it is computed from."""
    clean = random(images, *((4, 6, 7) if isinstance(op, Conv2d) else (12,)), seed=3).relu()
    x = clean + noise * random(*clean.shape, seed=4)
    return x, synapse(op).run(clean) + 3.0


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_a_convolution_is_what_numpy_finds_on_patches_cut_by_hand(name, noise):
    op = conv(name)
    x, wanted = case(op, noise)
    lacking = (wanted - synapse(op).run(x)).double().numpy()
    lacking = lacking.reshape(*lacking.shape[:2], -1).transpose(0, 2, 1)
    weight = synapse(op).weight.double().numpy().reshape(op.groups, 4 // op.groups, -1)
    expected, better = by_numpy(weight, patches(op, x), np.split(lacking, op.groups, axis=2))
    got = refit(op, x, wanted)
    assert better and got.spiking.gain == 1.0 and torch.equal(got.weight, op.weight) and got.bias is op.bias
    np.testing.assert_allclose(got.spiking.weight.numpy(), expected.reshape(op.weight.shape), rtol=2e-4, atol=2e-4)


def test_a_linear_layer_is_what_numpy_finds():
    op = Linear(random(5, 12, seed=1), None, SpikingWeights(gain=0.5))
    x, wanted = case(op, images=64)
    lacking = (wanted - synapse(op).run(x)).double().numpy()[:, None]
    expected, better = by_numpy(0.5 * op.weight.double().numpy()[None], [x.double().numpy()[:, None]], [lacking])
    got = refit(op, x, wanted)
    assert better and got.spiking.gain == 1.0
    np.testing.assert_allclose(got.spiking.weight.numpy(), expected[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("size", [1, 7])
def test_images_in_parts_are_the_same_images(monkeypatch, name, size):
    op = conv(name)
    x, wanted = case(op)
    whole = refit(op, x, wanted)
    monkeypatch.setattr(least_squares, "ROOM", 1)
    torch.testing.assert_close(refit(op, x, wanted, size).spiking.weight, whole.spiking.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", [12, 24, 27, 28, 40, 60, 200])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_fewer_places_than_weights_are_as_many_equations(monkeypatch, kind, images):
    """24 weights per output: 10 to 175 images are learned from, of one place each; 2 to 25 are kept apart."""
    op = conv("plain") if kind == "conv" else Linear(random(5, 24, seed=1), random(5, seed=2))
    op = replace(op, padding=(0, 0)) if kind == "conv" else op
    clean = random(images, *((4, 3, 2) if kind == "conv" else (24,)), seed=3).relu()
    x = clean + 0.3 * random(*clean.shape, seed=4)
    wanted = op.run(clean) + 3.0
    systems, plain = [], torch.linalg.cholesky_ex

    def cholesky(system):
        systems.append(system.shape)
        return plain(system)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", cholesky)
    got = refit(op, x, wanted, 5)
    lacking = (wanted - op.run(x)).double().numpy().reshape(images, 1, -1)
    expected, better = by_numpy(op.weight.double().numpy().reshape(1, len(op.weight), -1), [
        x.double().numpy().reshape(images, 1, 24)
    ], [lacking])  # fmt: skip
    assert (got is not op) == better
    weight = op.weight if got is op else got.spiking.weight
    np.testing.assert_allclose(weight.numpy(), expected.reshape(op.weight.shape), rtol=2e-3, atol=2e-4)
    assert {shape[-1] for shape in systems} == {min(24, images - -(-images // 8))}


def test_of_very_many_places_a_grid_is_looked_at_that_differs_from_image_to_image(monkeypatch):
    monkeypatch.setattr(least_squares, "ENOUGH", 12)  # 40 images of 6 x 8 places, 24 weights: every second place
    op = conv("grouped")
    op = replace(op, weight=random(4, 2, 3, 3, seed=1), padding=(1, 1))
    clean = random(40, 4, 6, 8, seed=3).relu()
    x = clean + 0.5 * random(*clean.shape, seed=4)
    wanted = op.run(clean) + 3.0
    lacking = (wanted - op.run(x)).double().numpy().reshape(40, 4, 6, 8).transpose(0, 2, 3, 1)
    offset = [(i + i // 8) % 4 for i in range(40)]
    assert set(offset[::8]) == {0, 1, 2, 3} == set(offset[1:8])

    def some(value):  # [B, 6, 8, n]
        return np.stack([each[o // 2 :: 2, o % 2 :: 2].reshape(12, -1) for each, o in zip(value, offset, strict=True)])

    seen = [some(part.reshape(40, 6, 8, -1)) for part in patches(op, x)]
    weight = op.weight.double().numpy().reshape(2, 2, -1)
    expected, better = by_numpy(weight, seen, np.split(some(lacking), 2, axis=2))
    for size in (40, 3):
        got = refit(op, x, wanted, size)
        np.testing.assert_allclose(got.spiking.weight.numpy(), expected.reshape(op.weight.shape), rtol=2e-3, atol=2e-4)
    assert better


def test_weights_that_are_known_are_found():
    op, other = conv("plain"), replace(conv("plain"), weight=random(4, 4, 3, 2, seed=9))
    x = random(64, 4, 8, 8, seed=3)
    got = refit(op, x, other.run(x) - 2.0)  # the constant is for the neuron's correction
    assert torch.allclose(got.spiking.weight, other.weight, atol=0.02)
    assert not torch.allclose(op.weight, other.weight, atol=0.5)


@pytest.mark.parametrize("op", [conv("plain"), Linear(random(5, 12), random(5))], ids=["conv", "linear"])
def test_what_lacks_nothing_or_nothing_that_can_be_learned_stays_as_it_is(op):
    x, _ = case(op)
    assert refit(op, x, op.run(x)) is op
    assert refit(op, x, op.run(x) + 1.0) is op  # a constant
    assert refit(op, 0 * x, op.run(x)) is op  # silent inputs
    assert refit(op, x[:1], op.run(x[:1]) + x[:1].mean()) is op  # one image: none is left to learn from
    few = x[:9]
    assert refit(op, few, op.run(few) + random(*op.run(few).shape, seed=5)) is op  # noise is not learned


# ---- which layers, and towards what ----


def test_a_branch_makes_up_for_what_the_other_inputs_of_its_neurons_lack():
    """Two neuron layers; the second sums a convolution, another that comes later, and the first itself."""
    neuron = Neuron(torch.tensor(1.0), initial_potential=0.5, schedule="phased")
    a, b, c = (Conv2d(random(3, 3, 1, 1, seed=seed), random(3, seed=seed + 3)) for seed in (1, 2, 3))
    graph = Graph(
        (
            Node("x", Input(), ()),
            Node("a", a, ("x",)),
            Node("n1", neuron, ("a",)),
            Node("b", b, ("n1",)),
            Node("c", c, ("n1",)),
            Node("n2", neuron, ("b", "n1", "c")),
            Node("flat", Flatten(), ("n2",)),
            Node("head", Linear(random(2, 12), None), ("flat",)),
        )
    )
    x, seen = random(5, 3, 2, 2, seed=8), {}

    def visit(node, parts):
        return node.op

    def record(node, parts):
        ((seen[node.name]),) = parts
        return replace(node.op, weight=node.op.weight, spiking=SpikingWeights(0.5 * node.op.weight))

    fit_layers(graph, x, 4, visit, record)
    n1 = a.run(x).relu()  # the source's
    r1 = torch.floor(0.5 + 4 * F.conv2d(x, 0.5 * a.weight, a.bias)).clamp(0, 4) / 4
    torch.testing.assert_close(seen["a"], (x, a.run(x)))
    torch.testing.assert_close(seen["b"], (r1, b.run(n1) + n1 - r1))
    rb = F.conv2d(r1, 0.5 * b.weight, b.bias)
    torch.testing.assert_close(seen["c"], (r1, c.run(n1) + (n1 - r1) + (b.run(n1) - rb)))
    assert seen.keys() == {"a", "b", "c"}  # no neuron layer reads the head, so that none would correct its mean


def body(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    x = F.relu(s.bn2(s.conv2(x)) + x)
    return s.head(F.relu(s.conv4(x) + s.short(x)))


@pytest.fixture(scope="module")
def given():
    more = {"short": nn.Conv2d(8, 8, 1), "conv4": nn.Conv2d(8, 8, 3, padding=1)}
    x = images(72, 16, seed=3)
    graph = trace(Net(body, **more), x)
    return graph, calibrate(graph, [x], 99.9, 0, False, True)


@pytest.mark.parametrize("schedule", ["phased", "lagged"])
def test_fitted_synapses_bring_the_network_closer_to_its_source_on_other_images(given, schedule):
    graph, calibration = given
    graph = relu_to_neuron(
        fold_batchnorm(graph, Context(calibration)), Context(calibration), initial_potential=0.5, schedule=schedule
    )
    graph = fit_thresholds(attach_readout(graph, Context(calibration)), Context(calibration, 4))
    x = images(64, 16, seed=11)
    fitted = [calibrate_neurons(graph, Context(calibration, 4), weights=weights) for weights in (False, True)]
    errors = [float((snn(x, 4) - graph.run(x)).pow(2).mean()) for snn in fitted]
    assert errors[1] < 0.95 * errors[0]
    assert torch.equal(fitted[1].run(x), graph.run(x))  # the source network is still there
    changed = {node.name for node in fitted[1].nodes if getattr(node.op, "spiking", None) is not None}
    synapses = {node.name: node for node in graph.nodes if isinstance(node.op, Conv2d | Linear)}
    assert changed and all(not set(synapses[name].inputs) <= graph.static for name in changed)
    again = calibrate_neurons(graph, Context(calibration, 4), weights=True)
    assert torch.equal(again(x, 4), fitted[1](x, 4))


def test_every_recipe_for_few_steps_fits_its_synapses():
    fitted = [recipe for recipe in RECIPES.values() if recipe.fits]
    assert len(fitted) == 8
    for recipe in fitted:
        (step,) = (step for step in recipe.steps if step.name == "calibrate_neurons")
        assert step.settings["weights"] is (recipe.name != "calibrated-currents")


def test_sums_that_rounding_makes_indefinite_stop_at_the_last_penalty_that_lifts_them():
    """Of few images float32 sums may be off by more than the weaker penalties."""
    gram, right = torch.diag(torch.tensor([1.0, 1.0, -0.05], dtype=torch.float64))[None], torch.zeros(1, 3, 2).double()
    right[0, :2] = random(2, 2).double()
    *_, found = least_squares._Many(gram, right).solutions()
    expected = F.pad(right[0, :2] / (1 + 0.1 * 1.95 / 3), (0, 0, 0, 1))  # 0.1 of the mean variance; 0.01 is too little
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(("count", "side"), [(32, 6), (4000, 2)], ids=["few positions", "many"])
def test_a_group_whose_inputs_do_not_vary_tells_nothing(count, side):
    """A channel at the limit of its ReLU: what is left of it by rounding is not fitted, and the others are."""
    op = Conv2d(random(3, 1, side, side, seed=1), None, groups=3)
    x, change = random(count, 3, side, side).abs(), torch.tensor([0.5, 0.0, -0.25]).view(3, 1, 1, 1)
    x[:, 1] = 5.9 + 1e-7 * random(count, side, side, seed=4)
    wanted = replace(op, weight=op.weight + change).run(x)
    wanted[:, 1] += random(count, 1, 1, seed=5)
    got = synapse(refit(op, x, wanted))
    assert torch.equal(got.weight[1], op.weight[1])
    if side == 2:
        assert torch.allclose(got.weight, op.weight + change, atol=1e-2)
    assert not torch.equal(got.weight[0], op.weight[0])


def test_an_error_that_is_no_number_ends_the_search(monkeypatch):
    monkeypatch.setattr(least_squares._Many, "error", lambda *_: float("nan"))
    x = random(400, 4, 6, 5)
    assert refit(conv("plain"), x, F.relu(conv("plain").run(x))).spiking is None
