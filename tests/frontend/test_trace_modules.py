"""Modules as other people write them: what is exact to convert is, and the rest is refused by what to do instead."""

import math
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Net, images, randomized
from torch import nn
from torch.nn.utils import parametrizations

from s_resnet import convert, evaluate, load, save, simulate, trace
from s_resnet.errors import InvalidData, UnsupportedModel
from s_resnet.graph import ops
from s_resnet.graph.fold import folded
from s_resnet.simulation import features


def off(graph, model, x):
    """The graph's largest distance from the module in evaluation mode, as a share of the largest logit."""
    with torch.no_grad():
        expected = model.eval()(x.clone())
    assert expected.abs().max() > 0 and expected.isfinite().all() and graph.run(x).shape == expected.shape
    return float((graph.run(x) - expected).abs().max() / expected.abs().max())


def exact(model, x=None, other=None):
    """The graph of a module, which it equals on the example and on other images, folded and not."""
    x = images() if x is None else x
    graph = trace(model, x)
    other = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(5)) if other is None else other
    for same in (graph, folded(graph).validate()):
        assert off(same, model, x) <= 1e-5 and off(same, model, other) <= 1e-5
    assert not any(isinstance(node.op, ops.BatchNorm2d | ops.Affine) for node in folded(graph).nodes)
    return graph


def kinds(graph):
    return [type(node.op).__name__ for node in graph.nodes]


# ---- constants per channel ----


def stem(s, x):
    return F.relu(s.bn1(s.conv1(x)))


