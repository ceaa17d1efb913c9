"""Where a network loses what, and how a trained one fires: by construction, by the modules, by hand; what is said."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from conftest import images as noise
from conftest import randomized
from trained_networks import CLASSES, FAMILIES, SIZE, T, trained, watched

from s_resnet import RECIPES, Graph, convert, evaluate, simulate, verify
from s_resnet.analysis.losses import MEASURES, PARTS, split
from s_resnet.conversion import Context, passes
from s_resnet.errors import InvalidData
from s_resnet.graph.alphabet import Amplitudes, Differential, MultiThreshold, Signed, Surrogate
from s_resnet.graph.neuron import Neuron
from s_resnet.graph.ops import SYNAPSES, Conv2d, Flatten, Input, Linear, Node, SpikingWeights
from s_resnet.graph.provenance import AppliedPass, AppliedRecipe, Provenance
from s_resnet.graph.readout import Readout, SpikingMaxPool2d
from s_resnet.kernels.surrogate.reference import Firing, fire_reference
from s_resnet.models import CifarResNet
from s_resnet.simulation.lockstep import fire_mean, lockstep, order_free


def scalar(*values):
    """Images of one pixel and one channel."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def conv(*weights):
    """A synapse from one channel to each of ``weights``."""
    return Conv2d(torch.tensor(weights).view(-1, 1, 1, 1), None)


def build(*rows, classifier=((1.0,),)):
    """A network of the rows (name, op, inputs), by default of the row before, then a classifier and a readout."""
    rows = [("input", Input()), *rows, ("flat", Flatten()), ("fc", Linear(torch.tensor(classifier), None))]
    rows += [("readout", Readout(torch.ones(())))]
    nodes = [Node(row[0], row[1], row[2:] or (rows[i - 1][0],) if i else ()) for i, row in enumerate(rows)]
    return Graph(tuple(nodes)).validate()


def one(**neuron):
    """A single neuron that the image itself drives."""
    return build(("conv", conv(1.0)), ("neuron", Neuron(torch.tensor(1.0), **neuron)))


def uneven(**neuron):
    """For an image of 1/4 the last neuron gets 1, 1, 0, -1: twice 1 is sent before it turns out to be too much."""
    early = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]])
    return build(
        ("plus", conv(2.0), "input"),
        ("early", Neuron(torch.tensor(1.0), correction=early), "plus"),
        ("minus", conv(1.0), "input"),
        ("late", Neuron(torch.tensor(1.0)), "minus"),
        ("excite", conv(1.0), "early"),
        ("inhibit", conv(-1.0), "late"),
        ("last", Neuron(torch.tensor(1.0), **neuron), "excite", "inhibit"),
    )


# ---- each part alone, by hand


def alone(network, part, *values):
    """The error of the last layer at T = 4, of which ``part`` is all there is."""
    errors = verify(network, [scalar(*values)], 4).layers[-1].errors
    assert {name for name in PARTS if errors[name] > 1e-12} == {part}
    assert errors["total"] == pytest.approx(errors[part])
    assert errors["own"] == pytest.approx(0.0 if part == "inherited" else errors[part])
    return errors[part]


def test_nothing_is_lost_on_the_grid_of_the_counts():
    layer = verify(one(), [scalar(0.0, 0.25, 0.5, 0.75, 1.0, -3.0)], 4).layers[0]
    assert layer.errors == dict.fromkeys(MEASURES, 0.0)
    assert layer.rate == 2.5 / 6 and layer.unsettled == 0


def test_quantization_alone():
    """T = 4: 0.6 is said as 0.5 and 0.9 as 0.75; with v(0) = 1/2 as 0.5 and 1."""
    signal = math.hypot(0.6, 0.9)
    assert alone(one(), "quantization", 0.6, 0.9) == pytest.approx(math.hypot(0.1, 0.15) / signal)
    rounded = one(initial_potential=0.5)
    assert alone(rounded, "quantization", 0.6, 0.9) == pytest.approx(math.hypot(0.1, 0.1) / signal)


def test_clipping_alone():
    """A step says 1 at most; with two levels 3."""
    assert alone(one(), "clipping", 0.5, 1.5) == pytest.approx(0.5 / math.hypot(0.5, 1.5))
    assert alone(one(spikes=Amplitudes(2)), "clipping", 1.5, 3.5) == pytest.approx(0.5 / math.hypot(1.5, 3.5))


