"""What is found of a source network and its images, against plain torch and networks made wrong on purpose."""

import copy
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FIXTURES, images, needs_fixtures, network_of, randomized
from test_cli import SIZE, make_checkpoint, make_photos, unexpected
from test_cli import program as program  # the fixture
from torch import nn

import s_resnet
from s_resnet import convert, trace
from s_resnet.conversion import alternatives, check_source
from s_resnet.data.labels import at_chance, label_notes
from s_resnet.errors import InvalidCheckpoint, InvalidData, SResNetWarning
from s_resnet.frontend.batchnorm_check import FEW, SHIFT, SPREAD, Fit, LayerFit, Moments, check_statistics
from s_resnet.graph.provenance import BatchNormFit
from s_resnet.models import CifarResNet
from s_resnet.models.planned_resnet import Plan, PlannedResNet

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


def settled(model, x):
    """The model in eval mode with the running statistics of these images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def fit(model, x):
    moments = Moments(trace(model, x[:2]))
    for part in torch.split(x, 8):
        for _ in moments.watch(part):
            pass
    return moments.fit()


# ---- BatchNorm


def test_a_layers_fit_is_that_of_plain_torch():
    """Hooks on the module see what every BatchNorm reads; mean and variance over all images at once, by channel."""
    model, x = randomized(CifarResNet(8, width=4)), images(16, 16, seed=4)
    expected, hooks = {}, []

    def hook(name, norm, given):
        value = given[0].double()
        spread = ((value.var((0, 2, 3), correction=0) + norm.eps) / (norm.running_var + norm.eps)).log().abs() / 2
        shift = (value.mean((0, 2, 3)) - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()
        expected[name] = (float(spread.double().median()), float(shift.double().median()))

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(lambda norm, given, name=name: hook(name, norm, given)))
    with torch.no_grad():
        model(x)
    for handle in hooks:
        handle.remove()
    found = fit(model, x)
    assert [layer.name for layer in found.layers] == list(expected) and found.images == 16
    for layer in found.layers:
        assert (layer.spread, layer.shift) == pytest.approx(expected[layer.name], rel=1e-4)


def test_a_few_images_far_from_all_others_do_not_count():
    x = images(32, 16, seed=5)
    model = settled(CifarResNet(8, width=4), x)
    with_outlier = torch.cat([x, 500 * images(1, 16, seed=6)])
    assert fit(model, with_outlier).score == pytest.approx(fit(model, x).score, abs=0.05)
    assert fit(model, 20 * x).score > 5  # unlike many


def test_the_score_and_the_first_layer_by_hand():
    layers = (LayerFit("a", 0.1, 0.1), LayerFit("b", 0.3, 0.1), LayerFit("c", 0.2, 0.6))
    found = Fit(layers, 32)
    assert found.score == max(0.2 / SPREAD, 0.6 / SHIFT) == pytest.approx(2.0) and not found.fits
    assert found.first.name == "b" and found.worst.name == "c"
    assert replace(found, images=FEW - 1).fits  # too few to tell
    assert Fit(layers[:1], 32).fits and Fit((), 32).fits and Fit((), 32).first is None


WRONG = {
    "max-pool removed": lambda m: m.register_module("maxpool", nn.Identity()),
    "average for max-pool": lambda m: m.register_module("maxpool", nn.AvgPool2d(3, 2, 1)),
    "SiLU": lambda m: [m.get_submodule(n.rpartition(".")[0]).register_module(n.rpartition(".")[2], nn.SiLU())
                       for n, c in list(m.named_modules()) if isinstance(c, nn.ReLU)],
    "first convolution scaled": lambda m: m.conv1.weight.data.mul_(3),
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """torchvision's ResNet of one block per stage, narrow, and the images that its statistics are of."""
    torch.manual_seed(0)
    x = torch.rand(32, 3, 32, 32).mul(2).sub(0.9)
    return PlannedResNet(Plan((1, 1, 1, 1), stem=(16,), width=16), 10), x


@pytest.mark.parametrize("name", WRONG)
def test_a_function_that_is_not_the_files_is_noticed(small, name):
    """The shapes fit; the statistics are those of another function."""
    stock, x = copy.deepcopy(small[0]), small[1]
    assert fit(settled(stock, x), x).score < 0.5
    true = copy.deepcopy(stock)
    WRONG[name](true)
    settled(true, x)
    state = true.state_dict()
    if name == "first convolution scaled":
        state["conv1.weight"] = state["conv1.weight"] / 3
    stock.load_state_dict(state)
    found = fit(stock.eval(), x)
    assert not found.fits
    with pytest.warns(SResNetWarning, match=rf"do not fit.*first at {found.first.name} .*the architecture") as said:
        snn = convert(stock, [x], "s-resnet", timesteps=2)
    assert snn.provenance.check.batchnorm == BatchNormFit(pytest.approx(found.score), found.first.name)
    assert all("\n" not in str(one.message) for one in said)


