"""Recipes for few steps, from the checkpoint to the report; and the recipe "auto", which chooses among them."""

import importlib
import itertools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from conftest import images, randomized
from test_cli import CALIBRATED, figures, make_checkpoint, make_photos, unexpected
from test_cli import program as program  # the fixture

from s_resnet import RECIPES, Graph, convert, evaluate, load, save, simulate
from s_resnet.analysis import EvaluationSettings
from s_resnet.conversion import Auto, Context, Recipe, auto, choose_recipe
from s_resnet.conversion.auto import LATENCIES, Trial
from s_resnet.conversion.block import Block
from s_resnet.conversion.calibrate import Calibration, Samples
from s_resnet.data.intervals import wilson
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph import Neuron, Node
from s_resnet.graph.ops import Input
from s_resnet.graph.provenance import AppliedPass, Choice
from s_resnet.models import CifarResNet

converting = importlib.import_module("s_resnet.conversion.convert")  # the package has the function under this name
# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
FITTED = [name for name, recipe in RECIPES.items() if recipe.fits]
DEPTH = 6  # neuron layers of a CIFAR ResNet-8 one behind the other after the first; shortcuts wait with them
WAITED = {
    "s-resnet": 0,
    "s-resnet-v0": 0,
    "s-resnet-released": 0,
    "calibrated": 0,
    "calibrated-constant": 0,
    "calibrated-currents": 0,
    "calibrated-fission": 0,
    "calibrated-lagged": DEPTH,
    "signed": DEPTH,
    "multilevel": 0,
    # Each stage of a ResNet-8 is one block: where stages wait is where blocks do.
    "calibrated-lagged-alternate-blocks": 1,
    "calibrated-lagged-blocks": 3,
}


def waited(recipe, steps):
    return DEPTH * steps if recipe == "phased" else WAITED[recipe]


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=4, shortcut="B"))


@pytest.fixture(scope="module")
def batches():
    return [(images(20, 8, seed=seed), torch.arange(20) % 10) for seed in range(3)]


@pytest.fixture(scope="module")
def networks(model, batches):
    return {name: convert(model, batches, name, timesteps=4) for name in RECIPES}