CONSTANTS = {
    "a number on a branch": lambda s, x: 0.2 * s.conv2(x) + x,
    "a learned number": lambda s, x: x + s.one * s.bn2(s.conv2(x)),
    "a learned number from the left": lambda s, x: s.one * s.conv2(x) - x,
    "a factor per channel": lambda s, x: s.conv2(x).mul(s.each) + x,
    "a bias per channel": lambda s, x: s.conv2(x) + s.each,
    "a bias before a padded convolution": lambda s, x: s.conv2(x + s.one),
    "the mean of two": lambda s, x: (x + s.conv2(x)) / 2,
    "a shifted mean of two": lambda s, x: (x + s.conv2(x)) / math.sqrt(2) - s.each,
    "a shifted mean of two, no convolution": lambda s, x: (x + s.pool(x)) / 2 + s.each,
    "a shifted mean of two convolutions": lambda s, x: (s.conv2(x) + s.conv2(s.pool(x))) / 2 + s.each,
    "a difference": lambda s, x: x - s.conv2(x),
    "a difference from a number": lambda s, x: 1.5 - s.conv2(x),
    "alpha": lambda s, x: torch.add(x, s.conv2(x), alpha=0.3).sub(s.conv2(x), alpha=2),
    "negative": lambda s, x: -s.conv2(x) + x,
    "in place": lambda s, x: s.conv2(x).mul_(0.5).add_(s.each).div_(2).sub_(x),
    "times zero": lambda s, x: s.conv2(x) + 0 * x,
    "computed from weights": lambda s, x: (
        s.conv2(x) * torch.sigmoid(s.each).sum() + s.conv2.weight.mean((1, 2, 3))[:, None, None]
    ),
    "of the size of the images": lambda s, x: s.conv2(x) + torch.full(x.shape, 0.5) + torch.ones_like(x),
    "two readers": lambda s, x: (lambda y: F.relu(2 * y) + F.relu(y + 1))(s.conv2(x)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_fold(name):
    each = nn.Parameter(torch.linspace(-1, 1, 8).view(8, 1, 1))
    model = Net(lambda s, x: s.head(F.relu(CONSTANTS[name](s, stem(s, x)))), pool=nn.MaxPool2d(3, 1, 1))
    model.register_parameter("each", each)
    model.register_parameter("one", nn.Parameter(torch.tensor([0.5])))
    graph = folded(exact(model))
    extra = {"a bias before a padded convolution": 1, "a shifted mean of two, no convolution": 1, "two readers": 1}
    twice = sum(node.op.weight.shape == (8, 8, 3, 3) for node in graph.nodes if isinstance(node.op, ops.Conv2d))
    assert kinds(graph).count("Conv2d") == 1 + twice + extra.get(name, 0)  # nothing but the module's own, if it can be


def test_a_scaled_sum_scales_what_it_sums():
    """The shortcut becomes a synapse of the scale, the convolution takes it up: the neuron can do the sum."""

    def body(s, x):
        x = stem(s, x)
        return s.head(F.relu((x + s.conv2(x)) / 4))

    graph = folded(trace(Net(body), images()))
    (scale,) = [node for node in graph.nodes if isinstance(node.op, ops.Scale)]
    assert scale.op.weight == 0.25 and scale.inputs == ("relu",)
    assert graph["add"].inputs == (scale.name, "conv2") and graph["relu_1"].inputs == ("add",)


def normalized(x):
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1)
    return (x - mean) / std


@pytest.mark.parametrize("how", ["own", "torchvision", "torchvision v2"])
def test_normalization_inside(how):
    model = Net(lambda s, x: s.head(stem(s, s.prepare(x) if how != "own" else normalized(x))))
    if how != "own":
        transforms = (
            torchvision.transforms if how == "torchvision" else pytest.importorskip("torchvision.transforms.v2")
        )
        model.prepare = transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    exact(model)


def test_temperature_and_units_of_the_answer():
    """What a regression network does to its last layer, and what stands between two linear layers."""
    model = Net(
        lambda s, x: s.out((s.hidden(stem(s, x).mean((2, 3))) - 1) / 4).mul(3.0) + 7,
        hidden=nn.Linear(8, 6),
        out=nn.Linear(6, 1),
    )
    assert kinds(folded(exact(model))).count("Linear") == 2


def test_features_that_nothing_or_only_the_next_layer_takes_up():
    alone = Net(lambda s, x: F.relu(s.norm(stem(s, x).mean((2, 3)))), norm=nn.BatchNorm1d(8))
    assert kinds(folded(exact(alone)))[-2:] == ["Linear", "ReLU"]
    before = Net(lambda s, x: s.fc(s.norm(stem(s, x).mean((2, 3)))), norm=nn.BatchNorm1d(8))
    assert kinds(folded(exact(before))).count("Linear") == 1
    heads = Net(
        lambda s, x: (lambda y: s.fc(y) + s.other(y))(2 * stem(s, x).flatten(1) - 1),
        fc=nn.Linear(2048, 5),
        other=nn.Linear(2048, 5),
    )
    assert kinds(folded(exact(heads))).count("Linear") == 2
    shared = Net(
        lambda s, x: (lambda y: s.other(y) + y)(s.norm(stem(s, x).mean((2, 3)))),
        norm=nn.BatchNorm1d(8),
        other=nn.Linear(8, 8),
    )
    assert kinds(folded(exact(shared))).count("Linear") == 2


# ---- layers of one's own ----


class OwnConv(nn.Conv2d):
    """Another start, nothing else."""


class Standardized(nn.Conv2d):
    """Weight standardization: constant in evaluation mode."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.empty(8, 8, 3, 3)), nn.Parameter(torch.empty(5, 8))
        self.register_buffer("mean", torch.linspace(-1, 1, 8))
        self.register_buffer("var", torch.linspace(0.5, 2, 8))

    def forward(self, x):
        x = F.conv2d(x, weight=self.kernel, padding="same")
        x = torch.batch_norm(
            F.batch_norm(x, self.mean, self.var, eps=0.1), None, None, self.mean, self.var, False, 0, 0.1, True
        )
        return F.relu(x).flatten(2).mean(2) @ self.matrix.t()


LAYERS = {
    "own subclass": lambda: OwnConv(8, 8, 3),
    "weight standardization": lambda: Standardized(8, 8, 3, padding=1),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "frozen BatchNorm": lambda: torchvision.ops.FrozenBatchNorm2d(8),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "zero padding": lambda: nn.ZeroPad2d((1, 2, 0, 3)),
    "channel padding": lambda: nn.ConstantPad3d((0, 0, 0, 0, 0, 0), 0.0),
    "stochastic depth": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
    "drop block": lambda: torchvision.ops.DropBlock2d(0.5, 3),
    "alpha dropout": lambda: nn.Sequential(nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Dropout3d()),
    "one-sided clamp": lambda: nn.Hardtanh(0, math.inf),
    "threshold": lambda: nn.Sequential(nn.Threshold(0, 0), nn.LeakyReLU(0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*out of date:UserWarning")
def test_layers(name):
    layer = LAYERS[name]()
    graph = exact(Net(lambda s, x: s.head(F.relu(s.layer(stem(s, x)))), layer=layer))
    assert "layer" in [node.name for node in graph.nodes] or kinds(graph).count("Conv2d") == 1


def test_layers_of_functions():
    torch.manual_seed(0)
    graph = exact(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), randomized(Functional())))
    assert [node.name for node in graph.nodes][3:7] == ["2.conv2d", "2.batch_norm", "2.batch_norm_1", "2.relu"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_by_a_hook_after_training():
    """Its weight is no leaf then, which deepcopy does not take."""
    model = Net(lambda s, x: s.fc(stem(s, x).mean((2, 3))))
    model.fc = nn.utils.weight_norm(model.fc)
    model.train()(images()).sum().backward()
    exact(model)


def test_a_frozen_batchnorm_keeps_its_statistics():
    graph = trace(
        Net(lambda s, x: s.head(F.relu(s.norm(s.conv1(x)))), norm=torchvision.ops.FrozenBatchNorm2d(8)), images()
    )
    assert isinstance(graph["norm"].op, ops.BatchNorm2d)


ZEROS = {
    "cat with x * 0": lambda x: torch.cat((x, x.mul(0)), 1),
    "cat with zeros_like before": lambda x: torch.cat([torch.zeros_like(x), x], dim=1),
    "cat with torch.zeros": lambda x: torch.cat((x, torch.zeros(x.size(0), 8, x.size(2), x.size(3))), 1),
    "cat with new_zeros": lambda x: torch.cat([x, x.new_zeros((x.shape[0], 8, *x.shape[2:]))], -3),
    "F.pad": lambda x: F.pad(x, (0, 0, 0, 0, 0, 8)),
    "two activations": lambda x: torch.cat((x, F.relu(x - 1)), 1),
    "parts": lambda x: (lambda a, b, c: torch.cat((c, a, b, a, x[:, :5]), 1))(*x.chunk(3, 1)),
}


@pytest.mark.parametrize("name", ZEROS)
def test_concatenation_of_channels(name):
    def body(s, x):
        x = stem(s, x)
        return s.fc16(F.relu(s.wide(x) + ZEROS[name](F.avg_pool2d(x, 1, 2))).mean((2, 3)))

    wide = nn.Conv2d(8, 16, 3, 2, 1)
    graph = exact(Net(body, wide=wide, fc16=nn.Linear(16, 5)))
    assert kinds(graph).count("Pad") == {"two activations": 2, "parts": 5}.get(name, 1)


def test_concatenation_of_flattened_maps():
    def body(s, x):
        x = stem(s, x)
        return s.both(torch.cat((x.flatten(1), s.conv2(x).view(x.size(0), -1)), 1))

    exact(Net(body, both=nn.Linear(2 * 8 * 256, 5)))


# ---- channels in another order ----

CHANNELS = {
    "a list": lambda x: x[:, [2, 1, 0]],
    "a tensor": lambda x: x[:, torch.tensor([2, 0, 2]), ...],
    "a flip": lambda x: x.flip(1),
    "a flip by name": lambda x: torch.flip(x, dims=(-3,)),
    "a selection": lambda x: x.index_select(1, torch.tensor([1, 0, 2])),
    "one by one": lambda x: torch.cat([x[:, 2:3], x[:, 1:2], x[:, :1]], 1),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_in_another_order(name):
    """As of a network of images that another library reads: blue, green, red."""
    exact(Net(lambda s, x: s.head(stem(s, CHANNELS[name](x)))))


def test_channels_between_layers_are_shuffled():
    graph = exact(Net(lambda s, x: s.head(s.conv2(s.shuffle(stem(s, x)))), shuffle=nn.ChannelShuffle(4)))
    assert kinds(graph).count("Conv2d") == 3


@pytest.mark.parametrize("wrong", [lambda x: x[[0, 1]], lambda x: x[:, :, [0, 2]], lambda x: x[:, [True, True, True]]])
def test_other_selections_are_refused(wrong):
    with pytest.raises(UnsupportedModel, match=r"got (the index|a selection)"):
        trace(Net(lambda s, x: s.head(s.conv1(F.pad(wrong(x), (0,) * 4)))), images(2))


# ---- sizes ----

SIZES = {
    "a mean by two": lambda x: x.mean(3).mean(2),
    "a mean by view": lambda x: x.view(x.size(0), x.size(1), -1).mean(dim=2),
    "kept dimensions": lambda x: x.mean((2, 3), keepdim=True)[:, :, 0, 0],
    "a sum": lambda x: x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3]),
    "squeezed twice": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "an index": lambda x: F.adaptive_avg_pool2d(x, (1, None))[..., 0, :].mean(-1),
    "a comparison": lambda x: F.avg_pool2d(x, x.shape[-1]).flatten(1) if x.shape[2] == x.size(3) > 4 else None,
    "unpacked": lambda x: (lambda b, c, h, w: F.avg_pool2d(x, (h, w)).reshape(b, c))(*x.shape),
    "asserted": lambda x: [torch._assert(x.dim() == 4 and x.dtype == torch.float32, "no images"), x.mean((-1, -2))][1],
    "there and back": lambda x: x.mean((2, 3))[:, :, None, None].view(len(x), 8, 1).squeeze(2),
}


@pytest.mark.parametrize("name", SIZES)
def test_reductions_and_branches_are_told_by_sizes(name):
    model = Net(lambda s, x: s.fc(SIZES[name](stem(s, x))))
    graph = exact(model)
    if name not in ("a sum", "an index"):
        assert off(graph, model, images(size=24)) <= 1e-5  # the whole map at every size
        assert kinds(graph).count("AdaptiveAvgPool2d") == 1


def test_the_mean_over_one_axis():
    exact(Net(lambda s, x: s.long(stem(s, x).mean(3).flatten(1)), long=nn.Linear(8 * 16, 5)))


def signals(*head):
    return nn.Sequential(
        nn.Conv1d(12, 8, 7, padding=3, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.ZeroPad1d(2),
        nn.Conv1d(8, 8, 3, padding="same", dilation=2), nn.ReLU(), nn.AvgPool1d(2), *head,
    )  # fmt: skip


class Signals(nn.Module):
    """A network of signals [B, C, L], for images of height or width 1."""

    def __init__(self, inner, axis):
        super().__init__()
        self.inner, self.axis = randomized(inner), axis

    def forward(self, x):
        return self.inner(x.squeeze(self.axis))


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(
    "head", [(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)), (nn.Flatten(), nn.Linear(8 * 12, 5))]
)
def test_signals_are_images_of_height_one(axis, head):
    model = Signals(signals(*head), axis)
    exact(model, torch.randn(2, 12, 80).unsqueeze(axis), torch.randn(3, 12, 80).unsqueeze(axis))


@pytest.mark.parametrize(
    "head", [(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)), (nn.Flatten(), nn.Linear(8 * 12, 5))]
)
def test_signals_as_they_are(head):
    model = randomized(signals(*head))
    graph = trace(model, torch.randn(2, 12, 80))
    x = torch.randn(3, 12, 80)
    assert torch.allclose(graph.run(x), model(x), atol=1e-6)
    assert torch.equal(graph.run(x), graph.run(x.unsqueeze(2)))
    assert graph.provenance.fixed_size == (None if isinstance(head[0], nn.AdaptiveAvgPool1d) else (1, 80))


def test_signals_that_do_not_fit():
    model = randomized(signals(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)))
    for given, words in {
        "no signals": (None, r"neither signals nor their shape.*\(12, L\)"),
        "the other order": ([torch.zeros(8, 80, 12)], r"\[B, L, C\]: pass signals\.permute"),
        "one signal": ([torch.zeros(12, 80)], r"shape \(12, 80\)"),
        "other channels": ([torch.zeros(8, 3, 80)], r"signals \[B, C, L\] of its channels"),
    }.values():
        with pytest.raises(InvalidData, match=words):
            convert(model, given)


@pytest.mark.parametrize("recipe", ["s-resnet", "calibrated", "phased", "multilevel"])
def test_a_network_of_signals_spikes(recipe, tmp_path):
    """Its answers are those of the same network of images of height 1, and it is saved and read as that."""
    model = randomized(signals(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)))
    x = torch.randn(16, 12, 80, generator=torch.Generator().manual_seed(0))
    snn = convert(model, [x], recipe, timesteps=8)
    other = convert(Signals(model, 2), [x.unsqueeze(2)], recipe, timesteps=8)
    assert snn.provenance.input_shape == other.provenance.input_shape == (12, 1, 80)
    assert torch.equal(snn(x, 8), other(x.unsqueeze(2), 8))
    assert torch.equal(simulate(snn, x, 8).outputs[-1], snn(x, 8))
    assert evaluate(snn, [(x, torch.zeros(16, dtype=torch.long))], 8).images == 16
    save(snn, tmp_path / "signals.snn")
    assert torch.equal(load(tmp_path / "signals.snn")(x, 8), snn(x, 8))


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (2, 0, 1, 3)])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_borders_of_copies(mode, padding):
    """As anti-aliasing pools have them (BlurPool): padding, then a fixed convolution of each channel."""
    kernel = (torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16).repeat(8, 1, 1, 1)

    def forward(s, x):
        return s.head(F.conv2d(F.pad(stem(s, x), padding, mode), kernel, stride=2, groups=8))

    exact(Net(forward), torch.randn(2, 3, 9, 7), torch.randn(3, 3, 9, 7))


def test_borders_of_copies_spike():
    """Every copied row and column carries the spikes of the one that it copies."""
    model = Net(lambda s, x: s.head(F.relu(F.pad(stem(s, x), (1, 2, 2, 1), "reflect"))))
    x = images(8)
    rates = features(convert(model, [x], "s-resnet", timesteps=16), x, 16, ["relu_1"])["relu_1"]
    inside = rates[:, :, 2:-1, 1:-2]
    assert bool(inside.any()) and torch.equal(rates, F.pad(inside, (1, 2, 2, 1), "reflect"))


def test_space_to_channels():
    exact(Net(lambda s, x: s.head(s.wide(F.pixel_unshuffle(x, 4))), wide=nn.Conv2d(48, 8, 3)))


def test_gray_images_for_a_network_of_three_channels():
    for copies in (
        lambda x: x.expand(-1, 3, -1, -1),
        lambda x: x.repeat(1, 3, 1, 1),
        lambda x: torch.cat((x, x, x), 1),
    ):
        exact(Net(lambda s, x, copies=copies: s.head(stem(s, copies(x)))), images(channels=1))


# ---- what is returned, what is passed ----


class Fields(OrderedDict):
    """As models of Hugging Face return it: fields that are keys too."""

    def __getattr__(self, name):
        return self[name]


def test_the_logits_of_a_model_that_returns_fields():
    class Wrapped(Net):
        def forward(self, pixel_values=None, labels=None, return_dict=None):
            if pixel_values.shape[1] != 3:
                raise ValueError("channels")
            logits = self.head(stem(self, pixel_values))
            loss = None if labels is None else F.cross_entropy(logits, labels)
            return Fields(loss=loss, logits=logits) if return_dict is not False else (logits,)

    model = Wrapped(None)
    graph = trace(model, images())
    with torch.no_grad():
        assert torch.equal(graph.run(images()), model(images()).logits)
    simple = Net(lambda s, x: types.SimpleNamespace(logits=s.head(stem(s, x)), hidden=x))
    assert trace(simple, images()).nodes[-1].name == "fc"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_precision_become_float32(dtype):
    model = Net(lambda s, x: s.head(stem(s, x))).to(dtype)
    for example in (images(), images().to(dtype)):
        graph = trace(model, example)
        kept = dtype == example.dtype == torch.float64
        assert graph["conv1"].op.weight.dtype == (torch.float64 if kept else torch.float32)
        assert (
            off(
                graph,
                Net(lambda s, x: s.head(stem(s, x))).to(graph["conv1"].op.weight.dtype),
                example.to(graph["conv1"].op.weight.dtype),
            )
            < 0.02
        )
    assert model.conv1.weight.dtype == dtype


class Compiled(nn.Module):
    """What torch.compile makes."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        raise AssertionError("compiled")


def test_wrappers_are_taken_off_wherever_they_are():
    model = Net(lambda s, x: s.head(stem(s, x)))
    names = [node.name for node in trace(model, images()).nodes]
    for wrapped in (nn.DataParallel(Compiled(model)), Compiled(nn.DataParallel(model))):
        assert [node.name for node in trace(wrapped, images()).nodes] == names
    inside = Net(lambda s, x: s.head(stem(s, x)))
    inside.conv1 = Compiled(inside.conv1)
    assert [node.name for node in trace(inside, images()).nodes] == names
    assert isinstance(inside.conv1, Compiled)


def test_checkpointed_blocks_are_followed():
    from torch.utils.checkpoint import checkpoint

    graph = exact(Net(lambda s, x: s.head(checkpoint(lambda y: s.relu(s.bn1(s.conv1(y))), x, use_reentrant=False))))
    assert kinds(graph)[1:4] == ["Conv2d", "BatchNorm2d", "ReLU"]


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning", "ignore:.*jit:FutureWarning")
def test_a_program_in_place_of_a_module_is_refused_by_what_to_pass():
    model = Net(lambda s, x: s.head(stem(s, x)))
    traced = torch.jit.trace(model, images())
    for scripted, where in ((traced, "TopLevelTracedModule"), (nn.Sequential(traced), "0")):
        with pytest.raises(
            UnsupportedModel, match=rf"^{where}: got a TorchScript module.*the nn\.Module that it was made from"
        ):
            trace(scripted, images())
    with pytest.raises(UnsupportedModel, match=r"OrderedDict: got no module; expected an nn\.Module.*load_state_dict"):
        convert(model.state_dict(), [images()])


def test_modules_without_weights_are_refused_by_what_to_call():
    with torch.device("meta"):
        model = Net(lambda s, x: s.head(stem(s, x)))
    for given in ([images()], None):
        with pytest.raises(UnsupportedModel, match=r"Net: conv1\.weight has no weights yet.*meta.*load_state_dict"):
            convert(model, given)
    with pytest.raises(UnsupportedModel, match=r"0\.weight has no weights yet.*lazy.*Run the model once"):
        trace(nn.Sequential(nn.LazyConv2d(8, 3)), images())


# ---- what is refused, and what is said ----


class Largest(nn.Module):
    def forward(self, x):
        return x.max(3)[0][..., None]


REFUSED = {
    "Hardtanh": (nn.Hardtanh(), r"module Hardtanh; expected ReLU.*nn\.Hardtanh\(0, a\)"),
    "Hardswish": (nn.Hardswish(), r"module Hardswish; expected ReLU.*nn\.ReLU"),
    "LeakyReLU": (nn.LeakyReLU(), r"module LeakyReLU; expected ReLU.*nn\.ReLU"),
    "PReLU": (nn.PReLU(), r"module PReLU; expected ReLU.*nn\.ReLU"),
    "GELU": (nn.GELU(), r"module GELU; expected ReLU.*nn\.ReLU"),
    "GroupNorm": (nn.GroupNorm(2, 8), r"module GroupNorm; expected BatchNorm.*nn\.BatchNorm2d"),
    "InstanceNorm": (nn.InstanceNorm2d(8), r"statistics of each image; expected BatchNorm"),
    "Softmax": (nn.Softmax(1), r"module Softmax; expected logits.*Leave it out"),
    "gate": (torchvision.ops.SqueezeExcitation(8, 2), r"1\.scale_activation .*module Sigmoid; expected logits.*gates"),
    "Upsample": (nn.Upsample(scale_factor=2), r"module Upsample; expected a convolution"),
    "a maximum over an axis": (Largest(), r"got a maximum over an axis; expected a max-pool.*F\.max_pool2d"),
    "transposed": (nn.ConvTranspose2d(8, 8, 2), r"module ConvTranspose2d; expected a convolution"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_cannot_be_converted_are_refused_by_what_to_do(name):
    layer, says = REFUSED[name]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with pytest.raises(UnsupportedModel, match=says):
        trace(randomized(model), images())


def test_a_line_of_a_library_is_not_to_be_rewritten(tmp_path, monkeypatch):
    home = tmp_path / "site-packages" / "resnets"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(
        "import torch\n\ndef act(x):\n    return torch.tanh(x)\n\ndef up(x):\n    return x.flip(3)\n"
    )
    monkeypatch.syspath_prepend(home.parent)
    import resnets

    with pytest.raises(
        UnsupportedModel, match=r"__init__\.py, line 7: return x\.flip\(3\)\).*in resnets: use a network without"
    ):
        trace(Net(lambda s, x: s.head(resnets.up(s.conv1(x)))), images())
    sys.modules.pop("resnets")


def test_code_without_a_file_has_no_line():
    space = {"nn": nn, "torch": torch}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return torch.tanh(x)", space)
    with pytest.raises(UnsupportedModel, match=r"^node tanh: cannot"):
        trace(space["Made"](), images())


@pytest.mark.parametrize("back", [False, True])
def test_numbers_of_another_type_inside_are_refused(back):
    def body(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = s.head(stem(s, x))
        return answer.float() if back else answer

    with pytest.raises(UnsupportedModel, match=r"(bfloat16|float32).*; expected (one type|float32) throughout"):
        trace(Net(body), images())


READ = {
    "numpy": lambda s, x: s.head(s.conv1(x) * float(np.abs(x.numpy()).max())),
    "item": lambda s, x: s.head(s.conv1(x) / x.abs().max().item()),
    "list": lambda s, x: s.head(s.conv1(x) + sum(x.flatten().tolist())),
    "nan check": lambda s, x: s.head(s.conv1(x)) if not torch.isnan(x).any() else None,
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_values_of_the_images_are_no_constants(name):
    with pytest.raises(UnsupportedModel, match=r"test_trace_modules\.py, line \d+: .*control flow on values"):
        trace(Net(READ[name]), images())


def test_a_constant_that_was_computed_from_the_example_is_found_out():
    """On the example itself the graph is right."""
    leak = Net(lambda s, x: s.head(s.conv1(x) * secret(x)))
    with pytest.raises(UnsupportedModel, match=r"others on other images.*NumPy, scripted functions"):
        trace(leak, images())


def secret(x):
    """The largest value, by a way that no call of torch on an activation shows."""
    with torch._C.DisableTorchFunctionSubclass():
        return float(x.max())


def test_operations_that_the_answer_does_not_depend_on_may_be_any():
    def body(s, x):
        s.gate(x.mean((1, 2, 3)))
        return s.head(stem(s, x))

    assert "gate" not in [node.name for node in trace(Net(body, gate=nn.Softmax(0)), images()).nodes]


W, B = torch.linspace(-1, 1, 40).reshape(5, 8), torch.linspace(0, 2, 5)
OPERANDS = {
    "addmm": lambda x: torch.addmm(B, x, W.T),
    "addmm, row": lambda x: torch.addmm(B[None], x, W.T),
    "addmm, one number": lambda x: torch.addmm(B[3], x, W.T),
    "addmm, by name": lambda x: torch.addmm(input=B, mat1=x, mat2=W.T),
    "constant plus": lambda x: F.linear(torch.add(torch.ones(8), x, alpha=3), W),
    "constant minus": lambda x: F.linear(torch.sub(torch.ones(8), x, alpha=2), W),
    "minus constant": lambda x: F.linear(torch.rsub(x, torch.ones(8), alpha=2), W),
    "constant times": lambda x: F.linear(torch.mul(torch.arange(8.0), x), W),
    "constant or more": lambda x: F.linear(torch.maximum(torch.zeros(()), x - 0.5), W),
}
NO_OPERANDS = {
    "product of two": (lambda x: x @ x, "a product of two activations"),
    "matrix first": (lambda x: W @ x, r"a product of \(5, 8\) and \(8, 8\).*with the activations first"),
    "matrix first, mm": (lambda x: torch.mm(W, x), r"a product of \(5, 8\) and \(8, 8\)"),
    "maps behind a matrix": (lambda x: (torch.eye(8) @ x[..., None])[..., 0], "a product of"),
    "vector": (lambda x: x @ W[0], r"a product of \(8, 8\) and \(8,\)"),
    "sum with a product": (lambda x: torch.addmm(x, x, torch.ones(8, 8)), "a sum of an activation and a product"),
    "bias per image": (lambda x: torch.addmm(torch.arange(8.0)[:, None], x, W.T), r"a bias of shape \(8, 1\)"),
}


class Ends(nn.Module):
    """Eight features of an image, and what is done with them."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 8, 3, padding=1), end

    def forward(self, x):
        return self.end(F.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("name", OPERANDS)
def test_the_activation_may_be_any_operand(name):
    model, x = Ends(OPERANDS[name]).eval(), images(8, 6)
    with torch.no_grad():
        assert torch.allclose(trace(model, x).run(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NO_OPERANDS)
def test_products_of_other_kinds_are_refused_by_what_they_are(name):
    """As many images as features, so that every shape fits."""
    end, said = NO_OPERANDS[name]
    with pytest.raises(UnsupportedModel, match=said):
        trace(Ends(end).eval(), images(8, 6))
