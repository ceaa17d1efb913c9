"""Operations of directly trained networks against counts from the modules: convolutions of ones over what they read."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images
from torch import nn
from trained_networks import CLASSES, FAMILIES, SIZE, T, fed, trained, watched

from s_resnet import Graph
from s_resnet.analysis import count_operations, energy
from s_resnet.conversion import Context, passes
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.alphabet import Surrogate
from s_resnet.graph.ops import Add, Conv2d, Flatten, Input, Linear, MaxPool2d
from s_resnet.graph.provenance import AppliedRecipe, Provenance

X = images(3, SIZE)


def events(module, given):
    """Unit spikes, or values that are not 0, over the synapses that they reach: a convolution with ones."""
    if isinstance(module, nn.Linear):
        return float(given.sum()) * module.out_features
    ones = torch.ones_like(module.weight)
    return float(F.conv2d(given, ones, None, module.stride, module.padding, module.dilation, module.groups).sum())


def whole(values):
    return bool((values == values.round()).all())


@pytest.mark.parametrize("folded", [False, True], ids=["traced", "folded"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_synapses_and_spikes_are_those_of_the_module(arch, folded):
    """A convolution over spikes adds once for each of them, one over currents multiplies, the stem once an image."""
    model, graph = trained(arch)
    graph = passes.fold_batchnorm(graph, Context()) if folded else graph
    layers = {layer.name: layer for layer in count_operations(graph, [X], T).layers}
    modules, kinds = dict(model.named_modules()), set()
    for name, given in fed(model, X, T).items():
        module, spiking = modules[name], whole(given)
        if isinstance(module, nn.Conv2d | nn.Linear):
            first = given[: len(X)]
            if not spiking and torch.equal(given, first.repeat(len(given) // len(X), *[1] * (first.ndim - 1))):
                given = first  # of the stem alone: the same current at every step
            expected = events(module, given if spiking else (given != 0).float()) / len(X)
            got = (layers[name].acs, layers[name].macs)
            assert got == pytest.approx((expected, 0) if spiking else (0, expected)), name
            kinds.add((type(module).__name__, spiking))
    assert {("Conv2d", True), ("Conv2d", False), ("Linear", False)} == kinds
    stem = modules["stem.0"]
    assert layers["stem.0"].macs == events(stem, torch.ones(1, 3, SIZE, SIZE))
    for name, (_, out) in watched(model, X, T)[1].items():
        membranes = len(modules[name].firing.thresholds)
        neurons = out[0, 0].numel()
        assert layers[name].spikes == pytest.approx(float(out.sum()) / len(X)) and layers[name].macs == 0
        assert layers[name].updates == T * neurons * membranes and layers[name].state == neurons * membranes
        assert layers[name].traffic.state_reads == T * neurons * membranes


def test_ms_resnet_by_hand():
    """What is added in the membrane domain, node by node; 4, 8, 16 channels on 8x8, 4x4, 2x2 pixels."""
    model, graph = trained("ms_resnet8")
    layers = {layer.name: layer for layer in count_operations(graph, [X], T).layers}
    n = {0: 4 * 64, 1: 8 * 16, 2: 16 * 4}
    constant = {name: layers[name].additions for name in layers}
    # The stem's current, with its bias: added by the first neurons and by the first sum in each step.
    assert constant["stem.0"] == n[0] and constant["body.0.0.neuron1"] == constant["body.0.0.add"] == T * n[0]
    # A bias inside a block is added with the constants of the neurons, one at its end where the sum is formed.
    assert constant["body.0.0.conv1"] == 0 and constant["body.0.0.neuron2"] == T * n[0]
    assert [constant[f"body.{i}.0.conv2"] for i in range(3)] == [T * n[i] for i in range(3)]
    # Sums that two read are added by the neurons; the shortcut's convolution multiplies them at every step.
    assert [layers[f"body.{i}.0.neuron1"].acs for i in (1, 2)] == [T * n[0], T * n[1]]
    assert layers["body.1.0.shortcut.0"].macs == T * 16 * 4 * 8 and layers["body.2.0.shortcut.0"].macs == T * 4 * 8 * 16
    # The last sum has one reader, in whose membranes it is formed.
    assert layers["body.3"].acs == 0 and all(layers[f"body.{i}.0.add"].acs == 0 for i in range(3))
    spikes = watched(model, X, T)[1]["body.3"][1].sum() / len(X)
    assert layers["pool"].acs == pytest.approx(float(spikes)) and layers["mean"].macs == CLASSES
    assert layers["mean"].updates == T * CLASSES and layers["linear"].additions == 0
    # The energy: no multiplication is taken for an accumulation.
    counted = count_operations(graph, [X], T)
    acs, macs = (sum(getattr(layer, kind) for layer in layers.values()) for kind in ("acs", "macs"))
    assert energy(counted).snn_float32.synapses * 1e12 == pytest.approx(0.9 * acs + 4.6 * macs)
    assert macs > layers["stem.0"].macs + sum(layers[f"body.{i}.0.shortcut.0"].macs for i in (1, 2))


def test_a_sum_of_spikes_costs_its_readers_alone():
    _, graph = trained("ds_resnet8")
    layers = {layer.name: layer for layer in count_operations(graph, [X], T).layers}
    for name in ("body.1.0.add", "body.2.0.add", "body.3.0.add"):
        assert (layers[name].acs, layers[name].macs, layers[name].additions) == (0, 0, 0)
    assert count_operations(graph, [X], T).most == 3


def test_the_dense_pass_is_labeled_so():
    """No source network: MACs of one dense pass, which does not depend on T, and no word of an ANN."""
    _, graph = trained("sew_resnet8")
    one, other = (count_operations(graph, [X], steps) for steps in (1, T))
    assert one.trained and one.total.ann.macs == other.total.ann.macs
    assert "dense MAC" in one.table() and "ANN" not in one.table() and "ANN" not in energy(one).table()
    assert one.to_dict()["trained"] is True and energy(one).to_dict()["trained"] is True


def test_a_max_pool_of_spikes_is_an_or():
    """SEW-ResNet's stem: each spike reaches the windows that hold it, and what they send on are spikes."""
    fire = Neuron(torch.tensor(1.0), reset="zero", amplitude=1.0, surrogate=Surrogate("arctan"))
    weight = torch.randint(-6, 9, (2, 3, 3, 3), generator=torch.Generator().manual_seed(1)) / 8
    nodes = (
        Node("input", Input(), ()),
        Node("conv", Conv2d(weight, None, padding=(1, 1)), ("input",)),
        Node("fire", fire, ("conv",)),
        Node("pool", MaxPool2d((3, 3), (2, 2), (1, 1)), ("fire",)),
        Node("deep", Conv2d(weight[:, :2].contiguous(), None, padding=(1, 1)), ("pool",)),
        Node("again", fire, ("deep",)),
        Node("flat", Flatten(), ("again",)),
        Node("fc", Linear(torch.ones(2, 2 * 16), None), ("flat",)),
        Node("mean", Readout(torch.ones(())), ("fc",)),
    )
    graph = Graph(nodes, Provenance(AppliedRecipe("trained", T))).validate()
    layers = {layer.name: layer for layer in count_operations(graph, [X], T).layers}
    current, v, spikes = F.conv2d(X, weight, padding=1), 0, []
    for _ in range(T):
        v = v + current
        spikes.append((v >= 1).float())
        v = v * (v < 1)
    fired = torch.cat(spikes)
    pooled = F.max_pool2d(fired, 3, 2, 1)
    windows = F.conv2d(fired.view(-1, 1, 8, 8), torch.ones(1, 1, 3, 3), None, 2, 1).sum()
    into = F.conv2d(pooled, torch.ones(2, 2, 3, 3), None, 1, 1).sum()
    assert layers["pool"].acs == pytest.approx(float(windows) / len(X)) and layers["pool"].macs == 0
    assert layers["pool"].spikes == pytest.approx(float(pooled.sum()) / len(X)) and layers["fire"].spikes > 0
    assert (layers["deep"].acs, layers["deep"].macs) == (pytest.approx(float(into) / len(X)), 0)


def test_a_sum_of_spikes_that_a_neuron_reads_is_added_by_it():
    """Two layers on the image, their spikes summed, a third on the sum: as many additions as spikes."""
    fire = Neuron(torch.tensor(0.5), reset="zero", decay=0.25, amplitude=1.0, surrogate=Surrogate("rectangle"))
    nodes = (
        Node("input", Input(), ()),
        Node("one", fire, ("input",)),
        Node(
            "other",
            Neuron(torch.tensor(0.75), reset="zero", amplitude=1.0, surrogate=Surrogate("rectangle")),
            ("input",),
        ),
        Node("sum", Add(), ("one", "other")),
        Node("last", fire, ("sum",)),
        Node("flat", Flatten(), ("last",)),
        Node("fc", Linear(torch.ones(2, 3 * SIZE * SIZE), None), ("flat",)),
        Node("mean", Readout(torch.ones(())), ("fc",)),
    )
    graph = Graph(nodes, Provenance(AppliedRecipe("trained", T))).validate()
    layers = {layer.name: layer for layer in count_operations(graph, [X], T).layers}
    spikes = layers["one"].spikes + layers["other"].spikes
    assert spikes > 0 and layers["last"].acs == pytest.approx(spikes) and layers["sum"].acs == 0