def test_unevenness_alone():
    """2 spikes where the charge is worth 1; a neuron that takes back, or waits, is right."""
    assert alone(uneven(), "unevenness", 0.25) == pytest.approx(1.0)
    layer = verify(uneven(), [scalar(0.25)], 4).layers[-1]
    assert (layer.rate, layer.unsettled) == (0.5, 1.0)
    for exact in ({"spikes": Signed()}, {"schedule": "phased"}):
        layer = verify(uneven(**exact), [scalar(0.25)], 4).layers[-1]
        assert (layer.rate, layer.unsettled, layer.errors["total"]) == (0.25, 0.0, 0.0)


def test_inherited_alone():
    """A compensation of 2 on the first synapse: 0.25 arrives as 0.5. Corrections by 1 in all make 0.25 0.5 as well."""
    for correction in ([0.25], [[0.0], [0.0], [0.0], [1.0]]):
        assert alone(uneven(correction=torch.tensor(correction)), "inherited", 0.25) == pytest.approx(1.0)
    assert alone(changed(one(), Conv2d, spiking=SpikingWeights(gain=2.0)), "inherited", 0.25) == pytest.approx(1.0)


def test_a_reset_to_zero_loses_charge_unevenly():
    """0.75 a step from v = 0: fires at every other step and forgets 0.5 each time; the charge is worth 3 of 4."""
    assert alone(one(reset="zero"), "unevenness", 0.75) == pytest.approx(1 / 3)


def test_a_differential_layer_says_both_as_one():
    network = one(initial_potential=0.5, spikes=Differential(2))
    result = verify(network, [scalar(0.3, 1.1, 20.0)], 4)
    (layer,) = result.layers
    assert layer.differential and layer.errors["unevenness"] == layer.unsettled == 0.0
    reach = 3 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert layer.errors["clipping"] == pytest.approx((20 - reach) / math.hypot(0.3, 1.1, 20))
    assert layer.rate > reach / 3 and layer.saturated == (0,)
    assert 0 < layer.errors["quantization"] < 0.01
    assert "quantization and unevenness" in verify(network, [scalar(0.3, 1.1)], 4).verdict


def test_the_layer_weighs_its_channels_in_the_units_of_the_source():
    """Channels of which one spike is worth 1 and 100, the second alone wrong by half of its signal."""
    network = build(
        ("conv", conv(0.5, 3.0)), ("neuron", Neuron(torch.ones(()), scale=torch.tensor([1.0, 100.0]))),
        classifier=((1.0, 1.0),),
    )  # fmt: skip
    layer = verify(network, [scalar(1.0)], 4).layers[0]
    assert layer.channels["clipping"] == (0.0, pytest.approx(2 / 3))
    assert layer.errors["clipping"] == pytest.approx(200 / math.hypot(0.5, 300))


# ---- a residual network


def residual(recipe="s-resnet", weights="float32"):
    """A small residual network and a few images, those that it was calibrated on."""
    x = noise(12, 8)
    return convert(randomized(CifarResNet(8, width=4)), [x], RECIPES[recipe].at(6).with_weights(weights)), x


@pytest.mark.parametrize("recipe", ["s-resnet", "s-resnet-released", "phased", "signed", "multilevel"])
def test_the_four_parts_sum_to_the_distance(recipe):
    """Neuron by neuron, from spikes and activations that are computed apart from the parts."""
    network, x = residual(recipe)
    activations = dict(network.activations(x))
    seen = []

    def visit(node, currents, target):
        if isinstance(node.op, Neuron):
            parts = split(node.op, currents, target, 6)
            output = fire_mean(node.op, currents, 6).mean(0)
            torch.testing.assert_close(target, activations[node.name])
            total = parts.unevenness + parts.quantization + parts.clipping + parts.inherited
            torch.testing.assert_close(total, (output - target).double(), rtol=0, atol=1e-6)
            assert (parts.clipping <= 0).all() and (parts.counts >= 0).all()
            assert (parts.unevenness.abs() < 1e-12).logical_xor(parts.settled.logical_not()).all()
            seen.append(float(parts.inherited.abs().max()))
        return node.op

    lockstep(network, x, 6, visit)
    assert len(seen) == len(network.neurons) >= 7 and max(seen) > 0.01


