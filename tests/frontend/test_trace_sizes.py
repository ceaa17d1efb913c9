"""Networks that are their source at the example's size only say so, and take no images of another."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images
from torch import nn

from s_resnet import convert, load, save, simulate, trace
from s_resnet.errors import InvalidData
from s_resnet.export import export_nir, export_torch

OTHER = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))


def stem(s, x):
    return F.relu(s.bn1(s.conv1(x)))


# Of maps of 16 x 16; the source takes other sizes and does something else there, or it does not take them.
FIXED = {
    "a sum of pixels": lambda s, x: s.fc(x.sum((2, 3)) / 256),
    "a sum over one axis": lambda s, x: s.fc(x.sum(3).mean(2)),
    "a mean over one axis": lambda s, x: s.long(x.mean(3).flatten(1)),
    "all columns kept": lambda s, x: s.long(F.adaptive_avg_pool2d(x, (1, None)).flatten(1)),
    "a window as large as the map": lambda s, x: s.fc(F.avg_pool2d(x, 16).flatten(1)[:, :8]),
    "a sum over a window": lambda s, x: s.fc(F.avg_pool2d(x, 16).sum((2, 3))),
    "a classifier of all pixels": lambda s, x: s.whole(x.flatten(1)),
    "a branch by size": lambda s, x: s.head(F.max_pool2d(x, 2) if x.shape[2] > 16 else x),
    "a factor by size": lambda s, x: s.head(s.conv2(x) * (x.shape[2] / 16)),
    "a border by size": lambda s, x: s.head(s.conv2(x)[:, :, : x.shape[2] - 4]),
    "padded to a size": lambda s, x: s.head(F.pad(x, (0, 32 - x.shape[3], 0, 32 - x.shape[2]))),
}
FREE = {
    "a mean": lambda s, x: s.head(x),
    "a mean by sum": lambda s, x: s.fc(x.sum((2, 3)) / (x.shape[2] * x.shape[3])),
    "a mean by two": lambda s, x: s.fc(x.mean(3).mean(2)),
    "a window of the size": lambda s, x: s.fc(F.avg_pool2d(x, x.size()[3]).flatten(1)),
    "squeezed": lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze()),
    "four parts": lambda s, x: s.parts(F.adaptive_avg_pool2d(x, 2).flatten(1)),
    "every second pixel": lambda s, x: s.head(s.conv2(x)[:, :, ::2, ::2]),
}
MORE = {"long": nn.Linear(128, 5), "whole": nn.Linear(2048, 5), "parts": nn.Linear(32, 5)}


def network(body):
    return Net(lambda s, x: body(s, stem(s, x)), **MORE)


@pytest.mark.parametrize("name", FIXED)
def test_a_network_of_one_size_takes_no_other(name):
    graph = trace(network(FIXED[name]), images())
    assert graph.provenance.fixed_size == (16, 16)
    with pytest.raises(InvalidData, match="got images of 24 x 24 for a network of images of 16 x 16"):
        graph.run(OTHER)


@pytest.mark.parametrize("name", FREE)
def test_others_take_images_of_every_size(name):
    model = network(FREE[name])
    graph = trace(model, images())
    assert graph.provenance.fixed_size is None
    for x in (images(), OTHER):
        torch.testing.assert_close(graph.run(x), model(x).detach())


def test_the_spiking_network_remembers(tmp_path):
    snn = convert(network(FIXED["a sum of pixels"]), [images(8)], timesteps=4)
    save(snn, tmp_path / "net.snn")
    for kept in (snn, load(tmp_path / "net.snn")):
        assert kept(images(2), 4).shape == (2, 5)
        for call in (
            lambda kept=kept: kept(OTHER, 4),
            lambda kept=kept: simulate(kept, OTHER, 4),
            lambda kept=kept: kept(OTHER.expand(4, *OTHER.shape), 4),
            lambda kept=kept: export_nir(kept, tmp_path / "net.nir", input_shape=(3, 24, 24)),
            lambda kept=kept: export_torch(kept, tmp_path / "net.pt2", 4, (3, 24, 24)),
        ):
            with pytest.raises(InvalidData, match="24 x 24 for a network of images of 16 x 16"):
                call()
    assert not list(tmp_path.glob("net.[np]*t*"))


def test_the_size_of_a_large_map_is_seen_behind_a_small_one():
    """A last map of one pixel has the size of none."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 4, 1), nn.AdaptiveAvgPool2d(1))
    assert trace(nn.Sequential(model, nn.Flatten()), images(2, 8)).provenance.fixed_size is None
