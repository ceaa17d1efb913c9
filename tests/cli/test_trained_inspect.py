"""``sresnet inspect`` of directly trained networks."""

import pytest
import torch
from click.testing import CliRunner
from sresnet_cli.__main__ import sresnet
from trained_networks import T, trained

import s_resnet
from s_resnet.graph import network_table
from s_resnet.graph.alphabet import Surrogate


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
def test_neurons_say_what_they_are(monkeypatch, arch, threshold, words):
    output = shown(monkeypatch, arch)
    lines = [line for line in output.splitlines() if " Neuron " in line]
    assert len(lines) == len(trained(arch)[1].neurons)
    assert all(f"Neuron ({words})  {threshold}  " in line for line in lines)
    assert f"directly trained for T = {T}" in output and "lambda" not in output and "shortcut synapse" not in output


def test_another_reset_is_told_and_converted_neurons_stay_as_they_are():
    words = network_table._kind(s_resnet.graph.Neuron(torch.ones(()), surrogate=Surrogate("sigmoid", 4.0)))
    assert words == " (decay 1, reset by subtraction, sigmoid of steepness 4)"
    assert network_table._kind(s_resnet.graph.Neuron(torch.ones(()))) == ""