def changed(network, kind, **settings):
    """The network with other settings of all operations of a kind."""
    nodes = [replace(n, op=replace(n.op, **settings)) if isinstance(n.op, kind) else n for n in network.nodes]
    return replace(network, nodes=tuple(nodes))


def dyadic(network):
    """The network with weights on a grid of 1/64, so that sums are exact in any order."""

    def rounded(op):
        named = {name: getattr(op, name, None) for name in ("weight", "bias")}
        found = {name: (value * 64).round() / 64 for name, value in named.items() if value is not None}
        return replace(op, **found) if found else op

    return replace(network, nodes=tuple(replace(node, op=rounded(node.op)) for node in network.nodes))


@pytest.mark.parametrize("schedule", ["streaming", "phased"])
def test_the_counts_are_those_of_the_simulation(schedule):
    network, x = residual()
    network, x = changed(dyadic(network), SYNAPSES, spiking=None), (x * 16).round() / 16
    network = changed(network, Neuron, schedule=schedule)
    assert order_free(network) == (schedule == "phased")
    result, spikes = verify(network, [x[:7], x[7:]], 8), simulate(network, x, 8).spikes
    sizes = {name: value[0].numel() for name, value in network.activations(x[:1])}
    counted = {layer.name: round(layer.rate * 8 * len(x) * sizes[layer.name], 6) for layer in result.layers}
    assert counted == {name: float(count.sum()) for name, count in spikes.items()}
    assert min(counted.values()) > 0
    unsettled = [layer.unsettled for layer in result.layers]
    assert max(unsettled) == 0 if schedule == "phased" else max(unsettled) > 0.01


@pytest.mark.parametrize("recipe", ["s-resnet", "s-resnet-released", "phased"])
def test_the_answers_are_those_of_the_networks(recipe):
    network, x = residual(recipe)
    labels = torch.arange(len(x)) % 10
    result = verify(network, [(x[:5], labels[:5]), (x[5:], labels[5:])], 6)
    snn, ann = network(x, 6).double(), network.run(x).double()
    assert result.logit_error == pytest.approx(float((snn - ann).norm() / ann.norm()), rel=1e-4)
    assert result.agreement == float((snn.argmax(1) == ann.argmax(1)).double().mean())
    right = {name: (logits.argmax(1) == labels).double().mean() for name, logits in (("ann", ann), ("snn", snn))}
    assert result.top1 == right
    assert verify(network, [x], 6).top1 == {} and result.images == len(x)


def test_batches_and_parts_of_them_change_no_figure(monkeypatch):
    network, x = residual()
    whole = verify(network, [x], 6)
    monkeypatch.setattr(sys.modules["s_resnet.analysis.verify"], "images_that_fit", lambda *_: 5)
    parts = verify(network, [x], 6)
    assert parts.images == whole.images and parts.agreement == whole.agreement
    for one, other in zip(parts.layers, whole.layers, strict=True):
        assert one.errors == pytest.approx(other.errors, rel=1e-3)


def test_a_phased_readout_by_spikes_is_simulated():
    """Mean currents do not tell when the classifier's neurons fire."""
    network = changed(one(schedule="phased"), Readout, mode="spikes")
    x = scalar(0.6, 0.9)
    ann, snn = network.run(x).double(), network(x, 4).double()
    assert verify(network, [x], 4).logit_error == pytest.approx(float((snn - ann).norm() / ann.norm()), rel=1e-5)


def test_neurons_behind_a_max_pool():
    """Windows of uneven trains: the pool hands on the largest count, and the neuron behind it keeps it."""
    pixels = torch.tensor([0.25, 0.5, 1.0, 0.75, 0.3, 0.1, 0.0, 0.2]).view(1, 1, 2, 4)
    rows = ("conv", conv(1.0)), ("neuron", Neuron(torch.tensor(1.0))), ("pool", SpikingMaxPool2d((2, 2), (2, 2)))
    rows += ("again", conv(1.0)), ("behind", Neuron(torch.tensor(1.0)))
    for schedule in ("streaming", "phased"):
        network = changed(build(*rows, classifier=((1.0, 1.0),)), Neuron, schedule=schedule)
        before, behind = verify(network, [pixels], 4).layers
        assert before.rate == pytest.approx(2.75 / 8)  # 1 2 4 3 / 1 0 0 0 quarters
        assert behind.rate == 0.75 and behind.errors["total"] == 0.0  # 2 and 4 quarters


