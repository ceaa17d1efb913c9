"""The passes: each keeps what it says it keeps, compared with plain torch, loops and tables written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Net, images, randomized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torchvision.models.resnet import BasicBlock

from s_resnet import Calibration, Graph, simulate, trace
from s_resnet.conversion import Context
from s_resnet.conversion.calibrate import calibrated_nodes
from s_resnet.conversion.passes import attach_readout, fold_batchnorm, move_maxpool, normalize, relu_to_neuron
from s_resnet.errors import ConversionError
from s_resnet.graph import Neuron, Node, SpikingMaxPool2d, ops
from s_resnet.models import CifarResNet

NONE = Calibration({}, 100, 0, "data")


def given_scales(graph, *values):
    """A calibration with these scales for the ReLUs and the logits, in order, over and over."""
    names = calibrated_nodes(graph)
    return Calibration({n: values[i % len(values)] for i, n in enumerate(names)}, 100, 1, "data")


def spiking(graph, calibration, **neuron):
    """The passes up to the last, which is left to the test."""
    graph = relu_to_neuron(fold_batchnorm(graph, Context(calibration)), Context(calibration), **neuron)
    return attach_readout(move_maxpool(graph, Context(calibration)), Context(calibration))


def kinds(graph, kind):
    return {node.name: node for node in graph.nodes if isinstance(node.op, kind)}


def apart(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


# ---- fold_batchnorm ----


def resnext(s, x):
    x = F.relu(s.norm(s.grouped(F.relu(s.bn1(s.conv1(x))))))
    return s.head(F.relu(s.bn2(s.biased(x)) + x))


def normed_sum(s, x):
    x = F.relu(s.norm(s.bn1(s.conv1(x))))
    return s.head(F.relu(s.bn2(s.conv2(x) + x)))


def two_users(s, x):
    x = s.conv1(x)
    return s.head(F.relu(s.bn1(x)) + F.relu(s.bn2(x) + x))


def shared_convolution(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    return s.head(F.relu(s.norm(s.conv2(F.relu(s.bn2(s.conv2(x)))))))


FOLDED = [  # the body, the convolutions before and after: a BatchNorm that cannot be folded becomes one
    (resnext, 3, 3),
    (normed_sum, 2, 2),
    (two_users, 1, 3),
    (shared_convolution, 3, 3),
    (lambda s, x: s.head(F.relu(s.conv1(s.image(x)))), 1, 2),
]


@pytest.mark.parametrize(("body", "before", "after"), FOLDED, ids=["grouped", "sum", "users", "shared", "images"])
def test_folding_is_exact(body, before, after):
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    norm, image = nn.BatchNorm2d(8, eps=0.3, affine=False), nn.BatchNorm2d(3)
    model = Net(body, grouped=grouped, biased=nn.Conv2d(8, 8, 1), norm=norm, image=image).double()
    x = images().double()
    graph = trace(model, x)
    assert len(kinds(graph, ops.Conv2d)) == before
    folded = fold_batchnorm(graph, Context()).validate()
    assert not kinds(folded, ops.BatchNorm2d)
    assert len(kinds(folded, ops.Conv2d)) == after
    with torch.no_grad():
        assert apart(folded.run(x), model(x)) <= 1e-12
    assert fold_batchnorm(folded, Context()) is folded


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d"])
def test_folding_whole_networks_is_exact(arch):
    model = randomized(torchvision.models.get_model(arch, num_classes=10)).double()
    x = images(size=32).double()
    folded = fold_batchnorm(trace(model, x), Context())
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(folded.nodes) == len(trace(model, x).nodes) - norms
    with torch.no_grad():
        assert apart(folded.run(x), model(x)) <= 1e-12


# ---- relu_to_neuron ----


def one_neuron(threshold, **setting):
    """One neuron that the images drive, and an answer that is its mean output."""
    nodes = (Node("input", ops.Input(), ()), Node("relu", ops.ReLU(), ("input",)))
    graph = Graph((*nodes, Node("flatten", ops.Flatten(), ("relu",))))
    calibration = Calibration({"relu": threshold, "flatten": 1.0}, 100, 1, "data")
    return attach_readout(relu_to_neuron(graph, Context(calibration), **setting), Context(calibration)), calibration


@pytest.mark.parametrize("threshold", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("initial_potential", [0.0, 0.5])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_mean_output_is_the_clipped_input_up_to_one_spike(threshold, initial_potential, normalized):
    graph, calibration = one_neuron(threshold, initial_potential=initial_potential)
    graph = normalize(graph, Context(calibration)) if normalized else graph
    x = torch.cat([torch.linspace(-2, 5, 701), torch.linspace(0, threshold, 97)])
    steps = (1, 2, 3, 7, 64, 100)
    result = simulate(graph, x.view(1, -1, 1, 1), 100, at=steps)
    for t, mean in zip(steps, result.outputs, strict=True):
        # Rounded down to the grid threshold / t, or to its nearest point from half a threshold on.
        assert (mean[0] - x.clamp(0, threshold)).abs().max() <= threshold / t * (1 - initial_potential) + 1e-5


@pytest.mark.parametrize(("reset", "spikes"), [("subtract", [0, 1, 0, 1, 1]), ("zero", [0, 1, 0, 1, 0])])
def test_hard_and_soft_reset_by_hand(reset, spikes):
    # v at 5/8 per step: 5/8, 10/8 fires and leaves 2/8 (or 0), 7/8 (5/8), 12/8 fires and leaves 4/8 (0), 9/8 (5/8)
    graph, _ = one_neuron(1.0, reset=reset)
    counts = simulate(graph, torch.full((1, 1, 1, 1), 0.625), 5, at=range(1, 6)).spikes["relu"]
    assert counts.flatten().tolist() == np.cumsum(spikes).tolist()


def test_the_neuron_does_the_additions_that_only_it_reads():
    def body(s, x):
        x = s.relu(s.conv1(x))
        y = s.conv2(x) + x  # read twice: stays
        return s.head(s.relu(y + s.conv2(x) + x) + y)

    model = Net(body, relu=nn.ReLU())
    graph = trace(model, images())
    result = relu_to_neuron(graph, Context(given_scales(graph, 0.3, 0.7))).validate()
    assert {name: float(node.op.threshold) for name, node in kinds(result, Neuron).items()} == pytest.approx(
        {"relu": 0.3, "relu_1": 0.7}
    )
    assert result["relu_1"].inputs == ("add", "conv2_1", "relu")
    assert set(kinds(result, ops.Add)) == {"add", "add_3"}
    with torch.no_grad():
        assert apart(result.run(images()), model(images())) <= 1e-6
    assert relu_to_neuron(result, Context()) is result


@pytest.mark.parametrize("setting", [{"reset": "hard"}, {"initial_potential": 1.0}, {"initial_potential": -0.1}])
def test_neuron_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConversionError, match=r"relu_to_neuron: got reset=.*expected 'subtract' or"):
        one_neuron(1.0, **setting)


def test_a_calibration_of_another_graph_is_refused():
    graph = trace(Net(resnext, grouped=nn.Identity(), norm=nn.Identity(), biased=nn.Conv2d(8, 8, 1)), images())
    with pytest.raises(ConversionError, match=r"^relu: got no calibrated scale"):
        relu_to_neuron(graph, Context())


# ---- move_maxpool ----


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    arrays(np.float32, (1, 2, 7, 6), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 0)]),
)
def test_relu_and_max_commute(x, pool):
    kernel, stride, padding = pool
    nodes = [Node("input", ops.Input(), ()), Node("relu", ops.ReLU(), ("input",))]
    nodes.append(Node("pool", ops.MaxPool2d((kernel,) * 2, (stride,) * 2, (padding,) * 2), ("relu",)))
    graph = Graph((*nodes, Node("flatten", ops.Flatten(), ("pool",))))
    moved = move_maxpool(relu_to_neuron(graph, Context(given_scales(graph, 1.0))), Context())
    assert [node.name for node in moved.nodes] == ["input", "pool", "relu", "flatten"]
    x = torch.from_numpy(x)
    assert torch.equal(moved.run(x), F.max_pool2d(F.relu(x), kernel, stride, padding).flatten(1))


def stem(s, x):
    return s.fc(F.relu(s.bn2(s.conv2(F.max_pool2d(F.relu(s.bn1(s.conv1(x))), 3, 2, 1)))).mean([2, 3]))


def test_a_stem_pool_takes_the_maximum_of_the_currents():
    model = Net(stem)
    graph = trace(model, images())
    calibration = given_scales(graph, 1.5, 2.0)
    result = spiking(graph, calibration).validate()
    assert kinds(result, SpikingMaxPool2d) == {}
    assert result["max_pool2d"].inputs == ("conv1",)
    assert result["relu"].inputs == ("max_pool2d",)
    assert result["conv2"].inputs == ("relu",)
    with torch.no_grad():
        current = F.max_pool2d(model.bn1(model.conv1(images())), 3, 2, 1)
    v, count = torch.zeros_like(current), torch.zeros(20, 2)
    for t in range(20):  # the neuron by hand, on pooled currents
        v = v + current
        count[t] = count[t - 1] + (v >= 1.5).sum((1, 2, 3))
        v = v - 1.5 * (v >= 1.5)
    got = simulate(result, images(), 20, at=range(1, 21)).spikes["relu"]
    assert (got - count).abs().max() <= 2  # of thousands: folding rounds
    assert count[-1].min() > 1000


def deep(s, x):
    return s.head(F.max_pool2d(F.relu(s.conv2(F.relu(s.conv1(x)))), 2))


def deep_before(s, x):
    return s.head(F.relu(F.max_pool2d(s.conv2(F.relu(s.conv1(x))), 2)))


def stem_read_twice(s, x):
    x = F.relu(s.conv1(x))
    return s.head(F.relu(s.conv2(F.max_pool2d(x, 2)) + x[:, :, ::2, ::2]))


@pytest.mark.parametrize("body", [deep, deep_before, stem_read_twice])
def test_a_pool_over_spikes_is_gated(body):
    model = Net(body)
    graph = trace(model, images())
    result = spiking(graph, given_scales(graph, 16.0, 16.0, 2.0))
    (gate,) = kinds(result, SpikingMaxPool2d).values()
    assert (gate.op.kernel, gate.op.stride, gate.op.padding) == ((2, 2), (2, 2), (0, 0))
    assert not kinds(result, ops.MaxPool2d)
    with torch.no_grad():
        expected = model(images())
    assert apart(result.run(images()), expected) <= 1e-6
    assert apart(normalize(result, Context(given_scales(graph, 16.0, 16.0, 2.0)))(images(), 1000), expected) <= 0.02


@pytest.mark.parametrize("after", [lambda s, y, x: s.bn2(y), lambda s, y, x: y + F.max_pool2d(x, 2)])
def test_a_deep_pool_over_currents_whose_sign_matters_is_refused(after):
    def body(s, x):
        x = F.relu(s.conv1(x))
        return s.head(F.relu(after(s, F.max_pool2d(s.conv2(x), 2), x)))

    graph = trace(Net(body), images())
    with pytest.raises(ConversionError, match=r"^max_pool2d: got a max-pool over currents.*Put the ReLU before"):
        spiking(graph, given_scales(graph, 1.0))


def test_a_pool_over_the_images_stays():
    graph = trace(Net(lambda s, x: s.head(F.relu(s.conv1(F.max_pool2d(x, 2))))), images())
    graph = relu_to_neuron(graph, Context(given_scales(graph, 1.0)))
    assert move_maxpool(graph, Context()) is graph


# ---- normalize ----


class Blocks(nn.Module):
    """A stem, and a block with an identity, with a projection, with a zero-padding shortcut; no BatchNorm."""

    def __init__(self):
        super().__init__()
        conv = [nn.Conv2d(3, 4, 3, padding=1)]
        for i, o, stride in ((4, 4, 1), (4, 8, 2), (8, 16, 2)):
            conv += [nn.Conv2d(i, o, 3, stride, 1, groups=2), nn.Conv2d(o, o, 3, 1, 1)]
        self.conv, self.project, self.fc = nn.ModuleList(conv), nn.Conv2d(4, 8, 1, 2), nn.Linear(16 * 4, 5)

    def forward(self, x):
        x = F.relu(self.conv[0](x))
        x = F.relu(self.conv[2](F.relu(self.conv[1](x))) + x)
        x = F.relu(self.conv[4](F.relu(self.conv[3](x))) + self.project(x))
        x = F.relu(self.conv[6](F.relu(self.conv[5](x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(x.flatten(1))


def on_a_grid(tensor):
    return tensor.mul_(256).round_().div_(256)


@pytest.mark.parametrize("channels", [False, True], ids=["per layer", "per channel"])
def test_normalizing_keeps_every_spike(channels):
    model = randomized(Blocks())
    with torch.no_grad():
        for parameter in model.parameters():
            on_a_grid(parameter)
    x = on_a_grid(images(3, 8))
    graph = trace(model, x)
    calibration = given_scales(graph, 0.5, 2.0, 1.0, 2.0, 4.0, 1.0, 2.0, 8.0)
    graph = spiking(graph, calibration, initial_potential=0.5)
    if channels:
        graph = with_channel_thresholds(graph, x, lambda c: 2.0 ** (torch.arange(c) % 4 - 1))
    result = normalize(graph, Context(calibration)).validate()
    before, after = (simulate(g, x, 40, at=range(1, 41)) for g in (graph, result))
    assert len(before.spikes) == 7
    for name, counts in before.spikes.items():
        assert torch.equal(after.spikes[name], counts)
        assert 0 < counts[-1].sum() < 40 * before.state.memory[name][0].numel()
        threshold = graph[name].op.threshold
        threshold = threshold.view(-1, 1, 1) if threshold.ndim else threshold
        assert torch.equal(after.state.memory[name][0] * threshold, before.state.memory[name][0])
        assert float(result[name].op.threshold) == 1.0
    assert torch.equal(after.outputs, before.outputs)


def with_channel_thresholds(graph, x, thresholds):
    channels = {name: value.shape[1] for name, value in graph.activations(x)}
    nodes = [
        replace(n, op=replace(n.op, threshold=thresholds(channels[n.name]))) if isinstance(n.op, Neuron) else n
        for n in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def before_activation(s, x):
    x = s.conv1(x)
    for _ in range(2):
        out = s.conv2(F.relu(s.bn1(x)))
        out += x
        x = out
    return s.head(F.relu(x))


ANALOG = {
    "stem pool": lambda: Net(stem),
    "users": lambda: Net(two_users),
    "normed sum": lambda: Net(normed_sum, norm=nn.BatchNorm2d(8)),
    "sum before activation": lambda: Net(before_activation),
    "convolution as classifier": lambda: Net(
        lambda s, x: s.last(F.relu(s.conv1(x))).mean([2, 3]), last=nn.Conv2d(8, 5, 1)
    ),
    "shortcut A": lambda: randomized(CifarResNet(8, width=4)),
    "blocks": lambda: randomized(Blocks()),
}


@pytest.mark.parametrize("name", ANALOG)
@pytest.mark.parametrize("channels", [False, True], ids=["per layer", "per channel"])
def test_normalizing_keeps_the_analog_run(name, channels):
    model, x = ANALOG[name]().double(), images(size=8).double()
    graph = trace(model, x)
    calibration = given_scales(graph, 0.3, 1.7, 0.9, 2.3)
    graph = spiking(graph, calibration)
    if channels:
        graph = with_channel_thresholds(graph, x, lambda c: torch.linspace(0.3, 2.9, c, dtype=torch.float64))
    result = normalize(graph, Context(calibration)).validate()
    assert all(torch.equal(node.op.threshold, torch.ones(())) for node in result.neurons)
    with torch.no_grad():
        assert apart(result.run(x), model(x)) <= (1e-12 if channels else 1e-6)  # scales of layers are float32


def test_the_table_of_a_basic_block():
    projection = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
    blocks = {"one": BasicBlock(8, 8), "two": BasicBlock(8, 8, downsample=projection)}
    model = Net(lambda s, x: s.head(s.two(s.one(F.relu(s.conv1(x))))), **blocks)
    graph = trace(model, images())
    li, lm, lo, lm2, lo2, logits = 0.5, 0.3, 0.5, 1.7, 2.2, 7.0
    calibration = given_scales(graph, li, lm, lo, lm2, lo2, logits)
    got = normalize(spiking(graph, calibration), Context(calibration))
    table = {  # synapse: the BatchNorm behind it, lambda in, lambda out
        "conv1": (None, 1.0, li),
        "one.conv1": (model.one.bn1, li, lm),
        "one.conv2": (model.one.bn2, lm, lo),
        "two.conv1": (model.two.bn1, lo, lm2),
        "two.conv2": (model.two.bn2, lm2, lo2),
        "two.downsample.0": (model.two.downsample[1], lo, lo2),
        "fc": (None, lo2, logits),
    }
    assert set(kinds(got, ops.Conv2d | ops.Linear)) == set(table)
    for name, (norm, scale_in, scale_out) in table.items():
        source = model.get_submodule(name)
        weight, bias = source.weight, 0.0 if source.bias is None else source.bias
        if norm is not None:
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight, bias = weight * factor.view(-1, 1, 1, 1), norm.bias + (bias - norm.running_mean) * factor
        assert torch.allclose(got[name].op.weight, weight * scale_in / scale_out, rtol=1e-5, atol=1e-6)
        assert torch.allclose(got[name].op.bias, bias / scale_out, rtol=1e-5, atol=1e-6)
    assert float(got["one.relu_1.shortcut"].op.weight) == 1.0  # lambda in / lambda out, there although it is 1
    assert got["one.relu_1"].inputs == ("one.conv2", "one.relu_1.shortcut")
    assert got["two.relu_1"].inputs == ("two.conv2", "two.downsample.0")
    assert set(kinds(got, ops.Scale)) == {"one.relu_1.shortcut"}
    assert float(got["readout"].op.scale) == logits