@pytest.mark.parametrize(
    "change", [lambda x: 255 * x, lambda x: x * 0.225 + 0.45, lambda x: x / 4], ids=["255", "raw", "4"]
)
def test_images_of_another_scale_are_noticed(small, change):
    x = small[1]
    model = settled(copy.deepcopy(small[0]), x)
    found = fit(model, change(x))
    assert not found.fits and found.first.name == "bn1"
    with warnings.catch_warnings():
        warnings.simplefilter("error", SResNetWarning)
        convert(model, [x], "s-resnet", timesteps=2)  # the right ones are not


def test_evaluation_on_images_of_another_scale_is_noticed(small):
    x, labels = small[1], torch.arange(32) % 10
    snn = convert(settled(copy.deepcopy(small[0]), x), [x], "s-resnet", timesteps=2)
    for other, noticed in ((x, False), (x * 1.2 + 0.1, False), (255 * x, True), (x * 0.225 + 0.45, True)):
        notes = s_resnet.evaluate(snn, [(other, labels)], 2).notes
        assert any("another range than the calibration images" in note for note in notes) == noticed


def test_statistics_from_before_training_are_named():
    model = CifarResNet(8, width=4).eval()
    for batches in (None, [images(16, 16)]):
        with pytest.warns(
            SResNetWarning, match=r"all 7 BatchNorm layers \(bn1 is the first\) have mean 0 and variance 1"
        ):
            convert(model, batches, timesteps=2)
    settled(model, images(16, 16))
    with torch.no_grad():
        model.layer2[0].bn1.reset_running_stats()
    with pytest.warns(SResNetWarning, match=r"1 of 7 BatchNorm layers \(layer2.0.bn1"):
        convert(model, (3, 16, 16), "s-resnet", timesteps=2)


@pytest.mark.parametrize(("value", "kind"), [(-0.01, "negative"), (math.nan, "not finite"), (math.inf, "not finite")])
def test_statistics_that_no_training_gives_are_named(value, kind, tmp_path):
    model = randomized(CifarResNet(8, width=4))
    model.layer1[0].bn2.running_var[:3] = value
    for batches in (None, [images(2, 16)]):
        with pytest.raises(InvalidData, match=rf"^layer1.0.bn2.running_var: got 3 of 4 values {kind}"):
            convert(model, batches)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    with pytest.raises(InvalidCheckpoint, match=r"tensor layer1.0.bn2.running_var, got 3 of 4 values"):
        s_resnet.load_checkpoint(tmp_path / "net.pth")
    check_statistics("bn", torch.zeros(2), torch.zeros(2))  # a channel that never varied


def test_a_network_whose_answer_is_not_finite_is_named():
    model = randomized(CifarResNet(8, width=4))
    with torch.no_grad():
        model.layer2[0].conv1.weight.fill_(torch.inf)
    with pytest.raises(InvalidData, match=r"^CifarResNet: got values that are not finite from layer2.0.conv1 on"):
        convert(model, [images(2, 16)])


# ---- answers and labels


def votes(labels, right, classes=10, seed=0):
    """Answers that are right on this share of the labels."""
    chance = np.random.default_rng(seed)
    other = torch.tensor(chance.integers(0, classes, len(labels)))
    return torch.where(torch.tensor(chance.random(len(labels)) < right), labels, other)


LABELS = torch.arange(120) % 10


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("right", [0.5, 0.7, 0.9, 1.0])
def test_a_network_that_knows_its_classes_is_left_alone(right, seed):
    assert label_notes(votes(LABELS, right, seed=seed), LABELS, 10) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_network_at_chance_is_named(seed):
    (note,) = label_notes(votes(LABELS, 0.1, seed=seed), LABELS, 10)
    assert "hardly more than by chance (1 in 10)" in note and "of 120 calibration images" in note


