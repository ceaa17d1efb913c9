"""A network under fine-tuning is the simulated one, and its gradients are those of a loop over time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomized
from test_cli import program as program
from test_train import content, data, same_end
from torch import nn

import s_resnet
from s_resnet import RECIPES, Graph, convert, load, save, trace
from s_resnet.conversion import Context
from s_resnet.conversion.passes import dyadic_weights
from s_resnet.errors import InvalidData
from s_resnet.graph import GraphModule, Neuron, Node, Readout, StreamSettings
from s_resnet.graph.alphabet import Amplitudes, Differential, MultiThreshold, Signed
from s_resnet.graph.neuron import IntegerNeuron
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear
from s_resnet.graph.provenance import Provenance, SeenData
from s_resnet.kernels.surrogate.reference import Firing, fire_reference
from s_resnet.models import CifarResNet
from s_resnet.models.catalog import build

TUNABLE = ("s-resnet", "s-resnet-v0", "calibrated", "calibrated-constant", "calibrated-lagged", "phased")
ONE = torch.ones(())


class Pooled(nn.Module):
    """A stem with a max-pool and one residual block."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1)
        self.conv2, self.conv3 = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1, groups=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = F.relu(self.conv3(F.relu(self.conv2(x))) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network(recipe="calibrated-constant", timesteps=4, model=None, batch=6):
    """A converted network whose layers all fire, and its images."""
    x = images(batch, 16)
    model = model or randomized(CifarResNet(8, num_classes=5, width=4))
    asked = RECIPES[recipe].at(timesteps)
    snn = convert(model, [x], asked if asked.fits else asked.with_percentile(90))
    return snn, x


def dyadic(snn, x):
    return dyadic_weights(snn, Context()), (64 * x).round() / 64


# ---- the forward pass ----


@pytest.mark.parametrize("timesteps", [1, 4, 7])
@pytest.mark.parametrize("recipe", TUNABLE)
@pytest.mark.parametrize("pooled", [False, True], ids=["cifar", "max-pool"])
def test_it_fires_spike_for_spike_as_the_simulation(monkeypatch, pooled, recipe, timesteps):
    """Also for other T than the corrections by step were fitted to."""
    snn, x = dyadic(*network(recipe, model=randomized(Pooled()) if pooled else None))
    trains = {}
    for chunk in snn.stream(
        x,
        timesteps,
        timesteps,
        settings=StreamSettings(observe=lambda name, value: trains.update({name: value.float()})),
    ):
        answer = chunk.outputs[-1]
    fired = []

    def recording(current, firing):
        fired.append(fire_reference(current, firing))
        return fired[-1]

    monkeypatch.setattr("s_resnet.graph.module.fire", recording)
    module = GraphModule(snn, timesteps).eval()
    logits = module(x)
    expected = [trains[node.name] for node in snn.neurons]
    assert len(fired) == len(expected) and all(
        torch.equal(ours.flatten(0, 1), theirs) for ours, theirs in zip(fired, expected, strict=True)
    )
    assert sum(bool(train.any()) for train in expected) >= len(expected) - 1
    assert torch.allclose(logits, answer, atol=1e-5, rtol=0)


def test_weights_that_are_not_dyadic_give_the_same_answer_in_double_precision():
    snn, x = network("s-resnet", 16)
    snn, x = snn.to(torch.float64), x.double()
    assert all(node.op.spiking.gain != 1.0 for node in snn.nodes if isinstance(node.op, Conv2d))
    assert torch.allclose(GraphModule(snn, 16)(x), snn(x, 16), atol=1e-5, rtol=0)


# ---- gradients ----


def chain(schedule="streaming"):
    """Two layers of neurons behind each other, with a weighted readout; all on a dyadic grid."""
    draw = torch.Generator().manual_seed(3)

    def grid(*shape):
        return torch.randint(-8, 10, shape, generator=draw) / 16

    return Graph(
        (
            Node("input", Input(), ()),
            Node("stem", Conv2d(grid(4, 3, 3, 3), grid(4), (1, 1), (1, 1)), ("input",)),
            Node("one", Neuron(ONE, 0.5, correction=grid(3, 4)), ("stem",)),
            Node("conv", Conv2d(grid(4, 4, 3, 3), grid(4), (1, 1), (1, 1)), ("one",)),
            Node("two", Neuron(ONE, 0.5, schedule=schedule, correction=grid(4)), ("conv", "stem")),
            Node("flat", Flatten(), ("two",)),
            Node("fc", Linear(grid(5, 64), grid(5)), ("flat",)),
            Node("readout", Readout(torch.tensor(2.0), weights=torch.tensor([0.5, 1.0, 2.0])), ("fc",)),
        )
    )


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("schedule", ["streaming", "lagged", "phased"])
def test_gradients_are_those_of_a_loop_over_time(schedule, detach):
    """Written out step by step, without folding time into the batch or computing what is constant once."""
    graph, steps = chain(schedule).to(torch.float64), 3
    module = GraphModule(graph, steps, "triangle", 0.75, detach_reset=detach)
    x = (16 * images(2, 4).double()).round() / 16
    leaves = {name: value.detach().clone().requires_grad_() for name, value in module.network.named_parameters()}
    one = fire_reference(
        torch.stack([
            F.conv2d(x, leaves["stem.weight"], graph["stem"].op.bias, padding=1)
            + leaves["one.correction"][t].view(-1, 1, 1)
            for t in range(steps)
        ]),
        Firing(thresholds=(1.0,), surrogate="triangle", width=0.75, detach_reset=detach, initial=0.5),
    )  # fmt: skip
    currents = [
        F.conv2d(s, leaves["conv.weight"], graph["conv"].op.bias, padding=1)
        + F.conv2d(x, leaves["stem.weight"], graph["stem"].op.bias, padding=1)
        + leaves["two.correction"].view(-1, 1, 1)
        for s in one
    ]
    nothing = torch.zeros_like(currents[0])
    late = {
        "streaming": currents,
        "lagged": [currents[0] + currents[1], currents[2], nothing],
        "phased": [currents[0] + currents[1] + currents[2], nothing, nothing],
    }[schedule]
    two = fire_reference(
        torch.stack(late), Firing(thresholds=(1.0,), surrogate="triangle", width=0.75, detach_reset=detach, initial=0.5)
    )
    answers = [F.linear(s.flatten(1), leaves["fc.weight"], graph["fc"].op.bias) for s in two]
    expected = (0.5 * answers[0] + answers[1] + 2 * answers[2]) / 3.5 * 2 + leaves["readout.correction"]
    logits = module(x)
    assert torch.allclose(logits, expected, rtol=1e-12)
    target = images(2, 5)[:, 0, 0].double()
    ((logits - target) ** 2).sum().backward()
    ((expected - target) ** 2).sum().backward()
    for name, value in module.network.named_parameters():
        assert value.grad.any() and torch.allclose(value.grad, leaves[name].grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("schedule", ["phased", "streaming"])
def test_a_change_of_the_charge_reaches_one_spike_or_none(schedule):
    """The gradient of converted networks: the derivative of clip(charge, 0, T) once all of the charge is there."""
    charges = torch.tensor([-0.6, 0.1, 0.6, 1.2, 2.9, 3.3, 3.9, 4.6, 9.0])
    graph = Graph(
        (
            Node("input", Input(), ()),
            Node("conv", Conv2d(torch.ones(1, 1, 1, 1), torch.zeros(1)), ("input",)),
            Node("neuron", Neuron(ONE, 0.5, schedule=schedule), ("conv",)),
            Node("flat", Flatten(), ("neuron",)),
            Node("fc", Linear(torch.eye(len(charges)), None), ("flat",)),
            Node("readout", Readout(ONE), ("fc",)),
        )
    )
    x = (charges / 4).view(1, 1, 1, -1).requires_grad_()
    counts = 4 * GraphModule(graph, 4)(x)
    assert counts.flatten().tolist() == [0, 0, 1, 1, 3, 3, 4, 4, 4]
    counts.sum().backward()
    # A unit of current at each of 4 steps is 4 units of charge; streaming, the last one can come too late for a spike.
    late = {"phased": 4, "streaming": 3}[schedule]
    assert x.grad.flatten().tolist() == [0, 4, 4, 4, 4, late, 4, 0, 0]


# ---- what comes out ----


@pytest.mark.parametrize("recipe", ["calibrated", "phased"])
def test_a_step_changes_the_spiking_network_and_not_the_analog_one(tmp_path, recipe):
    snn, x = network(recipe)
    labels = torch.arange(6) % 5
    module = GraphModule(snn, 4)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned = module.graph()
    before = snn(x, 4)
    assert torch.allclose(tuned(x, 4), module(x), atol=1e-5) and not torch.allclose(tuned(x, 4), before, atol=1e-2)
    assert torch.equal(tuned.run(x), snn.run(x))
    save(tuned, tmp_path / "tuned.snn")
    assert torch.equal(load(tmp_path / "tuned.snn")(x, 4), tuned(x, 4))
    assert torch.equal(snn(x, 4), before), "the source network has changed"
    again = GraphModule(tuned, 4)  # from where the first tuning ended
    assert torch.equal(again(x), module(x))


def test_a_directly_trained_network_keeps_its_own_gradient():
    """Against the module that it was traced from, in evaluation: batch normalization is an affine map there."""
    source = randomized(build("ms_resnet8", 5, timesteps=3, width=4, input_shape=(3, 16, 16))).double()
    x = images(2, 16).double()
    graph = trace(source.float(), x.float()).to(torch.float64)
    source = source.double()
    module = GraphModule(graph, 3)
    assert torch.allclose(module(x), source(x), atol=1e-9)
    module(x).square().sum().backward()
    source(x).square().sum().backward()
    ours = dict(module.network.named_parameters())
    compared = 0
    for name, value in source.named_parameters():
        if name in ours:
            assert torch.allclose(ours[name].grad, value.grad, rtol=1e-6, atol=1e-9), name
            compared += bool(value.grad.any())
    assert compared >= 5
    tuned = module.graph()
    assert torch.equal(tuned(x, 3), graph(x, 3)) and all(
        getattr(node.op, "spiking", None) is None for node in tuned.nodes
    )


# ---- what cannot be tuned ----


def with_neuron(graph, **changes):
    nodes = (replace(n, op=replace(n.op, **changes)) if isinstance(n.op, Neuron) else n for n in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spikes": Signed()}, "signed"),
        ({"spikes": Amplitudes(2)}, "2-level"),
        ({"spikes": Differential()}, "differential"),
        ({"integer": IntegerNeuron(torch.ones(4, dtype=torch.int32))}, "integer"),
        ({"threshold": torch.tensor([1.0, 2.0, 1.0, 1.0])}, "normalized"),
        ({"spikes": MultiThreshold(torch.tensor([1.0, 2.0]))}, "several thresholds"),
    ],
)
def test_other_neurons_are_refused_by_name(changes, said):
    with pytest.raises(InvalidData, match=f"one: cannot be fine-tuned.*{said}"):
        GraphModule(with_neuron(chain(), **changes), 2)


def test_other_networks_are_refused():
    with pytest.raises(InvalidData, match="timesteps=0"):
        GraphModule(chain(), 0)
    with pytest.raises(InvalidData, match="without neurons"):
        GraphModule(trace(randomized(CifarResNet(8)), images(2, 32)), 2)
    with pytest.raises(InvalidData, match="score by spike count"):
        GraphModule(network("s-resnet-released")[0], 2)


# ---- fine-tuning ----

BRIEF = s_resnet.training.fine_tuning_defaults(epochs=10, batch_size=8, validation=6, lr=0.003, timesteps=3)


def told(split="train", count=30):
    """A network for images of three classes, and those: they differ in brightness."""
    snn, _ = network("calibrated-constant", 3, randomized(CifarResNet(8, num_classes=3, width=4)))
    seen = SeenData("made", split, 1, ("1-earlier",))
    snn = snn.with_provenance(preprocessing=s_resnet.data.preprocessing_for(16), data=seen)
    return snn, data(count, split=split, size=16)


def tune(path, snn, images, settings=BRIEF, **options):
    execution = s_resnet.training.Execution(device="cpu", workers=0, **options)
    return s_resnet.fine_tune(snn, images, path, settings, execution=execution)


def test_fine_tuning_learns_and_goes_on_to_the_same_end(tmp_path):
    snn, images = told()
    result = tune(tmp_path / "whole.pt", snn, images)
    assert result.kept and result.after > result.before and len(result.history) == 10
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.after == pytest.approx(result.history[-1]["validation_top1"])

    class Stop(Exception):
        pass

    def stop(entry):
        raise Stop

    for _ in range(2):  # killed after each of the first two epochs
        with pytest.raises(Stop):
            tune(tmp_path / "stopped.pt", snn, images, on_epoch=stop)
    again = tune(tmp_path / "stopped.pt", snn, images)
    assert same_end(tmp_path / "whole.pt", tmp_path / "stopped.pt")
    x = images_of(images)
    assert torch.equal(again.graph(x, 3), result.graph(x, 3)) and torch.equal(result.graph.run(x), snn.run(x))
    kept = result.graph.provenance
    assert kept.tuning.epochs == 10 and kept.tuning.top1_after == result.after
    assert kept.recipe == replace(snn.provenance.recipe, timesteps=3)
    assert kept.data.fingerprints == ("1-earlier",)  # these data have a split, so nothing need be told


def images_of(images):
    return torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 255


def test_data_without_a_split_tell_every_image_that_was_seen(tmp_path):
    snn, images = told("all")
    result = tune(tmp_path / "x.pt", snn, images)
    assert result.graph.provenance.data.images == 27
    marks = set(result.graph.provenance.data.fingerprints)
    unseen = [i for i in range(30) if not marks & set(s_resnet.data.fingerprints(images, [i]))]
    assert len(unseen) == 3 and len(marks) == 27 + 1  # a tenth is for testing; the rest, and what came before
    assert content(tmp_path / "x.pt")["history"][-1]["test_top1"] is not None


def test_what_is_no_better_is_not_kept(tmp_path):
    snn, images = told()
    result = tune(
        tmp_path / "x.pt",
        snn,
        images,
        s_resnet.training.fine_tuning_defaults(epochs=1, lr=1e-12, batch_size=8, timesteps=3),
    )
    assert not result.kept and result.graph is snn and result.before == result.after


def test_another_network_is_not_gone_on_with(tmp_path):
    snn, images = told()
    one = s_resnet.training.fine_tuning_defaults(epochs=1, batch_size=8, timesteps=3)
    tune(tmp_path / "x.pt", snn, images, one)
    other = GraphModule(snn, 3)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(s_resnet.SResNetError, match=r"network [0-9a-f]{32}"):
        tune(tmp_path / "x.pt", other.graph(), images, one)


def test_networks_and_data_that_do_not_fit_are_refused(tmp_path):
    snn, images = told()
    with pytest.raises(InvalidData, match=r"5 classes .* of 3"):
        tune(tmp_path / "x.pt", snn, data(20, classes=5, size=16))
    bare = replace(snn, provenance=Provenance())
    with pytest.raises(InvalidData, match="preprocessed"):
        tune(tmp_path / "x.pt", bare, images)
    with pytest.raises(InvalidData, match="no timesteps"):
        tune(
            tmp_path / "x.pt",
            bare.with_provenance(preprocessing=snn.provenance.preprocessing),
            images,
            s_resnet.training.fine_tuning_defaults(),
        )


def test_the_program_tunes_and_says_what_comes_next(program, tmp_path):
    pytest.importorskip("sklearn")
    torch.save(randomized(CifarResNet(8)).state_dict(), "x.th")
    convert_it = ("convert", "x.th", "--calibration", "digits", "--calibration-images", 32, "--input-size", 8)
    program.works(*convert_it, "--recipe", "calibrated-constant", "--timesteps", 3, "-o", "x.snn")
    tuning = ("train", "--from", "x.snn", "--data", "digits", "--limit", 64, "--batch-size", 16, "--workers", 0,
              "--validation", 20, "--device", "cpu", "-o", "y.snn")  # fmt: skip
    *epochs, done, following = program.works(*tuning, "--epochs", 2, "--lr", 0.003).splitlines()
    assert [line[:9] for line in epochs] == ["epoch 1/2", "epoch 2/2"] and done.startswith(
        "y.snn: fine-tuned at T = 3, "
    )
    assert following == "Next: sresnet evaluate y.snn"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["x.snn", "x.th", "y.snn"]
    assert program.works(*following.split()[2:], "--limit", 20)
    assert program(*tuning, "--epochs", 1)[0] == 2  # y.snn is there
    code, _, err = program(*tuning, "--force", "--epochs", 1, "--lr", 1e-12)
    assert code == 1 and "not written, got" in err
    for wrong in (("--width", 4), ("--preset", "paper"), ("ms_resnet8",), ("--recompute",), ("--activation", "relu")):
        assert program(*tuning, "--force", *wrong)[0] == 2, wrong
    assert program("train", "--data", "digits", "-o", "z.snn")[0] == 2
