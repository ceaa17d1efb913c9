"""Signed and multi-level spikes in whole numbers, and what of these has none."""

from dataclasses import replace

import pytest
import torch
from conftest import images
from every_recipe import STEPS, network

from s_resnet import simulate
from s_resnet.conversion.context import Context
from s_resnet.conversion.passes import quantize_weights
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph.alphabet import Differential
from s_resnet.graph.neuron import IntegerNeuron
from s_resnet.simulation import SimulationSettings


def whole(name):
    return quantize_weights(network(name), Context())


@pytest.mark.parametrize("name", ["signed", "multilevel"])
def test_whole_numbers_of_every_alphabet_are_the_same_in_chunks_and_without_the_compiled_kernels(name, monkeypatch):
    """Dense convolutions and the plain torch membrane give the same whole numbers, bit for bit."""
    snn, x = whole(name), images(5, 8, seed=4)
    assert snn.is_integer and snn.alphabet != "binary"
    want = simulate(snn, x, STEPS)
    for chunk in (1, 4):
        got = simulate(snn, x, STEPS, SimulationSettings(chunk=chunk))
        assert torch.equal(got.outputs, want.outputs)
        assert all(torch.equal(got.spikes[name], count) for name, count in want.spikes.items())
    monkeypatch.setattr("s_resnet.kernels.build.compiler.compiled", lambda: (None, "no C++ compiler"))
    plain = simulate(replace(snn), x, STEPS)
    assert torch.equal(plain.outputs, want.outputs)
    assert all(torch.equal(plain.spikes[name], count) for name, count in want.spikes.items())
    floating = simulate(network(name), x, STEPS)
    assert float((floating.outputs.argmax(2) == want.outputs.argmax(2)).float().mean()) > 0.5


def test_means_have_no_whole_numbers():
    snn = network("calibrated")
    nodes = tuple(
        replace(node, op=replace(node.op, spikes=Differential())) if node.name == snn.neurons[1].name else node
        for node in snn.nodes
    )
    with pytest.raises(ConversionError, match="differential spikes"):
        quantize_weights(replace(snn, nodes=nodes), Context())
    with pytest.raises(InvalidData, match="whole numbers for differential spikes"):
        replace(snn.neurons[1].op, spikes=Differential(), integer=IntegerNeuron(torch.ones(8, dtype=torch.int32)))
