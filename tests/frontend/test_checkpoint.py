"""Checkpoints: what loads has the logits of the saved network; what does not says why in one line."""

import argparse
import copy
import hashlib
import os
import pickle
import random
import re
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from s_resnet.errors import InvalidCheckpoint, InvalidData
from s_resnet.frontend.checkpoint import load_checkpoint
from s_resnet.frontend.weights.opcodes import Excess, scan
from s_resnet.frontend.weights.recognize import KNOWN, recognize
from s_resnet.models.resnet import CifarResNet
from s_resnet.models.torchvision_resnets import TORCHVISION

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"


def randomized(model, seed=0):
    """The model in eval mode with seeded weights and BatchNorm statistics: no two tensors are alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.dim() > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1, generator=generator)
        else:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def images(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits(model, size=32):
    with torch.no_grad():
        return model(images(size))


@pytest.fixture(scope="module")
def small():
    """A CIFAR ResNet-8: the smallest network that is recognized."""
    return randomized(CifarResNet(8))


@pytest.fixture(scope="module")
def resnet18():
    return randomized(torchvision.models.resnet18(num_classes=7))


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path


def assert_same(checkpoint, model, size=32):
    """Bit for bit the logits of `model`, with float32 weights in eval mode."""
    assert torch.equal(logits(checkpoint.model, size), logits(model, size))
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert not any(module.training for module in checkpoint.model.modules())


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(arch, **options):
    with torch.device("meta"):
        return torchvision.models.get_model(arch, weights=None, **options)


# ---- the CIFAR ResNet, held to the paper


def paper_parameters(n, projections=()):
    """He et al. 2015, section 4.2: 6n + 2 layers of 16, 32, 64 channels, BN (2 per channel), 10 classes."""
    convolutions = [(3, 16)] + [(16, 16)] * (2 * n)
    convolutions += [(16, 32)] + [(32, 32)] * (2 * n - 1) + [(32, 64)] + [(64, 64)] * (2 * n - 1)
    total = sum(9 * before * after + 2 * after for before, after in convolutions)
    return total + sum(before * after + 2 * after for before, after in projections) + 64 * 10 + 10


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_parameters_of_the_paper(depth, parameters):
    model = CifarResNet(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters == paper_parameters((depth - 2) // 6)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


def test_parameters_of_projections():
    option_b = CifarResNet(20, shortcut="B")
    assert sum(p.numel() for p in option_b.parameters()) == paper_parameters(3, [(16, 32), (32, 64)])
    every_stage = CifarResNet(20, shortcut="B", project_first=True)
    expected = paper_parameters(3, [(16, 16), (16, 32), (32, 64)])
    assert sum(p.numel() for p in every_stage.parameters()) == expected


def test_names_are_those_of_published_checkpoints():
    names = set(CifarResNet(8, shortcut="B").state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{p}" for p in norm}
    for block in ("layer1.0", "layer2.0", "layer3.0"):
        for i in (1, 2):
            expected |= {f"{block}.conv{i}.weight"} | {f"{block}.bn{i}.{p}" for p in norm}
    for block in ("layer2.0", "layer3.0"):
        expected |= {f"{block}.shortcut.0.weight"} | {f"{block}.shortcut.1.{p}" for p in norm}
    assert names == expected


def test_zero_padding_shortcut_is_subsampling_between_zeros():
    block = CifarResNet(8).eval().layer2[0]
    nn.init.zeros_(block.bn2.weight)  # silences the residual branch
    x = images(9)[:, :1].expand(-1, 16, -1, -1) + torch.arange(16.0).view(1, -1, 1, 1)
    with torch.no_grad():
        out = block(x)
    expected = torch.zeros(2, 32, 5, 5)
    for row in range(5):
        for column in range(5):
            expected[:, 8:24, row, column] = x[:, :, 2 * row, 2 * column].clamp(min=0)
    assert torch.equal(out, expected)


def test_block_is_the_residual_function_of_the_paper():
    """``relu(F(x) + h(x))`` written out in float64; h is the identity in stage 1, a projection in stage 2."""
    model = randomized(CifarResNet(14, shortcut="B")).double()

    def convolve(conv, x):  # one shifted product per filter tap
        k, stride = conv.kernel_size[0], conv.stride[0]
        height, width = (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1
        x = nn.functional.pad(x, [k // 2] * 4)
        out = torch.zeros(x.shape[0], conv.out_channels, height, width, dtype=x.dtype)
        for i in range(k):
            for j in range(k):
                shifted = x[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
                out += torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j], shifted[:, :, :height, :width])
        return out

    def normalize(bn, x):
        tensors = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        mean, var, gain, bias = (tensor.view(1, -1, 1, 1) for tensor in tensors)
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias

    x = images(7)[:, :1].double() * torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, -1, 1, 1)
    with torch.no_grad():
        for block, stride in ((model.layer1[1], 1), (model.layer2[0], 2)):
            assert block.conv1.stride == (stride, stride)
            residual = normalize(block.bn1, convolve(block.conv1, x)).clamp(min=0)
            residual = normalize(block.bn2, convolve(block.conv2, residual))
            shortcut = x if stride == 1 else normalize(block.shortcut[1], convolve(block.shortcut[0], x))
            expected = (residual + shortcut).clamp(min=0)
            torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"shortcut": "B"}, {"shortcut": "B", "project_first": True}])
@pytest.mark.parametrize("size", [(32, 32), (29, 31), (8, 8)])
def test_any_image_size_and_width(options, size):
    model = CifarResNet(8, num_classes=3, width=5, **options).eval()
    assert model(torch.zeros(1, 3, *size)).shape == (1, 3)


def test_cifar_resnet_traces(small):
    assert torch.equal(logits(torch.fx.symbolic_trace(small)), logits(small))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 18}, "6n + 2"),
        ({"depth": 2}, "6n + 2"),
        ({"depth": 20, "shortcut": "C"}, "'A' or 'B'"),
        ({"depth": 20, "project_first": True}, "shortcut='B'"),
    ],
)
def test_cifar_resnet_of_no_such_kind(options, words):
    with pytest.raises(InvalidData, match=re.escape(words)):
        CifarResNet(**options)


# ---- what loads


def test_torchvision_network(resnet18, tmp_path):
    path = saved(resnet18.state_dict(), tmp_path / "net.pth")
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint, resnet18, 64)
    assert (checkpoint.arch, checkpoint.num_classes, checkpoint.input_size) == ("resnet18", 7, 224)
    assert checkpoint.name == "net.pth"
    assert checkpoint.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_path_may_be_text(small, tmp_path):
    path = saved(small.state_dict(), tmp_path / "net.pth")
    checkpoint = load_checkpoint(str(path))
    assert_same(checkpoint, small)
    assert (checkpoint.arch, checkpoint.num_classes, checkpoint.input_size) == ("cifar_resnet8", 10, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(small, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in small.state_dict().items()}
    expected = copy.deepcopy(small)
    expected.load_state_dict(state)
    assert_same(load_checkpoint(saved(state, tmp_path / "net.pth")), expected)


def test_default_dtype_does_not_matter(small, resnet18, tmp_path):
    for model, size in ((small, 32), (resnet18, 64)):
        path = saved(model.state_dict(), tmp_path / "net.pth")
        torch.set_default_dtype(torch.float64)
        try:
            checkpoint = load_checkpoint(path)
        finally:
            torch.set_default_dtype(torch.float32)
        assert_same(checkpoint, model, size)


def test_legacy_format(small, tmp_path):
    path = saved(small.state_dict(), tmp_path / "net.th", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_same(load_checkpoint(path), small)


def test_safetensors_format(small, tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(small.state_dict(), path)
    checkpoint = load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))  # the weights are no view of the file
    assert_same(checkpoint, small)


def test_tied_tensors_are_untied(small, tmp_path):
    state = small.state_dict()
    state["layer1.0.bn1.weight"] = state["bn1.weight"]
    loaded = load_checkpoint(saved(state, tmp_path / "net.pth")).model.state_dict()
    assert torch.equal(loaded["layer1.0.bn1.weight"], loaded["bn1.weight"])
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == len(loaded)


def test_loading_draws_no_random_numbers(small, tmp_path):
    path = saved(small.state_dict(), tmp_path / "net.pth")
    before = torch.get_rng_state()
    load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


NESTINGS = {
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 91.7, "epoch": torch.tensor(3)},
    "model": lambda s: {"epoch": 3, "model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.1},
    "net": lambda s: {"acc": 90, "net": s},
    "network": lambda s: {"network": s},
    "weights": lambda s: {"weights": s},
    "ema only": lambda s: {"ema": s, "step": torch.tensor(1)},
    "unknown name": lambda s: {"my_best_one": s, "step": torch.tensor(1)},
    "two levels": lambda s: {"model": {"state_dict": s}, "note": "x"},
    "module.": lambda s: prefixed("module.", s),
    "lightning": lambda s: {"state_dict": prefixed("model.", s), "hyper_parameters": {"lr": 0.1}},
    "compiled and parallel": lambda s: {"model": prefixed("module._orig_mod.backbone.", s)},
    "averaged": lambda s: {"model": prefixed("module.", s) | {"n_averaged": torch.tensor(5)}},
    "argparse options": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, workers=4)},
    "parameters": lambda s: {"model": {n: nn.Parameter(t, False) for n, t in s.items()}},
}


@pytest.mark.parametrize("nest", NESTINGS.values(), ids=NESTINGS.keys())
def test_nested_state_dict(small, tmp_path, nest):
    assert_same(load_checkpoint(saved(nest(small.state_dict()), tmp_path / "net.pth")), small)


@pytest.mark.parametrize("average", ["ema", "model_ema", "state_dict_ema"])
def test_plain_weights_are_preferred_to_their_average(small, tmp_path, average):
    other = randomized(CifarResNet(8), seed=5)
    content = {average: {"state_dict": other.state_dict()}, "model": {"state_dict": small.state_dict()}}
    assert_same(load_checkpoint(saved(content, tmp_path / "net.pth")), small)


def test_weights_are_preferred_to_larger_optimizer_state(small, tmp_path):
    moments = {f"{name}.{m}": t for name, t in small.state_dict().items() for m in ("exp_avg", "exp_avg_sq")}
    content = {"optimizer": {"state": moments}, "state_dict": small.state_dict()}
    assert_same(load_checkpoint(saved(content, tmp_path / "net.pth")), small)


def test_dict_that_holds_itself(small, tmp_path):
    content = {"state_dict": small.state_dict()}
    content["self"] = content
    assert_same(load_checkpoint(saved(content, tmp_path / "net.pth")), small)


def test_missing_counters_are_zero(small, tmp_path):
    state = {n: t for n, t in small.state_dict().items() if not n.endswith("num_batches_tracked")}
    checkpoint = load_checkpoint(saved(state, tmp_path / "net.pth"))
    assert_same(checkpoint, small)
    counter = checkpoint.model.state_dict()["bn1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter == 0


def test_counters_are_kept_and_their_overflow_is_not(small, tmp_path):
    state = small.state_dict()
    state["bn1.num_batches_tracked"] = torch.tensor(100_000).half()
    assert state["bn1.num_batches_tracked"].isinf()
    loaded = load_checkpoint(saved(state, tmp_path / "net.pth")).model.state_dict()
    assert loaded["bn1.num_batches_tracked"] == 0
    assert loaded["layer1.0.bn1.num_batches_tracked"] == 7


CIFAR_OPTIONS = {
    "A": {},
    "B": {"shortcut": "B"},
    "projection in every stage": {"shortcut": "B", "project_first": True},
    "wide": {"width": 20},
}


@pytest.mark.parametrize("torchvision_names", [False, True])
@pytest.mark.parametrize("options", CIFAR_OPTIONS.values(), ids=CIFAR_OPTIONS.keys())
def test_cifar_shortcuts_and_names(tmp_path, options, torchvision_names):
    model = randomized(CifarResNet(14, num_classes=3, **options))
    state = model.state_dict()
    if torchvision_names:
        renames = {name: name.replace("linear.", "fc.").replace("shortcut.", "downsample.") for name in state}
        state = {renames[name]: tensor for name, tensor in state.items()}
    checkpoint = load_checkpoint(saved(state, tmp_path / "net.pth"))
    assert (checkpoint.arch, checkpoint.num_classes) == ("cifar_resnet14", 3)
    assert_same(checkpoint, model)


HEADS = {
    "no bias": lambda n: nn.Linear(n, 4, bias=False),
    "dropout first": lambda n: nn.Sequential(nn.Dropout(0.5), nn.Linear(n, 4)),
    "alone in a Sequential": lambda n: nn.Sequential(nn.Linear(n, 4, bias=False)),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_replaced_classifier(small, resnet18, tmp_path, head):
    for model, name, size in ((copy.deepcopy(small), "linear", 32), (copy.deepcopy(resnet18), "fc", 64)):
        setattr(model, name, head(getattr(model, name).in_features).eval())
        checkpoint = load_checkpoint(saved(model.state_dict(), tmp_path / "net.pth"))
        assert_same(checkpoint, model, size)
        assert checkpoint.num_classes == 4
        assert list(checkpoint.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("arch", TORCHVISION)
def test_recognizes_torchvision(arch):
    shapes = shapes_of(on_meta(arch, num_classes=13))
    for given in (None, arch):
        found = recognize(shapes, given)
        assert (found.arch, found.num_classes, found.input_size) == (arch, 13, 224)
        assert shapes_of(found.model) == shapes
        assert all(tensor.is_meta for tensor in found.model.state_dict().values())


def test_every_torchvision_resnet_is_known():
    listed = [n for n in torchvision.models.list_models(torchvision.models) if re.search(r"resne[x]?t\d", n)]
    assert len(listed) == 10
    assert set(listed) == set(TORCHVISION)


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110, 164])
def test_recognizes_cifar_depths(depth):
    with torch.device("meta"):
        shapes = shapes_of(CifarResNet(depth, num_classes=100))
    for given in (None, f"cifar_resnet{depth}"):
        found = recognize(shapes, given)
        assert found.arch == f"cifar_resnet{depth}"
        assert shapes_of(found.model) == shapes


def test_given_architecture_that_fits(small, tmp_path):
    path = saved(small.state_dict(), tmp_path / "net.pth")
    assert_same(load_checkpoint(path, arch="cifar_resnet8"), small)


# ---- what is beside the network, or not in the file as it is used


def test_counters_of_operations_are_left_out_and_named(small, tmp_path):
    """As thop leaves them in every layer."""
    counted = copy.deepcopy(small)
    for layer in counted.modules():
        layer.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        layer.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    checkpoint = load_checkpoint(saved(counted.state_dict(), tmp_path / "net.pth"))
    assert_same(checkpoint, small)
    assert len(checkpoint.left_out) == 2 * len(list(counted.modules()))
    assert {name.rpartition(".")[2] for name in checkpoint.left_out} == {"total_ops", "total_params"}


def test_losses_and_metrics_beside_the_network_are_left_out(small, tmp_path):
    """As Lightning keeps them; the network's own prefix goes as ever."""
    state = {f"model.{name}": tensor for name, tensor in small.state_dict().items()}
    beside = {"criterion.weight": torch.ones(10), "train_acc.tp": torch.zeros(10), "val_loss_2.sums": torch.zeros(1)}
    checkpoint = load_checkpoint(saved({"state_dict": beside | state}, tmp_path / "net.ckpt"))
    assert_same(checkpoint, small)
    assert checkpoint.left_out == tuple(beside)


