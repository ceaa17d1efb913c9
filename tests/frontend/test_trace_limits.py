"""Clips from 0 to a limit: every way to write one is the same ReLU with a limit, and other clips are refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, images
from torch import nn

from s_resnet import load_checkpoint, trace
from s_resnet.errors import UnsupportedModel
from s_resnet.graph import ops

EACH = torch.linspace(0.1, 1.5, 8)
HALF = EACH.clamp(max=0.5)


def limits(model, x):
    """The limits in the graph of a module, which it equals there and at other images; in maps bit for bit."""
    graph = trace(model, x)
    for given in (x, 3 * x.flip(0)):
        with torch.no_grad():
            got, expected = graph.run(given), model(given.clone())
            assert torch.equal(got, expected) if got.ndim == 4 else torch.allclose(got, expected, 1e-5, 1e-5)
    return [node.op.limit for node in graph.nodes if isinstance(node.op, ops.ReLU)]


class Learned(nn.Module):
    """PACT: the limit is a parameter."""

    def __init__(self, *shape):
        super().__init__()
        self.alpha = nn.Parameter(torch.full(shape, 0.75), requires_grad=False)

    def forward(self, x):
        return torch.min(F.relu(x), self.alpha)


# ---- what a clip may be ----

CLIPS = {
    "ReLU6": (nn.ReLU6(), 6.0),
    "ReLU6 in place": (nn.ReLU6(inplace=True), 6.0),
    "relu6": (F.relu6, 6.0),
    "Hardtanh": (nn.Hardtanh(0, 0.3), 0.3),
    "hardtanh in place": (lambda x: F.hardtanh_(x, 0.0, 0.5), 0.5),
    "clamp": (lambda x: x.clamp(0, 0.7), 0.7),
    "clamp by name": (lambda x: torch.clamp(x, min=0.0, max=0.7), 0.7),
    "clamp in place": (lambda x: x.clamp_(0, 0.7), 0.7),
    "clip": (lambda x: torch.clip(x, 0, 1), 1.0),
    "tensors": (lambda x: x.clamp(torch.zeros(()), torch.tensor([0.7])), 0.7),
    "minimum": (lambda x: torch.minimum(F.relu(x), torch.tensor(0.9)), 0.9),
    "minimum from the left": (lambda x: torch.min(torch.tensor(0.9), x.relu()), 0.9),
    "clamp_max": (lambda x: x.relu().clamp_max(0.9), 0.9),
    "clamp_max in place": (lambda x: x.relu_().clamp_(max=0.9), 0.9),
    "a limit twice": (lambda x: F.relu6(x).clamp(max=0.9).clamp(-1, 2), 0.9),
    "from below zero after a ReLU": (lambda x: F.hardtanh(F.relu(x), -1.0, 1.0), 1.0),
    "from minus infinity after a ReLU": (lambda x: F.relu(x).clamp(-math.inf, 1.0), 1.0),
    "a learned limit": (Learned(), 0.75),
    "a learned limit [1]": (Learned(1), 0.75),
    "learned limits that are equal": (Learned(1, 8, 1, 1), 0.75),
    "a limit per channel": (lambda x: torch.minimum(x.relu(), EACH.view(1, 8, 1, 1)), EACH),
    "a limit per channel by clamp": (lambda x: torch.clamp(x, torch.zeros(1), EACH.view(8, 1, 1)), EACH),
    "per channel below another": (lambda x: torch.minimum(F.hardtanh(x, 0, 0.5), EACH.view(8, 1, 1)), HALF),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIPS)
def test_every_way_to_write_a_clip_is_one_relu_with_that_limit(name):
    act, expected = CLIPS[name]
    (limit,) = limits(Net(lambda s, x: act(s.bn1(s.conv1(x)))), images())
    assert torch.equal(limit, torch.as_tensor(expected))


def test_a_limit_per_feature_behind_a_linear_layer():
    wide = nn.Linear(8, 6)
    last = nn.Linear(6, 5)
    each = torch.linspace(0.05, 0.2, 6)
    (limit,) = limits(Net(lambda s, x: s.last(torch.min(F.relu(s.wide(x.mean((2, 3)) @ torch.ones(3, 8))), each)),
                          wide=wide, last=last), images())  # fmt: skip
    assert torch.equal(limit, each)


def test_in_double_precision_numbers_are_double():
    """A number of Python is not rounded to float32 on the way."""
    model = Net(lambda s, x: (0.1 * s.conv1(x) + 0.1).clamp(0, 0.1)).double()
    (limit,) = limits(model, images().double())
    assert limit.dtype == torch.float64 and float(limit) == 0.1


def test_an_infinite_limit_is_none():
    acts = (nn.Hardtanh(0, math.inf), lambda x: x.clamp(0, math.inf), lambda x: x.relu().clamp(max=math.inf))
    for act in acts:
        assert all(limit is None for limit in limits(Net(lambda s, x, act=act: s.head(act(s.conv1(x)))), images()))


def test_values_that_are_never_negative_may_be_clipped_above_alone():
    """Behind pools and sums of ReLUs the clip is a layer of its own."""

    def body(s, x):
        x = F.relu(s.conv1(x))
        x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)
        return s.head(x.clamp_max(0.5))

    first, second = limits(Net(body), images())
    assert first is None and float(second) == 0.5


def test_a_relu_with_other_readers_stays():
    def body(s, x):
        x = F.relu(s.conv1(x))
        return s.head(x + torch.clamp_max(x, 0.5))

    first, second = limits(Net(body), images())
    assert first is None and float(second) == 0.5


# ---- what it may not be ----

REFUSED = {
    "Hardtanh of both signs": (
        nn.Hardtanh(), r"node act .*module Hardtanh; expected ReLU, with an upper limit.*nn\.Hardtanh\(0, a\)"
    ),
    "from below zero": (lambda x: x.clamp(-1, 6), r"node clamp .*operation clamp; expected ReLU.*nn\.ReLU6"),
    "from above zero": (lambda x: x.clamp(0.5, 6), r"node clamp .*operation clamp; expected ReLU"),
    "above alone": (lambda x: x.clamp(max=6), r"node clamp .*operation clamp; expected ReLU"),
    "the minimum of what may be negative": (lambda x: x.minimum(torch.ones(())), r"node minimum .*expected ReLU"),
    "to zero": (lambda x: x.clamp(0, 0), r"a clip to at most 0; expected a limit above 0"),
    "to less than zero": (lambda x: F.relu(x).clamp(max=-0.5), r"a clip to at most -0\.5; expected a limit above 0"),
    "to what is no number": (lambda x: x.clamp(0, math.nan), r"a clip to at most nan"),
    "to infinity in a channel": (
        lambda x: torch.min(x.relu(), torch.tensor([1.0] * 7 + [math.inf]).view(8, 1, 1)),
        r"a clip to at most inf; expected a limit above 0, finite or in no channel",
    ),
    "another limit at every pixel": (
        lambda x: torch.minimum(x.relu(), torch.arange(1.0, 17.0)), r"a constant that differs from pixel to pixel"
    ),
    "the smaller of two": (lambda x: torch.minimum(x.relu(), x), r"node minimum .*a minimum of two activations"),
    "the least over an axis": (lambda x: x.min(3)[0][..., None], r"node min .*a minimum over an axis"),
    "a leaky one with a limit": (lambda x: F.leaky_relu(x).clamp(max=6), r"node leaky_relu .*expected ReLU"),
    "Hardswish": (nn.Hardswish(), r"node act .*module Hardswish; expected ReLU"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_clips_are_refused_by_what_to_do(name):
    act, says = REFUSED[name]
    model = Net(lambda s, x: s.head((s.act if isinstance(act, nn.Module) else act)(s.conv1(x))))
    if isinstance(act, nn.Module):
        model.act = act
    with pytest.raises(UnsupportedModel, match=says):
        trace(model, images())


@pytest.mark.parametrize("name", ["ReLU6", "clamp", "a learned limit", "a limit per channel"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_clips_of_an_onnx_file_are_the_same(tmp_path, name):
    act, expected = CLIPS[name]
    model = Net(lambda s, x: s.head(act(s.bn1(s.conv1(x)))))
    torch.onnx.export(model, (images(),), str(tmp_path / "a.onnx"), dynamo=False)
    (limit,) = limits(load_checkpoint(tmp_path / "a.onnx").model, images())
    assert torch.equal(limit, torch.as_tensor(expected))