# ---- dead and saturated channels


def test_dead_and_saturated_channels():
    """Four channels: dead (0.1 never makes a spike), silent in the source too, saturated, and a healthy one."""
    network = build(("conv", conv(0.1, -1.0, 2.0, 0.5)), ("neuron", Neuron(torch.ones(()))), classifier=((1.0,) * 4,))
    (layer,) = verify(network, [scalar(*[1.0] * 50)], 4).layers
    assert (layer.dead, layer.saturated) == ((0,), (2,))
    assert layer.channels["rate"] == (0.0, 0.0, 1.0, 0.5) and layer.channels["saturation"] == (0.0, 0.0, 1.0, 0.0)
    assert layer.channels["quantization"] == (pytest.approx(1.0), 0.0, 0.0, 0.0)
    assert layer.channels["clipping"] == (0.0, 0.0, pytest.approx(0.5), 0.0)


@pytest.mark.parametrize(("stuck", "of", "found"), [(1, 100, ()), (2, 100, (0,))])
def test_a_channel_is_saturated_from_one_percent_on(stuck, of, found):
    """A full rate that says the activation exactly is none of them."""
    values = scalar(*[2.0] * stuck, *[1.0] * (of - stuck))
    (layer,) = verify(one(), [values], 4).layers
    assert layer.rate == 1.0 and layer.saturated == found


# ---- the verdict


def test_the_first_layer_that_breaks_is_named_with_its_cause():
    """The second of two layers says 1 for 1.9, which is 47 % too little, then 1 for 2.5, which is 60 %."""
    rows = [("conv", conv(1.0)), ("first", Neuron(torch.tensor(1.0))), ("up", conv(1.9)),
            ("second", Neuron(torch.tensor(1.0)))]  # fmt: skip
    x = scalar(1.0)
    sound = verify(build(*rows), [x], 4)
    assert sound.breaks is None and sound.worst == "second" and sound.cause == "clipping"
    assert sound.verdict.startswith("No layer breaks: the largest error is 47.4%, in second.")
    rows[2] = ("up", conv(2.5))
    broken = verify(build(*rows), [x], 4)
    assert broken.breaks == broken.worst == "second" and broken.cause == "clipping"
    assert broken.verdict.startswith("second is the first to break: its error is 60.0% of its signal (60.0% its own, ")
    assert "mostly clipping" in broken.verdict
    assert "percentile" in broken.advice and 'recipe="calibrated"' in broken.advice


@pytest.mark.parametrize(
    ("network", "value", "cause", "said"),
    [
        (one(), 0.3, "quantization", ("timesteps=8", "multilevel")),
        (one(), 1.5, "clipping", ("more calibration images", "percentile")),
        (uneven(), 0.25, "unevenness", ('recipe="phased"', 'recipe="signed"')),
        (one(), 0.25, "inherited", ("recipe.reconstructed()",)),
    ],
)
def test_the_advice_follows_the_cause(network, value, cause, said):
    result = verify(network, [scalar(value)], 4)
    assert result.cause == cause and all(text in result.advice for text in said)
    assert "{" not in result.advice


@pytest.mark.parametrize(
    ("network", "value", "cause", "said"),
    [
        (one(), 0.3, "quantization", "a larger T (convert with timesteps=8); or training with more levels."),
        (one(), 1.5, "clipping", "longer training, which learns the thresholds; or s_resnet.fine_tune"),
        (
            uneven(),
            0.25,
            "unevenness",
            'recipe="phased", whose layers fire after they have received all their input; or s_resnet',
        ),
        (one(), 0.25, "inherited", "what would help: s_resnet.fine_tune"),
    ],
)
def test_qcfs_networks_are_told_what_convert_allows(network, value, cause, said):
    result = verify(network.with_provenance(recipe=AppliedRecipe("qcfs-streaming")), [scalar(value)], 4)
    assert result.cause == cause and said in result.advice
    assert not any(word in result.advice for word in ("signed", "calibrat", "multilevel", "percentile"))


