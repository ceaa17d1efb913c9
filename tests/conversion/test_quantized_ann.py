"""The ANN quantized to equal bits, and T within a latency: against spikes, against plain arithmetic."""

import numpy as np
import pytest
import torch
from conftest import images, randomized
from torch import nn

import s_resnet
from s_resnet.conversion import quantized_ann, timesteps_within, with_neurons
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.graph import Neuron
from s_resnet.models import CifarResNet


def resnet():
    return randomized(CifarResNet(8, num_classes=4, width=4))


@pytest.mark.parametrize("steps", [3, 8])
def test_it_answers_as_neurons_that_take_their_whole_window(steps):
    """Spike by spike: phased neurons with the same thresholds count to the quantizer's levels."""
    batches = [images(8, seed=4)]
    recipe = s_resnet.RECIPES["phased"].without("calibrate_neurons", "fit_readout")
    snn = s_resnet.convert(resnet(), batches, recipe, timesteps=steps)
    rival = quantized_ann(snn, batches, steps)
    other = images(5, seed=5)
    torch.testing.assert_close(rival.run(other), snn(other, steps), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rival.run(other), snn.run(other), atol=1e-2)


def test_it_does_not_depend_on_the_recipe_that_the_network_was_converted_by():
    batches, other = [images(8, seed=4)], images(5, seed=5)
    found = [
        quantized_ann(s_resnet.convert(resnet(), batches, name, timesteps=2), batches, 8).run(other)
        for name in ("s-resnet", "multilevel")
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


class OneNeuron(nn.Module):
    """Two channels of one neuron each, and their sum."""

    def __init__(self, limit):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
        self.relu = nn.ReLU() if limit is None else nn.Hardtanh(0, limit)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
            self.fc.weight.copy_(torch.eye(2))

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize("limit", [None, 0.8])
def test_its_levels_are_those_of_the_equation(limit):
    """With activations from 0 to 1 in even steps, the scale per channel is the best of the grid, by brute force."""
    x = torch.linspace(-1, 1, 401).view(-1, 1, 1, 1)
    snn = s_resnet.convert(OneNeuron(limit), [x], "s-resnet", timesteps=4)
    got = quantized_ann(snn, [x], 4).run(x).double().numpy()
    top = 1.0 if limit is None else limit
    for channel, factor in enumerate((1.0, 2.0)):
        full = min(factor, top) if limit else factor
        activations = np.clip(factor * x.flatten().double().numpy(), 0, full)

        def quantized(scale, values=activations):
            return scale / 4 * np.clip(np.floor(values * 4 / scale + 0.5), 0, 4)

        scales = full * np.logspace(-1, 0, 80)
        best = min(scales, key=lambda scale: float(((quantized(scale) - activations) ** 2).sum()))
        levels = np.unique(got[:, channel].round(5))
        assert len(levels) == 5 and np.allclose(levels, best * np.arange(5) / 4, rtol=0.03)
        assert np.mean(np.abs(got[:, channel] - quantized(best)) > 1e-4 + 0.03 * best) < 0.03


def test_networks_without_an_ann_to_quantize_are_refused():
    batches = [images(4)]
    snn = s_resnet.convert(resnet(), batches, "s-resnet", timesteps=2)
    with pytest.raises(ConversionError, match="without neurons"):
        quantized_ann(s_resnet.trace(resnet(), images(2)), batches, 4)
    with pytest.raises(ConversionError, match="quantized already"):
        quantized_ann(quantized_ann(snn, batches, 4), batches, 4)
    with pytest.raises(InvalidData, match="levels=0"):
        quantized_ann(snn, batches, 0)


@pytest.mark.parametrize("name", s_resnet.RECIPES)
def test_t_within_a_latency_is_that_of_the_converted_network(name):
    recipe = s_resnet.RECIPES[name]
    waiting = with_neurons(s_resnet.trace(resnet(), images(2)), recipe)
    bare = recipe.without("fit_thresholds", "calibrate_neurons", "fit_readout", "compensate")
    snn = s_resnet.convert(resnet(), (3, 16, 16), bare, timesteps=2)
    late = [snn.end_to_end_steps(t) for t in range(1, 20)]
    assert late == [waiting.end_to_end_steps(t) for t in range(1, 20)]
    for latency in (1, 6, 7, 16):
        fitting = [t for t in range(1, 20) if late[t - 1] <= latency]
        assert timesteps_within(waiting, latency) == (max(fitting) if fitting else None)
    assert all(isinstance(node.op, Neuron) for node in waiting.neurons) and waiting.neurons