def test_other_tensors_beside_the_network_are_named(small, tmp_path):
    """They may well change what it computes."""
    state = {f"model.{name}": tensor for name, tensor in small.state_dict().items()}
    state = {"normalize.mean": torch.zeros(3), "normalize.std": torch.ones(3), **state}
    refused(
        saved(state, tmp_path / "net.pth"),
        "nearly those of cifar_resnet8: 2 unexpected (normalize.mean, normalize.std)",
    )


NORMED = {
    "weight norm": lambda layer: parametrizations.weight_norm(layer),
    "weight norm over all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight norm over inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral norm": lambda layer: parametrizations.spectral_norm(layer),
    "older weight norm": lambda layer: nn.utils.weight_norm(layer),
    "older spectral norm": lambda layer: nn.utils.spectral_norm(layer),
}


@pytest.mark.filterwarnings("ignore:.*norm.*:FutureWarning")
@pytest.mark.parametrize("norm", NORMED.values(), ids=NORMED.keys())
def test_weights_that_are_computed(small, tmp_path, norm):
    model = copy.deepcopy(small)
    model.linear, model.conv1 = norm(model.linear), norm(model.conv1)
    with torch.no_grad():
        for _ in range(3):
            model.train()(images(32))
    path = saved(
        {"model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}}, tmp_path / "net.pth"
    )
    found = logits(load_checkpoint(path).model)
    assert torch.allclose(found, logits(model.eval()), rtol=1e-5, atol=1e-5) and not torch.allclose(
        found, logits(small)
    )


def test_weights_that_do_not_fit_together_are_no_layer(small, tmp_path):
    state = dict(small.state_dict())
    del state["conv1.weight"]
    state |= {"conv1.weight_g": torch.ones(7, 1, 1, 1), "conv1.weight_v": torch.ones(16, 3, 3, 3)}
    refused(
        saved(state, tmp_path / "net.pth"), "1 missing (conv1.weight), 2 unexpected (conv1.weight_g, conv1.weight_v)"
    )


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_are_those_of_the_file(tmp_path, channels):
    gray = torchvision.models.resnet18(num_classes=9)
    gray.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    tiny = CifarResNet(8, width=4)
    tiny.conv1 = nn.Conv2d(channels, 4, 3, padding=1, bias=False)
    for model, arch in ((gray, "resnet18"), (tiny, "cifar_resnet8")):
        checkpoint = load_checkpoint(saved(randomized(model).state_dict(), tmp_path / "net.pth"))
        assert (checkpoint.arch, checkpoint.channels) == (arch, channels)
        x = torch.randn(2, channels, 32, 32)
        with torch.no_grad():
            assert torch.equal(checkpoint.model(x), model(x))


# ---- what does not load: one line of one form


def refused(path, *words, arch=None):
    """The one-line message with which `path` is turned away, having checked its form and `words`."""
    with pytest.raises(InvalidCheckpoint) as caught:
        load_checkpoint(path, arch)
    message = str(caught.value)
    assert re.fullmatch(re.escape(str(path)) + r": [^\n]+, got [^\n]+; expected [^\n]+\. [^\n]+\.", message)
    for noise in ("weights_only", "add_safe_globals", "PytorchStreamReader", "\x1b"):
        assert noise not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for word in words:
        assert word in message
    return message


def refused_shapes(shapes, *words, arch=None):
    with pytest.raises(InvalidCheckpoint) as caught:
        recognize(shapes, arch, "net.pth")
    message = str(caught.value)
    assert re.fullmatch(r"net\.pth: [^\n]+, got [^\n]+; expected [^\n]+\. [^\n]+\.", message)
    for word in words:
        assert word in message


def test_missing_file(tmp_path):
    refused(tmp_path / "no.pth", "no such file")


def test_directory(tmp_path):
    refused(tmp_path, "a directory", "Name the file itself")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "no regular file")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    path.touch()
    refused(path, "empty file", "0 bytes", "download")