# ---- every recipe ----


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_saved_evaluates_the_same(tmp_path, networks, batches, recipe):
    snn = networks[recipe]
    save(snn, tmp_path / "net.snn")
    again = load(tmp_path / "net.snn")
    x = images(5, 8, seed=9)
    assert torch.equal(again(x, 4), snn(x, 4)) and torch.equal(again.run(x), snn.run(x))
    assert again.provenance == snn.provenance and again.alphabet == snn.alphabet
    fresh = [(images(12, 8, seed=10), torch.arange(12) % 10)]
    one, other = (evaluate(graph, fresh, 4, at=(2, 4)) for graph in (snn, again))
    assert (one.ann, one.snn, one.alphabet, one.recipe) == (other.ann, other.snn, other.alphabet, recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_at_several_t_are_those_of_separate_runs(networks, recipe):
    """Top-1, agreement and spikes by hand, and the end-to-end steps by counting layers."""
    snn, x, labels = networks[recipe], images(24, 8, seed=11), torch.arange(24) % 10
    report = evaluate(snn, [(x[:16], labels[:16]), (x[16:], labels[16:])], 7, at=(7, 3, 5))
    ann, neurons = snn.run(x).argmax(1), 0
    for name, value in snn.activations(x[:1]):
        neurons += value.numel() if name in {node.name for node in snn.neurons} else 0
    neurons *= 3 if recipe == "calibrated-fission" else 1
    assert [row.timesteps for row in report.snn] == [3, 5, 7]
    for row in report.snn:
        alone = simulate(snn, x, row.timesteps)
        answer = alone.outputs[0].argmax(1)
        assert row.top1 == pytest.approx(float((answer == labels).double().mean()))
        assert row.agreement == pytest.approx(float((answer == ann).double().mean()))
        spikes = sum(float(count.sum()) for count in alone.spikes.values())
        assert row.spikes_per_neuron == pytest.approx(spikes / 24 / neurons, rel=1e-3)
        assert row.end_to_end_steps == row.timesteps + waited(recipe, row.timesteps)
    # A network that answers once is run anew for every T: 15 steps of each image, otherwise 7.
    spent = report.seconds_per_step_per_image * report.images_per_second
    assert spent == pytest.approx(1 / (15 if snn.windowed else 7))


def test_what_the_recipes_are(networks):
    alphabets = {name: snn.alphabet for name, snn in networks.items()}
    assert alphabets == {
        "s-resnet": "binary",
        "s-resnet-v0": "binary",
        "s-resnet-released": "binary",
        "calibrated": "binary",
        "calibrated-constant": "binary",
        "calibrated-currents": "binary",
        "calibrated-fission": "binary, 3 neurons for each",
        "calibrated-lagged": "binary",
        "phased": "binary",
        "signed": "signed",
        "multilevel": "signed, 4 levels",
    }
    assert [name for name, snn in networks.items() if snn.windowed] == ["calibrated-lagged", "phased", "signed"]
    for name in FITTED:
        snn = networks[name]
        assert all(bool((node.op.threshold == 1).all()) for node in snn.neurons)
        assert all(node.op.scale.shape == node.op.correction.shape[-1:] for node in snn.neurons)
        assert all(node.op.initial_potential == 0.5 for node in snn.neurons)
        assert snn.neurons[0].op.schedule == "streaming"  # its current is constant: it has nothing to wait for
        assert snn.provenance.recipe.name == name and snn.provenance.calibration.fitted == 60
        shortcuts = [node for node in snn.nodes if node.name.endswith(".shortcut")]
        assert len(shortcuts) == 1 and shortcuts[0].op.weight.shape == (4,)  # by channel, explicit


@pytest.mark.parametrize("recipe", FITTED)
def test_two_images_still_convert(model, recipe):
    snn = convert(model, [images(2, 8)], recipe, timesteps=2)
    assert (snn.provenance.calibration.fitted, snn.provenance.calibration.held_out) == (2, 0)
    assert torch.isfinite(snn(images(2, 8), 2)).all()


def test_more_steps_come_closer(model, batches):
    """What is fitted for a T is better there than what is fitted for another, and converges."""
    x = images(32, 8, seed=12)
    for recipe in FITTED:
        errors = []
        for steps in (2, 8, 24):
            snn = convert(model, batches, recipe, timesteps=steps)
            errors.append(float((snn(x, steps) - snn.run(x)).pow(2).mean() / snn.run(x).pow(2).mean()))
        assert max(errors[1:]) < errors[0] and errors[2] < (0.04 if recipe == "calibrated-constant" else 0.02), (
            recipe,
            errors,
        )


def test_a_phased_network_is_evaluated_in_closed_form_unless_asked_otherwise(networks):
    snn, fresh = networks["phased"], [(images(16, 8, seed=13), torch.arange(16) % 10)]
    simulated, counted, fast = (
        evaluate(snn, fresh, 8, EvaluationSettings(spike_by_spike=spikes, precision=precision), at=(2, 8))
        for spikes, precision in ((True, "exact"), (False, "exact"), (False, "fast"))
    )
    for a, b in zip(simulated.snn, counted.snn, strict=True):
        assert (a.timesteps, a.end_to_end_steps) == (b.timesteps, b.end_to_end_steps)
        assert a.spikes_per_neuron == pytest.approx(b.spikes_per_neuron, rel=1e-3)
        assert abs(a.agreement - b.agreement) <= 1 / 16 + 1e-9
    assert counted.kernel == "closed-form" and "closed-form" not in (simulated.kernel, fast.kernel)
    for other in ("calibrated", "calibrated-lagged", "multilevel", "s-resnet"):
        assert evaluate(networks[other], fresh, 4).kernel != "closed-form", other


def test_what_answers_once_has_no_exit(networks):
    fresh = [(images(4, 8), torch.arange(4))]
    for name, snn in networks.items():
        if snn.windowed:
            with pytest.raises(InvalidData, match=r"^simulate: got an early exit for a network whose layers wait"):
                evaluate(snn, fresh, 4, EvaluationSettings(early_exit=0.5))
        else:
            assert evaluate(snn, fresh, 4, EvaluationSettings(early_exit=0.5)).exit.mean_timesteps <= 4, name


def test_a_report_says_alphabet_and_latency_only_where_they_are_news(networks):
    fresh = [(images(4, 8), torch.arange(4))]
    for name, snn in networks.items():
        report = evaluate(snn, fresh, 4)
        assert ("alphabet" in report.to_dict()) == (snn.alphabet != "binary")
        assert (f"spikes: {snn.alphabet}" in report.table()) == (snn.alphabet != "binary")
        assert ("end-to-end" in report.table()) == snn.windowed
        if snn.windowed:
            rows = [line.split() for line in report.table().splitlines() if "%" in line]
            last = next(row for row in rows if row[0] == "4")
            assert last[-1] == str(4 + waited(name, 4))


def test_rows_at_a_t_that_a_network_was_not_fitted_to_are_marked(networks):
    """Of recipes that are fitted to their T; the others run as well at any."""
    fresh = [(images(4, 8), torch.arange(4))]
    for name, snn in networks.items():
        report = evaluate(snn, fresh, 8, at=(2, 4, 8))
        table = [line.split()[0] for line in report.table().splitlines() if "%" in line]
        marks = [mark for mark in table if mark.strip("*") in ("2", "4", "8")]
        if name in FITTED:
            assert [row.fitted for row in report.snn] == [False, True, False] and report.fitted_for == 4
            assert marks == ["2*", "4", "8*"]
            assert "* not fitted to this T but to T = 4" in report.table() and report.to_dict()["fitted_for"] == 4
        else:
            assert {row.fitted for row in report.snn} == {None} and "*" not in report.table()
            assert "fitted_for" not in report.to_dict() and "fitted" not in report.to_dict()["snn"][0]


# ---- auto: the rule ----

EVERY = ("calibrated-constant", "calibrated", "calibrated-lagged", "phased", "signed", "multilevel")
BINARY = EVERY[:4]
LAG = 10  # what layers wait, in steps or, phased, in windows


def allowed(spikes="binary", step_currents=True, delays=True):
    """The recipes that a target allows, spelled out."""
    found = EVERY if spikes == "levels" else EVERY[:5] if spikes == "signed" else BINARY
    found = [name for name in found if step_currents or name not in ("calibrated", "calibrated-lagged")]
    return [name for name in found if delays or name not in ("calibrated-lagged", "phased", "signed")]


def latency(name, steps):
    return steps + {"calibrated-lagged": LAG, "signed": LAG, "phased": LAG * steps}.get(name, 0)


def window(name, most):
    """The largest T that answers by this step, or 0."""
    return max((steps for steps in range(1, most + 1) if latency(name, steps) <= most), default=0)


def trials(monkeypatch, table, **wishes):
    """What is chosen where conversions give these figures: agreement and its error by recipe and T."""
    tried = []

    def layers(graph, recipe):
        waits = {"calibrated-lagged": "lagged", "signed": "lagged", "phased": "phased"}.get(recipe.name, "streaming")
        ops = [Neuron(torch.tensor(1.0), schedule=waits) for _ in range(LAG)]
        nodes = [Node(f"{place}", op, (f"{place - 1}",)) for place, op in enumerate(ops, 1)]
        return Graph((Node("0", Input(), ()), *nodes))

    def apply(recipe, graph, context):
        tried.append((recipe.name, context.timesteps))
        return layers(graph, recipe).with_provenance(extra={"who": tried[-1]})

    def trial(name, snn, calibration, timesteps):
        assert snn.provenance.extra["who"] == (name, timesteps)
        agreement, error = table(name, timesteps)
        return Trial(name, timesteps, latency(name, timesteps), agreement, error, 200, (0.005, 0.03))

    monkeypatch.setattr(Recipe, "apply", apply)
    monkeypatch.setattr(auto, "with_neurons", layers)
    monkeypatch.setattr(auto, "_trial", trial)
    calibration = Calibration({}, 100, 1, "data", samples=Samples(images(4), None))
    snn = choose_recipe(Graph(()), Context(calibration), Auto(**wishes))
    choice = snn.provenance.choice
    assert [(t.recipe, t.timesteps) for t in choice.trials] == tried
    assert choice.spikes == wishes.get("spikes", "binary")
    return snn.provenance.extra["who"], tried, choice.reason


@pytest.mark.parametrize(
    ("wishes", "agreements", "chosen"),
    [
        ({}, {"calibrated-constant": 0.98, "calibrated": 0.99}, ("calibrated-constant", 32)),  # needs less
        ({}, {"calibrated-constant": 0.96, "calibrated": 0.99}, ("calibrated", 32)),
        ({}, {"calibrated": 0.96, "calibrated-lagged": 0.99}, ("calibrated-lagged", 22)),
        ({}, {"calibrated": 0.98, "phased": 0.99}, ("phased", 2)),  # as good as the others, and first, by step 22
        ({"delays": False}, {"calibrated": 0.9, "phased": 0.99}, ("calibrated", 32)),
        ({"step_currents": False, "delays": False}, {"calibrated-constant": 0.5}, ("calibrated-constant", 32)),
        ({"spikes": "signed"}, {"calibrated-lagged": 0.9, "signed": 0.99}, ("signed", 22)),
        ({"spikes": "levels", "step_currents": False}, {"calibrated": 1.0, "multilevel": 0.9}, ("multilevel", 32)),
    ],
)
def test_of_the_recipes_within_one_standard_error_the_fastest(monkeypatch, wishes, agreements, chosen):
    table = lambda name, steps: (agreements.get(name, 0.1), 0.015)  # noqa: E731
    who, tried, reason = trials(monkeypatch, table, latency=32, **wishes)
    assert who == chosen and tried == [(name, window(name, 32)) for name in allowed(**wishes)]
    assert reason.startswith(
        f"{chosen[0]} at T = {chosen[1]} disagrees with the ANN on {100 * (1 - agreements[chosen[0]]):.1f} % of 200"
    )
    assert "held-out calibration images (95 % interval 0.5 to 3.0 %)" in reason
    assert f"and answers after {latency(*chosen)} steps" in reason
    assert "answer by step 32 and are within one standard error of the best" in reason and "\n" not in reason
    assert all(f"{name} at T = {steps}" in reason for name, steps in tried) and "No T" not in reason


def test_without_wishes_the_latency_is_16_and_spikes_are_binary(monkeypatch):
    who, tried, _ = trials(monkeypatch, lambda name, steps: (0.9, 0.01))
    assert who == ("phased", 1) and tried == [(name, window(name, 16)) for name in BINARY]


def test_a_recipe_that_cannot_answer_in_time_is_left_out_and_named(monkeypatch):
    who, tried, reason = trials(monkeypatch, lambda name, steps: (0.9, 0.01), latency=LAG, spikes="signed")
    assert who == ("calibrated-constant", LAG) and tried == [("calibrated-constant", LAG), ("calibrated", LAG)]
    assert reason.endswith(f"No T answers by step {LAG}: calibrated-lagged, phased, signed.")


@pytest.mark.parametrize(
    ("drop", "chosen", "until"),
    [(12.0, ("calibrated", 4), 4), (5.0, ("calibrated-lagged", 6), 16), (0.01, ("calibrated", 64), 64)],
)
def test_for_a_drop_the_smallest_latency_that_holds_it(monkeypatch, drop, chosen, until):
    """12: at step 4. 5: one alone by step 16. 0.01: none at all, so the best of all."""
    share = {4: 0.89, 8: 0.92, 16: 0.94, 32: 0.96, 64: 0.99}
    better = {("calibrated-lagged", 6): 0.955}
    table = lambda name, steps: (better.get((name, steps), share[steps] if name == "calibrated" else 0.5), 0.01)  # noqa: E731
    who, tried, reason = trials(monkeypatch, table, target_drop=drop)
    assert who == chosen
    steps = [(name, window(name, most)) for most in LATENCIES if most <= until for name in BINARY]
    assert tried == [key for key in dict.fromkeys(steps) if key[1]]  # none twice
    assert (f"the smallest latency that disagrees on no more than {drop:g} %" in reason) == (drop > 0.01)
    assert (f"none disagrees on no more than {drop:g} %" in reason) == (drop == 0.01)


def by_the_rule(figures, names, drop):
    """The rule spelled out: recipe and T, from (agreement, error) by both."""

    def fastest(keys, least):
        enough = [key for key in keys if figures[key][0] >= least]
        return min(enough, key=lambda key: (latency(*key), names.index(key[0])), default=None)

    def keys(most):
        return [(name, window(name, most)) for name in names if window(name, most)]

    if drop is None:
        return fastest(keys(20), max(figures[key][0] for key in keys(20)) - 0.0125)
    for most in LATENCIES:
        if fastest(keys(most), 1 - drop / 100 - 1e-9):
            return fastest(keys(most), 1 - drop / 100 - 1e-9)
    every = dict.fromkeys(key for most in LATENCIES for key in keys(most))
    return max(every, key=lambda key: figures[key][0])


def test_the_rule_on_random_figures(monkeypatch):
    rng, ends = random.Random(0), set()
    for _, spikes, drop in itertools.product(range(15), ("binary", "signed", "levels"), (None, 3.0)):
        names = allowed(spikes)
        figures = {(name, steps): (rng.randint(850, 985) / 1000, 0.0125) for name in names for steps in range(1, 65)}
        wishes = {"latency": 20} if drop is None else {"target_drop": drop}
        who, _, _ = trials(monkeypatch, lambda *key, drawn=figures: drawn[key], spikes=spikes, **wishes)
        assert who == by_the_rule(figures, names, drop)
        ends.add((who, drop))
    assert len(ends) > 15


def test_97_of_100_images_hold_a_drop_of_3(monkeypatch):
    """Which floats do not: 100 (1 - 0.97) is above 3."""
    who, _, reason = trials(monkeypatch, lambda name, steps: (97 / 100, 0.01), target_drop=3.0)
    assert who == ("calibrated-constant", 4) and "latency that disagrees on no more than 3 %" in reason


def test_a_trial_counts_agreement_on_the_images_held_out(networks):
    snn, x = networks["calibrated-lagged"], images(70, 8, seed=14)
    calibration = Calibration({}, 100, 1, "data", samples=Samples(x, None))
    trial = auto._trial("calibrated-lagged", snn, calibration, 2)
    same = sum(int(snn(x[i : i + 1], 2).argmax() == snn.run(x[i : i + 1]).argmax()) for i in range(70))
    assert 0 < same < 70 and trial.agreement == pytest.approx(same / 70)
    share = (same + 1) / 72  # one more of each kind
    assert trial.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 70))
    assert trial.images == 70 and trial.disagreement_interval == wilson(70 - same, 70)
    assert (trial.recipe, trial.timesteps, trial.end_to_end_steps) == ("calibrated-lagged", 2, 2 + DEPTH)


