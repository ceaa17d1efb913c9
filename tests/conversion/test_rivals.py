"""Mistakes that are told by comparison: blue for red, another nonlinearity, strides elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FIXTURES, needs_fixtures, network_of, randomized
from test_source_check import settled
from torch import nn

import s_resnet
from s_resnet import trace
from s_resnet.conversion import check_source
from s_resnet.conversion.rivals import ratio, rival_notes, rivals
from s_resnet.frontend.batchnorm_check import Moments
from s_resnet.models import CifarResNet

SAID = {
    "blue for red": "with red and blue swapped the images would fit",
    "leaky": "with a leaky ReLU",
    "stem": "with stride 1 in the first convolution",
    "strides": "with the strides of its bottlenecks in the other convolution",
}


def pictures(count, size, seed=0):
    """Smooth images whose red varies more than their blue."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (size, size), mode="bilinear")
    return smooth * torch.tensor([1.5, 1.0, 0.5]).view(3, 1, 1) + 0.3 * smooth[:, :1]


def named(said):
    return {name for name, text in SAID.items() if any(note.startswith(text) for note in said)}


def found(model, x):
    """Which rivals are named, and whether the network fits without comparison."""
    check = check_source(trace(model, x[:2]), [x])
    return named(check.notes), check.fit.fits


def leaky(model, slope):
    """The network with other nonlinearities, on the same tensors."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(slope))
    return model


def taken(true, x, as_, width=None):
    """The network ``as_`` with the tensors of ``true``, whose statistics are those of the images."""
    torch.manual_seed(0)
    model = network_of(as_, width)
    model.load_state_dict(settled(true, x).state_dict())
    return model.eval()


def network(name, width=None):
    torch.manual_seed(0)
    return randomized(network_of(name, width))


@pytest.fixture(scope="module")
def right():
    return taken(network("resnet18"), pictures(64, 32), "resnet18")


def test_nothing_is_said_of_a_network_that_fits(right):
    assert found(right, pictures(32, 32, seed=1)) == (set(), True)


def test_blue_for_red_is_told(right):
    assert found(right, pictures(32, 32, seed=1).flip(1)) == ({"blue for red"}, True)


def test_gray_images_of_three_channels_have_no_order_either():
    """Where the network's own statistics come back, distances are next to nothing."""
    x = pictures(64, 16)[:, :1].expand(-1, 3, -1, -1)
    model = settled(randomized(CifarResNet(8, width=4)), x)
    assert found(model, x) == (set(), True)


def test_gray_images_have_no_order():
    model = settled(randomized(nn.Sequential(nn.Conv2d(1, 3, 1), CifarResNet(8, width=4))), pictures(64, 16)[:, :1])
    assert found(model, pictures(32, 16, seed=1)[:, :1]) == (set(), True)


def test_a_leaky_relu_is_told():
    model = taken(leaky(network("resnet18"), 0.1), pictures(64, 32), "resnet18")
    assert found(model, pictures(32, 32, seed=1)) == ({"leaky"}, True)


@pytest.mark.parametrize(
    ("true", "as_", "name"),
    [
        ("resnet18-stem1", "resnet18", "stem"),
        ("resnet50", "resnet50-v1", "strides"),
        ("resnet50-v1", "resnet50", "strides"),
        ("resnet50", "resnet50", None),
    ],
)
def test_strides_elsewhere_are_told(true, as_, name):
    """Also where the network would not be said to fit anyway."""
    model, x = taken(network(true, 16), pictures(48, 32), as_, 16), pictures(16, 32, seed=1)
    moments = Moments(graph := trace(model, x[:2]))
    for _ in moments.watch(x):
        pass
    assert named(rival_notes(graph, x, moments)) == ({name} if name else set())


def test_a_rival_that_takes_no_such_images_is_none():
    """With stride 1 in the stem the classifier of all pixels would get four times as many."""
    body = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    more = (nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()) * 2
    model = settled(nn.Sequential(*body, *more, nn.Flatten(), nn.Linear(8 * 64, 5)), pictures(32, 16))
    graph = trace(model, pictures(2, 16))
    moments = Moments(graph)
    for _ in moments.watch(pictures(16, 16)):
        pass
    shares = {rival.note: ratio(rival, pictures(16, 16), moments) for rival in rivals(graph, 3)}
    assert shares[next(note for note in shares if note.startswith(SAID["stem"]))] == 1


def test_few_images_and_few_layers_tell_nothing(right):
    assert found(right, pictures(15, 32, seed=1).flip(1))[0] == set()
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert found(settled(small, pictures(64, 16)), pictures(32, 16, seed=1).flip(1))[0] == set()


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "size"), [("resnet20-12fca82f.th", 32), ("resnet56-4bfd9763.th", 32), ("resnet18-cifar10-64px.pth", 64)]
)
def test_real_networks(name, size):
    """Right as they are; with blue for red that is told."""
    data = s_resnet.data.open_data(str(FIXTURES / "cifar10" / "train"), "calibration")
    loader = s_resnet.data.ImageLoader(
        data, s_resnet.data.choose(data, 32), s_resnet.data.preprocessing_for(size), 32, 0
    )
    x, model = next(iter(loader))[0], s_resnet.load_checkpoint(FIXTURES / "checkpoints" / name).model
    assert found(model, x) == (set(), True)
    assert found(model, x.flip(1)) == ({"blue for red"}, True)
