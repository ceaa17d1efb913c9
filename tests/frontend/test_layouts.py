"""Key layouts: what is read has the logits of the network that was saved, or the message says which option reads it."""

import random
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomized
from layouts_in_the_wild import (
    AveragedBasic,
    Backbone,
    BiasedWideResNet,
    Cifar,
    CifarBasic,
    CifarBottleneck,
    Detectron,
    Face,
    FunctionalAverage,
    Headed,
    Narrow,
    Preactivated,
    PreactivatedBottleneck,
    PreactResNet,
    ResidualFunctions,
    Second,
    Timm,
    WideResNet,
    ZeroBasic,
)
from torch import nn

import s_resnet
from s_resnet.errors import InvalidCheckpoint
from s_resnet.frontend import load_checkpoint
from s_resnet.frontend.weights.architectures import QUESTIONS, WORDS, parse
from s_resnet.frontend.weights.layouts import LAYOUTS, layout_of
from s_resnet.frontend.weights.recognize import PLAIN, recognize
from s_resnet.frontend.weights.state_names import stripped
from s_resnet.models import CifarResNet


def settled(model, size=32, channels=3):
    """The model with random weights, and the BatchNorm statistics of random images."""
    randomized(model).train()
    with torch.no_grad():
        for seed in range(2):
            model(images(8, size, channels, seed))
    return model.eval()


def same(found, expected):
    """Equal to 1e-5 of the largest logit."""
    return torch.allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def cut(model, *without):
    """The children of a network in a Sequential, without some of them."""
    return nn.Sequential(*(child for name, child in model.named_children() if name not in without))


def flat(features):
    """A network that ends in maps, averaged and flattened."""
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def renamed(module, **names):
    """The module's state under other names: parts of names, replaced."""
    state = module.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def two_linear(between):
    return nn.Sequential(nn.Linear(64, 12), between, nn.Dropout(0.5), nn.Linear(12, 6))


