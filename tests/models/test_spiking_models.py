"""The directly trained families: parameters, shapes, blocks against plain torch written out, tdBN in both forms."""

import copy
import functools
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import s_resnet
from s_resnet.conversion import Context
from s_resnet.graph import StreamSettings
from s_resnet.graph.alphabet import Surrogate
from s_resnet.models import LIF, Firing, catalog
from s_resnet.models.catalog import ARCHITECTURES, timesteps_of
from s_resnet.models.danet import DenselyAdditive
from s_resnet.models.ds_resnet import SpikeAddBlock
from s_resnet.models.layers import SpikingNeuron, TDBatchNorm2d, lif, mlf
from s_resnet.models.ms_resnet import MSBlock
from s_resnet.models.sew_resnet import SpikeAddBottleneck
from s_resnet.models.spiking_resnet import PlainBlock


def build(arch, classes, *, size=32, channels=3, **settings):
    return catalog.build(arch, classes, input_shape=(channels, size, size), **settings)


def parameters(arch, classes, **settings):
    with torch.device("meta"):
        return sum(p.numel() for p in build(arch, classes, **settings).parameters())


# ---- parameters: the papers' and the released code's ----


@pytest.mark.parametrize(
    ("arch", "settings", "expected"),
    [
        ("ds_resnet20", {}, 4_327_754),  # 4.33 M
        ("ds_resnet14", {"width": 32, "channels": 2}, 696_330),  # 0.70 M, CIFAR10-DVS
        ("ds_resnet20", {"width": 16, "channels": 2, "classes": 11}, 272_395),  # 0.27 M, DVS-Gesture
        # As the released code builds it, counted by hand: 64 channels in, 3, 8, 32, 8 blocks, 1,000 classes.
        ("ms_resnet104", {"size": 224, "classes": 1000}, 77_350_504),
        ("ms_resnet18", {"size": 224, "classes": 1000}, 11_693_736),
        # SEW-ResNet has the parameters of torchvision's ResNet of the same depth.
        ("sew_resnet18", {"size": 224, "classes": 1000}, 11_689_512),
        ("sew_resnet34", {"size": 224, "classes": 1000}, 21_797_672),
        ("sew_resnet50", {"size": 224, "classes": 1000}, 25_557_032),
        ("sew_resnet101", {"size": 224, "classes": 1000}, 44_549_160),
        ("sew_resnet152", {"size": 224, "classes": 1000}, 60_192_808),
    ],
)
def test_parameter_counts(arch, settings, expected):
    settings = dict(settings)
    assert parameters(arch, settings.pop("classes", 10), **settings) == expected


def test_ms_resnet104_by_hand():
    convolutions = 9 * (3 * 64 + 2 * 64 * 64) + 3 * 64  # three convolutions with biases
    normalizations, before = 2 * 64, 64
    for width, blocks in zip((64, 128, 256, 512), (3, 8, 32, 8), strict=True):
        convolutions += 9 * (before * width + (2 * blocks - 1) * width * width) + before * width
        normalizations += 2 * width * (2 * blocks + 1)
        before = width
    assert parameters("ms_resnet104", 1000, size=224) == convolutions + normalizations + 513_000


@pytest.mark.parametrize("depth", [20, 482])
def test_cifar_depths_have_as_many_weighted_layers(depth):
    with torch.device("meta"):
        for family in ("ms_resnet", "spiking_resnet"):
            model = build(f"{family}{depth}", 10)
            layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.shape[-1] != 1]
            assert len(layers) == depth


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_name_builds(arch):
    with torch.device("meta"):
        assert isinstance(build(arch, 10, size=224), nn.Module)
    assert (timesteps_of(arch) is None) == (arch.startswith(("cifar", "resnet")))


# ---- every family runs, learns, and is traced ----

SMALL = {
    "ms_resnet8": {},
    "ds_resnet8": {"width": 16},
    "danet11": {"width": 8},
    "sew_resnet8": {},
    "spiking_resnet8": {},
}
IMAGENET = {"ms_resnet18": 4, "ms_resnet104": 4, "sew_resnet50": 4, "danet50": 4}


