"""The published methods: each by a trace on paper, and where SpikingJelly has it, answer for answer."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from conftest import images, randomized

import s_resnet
from s_resnet import Graph, trace
from s_resnet.conversion import PUBLISHED, Context, passes, recipe_named
from s_resnet.conversion.calibrate import Calibration
from s_resnet.errors import ConversionError
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.alphabet import Amplitudes, Differential
from s_resnet.graph.ops import AdaptiveAvgPool2d, Conv2d, Flatten, Input, Linear

iterated = importlib.import_module("s_resnet.conversion.passes.iterate_thresholds")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
balancing = importlib.import_module("balancing")
STEPS = 5


def chain(*thresholds, **neuron):
    """Layers of one channel, each sending its current on as it is; the answer is the mean over pixels."""
    one, nodes, last = torch.ones(1, 1, 1, 1), [Node("x", Input(), ())], "x"
    for number, threshold in enumerate(thresholds):
        nodes.append(Node(f"conv{number}", Conv2d(one, None), (last,)))
        last = f"layer{number}"
        nodes.append(Node(last, Neuron(torch.tensor([threshold]), **neuron), (f"conv{number}",)))
    nodes += [
        Node("pool", AdaptiveAvgPool2d((1, 1)), (last,)),
        Node("flat", Flatten(), ("pool",)),
        Node("fc", Linear(torch.ones(1, 1), None), ("flat",)),
        Node("readout", Readout(torch.ones(())), ("fc",)),
    ]
    return Graph(tuple(nodes))


def shown(pixels, timesteps=4):
    """A context with images of these pixels, one image per row."""
    x = torch.tensor(pixels).view(len(pixels), 1, 1, -1)
    return Context(Calibration({}, 100.0, len(x), "data", fitting=x), timesteps)


def layers(graph):
    return [node.op for node in graph.neurons]


# ---- the methods on paper ----


def test_half_a_grid_step_more_current():
    (layer,) = layers(passes.add_half_step(chain(2.0), Context(timesteps=4)))
    assert layer.correction.tolist() == [0.25]
    graph = passes.add_half_step(chain(1.0), Context(timesteps=4))
    # 0.4 + 0.125 at each step: 0.525, 1.05, 0.575, 1.1, so two spikes where 1.6 rounds down to one.
    assert graph(torch.full((1, 1, 1, 1), 0.4), 4).tolist() == [[0.5]]
    assert chain(1.0)(torch.full((1, 1, 1, 1), 0.4), 4).tolist() == [[0.25]]


def test_the_mean_that_is_lacking_becomes_a_bias_or_an_initial_potential():
    """0.6 in four steps is 0.6, 1.2, 0.8, 1.4: two spikes, so that 0.1 per step is lacking."""
    (layer,) = layers(passes.match_means(chain(1.0), shown([[0.6]])))
    torch.testing.assert_close(layer.correction, torch.tensor([0.1]))
    graph = passes.match_means(chain(1.0), shown([[0.6]]), potential=True)
    torch.testing.assert_close(layers(graph)[0].correction, torch.tensor([[0.4], [0.0], [0.0], [0.0]]))
    assert graph(torch.full((1, 1, 1, 1), 0.6), 4).tolist() == [[0.5]]  # 1.0, 0.6, 1.2, 0.8


def test_every_step_gets_its_bias_before_the_next_one():
    """Steps of 0.6 with half of what lacks: 0.6 + 0.3 no spike; 1.5 - 0.2 a spike; 0.9 + 0.3 a spike, 0.2 is left."""
    (layer,) = layers(passes.match_every_step(chain(1.0), shown([[0.6]], 3), sweeps=1))
    torch.testing.assert_close(layer.correction, torch.tensor([[0.3], [-0.2], [0.3]]))
    waiting = chain(1.0, 1.0, schedule="lagged")
    with pytest.raises(ConversionError, match=r"^match_every_step: got a layer that waits \(layer0\).*'streaming'"):
        passes.match_every_step(waiting, shown([[0.6]]))


def test_thresholds_are_balanced_in_the_clipped_network():
    """Pixels 8, 0, 0, 0: twice their mean is 4, and the second layer sees 4, 0, 0, 0. Then 16, 0, 0, 0: 4 + 6 = 10."""
    first = passes.balance_thresholds(chain(1.0, 1.0), shown([[8.0, 0, 0, 0]]), updates=1, batch=1)
    assert [layer.threshold.tolist() for layer in layers(first)] == [[4.0], [2.0]]
    both = shown([[8.0, 0, 0, 0], [16.0, 0, 0, 0]])
    second = passes.balance_thresholds(chain(1.0, 1.0), both, updates=2, batch=1)
    assert [layer.threshold.tolist() for layer in layers(second)] == [[10.0], [6.0]]  # 2 + 2 (10 - 2) / 4


@pytest.mark.parametrize(("timesteps", "unread"), [(9, 3), (6, 1), (3, 0)])
def test_the_readout_waits_for_spikes_to_arrive(timesteps, unread):
    """Mean 2 fills half of 4 in one step; clipped to 4 it is 1, which takes two steps."""
    graph = chain(4.0, 4.0, initial_potential=0.5)
    found = passes.delay_readout(graph, shown([[8.0, 0, 0, 0]], timesteps)).nodes[-1].op
    assert (found.weights < 1e-5).tolist() == [True] * unread + [False] * (timesteps - unread)
    answers = found.advance([torch.arange(timesteps, dtype=torch.float32).view(-1, 1, 1)], None)[0]
    read = torch.arange(unread, timesteps, dtype=torch.float32)
    torch.testing.assert_close(answers[-1, 0, 0], read.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "levels"), [(0.0, 8), (-1.0, 8), (1.0, 4), (-0.5, 60)])
def test_the_fixed_point_is_the_scale_with_the_least_error(mean, levels):
    """The error of rounding to so many levels, by a sum over a fine grid of a normal current."""
    x = torch.linspace(mean - 8, mean + 8, 40001, dtype=torch.float64)
    density = torch.exp(-((x - mean) ** 2) / 2)

    def error(full):
        sent = torch.floor(x / full * levels + 0.5).clamp(0, levels) * full / levels
        return float(density @ (sent - x.clamp_min(0)) ** 2)

    found = float(iterated.full_scale(*torch.tensor([[mean], [1.0]], dtype=torch.float64), levels))
    assert error(found) <= min(error(found * factor) for factor in (0.9, 0.97, 1.03, 1.1))
    assert float(iterated.growth(*torch.tensor([[mean], [1.0], [found]], dtype=torch.float64), levels)) == (
        pytest.approx(1, abs=1e-6)
    )


@pytest.mark.parametrize(("spikes", "share"), [(Amplitudes(3, signed=True), 7), (Differential(3), 4)])
def test_amplitudes_share_the_full_scale(spikes, share):
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    (layer,) = layers(passes.iterate_thresholds(chain(1.0, spikes=spikes), shown(x.tolist()), levels=8))
    mean, deviation = x.double().mean()[None], x.double().std(correction=0)[None]
    expected = iterated.full_scale(mean, deviation, 8) / share
    torch.testing.assert_close(layer.threshold, expected.float())
    silent = passes.iterate_thresholds(chain(1.0, spikes=spikes), shown([[-9.0, -9.0]]))
    assert torch.isfinite(layers(silent)[0].threshold).all() and layers(silent)[0].threshold > 0


def test_peaks_are_the_largest_activations_of_each_channel():
    graph, x = trace(randomized(s_resnet.models.CifarResNet(8, width=4)), images(12, 8)), images(12, 8)
    calibration = s_resnet.calibrate(graph, [x[:8], x[8:]])
    spiking = passes.relu_to_neuron(passes.fold_batchnorm(graph, Context(calibration)), Context(calibration))
    peaks = passes.peak_thresholds(spiking, Context(Calibration({}, 100.0, 12, "data", fitting=x)))
    for name, value in spiking.activations(x):
        if isinstance(peaks[name].op, Neuron):
            largest = value.amax((0, 2, 3))
            active = largest > 0
            torch.testing.assert_close(peaks[name].op.threshold[active], largest[active])
            assert (peaks[name].op.threshold > 0).all()


# ---- as recipes ----


@pytest.fixture(scope="module")
def converted():
    """A tiny network by every method, and its images."""
    model, batches = randomized(s_resnet.models.CifarResNet(8, width=4, shortcut="B")), [images(16, 8)]
    return {name: s_resnet.convert(model, batches, name, timesteps=STEPS) for name in PUBLISHED}


@pytest.mark.filterwarnings("ignore")
def test_every_method_needs_what_its_record_says(converted):
    for name, method in PUBLISHED.items():
        graph = converted[name]
        assert graph.provenance.recipe.name == name == method.recipe.name
        assert {layer.alphabet for layer in layers(graph)} == {method.alphabet}, name
        assert any(layer.waits for layer in layers(graph)) == method.delays, name
        tables = [layer.correction for layer in layers(graph) if layer.correction is not None]
        later = [table[1:] for table in tables if table.ndim == 2]  # a first step that differs is an initial potential
        assert any(bool((rows != rows[:1]).any()) for rows in later) == method.step_currents, name
        assert method.title in method.citation and method.recipe.about and method.equation
        assert method.identifier.startswith(("arXiv:", "doi:")) or method.venue == "AAAI 2026"
        assert torch.isfinite(graph(images(4, 8, seed=3), STEPS)).all()


@pytest.mark.filterwarnings("ignore")
def test_the_methods_are_all_different(converted):
    x = images(16, 8, seed=3)
    answers = [graph(x, STEPS) for graph in converted.values()]
    assert not [1 for at, one in enumerate(answers) for other in answers[:at] if torch.equal(one, other)]


def test_names_lead_to_ours_and_to_published_recipes():
    assert recipe_named("phased") is s_resnet.RECIPES["phased"] and recipe_named("ltb") is PUBLISHED["ltb"].recipe
    assert not s_resnet.RECIPES.keys() & PUBLISHED.keys()
    with pytest.raises(ConversionError, match=r"^recipe: got 'lbt'; expected one of s-resnet.*, max-norm.*, ltb"):
        recipe_named("lbt")


# Ours, and SpikingJelly's from its namespace and batches. It interpolates between neighboring values, which among so
# few are far apart at the 99.9th percentile, and near at the 90th.
PEERS = {
    "max-norm": (lambda recipe: recipe, balancing.PEERS["spikingjelly-max"].recipe),
    "robust-norm": (
        lambda recipe: recipe.with_percentile(90),
        lambda ann2snn, batches: ann2snn.RateCodingRecipe(batches, mode="90%"),
    ),
    "ltb": (
        lambda recipe: recipe.set("balance_thresholds", updates=balancing.PASSES, batch=16),
        balancing.PEERS["spikingjelly-ltb"].recipe,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PEERS)
def test_ours_answers_as_spikingjelly_does(name):
    """The same thresholds give the same spikes; the readout of LTB begins where SpikingJelly begins it."""
    ann2snn = pytest.importorskip("spikingjelly.activation_based.ann2snn", reason="spikingjelly is not installed")
    from spikingjelly.activation_based.neuron import BaseNode

    model, x = randomized(s_resnet.models.CifarResNet(8, num_classes=3, width=4)), images(16, 8)
    vary, theirs = PEERS[name]
    ours = s_resnet.convert(model, [x], vary(recipe_named(name).at(32)))
    net = ann2snn.Converter(theirs(ann2snn, [x])).convert(balancing.traceable(model, x)).eval()
    start = ann2snn.estimate_delay_start(net, [x], "cpu", 32) if name == "ltb" else 0
    neurons = [module for module in net.modules() if isinstance(module, BaseNode)]
    with torch.no_grad():
        ((_, total, _),) = balancing.simulated(net, neurons, x, {32: start})
    expected = total / (32 - start)
    distance = float((ours(x, 32) - expected).abs().mean() / expected.abs().mean())
    assert distance < 0.05


def test_the_page_has_every_method_with_its_identifier():
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "published.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name, method in PUBLISHED.items():
        row = next(line for line in rows if f"`{name}`" in line.split("|")[1])
        assert method.venue in row or "the same" in row
        assert method.identifier in row or "the same" in row
