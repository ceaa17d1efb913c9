"""Which layers wait a step: by hand, by counting, and how `auto` chooses among them."""

import pytest
from conftest import images, randomized
from test_verify import build, conv, scalar

from s_resnet import RECIPES, Recipe, convert, trace
from s_resnet.conversion import Auto, Context, auto, timesteps_within, with_neurons
from s_resnet.conversion.calibrate import Calibration, Samples
from s_resnet.conversion.lag import LAGS, different_lags, waiting_layers
from s_resnet.conversion.passes import relu_to_neuron
from s_resnet.errors import ConversionError
from s_resnet.graph.ops import Add, ReLU
from s_resnet.graph.provenance import Trial
from s_resnet.models import CifarResNet
from s_resnet.simulation import record

LAGGED = RECIPES["calibrated-lagged"]


def split(lag):
    return LAGGED.set("relu_to_neuron", lag=lag)


@pytest.fixture(scope="module")
def resnet20():
    return trace(randomized(CifarResNet(20, width=2)), images(2, 16))


def test_a_lag_at_a_sum_by_hand():
    """3/8 a step, thresholds 1, v(0) = 1/2, T = 4: the layer in the branch does not wait, the one at the sum does.

    first: 7/8, 10/8, 5/8, 8/8, so 0 1 0 1. inner, half of that: 1/2, 1, 0, 1/2, so 0 1 0 0. last gets first - inner/4,
    0 3/4 0 1. Streaming it has 1/2, 5/4, 1/4, 5/4. A step late it has seen 3/4 when it first fires: 5/4, 1/4, 5/4, 1/4.
    """
    graph = build(
        ("c0", conv(1.0)),
        ("first", ReLU()),
        ("c1", conv(0.5)),
        ("inner", ReLU()),
        ("c2", conv(-0.25)),
        ("sum", Add(), "c2", "first"),
        ("last", ReLU()),
    )
    context = Context(Calibration(dict.fromkeys(("first", "inner", "last"), 1.0), 100, 1, "data"))

    def spikes(**settings):
        snn = relu_to_neuron(graph, context, initial_potential=0.5, **settings)
        found = record(snn, scalar(0.375), 4, ["first", "inner", "last"], 1)
        return snn.end_to_end_steps(4), [(one.lag, one.spikes.flatten().tolist()) for one in found]

    before = [(0, [0, 1, 0, 1]), (0, [0, 1, 0, 0])]
    assert spikes() == (4, [*before, (0, [0, 1, 0, 1])])
    assert spikes(schedule="lagged", lag="blocks") == (5, [*before, (1, [1, 0, 1, 0])])
    every = (6, [before[0], (1, [1, 0, 0, 0]), (1, [1, 0, 1, 0])])
    assert spikes(schedule="lagged") == spikes(schedule="lagged", lag="layers") == every


@pytest.mark.parametrize(
    ("lag", "wait"),
    [
        ("layers", 18),
        ("blocks", 9),
        ("alternate-blocks", ["stage1.1", "stage2.0", "stage2.2", "stage3.1"]),
        ("stages", ["stage1.2", "stage2.2", "stage3.2"]),
    ],
)
def test_the_answer_is_later_by_the_layers_that_wait(resnet20, lag, wait):
    """ResNet-20 has 18 layers after the first, in 9 blocks one after the other, in 3 stages."""
    snn = with_neurons(resnet20, split(lag))
    waits = [node.name for node in snn.neurons if node.op.schedule == "lagged"]
    count = wait if isinstance(wait, int) else len(wait)
    assert len(waits) == count and snn.end_to_end_steps(5) == 5 + count
    assert timesteps_within(snn, count + 3) == 3 and timesteps_within(snn, count) is None
    sums = [node.name for node in snn.neurons if len(node.inputs) == 2]
    if lag == "blocks":
        assert waits == sums
    elif lag != "layers":
        block = {f"stage{1 + place // 3}.{place % 3}": name for place, name in enumerate(sums)}
        assert waits == [block[name] for name in wait]


