"""NIR export: networks that the format cannot say, files that are none, and what people do wrong."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trained_networks
from conftest import randomized
from test_nir import ONE, SHAPE, T, block, changed, needs_resets, pictures, saved, swapped
from trained_networks import SIZE, trained

from s_resnet import Graph, SResNetError, convert
from s_resnet.errors import BackendUnavailable, ConversionError, InvalidArtifact, InvalidData
from s_resnet.export import export_nir, verify_export
from s_resnet.export.execute import read_nir
from s_resnet.export.lower import lower
from s_resnet.graph.alphabet import Amplitudes, Differential, Signed
from s_resnet.graph.neuron import IntegerNeuron, Neuron
from s_resnet.graph.ops import (
    AvgPool2d,
    Node,
    ReLU,
    Slice,
)
from s_resnet.graph.provenance import Provenance
from s_resnet.graph.readout import Readout, SpikingMaxPool2d
from s_resnet.models import CifarResNet

nir = pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 's-resnet[nir]'")

# ---- what is refused


REFUSED = {
    "lagged": (lambda: changed("b", schedule="lagged"), r"^b: got a neuron with schedule 'lagged'"),
    "phased": (lambda: changed("b", schedule="phased"), r"^b: got a neuron with schedule 'phased'"),
    "signed": (lambda: changed("z", spikes=Signed()), r"^z: got a neuron with signed spikes"),
    "levels": (lambda: changed("z", spikes=Amplitudes(4)), r"^z: got a neuron with 4-level spikes"),
    "differential": (lambda: changed("z", spikes=Differential()), r"^z: got a neuron with differential spikes"),
    "decay": (lambda: changed("a", decay=0.5), r"^a: got a neuron with decay 0.5"),
    "threshold": (lambda: changed("a", threshold=ONE * 2), r"^a: got a neuron with threshold 2"),
    "time-indexed": (lambda: changed("b", correction=torch.ones(T, 4)), r"^b: got a neuron with a correction for ev"),
    "readout weights": (lambda: changed("readout", weights=torch.ones(T)), r"^readout: got a weight for every step"),
    "integer": (lambda: changed("a", integer=IntegerNeuron(torch.ones(4).int())), r"^export: got an integer network"),
    "relu": (lambda: swapped("s", ReLU()), r"^s: got ReLU"),
    "ceil pool": (lambda: swapped("s", AvgPool2d((4, 4), (4, 4), ceil_mode=True)), r"^s: got AvgPool2d, which is not"),
    "border pool": (
        lambda: swapped("s", AvgPool2d((3, 3), (1, 1), (1, 1), count_include_pad=False)), r"^s: got AvgPool2d",
    ),
    "shifted": (
        lambda: swapped("s", Slice(((None, None, None), (1, None, 2), (1, None, 2)))), r"^s: got Slice",
    ),
    "twice": (lambda: swapped("z", Neuron(ONE), ("c2", "c2")), r"^z: got 'c2' twice"),
    "no classifier": (lambda: swapped("readout", Readout(ONE), ("flat",)), r"^readout: got the answer of Flatten"),
    "resets": (lambda: changed("b", reset="zero"), r"^export: got neurons of both resets"),
    "analog": (lambda: Graph(block("scaled").nodes[:2]), r"^export: got a network without neurons"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_format_cannot_say_is_refused_by_its_node(tmp_path, case):
    make, message = REFUSED[case]
    path = tmp_path / "x.nir"
    path.write_text("an older file")
    with pytest.raises(SResNetError, match=message) as told:
        export_nir(make(), path, input_shape=SHAPE)
    assert "\n" not in str(told.value) and "; expected " in str(told.value)
    assert path.read_text() == "an older file" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("recipe", ["calibrated", "calibrated-lagged", "phased", "signed", "multilevel"])
def test_recipes_for_few_steps_are_refused(tmp_path, recipe):
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    snn = convert(randomized(CifarResNet(8, width=4)), [x], recipe, timesteps=4)
    with pytest.raises(ConversionError, match=r"^(layer1\.0\.)?relu: got a neuron with (a cor|schedule|signed)"):
        export_nir(snn, tmp_path / "x.nir")


def test_gates_deeper_in_are_refused():
    snn = block("scaled")
    gate = Node("gate", SpikingMaxPool2d((2, 2), (2, 2)), ("z",))
    snn = replace(snn, nodes=(*snn.nodes[:-4], gate, replace(snn["pool"], inputs=("gate",)), *snn.nodes[-3:]))
    with pytest.raises(ConversionError, match=r"^gate: got a max-pool"):
        lower(snn.validate(), SHAPE)


def test_trained_networks_that_the_format_cannot_say(tmp_path):
    for (_, graph), message in [
        (trained_networks.dyadic("ds_resnet8"), r"^body\.0: got a neuron with 3 firing levels; expected"),
        (trained("sew_resnet18", size=65), r"^(stem|body)\.\d: got a max-pool"),
    ]:
        with pytest.raises(ConversionError, match=message):
            export_nir(graph, tmp_path / "x.nir", input_shape=(3, SIZE, SIZE))
    assert list(tmp_path.iterdir()) == []


# ---- what people do wrong


def test_a_network_that_does_not_say_its_images(tmp_path):
    snn = replace(block("scaled"), provenance=Provenance())
    with pytest.raises(InvalidData, match="input_shape"):
        export_nir(snn, tmp_path / "x.nir")
    export_nir(snn, tmp_path / "x.nir", input_shape=SHAPE)
    with pytest.raises(InvalidData, match="5 channels for a convolution of 2"):
        export_nir(snn, tmp_path / "x.nir", input_shape=(5, 6, 6))


def test_a_place_that_cannot_be_written(tmp_path):
    for path in (tmp_path / "nowhere" / "x.nir", tmp_path):
        with pytest.raises(SResNetError, match="cannot be written"):
            export_nir(block("scaled"), path)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.nir"
    with pytest.raises(InvalidArtifact, match=r"x\.nir: cannot be read"):
        read_nir(path)
    path.write_text("not HDF5")
    with pytest.raises(InvalidArtifact, match=r"x\.nir: cannot be read"):
        read_nir(path)
    whole = saved(tmp_path, block("scaled")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidArtifact, match=r"x\.nir: cannot be read"):
        read_nir(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(InvalidArtifact, match=r"x\.nir: cannot be read"):
        read_nir(path)


def test_graphs_of_others_are_refused_by_node(tmp_path):
    path = str(tmp_path / "x.nir")
    ends = {"i": nir.Input(input_type={"input": np.array([2])}), "o": nir.Output(output_type={"output": np.array([2])})}
    nir.write(path, nir.NIRGraph({**ends, "w": nir.Linear(np.eye(2))}, [("i", "w"), ("w", "o")]))
    with pytest.raises(InvalidArtifact, match="w: got a Linear node"):
        read_nir(path)
    saved(tmp_path, block("scaled"))
    with h5py.File(tmp_path / "network.nir", "r+") as file:
        edges = [tuple(edge) for edge in file["node/edges"][()]]
        del file["node/edges"]
        file["node/edges"] = [*edges, (b"z", b"c1")]
    with pytest.raises(InvalidArtifact):
        read_nir(tmp_path / "network.nir")


def test_settings_and_images_that_do_not_fit(tmp_path):
    snn = block("scaled")
    path = saved(tmp_path, snn)
    for given, message in (
        ({"engine": "brian"}, "engine 'brian'"),
        ({"timesteps": 0}, "timesteps=0"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"images": pictures()[:, :, :5]}, r"\(3, 2, 5, 6\)"),
        ({"images": pictures()[0]}, r"\(2, 6, 6\)"),
    ):
        with pytest.raises(InvalidData, match=message):
            verify_export(**{"path": path, "snn": snn, "images": pictures(), "timesteps": T, **given})
    snn, nodes = block("scaled"), []
    for node in snn.nodes:
        nodes.append(Node(node.name.replace("b", "d"), node.op, tuple(n.replace("b", "d") for n in node.inputs)))
    with pytest.raises(InvalidData, match="no layer 'd'"):
        verify_export(path, replace(snn, nodes=tuple(nodes)), pictures(), T)


def test_without_nir_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: export_nir(block("scaled"), tmp_path / "x.nir"), lambda: read_nir(tmp_path / "x.nir")):
        with pytest.raises(BackendUnavailable, match=r"^nir: .*pip install nir\.$"):
            call()


@needs_resets
def test_another_lif_is_not_read(tmp_path):
    _, graph = trained_networks.dyadic("ms_resnet8")
    for name, value in (("tau", 2.0), ("r", 1.0), ("v_leak", 0.5)):
        export_nir(graph, tmp_path / "x.nir")
        with h5py.File(tmp_path / "x.nir", "r+") as file:
            file["node/nodes/body_3"][name][...] = value
        with pytest.raises(InvalidArtifact, match=r"body_3: got a LIF node of other tau, r or v_leak"):
            read_nir(tmp_path / "x.nir")