def test_no_permission(small, tmp_path, monkeypatch):
    path = saved(small.state_dict(), tmp_path / "net.pth")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)  # chmod does not stop root
    refused(path, "Permission denied", "permissions")


def written(small, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(small.state_dict(), path)
    else:
        saved(small.state_dict(), path, _use_new_zipfile_serialization=path.suffix == ".pth")
    return path


@pytest.mark.parametrize("suffix", ["pth", "th", "safetensors"])
def test_truncated_file(small, tmp_path, suffix):
    path = written(small, tmp_path / f"net.{suffix}")
    whole = path.read_bytes()
    for tenths in range(1, 10):
        path.write_bytes(whole[: len(whole) * tenths // 10])
        refused(path, "truncated", "download")
    path.write_bytes(whole[:-1])
    refused(path, "truncated", "download")


@pytest.mark.parametrize("suffix", ["pth", "th", "safetensors"])
def test_damaged_file_loads_or_is_refused(small, tmp_path, suffix):
    path = written(small, tmp_path / f"net.{suffix}")
    whole = path.read_bytes()
    rng = random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            # Names and shapes stand in the first bytes, or, in a zip archive, in its directory at the end.
            position = rng.choice([rng.randrange(12_000), -1 - rng.randrange(4_000)])
            damaged[position] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            outcomes.add("loaded")
        except InvalidCheckpoint as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00 some noise",
        b"x",
    ],
)
def test_other_file(tmp_path, content):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    refused(path, "not a checkpoint", repr(content[:16])[2:-1], "torch.save")


def test_text_as_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("just some words, and no tensors at all")
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("net.h5", b"\x89HDF\r\n\x1a\n", ["HDF5", "TensorFlow", "ONNX"]),
        ("net.pth", b"\x89PNG\r\n\x1a\n", ["a picture (PNG)", "calibration_batches"]),
        ("net.pth", b"\n<!DOCTYPE html><title>404</title>", ["a web page", "Download it again"]),
        ("net.pth", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS", "git lfs pull"]),
        ("net.bin", b"GGUF\x03\x00\x00\x00", ["llama.cpp"]),
        ("net.tflite", b"\x1c\x00\x00\x00TFL3", ["TensorFlow Lite"]),
        ("net.pte", b"\x1c\x00\x00\x00ET12", ["ExecuTorch"]),
        ("net.pb", b"\x0a\x12some protobuf", ["TensorFlow"]),
        ("net.mlmodel", b"\x08\x04some protobuf", ["Core ML"]),
        ("net.engine", b"ftrt\x00\x00", ["TensorRT"]),
        ("net.pdmodel", b"\x0a\x05some protobuf", ["Paddle"]),
        ("net.weights", b"\x00\x00\x00\x00", ["Darknet"]),
        ("net.bin", b"\x08\x08\x12\x07pytorch", ["ONNX by its content", "ends in .onnx"]),
        ("net.pth.gz", b"\x1f\x8b\x08", ["gzip", "Unpack it"]),
        ("net.tar", b"net.pth" + bytes(250) + b"ustar", ["tar", "Unpack it"]),
        ("net.npy", b"\x93NUMPY\x01\x00", ["an array of NumPy", "torch.save"]),
        ("net.xml", b"<?xml version='1.0'?>", ["OpenVINO"]),
    ],
)
def test_files_of_others_are_refused_by_what_they_are(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content + bytes(300))
    refused(path, "not a checkpoint", "expected a file that torch.save", *words)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["config.json", "model.weights.h5"], ["Keras", "ONNX"]),
        (["serialized_exported_program.json", "version"], ["torch.export", "2.7 or older", "save the program again"]),
        (["conv1.npy", "fc.npy"], ["arrays of NumPy"]),
        (["weights/net.pth", "readme.txt"], ["a zip archive with net.pth", "Unpack it"]),
        (["a.txt"], ["a zip archive of a.txt", "torch.save(model.state_dict(), path)"]),
    ],
)
def test_other_zip_archives(tmp_path, parts, words):
    path = tmp_path / "net.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for part in parts:
            archive.writestr(part, "")
    refused(path, "not a checkpoint", *words)