CIFAR = {
    "CIFAR ResNet-10 of four stages": (lambda: Cifar(CifarBasic, (1, 1, 1, 1)), "resnet10-stem1-nomaxpool"),
    "CIFAR ResNet-18": (lambda: Cifar(CifarBasic, (2, 2, 2, 2)), "resnet18-stem1-nomaxpool"),
    "CIFAR ResNet-34": (lambda: Cifar(CifarBasic, (3, 4, 6, 3), 4), "resnet34-stem1-nomaxpool"),
    "CIFAR ResNet-50": (lambda: Cifar(CifarBottleneck, (3, 4, 6, 3), 4), "resnet50-stem1-nomaxpool"),
    "CIFAR ResNet-8, option B": (lambda: Cifar(CifarBasic, (1, 1, 1)), "cifar_resnet8"),
    "CIFAR bottlenecks of three stages": (lambda: Cifar(CifarBottleneck, (1, 1, 1)), "cifar_bottleneck_resnet11"),
    "PreActResNet-18": (lambda: PreactResNet(Preactivated, (2, 2, 2, 2)), "preact_resnet18"),
    "PreActResNet-14, bottlenecks": (lambda: PreactResNet(PreactivatedBottleneck, (1, 1, 1, 1)), "preact_resnet14"),
    "PreActResNet-8, BatchNorm at the end": (
        lambda: PreactResNet(Preactivated, (1, 1, 1), 4, last="bn"),
        "cifar_preact_resnet8",
    ),
    "WRN-10-2": (lambda: WideResNet(10, 2), "wrn10_2"),
    "WRN-16-1": (lambda: WideResNet(16, 1), "cifar_preact_resnet14"),
    "WRN-10-2 with biases": (lambda: BiasedWideResNet(10, 2), "wrn10_2-v15-rawshortcut"),
    "residual_function, basic": (lambda: ResidualFunctions((2, 2, 2, 2), 1), "resnet18-stem1-nomaxpool"),
    "residual_function, bottleneck": (lambda: ResidualFunctions((1, 1, 1, 1), 4), "resnet14-stem1-nomaxpool"),
    "torchvision with a CIFAR stem": (lambda: Narrow(kernel=3, stride=1, maxpool=False), "resnet10-stem1-nomaxpool"),
}
LARGE = {
    "torchvision": (Narrow, "resnet10"),
    "torchvision cut into children": (lambda: flat(cut(Narrow(), "avgpool", "fc")), "resnet10"),
    "torchvision cut, without max-pool": (
        lambda: flat(cut(Narrow(maxpool=False), "maxpool", "avgpool", "fc")),
        "resnet10-nomaxpool",
    ),
    "no classifier": (lambda: Narrow(head=nn.Identity()), "resnet10"),
    "ResNet-C": (lambda: Timm(deep=True, average=False), "resnet14"),
    "ResNet-D": (lambda: Timm(deep=True, average=True), "resnet14"),
    "averages alone": (lambda: Timm(deep=False, average=True), "resnet14"),
    "OpenMMLab": (lambda: Headed(cut_fc(Timm(deep=False, average=False)), 256), "resnet14"),
    "OpenMMLab, ResNetV1c": (lambda: Headed(Backbone(8, average=False), 256), "resnet14"),
    "OpenMMLab, ResNetV1d": (lambda: Headed(Backbone(8, average=True), 256), "resnet14"),
    "Hugging Face, basic": (lambda: Face((2, 2, 2, 2), bottleneck=False), "resnet18"),
    "Hugging Face, bottleneck": (lambda: Face((1, 1, 1, 1), bottleneck=True), "resnet14"),
    "timm, ResNetV2": (lambda: Second((1, 1, 1, 1)), "preact_resnet14-stem2-maxpool"),
    "Detectron2": (lambda: Detectron((1, 1, 1, 1)), "resnet14-v1"),
}
# Read as something else unless the architecture is named.
NAMED = {
    "3x3 stem and max-pool": (lambda: Narrow(kernel=3, stride=1), "resnet10-maxpool"),
    "3x3 stem of stride 2 and max-pool": (lambda: Narrow(kernel=3, stride=2), "resnet10-stem2-maxpool"),
    "no max-pool": (lambda: Narrow(maxpool=False), "resnet10-nomaxpool"),
    "stride 1 in the stem": (lambda: Narrow(stride=1), "resnet10-stem1"),
    "stride in the first convolution": (lambda: Timm(False, False, caffe=True), "resnet14-v1"),
    "Hugging Face, downsample_in_bottleneck": (lambda: Face((1, 1, 1, 1), True, early=True), "resnet14-v1"),
    "option A, zeros behind": (lambda: Cifar(ZeroBasic, (1, 1, 1)), "cifar_resnet8-padafter"),
    "option A, averages": (lambda: Cifar(AveragedBasic, (1, 1, 1)), "cifar_resnet8-padafter-averaged"),
    "averages outside of the shortcut": (
        lambda: Cifar(FunctionalAverage, (1, 1, 1, 1)),
        "resnet10-stem1-nomaxpool-averaged",
    ),
}
# Refused unless the architecture is named.
HEADS = {
    "two linear layers, ReLU": (lambda: Narrow(head=two_linear(nn.ReLU())), "resnet10-fcrelu"),
    "two linear layers": (lambda: Narrow(head=two_linear(nn.Identity())), "resnet10-fclinear"),
    "two linear layers, BatchNorm and ReLU": (
        lambda: Narrow(head=nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6))),
        "resnet10-fcrelu",
    ),
    "two linear layers, ReLU and BatchNorm": (
        lambda: Narrow(head=nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 6))),
        "resnet10-fcrelu",
    ),
}


def cut_fc(model):
    """The network up to the maps of its last stage."""
    model.forward = model.features
    del model.fc
    return model


def read(model, tmp_path, arch=None, size=32, channels=3):
    """The checkpoint, its logits and the model's."""
    torch.save(model.state_dict(), tmp_path / "net.pth")
    found, x = load_checkpoint(tmp_path / "net.pth", arch), images(4, size, channels, seed=9)
    with torch.no_grad():
        return found, found.model(x), model(x)


