"""What leaves of networks with clipped ReLUs: the same spikes and answers, since thresholds alone hold the limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import images, load_program
from test_arrays import compared, documented
from test_saturation import CALIBRATION, EACH, clipped
from trained_networks import trained

from s_resnet import RECIPES, convert, simulate
from s_resnet.errors import InvalidData
from s_resnet.export import export_npz, export_torch, verify_export
from s_resnet.export.nir import export_nir
from s_resnet.graph import Node, ops

_ = documented  # a fixture
STEPS = 8


@pytest.fixture(scope="module")
def snn():
    """On a dyadic grid, so that engines add exactly; neurons at their limits in every layer."""
    torch.manual_seed(0)
    found = convert(clipped(EACH), CALIBRATION, RECIPES["s-resnet"].at(STEPS).with_weights("dyadic"))
    spikes = simulate(found, images(4, 8, seed=4), STEPS).spikes
    assert all(float(count[-1].sum()) > 0 for count in spikes.values())
    return found


def test_the_documented_simulator_gives_the_same_spikes(monkeypatch, tmp_path, documented, snn):
    differ, of, apart = compared(monkeypatch, tmp_path, documented, snn, images(4, 8, seed=4), STEPS)
    assert differ == 0 and of > 1000 and apart < 1e-5
    assert not [name for name in np.load(tmp_path / "network.npz") if name.endswith("/limit")]


def test_another_engine_gives_the_same_spikes(tmp_path, snn):
    pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
    export_nir(snn, tmp_path / "network.nir")
    found = verify_export(tmp_path / "network.nir", snn, images(4, 8, seed=4), STEPS)
    assert found.mismatches == 0 and found.difference < 1e-5 and len(found.layers) == 3


def test_the_program_gives_the_same_answers(tmp_path, snn):
    x = images(4, 8, seed=4)
    export_torch(snn, tmp_path / "network.pt2", STEPS)
    program = load_program(tmp_path / "network.pt2")
    assert torch.equal(program.module()(x), simulate(snn, x, STEPS).outputs[-1])
    assert not [name for name in program.state_dict if name.endswith("limit")]


def test_a_clipped_relu_beside_spiking_layers_is_refused_where_the_format_has_none(tmp_path):
    graph = trained("ms_resnet8", 2, size=8)[1]
    last = graph.nodes[-1]
    relu = Node("clip", ops.ReLU(torch.tensor(6.0)), last.inputs)
    graph = replace(graph, nodes=(*graph.nodes[:-1], relu, replace(last, inputs=("clip",))))
    with pytest.raises(InvalidData, match=r"a ReLU with a limit beside spiking layers.*export_torch"):
        export_npz(graph, tmp_path / "x.npz")
