"""What a model may end in: features, one number, scores of one pixel; in the model's own shape, or refused."""

import pytest
import torch
from conftest import Net, images, randomized
from torch import nn

from s_resnet import RECIPES, convert, evaluate, load, save, verify
from s_resnet.errors import ConversionError, UnsupportedModel
from s_resnet.models import CifarResNet
from s_resnet.simulation import features

BATCHES = [images(8, seed=1), images(8, seed=2)]


def stem(s, x):
    return s.relu(s.bn2(s.conv2(s.relu(s.bn1(s.conv1(x))))))


MODELS = {
    "features": (lambda: Net(lambda s, x: s.pool(stem(s, x)), pool=nn.AdaptiveAvgPool2d(1)), (8, 1, 1)),
    "scores by a convolution": (
        lambda: Net(lambda s, x: s.pool(s.last(stem(s, x))), pool=nn.AdaptiveAvgPool2d(1), last=nn.Conv2d(8, 5, 1)),
        (5, 1, 1),
    ),
    "flat features": (lambda: Net(lambda s, x: stem(s, x).mean((2, 3))), (8,)),
    "one number": (lambda: Net(lambda s, x: s.one(stem(s, x).mean((2, 3))), one=nn.Linear(8, 1)), (1,)),
    "children": (lambda: nn.Sequential(*list(randomized(CifarResNet(8, width=4)).children())[:-1]), (16, 1, 1)),
}


ALL = [("features", recipe) for recipe in RECIPES]
ALL += [(name, recipe) for name in MODELS for recipe in ("s-resnet", "calibrated") if name != "features"]


@pytest.mark.parametrize(("name", "recipe"), ALL)
def test_the_answer_has_the_models_shape_with_every_recipe(name, recipe):
    make, shape = MODELS[name]
    model = make()
    steps = 16 if recipe.startswith("s-resnet") else 8
    snn = convert(model, BATCHES, recipe=recipe, timesteps=steps)
    with torch.no_grad():
        wanted = model(BATCHES[0])
    got = snn(BATCHES[0], timesteps=steps)
    assert got.shape == snn.run(BATCHES[0]).shape == wanted.shape == (8, *shape)
    assert (snn.run(BATCHES[0]) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (got - wanted).norm() <= 0.25 * wanted.norm()


def test_one_number_is_not_read_from_spike_counts():
    """They are scores of classes: of a single one they tell nothing."""
    with pytest.raises(ConversionError, match=r"recipe s-resnet-released.*one number.*Choose s-resnet"):
        convert(MODELS["one number"][0](), BATCHES, recipe="s-resnet-released")


def test_the_shape_is_kept_in_the_file_and_counted_as_scores(tmp_path):
    model = MODELS["scores by a convolution"][0]()
    snn = convert(model, BATCHES, recipe="calibrated", timesteps=8)
    save(snn, tmp_path / "network.snn")
    assert torch.equal(load(tmp_path / "network.snn")(BATCHES[0], timesteps=8), snn(BATCHES[0], timesteps=8))
    with torch.no_grad():
        labels = model(BATCHES[0]).flatten(1).argmax(1)
    report = evaluate(snn, [(BATCHES[0], labels)], timesteps=8, at=[8])
    assert report.ann["top1"] == 1 and 0.5 <= report.snn[0].agreement == report.snn[0].top1 <= 1
    assert verify(snn, [(BATCHES[0], labels)], timesteps=8).agreement == report.snn[0].agreement
    plain = convert(Net(lambda s, x: s.fc(stem(s, x).mean((2, 3)))), BATCHES, recipe="calibrated", timesteps=8)
    assert plain.provenance.answer_shape is None


@pytest.mark.parametrize(("last", "recipe"), [(nn.Conv2d(8, 5, 1), "s-resnet"), (nn.Identity(), "calibrated")])
def test_maps_are_refused_with_how_to_get_them(last, recipe):
    model = Net(lambda s, x: s.last(stem(s, x)), last=last)
    with pytest.raises(
        UnsupportedModel, match=r"^(last|relu_1): got an answer of [58] x 16 x 16.*\[B, N\].*features\(snn"
    ):
        convert(model, BATCHES, recipe=recipe, timesteps=8)
    whole = convert(Net(lambda s, x: s.head(stem(s, x))), BATCHES, recipe=recipe, timesteps=8)
    assert features(whole, BATCHES[0], 8, ["relu_1"])["relu_1"].shape == (8, 8, 16, 16)


def test_a_network_without_relus_is_told_what_is_missing():
    with pytest.raises(UnsupportedModel, match=r"without a ReLU.*nn\.ReLU or F\.relu"):
        convert(Net(lambda s, x: s.head(s.bn1(s.conv1(x)))), BATCHES)
