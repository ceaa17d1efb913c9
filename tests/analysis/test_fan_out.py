"""Fan-out against the gradient of a sum, and the source's MACs against torch and what is published."""

import pytest
import torch
from conftest import images, randomized
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18, resnet50

from s_resnet import convert
from s_resnet.analysis import count_operations
from s_resnet.analysis.cost.fan_out import fan_out, synapses
from s_resnet.graph.ops import Conv2d


@pytest.mark.parametrize("seed", range(30))
def test_fan_out_is_the_gradient_of_a_sum(seed):
    """The gradient of the sum of a layer of ones is, for each input, how many outputs it reaches."""
    draw = torch.Generator().manual_seed(seed)

    def pick(low, high, count=2):
        return tuple(torch.randint(low, high + 1, (count,), generator=draw).tolist())

    groups, (inside, outside) = pick(1, 3, 1)[0], pick(1, 3)
    kernel, stride, padding, dilation = pick(1, 4), pick(1, 5), pick(0, 3), pick(1, 3)
    op = Conv2d(
        torch.ones(groups * outside, inside, *kernel, dtype=torch.float64), None, stride, padding, dilation, groups
    )
    x = torch.zeros(1, groups * inside, *pick(10, 14), dtype=torch.float64, requires_grad=True)
    y = op.run(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    each = fan_out(op, tuple(x.shape[1:]), tuple(y.shape[1:]))
    assert each.dtype == torch.int64 and torch.equal(each.double().expand_as(gradient[0]), gradient[0])
    assert synapses(op, tuple(x.shape[1:]), tuple(y.shape[1:])) == gradient.sum()


@pytest.mark.parametrize(("build", "published"), [(resnet18, 1.814), (resnet50, 4.089)])
def test_macs_of_torchvision_networks_are_the_published_ones(build, published):
    """Theirs are MACs of convolutions and classifier, zeros of the padding included, without biases and pools."""
    with torch.device("meta"):  # its own initialization would take most of the time
        model = build()
    model = randomized(model.to_empty(device="cpu"))
    x = images(1, 224)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    operations = count_operations(convert(model, (3, 224, 224), "s-resnet"), [x], 1)
    ann = operations.total.ann
    assert ann.dense_macs == counter.get_total_flops() / 2
    assert round(ann.dense_macs / 1e9, 3) == published
    assert 0.9 * ann.dense_macs < ann.macs < ann.dense_macs
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    folded = sum(norm.bias.numel() for norm in norms)  # one bias each instead of weight and bias
    assert operations.total.parameters == sum(p.numel() for p in model.parameters()) - folded
