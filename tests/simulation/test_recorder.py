"""Recorded spikes and membranes: by hand on one neuron, and against the engine on networks."""

import pytest
import torch
from conftest import images, randomized
from test_verify import build, conv, one, scalar, uneven
from trained_networks import SIZE, T, trained, watched

from s_resnet import RECIPES, convert, simulate
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron
from s_resnet.graph.alphabet import Amplitudes, Signed
from s_resnet.models import CifarResNet
from s_resnet.simulation import record


def trace(network, value, timesteps, layer="neuron"):
    """The steps at which the only neuron fires, what it emits, and its membrane."""
    (found,) = record(network, scalar(value), timesteps, [layer], 5)
    assert found.neurons == (0,) and found.spikes.shape == (timesteps, 1)
    assert found.membrane.shape == (found.lag + timesteps, 1)
    return found.begins, found.lag, found.spikes.flatten().tolist(), found.membrane.flatten().tolist()


# ---- by hand: 3/8 a step, threshold 1

EIGHTHS = {
    "streaming": ({}, 0, [0, 0, 1, 0, 0, 1, 0, 1], [3, 6, 1, 4, 7, 2, 5, 0]),
    "from a half": ({"initial_potential": 0.5}, 0, [0, 1, 0, 1, 0, 0, 1, 0], [7, 2, 5, 0, 3, 6, 1, 4]),
    "reset to zero": ({"reset": "zero"}, 0, [0, 0, 1, 0, 0, 1, 0, 0], [3, 6, 0, 3, 6, 0, 3, 6]),
    "lagged": ({"schedule": "lagged"}, 1, [0, 1, 0, 0, 1, 0, 1, 0], [3, 6, 1, 4, 7, 2, 5, 0, 0]),
    "phased": ({"schedule": "phased"}, 8, [1, 1, 1, 0, 0, 0, 0, 0], [3, 6, 9, 12, 15, 18, 21, 24, 16, 8, *[0] * 6]),
    "leaky": ({"decay": 0.5}, 0, [0] * 8, None),
}


@pytest.mark.parametrize("name", EIGHTHS)
def test_a_neuron_by_hand(name):
    settings, lag, spikes, membrane = EIGHTHS[name]
    begins, waits, emitted, v = trace(one(**settings), 0.375, 8)
    assert (begins, waits, emitted) == (0, lag, spikes)
    if membrane is None:  # v[t] = v[t-1] / 2 + 3/8
        membrane = [6 * (1 - 0.5**t) for t in range(1, 9)]
    assert [8 * value for value in v] == pytest.approx(membrane, abs=1e-5)


def test_a_layer_that_takes_back_by_hand():
    """It gets 1, 1, 0, -1: streaming it fires twice and keeps -1; signed it takes one back."""
    assert trace(uneven(), 0.25, 4, "last")[2:] == ([1, 1, 0, 0], [0, 0, 0, -1])
    assert trace(uneven(spikes=Signed()), 0.25, 4, "last")[2:] == ([1, 1, 0, -1], [0, 0, 0, 0])
    late = trace(uneven(spikes=Signed(), schedule="lagged"), 0.25, 4, "last")
    assert late == (0, 1, [1, 1, -1, 0], [1, 1, 0, 0, 0])


def test_several_amplitudes_and_thresholds_by_hand():
    """7/4 a step from 1/2: floor(2.25) = 2, floor(2) = 2, floor(1.75) = 1; in thresholds of 2 half as many."""
    assert trace(one(spikes=Amplitudes(2), initial_potential=0.5), 1.75, 3)[2:] == ([2, 2, 1], [0.25, 0.0, 0.75])
    network = build(("conv", conv(1.0)), ("neuron", Neuron(torch.tensor(2.0))))
    assert trace(network, 1.5, 4)[2:] == ([0, 1, 1, 1], [0.75, 0.5, 0.25, 0.0])


def test_layers_that_wait_begin_later():
    network = build(
        ("conv", conv(1.0)),
        ("first", Neuron(torch.tensor(1.0), schedule="phased")),
        ("then", conv(0.5)),
        ("second", Neuron(torch.tensor(1.0), schedule="phased")),
    )
    first, second = record(network, scalar(0.5), 4, ["first", "second"], 1)
    assert (first.begins, first.lag, second.begins, second.lag) == (0, 4, 4, 4)
    assert first.spikes.flatten().tolist() == [1, 1, 0, 0]
    assert second.spikes.flatten().tolist() == [1, 0, 0, 0]
    assert second.membrane.flatten().tolist() == [0.5, 1, 1, 1, 0, 0, 0, 0]


