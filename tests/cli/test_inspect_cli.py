"""``sresnet inspect`` of converted and of directly trained networks."""

import json
import math

import pytest
import torch
import torchvision
from click.testing import CliRunner
from sresnet_cli.__main__ import sresnet
from test_cli import make_checkpoint, randomized, tiny
from test_cli import network as network  # the fixtures
from test_cli import program as program
from torch import nn
from trained_networks import T, trained

import s_resnet
from s_resnet.graph import network_table
from s_resnet.graph.alphabet import Surrogate

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


def synapse(model: nn.Module, convolution: str, norm: str) -> torch.Tensor:
    """A convolution's weight with its BatchNorm folded in, by hand."""
    conv, bn = model.get_submodule(convolution), model.get_submodule(norm)
    return conv.weight.detach() * (bn.weight / (bn.running_var + bn.eps).sqrt()).detach().view(-1, 1, 1, 1)


def test_inspect_shows_the_shortcut_conversion_model(program, network):
    """Neuron by neuron lambda_in / lambda_out from the calibrated scales, and the weights that follow from it."""
    said = program.works("inspect", "tiny.snn")
    snn, model = s_resnet.load("tiny.snn"), tiny()
    scale = snn.provenance.calibration.scales
    feeds = {"layer1.0.relu_1": "relu", "layer2.0.relu_1": "layer1.0.relu_1", "layer3.0.relu_1": "layer2.0.relu_1"}
    section = said.split("\n\n")[2].splitlines()
    assert "lambda_in / lambda_out" in section[0]
    rows = [line.split() for line in section[1:]]
    assert [row[0] for row in rows] == list(feeds)
    assert [row[2] for row in rows] == ["identity", "projection", "projection"]
    for neuron, name, kind, ratio, threshold in rows:
        expected = scale[feeds[neuron]] / scale[neuron]
        assert ratio == f"{expected:.4f}" and threshold == f"{scale[neuron]:.4g}"
        weight = torch.ones(())
        if kind == "projection":
            stage = name.partition(".0.")[0]
            weight = synapse(model, f"{stage}.0.shortcut.0", f"{stage}.0.shortcut.1")
        torch.testing.assert_close(snn[name].op.weight, expected * weight)
        assert snn[neuron].inputs[1] == name


def test_inspect_shows_graph_recipe_and_provenance(program, network):
    header, nodes, _, known = program.works("inspect", "tiny.snn").split("\n\n")
    snn = s_resnet.load("tiny.snn")
    assert "cifar_resnet8" in header and "recipe s-resnet" in header and "T = 4" in header
    rows = {line.split()[0]: line.split() for line in nodes.splitlines()[1:]}
    assert list(rows) == [node.name for node in snn.nodes]
    for name, scale in snn.provenance.calibration.scales.items():
        assert f"{scale:.4g}" in rows[name]
    assert all(rows[node.name][1:3] == ["Neuron", "1"] for node in snn.neurons)
    shown = dict(line.split(": ", 1) for line in known.splitlines())
    assert set(shown) == set(snn.provenance.to_json())
    for name in ("recipe", "preprocessing", "source", "classes", "versions", "compensation"):
        assert json.loads(shown[name]) == snn.provenance.to_json()[name]
    assert "fingerprints" not in known and json.loads(shown["data"])["images"] == 6


def test_inspect_lists_every_shortcut_of_a_torchvision_resnet(program, tmp_path):
    make_checkpoint(tmp_path / "r18.pth", randomized(torchvision.models.resnet18(num_classes=5)))
    code, _, _ = program("convert", "r18.pth", "--recipe", "s-resnet", "--input-size", 32, "-o", "r18.snn")
    said = program.works("inspect", "r18.snn")
    scale = s_resnet.load("r18.snn").provenance.calibration.scales
    rows = [line.split() for line in said.split("\n\n")[2].splitlines()[1:]]
    before = "relu"  # the stem's, behind its max-pool
    assert code == 0 and len(rows) == 8
    assert [row[2] for row in rows] == ["identity", "identity", *["projection", "identity"] * 3]
    for neuron, _, _, ratio, _ in rows:
        assert ratio == f"{scale[before] / scale[neuron]:.4f}" and math.isfinite(float(ratio))
        before = neuron


# ---- directly trained


def shown(monkeypatch, arch):
    """The program's output for a network of that architecture."""
    graph = trained(arch)[1]
    monkeypatch.setattr(s_resnet, "load", lambda path: graph)
    result = CliRunner().invoke(sresnet, ["inspect", "net.snn"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("arch", "threshold", "words"),
    [
        ("ms_resnet8", "0.5", "decay 0.25, reset to zero, rectangle of width 1"),
        ("ds_resnet8", "0.6, 1.6, 2.6", "decay 0.25, reset to zero, rectangle of width 1"),
        ("sew_resnet8", "1", "decay 1, reset to zero, arctan of steepness 2"),
    ],
)
def test_trained_neurons_say_what_they_are(monkeypatch, arch, threshold, words):
    output = shown(monkeypatch, arch)
    lines = [line for line in output.splitlines() if " Neuron " in line]
    assert len(lines) == len(trained(arch)[1].neurons)
    assert all(f"Neuron ({words})  {threshold}  " in line for line in lines)
    assert f"directly trained for T = {T}" in output and "lambda" not in output and "shortcut synapse" not in output


def test_another_reset_is_told_and_converted_neurons_stay_as_they_are():
    words = network_table._kind(s_resnet.graph.Neuron(torch.ones(()), surrogate=Surrogate("sigmoid", 4.0)))
    assert words == " (decay 1, reset by subtraction, sigmoid of steepness 4)"
    assert network_table._kind(s_resnet.graph.Neuron(torch.ones(()))) == ""
