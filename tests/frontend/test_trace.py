"""Tracing: the Graph computes what the module computes in evaluation mode, or says which line it cannot follow."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Net, images, randomized
from torch import nn

from s_resnet import trace
from s_resnet.errors import InvalidData, UnsupportedModel
from s_resnet.graph import ops
from s_resnet.models import CifarResNet


def off(graph, model, x):
    """The graph's largest distance from the module in evaluation mode, as a share of the largest logit."""
    with torch.no_grad():
        expected = model.eval()(x.clone())
    assert expected.abs().max() > 0
    assert expected.isfinite().all()
    return float((graph.run(x) - expected).abs().max() / expected.abs().max())


# ---- whole architectures ----


# The other four have the same layers, more of them or wider ones.
@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet34", "resnet50", "resnet152", "resnext50_32x4d", "wide_resnet50_2"]
)
def test_torchvision_resnets(arch):
    with torch.device("meta"):  # its own initialization would take most of the time
        model = torchvision.models.get_model(arch, num_classes=10)
    model = randomized(model.to_empty(device="cpu"))
    graph = trace(model, images(size=32))
    assert off(graph, model, images(size=64 if arch == "resnet18" else 32, seed=2)) <= 1e-5
    # One neuron site per call: the stem, and two (three in a bottleneck) in each block.
    blocks = [m for m in model.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]
    per_block = 2 if arch in ("resnet18", "resnet34") else 3
    assert sum(isinstance(node.op, ops.ReLU) for node in graph.nodes) == 1 + per_block * len(blocks)


@pytest.mark.parametrize(
    ("shortcut", "project_first", "pads", "convolutions"),
    [("A", False, 2, 19), ("B", False, 0, 21), ("B", True, 0, 22)],
)
def test_cifar_resnets(shortcut, project_first, pads, convolutions):
    model = randomized(CifarResNet(20, shortcut=shortcut, project_first=project_first, width=8))
    graph = trace(model, images(size=32))
    assert off(graph, model, images(3, 32, seed=2)) <= 1e-5
    assert sum(isinstance(node.op, ops.Pad) for node in graph.nodes) == pads
    assert sum(isinstance(node.op, ops.Conv2d) for node in graph.nodes) == convolutions


# ---- how people write their own ----


def own_fc(s, x):
    return s.head2(s.head1(F.relu(s.bn1(s.conv1(x))).mean([2, 3])))


