"""Recipes carry all that a conversion is asked for, and refuse at once what does not go together."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from conftest import images, randomized

from s_resnet import RECIPES, Calibration, convert, trace
from s_resnet.conversion import Auto, Context, Recipe, Step, default_recipe, passes
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.frontend import QCFSModule
from s_resnet.graph import Neuron
from s_resnet.graph.alphabet import Amplitudes, Differential, Signed
from s_resnet.models import CifarResNet, build

PAPER = ("s-resnet", "s-resnet-v0", "s-resnet-released")
FITTED = [name for name in RECIPES if name not in PAPER]


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=4))


def names(recipe):
    return [step.name for step in recipe.steps]


# ---- what a recipe carries ----


def test_everything_is_carried_and_nothing_is_changed():
    phased = RECIPES["phased"]
    asked = phased.at(8).reconstructed(minutes=10, resume="net.partial").with_weights("int8")
    assert (asked.timesteps, asked.weights, asked.reconstructs, asked.percentile) == (8, "int8", True, None)
    assert names(asked) == [*names(phased)[:6], "reconstruct", *names(phased)[6:], "quantize_weights"]
    assert asked.steps[6].settings == {"minutes": 10, "resume": "net.partial"}
    assert (phased.timesteps, phased.weights, phased.reconstructs) == (16, "float32", False)
    assert RECIPES["s-resnet"].with_percentile(99).percentile == 99.0
    with pytest.raises(FrozenInstanceError):
        phased.timesteps = 8


@pytest.mark.parametrize("name", ["calibrated", "phased"])
def test_the_order_of_wishes_does_not_matter(name):
    recipe = RECIPES[name]
    wishes = [lambda r: r.at(4), lambda r: r.reconstructed(minutes=1), lambda r: r.with_weights("dyadic")]
    found = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        asked = recipe
        for index in order:
            asked = wishes[index](asked)
        found.add((asked.timesteps, tuple((step.name, str(step.settings)) for step in asked.steps)))
    assert len(found) == 1


def test_the_last_wish_counts():
    asked = RECIPES["phased"].with_weights("int8").with_weights("dyadic").reconstructed(steps=1).reconstructed(joint=2)
    assert (
        asked.weights == "dyadic" and names(asked).count("reconstruct") == 1 and "quantize_weights" not in names(asked)
    )
    assert next(step for step in asked.steps if step.name == "reconstruct").settings == {"joint": 2}
    assert names(asked.with_weights("float32").without("reconstruct")) == names(RECIPES["phased"])


def test_t_is_the_recipes_or_that_of_convert(model):
    recipe = RECIPES["calibrated"].at(3)
    for timesteps, want in ((None, 3), (5, 5)):
        snn = convert(model, [images(8, 8)], recipe, timesteps=timesteps)
        told = snn.provenance.recipe
        assert told.timesteps == want
        tuned = {one.name: one.extra["timesteps"] for one in told.passes if "timesteps" in one.extra}
        assert tuned == dict.fromkeys(("fit_thresholds", "calibrate_neurons", "fit_readout"), want)


def test_by_hand_it_is_the_passes_one_after_the_other(model):
    """The T of the context comes before the recipe's own."""
    graph, x = trace(model, images(4, 8)), images(4, 8, seed=5)
    calibration = Calibration({node.name: 2.0 for node in graph.nodes}, 100.0, 1, "data")
    recipe = RECIPES["s-resnet-v0"].at(9)
    for context, steps in ((Context(calibration), 9), (Context(calibration, 6), 6)):
        by_hand = passes.fold_batchnorm(graph, context)
        by_hand = passes.attach_readout(passes.relu_to_neuron(by_hand, context), context)
        by_hand = passes.compensate(passes.normalize(by_hand, context), Context(calibration, steps))
        made = recipe.apply(graph, context)
        assert torch.equal(made(x, 5), by_hand(x, 5)) and made.provenance.recipe.timesteps == steps
        assert made.provenance.compensation.timesteps == steps


def test_what_is_usual():
    assert default_recipe(True) is RECIPES["calibrated"] and default_recipe(False) is RECIPES["calibrated-currents"]


