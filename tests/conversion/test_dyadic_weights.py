"""Weights on a grid: every sum is exact in float32, so that the order of additions, device and engine do not matter."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from conftest import images, load_program, randomized
from sresnet_cli.__main__ import sresnet
from test_engine import by_steps
from test_fitting import model

from s_resnet import RECIPES, convert, load, save, simulate
from s_resnet.conversion import Context
from s_resnet.conversion.passes import dyadic_weights
from s_resnet.errors import ConversionError
from s_resnet.export import export_nir, export_npz, export_torch, verify_export
from s_resnet.graph import Neuron
from s_resnet.graph.alphabet import Differential
from s_resnet.graph.ops import Conv2d, Scale
from s_resnet.graph.provenance import AppliedPass
from s_resnet.models import CifarResNet
from s_resnet.simulation import SimulationSettings, closed_form
from s_resnet.simulation.simulate import encoder

T = 12


@pytest.fixture(scope="module")
def given():
    """A network with trained-like weights, 32 images, and its conversion by name of recipe."""
    x, made = images(32, 16, seed=5), {}
    network = randomized(CifarResNet(8, width=6, shortcut="B"))

    def converted(name):
        if name not in made:
            steps = 4 if name == "multilevel" else T
            made[name] = convert(network, [x], name, timesteps=steps), steps
        return made[name]

    return x, converted


def trains(graph, x, steps):
    """Everything that fires and the answers, in the order of the nodes."""
    seen = []
    found = simulate(graph, x, steps) if graph.windowed else simulate(graph, x, steps, SimulationSettings(chunk=1))
    seen.extend(found.spikes[node.name] for node in graph.neurons)
    return seen, found.outputs


def in_double(graph):
    return graph.to(torch.float64)


def shuffled(graph):
    """The same network with the channels inside of each block in another order, so that sums add in another order."""
    generator, nodes, order = torch.Generator().manual_seed(0), [], None
    for node in graph.nodes:
        op = node.op
        if node.name.endswith((".conv1", ".conv2")):
            weight = op.weight if op.spiking is None or op.spiking.weight is None else op.spiking.weight
            if node.name.endswith(".conv1"):
                order = torch.randperm(len(weight), generator=generator)
                op = replace(op, weight=weight[order], spiking=None, bias=op.bias[order])
            else:
                op = replace(op, weight=weight[:, order], spiking=None)
        nodes.append(replace(node, op=op))
    return replace(graph, nodes=tuple(nodes))


def test_channels_in_another_order_give_the_same_spikes(given):
    """On plain weights they do not: what rounding decides depends on the order."""
    x, converted = given
    plain = converted("s-resnet")[0]
    rounded = dyadic_weights(plain, Context())
    (ours, answers), (theirs, others) = trains(rounded, x, 64), trains(shuffled(rounded), x, 64)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert sum(int(a.sum()) for a in ours) > 10_000
    torch.testing.assert_close(answers, others, rtol=1e-6, atol=1e-6)
    assert not torch.equal(*(convolved(graph, x) for graph in (plain, shuffled(plain))))
    assert torch.equal(*(convolved(graph, x) for graph in (rounded, shuffled(rounded))))


def convolved(graph, x):
    """What the second convolution of the first block makes of spikes, half of which are there."""
    op = graph["layer1.0.conv2"].op
    weight = op.weight if op.spiking is None or op.spiking.weight is None else op.spiking.weight
    spikes = (x[:, :1] > 0).float().expand(-1, weight.shape[1], -1, -1)  # all channels alike, in whatever order
    return torch.nn.functional.conv2d(spikes, weight, op.bias, padding=1)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "s-resnet-released"])
def test_float32_spikes_as_float64(given, recipe):
    x, converted = given
    snn, steps = converted(recipe)
    rounded = dyadic_weights(snn, Context())
    (single, answers), (double, exact) = trains(rounded, x, steps), trains(in_double(rounded), x.double(), steps)
    assert all(torch.equal(a, b) for a, b in zip(single, double, strict=True))
    torch.testing.assert_close(answers.double(), exact, rtol=1e-5, atol=1e-5)
    assert rounded.alphabet == snn.alphabet and rounded.windowed == snn.windowed


def test_everything_that_a_layer_sums_is_on_its_grid_and_the_grid_is_the_finest(given):
    converted, coarser, checked = given[1], 0, 0
    for recipe in ("s-resnet", "calibrated-lagged", "multilevel"):
        rounded = dyadic_weights(converted(recipe)[0], Context())
        assert rounded.nodes[0].op.grid == 64
        for node in rounded.neurons:
            op, values, first = node.op, [], False
            channels = max(len(rounded[name].op.bias) for name in node.inputs if hasattr(rounded[name].op, "bias"))
            reach = torch.zeros(channels)
            for name in node.inputs:
                source = rounded[name].op
                weight = source.spiking.weight
                weight = weight.expand(channels) if isinstance(source, Scale) else weight
                weight = weight.reshape(channels, -1)
                of_images = rounded[name].inputs == ("input",)
                first |= of_images
                values.append(weight * 64 if of_images else weight)
                reach += (8 * 64 if of_images else op.max_emission) * weight.abs().sum(1)
                if not isinstance(source, Scale):
                    values.append(source.bias.view(-1, 1))
                    reach += source.bias.abs()
            if op.correction is not None:
                rows = op.correction.expand(1, channels) if op.correction.ndim < 2 else op.correction
                values.append(rows.T)
                reach += rows.abs().amax(0)
            values.append(torch.tensor(op.initial_potential).expand(channels, 1))
            limit, all_values = 2**24 / (64 if first else 16), torch.cat(values, 1)
            for most, row in zip(reach.tolist(), all_values, strict=True):
                fine = next(k for k in range(-20, 17) if k == 16 or most * 2 ** (k + 1) > limit * 1.001)
                assert most * 2**fine <= limit * 1.001
                assert torch.equal((row * 2.0**fine).round(), row * 2.0**fine), node.name
                coarser += torch.equal((row * 2.0 ** (fine - 1)).round(), row * 2.0 ** (fine - 1))
                checked += 1
    assert coarser < 0.02 * checked  # channels that would have needed one digit less


def test_the_source_stays_and_the_answer_hardly_changes(given):
    x, converted = given
    snn, _ = converted("s-resnet")
    rounded = dyadic_weights(snn, Context())
    for old, new in zip(snn.nodes, rounded.nodes, strict=True):
        if isinstance(old.op, Conv2d):
            assert torch.equal(old.op.weight, new.op.weight)
            scale = 64 if old.inputs == ("input",) else 1
            assert float((new.op.spiking.weight * scale - old.op.weight * old.op.spiking.gain).abs().max()) <= 2.0**-11
    torch.testing.assert_close(rounded.run(x), snn.run(x), rtol=1e-3, atol=1e-3)
    apart = (rounded(x, 256) - snn(x, 256)).abs().max() / snn.run(x).abs().max()
    assert float(apart) < 0.1


@pytest.mark.parametrize("coding", ["poisson", "events"])
def test_inputs_that_change_at_every_step(given, coding):
    """They count in steps of a 64th too; the loop of the engine's tests gets them rounded."""
    x, converted = given
    rounded = dyadic_weights(converted("s-resnet")[0], Context())
    frames = 2 * images(T * 4, 16, seed=8).view(T, 4, 3, 16, 16)
    if coding == "poisson":
        frames = encoder(x[:4], "poisson", 3, 0)(T)
        found = [
            simulate(rounded, x[:4], T, SimulationSettings(chunk=chunk, coding="poisson", seed=3), at=range(1, T + 1))
            for chunk in (T, 5)
        ]
    else:
        found = [simulate(rounded, frames, T, SimulationSettings(chunk=chunk), at=range(1, T + 1)) for chunk in (T, 5)]
    _, counts = by_steps(rounded, x[:4], T, (frames * 64).round().clamp(-512, 512))
    for result in found:
        for name, count in counts.items():
            assert torch.equal(result.spikes[name], count.cumsum(0)), name
            assert count.any(), f"{name} never fires: nothing was compared"