@pytest.mark.parametrize("order", [
    [0, 9, 1, 2, 3, 4, 5, 6, 7, 8],  # folders 1 ... 10 as text
    [1, 0, *range(2, 10)],  # two classes exchanged
    [*range(1, 9), 0, 9],  # one folder named otherwise
    list(range(9, -1, -1)),
])  # fmt: skip
def test_classes_in_another_order_are_named(order):
    moved = sum(place != label for place, label in enumerate(order))
    (note,) = label_notes(votes(torch.tensor(order)[LABELS], 0.95), LABELS, 10)
    assert f"{moved} classes mostly get the answer of another one" in note and "match_classes" in note
    label = next(place for place, at in enumerate(order) if place != at)
    assert f"of label {label}, " in note and f"are answered {order[label]}" in note


def test_labels_that_mean_nothing_are_named():
    answers = votes(LABELS, 0.9)
    assert label_notes(answers, None, 10) == label_notes(answers, torch.full((120,), -1), 10) == []
    (note,) = label_notes(answers, LABELS + 1, 10)
    assert "got labels 1 to 10 for a network of 10 classes; expected 0 to 9" in note
    (note,) = label_notes(answers, torch.zeros(120, dtype=torch.int64), 10)
    assert "all 120 labels are 0" in note and "placeholders" in note
    assert label_notes(torch.full((20,), 3), torch.full((20,), 3), 10) == []  # images of one class


def test_few_images_are_not_held_against_a_network():
    assert not at_chance(1, 3, 10) and not at_chance(0, 2, 10) and not at_chance(2, 6, 3)
    assert at_chance(31, 128, 10) and not at_chance(60, 128, 10)
    assert at_chance(500, 1000, 2) and not at_chance(700, 1000, 2)


def test_accuracy_and_confidence_are_those_of_the_module():
    model, x, labels = randomized(CifarResNet(8, width=4)), images(40, 16, seed=7), torch.arange(40) % 10
    found = check_source(trace(model, x[:2]), [(x[:24], labels[:24]), (x[24:], labels[24:])])
    with torch.no_grad():
        logits = model(x)
    assert found.right == int((logits.argmax(1) == labels).sum()) and found.classes == 10
    assert found.confidence == pytest.approx(float(logits.softmax(1).amax(1).mean()), rel=1e-5)
    assert found.mean == pytest.approx(x.mean((0, 2, 3)).tolist()) and found.std == pytest.approx(
        x.std((0, 2, 3)).tolist()
    )
    bare = check_source(trace(model, x[:2]), [x])
    assert bare.right is None and bare.summary().right is None and bare.confidence == pytest.approx(found.confidence)
    assert len(check_source(trace(model, x[:2]), [images(100, 8), images(100, 8)]).answers) == 128
    for batches in ([], iter([x])):
        with pytest.raises(InvalidData):
            check_source(trace(model, x[:2]), batches)


def test_a_network_that_is_sure_of_nothing_is_named():
    model = randomized(CifarResNet(8, width=4))
    with torch.no_grad():
        model.linear.weight.mul_(1e-3)
        model.linear.bias.zero_()
    notes = check_source(trace(model, images(2, 16)), [images(16, 16)]).notes
    assert any("almost no confidence in its answers (mean 0.10, 10 classes)" in note for note in notes)


# ---- variants of an architecture


def output_sizes(model):
    """Pixels behind the stem's convolution, its max-pool and the first convolution of the second stage, of 64."""
    x = model.eval().conv1(images(1, 64))
    pooled = model.maxpool(x)
    return x.shape[-1], pooled.shape[-1], model.layer2[0].conv1(model.layer1(pooled)).shape[-1]


def test_variants_by_name():
    names = ("resnet18", "resnet18-nomaxpool", "resnet18-stem1", "resnet18-stem1-nomaxpool")
    sizes = {name: output_sizes(network_of(name)) for name in names}
    assert sizes == {
        "resnet18": (32, 16, 8),
        "resnet18-nomaxpool": (32, 32, 16),
        "resnet18-stem1": (64, 32, 16),
        "resnet18-stem1-nomaxpool": (64, 64, 32),
    }
    first, second = (network_of(name).layer2[0] for name in ("resnet50", "resnet50-v1"))
    assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2)) == (second.conv2.stride, second.conv1.stride)