def whole_map_by_size(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    x = F.avg_pool2d(x, x.size()[3])
    return s.fc(x.view(x.size(0), -1))


def whole_map_by_shape(s, x):
    x = torch.relu(s.bn1(s.conv1(x)))
    x = F.avg_pool2d(x, kernel_size=x.shape[2:])
    return s.fc(torch.reshape(x, (x.shape[0], -1)))


def residual(s, x):
    x = s.relu(s.bn1(s.conv1(x)))
    out = s.bn2(s.conv2(x))
    out += x
    return s.head(s.relu(out))


def keyword_add(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    return s.head(F.relu(torch.add(input=x, other=s.conv2(x), alpha=1)).add(other=x))


def zero_padding(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    short = F.pad(x[:, :, 1::2, :-1:2], (0, 0, 0, 0, 4, 4), "constant", 0)
    return s.fc16(F.relu(s.wide(x) + short).mean((2, 3)))


def two_users(s, x):
    x = s.conv1(x)
    return s.head(F.relu(s.bn1(x)) + F.relu(x))


def pools(s, x):
    x = F.max_pool2d(F.relu(s.bn1(s.conv1(x))), 3, stride=2, padding=1, ceil_mode=True)
    x = F.avg_pool2d(s.avg(x), 2, 1, 1, count_include_pad=False)
    return s.fc(F.adaptive_avg_pool2d(x, 1).squeeze())


def rest(s, x):
    x = s.identity(F.dropout(s.conv1(x).clone().contiguous().relu(), 0.5, training=s.training))
    return s.head(s.drop(s.same(x)))


def same_module_twice(s, x):
    x = s.relu(s.bn1(s.conv1(x)))
    return s.head(s.relu(s.bn2(s.conv2(s.relu(s.bn2(s.conv2(x)))))))


def grouped(s, x):
    return s.head(F.relu(s.strided(F.relu(s.grouped(F.relu(s.conv1(x)))))))


def plain_norms(s, x):
    return s.head(F.relu(s.sync(s.fixed(s.conv1(x)))))


MODELS = {
    "own fc": lambda: Net(own_fc, head1=nn.Sequential(nn.Linear(8, 6), nn.ReLU()), head2=nn.Linear(6, 5)),
    "avg_pool2d(x, x.size()[3])": lambda: Net(whole_map_by_size),
    "x.shape[2:]": lambda: Net(whole_map_by_shape),
    "in-place add and shared in-place ReLU": lambda: Net(residual),
    "torch.add by keyword": lambda: Net(keyword_add),
    "zero padding": lambda: Net(zero_padding, wide=nn.Conv2d(8, 16, 3, 2, 1), fc16=nn.Linear(16, 5)),
    "convolution with two users": lambda: Net(two_users),
    "pools": lambda: Net(pools, avg=nn.AvgPool2d(3, 1, padding=1)),
    "passed on": lambda: Net(
        rest, identity=nn.Identity(), drop=nn.Dropout(0.9), same=nn.Conv2d(8, 8, (3, 5), padding="same", dilation=2)
    ),
    "modules called twice": lambda: Net(same_module_twice),
    "grouped, strided 1x1": lambda: Net(
        grouped, grouped=nn.Conv2d(8, 8, 3, groups=4), strided=nn.Conv2d(8, 8, 1, 2, bias=False)
    ),
    "BatchNorm without weights, SyncBatchNorm": lambda: Net(
        plain_norms, fixed=nn.BatchNorm2d(8, eps=0.1, affine=False), sync=nn.SyncBatchNorm(8)
    ),
    "channels_last": lambda: Net(residual).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", MODELS)
def test_own_models(name):
    model = MODELS[name]()
    graph = trace(model, images())
    assert off(graph, model, images(3, seed=2)) <= 1e-5
    assert not any(isinstance(op, nn.Module) for op in (node.op for node in graph.nodes))


def test_every_call_of_one_relu_module_is_a_node():
    graph = trace(Net(residual), images())
    relus = [node for node in graph.nodes if isinstance(node.op, ops.ReLU)]
    assert [node.name for node in relus] == ["relu", "relu_1"]
    assert [node.inputs for node in relus] == [("bn1",), ("add",)]
    assert graph["add"].inputs == ("bn2", "relu")


def test_nodes_are_named_by_module_path():
    names = [node.name for node in trace(CifarResNet(8, width=4), images(size=32)).nodes]
    assert names[:4] == ["input", "conv1", "bn1", "relu"]
    assert names[4:8] == ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu", "layer1.0.conv2"]


@pytest.mark.parametrize("name", ["avg_pool2d(x, x.size()[3])", "x.shape[2:]"])
def test_a_pool_over_the_whole_map_stays_one_at_other_sizes(name):
    model = MODELS[name]()
    assert off(trace(model, images(size=16)), model, images(size=24)) <= 1e-5


# ---- changes in place ----


def relu_then_reuse(s, x):
    x = s.bn1(s.conv1(x))
    return s.head(F.relu(s.conv2(s.relu(x)) + x))  # x is its ReLU by now


def add_under_another_name(s, x):
    x = F.relu(s.bn1(s.conv1(x)))
    y = s.bn2(s.conv2(x))
    z = y
    y += x
    return s.head(F.relu(y) + F.relu(s.conv2(z)))


def copy_survives(s, x):
    x = s.bn1(s.conv1(x))
    y = x.clone()
    return s.head(s.relu(x) + y)


def method_in_place(s, x):
    y = s.bn1(s.conv1(x))
    y.relu_().add_(s.conv2(y))
    return s.head(F.relu(y))


def input_in_place(s, x):
    return s.head(s.conv1(F.relu(x, inplace=True)))


@pytest.mark.parametrize(
    "body", [relu_then_reuse, add_under_another_name, copy_survives, method_in_place, input_in_place]
)
@pytest.mark.parametrize("inference", [False, True])
def test_changes_in_place_are_seen_under_every_name(body, inference):
    model, x = Net(body), images()
    kept = x.clone()
    with torch.inference_mode(inference):
        graph = trace(model, x)
    assert off(graph, model, images(seed=2)) <= 1e-5
    assert torch.equal(x, kept)


def test_a_change_in_place_of_a_part_is_refused():
    def part(s, x):
        x = F.relu(s.bn1(s.conv1(x)))
        s.relu(x[:, :4])
        return s.head(s.conv2(x))

    with pytest.raises(UnsupportedModel, match=r"node relu \(.*s\.relu\(x\[:, :4\]\).*shared"):
        trace(Net(part), images())


def test_what_tracing_cannot_see_is_refused():
    model = Net(residual)
    model.bn1.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(UnsupportedModel, match=r"other outputs .* forward hooks"):
        trace(model, images())


# ---- the module afterwards ----


def test_the_module_is_left_as_it_was():
    model = Net(residual).train()
    model.bn2.eval()
    model.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    graph = trace(model, images())
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert flags["bn1"]
    assert not flags["bn2"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(list(model.parameters())) - 1)
    assert all(p.grad is None for p in model.parameters())
    assert off(graph, model, images(seed=2)) <= 1e-5  # off() puts the module in evaluation mode


def test_the_graph_owns_its_tensors():
    model = Net(residual)
    graph = trace(model, images())
    before = graph.run(images())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(1)
    assert torch.equal(graph.run(images()), before)


def test_data_parallel_is_unwrapped():
    model = Net(residual)
    graph = trace(nn.DataParallel(model), images())
    assert off(graph, model, images()) <= 1e-5
    assert not any(node.name.startswith("module") for node in graph.nodes)


def test_what_is_computed_and_dropped_is_left_out():
    def auxiliary(s, x):
        x = F.relu(s.conv1(x))
        s.aux(x.mean([2, 3]))
        return s.head(x)

    names = [node.name for node in trace(Net(auxiliary, aux=nn.Linear(8, 2)), images()).nodes]
    assert "aux" not in names
    assert names[-1] == "fc"


def test_a_second_input_that_nothing_reads_is_no_matter():
    class Unused(Net):
        def forward(self, x, target=None):
            return residual(self, x)

    assert trace(Unused(None), images()).nodes[-1].name == "fc"


# ---- what cannot be converted ----

REFUSED = {
    "hardtanh": (lambda s, x: s.head(s.act(s.conv1(x))), nn.Hardtanh(), "node act", "module Hardtanh"),
    "leaky relu": (lambda s, x: s.head(s.act(s.conv1(x))), nn.LeakyReLU(), "node act", "module LeakyReLU"),
    "sigmoid": (lambda s, x: s.head(torch.sigmoid(s.conv1(x))), None, "node sigmoid", "operation sigmoid"),
    "product": (lambda s, x: s.head(s.conv1(x) * s.conv1(x)), None, "node mul", "a product of two activations"),
    "constant per pixel": (
        lambda s, x: s.head(s.conv1(x) + s.act.view(16, 1)),
        nn.Parameter(torch.arange(16.0)),
        "node add",
        "a constant that differs from pixel to pixel",
    ),
    "broadcast": (
        lambda s, x: s.head(s.conv1(x) + s.conv1(x)[:, :1]),
        None,
        "node add",
        "two activations of one shape",
    ),
    "no statistics": (
        lambda s, x: s.head(s.act(s.conv1(x))),
        nn.BatchNorm2d(8, track_running_stats=False),
        "node act",
        "without running statistics",
    ),
    "dropout": (lambda s, x: s.head(F.dropout(s.conv1(x), 0.5)), None, "node dropout", "always on"),
    "padded with ones": (lambda s, x: s.head(F.pad(s.conv1(x), (1, 1), value=1.0)), None, "node pad", "value=1.0"),
    "indices": (
        lambda s, x: s.head(F.max_pool2d(s.conv1(x), 2, return_indices=True)[0]),
        None,
        "node .*max_pool2d",
        "cannot be converted",
    ),
    "transposed": (lambda s, x: s.head(s.conv1(x).transpose(2, 3)), None, "node transpose", "operation transpose"),
    "reshape": (lambda s, x: s.head(s.conv1(x).view(2, 8, 4, 64)), None, "node view", "a reshape of"),
    "channel mean": (lambda s, x: s.fc(s.conv1(x).mean([1, 2])[:, :8]), None, "node mean", "a mean of"),
    "divisor": (
        lambda s, x: s.head(F.avg_pool2d(s.conv1(x), 2, divisor_override=3)),
        None,
        "node avg_pool2d",
        "divisor",
    ),
    "even same": (
        lambda s, x: s.head(s.act(s.conv1(x))),
        nn.Conv2d(8, 8, 2, padding="same"),
        "node act",
        "padding='same' with an even kernel",
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_that_cannot_be_converted_is_named_with_its_line(name):
    body, module, node, what = REFUSED[name]
    model = Net(body, **({} if module is None else {"act": module}))
    with pytest.raises(UnsupportedModel) as caught:
        trace(model, images())
    message = str(caught.value)
    assert re.match(node, message)
    assert what in message
    line = body.__code__.co_firstlineno
    assert re.search(rf"test_trace\.py, line {line}: .*s\.conv1\(x\)", message)
    assert "\n" not in message


def test_control_flow_on_data_is_named_with_its_line():
    def branch(s, x):
        if x.sum() > 0:
            x = -x
        return s.head(s.conv1(x))

    with pytest.raises(UnsupportedModel, match=r"Net \(.*test_trace\.py, line \d+: if x\.sum\(\) > 0:\).*control flow"):
        trace(Net(branch), images())


def test_a_second_input_is_refused():
    class Two(Net):
        def forward(self, x, y):
            return self.head(self.conv1(x) + self.conv1(y))

    with pytest.raises(UnsupportedModel, match=r"node y\b.*: .*a second input; expected one"):
        trace(Two(None), images())


def test_a_tuple_output_is_refused():
    with pytest.raises(UnsupportedModel, match=r"node output.*an output of type tuple; expected one tensor"):
        trace(Net(lambda s, x: (s.head(s.conv1(x)), x)), images())


@pytest.mark.parametrize(
    ("example", "got"),
    [
        (torch.zeros(3, 16, 16), r"\(3, 16, 16\)"),
        (torch.zeros(2, 4, 16, 16), r"\(2, 4, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "unsigned char|Byte"),
        (np.zeros((2, 3, 16, 16)), "ndarray"),
    ],
    ids=["no batch", "channels", "dtype", "array"],
)
def test_an_example_that_does_not_fit_is_refused(example, got):
    with pytest.raises(InvalidData, match=rf"trace: .*{got}.*expected"):
        trace(Net(residual), example)