def test_images_count_in_steps_of_a_64th_within_8(given):
    x, converted = given
    rounded = dyadic_weights(converted("s-resnet")[0], Context())
    near = (x * 64).round() / 64
    assert torch.equal(rounded(x, T), rounded(near, T)) and not torch.equal(rounded(x, T), rounded(near + 1 / 64, T))
    huge = torch.full_like(x, 8.0)
    assert torch.equal(rounded(huge, T), rounded(huge * 3, T))


def test_the_closed_form_counts_the_same(given):
    x, converted = given
    rounded = dyadic_weights(converted("phased")[0], Context())
    closed, run = closed_form(rounded, x, 8), simulate(rounded, x, 8)  # rates of eighths are dyadic too
    assert all(torch.equal(closed.spikes[name], run.spikes[name]) for name in run.spikes)


def test_pools_and_projections_of_a_stem(given):
    """A max-pool and a projection with a batch norm: the network of the fitting tests."""
    x = images(16, 10, seed=3)
    rounded = dyadic_weights(convert(model(), [x], timesteps=T), Context())
    (single, _), (double, _) = trains(rounded, x, T), trains(in_double(rounded), x.double(), T)
    assert all(torch.equal(a, b) for a, b in zip(single, double, strict=True))


# ---- files ----


def test_it_is_saved_and_exported_as_it_is(given, tmp_path):
    x, converted = given
    snn, _ = converted("s-resnet")
    rounded = dyadic_weights(snn, Context())
    save(rounded, tmp_path / "x.snn")
    assert torch.equal(load(tmp_path / "x.snn")(x, T), rounded(x, T))
    export_torch(rounded, tmp_path / "x.pt2", 4, (3, 16, 16))
    program = load_program(tmp_path / "x.pt2").module()
    torch.testing.assert_close(program(x), rounded(x, 4), rtol=1e-6, atol=1e-6)
    export_npz(rounded, tmp_path / "x.npz")