def test_torchscript_file(tmp_path):
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    refused(path, "TorchScript", "torch.jit.load", "torch.save(model.state_dict(), path)")


class Malicious:
    """Pickled, a call of `function(argument)`."""

    def __init__(self, function, argument):
        self.call = (function, (argument,))

    def __reduce__(self):
        return self.call


def dump(protocol):
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


def legacy(content, path):
    saved(content, path, _use_new_zipfile_serialization=False)


WRITERS = {"zip": torch.save, "legacy": legacy, "pickle 0": dump(0), "pickle 2": dump(2), "pickle 4": dump(4)}


@pytest.mark.parametrize("kind", ["blocked module", "evaluated text"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_code_in_a_pickle_is_never_run(tmp_path, write, kind):
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    if kind == "blocked module":
        attack = Malicious(os.mkdir, str(marker))
    else:
        attack = Malicious(eval, f"__import__('os').mkdir({str(marker)!r})")
    write({"state_dict": {"conv1.weight": attack}}, path)
    message = refused(path, "torch.save(model.state_dict(), path)")
    assert not marker.exists()
    if write in (torch.save, legacy):
        assert "code" in message
        assert "mkdir" in message or "eval" in message
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the attack was a real one


@pytest.mark.parametrize("write", [torch.save, legacy])
def test_whole_pickled_module(small, tmp_path, write):
    path = tmp_path / "net.pth"
    write(small, path)
    refused(
        path,
        "s_resnet.models.resnet.CifarResNet",
        "whole pickled module",
        "torch.save(model.state_dict(), path)",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dict of epoch, lr"),
        ({}, "an empty dict"),
        ([torch.zeros(3)], "a list"),
        (torch.zeros(3), "a Tensor"),
        ({"optimizer": {"state": {0: {"exp_avg": 1}}}}, "a dict of optimizer"),
    ],
)
def test_no_state_dict(tmp_path, content, words):
    refused(saved(content, tmp_path / "net.pth"), "no tensors", words, "torch.save(model.state_dict(), path)")


def test_safetensors_without_tensors(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file({}, path)
    refused(path, "no tensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite(small, tmp_path, value):
    state = {name: tensor.double() for name, tensor in small.state_dict().items()}
    state["layer2.0.conv1.weight"][3, 2, 1, 0] = value
    refused(saved(state, tmp_path / "net.pth"), "layer2.0.conv1.weight", "1 of 4608 values NaN or infinite")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(16, dtype=torch.int8),
        torch.ones(16).to_sparse(),
        torch.ones(16, device="meta"),
        torch.ones(16, dtype=torch.complex64),
    ],
    ids=["int8", "sparse", "meta", "complex"],
)
def test_weights_of_no_float_type(small, tmp_path, tensor):
    state = small.state_dict() | {"bn1.weight": tensor}
    refused(saved(state, tmp_path / "net.pth"), "tensor bn1.weight", "dense floating-point")


def test_the_nearest_of_several_architectures_is_named():
    shapes = shapes_of(on_meta("resnet50", num_classes=5)) | {"layer3.5.se.weight": (8, 8)}
    refused_shapes(shapes, "nearly those of resnet50: 1 unexpected (layer3.5.se.weight); expected exactly")
    shapes = {name: shape for name, shape in shapes_of(on_meta("resnet34")).items() if not name.startswith("layer4.2.")}
    refused_shapes(shapes, "got stages of 3, 4, 6, 2 blocks; expected those of resnet18")


def test_unknown_network(tmp_path):
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3), "2.weight": torch.zeros(1, 3)}
    path = saved({"state_dict": state}, tmp_path / "net.pth")
    refused(path, "3 tensors (0.weight, 0.bias, 2.weight)", "resnet50", "cifar_resnet20")
    refused(path, "arch=NAME", "s_resnet.convert(model)")


