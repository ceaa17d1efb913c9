"""The .npz export: the numpy simulator of its documentation, run as it stands there, against ours, spike for spike."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import images, randomized
from test_features import ALPHABETS
from test_program import X, tiny
from test_schedules import PLANS, network, pictures, recorded
from trained_networks import FAMILIES, T, dyadic, dyadic_images, trained, watched

from s_resnet import RECIPES, Graph, SResNetError, convert, simulate
from s_resnet.conversion import Context, passes
from s_resnet.errors import InvalidData
from s_resnet.export import arrays, export_npz
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.ops import Conv2d, Input, SpikingWeights
from s_resnet.models import CifarResNet

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "npz.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def documented():
    """The names that the page's first block of code defines; it imports numpy and nothing of ours."""
    assert "s_resnet" not in BLOCKS[0] and "torch" not in BLOCKS[0]
    names = {}
    exec(compile(BLOCKS[0], "npz.md", "exec"), names)
    return names


def compared(monkeypatch, tmp_path, documented, graph, x, steps):
    """Spikes that differ, all spikes, and the largest difference of an answer."""
    export_npz(graph, tmp_path / "network.npz")
    logits, spikes = documented["simulate"](tmp_path / "network.npz", x.numpy(), steps)
    ours, _ = recorded(monkeypatch, graph, x, steps)
    assert list(spikes) == [node.name for node in graph.neurons] == list(ours)
    differ = sum(int((spikes[name] != sent.double().numpy()).sum()) for name, sent in ours.items())
    answer = simulate(graph, x, steps).outputs[-1].numpy()
    return differ, sum(sent.size for sent in spikes.values()), float(np.abs(logits - answer).max())


@pytest.mark.parametrize("steps", [1, 5, 7])
@pytest.mark.parametrize("name", PLANS)
def test_the_documented_simulator_gives_the_same_spikes(monkeypatch, tmp_path, documented, name, steps):
    graph = network(PLANS[name], weighed=steps == 5)
    differ, of, apart = compared(monkeypatch, tmp_path, documented, graph, pictures(), steps)
    assert differ == 0 and of > 1000 and apart < 1e-5


@pytest.mark.parametrize("name", ALPHABETS)
def test_and_for_every_alphabet_reset_and_readout(monkeypatch, tmp_path, documented, name):
    graph = ALPHABETS[name]
    if name == "differential":  # thirds: the emissions are sums that are rounded
        export_npz(graph, tmp_path / "network.npz")
        logits, _ = documented["simulate"](tmp_path / "network.npz", X.numpy(), 4)
        assert np.allclose(logits, simulate(graph, X, 4).outputs[-1].numpy(), atol=1e-5)
        return
    differ, of, apart = compared(monkeypatch, tmp_path, documented, graph, X, 4)
    assert differ == 0 and of > 1000 and apart < 1e-5


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_documented_simulator_has_the_spikes_of_a_trained_module(tmp_path, documented, arch):
    (model, graph), x = dyadic(arch), dyadic_images()
    export_npz(graph, tmp_path / "x.npz")
    logits, spikes = documented["simulate"](tmp_path / "x.npz", x.numpy(), T)
    expected, seen = watched(model, x, T)
    assert spikes.keys() == seen.keys()
    for name, (_, out) in seen.items():
        assert np.array_equal(spikes[name], out.numpy()) and out.sum() > 0, name
    assert np.allclose(logits, expected.numpy(), atol=1e-6)
    most = max(float(out.max()) for _, out in seen.values())
    assert most == (3 if arch.startswith("ds") else 1)


@pytest.fixture(scope="module")
def integers():
    model = randomized(CifarResNet(8, width=4, shortcut="A"))
    batches = [(images(20, 8), torch.arange(20) % 10)]
    return convert(model, batches, RECIPES["calibrated-lagged"].at(4).with_weights("int8"))


def test_an_integer_network_spike_for_spike(monkeypatch, tmp_path, documented, integers):
    differ, of, apart = compared(monkeypatch, tmp_path, documented, integers, images(3, 8, seed=5), 6)
    assert differ == 0 and of > 1000 and apart < 1e-5


