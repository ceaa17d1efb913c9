"""The integer network against a loop in plain 64-bit integers, and against the network that it was made from."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from sresnet_cli.__main__ import sresnet

from s_resnet import RECIPES, convert, load, save, simulate
from s_resnet.conversion import Context
from s_resnet.conversion.passes import quantize_weights
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph import Graph, Node, Readout
from s_resnet.graph.engine import prepare
from s_resnet.graph.neuron import IntegerNeuron, Neuron
from s_resnet.graph.ops import Conv2d, Flatten, Input, IntegerWeights, Linear, Scale
from s_resnet.kernels.build import compiler
from s_resnet.models import CifarResNet
from s_resnet.simulation import SimulationSettings


@pytest.fixture(scope="module")
def networks():
    """A small residual network with both kinds of shortcut, its images, and its integer network."""
    torch.manual_seed(0)
    images = torch.randn(24, 3, 16, 16)
    model = CifarResNet(8, num_classes=10, shortcut="B").train()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    model.eval()
    snn = convert(model, [images], RECIPES["s-resnet"].with_percentile(99.9), timesteps=32)
    return snn, images[:6], quantize_weights(snn, Context())


def integer_loop(graph, images, steps):
    """The integer network step by step in int64 with unfolded convolutions: spikes per neuron layer ``[T, ...]``."""
    value, membrane, spikes = {}, {}, {}
    grid = graph.nodes[0].op.grid
    pixels = (images.double() * grid).round().clamp(-8 * grid, 8 * grid).long()
    for _ in range(steps):
        for node in graph.nodes:
            op, inputs = node.op, [value[name] for name in node.inputs if name in value]
            if node is graph.nodes[0]:
                value[node.name] = pixels
            elif isinstance(op, Conv2d):
                summed = convolve(inputs[0], op)
                own = op.integer
                if own.grid:  # half to even, as torch rounds
                    summed = (summed.double() / own.grid).round().long()
                bias = 0 if own.bias is None else own.bias.long().view(-1, 1, 1)
                value[node.name] = summed + bias
            elif isinstance(op, Scale):
                weight = op.integer.weight.long()
                value[node.name] = inputs[0] * weight.view(-1, 1, 1)
            elif isinstance(op, Neuron):
                theta = op.integer.threshold.long().view(-1, 1, 1)
                u = membrane.get(node.name, (op.initial_potential * theta).round().long()) + sum(inputs)
                value[node.name] = (u >= theta).long()
                membrane[node.name] = u - theta * value[node.name]
                spikes.setdefault(node.name, []).append(value[node.name])
            else:
                break  # pooling and the classifier decide no spike
    return {name: torch.stack(each) for name, each in spikes.items()}


def convolve(x, op):
    """A convolution of whole numbers: unfolded by slices, multiplied in int64."""
    padded = F.pad(x, (op.padding[1],) * 2 + (op.padding[0],) * 2)
    whole = op.integer.weight
    kh, kw = whole.shape[2:]
    height = (padded.shape[2] - kh) // op.stride[0] + 1
    width = (padded.shape[3] - kw) // op.stride[1] + 1
    total = torch.zeros(len(x), whole.shape[0], height, width, dtype=torch.int64)
    for dy in range(kh):
        for dx in range(kw):
            window = padded[:, :, dy :: op.stride[0], dx :: op.stride[1]][:, :, :height, :width]
            total += torch.einsum("nchw,oc->nohw", window.double(), whole[:, :, dy, dx].double()).long()
    return total


@pytest.mark.parametrize("how", ["events", "dense", "plain torch"])
def test_spikes_equal_a_loop_in_64_bit_integers(networks, monkeypatch, how):
    _, images, quantized = networks
    if how == "dense":
        monkeypatch.setattr("s_resnet.graph.engine.run.DENSE", -1.0)
    if how == "plain torch":
        monkeypatch.setattr(compiler, "compiled", lambda: (None, "no compiler"))
    want = integer_loop(quantized, images, 20)
    counts = simulate(quantized, images, 20, SimulationSettings(chunk=3), at=range(1, 21)).spikes
    assert len(counts) == len(want) == 7
    for name, spikes in want.items():
        assert torch.equal(counts[name], spikes.flatten(2).sum(2).double().cumsum(0)), name
    assert 0.02 < sum(float(s.double().mean()) for s in want.values()) / 7 < 0.5


def test_chunks_batches_and_precisions_give_the_same_spikes(networks):
    _, images, quantized = networks
    whole = simulate(quantized, images, 21)
    for other in (
        simulate(quantized, images, 21, SimulationSettings(chunk=1)),
        simulate(quantized, images, 21, SimulationSettings(chunk=7)),
        simulate(quantized, images, 21, SimulationSettings(precision="fast")),
    ):
        assert torch.equal(other.outputs, whole.outputs)
        assert all(torch.equal(other.spikes[name], count) for name, count in whole.spikes.items())
    alone = simulate(quantized, images[2:3], 21)
    assert all(torch.equal(alone.spikes[name][:, 0], count[:, 2]) for name, count in whole.spikes.items())
    first = simulate(quantized, images, 10)
    assert torch.equal(simulate(quantized, images, 11, state=first.state).outputs, whole.outputs)


def test_whole_numbers_are_the_nearest_in_units_of_the_threshold(networks):
    snn, _, quantized = networks
    seen = 0
    for node in quantized.nodes:
        op, source = node.op, snn[node.name].op
        if isinstance(op, Conv2d | Scale):
            (reader,) = quantized.users[node.name]
            theta = quantized[reader].op.integer.threshold.double()
            shape = (-1, *(1,) * (op.weight.ndim - 1)) if isinstance(op, Conv2d) else (-1,)
            exact = source.weight.double() * source.spiking.gain * theta.view(shape)
            assert (op.integer.weight.double() - exact).abs().max() <= 0.5 + 1e-4
            seen += 1
        if isinstance(op, Conv2d):
            assert op.integer.weight.dtype == torch.int8 and int(op.integer.weight.abs().max()) <= 127
            assert (op.integer.bias.double() - op.bias.double() * theta).abs().max() <= 0.5 + 1e-3
        if isinstance(op, Neuron):
            assert op.integer.threshold.dtype == torch.int32 and int(op.integer.threshold.min()) >= 1
        if isinstance(op, Linear):
            own, exact = op.integer, op.weight.double() * op.spiking.gain
            assert (own.weight.double() * own.step - exact).abs().max() <= own.step
    assert seen == 10  # seven convolutions, two projections, one identity


def test_the_analog_run_is_still_the_source_network(networks):
    snn, images, quantized = networks
    assert torch.equal(snn.run(images), quantized.run(images))


def test_the_answers_stay_near_those_of_the_float_network(networks):
    snn, images, quantized = networks
    a, b = (simulate(graph, images, 64).outputs[0] for graph in (snn, quantized))
    assert torch.equal(a.argmax(1), b.argmax(1)) and (a - b).abs().mean() < 0.1 * a.abs().mean()


def test_an_integer_network_survives_its_file(networks, tmp_path):
    _, images, quantized = networks
    save(quantized, tmp_path / "network.snn")
    again = load(tmp_path / "network.snn")
    assert again.is_integer and torch.equal(again(images, 12), quantized(images, 12))


# ---- what does not fit ----


def test_a_membrane_that_could_overflow_is_refused(networks):
    _, images, quantized = networks
    with pytest.raises(InvalidData, match=r"32-bit.*Lower T"):
        simulate(quantized, images[:1], 10**9)


def test_poisson_coding_is_refused(networks):
    _, images, quantized = networks
    with pytest.raises(InvalidData, match=r"poisson.*integer"):
        simulate(quantized, images[:1], 2, SimulationSettings(coding="poisson"))


def test_unknown_weights_are_refused():
    with pytest.raises(InvalidData, match=r"int4.*float32, dyadic, int8"):
        RECIPES["s-resnet"].with_weights("int4")


def test_neurons_behind_pools_are_refused_by_name():
    with pytest.raises(ConversionError, match=r"AdaptiveAvgPool2d.*s-resnet"):
        quantize_weights(convert(CifarResNet(8).eval(), recipe="s-resnet-released"), Context())


def test_thresholds_other_than_one_are_refused(networks):
    snn, _, _ = networks
    nodes = tuple(
        replace(node, op=replace(node.op, threshold=torch.tensor(2.0))) if node.name == "relu" else node
        for node in snn.nodes
    )
    with pytest.raises(ConversionError, match=r"^relu: got a threshold other than 1.*normalize"):
        quantize_weights(replace(snn, nodes=nodes), Context())


def test_the_program_converts_evaluates_and_inspects(tmp_path):
    torch.manual_seed(1)
    checkpoint = tmp_path / "net.pth"
    torch.save(CifarResNet(20, num_classes=10).state_dict(), checkpoint)
    snn, figures = tmp_path / "net.snn", tmp_path / "out.json"

    def run(*arguments):
        result = CliRunner().invoke(sresnet, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "int8 weights" in run("convert", checkpoint, "-o", snn, "--weights", "int8", "--calibration", "digits",
                                 "--calibration-images", 16, "--timesteps", 4)  # fmt: skip
    run("evaluate", snn, "--timesteps", 4, "--limit", 8, "--precision", "fast", "--json", figures)
    assert json.loads(figures.read_text())["precision"] == "fast"
    shown = run("inspect", snn)
    assert "16x3x3x3 int8" in shown and "quantize_weights" in shown


def by_hand(bias, shortcut):
    """Images of one channel on a grid of 4, two convolutions of one weight, a shortcut."""

    def numbers(value, dtype, *shape):
        return torch.full(shape, value, dtype=dtype)

    def conv(weight, shift, grid=0):
        own = IntegerWeights(numbers(weight, torch.int8, 1, 1, 1, 1), numbers(shift, torch.int32, 1), grid=grid)
        return Conv2d(torch.ones(1, 1, 1, 1), torch.zeros(1), integer=own)

    def neuron(correction):
        own = IntegerNeuron(numbers(10, torch.int32, 1), numbers(correction, torch.int32, 1))
        return Neuron(torch.tensor(1.0), integer=own)

    rows = [
        ("input", Input(4)),
        ("stem", conv(-3, bias, 4), "input"),
        ("first", neuron(-4), "stem"),
        ("conv", conv(6, -9), "first"),
        ("short", Scale(torch.ones(()), integer=IntegerWeights(numbers(shortcut, torch.int32, 1))), "first"),
        ("second", neuron(2), "conv", "short"),
        ("flat", Flatten(), "second"),
        ("readout", Readout(torch.tensor(1.0)), "flat"),
    ]
    return Graph(tuple(Node(name, op, tuple(reads)) for name, op, *reads in rows)).validate()


@pytest.mark.parametrize(
    ("bias", "shortcut", "most"),
    [(7, 11, 3 * 8 + 7 + 4), (-70, 11, 3 * 8 + 70 + 4), (7, 50, 6 + 9 + 50 + 2)],
)
def test_how_far_a_membrane_moves_in_a_step_counts_weights_biases_shortcuts_and_corrections(bias, shortcut, most):
    snn = by_hand(bias, shortcut)
    assert prepare(snn, "exact").max_membrane_step == most
    image = torch.full((1, 1, 1, 1), -100.0)  # clipped to -8
    (chunk,) = snn.stream(image, 1)
    assert int(chunk.state.memory["first"][0]) == 3 * 8 + bias - 4 - 10 * (3 * 8 + bias - 4 >= 10)


def test_the_network_that_runs_is_plain_and_runs_the_same(networks):
    snn, images, quantized = networks
    for graph, running in ((snn, snn.spiking()), (quantized, quantized.integer())):
        assert all(getattr(node.op, "spiking", None) is None for node in running.nodes)
        assert all(getattr(node.op, "integer", None) is None for node in running.nodes)
        assert running.is_integer == graph.is_integer
        assert torch.equal(running(images, 9), graph(images, 9))
        assert torch.equal(running.running()(images, 9), graph(images, 9))
    assert not quantized.spiking().is_integer
    assert torch.equal(quantized.spiking()(images, 9), snn(images, 9))
    with pytest.raises(InvalidData, match="expected one of whole numbers"):
        snn.integer()