@pytest.mark.parametrize("name", [*CIFAR, *LARGE])
def test_a_layout_is_read(tmp_path, name):
    build, arch = (CIFAR | LARGE)[name]
    size = 32 if name in CIFAR else 64
    found, logits, expected = read(settled(build(), size), tmp_path, size=size)
    assert found.arch == arch and same(logits, expected)
    assert found.num_classes == expected.shape[1]
    assert found.input_size == (32 if name in CIFAR or "without max-pool" in name else 224)
    again = load_checkpoint(tmp_path / "net.pth", found.arch)
    assert (again.arch, again.variants) == (found.arch, found.variants)
    x = images(2, size, seed=9)
    assert torch.allclose(s_resnet.trace(found.model, x).run(x), expected[:2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMED)
def test_what_no_checkpoint_tells_is_said_and_can_be_chosen(tmp_path, name):
    build, arch = NAMED[name]
    model = settled(build(), 64)
    found, logits, expected = read(model, tmp_path, size=64)
    assert not same(logits, expected), "the test could not fail"
    chosen, logits, expected = read(model, tmp_path, arch, 64)
    assert same(logits, expected)
    for word in arch.split("-")[1:]:
        said = [line for line in (*found.assumed, *found.variants) if re.search(rf"-{word}\b", line)]
        assert said or word in found.arch, word
        question = next(question for question in QUESTIONS if word in question.words)
        assert not any(line.startswith(choice.says) for line in chosen.assumed for choice in question.choices)
    again = load_checkpoint(tmp_path / "net.pth", chosen.arch)
    with torch.no_grad():
        assert torch.equal(again.model(images(4, 64, seed=9)), logits) and again.arch == chosen.arch


@pytest.mark.parametrize("name", HEADS)
def test_several_linear_layers_are_read_with_a_word(tmp_path, name):
    build, arch = HEADS[name]
    model = settled(build(), 64)
    with pytest.raises(InvalidCheckpoint, match="2 linear layers") as refused:
        read(model, tmp_path, size=64)
    assert repr(arch) in str(refused.value)
    found, logits, expected = read(model, tmp_path, arch, 64)
    assert same(logits, expected) and found.num_classes == 6 and found.arch == arch


# ---- names and widths


FULL = {
    "resnet18-stem1-nomaxpool": lambda: Cifar(CifarBasic, (2, 2, 2, 2), 64),
    "resnet34-stem1-nomaxpool": lambda: Cifar(CifarBasic, (3, 4, 6, 3), 64),
    "resnet50-stem1-nomaxpool": lambda: Cifar(CifarBottleneck, (3, 4, 6, 3), 64),
    "resnet101-stem1-nomaxpool": lambda: Cifar(CifarBottleneck, (3, 4, 23, 3), 64),
    "resnet152-stem1-nomaxpool": lambda: Cifar(CifarBottleneck, (3, 8, 36, 3), 64),
    "preact_resnet50": lambda: PreactResNet(PreactivatedBottleneck, (3, 4, 6, 3), 64),
    "preact_resnet34": lambda: PreactResNet(Preactivated, (3, 4, 6, 3), 64),
    "wrn28_10": lambda: WideResNet(28, 10),
    "wrn28_10-v15-rawshortcut": lambda: BiasedWideResNet(28, 10),
    "cifar_bottleneck_resnet164": lambda: Cifar(CifarBottleneck, (18, 18, 18), 16),
}


@pytest.mark.parametrize("arch", FULL)
def test_networks_at_their_full_width(arch):
    with torch.device("meta"):
        shapes = shapes_of(FULL[arch]())
    for given in (None, arch, arch.partition("-")[0]):
        found = recognize(shapes, given)
        assert (found.arch, found.input_size) == (arch, 32)
        assert {found.names[name]: shape for name, shape in shapes.items()} == shapes_of(found.model)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_channels_and_kernel_are_those_of_the_file(tmp_path, channels, kernel):
    model = settled(Narrow(channels, kernel, stride=2 if kernel > 4 else 1, maxpool=kernel > 4), 32, channels)
    found, logits, expected = read(model, tmp_path, channels=channels)
    assert same(logits, expected) and found.channels == channels


@pytest.mark.parametrize("name", ["classifier", "last_linear", "head", "linear"])
def test_other_names_of_the_classifier(name):
    shapes = {key.replace("fc.", f"{name}."): shape for key, shape in shapes_of(Narrow()).items()}
    found = recognize(shapes)
    assert found.num_classes == 6 and found.names[f"{name}.weight"] == "fc.weight"


def test_a_classifier_that_is_a_convolution_of_one_pixel(tmp_path):
    model = settled(Narrow())
    state = model.state_dict()
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    torch.save(state, tmp_path / "net.pth")
    with torch.no_grad():
        assert same(load_checkpoint(tmp_path / "net.pth").model(images(2, 32)), model(images(2, 32)))


@pytest.mark.parametrize("suffix", ["c", "d"])
def test_a_stem_in_a_sequential_under_another_prefix(suffix):
    """The backbone of a detector alone: no classifier."""
    with torch.device("meta"):
        shapes = {f"backbone.{name}": shape for name, shape in shapes_of(Backbone(64, suffix == "d")).items()}
    found = recognize(shapes)
    assert found.arch == "resnet14" and found.num_classes == 2048
    assert found.assumed[-1] == "no classifier: the file has none, so the answer is its 2048 features"


# ---- what is said


def test_what_is_assumed_comes_with_the_name_for_something_else():
    assert recognize(shapes_of(CifarResNet(8))).assumed == (
        "stride 1 in the first convolution (else cifar_resnet8-stem2)",
        "no max-pool after the stem (else cifar_resnet8-maxpool)",
        "zeros before and after the channels of a shortcut (else cifar_resnet8-padafter)",
        "shortcuts of every second pixel (else cifar_resnet8-averaged)",
    )
    with torch.device("meta"):
        face, detectron = shapes_of(Face((1, 1, 1, 1), True)), shapes_of(Detectron((1, 1, 1, 1)))
    assert recognize(face).assumed == (  # the program itself fixes the stem
        "the stride of a block in its second convolution (else resnet14-v1)",
        "stride 1 in the first stage (else resnet14-halved)",
    )
    assert recognize(detectron).assumed == ("the stride of a block in its first convolution (else resnet14-v15)",)
    found = recognize(face, "resnet14-v1-whole")
    assert found.assumed == () and found.arch == "resnet14-v1"
    assert set(found.variants) == {"resnet14", "resnet14-v1-averaged", "resnet14-v1-halved"}


@pytest.mark.parametrize("name", ["CIFAR ResNet-10 of four stages", "torchvision", "PreActResNet-18", "ResNet-D"])
def test_every_variant_reads_the_file_otherwise(name, tmp_path):
    model = settled((CIFAR | LARGE)[name][0](), 64)
    found, logits, _ = read(model, tmp_path, size=64)
    assert found.variants and found.arch not in found.variants
    for arch in found.variants:
        other = load_checkpoint(tmp_path / "net.pth", arch)
        assert other.arch == arch and found.arch in (*other.variants, *both_of_the_stem(found.arch, arch))
        with torch.no_grad():
            assert not same(other.model(images(4, 64, seed=9)), logits), arch


def both_of_the_stem(arch, other):
    """Names that differ in stride and max-pool from one that changes something else are not listed."""
    return (arch,) if any(word in arch + other for word in ("averaged", "rawshortcut", "v15")) else ()


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet10-stem3", ("unknown architecture", "'resnet10-stem3'", ", ".join(WORDS))),
        ("resnet10-stem1-stem2", ("'stem1' and 'stem2'", "one word for each")),
        ("resnet10-nomaxpool-nomaxpool", ("'nomaxpool' and 'nomaxpool'",)),
        ("resnet10-fcrelu-fclinear", ("'fcrelu' and 'fclinear'",)),
        ("resnet10-v1", ("'v1', which says nothing about this network", "Leave out 'v1'")),
        ("resnet10-padafter", ("'padafter', which says nothing",)),
        ("resnet10-fcrelu", ("'fcrelu' of a network with one linear layer",)),
        ("wrn10_2", ("missing", "exactly those of wrn10_2")),
        ("resnet18", ("missing (layer1.1.conv1.weight", "exactly those of resnet18")),
    ],
)
def test_an_architecture_that_does_not_fit(arch, words):
    shapes = shapes_of(Narrow())
    with pytest.raises(InvalidCheckpoint) as refused:
        recognize(shapes, arch)
    assert all(word in str(refused.value) for word in words), refused.value