@pytest.mark.parametrize("edit", ["missing", "extra", "mis-shaped", "both names"])
@pytest.mark.parametrize("arch", ["resnet50", "cifar_resnet20"])
def test_one_tensor_more_or_less_is_not_recognized(arch, edit):
    """Nothing is guessed: one name or one shape beside an architecture's is another architecture."""
    with torch.device("meta"):
        model = on_meta(arch) if arch in TORCHVISION else CifarResNet(20)
    shapes = shapes_of(model)
    name, shape = "layer2.0.conv1.weight", shapes["layer2.0.conv1.weight"]
    if edit == "missing":
        del shapes[name]
        words = f"1 missing ({name})"
    elif edit == "extra":
        shapes["layer2.0.se.weight"] = (1,)
        words = "1 unexpected (layer2.0.se.weight)"
    elif edit == "mis-shaped":
        shapes[name] = (shape[0], shape[1], 5, 5)
        words = f"1 mis-shaped ({name} is {shapes[name]}, not {shape})"
    else:
        shapes["linear.weight" if arch == "resnet50" else "fc.weight"] = (10, 64)
        words = "1 unexpected"
    refused_shapes(shapes, "no known architecture", f"nearly those of {arch}: {words}", f"exactly those of {arch}")
    refused_shapes(shapes, words, f"exactly those of {arch}", arch=arch)