# ---- auto: for real ----


def test_the_choice_is_one_of_the_networks_it_chose_among(model, batches):
    """At step 8 of this network: T = 8, with a lag of 6 steps T = 2, of 1 and 3 T = 7 and 5, and in windows T = 1."""
    snn = convert(model, batches, Auto("levels", latency=8))
    choice = snn.provenance.choice
    fewer = ("calibrated-lagged-alternate-blocks", "calibrated-lagged-blocks")
    tried = (*EVERY[:2], *fewer, *EVERY[2:])
    assert [(trial.recipe, trial.timesteps) for trial in choice.trials] == list(
        zip(tried, (8, 8, 7, 5, 2, 1, 2, 8), strict=True)
    )
    assert all(t.end_to_end_steps == t.timesteps + waited(t.recipe, t.timesteps) <= 8 for t in choice.trials)
    made = snn.provenance.recipe
    assert choice.reason.startswith(f"{made.name} at T = {made.timesteps} ")
    recipe = next(recipe for recipe in Auto("levels").recipes() if recipe.label == made.name)
    alone = convert(model, batches, recipe, timesteps=made.timesteps)
    x = images(6, 8, seed=15)
    assert snn(x, 4).shape == (6, 10) and torch.allclose(snn.run(x), alone.run(x), atol=1e-5)
    assert Choice.read(json.loads(json.dumps(choice.to_json())), "choice") == choice


