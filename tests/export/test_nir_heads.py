"""NIR export of networks that are not the demo's: several linear layers at the end, maps that are no squares."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images
from torch import nn

from s_resnet import convert
from s_resnet.errors import ConversionError
from s_resnet.export import export_nir, verify_export

pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")


def body(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    return s.fc(s.pool(F.relu(s.bn2(s.conv2(x)) + x)).flatten(1))


def two(size):
    return nn.Sequential(nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, 5))


def three(size):
    norms = nn.BatchNorm1d(16), nn.BatchNorm1d(12)
    first, second = (nn.Linear(size, 16), norms[0], nn.ReLU()), (nn.Dropout(), nn.Linear(16, 12), nn.ReLU(), norms[1])
    return nn.Sequential(*first, *second, nn.Linear(12, 5))


NETWORKS = {
    "two linear layers": ((16, 16), nn.AdaptiveAvgPool2d(1), two(8)),
    "three linear layers": ((16, 16), nn.AdaptiveAvgPool2d(1), three(8)),
    "wide images": ((6, 20), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)),
    "wide images, even rows, odd columns": ((6, 15), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)),
    "tall maps, flattened, two layers": ((18, 8), nn.AvgPool2d((3, 2)), two(8 * 6 * 4)),
}


@pytest.mark.parametrize("recipe", ["s-resnet", "calibrated-constant"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_gives_the_same_spikes(tmp_path, name, recipe):
    size, pool, head = NETWORKS[name]
    model = Net(body, pool=pool, fc=head)
    x = torch.cat([images(4, max(size), seed=seed)[:, :, : size[0], : size[1]] for seed in (1, 2)])
    snn = convert(model, [x], recipe=recipe, timesteps=8)
    export_nir(snn, tmp_path / "network.nir")
    found = verify_export(tmp_path / "network.nir", snn, x[:3], 8, dtype="float64")
    assert found.mismatches == 0 and found.difference < 1e-5
    assert len(snn.neurons) == 2 + sum(isinstance(layer, nn.ReLU) for layer in model.fc.modules())


@pytest.mark.parametrize("kernel", [(1, 7), (5, 1), (3, 5), (2, 4)])
def test_kernels_that_are_no_squares(tmp_path, kernel):
    """Readers infer the size of a convolution's result from the height of its kernel alone."""
    model = Net(lambda s, x: s.head(F.relu(s.conv2(F.relu(s.odd(s.conv1(x)))))), odd=nn.Conv2d(8, 8, kernel, 2, (0, 2)))
    snn = convert(model, [images(8)], recipe="calibrated-constant", timesteps=8)
    export_nir(snn, tmp_path / "network.nir")
    found = verify_export(tmp_path / "network.nir", snn, images(3), 8, dtype="float64")
    assert found.mismatches == 0 and found.difference < 1e-5


def test_a_kernel_that_no_square_one_replaces_is_refused(tmp_path):
    model = Net(lambda s, x: s.head(F.relu(s.odd(F.relu(s.conv1(x))))), odd=nn.Conv2d(8, 8, (2, 3)))
    snn = convert(model, [images(8)], recipe="calibrated-constant", timesteps=8)
    with pytest.raises(ConversionError, match=r"odd: got a kernel of \(2, 3\) over \(16, 16\) pixels.*square"):
        export_nir(snn, tmp_path / "network.nir")
    assert not (tmp_path / "network.nir").exists()