def test_cifar_file_with_both_names_of_the_classifier(small, tmp_path):
    state = small.state_dict() | {"fc.weight": torch.zeros(10, 64)}
    refused(saved(state, tmp_path / "net.pth"), "no known architecture")


def test_given_architecture_that_does_not_fit(small, tmp_path):
    path = saved(small.state_dict(), tmp_path / "net.pth")
    refused(
        path,
        "missing (layer1.0.conv3.weight, ",
        "mis-shaped",
        "resnet50",
        "Leave out arch",
        arch="resnet50",
    )
    refused(path, "30 missing (layer1.1.conv1.weight, ", "cifar_resnet14", arch="cifar_resnet14")


@pytest.mark.parametrize("arch", ["vgg16", "resnet20", "cifar_resnet21", "cifar_resnet2", "ResNet50", ""])
def test_unknown_architecture(small, tmp_path, arch):
    path = saved(small.state_dict(), tmp_path / "net.pth")
    refused(path, "unknown architecture", repr(arch), KNOWN, arch=arch)


def test_several_linear_layers():
    shapes = shapes_of(on_meta("resnet18"))
    for name in ("fc.weight", "fc.bias"):
        del shapes[name]
    shapes |= {"fc.0.weight": (256, 512), "fc.0.bias": (256,), "fc.3.weight": (10, 256), "fc.3.bias": (10,)}
    refused_shapes(shapes, "2 linear layers", "fc.0.weight, fc.3.weight", "between them", "'resnet18-fcrelu'")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"fc.weight": (10, 99), "fc.bias": (10,)}, "fc.weight (10, 99)"),
        ({"fc.weight": (10, 512), "fc.bias": (9,)}, "fc.bias (9,)"),
        ({"fc.weight": (0, 512), "fc.bias": (0,)}, "fc.weight (0, 512)"),
        ({"fc.bias": (10,)}, "fc.bias (10,)"),
        ({"fc.head.weight": (10, 512)}, "fc.head.weight"),
        ({"fc.999999999.weight": (10, 512)}, "fc.999999999.weight"),
        ({"fc.0.weight": (512,), "fc.0.bias": (512,), "fc.1.weight": (10, 512)}, "fc.0.weight (512,)"),
    ],
)
def test_classifier_of_another_kind(head, words):
    shapes = {n: s for n, s in shapes_of(on_meta("resnet18")).items() if not n.startswith("fc.")}
    refused_shapes(shapes | head, words, "s_resnet.convert(model)")