def test_no_one_is_told_to_do_what_was_done():
    network = uneven().with_provenance(recipe=AppliedRecipe("signed"))
    advice = verify(network, [scalar(0.25)], 4).advice
    assert 'recipe="phased"' in advice and "signed" not in advice and "calibrated" not in advice
    small = one().with_provenance(recipe=AppliedRecipe("phased", passes=(AppliedPass("reconstruct"),)))
    assert verify(small, [scalar(0.9)], 40).cause == "unevenness"  # nothing is lost: the first of the parts
    assert verify(small, [scalar(0.91)], 40).cause == "quantization"
    assert verify(one(), [scalar(0.91)], 40).cause == "inherited"


# ---- directly trained networks: against the modules, against autograd, and by hand

X = noise(6, SIZE)


def dormant(module, currents):
    """Neurons and images through which autograd passes nothing at any step, ``[B, *]``."""
    currents, firing = currents.detach().requires_grad_(), module.firing
    spikes = fire_reference(
        currents,
        Firing(
            thresholds=firing.thresholds,
            decay=firing.decay,
            reset=firing.reset,
            surrogate=firing.surrogate,
            width=firing.width,
            detach_reset=True,
        ),
    )
    weights = torch.rand(spikes.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((spikes * weights).sum(), currents)
    return (gradient == 0).all(0)


def channels(values):
    """The channels ``[C]`` of ``[..., C, H, W]`` after ``values`` as a mean over all else."""
    return values.double().mean((0, 2, 3))


@pytest.mark.parametrize("folded", [False, True], ids=["traced", "folded"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_layers_of_a_trained_network_are_those_of_its_module(arch, folded):
    model, graph = trained(arch)
    graph = passes.fold_batchnorm(graph, Context()) if folded else graph
    modules = dict(model.named_modules())
    for steps in (1, T, 2 * T - 1):
        found = verify(graph, [X[:4], X[4:]], steps)
        logits, seen = watched(model, X, steps)
        before, known = watched(model, X, T)
        assert found.trained_for == T and [layer.name for layer in found.layers] == list(seen)
        for layer in found.layers:
            given, spikes = (part.detach() for part in seen[layer.name])
            asleep, most = dormant(modules[layer.name], given), len(modules[layer.name].firing.thresholds)
            full = (spikes == most).all(0)
            assert layer.rate == pytest.approx(spikes.double().mean().item(), rel=1e-12)
            assert layer.dormant == pytest.approx(asleep.double().mean().item())
            assert layer.channels["dormant"] == pytest.approx(channels(asleep).tolist())
            assert layer.channels["saturation"] == pytest.approx(channels(full).tolist())
            silent = (spikes == 0).transpose(2, 0).flatten(1).all(1).nonzero()[:, 0].tolist()
            assert layer.dead == tuple(silent)
            assert layer.saturated == tuple((channels(full) > 0.01).nonzero()[:, 0].tolist())
            mean, trained_mean = spikes.double().mean(0), known[layer.name][1].double().mean(0)
            assert layer.drift == pytest.approx(float((mean - trained_mean).norm() / trained_mean.norm()))
        assert found.logit_error == pytest.approx(float((logits - before).norm() / before.norm()), abs=1e-6)
        assert found.agreement == pytest.approx(float((logits.argmax(1) == before.argmax(1)).double().mean()))


def learned(**neuron):
    """A single neuron that the image itself drives, trained for 4 steps."""
    op = Neuron(torch.tensor(0.5), decay=0.25, reset="zero", amplitude=1.0, surrogate=Surrogate("rectangle"))
    nodes = (
        Node("input", Input(), ()),
        Node("conv", Conv2d(torch.ones(1, 1, 1, 1), None), ("input",)),
        Node("neuron", replace(op, **neuron), ("conv",)),
        Node("flat", Flatten(), ("neuron",)),
        Node("fc", Linear(torch.tensor([[1.0], [-1.0]]), None), ("flat",)),
        Node("mean", Readout(torch.ones(())), ("fc",)),
    )
    return Graph(nodes, Provenance(AppliedRecipe("trained", 4))).validate()


def layer_of(graph, *values, steps=4):
    return verify(graph, [torch.tensor(values).view(-1, 1, 1, 1)], steps).layers[0]


def test_trained_neurons_by_hand():
    """Decay 1/4, threshold 1/2, window (0, 1): u = 0.4, 0.5 (spike), 0.4, 0.5 ...; -1 and 1 never lie in it."""
    assert layer_of(learned(), 0.4).rate == 0.5 and layer_of(learned(), 0.4).dormant == 0
    asleep = layer_of(learned(), -1.0, 1.0, 0.25)
    assert asleep.dormant == 2 / 3 and asleep.rate == 1 / 3 and asleep.saturated == (0,)
    assert layer_of(learned(surrogate=Surrogate("rectangle", 2.5)), -0.5, 1.0).dormant == 0
    assert (
        layer_of(learned(surrogate=Surrogate("triangle")), -0.75, 1.0).dormant == 1 / 2
    )  # the triangle's reach is (-0.5, 1.5)
    assert layer_of(learned(surrogate=Surrogate("arctan")), -9.0, 9.0).dormant == 0
    # Three levels: 1.2 lies in the second window, fires the first at once, 1.2 + 0.3 + 0.075 ... never the second.
    levels = torch.tensor([0.6, 1.6, 2.6])
    several = learned(threshold=levels[0], spikes=MultiThreshold(levels))
    assert layer_of(several, 1.2).rate == 1 and layer_of(several, 9.0).saturated == (0,)
    assert layer_of(several, 9.0).dormant == 1 and layer_of(several, 1.2, 9.0).dormant == 1 / 2
    assert layer_of(several, 9.0).rate == 3


def test_drift_by_hand():
    """0.4 spikes in every second step: after one step nothing, after 4 half; the logits 1/2 and -1/2."""
    found = verify(learned(), [torch.full((1, 1, 1, 1), 0.4)], 1)
    assert found.layers[0].drift == 1.0 and found.logit_error == 1.0 and found.trained_for == 4
    assert "trained for T = 4" in found.verdict and found.layers[0].dead == (0,)
    again = verify(learned(), [torch.full((1, 1, 1, 1), 0.4)], 4)
    assert again.layers[0].drift == again.logit_error == 0 and again.agreement == 1
    silent = verify(learned(), [torch.full((1, 1, 1, 1), -1.0)], 4)
    assert silent.logit_error == 0 and "never fire" in silent.verdict and "No gradient" in silent.advice


def test_the_json_of_a_trained_network_has_the_keys_of_a_converted_one(tmp_path):
    _, graph = trained("ds_resnet8")
    labels = torch.arange(len(X)) % CLASSES
    found = verify(graph, [(X, labels)], 1, network="a.snn")
    found.save(tmp_path / "a.json")
    entry = json.loads((tmp_path / "a.json").read_text())
    assert entry["schema"] == 1 and entry["trained_for"] == T and set(entry["top1"]) == {"snn", "trained"}
    assert entry["breaks"] is entry["worst"] is entry["cause"] is None
    assert all(layer["errors"] is None and layer["unsettled"] is None for layer in entry["layers"])
    shares = [float((graph(X, steps).argmax(1) == labels).double().mean()) for steps in (1, T)]
    assert [entry["top1"]["snn"], entry["top1"]["trained"]] == shares
    assert set(verify(graph, [(X, labels)], T).top1) == {"snn"}


def test_what_has_no_meaning_is_none():
    """One type for both kinds; the JSON of a converted network has no keys of a trained one."""
    found, other = (
        verify(learned(), [torch.full((2, 1, 1, 1), 0.4)], 4),
        verify(learned(surrogate=None), [torch.ones(2, 1, 1, 1)], 4),
    )
    assert type(found) is type(other) and type(found.layers[0]) is type(other.layers[0])
    assert found.breaks is found.worst is found.cause is other.trained_for is None
    assert found.layers[0].errors is found.layers[0].unsettled is None
    assert other.layers[0].dormant is other.layers[0].drift is None and other.worst == "neuron"
    trained, entry = found.to_dict(), other.to_dict()
    assert trained.keys() - entry.keys() == {"trained_for"}
    assert trained["layers"][0].keys() - entry["layers"][0].keys() == {"dormant", "drift"}


def test_the_table_of_a_trained_network(tmp_path):
    result = verify(trained("ms_resnet8")[1], [X], 1, network="a.snn")
    header, table, logits, said = result.table().split("\n\n")
    rows = table.splitlines()
    assert rows[0].split() == ["layer", "rate", "dead", "dormant", "drift"]
    assert len(rows) == 1 + len(result.layers) and rows[1].split()[0] == "body.0.0.neuron1"
    assert f"(trained for {T})" in header and "agreement" in logits and result.verdict in said
    _, table, said = verify(trained("ms_resnet8")[1], [X], T).table().split("\n\n")
    assert "drift" not in table and "agreement" not in said
    assert "saturated" in verify(trained("ms_resnet8")[1], [X], 4).table()


def test_events_step_by_step():
    """Events [T, B, C, H, W]: the same figures as the module's; fewer frames than steps are refused."""
    model, graph = trained("ms_resnet8")
    events = torch.stack([noise(4, SIZE, seed=seed) for seed in range(T)])
    labels = torch.arange(4)
    found = verify(graph, [(events, labels)], T)
    logits, seen = watched(model, events, T)
    for layer in found.layers:
        given, spikes = seen[layer.name]
        asleep = dormant(dict(model.named_modules())[layer.name], given)
        assert layer.rate == pytest.approx(spikes.double().mean().item())
        assert layer.dormant == pytest.approx(asleep.double().mean().item())
    top1 = float((logits.argmax(1) == labels).double().mean())
    assert found.top1 == {"snn": pytest.approx(top1)} and found.images == 4
    report = evaluate(graph, [(events, labels)], T, at=(1, T))
    assert report.snn[1].top1 == pytest.approx(top1) and report.snn[1].agreement == 1 and report.images == 4
    with pytest.raises(InvalidData, match=rf"{T} frames of events for {T + 1} steps"):
        verify(graph, [events], T + 1)


# ---- the JSON, and what is refused


def test_json_has_every_channel_and_no_infinity(tmp_path):
    """A channel that fires where the source is silent has an infinite relative error."""
    neuron = Neuron(torch.ones(()), correction=torch.tensor([0.0, 0.5]))
    network = build(("conv", conv(0.5, -0.0)), ("neuron", neuron), classifier=((1.0, 1.0),))
    result = verify(network, [scalar(1.0)], 4, network="by-hand.snn")
    result.save(tmp_path / "out.json")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored == result.to_dict()
    assert (stored["schema"], stored["network"], stored["timesteps"], stored["images"]) == (1, "by-hand.snn", 4, 1)
    assert {"verdict", "advice", "breaks", "worst", "cause", "logit_error", "agreement", "top1"} <= stored.keys()
    (layer,) = stored["layers"]
    assert layer["channels"]["rate"] == [0.5, 0.5] and layer["channels"]["inherited"] == [0.0, None]
    assert set(layer["channels"]) == {"rate", "saturation", *MEASURES} and set(layer["errors"]) == set(MEASURES)
    assert result.layers[0].channels["inherited"][1] == math.inf


def half_trained():
    """A trained network of which one layer sends signed spikes."""
    graph = trained("ms_resnet8")[1]
    odd = replace(graph["body.3"], op=replace(graph["body.3"].op, reset="subtract", spikes=Signed()))
    return replace(graph, nodes=tuple(odd if node.name == odd.name else node for node in graph.nodes))


@pytest.mark.parametrize(
    ("change", "timesteps", "batches", "said"),
    [
        (None, 0, [scalar(1.0)], "timesteps=0"),
        (None, 4, [], "no images"),
        (None, 4, [torch.zeros(0, 1, 1, 1)], "no images"),
        (None, 4, [(scalar(1.0), torch.tensor([0, 0]))], "labels of shape (2,)"),
        (None, 4, [(scalar(1.0), torch.tensor([1]))], "label 1 for a network of 1 classes"),
        (None, 4, [torch.zeros(1, 3, 1, 1)], "expected 1 channels"),
        (lambda g: replace(g, nodes=g.nodes[:-1]), 4, [scalar(1.0)], "ends in Linear"),
        (lambda g: replace(g, nodes=g.nodes[:2]), 4, [scalar(1.0)], "without neurons"),
        (lambda g: residual(weights="int8")[0], 4, [noise(1)], "integer network"),
        (lambda g: learned(), 0, [scalar(1.0)], "timesteps=0"),
        (lambda g: learned(), 2, [], "no images"),
        (lambda g: learned(), 2, [(scalar(1.0), torch.tensor([9]))], "label 9 for a network of 2 classes"),
        (lambda g: half_trained(), 2, [X], "body.3"),
    ],
)
def test_what_cannot_be_verified_is_refused(change, timesteps, batches, said):
    network = one() if change is None else change(one())
    with pytest.raises(InvalidData) as error:
        verify(network, batches, timesteps)
    assert said in str(error.value) and "expected" in str(error.value) and str(error.value).endswith(".")
