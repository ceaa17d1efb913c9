"""Calibration: the scales are those of sorting every activation, or of sampling what BatchNorm's statistics say."""

import itertools
import math
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, Net, images, needs_fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from s_resnet import Graph, calibrate, load_checkpoint, trace
from s_resnet.conversion import calibrate_from_batchnorm
from s_resnet.errors import InvalidData
from s_resnet.graph import Node, ops

SHARES = {99.9: (999, 1000), 99: (99, 100), 100: (1, 1), 50: (1, 2)}  # percent, and the same as a fraction


def chain(*named_ops):
    """A graph of these operations, each reading the one before."""
    nodes = [Node("input", ops.Input(), ())]
    for name, op in named_ops:
        nodes.append(Node(name, op, (nodes[-1].name,)))
    return Graph(tuple(nodes))


IDENTITY = chain(("flatten", ops.Flatten()))  # its logits are the pixels


@pytest.fixture(scope="module")
def traced():
    """A residual network, and its graph."""

    def body(s, x):
        x = s.relu1(s.bn1(s.conv1(x)))
        return s.head(s.relu2(s.bn2(s.conv2(x)) + x))

    model = Net(body, relu1=nn.ReLU(), relu2=nn.ReLU())
    return model, trace(model, images())


def measured(model, batches):
    """Every value that the ReLU modules and the classifier gave, by hooks on the module itself."""
    values = {"relu1": [], "relu2": [], "fc": []}
    hooks = [
        getattr(model, name).register_forward_hook(lambda m, i, out, name=name: values[name].append(out.flatten()))
        for name in values
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in values.items()}