def test_the_choice_that_fits_is_found(tmp_path, monkeypatch):
    """A ResNet-18 without its max-pool, and one whose images were prepared otherwise."""
    monkeypatch.setattr(sys.modules["s_resnet.conversion.alternatives"], "SIZES", (32,))
    torch.manual_seed(0)
    pixels, chosen = torch.rand(16, 3, 32, 32), s_resnet.data.preprocessing_for(32)
    true = network_of("resnet18-nomaxpool", 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (chosen.mean, chosen.std))
    settled(true, (pixels - mean) / std)
    torch.save(true.state_dict(), tmp_path / "net.pth")
    loaded = s_resnet.load_checkpoint(tmp_path / "net.pth")
    assert (
        loaded.arch == "resnet18"
        and s_resnet.load_checkpoint(tmp_path / "net.pth", "resnet18-nomaxpool").input_size == 32
    )
    found = alternatives(tmp_path / "net.pth", loaded, (pixels - mean) / std, chosen)
    assert found[0].options == "--arch resnet18-nomaxpool --input-size 32" and found[0].score < 0.5
    right = s_resnet.load_checkpoint(tmp_path / "net.pth", "resnet18-nomaxpool")
    other = replace(chosen, mean=(0.0,) * 3, std=(1.0,) * 3)
    found = alternatives(tmp_path / "net.pth", right, pixels, other)
    assert found[0].options == "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"


@pytest.mark.parametrize(
    ("changes", "arch"),
    [({"maxpool": True}, "resnet10-stem1-maxpool"), ({"average": True}, "resnet10-stem1-nomaxpool-averaged")],
)
def test_the_word_that_fits_a_small_stem_is_found(changes, arch, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["s_resnet.conversion.alternatives"], "SIZES", (32,))
    small = Plan((1, 1, 1, 1), stem=(8,), kernel=3, width=8, stem_stride=1, maxpool=False)
    x = torch.rand(16, 3, 32, 32)
    true = settled(PlannedResNet(replace(small, **changes)), x)
    torch.save(true.state_dict(), tmp_path / "net.pth")
    loaded = s_resnet.load_checkpoint(tmp_path / "net.pth")
    found = alternatives(tmp_path / "net.pth", loaded, x, s_resnet.data.preprocessing_for(32))
    assert loaded.arch == "resnet10-stem1-nomaxpool" and found[0].options == f"--arch {arch} --input-size 32"


# ---- through the program


def test_convert_says_what_it_found(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos", count=12)
    command = ("convert", "tiny.pth", "--calibration", "photos", "--input-size", SIZE)
    code, out, err = program(*command, "--timesteps", 2, "-o", "tiny.snn")
    known = s_resnet.load("tiny.snn").provenance.check
    assert code == 0 and f"The ANN is right on {known.right} of 36 calibration images" in out
    assert f"mean confidence {known.confidence:.2f}" in out
    lines = err.splitlines()
    assert any(line.startswith("Warning: convert: images and network do not fit") for line in lines)
    assert f"The images do not fit the network, first at {known.batchnorm.first}" in out and unexpected(err) == ""


def test_what_is_no_image_is_counted(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    photos = make_photos(tmp_path / "photos")
    for name in ("a/note.txt", "a/second.TXT", "b/film.gif", "b/README", "c/.hidden", "beside.png"):
        (photos / name).write_bytes(b"x")
    command = ("convert", "tiny.pth", "--calibration", "photos", "--calibration-images", 6, "--input-size", SIZE)
    code, _, err = program(*command, "--timesteps", 2)
    said = "1 .gif, 2 .txt, 1 without a suffix, 1 beside the class folders"
    assert code == 0 and f"Left out files without an image suffix: {said}" in err
    program("evaluate", "--timesteps", 1, "--json", "out.json")
    assert f'"{said.split(", ")[0]}"' in (tmp_path / "out.json").read_text()


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "size"), [("resnet20-12fca82f.th", 32), ("resnet56-4bfd9763.th", 32), ("resnet18-cifar10-64px.pth", 64)]
)
def test_real_pairs_fit_and_wrong_ones_do_not(name, size):
    data = s_resnet.data.open_data(str(FIXTURES / "cifar10" / "train"), "calibration")
    model = s_resnet.load_checkpoint(FIXTURES / "checkpoints" / name).model

    def score(std):
        prepare = s_resnet.data.preprocessing_for(size, std=std)
        loader = s_resnet.data.ImageLoader(data, s_resnet.data.choose(data, 32), prepare, 32, 0)
        return fit(model, next(iter(loader))[0]).score

    assert score(s_resnet.data.IMAGENET_STD) < 0.75
    assert score((1.0, 1.0, 1.0)) > 1.5
    assert score((0.5, 0.5, 0.5)) > 1.1


def test_a_warning_points_at_the_callers_line():
    """Not at one of ours, which tells its reader nothing."""
    with pytest.warns(SResNetWarning) as said:
        convert(CifarResNet(8, width=4), [images(4, 8)], recipe="s-resnet", timesteps=2)
    assert {one.filename for one in said} == {__file__}
