"""One network for several T: shared weights, thresholds as of a network for that T, and its own T unchanged."""

import pytest
import torch
from conftest import images, randomized
from trained_networks import trained

from s_resnet import RECIPES, convert
from s_resnet.conversion import Auto, own_and_others
from s_resnet.errors import ConversionError, InvalidData
from s_resnet.frontend import QCFSModule
from s_resnet.graph import Neuron
from s_resnet.models import CifarResNet

pytestmark = pytest.mark.filterwarnings("ignore:convert")
SEVERAL = (2, 6)


def scales(snn):
    return {node.name: node.op.scale for node in snn.neurons if isinstance(node.op, Neuron)}


@pytest.mark.parametrize("recipe", ["calibrated", "phased"])
def test_each_t_has_the_thresholds_of_a_network_for_it(recipe):
    """Thresholds depend on the source's activations and T, not on the weights that were refitted."""
    model, batches = randomized(CifarResNet(8, width=4)), [images(48, 8)]
    snn = convert(model, batches, recipe, timesteps=SEVERAL)
    assert snn.fitted == SEVERAL and {name.partition("/")[2] for name in snn.tuned[2]} <= {
        "threshold",
        "correction",
        "weights",
    }
    one = {steps: convert(model, batches, recipe, timesteps=steps) for steps in SEVERAL}
    for steps in SEVERAL:
        for name, expected in scales(one[steps]).items():
            assert torch.allclose(scales(snn.at(steps))[name], expected, rtol=1e-4), (steps, name)
        assert snn.at(steps).provenance.recipe.timesteps == steps
    x = images(16, 8, seed=5)
    assert torch.equal(snn(x, 6), one[6](x, 6))  # the weights are fitted at 6
    source, others = snn.run(batches[0]), (snn.at(2), snn.at(6))
    fit, apart = (float((other(batches[0], 2) - source).pow(2).mean()) for other in others)
    assert fit < apart


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [((4, 8, 16, 32), (8, (4, 16, 32))), ([8, 4], (8, (4,))), ((64, 32), (32, (64,))), ((8,), (8, ())), (8, (8, ()))],
)
def test_weights_are_fitted_at_the_largest_t_up_to_8(timesteps, expected):
    assert own_and_others(timesteps, RECIPES["calibrated"]) == expected


@pytest.mark.parametrize(
    ("timesteps", "recipe", "error", "said"),
    [
        ((), RECIPES["calibrated"], InvalidData, "one T or more"),
        ((4, 4), RECIPES["calibrated"], InvalidData, "each once"),
        ((4, 0), RECIPES["calibrated"], InvalidData, "timesteps"),
        ("48", RECIPES["calibrated"], InvalidData, "timesteps"),
        ((4, 8), RECIPES["s-resnet"], ConversionError, "recipe s-resnet"),
        ((4, 8), Auto(), ConversionError, "recipe auto"),
        ((4, 8), RECIPES["calibrated"].with_weights("int8"), ConversionError, "weights int8"),
        ((4, 8), RECIPES["phased"].with_weights("dyadic"), ConversionError, "weights dyadic"),
    ],
)
def test_what_one_network_cannot_be_for_is_refused_at_once(timesteps, recipe, error, said):
    with pytest.raises(error, match=said):
        convert(torch.nn.Identity(), [images(4, 8)], recipe, timesteps=timesteps)


def test_networks_that_bring_their_t_take_no_others():
    _, spiking = trained("ms_resnet8", 2, size=8)
    with pytest.raises(InvalidData, match="timesteps for a network that was trained"):
        convert(spiking, None, "calibrated", timesteps=SEVERAL)
    learned = QCFSModule(randomized(CifarResNet(8, width=4)), images(2, 8), 4)
    with pytest.raises(InvalidData, match="several T for a network trained with QCFS"):
        convert(learned, (3, 8, 8), "phased", timesteps=SEVERAL)