def ranked(values, share):
    """The element of 1-based rank floor(p n), p an exact fraction."""
    above, below = share
    return float(values.sort().values[max(1, len(values) * above // below) - 1])


# ---- from data ----


@pytest.mark.parametrize("percentile", SHARES)
def test_the_scale_is_the_ranked_element_of_all_values(traced, percentile):
    model, graph = traced
    batches = [images(size, seed=size) for size in (4, 7, 1)]
    result = calibrate(graph, batches, percentile)
    expected = {name: ranked(values, SHARES[percentile]) for name, values in measured(model, batches).items()}
    assert result.scales == {name: value if value > 0 else 1.0 for name, value in expected.items()}
    assert result.silent == tuple(name for name, value in expected.items() if value <= 0)
    assert (result.percentile, result.images, result.source) == (percentile, 12, "data")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(list(SHARES)),
)
def test_any_floats_are_ranked(values, percentile):
    batch = torch.from_numpy(values).view(-1, 1, 1, 1)
    result = calibrate(IDENTITY, [batch], percentile)
    above, below = SHARES[percentile]
    expected = float(sorted(values.tolist())[max(1, len(values) * above // below) - 1])
    assert result.scales == {"flatten": expected if expected > 0 else 1.0}
    assert result.silent == (() if expected > 0 else ("flatten",))


def test_order_and_size_of_the_batches_do_not_matter():
    # On a grid of 2^-8 sums are exact, so what could differ is the search alone.
    model = Net(lambda s, x: s.head(F.relu(s.conv2(F.relu(s.conv1(x))))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).round() / 8)
    graph = trace(model, images())
    batches = [(images(3, seed=seed) * 8).round() / 8 for seed in range(4)]
    scales = calibrate(graph, batches, 99).scales
    assert len(scales) == 3
    for order in itertools.permutations(batches):
        assert calibrate(graph, order, 99).scales == scales
    for size in (1, 5, 12):
        assert calibrate(graph, torch.cat(batches).split(size), 99).scales == scales


@pytest.mark.parametrize(("percentile", "n", "rank"), [(29, 100, 29), (57, 200, 114), (99.9, 3000, 2997), (1, 50, 1)])
def test_the_rank_is_not_a_float_below_the_whole_number(percentile, n, rank):
    assert calibrate(IDENTITY, [torch.arange(1.0, n + 1).view(-1, 1, 1, 1)], percentile).scales == {"flatten": rank}


@dataclass(frozen=True, eq=False)
class Remembered:
    """ReLU that knows which of its outputs are alive."""

    outputs: list = field(default_factory=list)

    def run(self, x):
        value = F.relu(x)
        self.outputs.append(weakref.ref(value))
        return value


class Fresh:
    """Batches made on demand; ``alive`` is the largest number of them, or of activations, that existed at once."""

    def __init__(self, op):
        self.op, self.alive = op, 0
        self.batches = []

    def __iter__(self):
        for seed in range(12):
            references = [[r for r in made if r() is not None] for made in (self.batches, self.op.outputs)]
            self.alive = max(self.alive, *(len(r) for r in references))
            batch = images(seed=seed)
            self.batches.append(weakref.ref(batch))
            yield batch


def test_no_images_and_no_activations_are_kept():
    op = Remembered()
    batches = Fresh(op)
    assert calibrate(chain(("relu", op), ("flatten", ops.Flatten())), batches).images == 24
    assert len(op.outputs) == 24  # two passes
    assert batches.alive <= 2


@pytest.mark.parametrize(
    "once", [iter([images()]), (x for x in [images()]), map(torch.relu, [images()])], ids=["iter", "generator", "map"]
)
def test_a_one_shot_iterator_is_refused(traced, once):
    with pytest.raises(InvalidData, match=r"one-shot iterator.*Pass a list or a DataLoader"):
        calibrate(traced[1], once)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_refused(traced, value):
    batch = images()
    batch[1, 0, 3, 3] = value
    for batches, held_out in (([images(), batch], 0), ([batch, images()], 2)):
        with pytest.raises(InvalidData, match=r"got images that are not finite, 1 of 1,536 values"):
            calibrate(traced[1], batches, held_out=held_out)


def test_an_overflow_inside_is_refused_with_its_node():
    graph = chain(("relu", ops.ReLU()), ("scale", ops.Scale(torch.tensor(2.0))), ("flatten", ops.Flatten()))
    with pytest.raises(InvalidData, match=r"^flatten: got activations that are not finite"):
        calibrate(graph, [torch.full((1, 1, 1, 1), 3e38)])


def test_what_never_fires_has_a_stand_in_scale():
    model = Net(lambda s, x: s.head(F.relu(s.conv2(F.relu(s.conv1(x))))))
    with torch.no_grad():
        model.conv1.bias.fill_(-1000)
        model.fc.bias.fill_(-3)
    result = calibrate(trace(model, images()), [images()])
    assert result.scales == {"relu": 1.0, "relu_1": 1.0, "fc": 1.0}
    assert result.silent == ("relu", "relu_1", "fc")


def test_one_silent_channel_does_not_change_the_layers_scale():
    pixels = images(4, 4).abs()
    pixels[:, 1] = -1
    values = pixels.clamp_min(0).flatten()
    graph = chain(("relu", ops.ReLU()), ("flatten", ops.Flatten()))
    assert calibrate(graph, [pixels], 99).scales["relu"] == ranked(values, (99, 100))


@pytest.mark.parametrize("percentile", [0, -1, 100.001, math.nan, math.inf])
def test_a_percentile_out_of_range_is_refused(traced, percentile):
    for run in (lambda g, p: calibrate(g, [images()], p), calibrate_from_batchnorm):
        with pytest.raises(InvalidData, match=r"got percentile .*; expected above 0 and at most 100"):
            run(traced[1], percentile)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "got no images"),
        ([torch.zeros(3, 16, 16)], r"got images of shape \(3, 16, 1, 16\).*x.unsqueeze\(0\)"),
        ([{"picture": images()}], "got a batch of dict with picture"),
        ([images(channels=4)], r"\(2, 4, 16, 16\)"),
        ([torch.zeros(2, 2, 3, 16, 16)], r"got a batch of \(2, 2, 3, 16, 16\)"),
    ],
    ids=["none", "no batch dimension", "dict", "channels", "events"],
)
def test_batches_that_do_not_fit_are_refused(traced, batches, message):
    with pytest.raises(InvalidData, match=message):
        calibrate(traced[1], batches)


# ---- images held out ----


def numbered(count):
    """Images of one pixel that is their number, from 1."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("held_out", "kept"), [(0, 0), (3, 3), (5, 5), (50, 5), (-1, 0)])
def test_held_out_images_are_the_first_and_are_not_counted(held_out, kept):
    pixels = -numbered(10)  # the first are the largest
    batches = [(x, y) for x, y in zip((pixels + 11).split(4), torch.arange(10).split(4), strict=True)]
    result = calibrate(IDENTITY, batches, 100, held_out)
    assert result.scales == {"flatten": 10.0 - kept}
    assert result.images == 10 - kept
    if kept == 0:
        assert result.samples is None
        return
    assert result.samples.images.flatten().tolist() == [10.0 - i for i in range(kept)]
    assert result.samples.labels.tolist() == list(range(kept))
    assert result.summary().held_out == kept


@pytest.mark.parametrize("count", [1, 2, 3])
def test_at_most_half_is_held_out(count):
    result = calibrate(IDENTITY, [numbered(count)], 100, held_out=64)
    assert result.images == count - count // 2
    assert (0 if result.samples is None else len(result.samples.images)) == count // 2


@pytest.mark.parametrize(
    "labels",
    [["a", "b"], torch.zeros(2, 10), torch.tensor([0.5, 1.0]), torch.tensor([3]), None],
    ids=["names", "one-hot", "numbers", "too few", "none"],
)
def test_what_is_no_class_number_is_no_label(labels):
    assert calibrate(IDENTITY, [(numbered(2), labels)] * 2, held_out=2).samples.labels is None
    assert calibrate(IDENTITY, [numbered(2), (numbered(2), labels)], held_out=2).samples.labels is None


def test_lists_of_class_numbers_are_labels():
    assert calibrate(IDENTITY, [[numbered(2), [4, 2]]] * 2, held_out=2).samples.labels.tolist() == [4, 2]


def test_a_loader_serves_shuffled_or_not():
    data = TensorDataset(numbered(40), torch.arange(40))
    assert calibrate(IDENTITY, DataLoader(data, 7), 100, 5).scales == {"flatten": 40.0}
    shuffled = DataLoader(data, 7, shuffle=True, generator=torch.Generator().manual_seed(0))
    result = calibrate(IDENTITY, shuffled, 100, held_out=20)
    others = set(range(1, 41)) - set(result.samples.images.flatten().int().tolist())
    assert result.images == 20 and result.scales == {"flatten": float(max(others))}


def test_equal_images_are_held_out_one_by_one():
    result = calibrate(IDENTITY, [numbered(2)] * 4, 100, held_out=4)
    assert (result.images, len(result.samples.images)) == (4, 4)


def test_images_that_change_between_the_passes_are_refused():
    data = TensorDataset(numbered(40), torch.arange(40))
    dropping = DataLoader(data, 7, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidData, match=r"different images in the second pass over the batches.*Turn off random"):
        calibrate(IDENTITY, dropping, 100, held_out=5)


# ---- from the statistics of BatchNorm ----


def norm(mean, deviation):
    mean, deviation = torch.tensor(mean), torch.tensor(deviation)
    return ops.BatchNorm2d(deviation, mean, torch.randn(len(mean)), torch.rand(len(mean)), 1e-5)


def laplace(mean, deviation, n=400_000):
    """Samples ``[C, n]`` with these moments, the distribution that is assumed."""
    generator = np.random.default_rng(0)
    b = np.abs(np.array(deviation)) / math.sqrt(2)
    return generator.laplace(np.array(mean)[:, None], np.maximum(b, 1e-300)[:, None], (len(mean), n))


def scales(*named_ops, percentile=99.0):
    return calibrate_from_batchnorm(chain(*named_ops, ("flatten", ops.Flatten())), percentile).scales


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 2.0), (-0.3, 0.7), (0.0, -1.0)])
@pytest.mark.parametrize("percentile", [90.0, 99.9])
def test_a_single_channel(mean, deviation, percentile):
    got = scales(("bn", norm([mean], [deviation])), ("relu", ops.ReLU()), percentile=percentile)["relu"]
    b = abs(deviation) / math.sqrt(2)
    assert got == pytest.approx(mean - b * math.log(2 - 2 * percentile / 100), rel=1e-6)
    assert got == pytest.approx(np.quantile(laplace([mean], [deviation]), percentile / 100), rel=0.03)


def test_expected_rounding_is_half_a_grid_step_of_the_active():
    graph = chain(("bn", norm([0.2, -0.5], [1.0, 2.0])), ("relu", ops.ReLU()), ("flatten", ops.Flatten()))
    result = calibrate_from_batchnorm(graph, 99.0)
    x = laplace([0.2, -0.5], [1.0, 2.0])
    assert result.rounding == pytest.approx((x > 0).mean() * result.scales["relu"] / 2 / x.clip(0).mean(), rel=0.02)


def test_a_mixture_of_channels():
    mean, deviation = [0.5, -1.0, 3.0, 0.0], [1.0, 2.0, 0.2, 0.0]
    got = scales(("bn", norm(mean, deviation)), ("relu", ops.ReLU()), percentile=97.0)["relu"]
    assert got == pytest.approx(np.quantile(laplace(mean, deviation), 0.97), rel=0.01)


@pytest.mark.parametrize("mean", [1.0, 0.0, -0.8])
def test_moments_behind_a_relu(mean):
    weight, bias = -1.5, 2.5
    conv = ops.Conv2d(torch.full((1, 1, 1, 1), weight), torch.tensor([bias]))
    got = scales(("bn", norm([mean], [1.3])), ("relu", ops.ReLU()), ("conv", conv), ("relu2", ops.ReLU()))["relu2"]
    current = weight * np.maximum(laplace([mean], [1.3]), 0) + bias
    expected = current.mean() - current.std() / math.sqrt(2) * math.log(2 - 2 * 0.99)
    assert got == pytest.approx(expected, rel=0.01)


def test_moments_behind_a_residual_sum_of_padded_and_sliced_channels():
    a, b = norm([0.4, -0.2], [1.0, 2.0]), norm([0.1, 0.2, 0.3, 0.4], [0.5, 1.0, 1.5, 2.0])
    every = (None, None, None)
    nodes = (
        Node("input", ops.Input(), ()),
        Node("a", a, ("input",)),
        Node("pad", ops.Pad((0, 0, 0, 0, 1, 1)), ("a",)),
        Node("b", b, ("input",)),
        Node("add", ops.Add(), ("b", "pad")),
        Node("slice", ops.Slice(((1, 4, None), every, every)), ("add",)),
        Node("relu", ops.ReLU(), ("slice",)),
        Node("flatten", ops.Flatten(), ("relu",)),
    )
    mean = [0.2 + 0.4, 0.3 - 0.2, 0.4]
    deviation = [math.hypot(1.0, 1.0), math.hypot(1.5, 2.0), 2.0]
    got = calibrate_from_batchnorm(Graph(nodes), 99.0).scales["relu"]
    assert got == pytest.approx(np.quantile(laplace(mean, deviation), 0.99), rel=0.01)


def test_moments_behind_grouped_convolutions_and_a_classifier():
    torch.manual_seed(0)
    mean, deviation = [0.3, 0.5, -0.5, 1.0], [1.0, 0.5, 2.0, 1.5]
    conv = nn.Conv2d(4, 6, 2, groups=2).requires_grad_(False)
    fc = nn.Linear(6 * 4, 1).requires_grad_(False)  # after [6, 2, 2] is flattened
    x = torch.from_numpy(laplace(mean, deviation, 9 * 30_000)).float().view(4, -1, 3, 3).transpose(0, 1).relu()
    current = conv(x)
    logits = fc(current.flatten(1)).double()
    named = [("bn", norm(mean, deviation)), ("relu", ops.ReLU()), ("conv", ops.Conv2d(*conv.parameters(), groups=2))]
    graph = chain(*named, ("flatten", ops.Flatten()), ("fc", ops.Linear(*fc.parameters())))
    got = calibrate_from_batchnorm(graph, 99.0).scales["fc"]
    # Neighbouring windows share pixels, which the closed form leaves out: so the variance is taken pixel by pixel.
    weight = fc.weight.double().view(6, 4)
    variance = (weight**2 * current.double().var(0).flatten(1)).sum()
    expected = float(logits.mean() - (variance / 2).sqrt() * math.log(2 - 2 * 0.99))
    assert got == pytest.approx(expected, rel=0.02)


def test_dead_channels_and_dead_layers():
    alive = scales(("bn", norm([0.0, 0.5], [0.0, 0.0])), ("relu", ops.ReLU()))["relu"]
    assert alive == pytest.approx(0.5)
    graph = chain(("bn", norm([0.0, -2.0], [0.0, 1e-3])), ("relu", ops.ReLU()), ("flatten", ops.Flatten()))
    result = calibrate_from_batchnorm(graph)
    assert result.scales == {"relu": 1.0, "flatten": 1.0}
    assert result.silent == ("relu", "flatten")
    assert (result.source, result.images, result.samples) == ("batchnorm", 0, None)


def test_without_batchnorm_it_asks_for_images():
    with pytest.raises(InvalidData, match=r"without BatchNorm and no images.*Pass calibration_batches"):
        calibrate_from_batchnorm(chain(("relu", ops.ReLU())))


def test_expected_rounding_of_images_is_that_of_the_median_layer():
    """Half a grid step of the active neurons, of three layers, from counts by the upper 16 bits alone."""
    x = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    x[:, :, 0] = 0.0  # neither active nor lost
    named = [
        ("a", ops.ReLU()),
        ("b", norm([-2.0] * 4, [1.0] * 4)),
        ("c", ops.ReLU()),
        ("d", norm([0.1] * 4, [0.3] * 4)),
    ]
    graph = chain(*named, ("e", ops.ReLU()), ("flatten", ops.Flatten()))
    result, lost = calibrate(graph, [x], 99.0), []
    for name, value in graph.activations(x):
        if name in "ace":
            value = value.double()
            lost.append(float((value > 0).double().mean() * result.scales[name] / 2 / value.mean()))
    assert len(lost) == 3 and len(set(lost)) == 3
    assert result.rounding == pytest.approx(sorted(lost)[1], rel=1e-3)
    assert calibrate(chain(("relu", ops.ReLU())), [-x.abs()]).rounding is None  # silent


@needs_fixtures
def test_scales_of_a_real_network_agree_with_measured_ones():
    model = load_checkpoint(FIXTURES / "checkpoints" / "resnet20-12fca82f.th").model
    files = sorted((FIXTURES / "cifar10" / "train").glob("*/*.png"))[::8]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    batches = ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).split(64)
    assert len(files) == 256
    graph = trace(model, batches[0])
    data, guess = calibrate(graph, batches).scales, calibrate_from_batchnorm(graph).scales
    ratios = {name: guess[name] / data[name] for name in data}
    assert len(ratios) == 20  # 19 ReLUs and the logits
    assert all(0.5 < ratio < 2 for name, ratio in ratios.items() if name != "linear"), ratios
    assert 0.25 < ratios["linear"] < 4