def test_neurons_are_spread_over_those_that_fire():
    """Seven neurons with 4, 0, 1, 2, 3, 0 and 4 spikes in four steps; silent ones fill up."""
    network = build(
        ("conv", conv(1.0, 0.0, 0.25, 0.5, 0.75, -1.0, 2.0)),
        ("neuron", Neuron(torch.tensor(1.0))),
        classifier=((1.0,) * 7,),
    )
    (found,) = record(network, scalar(1.0), 4, ["neuron"], 3)
    assert found.neurons == (0, 4, 2)  # of 0, 6, 4, 3, 2 the first, the middle one and the last
    (every,) = record(network, scalar(1.0), 4, ["neuron"], 100)
    assert every.neurons == (0, 6, 4, 3, 2, 1, 5)
    assert every.spikes.sum(0).tolist() == [4, 4, 3, 2, 1, 0, 0]
    (silent,) = record(network, scalar(0.0), 4, ["neuron"], 3)
    assert silent.neurons == (0, 1, 2) and not silent.spikes.any()


# ---- against the engine


def network(recipe, timesteps=4, weights="float32"):
    model = randomized(CifarResNet(8, num_classes=5, width=4))
    return convert(model, [images(16, 8)], RECIPES[recipe].at(timesteps).with_weights(weights))


@pytest.mark.parametrize("recipe", ["s-resnet", "calibrated-lagged", "phased", "signed", "multilevel"])
def test_every_neuron_of_every_layer_is_as_the_engine_leaves_it(recipe):
    """Spikes sum up to what the simulation counts, and the last membrane is what it ends with."""
    snn, x = network(recipe), images(1, 8, seed=5)
    names = [node.name for node in snn.neurons]
    found = record(snn, x, 4, names, 10**6)
    (chunk,) = snn.stream(x, 4, 4)
    counts = simulate(snn, x, 4).spikes
    for one_layer in found:
        op = snn[one_layer.layer].op
        bits = sum(((one_layer.spikes.abs().long() >> level) & 1).sum() for level in range(op.spikes.amplitudes))
        assert int(bits) == int(counts[one_layer.layer].sum()) > 0
        last = chunk.state.memory[one_layer.layer][0].flatten()[list(one_layer.neurons)]
        torch.testing.assert_close(one_layer.membrane[-1], last / op.threshold, atol=1e-4, rtol=0)
        assert one_layer.lag == {"streaming": 0, "lagged": 1, "phased": 4}[op.schedule]
    last = found[-1]
    assert last.begins + last.lag + 4 == snn.end_to_end_steps(4)


def test_an_integer_network():
    """Membranes are whole numbers in its own unit; where layers wait they are not recorded, but spikes are."""
    snn, x = network("s-resnet", weights="int8"), images(1, 8, seed=5)
    name = snn.neurons[2].name
    (found,) = record(snn, x, 4, [name], 10**6)
    op = snn[name].op
    unit = op.integer.threshold.view(-1, 1, 1).expand(-1, 8, 8).flatten()[list(found.neurons)]
    whole = found.membrane * unit
    torch.testing.assert_close(whole, whole.round(), atol=1e-2, rtol=0)
    (chunk,) = snn.stream(x, 4, 4)
    last = chunk.state.memory[name][0].flatten()[list(found.neurons)]
    torch.testing.assert_close(whole[-1], last.float(), atol=1e-2, rtol=0)
    assert found.spikes.sum() == simulate(snn, x, 4).spikes[name].sum()
    waiting = network("phased", weights="int8")
    (found,) = record(waiting, x, 4, [name], 10**6)
    assert found.membrane is None and found.spikes.sum() == simulate(waiting, x, 4).spikes[name].sum() > 0


@pytest.mark.parametrize(
    ("layers", "batch", "count", "says"),
    [
        (["conv"], 1, 1, "layer 'conv'"),
        (["none"], 1, 1, "layer 'none'"),
        (["neuron"], 2, 1, "2 images"),
        (["neuron"], 1, 0, "count=0"),
    ],
)
def test_what_cannot_be_recorded_is_refused(layers, batch, count, says):
    with pytest.raises(InvalidData, match=says):
        record(one(), scalar(*[0.5] * batch), 4, layers, count)


# ---- directly trained


def test_recorded_spikes_and_membranes_are_those_of_the_module():
    """In numbers of spikes, and membranes in thresholds, after the reset to zero; of several levels the first."""
    for arch in ("ms_resnet8", "ds_resnet8", "sew_resnet8"):
        model, graph = trained(arch)
        x, layer = images(1, SIZE, seed=8), graph.neurons[1].name
        (trace,) = record(graph, x, T, [layer], 6)
        given, spikes = (part[:, 0].flatten(1)[:, list(trace.neurons)] for part in watched(model, x, T)[1][layer])
        op = graph[layer].op
        theta, v, path = float(op.threshold), torch.zeros(6), []
        for now in given:
            v = op.decay * v + now
            v = v * (v < theta)
            path.append(v / theta)
        assert torch.equal(trace.spikes, spikes) and trace.spikes.sum() > 0
        assert torch.allclose(trace.membrane, torch.stack(path), atol=1e-5)
