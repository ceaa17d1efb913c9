"""Operations and traffic that a pencil can follow: constants, readouts, pools, sums, and an MS-ResNet node by node."""

import pytest
import torch
import torch.nn.functional as F
from test_operations import BODIES, T, X, dyadic, grid, network, reached, same
from trained_networks import CLASSES, SIZE, trained, watched

from s_resnet import Graph
from s_resnet.analysis import count_operations, energy
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.alphabet import Signed, Surrogate
from s_resnet.graph.ops import (
    Add,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
)
from s_resnet.graph.provenance import AppliedRecipe, Provenance

# ---- what no spike drives, by hand: 4 neurons of 5 x 6 pixels, 4 channels ----

PIXELS = 5 * 6
N = 4 * PIXELS


def test_constants_are_added_once_for_each_neuron_and_step():
    biased = Conv2d(dyadic(4, 4, 4, 3, 3), dyadic(5, 4), padding=(1, 1))
    pointwise = Conv2d(dyadic(6, 4, 4, 1, 1), dyadic(7, 4))
    plain = Conv2d(dyadic(6, 4, 4, 1, 1), torch.zeros(4))
    graph = network(
        ("c", biased, "n0"),
        ("p", pointwise, "n0"),
        ("n1", "neuron", "c p"),  # two biases, one addition
        ("q", plain, "n1"),
        ("n2", "neuron", "q n1"),  # none
        ("r", biased, "n2"),
        ("a", Add(), "r n2"),  # the bias is added before: the sum has two readers
        ("n3", "neuron", "a"),
        ("n4", "neuron", "a n3"),
    )
    layers = {layer.name: layer for layer in same(graph, [grid()]).layers}
    additions = {name: layer.additions for name, layer in layers.items() if layer.additions}
    assert additions == {"stem": N, "n0": T * N, "n1": T * N, "r": T * N, "out": T * 3}
    corrected = Graph(
        tuple(
            Node(n.name, Neuron(torch.ones(()), 0.5, correction=torch.full((T, 4), 0.125)), n.inputs)
            if n.name == "n2"
            else n
            for n in graph.nodes
        )
    )
    assert {layer.name: layer.additions for layer in same(corrected, [grid()]).layers}["n2"] == T * N
    # Of the source network: biases, residual sums and ReLUs.
    ann = {name: layer.ann.additions for name, layer in layers.items() if layer.ann.additions}
    assert ann == {
        **dict.fromkeys(("stem", "c", "p", "r", "a", "n0", "n3", "mean"), N),
        **dict.fromkeys(("n1", "n2", "n4"), 2 * N),
        "fc": 3,
    }


def test_the_readout_and_decay():
    weights = torch.tensor([1.0, 2, 3, 4])
    graph = network(decay=0.5)
    last = Readout(torch.ones(()), weights=weights, correction=torch.ones(3))
    graph = Graph((*graph.nodes[:-1], Node("out", last, ("fc",))))
    layers = {layer.name: layer for layer in count_operations(graph, [grid()], T).layers}
    assert (layers["out"].macs, layers["out"].updates, layers["out"].additions) == (3 + 3 * T, 3 * T, 3 * T + 3)
    assert layers["n0"].macs == 0  # halving is a shift
    leaking = count_operations(network(decay=0.75), [grid()], T).layers
    assert [layer.macs for layer in leaking if layer.name == "n0"] == [T * N]
    assert layers["fc"].ann.macs == layers["fc"].ann.dense_macs == 12 and layers["fc"].parameters == 15


def test_a_stem_with_a_pool_is_computed_once():
    nodes = (
        Node("x", Input(), ()),
        Node("stem", Conv2d(dyadic(1, 4, 2, 3, 3), dyadic(2, 4), padding=(1, 1)), ("x",)),
        Node("pool", MaxPool2d((3, 3), (2, 2), (1, 1)), ("stem",)),
        Node("n0", Neuron(torch.ones(()), 0.5), ("pool",)),
        Node("flat", Flatten(), ("n0",)),
        Node("fc", Linear(dyadic(3, 3, 36), None), ("flat",)),
        Node("out", Readout(torch.ones(())), ("fc",)),
    )
    graph = Graph(nodes)
    layers = {layer.name: layer for layer in same(graph, [grid()]).layers}
    inside = 4 * sum(reached(graph["pool"].op, (1, 5, 6), (1, 3, 3)).values())
    macs = sum(reached(graph["stem"].op, (2, 5, 6), (4, 5, 6)).values())
    assert layers["stem"].macs == layers["stem"].ann.macs == macs < layers["stem"].ann.dense_macs == N * 18
    assert (layers["pool"].additions, layers["pool"].acs, layers["pool"].ann.additions) == (inside, 0, inside)
    assert layers["n0"].additions == T * 36 and layers["fc"].acs == 3 * layers["n0"].spikes
    many = count_operations(graph, [grid()], 2 * T)
    assert many.layers[0].macs == macs and many.layers[1].additions == inside
    poisson = {layer.name: layer for layer in count_operations(graph, [grid()], T, coding="poisson").layers}
    assert poisson["pool"].additions == T * inside
    assert (poisson["stem"].additions, poisson["n0"].additions) == (T * N, 0)  # the bias is added before the pool


def test_traffic_by_hand():
    graph = network(*BODIES["shortcut"], spikes=Signed())
    operations = count_operations(graph, [grid(1)], T)
    layers = {layer.name: layer for layer in operations.layers}
    n0, n1, c, s = (layers[name] for name in ("n0", "n1", "c", "s"))
    assert n0.spikes and n1.spikes
    # 120 neurons take 7 bits, and the sign one.
    assert n0.traffic.spike_bits_written == 8 * n0.spikes
    assert c.traffic.spike_bits_read == s.traffic.spike_bits_read == 8 * n0.spikes
    for layer in (c, s):
        moved = layer.traffic
        assert moved.weight_reads == moved.sum_reads == moved.sum_writes == layer.acs
        assert moved.state_reads == moved.value_reads == 0
    # Two words each: the membrane, and what it has emitted. The stem's current is read at every step.
    assert n1.traffic.state_reads == n1.traffic.state_writes == 2 * T * N and n1.state == 2 * N
    assert n0.traffic.value_reads == T * N and n1.traffic.value_reads == 0
    stem = layers["stem"]
    assert stem.traffic.weight_reads == stem.traffic.value_reads == stem.macs and stem.traffic.value_writes == N
    # The ANN: the stem's ReLU writes its values, the sum reads them again beside what c adds up in place.
    assert (stem.ann.value_writes, n0.ann.value_writes, n1.ann.value_reads) == (0, N, 0)
    assert layers["c"].ann.value_reads == c.ann.macs and s.ann.macs == 0 and s.ann.value_writes == 0
    moved = operations.total.traffic
    assert operations.bytes["weights_read"] == 4 * moved.weight_reads
    assert operations.bytes["spikes_read"] == moved.spike_bits_read / 8


# ---- directly trained networks ----


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
