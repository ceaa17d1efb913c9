"""Images made from BatchNorm statistics: they have these statistics, whatever the network, and give a network."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomized
from torch import nn

from s_resnet import convert, trace
from s_resnet.conversion import distill, distill_images
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph.ops import Conv2d
from s_resnet.models import CifarResNet
from s_resnet.runtime import memory_limit

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def model():
    """A network whose statistics are those of images that noise is far from."""
    net = randomized(CifarResNet(8, num_classes=4, width=4))
    with torch.no_grad():
        net.train()
        for _ in range(40):
            net(0.4 * images(64, 8) + torch.tensor([1.5, -1.0, 0.5]).view(3, 1, 1))
    return net.eval()


def apart(model, x):
    """The loss of the docstring, by plain torch and hooks."""
    found = []

    def look(norm, inputs):
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        shift = (mean - norm.running_mean) ** 2 / (norm.running_var + norm.eps)
        spread = ((var + norm.eps) / (norm.running_var + norm.eps)).sqrt().log() ** 2
        found.append(float((shift + spread).mean()))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(found) / len(found)


def test_they_have_the_statistics_of_training(model):
    graph = trace(model, torch.zeros(1, *SHAPE))
    before = {name: tensor.clone() for name, tensor in graph.tensors().items()}
    x = distill_images(graph, SHAPE)
    assert x.shape == (16, *SHAPE) and not x.requires_grad
    assert apart(model, x) < 0.1 * apart(model, torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.tensors().items())


def test_a_seed_gives_the_same_images_and_network(model):
    graph = trace(model, torch.zeros(1, *SHAPE))
    with torch.inference_mode():  # as a caller may
        same = [distill_images(graph, SHAPE, count=3, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    one, two = (convert(model, SHAPE, timesteps=4) for _ in range(2))
    assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())
    known = one.provenance
    assert (known.calibration.source, known.calibration.seed, known.calibration.fitted) == ("distilled", 0, 16)
    assert not known.calibration.marks and not known.data and not known.check  # nobody has seen these images
    assert "calibrated on 16 distilled images" in repr(one)


def test_a_network_fitted_to_them_is_nearer_to_the_ann_than_one_fitted_to_noise(model):
    x = 0.4 * images(16, 8, seed=3) + torch.tensor([1.5, -1.0, 0.5]).view(3, 1, 1)
    noise = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    told, guessed = (convert(model, given, "calibrated-currents", timesteps=16) for given in (SHAPE, [noise]))
    errors = [float((snn(x, 16) - snn.run(x)).pow(2).mean()) for snn in (told, guessed)]
    assert errors[0] < 0.5 * errors[1]
    fitted = [node.op.spiking for node in told.nodes if isinstance(node.op, Conv2d)]
    assert fitted and all(own is None or own.weight is None for own in fitted)  # the weights are the ANN's


def test_large_images_begin_small(model, monkeypatch):
    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
    sizes = []
    plain = F.batch_norm
    monkeypatch.setattr(F, "batch_norm", lambda x, *rest: sizes.append(tuple(x.shape)) or plain(x, *rest))
    monkeypatch.setattr(distill, "FIRST", replace(distill.FIRST, steps=2))
    monkeypatch.setattr(distill, "SECOND", replace(distill.SECOND, steps=1))
    assert distill_images(graph, (3, 224, 160), count=12).shape == (12, 3, 224, 160)
    assert sizes == [(12, 2, 128, 96)] * 2 + [(6, 2, 224, 160)] * 2
    sizes.clear()
    assert distill_images(graph, (3, 127, 200), count=2).shape == (2, 3, 127, 200)
    assert sizes == [(2, 2, 127, 200)] * 2


def test_signals_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()
    seen = net[0](0.5 * torch.randn(64, 2, 20) + 1).detach()
    net[1].running_mean, net[1].running_var = seen.mean((0, 2)), seen.var((0, 2))
    x = distill_images(trace(net, torch.zeros(1, 2, 20)), (2, 20), count=4)
    assert x.shape == (4, 2, 20)
    assert torch.allclose(net[0](x).mean((0, 2)), net[1].running_mean, atol=0.02)


def test_what_is_missing_is_named(model):
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    for recipe in (None, "multilevel"):
        with pytest.raises(
            InvalidData, match=r"^distill_images: got a network without BatchNorm and no images.*Pass cal"
        ):
            convert(bare, SHAPE, recipe)
    graph = trace(model, torch.zeros(1, *SHAPE))
    for wrong in ({"count": 1}, {"seed": -1}):
        with pytest.raises(InvalidData, match=r"^distill_images: got (count=1|seed=-1)"):
            distill_images(graph, SHAPE, **wrong)
    with memory_limit("1MB"), pytest.raises(InvalidData, match=r"where 16 images, which go together, take"):
        distill_images(graph, (3, 32, 32))
    with pytest.raises(ConversionError, match="auto"):
        convert(model, SHAPE, "auto")