def network(arch, seed=0, **settings):
    """A network whose normalizations have seen something, and weigh unevenly."""
    torch.manual_seed(seed)
    model = build(arch, 10, **settings)
    images = torch.randn(4, settings.get("channels", 3), settings.get("size", 16), settings.get("size", 16))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.3, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.4)
    with torch.no_grad():
        for _ in range(20):
            model(images)
    return model.eval(), images


@pytest.mark.parametrize(("arch", "settings"), SMALL.items())
def test_all_parameters_learn_and_more_steps_are_more_images(arch, settings):
    torch.manual_seed(0)
    model, images = build(arch, 10, timesteps=3, **settings), torch.randn(8, 3, 16, 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.7)  # also those that start at 0, behind which nothing learns at first
    F.cross_entropy(model(images), torch.arange(8)).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    events = torch.randn(3, 8, 3, 16, 16)
    assert model(events).shape == (8, 10)
    # A constant current is the same event at every step; statistics see T copies of an image, which are one.
    torch.testing.assert_close(model(images), model(images.expand(3, *images.shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "settings"), SMALL.items())
@pytest.mark.parametrize("converted", [False, True])
def test_traced_and_converted_networks_answer_as_the_module(arch, settings, converted):
    model, images = network(arch, **settings)
    with torch.no_grad():
        expected = model(images)
    graph = s_resnet.convert(model, [images]) if converted else s_resnet.trace(model, images)
    assert graph.trained and graph.provenance.recipe.timesteps == timesteps_of(arch)
    assert expected.std() > 0.05
    torch.testing.assert_close(graph(images, timesteps_of(arch)), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(graph.run(images), expected, rtol=0, atol=1e-5)


@pytest.fixture
def no_eps_of_zero(monkeypatch):
    """Batch normalization as strict as torch 2.11's, in evaluation too; newer ones let an eps of 0 pass there."""
    real = F.batch_norm

    @functools.wraps(real)  # who traces a network knows it by its name
    def strict(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        assert eps > 0, f"batch_norm eps must be positive, but got {eps}"
        return real(x, mean, var, weight, bias, training, momentum, eps)

    monkeypatch.setattr(F, "batch_norm", strict)


@pytest.mark.parametrize(("arch", "settings"), SMALL.items())
def test_no_eps_is_zero(arch, settings, no_eps_of_zero):
    model, images = network(arch, **settings)
    graph = s_resnet.trace(model, images)
    norms = [node.op for node in graph.nodes if isinstance(node.op, s_resnet.graph.ops.BatchNorm2d)]
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) >= 7
    assert all(op.eps > 0 for op in norms)
    with torch.no_grad():
        expected = model(images)
        steps = timesteps_of(arch)
        for answer in (graph.run(images), graph(images, steps), s_resnet.graph.GraphModule(graph, steps)(images)):
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"eps_outside": True}, {"eps": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_eps_gives_the_bits_of_zero(settings, dtype, no_eps_of_zero):
    """torch's own operator, which takes an eps of 0, on variances from the least normal float32 to large ones."""
    norm = TDBatchNorm2d(3, 0.7, 0.6, **settings).to(dtype).eval()
    x = torch.randn(4, 3, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    norm.running_var.copy_(torch.tensor([torch.finfo(torch.float32).tiny, 0.3, 1e30]))
    var = (norm.running_var.sqrt() + norm.eps) ** 2 if norm.eps_outside else norm.running_var
    with torch.no_grad():
        want = torch.batch_norm(x, norm.weight * 0.6, norm.bias, norm.running_mean, var, False, 0.0, 0.0, False)
        assert want.isfinite().all() and torch.equal(norm(x), want)
        assert torch.equal(s_resnet.trace(nn.Sequential(norm), x).run(x), want)


@pytest.mark.parametrize(("arch", "width"), IMAGENET.items())
def test_imagenet_stems_are_traced(arch, width):
    model, images = network(arch, size=66, width=width, timesteps=2)
    with torch.no_grad():
        torch.testing.assert_close(s_resnet.trace(model, images)(images, 2), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("arch", "settings"), SMALL.items())
def test_spikes_are_the_module_s_on_dyadic_weights(arch, settings):
    """Every neuron layer at every step: sums of multiples of 2^-10 are exact, whatever the order of additions."""
    model, images = network(arch, **settings)
    images = (images * 64).round() / 64
    seen = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_((module.weight * 64).round() / 64)
            if isinstance(module, nn.BatchNorm2d):  # y = w x + b exactly: mean 0, and a root of 1
                module.running_mean.zero_()
                outside = isinstance(module, TDBatchNorm2d) and module.eps_outside
                module.running_var.fill_(1)
                module.eps = sys.float_info.min  # nothing beside 1, and torch 2.11 refuses 0
                if outside:
                    module.threshold = 0.5
                module.weight.fill_(1.0)
                module.bias.copy_((module.bias * 64).round() / 64)
            if isinstance(module, SpikingNeuron):
                thresholds = tuple(round(theta * 4) / 4 for theta in module.firing.thresholds)
                module.firing = replace(module.firing, thresholds=thresholds)
                module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
        expected = model(images)
        for module in model.modules():
            module._forward_hooks.clear()
        graph = s_resnet.trace(model, images)
        found = {}
        for chunk in graph.stream(
            images,
            timesteps_of(arch),
            chunk=1,
            settings=StreamSettings(observe=lambda n, v: found.setdefault(n, []).append(v.clone())),
        ):
            answer = chunk.outputs[-1]
    assert len(seen) == len(graph.neurons) >= 7
    assert 0.02 < torch.cat([s.flatten() for s in seen.values()]).mean() < 2
    for name, spikes in seen.items():
        assert torch.equal(torch.cat(found[name]).to(spikes), spikes), name
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8", "sew_resnet8", "spiking_resnet8"])
def test_normalizing_and_firing_as_one_changes_nothing(arch, monkeypatch):
    torch.manual_seed(0)
    fused, images = build(arch, 10).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 1.4)
    apart = copy.deepcopy(fused)
    F.cross_entropy(fused(images), torch.arange(4)).backward()
    for room in ("ms_resnet", "ds_resnet", "spiking_resnet"):
        monkeypatch.setattr(f"s_resnet.models.{room}.fired", lambda norm, neuron, x: neuron(norm(x)))
    F.cross_entropy(apart(images), torch.arange(4)).backward()
    for one, other in zip(fused.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12 * float(other.grad.abs().max()))
    for one, other in zip(fused.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# ---- blocks against their equations, written out step by step ----


def neurons(x, thresholds=(0.5,), decay=0.25):
    """[T, B, *]: hard reset, one membrane for each threshold."""
    out = torch.zeros_like(x)
    for theta in thresholds:
        u = torch.zeros_like(x[0])
        for t in range(len(x)):
            u = decay * u + x[t]
            s = (u >= theta).to(x)
            out[t] += s
            u = u * (1 - s)
    return out


def normalized(x, norm):
    """[T, B, C, H, W] by the statistics of a batch norm in evaluation."""
    shape = (1, 1, -1, 1, 1)
    root = (norm.running_var + norm.eps).sqrt()
    if getattr(norm, "eps_outside", False):
        root = norm.running_var.sqrt() + norm.eps
    y = (x - norm.running_mean.view(shape)) / root.view(shape) * getattr(norm, "threshold", 1.0)
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def convolved(x, layer):
    return torch.stack([F.conv2d(now, layer.weight, layer.bias, layer.stride, layer.padding) for now in x])


@pytest.fixture
def block_input():
    torch.manual_seed(0)
    return torch.randn(3, 2, 4, 6, 6)


def ready(block):
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (("weight", 0.3, 1.5), ("bias", -0.2, 0.6), ("running_var", 0.2, 2.0)):
                nn.init.uniform_(getattr(module, values), low, high)
    return block.eval()


def close(block, x, expected):
    with torch.no_grad():
        torch.testing.assert_close(block(x.flatten(0, 1)).view_as(expected), expected)


@pytest.mark.parametrize(("channels", "stride", "pooled"), [(4, 1, False), (8, 2, False), (8, 2, True)])
def test_ms_block(block_input, channels, stride, pooled):
    b, u = ready(MSBlock(4, channels, stride, 3, pooled)), block_input
    branch = normalized(convolved(neurons(u), b.conv1), b.bn1)
    branch = normalized(convolved(neurons(branch), b.conv2), b.bn2)
    if stride == 2:
        if pooled:
            u = torch.stack([F.avg_pool2d(now, 2) for now in u])
        u = normalized(convolved(u, b.shortcut[-2]), b.shortcut[-1])
    close(b, block_input, branch + u)


def test_ms_block_starts_as_its_shortcut(block_input):
    block = MSBlock(4, 4, 1, 3)
    assert torch.equal(block(block_input.flatten(0, 1)), block_input.flatten(0, 1))
    assert block.bn1.weight[0].item() == 0.5


@pytest.mark.parametrize("stride", [1, 2])
def test_ds_block_fires_before_the_addition(block_input, stride):
    norm = lambda channels: TDBatchNorm2d(channels, threshold=0.6, eps_outside=True)  # noqa: E731
    thresholds = (0.6, 1.6, 2.6)
    b = ready(SpikeAddBlock(4, 4 * stride, stride, lambda: mlf(3), norm))
    x = block_input.round().abs()
    out = neurons(normalized(convolved(x, b.conv1), b.bn1), thresholds)
    out = neurons(normalized(convolved(out, b.conv2), b.bn2), thresholds)
    short = x if stride == 1 else neurons(normalized(convolved(x, b.shortcut[0]), b.shortcut[1]), thresholds)
    assert out.max() > 1
    close(b, x, out + short)


@pytest.mark.parametrize("stride", [1, 2])
def test_plain_block_fires_after_the_addition(block_input, stride):
    b = ready(PlainBlock(4, 4 * stride, stride, lambda: lif(3), nn.BatchNorm2d))
    x = (block_input > 0).float()
    out = neurons(normalized(convolved(x, b.conv1), b.bn1))
    out = normalized(convolved(out, b.conv2), b.bn2)
    short = x if stride == 1 else normalized(convolved(x, b.shortcut[0]), b.shortcut[1])
    close(b, x, neurons(out + short))


def test_sew_bottleneck(block_input):
    b = ready(SpikeAddBottleneck(4, 8, 2, lambda: lif(3), nn.BatchNorm2d))
    x = (block_input > 0).float()
    out = x
    for index in (0, 3, 6):
        out = neurons(normalized(convolved(out, b.branch[index]), b.branch[index + 1]))
    short = neurons(normalized(convolved(x, b.shortcut[0]), b.shortcut[1]))
    close(b, x, out + short)


def test_densely_additive_stages_get_every_stage_before(block_input):
    """Each stage reads the sum; what comes from two stages before is halved twice and goes through a convolution."""
    stages = [nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1, 2)]
    dense = ready(DenselyAdditive(stages, (4, 8, 4), (1, 2), 3))
    assert [len(links) for links in dense.dense] == [1, 2]
    link = lambda part, u: normalized(convolved(neurons(u), part[1]), part[2])  # noqa: E731
    pooled = lambda part, u: normalized(  # noqa: E731
        convolved(torch.stack([F.avg_pool2d(s, 2) for s in neurons(u)]), part[2]), part[3]
    )
    u0 = block_input
    u1 = convolved(u0, stages[0]) + link(dense.dense[0][0], u0)
    u2 = convolved(u1, stages[1]) + pooled(dense.dense[1][0], u0) + pooled(dense.dense[1][1], u1)
    close(dense, u0, u2)


# ---- tdBN ----


def forward_by_hand(x, norm):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    root = var.sqrt() + norm.eps if norm.eps_outside else (var + norm.eps).sqrt()
    weight, bias = norm.weight.view(-1, 1, 1), norm.bias.view(-1, 1, 1)
    return weight * norm.threshold * (x - mean) / root + bias


@pytest.mark.parametrize("outside", [False, True])
def test_tdbn_and_its_gradients_against_autograd(outside):
    torch.manual_seed(0)
    norm = TDBatchNorm2d(5, 0.5, threshold=0.6, eps_outside=outside, eps=0.1).double()
    x = torch.randn(6, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(6, 5, 3, 4, dtype=torch.float64)
    expected = torch.autograd.grad(forward_by_hand(x, norm), (x, norm.weight, norm.bias), g)
    out = norm(x)
    torch.testing.assert_close(out, forward_by_hand(x, norm), rtol=1e-12, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad(out, (x, norm.weight, norm.bias), g), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.detach().mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.detach().var((0, 2, 3)))


def test_tdbn_survives_a_channel_that_is_constant():
    """Neurons that are silent make convolutions of zeros, where the root of the variance has no slope."""
    norm = TDBatchNorm2d(2, eps_outside=True)
    x = torch.zeros(4, 2, 3, 3)
    x[:, 1] = torch.randn(4, 3, 3)
    x.requires_grad_()
    norm(x).pow(2).sum().backward()
    assert x.grad.isfinite().all() and x.grad[:, 1].abs().sum() > 0


@pytest.mark.parametrize("outside", [False, True])
def test_folding_tdbn_is_exact(outside):
    torch.manual_seed(0)
    norm = ready(TDBatchNorm2d(4, threshold=0.6, eps_outside=outside, eps=0.05)).double()
    nn.init.uniform_(norm.running_mean, -1, 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False).double(), norm)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = forward = model(images)
        root = norm.running_var.sqrt() + 0.05 if outside else (norm.running_var + 0.05).sqrt()
        wanted = norm.weight.view(-1, 1, 1) * 0.6 * (model[0](images) - norm.running_mean.view(-1, 1, 1))
        expected = wanted / root.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(forward, expected, rtol=1e-12, atol=1e-12)
    nothing = s_resnet.Calibration({}, 100.0, 0, "training")
    graph = s_resnet.trace(copy.deepcopy(model).float(), images.float()).to(torch.float64)
    exact = s_resnet.graph.graph.Graph(
        tuple(
            s_resnet.graph.Node(node.name, op[0] if (op := _layer(model, node.name)) else node.op, node.inputs)
            for node in graph.nodes
        )
    )
    folded = s_resnet.conversion.passes.fold_batchnorm(exact, Context(nothing))
    assert [type(node.op).__name__ for node in folded.nodes] == ["Input", "Conv2d"]
    torch.testing.assert_close(folded.run(images), expected, rtol=1e-12, atol=1e-12)


def _layer(model, name):
    """The node's operation from the module itself, in its own precision."""
    from s_resnet.frontend.spiking_layers import layer
    from s_resnet.graph.ops import Conv2d

    module = dict(model.named_modules()).get(name)
    if isinstance(module, nn.Conv2d):
        return (Conv2d(module.weight.detach(), None),)
    return layer(module) if isinstance(module, TDBatchNorm2d) else ()


# ---- what people do wrong ----


@pytest.mark.parametrize(
    ("arch", "settings", "says"),
    [
        ("ms_resnet21", {}, "ms_resnet21"),
        ("resnet19", {}, "resnet19"),
        ("ds_resnet2", {}, "ds_resnet2"),
        ("ms_resnet999", {}, "such as 482"),
        ("MS_ResNet18", {}, "expected one of"),
        ("ms_resnet20", {"timesteps": 0}, "timesteps, got 0"),
        ("ms_resnet20", {"width": 3}, "multiple of 4"),
        ("resnet18", {"timesteps": 4}, "timesteps, got 4 for an ANN"),
        ("cifar_resnet20", {"channels": 2}, "channels, got 2; expected 3"),
        ("resnet18", {"width": 8}, "width"),
        ("ms_resnet20", {"normalize_input": True}, "ds_resnet alone"),
    ],
)
def test_unknown_names_and_settings_are_refused(arch, settings, says):
    with pytest.raises(s_resnet.errors.InvalidData, match=says):
        build(arch, 10, **settings)


def test_events_of_other_steps_and_layers_out_of_place():
    model = build("ms_resnet8", 10, timesteps=4)
    with pytest.raises(s_resnet.errors.InvalidData, match=r"got \[3, 2, 3, 16, 16\].*\[4, B, C, H, W\]"):
        model(torch.zeros(3, 2, 3, 16, 16))
    with pytest.raises(s_resnet.errors.InvalidData, match="multiple of 4"):
        lif(4)(torch.zeros(6, 2))


def test_convert_refuses_what_a_trained_network_does_not_need():
    model, images = network("ms_resnet8")
    with pytest.raises(s_resnet.errors.InvalidData, match=r"got recipe, timesteps for a network that was trained"):
        s_resnet.convert(model, [images], "calibrated", timesteps=8)


def test_a_trained_network_that_does_not_say_its_steps():
    model, images = network("ms_resnet8")
    graph = s_resnet.Graph(s_resnet.trace(model, images).nodes)
    with pytest.raises(s_resnet.errors.InvalidData, match=r"expected the T that it was trained for"):
        graph.run(images)
    torch.testing.assert_close(graph(images, 6), model(images).detach(), rtol=0, atol=1e-5)


def test_a_trained_network_survives_its_file(tmp_path):
    model, images = network("ds_resnet8", width=16)
    snn = s_resnet.convert(model, [images])
    s_resnet.save(snn, tmp_path / "x.snn")
    loaded = s_resnet.load(tmp_path / "x.snn")
    assert torch.equal(loaded(images, 4), snn(images, 4))
    assert loaded.alphabet == "3 firing levels" and loaded.trained


def test_chunks_make_no_difference_and_state_goes_on():
    model, images = network("ds_resnet8", width=16)
    snn = s_resnet.convert(model, [images])
    whole = s_resnet.simulate(snn, images, 4, at=(2, 4))
    halves = s_resnet.simulate(snn, images, 2, s_resnet.simulation.SimulationSettings(chunk=1))
    rest = s_resnet.simulate(snn, images, 2, s_resnet.simulation.SimulationSettings(chunk=2), state=halves.state)
    torch.testing.assert_close(halves.outputs[0], whole.outputs[0])
    torch.testing.assert_close(rest.outputs[0], whole.outputs[1])


class Own(nn.Module):
    """A network of one's own, with layers to put out of place."""

    def __init__(self, start=4, fire=4, end=4):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.repeat = s_resnet.models.Repeat(start) if start else None
        self.fire = s_resnet.models.SpikingNeuron(fire, replace(LIF, surrogate="arctan", width=2.0))
        self.mean = s_resnet.models.TimeMean(end) if end else None

    def forward(self, images):
        current = self.norm(self.conv(images))
        spikes = self.fire(current if self.repeat is None else self.repeat(current, images))
        logits = self.linear(spikes.mean((2, 3)))
        return logits if self.mean is None else self.mean(logits)


def test_ones_own_network_is_traced_with_its_surrogate():
    torch.manual_seed(0)
    model, images = Own(), 3 * torch.randn(8, 3, 6, 6)
    for _ in range(3):
        model(images)
    graph = s_resnet.convert(model.eval(), [images])
    assert graph.trained_for == 4
    (neuron,) = [node.op for node in graph.nodes if isinstance(node.op, s_resnet.graph.Neuron)]
    assert neuron.surrogate == Surrogate("arctan", 2.0)
    answer = model(images).detach()
    assert answer.std() > 0.01
    torch.testing.assert_close(graph(images, 4), answer, rtol=0, atol=1e-5)


def test_neurons_of_a_built_network_take_another_surrogate():
    """It reaches the gradient, whether neurons stand behind a normalization or not, and the Graph."""
    gradients = []
    for surrogate in ("rectangle", "sigmoid"):
        torch.manual_seed(0)
        model, images = build("ds_resnet8", 5, timesteps=3, width=4), torch.randn(4, 3, 8, 8)
        for layer in model.modules():
            if isinstance(layer, SpikingNeuron):
                layer.firing = replace(layer.firing, surrogate=surrogate)
        model(images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.body.parameters()]))
    assert not torch.allclose(*gradients)
    neurons = [
        node.op for node in s_resnet.trace(model.eval(), images).nodes if isinstance(node.op, s_resnet.graph.Neuron)
    ]
    assert neurons and all(neuron.surrogate.shape == "sigmoid" for neuron in neurons)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": None}, "none of type Repeat;"),
        ({"end": None}, "none of type TimeMean;"),
        ({"fire": 2}, "timesteps, got 2 and 4; expected the same T"),
        ({"start": 2, "fire": 2}, "timesteps, got 2 and 4; expected the same T"),
    ],
)
def test_layers_out_of_place_are_told(settings, says):
    with pytest.raises(s_resnet.errors.UnsupportedModel, match=says):
        s_resnet.trace(Own(**settings), torch.randn(8, 3, 6, 6))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timesteps": 0}, "timesteps, got 0"),
        ({"thresholds": ()}, r"thresholds, got \(\)"),
        ({"decay": 2.0}, "decay, got 2.0"),
        ({"surrogate": "boxcar"}, "got 'boxcar'; expected one of rectangle, triangle, arctan, sigmoid"),
    ],
)
def test_neurons_that_cannot_be_are_refused_when_made(settings, says):
    with pytest.raises(s_resnet.errors.InvalidData, match=says):
        SpikingNeuron(settings.pop("timesteps", 4), Firing(**{**vars(LIF), **settings}))
