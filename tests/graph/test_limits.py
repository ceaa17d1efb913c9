"""ReLUs and neurons with a limit: what they compute, what is written, and what is refused."""

from dataclasses import replace

import mutations
import pytest
import torch
import torch.nn.functional as F
from conftest import images

import s_resnet
from s_resnet import Graph
from s_resnet.errors import InvalidArtifact, InvalidData
from s_resnet.graph import Neuron, Node, Readout, ops
from s_resnet.graph.alphabet import Amplitudes, Differential, Surrogate
from s_resnet.graph.neuron import IntegerNeuron
from s_resnet.graph.shapes import shapes

EACH = torch.tensor([0.5, 1.0, 2.0, 4.0])


def network(limit, threshold, **settings):
    """A convolution, a ReLU or neurons with a limit, and a classifier."""
    generator = torch.Generator().manual_seed(3)
    conv = ops.Conv2d(torch.randint(-32, 33, (4, 3, 1, 1), generator=generator) / 8, None)
    fc = ops.Linear(torch.randint(-8, 9, (2, 4), generator=generator) / 8, None)
    act = ops.ReLU(limit) if threshold is None else Neuron(threshold, limit=limit, **settings)
    nodes = (
        Node("input", ops.Input(), ()),
        Node("conv", conv, ("input",)),
        Node("act", act, ("conv",)),
        Node("avg", ops.AdaptiveAvgPool2d((1, 1)), ("act",)),
        Node("flat", ops.Flatten(), ("avg",)),
        Node("fc", fc, ("flat",)),
    )
    return Graph(nodes if threshold is None else (*nodes, Node("readout", Readout(torch.ones(())), ("fc",))))


@pytest.mark.parametrize("limit", [torch.tensor(6.0), EACH], ids=["one", "per channel"])
def test_the_analog_meaning_is_a_clamp(limit):
    x = (torch.arange(-200, 200) / 16).view(5, 4, 4, 5)
    a = limit if limit.ndim == 0 else limit.view(4, 1, 1)
    expected = x.clamp(torch.zeros(()), a)
    assert torch.equal(ops.ReLU(limit).run(x), expected) and int((x > a).sum()) > 50
    assert torch.equal(Neuron(limit / 2, limit=limit).run(x - 1, torch.ones_like(x)), expected)
    assert torch.equal(ops.ReLU().run(x), F.relu(x)) and torch.equal(Neuron(limit).run(x), F.relu(x))


def test_features_have_limits_too():
    x = torch.linspace(-9, 9, 40).view(10, 4)
    assert torch.equal(ops.ReLU(EACH).run(x), x.clamp(torch.zeros(()), EACH))


@pytest.mark.parametrize("limit", [torch.tensor(1.5), EACH], ids=["one", "per channel"])
@pytest.mark.parametrize("threshold", [None, EACH / 2], ids=["ReLU", "neurons"])
def test_a_file_keeps_it(tmp_path, limit, threshold):
    graph, x = network(limit.clamp(max=0.5) if threshold is None else EACH, threshold), images(3, 4)
    s_resnet.save(graph, tmp_path / "a.snn")
    loaded = s_resnet.load(tmp_path / "a.snn")
    assert torch.equal(loaded["act"].op.limit, graph["act"].op.limit) and torch.equal(loaded.run(x), graph.run(x))
    assert not torch.equal(graph.run(x), replace(network(None, threshold)).run(x))


def test_it_follows_the_network_to_another_type():
    assert network(EACH, EACH).to(torch.float64)["act"].op.limit.dtype == torch.float64
    assert network(EACH, EACH / 15, spikes=Amplitudes(4)).to(torch.bfloat16).run(images().bfloat16()).isfinite().all()


def test_tables_name_it_in_the_units_of_the_source():
    assert "ReLU (limit 0.5 ... 4)" in str(network(EACH, None).table())
    assert "ReLUs clipped at 0.5 ... 4" in str(network(EACH, None))
    scaled = network(torch.ones(()), torch.ones(()), scale=torch.tensor(6.0))
    assert "Neuron (limit 6)" in str(scaled.table()) and "ReLUs clipped at 6\n" in str(scaled)
    assert "limit" not in str(network(None, torch.ones(())).table())