def test_the_width_in_a_name_has_to_be_the_files():
    with torch.device("meta"):
        shapes = shapes_of(WideResNet(10, 2))
    assert recognize(shapes, "wrn10_2").arch == "wrn10_2"
    with pytest.raises(InvalidCheckpoint, match=r"mis-shaped \(block1.layer.0.conv1.weight is \(32, 16, 3, 3\), not"):
        recognize(shapes, "wrn10_4")


FOREIGN = {
    "layer1.0.se_module.fc1.weight": "squeeze-and-excitation",
    "layer1.0.se.fc1.weight": "squeeze-and-excitation",
    "layer1.0.fc1.weight": "attention",
    "layer2.0.attn.qkv.weight": "attention",
    "Mixed_5b.branch1x1.conv.weight": "Inception",
    "layer1.0.act.thresh": "learned thresholds",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_layers_of_other_networks_are_named(name):
    with pytest.raises(InvalidCheckpoint) as refused:
        recognize(shapes_of(Narrow()) | {name: (4, 8)})
    message = str(refused.value)
    assert f"nearly those of resnet10: 1 unexpected ({name})" in message
    assert f"{name} belongs to {FOREIGN[name]}" in message


def test_other_normalizations_are_named():
    shapes = {name: shape for name, shape in shapes_of(Narrow()).items() if "running" not in name}
    with pytest.raises(InvalidCheckpoint, match="no running statistics of BatchNorm"):
        recognize(shapes)


def test_convolutions_over_signals_are_named():
    shapes = {name: shape[:3] for name, shape in shapes_of(Narrow()).items()}
    with pytest.raises(InvalidCheckpoint, match=r"signals \[B, C, L\], .* export the network to .onnx or .pt2"):
        recognize(shapes)


@pytest.mark.parametrize("name", ["PreActResNet-18", "WRN-10-2", "Hugging Face, basic", "ResNet-D"])
def test_one_tensor_more_or_less_is_not_read(name):
    """Of every layout: the message names the tensors as the file does."""
    with torch.device("meta"):
        shapes = shapes_of((CIFAR | LARGE)[name][0]())
    block = next(key for key in reversed(shapes) if key.endswith("weight") and len(shapes[key]) == 4)
    for edit, said in (
        (shapes | {block: (*shapes[block][:2], 5, 5)}, f"1 mis-shaped ({block} is"),
        (shapes | {f"{block}.more": (1,)}, f"1 unexpected ({block}.more)"),
        ({key: shape for key, shape in shapes.items() if key != block}, "1 missing ("),
    ):
        with pytest.raises(InvalidCheckpoint, match="nearly those of") as refused:
            recognize(edit)
        assert said in str(refused.value)


@pytest.mark.parametrize("shape", [(2**40, 3, 3, 3), (0, 0, 0, 0), (4, 3, 2**31, 3), (4,), ()])
@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.bn1.weight", "fc.weight"])
def test_shapes_that_claim_too_much_build_nothing(name, shape):
    with pytest.raises(InvalidCheckpoint):
        recognize(shapes_of(Narrow()) | {name: shape})


def test_names_and_shapes_that_make_no_sense_are_read_or_refused():
    chance = random.Random(0)
    with torch.device("meta"):
        files = [
            shapes_of((CIFAR | LARGE)[name][0]()) for name in ("WRN-10-2", "Detectron2", "torchvision", "ResNet-D")
        ]
    for turn in range(120):
        shapes = dict(chance.choice(files))
        for _ in range(chance.choice([1, 2, 30])):
            name = chance.choice(list(shapes))
            shape = shapes.pop(name)
            if chance.random() < 0.5:
                name = chance.choice(
                    [name[:-3], name.replace("0", "\u0663"), f"{name}.0", name.replace("layer", "layer1."), "."]
                )
            if chance.random() < 0.7:
                shape = chance.choice(
                    [(), (0,), shape[::-1], shape * 2, (2**50, *shape[1:]), tuple(n + 1 for n in shape)]
                )
            shapes[name] = shape
        try:
            recognize(shapes, chance.choice([None, "resnet10", "wrn10_2-v1", "preact_resnet14"]))
        except InvalidCheckpoint as refused:
            assert len(str(refused)) < 3000, turn


def test_every_layout_has_a_network_here():
    signs = {layout.name: layout.signs for layout in LAYOUTS}
    with torch.device("meta"):
        files = [stripped(build().state_dict()) for build, _ in (CIFAR | LARGE).values()]
    for name, patterns in signs.items():
        assert any(all(any(re.search(sign, key) for key in file) for sign in patterns) for file in files), name


def test_a_place_that_two_names_have_is_nobodys():
    """Whether the classifier is the ninth child or the tenth depends on what was left out; a file with both is odd."""
    names = ("0.weight", "4.0.conv1.weight", "7.0.conv1.weight", "9.weight", "10.weight")
    _, both = layout_of(dict.fromkeys(names, (8, 8)))
    _, one = layout_of(dict.fromkeys(names[:4], (8, 8)))
    assert (both["9.weight"], both["10.weight"]) == names[3:] and one["9.weight"] == "fc.weight"
    assert both["0.weight"] == "conv1.weight" and both["7.0.conv1.weight"] == "layer4.0.conv1.weight"


def test_a_name_that_only_begins_like_a_layers_stays():
    _, found = layout_of(dict.fromkeys(("linear.weight", "linear2.weight"), (8, 8)))
    assert found == {"linear.weight": "fc.weight", "linear2.weight": "linear2.weight"}


def test_biases_are_wide_resnets_only_where_batchnorm_stands_before_the_convolutions():
    plain = shapes_of(Narrow()) | {"layer1.0.conv1.bias": (8,)}
    assert layout_of(plain)[0].name == "torchvision and timm"


def test_names_of_architectures():
    for name in ("resnet18", "wrn28_10", "resnext50_32x4d", "wide_resnet50_2", "cifar_preact_resnet110", "resnet200"):
        assert parse(name) is not None
    for name in ("", "resnet", "resnet19", "wrn28", "wrn27_10", "resnext50", "preact_wide_resnet50_2", "cifar_resnet9"):
        assert parse(name) is None, name
    assert parse("cifar_resnet99998") is None


# ---- pre-activated networks become spiking


@pytest.mark.parametrize("name", ["PreActResNet-18", "WRN-10-2", "WRN-10-2 with biases"])
def test_a_preactivated_network_is_converted(name, tmp_path):
    model = settled(CIFAR[name][0](), 16)
    found, _, expected = read(model, tmp_path, size=16)
    snn = s_resnet.convert(found.model, [images(16, 16, seed=3)], recipe="calibrated", timesteps=32)
    x = images(4, 16, seed=9)
    assert F.mse_loss(snn(x, timesteps=32), expected) < F.mse_loss(torch.zeros_like(expected), expected) / 4


def test_blurred_strides_are_never_ruled_out_in_silence():
    """timm's anti-aliased networks have torchvision's names and shapes; the stem for small images has no stride."""
    assert PLAIN in recognize(shapes_of(Narrow())).assumed
    assert PLAIN not in recognize(shapes_of(Narrow()), "resnet10-stem1").assumed