def test_a_target_drop_for_real(model, batches):
    snn = convert(model, batches, Auto("binary", 40.0))
    trials = snn.provenance.choice.trials
    kept = [t for t in trials if 100 * (1 - t.agreement) <= 40]
    assert kept and snn.provenance.recipe.timesteps in {t.timesteps for t in kept}
    assert len({next(most for most in LATENCIES if t.end_to_end_steps <= most) for t in kept}) == 1


@pytest.mark.parametrize(("recipe", "held_out", "fitted"), [("auto", 30, 30), ("phased", 0, 60), ("s-resnet", 30, 0)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_no_image_is_both_fitted_to_and_held_out(monkeypatch, model, batches, recipe, held_out, fitted, shuffled):
    """Whatever order a loader brings them in, at every pass another."""
    found, plain = [], converting.calibrate

    def calibrate(*arguments, **named):
        found.append(plain(*arguments, **named))
        return found[-1]

    class Loader(list):
        seed = 0

        def __iter__(self):
            self.seed += 1
            every = torch.cat([images for images, _ in batches])
            order = torch.randperm(60, generator=torch.Generator().manual_seed(self.seed if shuffled else 0))
            return iter(every[order].split(7))

    monkeypatch.setattr(converting, "calibrate", calibrate)
    snn = convert(model, Loader([None]), Auto(latency=2) if recipe == "auto" else RECIPES[recipe].at(2))
    (calibration,) = found
    both = [set(), set()]
    samples = None if calibration.samples is None else calibration.samples.images
    for kept, part in zip(both, (samples, calibration.fitting), strict=True):
        kept.update(image.numpy().tobytes() for image in (part if part is not None else ()))
    assert (len(both[0]), len(both[1])) == (held_out, fitted) and not both[0] & both[1]
    assert both[0] | both[1] <= {image.numpy().tobytes() for images, _ in batches for image in images}
    summary = snn.provenance.calibration
    assert (summary.held_out, summary.fitted, summary.images) == (held_out, fitted, 60 - held_out)


def test_auto_holds_out_more(monkeypatch, model):
    asked = []

    def calibrate(graph, batches, percentile, held_out, progress, fitting):
        asked.append((held_out, fitting))
        raise InterruptedError

    monkeypatch.setattr(converting, "calibrate", calibrate)
    for recipe in ("auto", "phased", "s-resnet"):
        with pytest.raises(InterruptedError):
            convert(model, [images(4, 8)], recipe)
    assert asked == [(256, True), (0, True), (32, False)]


WISHES = {
    "alphabet": ({"spikes": "ternary"}, r"auto: got spikes 'ternary'; expected one of binary, signed, levels"),
    "no drop": ({"target_drop": 0.0}, r"auto: got target_drop=0.0; expected points between 0 and 100"),
    "all": ({"target_drop": 100.0}, r"got target_drop=100.0"),
    "negative": ({"target_drop": -1.0}, r"got target_drop=-1.0"),
    "not a number": ({"target_drop": math.nan}, r"got target_drop=nan"),
    "both": ({"target_drop": 1.0, "latency": 8}, r"auto: got latency and target_drop; expected one of them"),
    "no steps": ({"latency": 0}, r"got latency=0; expected at least 1"),
}


@pytest.mark.parametrize("name", WISHES)
def test_wishes_that_do_not_fit_are_refused(name):
    wishes, message = WISHES[name]
    with pytest.raises(InvalidData, match=message) as caught:
        Auto(**wishes)
    assert "\n" not in str(caught.value)


def test_auto_takes_a_latency_and_no_t(model, batches):
    for recipe in (Auto(latency=8), "auto"):
        with pytest.raises(InvalidData, match=r"^auto: got timesteps=8; expected a latency.*Pass Auto\(latency=...\)"):
            convert(model, batches, recipe, timesteps=8)
    with pytest.raises(InvalidData, match=r"^auto: got a file to resume from; expected none"):
        Auto().reconstructed(resume="net.partial")


def test_auto_needs_images(model):
    with pytest.raises(ConversionError, match=r"^recipe auto: got no calibration images.*calibration_batches"):
        convert(model, recipe="auto")
    with pytest.raises(ConversionError, match=r"^auto: got no calibration images"):
        convert(model, [images(1, 8)], "auto")  # one alone is fitted to


def test_auto_completes_what_it_tries(monkeypatch, model, batches):
    """Every trial has the weights that are asked for, and is reconstructed if that is."""
    snn = convert(model, batches, Auto(latency=2).with_weights("int8"))
    assert snn.is_integer and snn.provenance.recipe.passes[-1] == AppliedPass("quantize_weights")
    monkeypatch.setattr(Block, "train", lambda self, *rest: (self.nodes, 0, False))
    snn = convert(model, batches, Auto(latency=2).reconstructed())
    assert "reconstruct" in [step.name for step in snn.provenance.recipe.passes]


# ---- the program ----


def few_steps(*options):
    return ("convert", "tiny.pth", *CALIBRATED[:-2], "--force", *options)


@pytest.fixture
def folder(program, tmp_path):
    """tiny.pth and photos/ in the current folder."""
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    return program


@pytest.mark.parametrize("recipe", FITTED)
def test_two_commands(folder, tmp_path, recipe):
    said = folder.works(*few_steps("--recipe", recipe, "--timesteps", 4))
    late = waited(recipe, 4)
    what = "currents" if recipe == "calibrated-currents" else "weights"
    assert said.startswith(
        f"tiny.snn: cifar_resnet8, recipe {recipe}, 7 neuron layers, thresholds and {what} from 6 images"
    )
    assert (f"T = 4 input steps; the answer comes after {4 + late} steps" in said) == (late > 0)
    assert said.endswith("Next: sresnet evaluate tiny.snn\n")
    folder.works("evaluate", "--timesteps", 4, "--at", "2,4", "--json", "out.json")
    report = figures(tmp_path / "out.json")
    assert [row["end_to_end_steps"] for row in report["snn"]] == [2 + waited(recipe, 2), 4 + late]
    assert report["images"] == 18 and report["recipe"] == recipe and "calibrated_on" not in report
    assert recipe in folder.works("inspect", "tiny.snn")
    folder.works("evaluate", "--timesteps", 4, "--at", "2,4", "--spike-by-spike", "--json", "simulated.json")
    simulated = figures(tmp_path / "simulated.json")
    kernel = simulated.pop("kernel")
    assert (report.pop("kernel") == "closed-form") == (recipe == "phased") and kernel != "closed-form"
    for a, b in zip(report["snn"], simulated["snn"], strict=True):
        assert a.pop("spikes_per_neuron") == pytest.approx(b.pop("spikes_per_neuron"), rel=1e-3)
    assert report == simulated
    code, out, err = folder("evaluate", "--timesteps", 4, "--exit-confidence", 0.5)
    if late:
        assert (code, out) == (1, "") and err.count("\n") == 1 and err.startswith("Error: simulate: got an early exit")
    else:
        assert (code, err) == (0, "")


def test_a_recipe_has_a_t_of_its_own(model):
    own = {name: convert(model, [images(4, 8)], name).provenance.recipe.timesteps for name in FITTED}
    fitted = {"calibrated": 16, "calibrated-constant": 32, "calibrated-fission": 8, "calibrated-lagged": 16}
    assert own == {**fitted, "calibrated-currents": 128, "phased": 16, "signed": 16, "multilevel": 4}


def test_auto_says_why(folder):
    asked = ("--recipe", "auto", "--spikes", "signed", "--latency", 2)
    said = folder.works(*few_steps(*asked))
    choice = load("tiny.snn").provenance.choice
    found = ["calibrated-constant", "calibrated", "calibrated-lagged-alternate-blocks"]
    assert choice.reason in said.splitlines() and [trial.recipe for trial in choice.trials] == found
    assert choice.reason.endswith(
        "No T answers by step 2: calibrated-lagged-blocks, calibrated-lagged, phased, signed."
    )
    said = folder.works(*few_steps(*asked, "--no-delays", "--no-step-currents"))
    choice = load("tiny.snn").provenance.choice
    assert [trial.recipe for trial in choice.trials] == ["calibrated-constant"] and "Tried" not in choice.reason
    said = folder.works(*few_steps("--recipe", "auto", "--target-drop", 99))
    assert "the smallest latency that disagrees on no more than 99 %" in said
    assert load("tiny.snn").provenance.recipe.timesteps == 4
    assert "choice" in folder.works("inspect", "tiny.snn")


def test_reconstruction_goes_on_after_ctrl_c(folder, tmp_path, monkeypatch):
    trained, plain = [], Block.train

    def train(self, steps, *rest):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(self)
        return plain(self, 2, *rest)

    monkeypatch.setattr(Block, "train", train)
    command = few_steps("--recipe", "phased", "--timesteps", 2, "--reconstruct")
    code, _, err = folder(*command)
    said = "Interrupted. Repeat it to go on from tiny.snn.partial: 2 of 6 parts finished."
    assert code == 130 and err.splitlines()[-1] == said
    assert not Path("tiny.snn").exists() and Path("tiny.snn.partial").exists()
    other = few_steps("--recipe", "calibrated", "--timesteps", 2, "--reconstruct")
    code, _, err = folder(*other)
    first, error = err.splitlines()
    assert first == "Resuming the reconstruction in tiny.snn.partial, of which 2 parts are finished."
    assert code == 1 and error.startswith("Error: tiny.snn.partial: got the reconstruction of another network")
    trained.append("no longer interrupted")
    code, said, err = folder(*command)
    assert (code, unexpected(err)) == (0, f"{first}\n")
    assert "of 6 parts better, 12 of 2,250 steps, because its 30 minutes ran out. For more time: s_resnet." in said
    assert not Path("tiny.snn.partial").exists()
    assert len(trained) == 3 + 5 + 1 - 2  # five blocks and all together, two of them done
    passes = load("tiny.snn").provenance.recipe.passes
    assert [step.name for step in passes].count("reconstruct") == 1
    assert "partial" not in json.dumps(load("tiny.snn").provenance.to_json())


MISTAKES = {
    # name: (options, exit code, what it says); each in one line, with nothing written
    "spikes without auto": (("--spikes", "signed"), 1, "with --recipe auto"),
    "spikes with another": (("--recipe", "phased", "--spikes", "signed"), 1, "with --recipe auto"),
    "drop without auto": (("--target-drop", 1), 1, "with --recipe auto"),
    "drop and latency": (("--recipe", "auto", "--target-drop", 1, "--latency", 4), 1, "expected one of them"),
    "drop of nothing": (("--recipe", "auto", "--target-drop", 0), 1, "points between 0 and 100"),
    "drop that is none": (("--recipe", "auto", "--target-drop", "nan"), 1, "points between 0 and 100"),
    "infinite drop": (("--recipe", "auto", "--target-drop", "inf"), 1, "points between 0 and 100"),
    "drop in words": (("--recipe", "auto", "--target-drop", "little"), 2, "little"),
    "an alphabet there is not": (("--recipe", "auto", "--spikes", "ternary"), 2, "ternary"),
    "nothing to reconstruct for": (("--reconstruct",), 1, "recipe s-resnet: got nothing to reconstruct for"),
    "copies in whole numbers": (
        ("--recipe", "calibrated-fission", "--weights", "int8"),
        1,
        "weights int8 with differential spikes, or several neurons in place of one",
    ),
    "a recipe there is not": (("--recipe", "phase"), 2, "Did you mean phased?"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_one_line(folder, tmp_path, name):
    options, want, words = MISTAKES[name]
    code, out, err = folder(*few_steps(*options))
    assert (code, out) == (want, "") and words in err, err
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "tiny.pth"]