@pytest.mark.parametrize("whole", [None, IntegerNeuron(torch.full((4,), 8, dtype=torch.int32))])
def test_what_runs_has_thresholds_and_no_limit(whole):
    graph = network(torch.ones(()), torch.ones(()), integer=whole)
    assert graph.running()["act"].op.limit is None and graph["act"].op.limit is not None


# ---- what is no limit ----

WRONG = {
    "zero": (torch.zeros(()), None),
    "negative": (-EACH, None),
    "infinite": (torch.tensor(torch.inf), None),
    "no number": (EACH * torch.nan, None),
    "too many dimensions": (torch.ones(4, 1), None),
    "whole numbers": (torch.ones(4, dtype=torch.int32), None),
    "channels that are not there": (torch.ones(3), None),
    "of neurons: channels that are not there": (torch.ones(3), torch.ones(())),
    "of neurons: not those of the threshold": (torch.ones(3), torch.ones(4)),
    "of neurons: below the threshold": (EACH, torch.tensor(0.75)),
    "of neurons: zero": (torch.zeros(4), EACH),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_limit_is_not_saved_and_not_loaded(tmp_path, name):
    limit, threshold = WRONG[name]
    with pytest.raises(InvalidData, match="act"):
        s_resnet.save(network(limit, threshold), tmp_path / "a.snn")
    s_resnet.save(network(EACH, None if threshold is None else EACH), tmp_path / "a.snn")
    header, tensors = mutations.unsealed((tmp_path / "a.snn").read_bytes())
    tensors["act/limit"] = limit
    tensors |= {} if threshold is None else {"act/threshold": threshold}
    (tmp_path / "a.snn").write_bytes(mutations.sealed(header, tensors))
    with pytest.raises(InvalidArtifact, match=r"damaged or edited.*act"):
        s_resnet.load(tmp_path / "a.snn")


@pytest.mark.parametrize(("spikes", "amplitude"), [(Amplitudes(4), None), (Amplitudes(4, True), None), (None, -3.0)])
def test_no_step_may_send_more_than_the_limit(tmp_path, spikes, amplitude):
    """15 thresholds a step, or an amplitude of its own."""
    settings = {"amplitude": amplitude} if spikes is None else {"spikes": spikes}
    s_resnet.save(network(torch.tensor(3.0), torch.tensor(0.2), **settings), tmp_path / "a.snn")
    with pytest.raises(InvalidData, match=r"act: limit, got 2\.5; expected at least 3, which a step sends"):
        s_resnet.save(network(torch.tensor(2.5), torch.tensor(0.2), **settings), tmp_path / "b.snn")


OWN = {
    "means": {"spikes": Differential(2)},
    "a trained gradient": {"surrogate": Surrogate("arctan")},
    "levels of quantization": {"quantization_levels": 4},
}


@pytest.mark.parametrize("name", OWN)
def test_neurons_without_an_upper_end_or_with_their_own_have_none(name):
    with pytest.raises(InvalidData, match=r"neuron: limit, got one for a neuron that"):
        Neuron(torch.ones(()), limit=torch.ones(()), **OWN[name])


def test_a_limit_is_a_tensor():
    with pytest.raises(InvalidData, match=r"neuron: limit, got 6\.0; expected a tensor"):
        Neuron(torch.ones(()), limit=6.0)


def test_shapes_are_those_of_the_channels():
    nodes = network(torch.ones(3), None).nodes
    with pytest.raises(InvalidData, match=r"act: got limit \[3\] for 4 channels"):
        shapes(nodes, (3, 4, 4))


@pytest.mark.parametrize("form", ["setting", "tensor"])
def test_a_file_of_an_earlier_format_has_none(tmp_path, form):
    path = tmp_path / "a.snn"
    s_resnet.save(network(None, EACH), path)
    header, tensors = mutations.unsealed(path.read_bytes())
    header["format"] = 6
    for node in header["nodes"]:
        node["settings"].pop("limit", None)
    path.write_bytes(mutations.sealed(header, tensors))
    assert s_resnet.load(path)["act"].op.limit is None
    if form == "tensor":
        tensors["act/limit"] = EACH
    else:
        header["nodes"][2]["settings"]["limit"] = None
    path.write_bytes(mutations.sealed(header, tensors))
    with pytest.raises(InvalidArtifact, match=r"act: limit, got a limit, of a later format"):
        s_resnet.load(path)