# ---- neurons as plain data ----


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {}),
        ({"spikes": "signed"}, {"spikes": Signed()}),
        ({"amplitudes": 3}, {"spikes": Amplitudes(3)}),
        ({"spikes": "signed", "amplitudes": 4}, {"spikes": Amplitudes(4, signed=True)}),
        ({"spikes": "differential", "amplitudes": 2}, {"spikes": Differential(2)}),
        ({"reset": "zero", "initial_potential": 0.5}, {"reset": "zero", "initial_potential": 0.5}),
    ],
)
def test_what_neurons_send_is_said_in_words(model, settings, fields):
    graph = trace(model, images(2, 8))
    context = Context(Calibration({node.name: 2.0 for node in graph.nodes}, 100.0, 1, "data"))
    for node in passes.relu_to_neuron(passes.fold_batchnorm(graph, context), context, **settings).neurons:
        want = Neuron(torch.tensor(2.0), **fields)
        want = replace(want, threshold=want.threshold / want.max_emission)
        assert {k: v for k, v in vars(node.op).items() if k != "threshold"} == {
            k: v for k, v in vars(want).items() if k != "threshold"
        }
        assert torch.equal(node.op.threshold, want.threshold)


# ---- refused when it is written ----


@pytest.mark.parametrize("name", FITTED)
def test_a_percentile_is_for_thresholds_that_are_not_fitted(name):
    with pytest.raises(ConversionError, match=rf"^recipe {name}: got a percentile; .*choose the recipe s-resnet"):
        RECIPES[name].with_percentile(99.9)
    assert {RECIPES[paper].with_percentile(99.9).percentile for paper in PAPER} == {99.9}


def test_whole_numbers_are_for_spikes_that_are_counted():
    refused = r"^recipe calibrated-fission: got weights int8 .*choose one of calibrated, .*signed, multilevel\."
    with pytest.raises(ConversionError, match=refused):
        RECIPES["calibrated-fission"].with_weights("int8")
    for name in ("signed", "multilevel"):
        assert RECIPES[name].with_weights("int8").weights == "int8"
    assert RECIPES["calibrated-fission"].with_weights("dyadic").weights == "dyadic"


@pytest.mark.parametrize("change", [{"copies": 3}, {"spikes": "differential"}], ids=str)
def test_however_they_come_together(change):
    whole = RECIPES["phased"].with_weights("int8")
    with pytest.raises(ConversionError, match="differential spikes, or several neurons"):
        whole.set("relu_to_neuron", **change)
    with pytest.raises(ConversionError, match="differential spikes, or several neurons"):
        Recipe("mine", "", 4, (Step(passes.relu_to_neuron, change), Step(passes.quantize_weights)))


@pytest.mark.parametrize(
    ("step", "settings", "says"),
    [
        ("relu_to_neuron", {"resett": "zero"}, "^relu_to_neuron: got setting 'resett'; expected one of initial_pot"),
        ("relu_to_neuron", {"reset": "hard"}, "^relu_to_neuron: got reset='hard'"),
        ("relu_to_neuron", {"initial_potential": 1.0}, r"initial_potential=1\.0"),
        ("relu_to_neuron", {"spikes": "ternary"}, "got spikes='ternary'; expected one of unsigned"),
        ("relu_to_neuron", {"amplitudes": 9}, "amplitudes"),
        ("relu_to_neuron", {"schedule": "later"}, "schedule"),
        ("relu_to_neuron", {"spikes": "signed", "reset": "zero"}, "reset, got 'zero'"),
        ("compensate", {"timesteps": 4}, "^compensate: got setting 'timesteps'; expected none"),
        ("attach_readout", {"kind": "spikes"}, "expected one of mode, initial_potential"),
    ],
    ids=str,
)
def test_settings_that_there_are_not(step, settings, says):
    with pytest.raises((ConversionError, InvalidData), match=says):
        RECIPES["s-resnet"].set(step, **settings)


def test_reconstruction_has_its_settings():
    with pytest.raises(ConversionError, match=r"^reconstruct: got setting 'hours'; expected one of steps, joint, "):
        RECIPES["phased"].reconstructed(hours=1)


@pytest.mark.parametrize("weights", ["dyadic", "int8"])
def test_neurons_behind_pools_keep_their_weights(weights):
    with pytest.raises(ConversionError, match=rf"^recipe s-resnet-released: got weights {weights} .*choose s-resnet"):
        RECIPES["s-resnet-released"].with_weights(weights)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_have_nothing_to_reconstruct_for(name):
    with pytest.raises(ConversionError, match=rf"^recipe {name}: got nothing to reconstruct for"):
        RECIPES[name].reconstructed(minutes=1)