def test_names_cannot_write_on_the_terminal(tmp_path):
    path = saved({"\x1b[2J\nevil": torch.zeros(1), "x" * 5000: torch.zeros(1)}, tmp_path / "net.pth")
    assert len(refused(path, "?[2J evil")) < 1000


# ---- real checkpoints


def real(name):
    path = FIXTURES / "checkpoints" / name
    if not path.exists():
        pytest.skip(f"the checkpoint {name} is not on this machine")
    return path


@pytest.mark.parametrize(
    ("name", "depth", "published"), [("resnet20-12fca82f.th", 20, 0.91), ("resnet56-4bfd9763.th", 56, 0.94)]
)
def test_real_cifar_checkpoint_has_its_accuracy(name, depth, published):
    """The accuracy that its authors' code has on these 500 images: strides and padding are right."""
    checkpoint = load_checkpoint(real(name))
    assert (checkpoint.arch, checkpoint.num_classes, checkpoint.input_size) == (
        f"cifar_resnet{depth}",
        10,
        32,
    )
    data = torchvision.datasets.ImageFolder(
        FIXTURES / "cifar10" / "test",
        torchvision.transforms.Compose(
            [
                torchvision.transforms.PILToTensor(),
                torchvision.transforms.ConvertImageDtype(torch.float32),
                torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        ),
    )
    right = 0
    for x, y in torch.utils.data.DataLoader(data, batch_size=100):
        with torch.no_grad():
            right += int((checkpoint.model(x).argmax(1) == y).sum())
    assert len(data) == 500
    assert abs(right - published * 500) <= 1  # one image: convolutions round differently between machines


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_real_torchvision_checkpoint(arch):
    path = real(f"{arch}-cifar10-64px.pth")
    expected = torchvision.models.get_model(arch, weights=None, num_classes=10)
    expected.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    checkpoint = load_checkpoint(path)
    assert (checkpoint.arch, checkpoint.num_classes) == (arch, 10)
    assert_same(checkpoint, expected.eval(), 64)


# ---- what would unfold, and what has rotted ----


@pytest.fixture
def state(small):
    return small.state_dict()


def refused_for(path, words):
    with pytest.raises(InvalidCheckpoint, match=words) as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("width", [2048, 65536])
def test_weights_that_unfold_from_one_number_are_refused(tmp_path, width):
    with torch.device("meta"):
        state = CifarResNet(20, width=width).state_dict()
    one = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    torch.save(one, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 100_000
    refused_for(tmp_path / "x.pth", r"from 1 stored values")


def test_one_storage_under_many_names_is_refused(tmp_path):
    """Each tensor is stored, and all together are many times the file."""
    state = {
        name: value for name, value in CifarResNet(302, width=32).state_dict().items() if value.is_floating_point()
    }
    shared = torch.zeros(max(value.numel() for value in state.values()))
    kept = {name: shared[: value.numel()].view(value.shape) for name, value in state.items()}
    torch.save(kept, tmp_path / "x.pth")
    assert sum(value.numel() for value in state.values()) * 4 > 8 * (tmp_path / "x.pth").stat().st_size
    refused_for(tmp_path / "x.pth", "stored one by one")


def pickled(path, body):
    """A zip as torch.save writes it, around a pickle of these opcodes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")


KEY = b"X\x01\x00\x00\x00a"
BOMBS = {
    # {"a": {"a": ...}}, innermost last
    "dicts in each other": b"}" + (KEY + b"}") * 30_000 + b"s" * 30_000,
    "lists in each other": b"]" * 30_000 + b"a" * 29_999,
    # t = (t, t), as a key: its hash takes 2^40 steps
    "a tuple twice in each other": b"})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(1, 41)) + b"Ns",
    "bytes as many as it says": b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "a view made dense": b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n",
    "a text longer than any memory": b"\x8d" + b"\xff" * 7 + b"\x7fa",
    "a storage larger than its record": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x00\x10tQ",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_would_make_too_much_is_refused(tmp_path, name):
    pickled(tmp_path / "x.pth", BOMBS[name])
    refused_for(tmp_path / "x.pth", "unfolds to too much|damaged")
    if not name.startswith("a storage"):  # the older format, which is no zip
        (tmp_path / "old.pth").write_bytes(b"\x80\x02" + BOMBS[name] + b".")
        refused_for(tmp_path / "old.pth", "unfolds to too much|damaged|Python objects")


def test_the_opcodes_of_what_torch_saves_are_followed(tmp_path):
    """What is claimed of each storage is what is there; numbers that are there twice count twice."""
    content = {"a": torch.zeros(5), "b": [torch.zeros(3, dtype=torch.float64), (1, 2)], "c": {"d": "e"}}
    torch.save(content, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        claimed = scan(archive.read("x/data.pkl"))
        parts = [member for member in archive.infolist() if "/data/" in member.filename]
        sizes = {member.filename.rpartition("/")[2]: member.file_size for member in parts}
    assert claimed == sizes == {"0": 20, "1": 24}
    for broken in (b"", b"\x80\x02}", b"\x80\x02t.", b"\x80\x02h\x05.", b"\x80\x02)Q."):
        with pytest.raises(ValueError):
            scan(broken)
    with pytest.raises(Excess, match="nested 101 deep"):
        scan(b"\x80\x02" + b"]" * 102 + b"a" * 101 + b".")
    scan(b"\x80\x02" + b"]" * 101 + b"a" * 100 + b".")


def test_one_flipped_bit_in_the_weights_is_noticed(tmp_path, state):
    path = tmp_path / "x.pth"
    torch.save(state, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if "/data/" in member.filename and member.file_size > 64]
    assert len(members) > 20
    for number, member in enumerate(members):
        at = member.header_offset
        at += 30 + sum(int.from_bytes(whole[at + n : at + n + 2], "little") for n in (26, 28))
        flipped = bytearray(whole)
        flipped[at + number % member.file_size] ^= 1 << number % 8
        path.write_bytes(flipped)
        refused_for(path, "damaged")
    path.write_bytes(whole)
    load_checkpoint(path)


def test_checksums_that_were_left_out_are_not_asked_for(tmp_path, state):
    path, before = tmp_path / "x.pth", torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert not any(member.CRC for member in archive.infolist())
    load_checkpoint(path)


def test_a_zip_that_is_packed_or_names_a_part_twice_is_refused(tmp_path, state):
    torch.save({name: torch.zeros_like(value) for name, value in state.items()}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    refused_for(tmp_path / "packed.pth", r"unfolds to too much, got \d+ bytes packed into \d+")
    with zipfile.ZipFile(tmp_path / "twice.pth", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
        archive.writestr(next(iter(parts)).upper(), b"torch does not tell capitals from small letters")
    refused_for(tmp_path / "twice.pth", "damaged")


def test_negative_variances_are_named(tmp_path, state):
    state = {name: value.clone() for name, value in state.items()}
    state["layer1.0.bn1.running_var"][:2] = -1
    torch.save(state, tmp_path / "x.pth")
    refused_for(tmp_path / "x.pth", r"layer1\.0\.bn1\.running_var, got 2 of \d+ values negative")