def test_a_block_ends_with_the_layer_that_reads_its_sum():
    """In a pre-activated network others come between, and the layer stands in the next block."""
    rows = [("c0", conv(1.0)), ("r1", ReLU()), ("c1", conv(1.0)), ("r2", ReLU()), ("c2", conv(1.0))]
    rows += [("s1", Add(), "c2", "c0"), ("n1", conv(2.0)), ("r3", ReLU()), ("c3", conv(1.0)), ("r4", ReLU())]
    rows += [("c4", conv(1.0)), ("s2", Add(), "c4", "s1"), ("r5", ReLU())]
    graph = build(*rows)
    assert waiting_layers(graph, "layers") == {"r2", "r3", "r4", "r5"}
    assert waiting_layers(graph, "blocks") == {"r3", "r5"}
    assert waiting_layers(graph, "alternate-blocks") == waiting_layers(graph, "stages") == {"r5"}
    assert different_lags(graph) == ("layers", "blocks", "alternate-blocks")


def test_a_lag_that_is_none_is_refused():
    chain = build(("c0", conv(1.0)), ("r0", ReLU()), ("c1", conv(1.0)), ("r1", ReLU()))
    assert different_lags(chain) == ("layers",)
    for lag in LAGS[1:]:
        with pytest.raises(ConversionError, match=rf"^relu_to_neuron: lag='{lag}', got a network of 0 residual blocks"):
            with_neurons(chain, split(lag))
    with pytest.raises(ConversionError, match=r"got lag='steps' of schedule 'lagged'; expected one of layers, blocks"):
        split("steps")
    for name in ("calibrated", "phased"):
        with pytest.raises(ConversionError, match=r"lag='blocks' of schedule.*Choose calibrated-lagged or signed"):
            RECIPES[name].set("relu_to_neuron", lag="blocks")


def test_a_network_says_which_layers_wait():
    x = images(6, 8)
    signed = RECIPES["signed"].set("relu_to_neuron", lag="stages").at(2)
    for recipe, name in ((split("blocks").at(2), "calibrated-lagged-blocks"), (signed, "signed-stages")):
        snn = convert(randomized(CifarResNet(8, width=2)), [x], recipe)
        assert recipe.label == snn.provenance.recipe.name == name and name in repr(snn)
        (neurons,) = (step for step in snn.provenance.recipe.passes if step.name == "relu_to_neuron")
        assert neurons.extra["lag"] == recipe.lag and snn.end_to_end_steps(2) == 5
        assert snn(x, 2).isfinite().all()


def test_auto_tries_each_choice_of_layers_at_its_t(monkeypatch):
    """ResNet-8 has three blocks, each a stage; 6 layers wait, or 3, or the second block's last."""
    graph = trace(randomized(CifarResNet(8, width=2)), images(2, 8))
    tried = {
        "calibrated-constant": (7, 7),
        "calibrated": (7, 7),
        "calibrated-lagged-alternate-blocks": (6, 7),
        "calibrated-lagged-blocks": (4, 7),
        "calibrated-lagged": (1, 7),
        "phased": (1, 7),
    }

    def trial(label, snn, calibration, timesteps):
        agreement = 0.95 if label == "calibrated-lagged-blocks" else 0.8
        return Trial(label, timesteps, snn.end_to_end_steps(timesteps), agreement, 0.01, 100, (0.0, 0.1))

    monkeypatch.setattr(Recipe, "apply", lambda recipe, graph, _: with_neurons(graph, recipe))
    monkeypatch.setattr(auto, "_trial", trial)
    context = Context(Calibration({}, 100, 1, "data", samples=Samples(images(4), None)))
    found = auto.choose_recipe(graph, context, Auto(latency=7))
    choice = found.provenance.choice
    assert {one.recipe: (one.timesteps, one.end_to_end_steps) for one in choice.trials} == tried
    assert choice.reason.startswith("calibrated-lagged-blocks at T = 4 disagrees")
    assert sum(node.op.waits for node in found.neurons) == 3
    early = auto.choose_recipe(graph, context, Auto(latency=2)).provenance.choice.reason
    assert early.endswith("No T answers by step 2: calibrated-lagged-blocks, calibrated-lagged, phased.")
    none = auto.choose_recipe(graph, context, Auto(latency=7, delays=False)).provenance.choice.trials
    assert [one.recipe for one in none] == ["calibrated-constant", "calibrated"]