def test_auto_carries_its_wishes_to_every_recipe():
    asked = Auto(latency=4).with_weights("int8").reconstructed(minutes=2)
    assert asked.latency == 4 and asked.reconstructs and not Auto().reconstructs
    for recipe in asked.recipes():
        assert recipe.weights == "int8" and recipe.reconstructs
    whole = ["calibrated-constant", "calibrated", "calibrated-lagged-stages", "calibrated-lagged-alternate-blocks"]
    whole += ["calibrated-lagged-blocks", "calibrated-lagged", "phased", "signed", "multilevel"]
    assert [recipe.label for recipe in Auto("levels").recipes()] == whole
    assert [recipe.label for recipe in Auto("levels", weights="int8").recipes()] == whole


# ---- what some networks do not take ----


@pytest.mark.parametrize("recipe", [None, "phased", RECIPES["s-resnet"]], ids=str)
@pytest.mark.parametrize("timesteps", [None, 4])
def test_a_trained_network_takes_neither_recipe_nor_t(recipe, timesteps):
    trained = build("ds_resnet8", 10, width=4).eval()
    asked = [name for name, value in (("recipe", recipe), ("timesteps", timesteps)) if value is not None]
    if not asked:
        assert convert(trained).trained
        return
    with pytest.raises(InvalidData, match=rf"^convert: got {', '.join(asked)} for a network that was trained"):
        convert(trained, recipe=recipe, timesteps=timesteps)


@pytest.mark.parametrize(
    ("recipe", "timesteps", "want"),
    [
        (None, None, ("qcfs-streaming", 3)),
        ("phased", None, ("qcfs-phased", 3)),
        ("phased", 5, ("qcfs-phased", 5)),
        (RECIPES["phased"].at(6), None, ("qcfs-phased", 6)),
        (RECIPES["s-resnet"].at(6), 2, ("qcfs-streaming", 2)),
    ],
)
def test_a_quantized_network_takes_its_levels_unless_t_is_said(model, recipe, timesteps, want):
    snn = convert(QCFSModule(randomized(CifarResNet(8, width=4)), images(2, 8), 3), None, recipe, timesteps=timesteps)
    assert (snn.provenance.recipe.name, snn.provenance.recipe.timesteps) == want


# ---- the shape of an image in the place of images ----


@pytest.mark.parametrize("shape", [(3, 16, 24), [3, 16, 24], torch.Size((3, 16, 24))], ids=["tuple", "list", "size"])
def test_a_shape_stands_in_for_images(model, shape):
    snn = convert(model, shape, "s-resnet", timesteps=4)
    assert snn.provenance.input_shape == (3, 16, 24) and snn.provenance.calibration.source == "batchnorm"


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, 16), r"got shape \(2, 3, 16\).* signals \[B, C, L\] of its channels and length, or images"),
        ((2, 3, 16, 16), r"expected \(C, H, W\)"),
        ((3, 0, 16), "whole numbers above 0"),
        ((3, 16.0, 16), "whole numbers above 0"),
        ((16, 16, 3), r"for a network of 3 channels; expected \(3, H, W\)"),
    ],
)
def test_what_is_no_shape_is_refused(model, shape, says):
    with pytest.raises(InvalidData, match=says):
        convert(model, shape)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minutes": -1}, "minutes=-1; expected a number >= 0"),
        ({"minutes": "3"}, "minutes='3'; expected a number"),
        ({"minutes": float("nan")}, "minutes=nan; expected a number"),
        ({"steps": -1}, "steps=-1; expected at least 0"),
        ({"joint": 2.5}, "joint=2.5; expected a whole number"),
        ({"resume": 3}, "type int; expected str or PathLike"),
    ],
)
def test_settings_of_a_reconstruction_are_checked_before_it_begins(settings, said):
    for recipe in (RECIPES["phased"], Auto()) if "resume" not in settings else (RECIPES["phased"],):
        with pytest.raises(InvalidData, match=f"reconstruct: .*got .*{said}"):
            recipe.reconstructed(**settings)


def test_a_step_that_no_pass_has_the_name_of_cannot_be_left_out():
    phased = RECIPES["phased"]
    assert names(phased.without("compensate")) == names(phased)  # this recipe does without it already
    with pytest.raises(ConversionError, match="recipe phased: got step 'fold_batchnorms'; expected some of "):
        phased.without("fold_batchnorms")
    with pytest.raises(InvalidData, match="target_drop='5'; expected points"):
        Auto(target_drop="5")