def test_nir_files_take_whole_numbers_for_images(given, tmp_path):
    nir = pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
    x, converted = given
    rounded = dyadic_weights(converted("s-resnet")[0], Context())
    export_nir(rounded, tmp_path / "x.nir", input_shape=(3, 16, 16))
    assert "clip(round(64 x), -512, 512)" in str(nir.read(str(tmp_path / "x.nir")).metadata["input"])
    found = verify_export(tmp_path / "x.nir", rounded, x, T)
    assert found.spikes > 10_000 and found.mismatches == 0 and found.same_answers == len(x)


def test_pooled_images_count_in_steps_too():
    x = images(16, 10, seed=3)
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))
    network = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), *head)
    snn = convert(randomized(network), [x], timesteps=T)
    apart = dyadic_weights(snn, Context())(x, 64) - snn(x, 64)
    assert float(apart.abs().max()) < 0.05 * float(snn(x, 64).abs().max())


# ---- what is refused, and the command ----


def test_without_neurons_nothing_changes():
    steps = ("relu_to_neuron", "normalize", "compensate", "attach_readout")
    graph = convert(CifarResNet(8).eval(), recipe=RECIPES["s-resnet"].without(*steps))
    assert dyadic_weights(graph, Context()) is graph


@pytest.mark.parametrize(
    "change",
    [{"threshold": torch.tensor(2.0)}, {"decay": 0.5}, {"spikes": Differential()}],
    ids=lambda c: next(iter(c)),
)
def test_other_neurons_are_refused_by_name(given, change):
    snn, _ = given[1]("s-resnet")
    nodes = tuple(
        replace(node, op=replace(node.op, **change)) if isinstance(node.op, Neuron) else node for node in snn.nodes
    )
    with pytest.raises(ConversionError, match=r"^relu: got a threshold other than 1, a leak or differential"):
        dyadic_weights(replace(snn, nodes=nodes), Context())


def test_neurons_behind_pools_are_refused_by_name():
    with pytest.raises(ConversionError, match=r"AdaptiveAvgPool2d.*[Ll]eave weights"):
        dyadic_weights(convert(CifarResNet(8).eval(), recipe="s-resnet-released"), Context())


def test_the_program_converts_and_evaluates(tmp_path):
    checkpoint, out, report = tmp_path / "net.pth", tmp_path / "net.snn", tmp_path / "r.json"
    torch.save(randomized(CifarResNet(8)).state_dict(), checkpoint)
    run = CliRunner().invoke
    done = run(sresnet, ["convert", str(checkpoint), "--weights", "dyadic", "--timesteps", "8", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert load(out).provenance.recipe.passes[-1] == AppliedPass("dyadic_weights")
    arguments = ["--data", "digits", "--limit", "4", "--timesteps", "8", "--json", str(report)]
    done = run(sresnet, ["evaluate", str(out), *arguments])
    assert done.exit_code == 0 and json.loads(report.read_text())["images"] == 4, done.output
    wrong = run(sresnet, ["convert", str(checkpoint), "--weights", "binary", "-o", str(out)])
    assert wrong.exit_code == 2 and "dyadic" in wrong.output