def test_whole_numbers_are_stored_as_such(tmp_path, integers):
    export_npz(integers, tmp_path / "network.npz")
    with np.load(tmp_path / "network.npz", allow_pickle=False) as file:
        graph = json.loads(bytes(file["graph"]))
        kinds = {}
        for node in graph["nodes"]:
            assert node["shape"] and all((f"{node['name']}/{field}") in file for field in node["arrays"])
            for field in node["arrays"]:
                kinds.setdefault((node["op"], field), set()).add(str(file[f"{node['name']}/{field}"].dtype))
    assert graph["format"] == 1 and graph["integer"] and graph["reach"] > 0 and graph["input_shape"] == [3, 8, 8]
    assert graph["provenance"]["recipe"] and graph["semantics"]["Neuron"]
    assert kinds[("Conv2d", "weight")] == kinds[("Linear", "weight")] == {"int8"}
    whole = [
        ("Conv2d", "bias"),
        ("Scale", "weight"),
        ("Neuron", "threshold"),
        ("Neuron", "v0"),
        ("Neuron", "correction"),
    ]
    assert all(kinds[key] == {"int32"} for key in whole)
    assert kinds[("Linear", "bias")] == {"float32"}


def test_what_spiking_runs_multiply_with_is_what_is_written(tmp_path):
    """The compensation is in the weight, once; the source's own weight is not there."""
    graph = tiny()
    weight = graph["conv"].op.weight
    fitted = replace(graph["conv"], op=replace(graph["conv"].op, spiking=SpikingWeights(weight + 1, 1.25)))
    graph = replace(graph, nodes=tuple(fitted if node.name == "conv" else node for node in graph.nodes))
    export_npz(graph, tmp_path / "network.npz")
    with np.load(tmp_path / "network.npz") as file:
        assert np.array_equal(file["conv/weight"], (1.25 * (weight + 1)).numpy())
        assert np.array_equal(file["conv/bias"], graph["conv"].op.bias.numpy())
        assert not [name for name in file.files if "spiking" in name]


def test_the_page_names_every_operation_and_field(tmp_path, integers):
    for graph in (integers, network(PLANS["mixed"], weighed=True)):
        export_npz(graph, tmp_path / "network.npz")
        with np.load(tmp_path / "network.npz") as file:
            header = json.loads(bytes(file["graph"]))
        words = {word for node in header["nodes"] for word in (*node, *node["settings"], *node["arrays"])} | set(header)
        assert not [word for word in words if f"`{word}`" not in PAGE]
    assert not [kind.__name__ for kind in arrays._ENTRIES if f"`{kind.__name__}`" not in PAGE]


def test_format_and_fields_of_trained_networks(tmp_path):
    """Format 2 where there are several levels; batch normalization as it is, or folded; each word on the page."""
    for arch, format in (("ds_resnet8", 2), ("ms_resnet8", 1)):
        _, graph = trained(arch)
        export_npz(graph, tmp_path / "traced.npz")
        export_npz(passes.fold_batchnorm(graph, Context()), tmp_path / "x.npz")
        for name in ("traced", "x"):
            with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as file:
                header = json.loads(bytes(file["graph"]))
                node = graph.neurons[0].name
                assert (file[f"{node}/emission"] == 1).all() and header["format"] == format
                assert (f"{node}/firing" in file) == (format == 2)
            words = {word for node in header["nodes"] for word in (*node, *node["settings"], *node["arrays"])}
            assert not [word for word in words if f"`{word}`" not in PAGE]


def test_refusals(tmp_path):
    analog = Graph((Node("input", Input(), ()), Node("readout", Readout(torch.ones(())), ("input",))))
    with pytest.raises(InvalidData, match=r"without neurons.*Call convert"):
        export_npz(analog, tmp_path / "network.npz")
    double = Conv2d(torch.ones(2, 3, 1, 1, dtype=torch.float64), None)
    nodes = (analog.nodes[0], Node("stem", double, ("input",)), Node("n", Neuron(torch.ones(())), ("stem",)))
    with pytest.raises(InvalidData, match="stem: got a network in float64; expected float32"):
        export_npz(Graph(nodes), tmp_path / "network.npz")
    with pytest.raises(SResNetError, match="cannot be written"):
        export_npz(tiny(), tmp_path / "nowhere" / "network.npz")
    assert not list(tmp_path.iterdir())
