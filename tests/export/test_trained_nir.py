"""NIR export of directly trained networks: the module's spikes from the file, and what NIR cannot say."""

import numpy as np
import pytest
import torch
from trained_networks import SIZE, T, dyadic, dyadic_images, trained, watched

from s_resnet.errors import ConversionError, InvalidArtifact
from s_resnet.export import export_nir, verify_export
from s_resnet.export.execute import read_nir

nir = pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 's-resnet[nir]'")

pytestmark = [
    pytest.mark.skipif("v_reset" not in nir.IF.__dataclass_fields__, reason="this nir cannot read a reset to zero"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SAID = ("ms_resnet8", "danet11", "sew_resnet8", "spiking_resnet8")  # those with one threshold
ENGINES = {"nir": "nir", "norse": "norse.torch", "sinabs": "sinabs.layers", "snntorch": "snntorch",
           "spikingjelly": "spikingjelly.activation_based.neuron"}  # fmt: skip


@pytest.mark.parametrize("arch", SAID)
def test_the_file_has_the_spikes_of_the_module(tmp_path, arch):
    model, graph = dyadic(arch)
    export_nir(graph, tmp_path / "x.nir")
    x = dyadic_images()
    logits, seen = watched(model, x, T)
    total = 0.0
    for step, (output, spikes) in enumerate(read_nir(tmp_path / "x.nir").run(x, T)):
        assert spikes.keys() == seen.keys()
        for name, (_, expected) in seen.items():
            assert torch.equal(spikes[name], expected[step]), (name, step)
        total = total + output.flatten(1)
    assert all(float(out.sum()) > 0 for _, out in seen.values())
    torch.testing.assert_close(total / T, logits)


@pytest.mark.parametrize("arch", ["ms_resnet8", "sew_resnet8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_engines_have_the_same_spikes(tmp_path, arch, engine):
    pytest.importorskip(ENGINES[engine], reason=f"{engine} is not installed", exc_type=ImportError)
    _, graph = dyadic(arch)
    export_nir(graph, tmp_path / "x.nir")
    found = verify_export(tmp_path / "x.nir", graph, dyadic_images(), T, engine)
    assert found.mismatches == 0 and found.spikes > 0 and found.same_answers == found.images


@pytest.mark.parametrize("arch", SAID)
def test_batch_normalization_is_folded(tmp_path, arch):
    _, graph = trained(arch)
    export_nir(graph, tmp_path / "x.nir", input_shape=(3, SIZE, SIZE))
    found = verify_export(tmp_path / "x.nir", graph, dyadic_images(), T, dtype="float64")
    assert found.mismatches == 0 and found.spikes > 0 and found.difference < 1e-5


def test_leaky_neurons_are_lif_nodes(tmp_path):
    """By NIR's own equation, with steps of dt = 1: v + dt / tau (v_leak - v + r I), here v / 4 + I."""
    _, graph = dyadic("ms_resnet8")
    export_nir(graph, tmp_path / "x.nir")
    nodes = nir.read(str(tmp_path / "x.nir")).nodes
    layers = [node for node in nodes.values() if isinstance(node, nir.LIF)]
    assert len(layers) == len(graph.neurons) and not any(isinstance(node, nir.IF) for node in nodes.values())
    for node in layers:
        v, current = np.float64(0.875), np.float64(0.3125)
        assert np.allclose(v + (node.v_leak - v + node.r * current) / node.tau, v / 4 + current, atol=1e-7)
        assert (node.v_threshold == 0.5).all() and (node.v_reset == 0).all() and node.metadata["decay"] == 0.25
    _, plain = dyadic("sew_resnet8")
    export_nir(plain, tmp_path / "y.nir")
    nodes = nir.read(str(tmp_path / "y.nir")).nodes
    assert {type(node).__name__ for node in nodes.values()} == {"Input", "Conv2d", "IF", "Output"}
    assert all((node.v_reset == 0).all() for node in nodes.values() if isinstance(node, nir.IF))


def test_sums_of_currents_are_edges(tmp_path):
    """A shortcut's convolution reads all that the sum before it adds up, as the neurons behind that sum do."""
    _, graph = dyadic("ms_resnet8")
    export_nir(graph, tmp_path / "x.nir")
    edges = set(nir.read(str(tmp_path / "x.nir")).edges)
    for reader in ("body_1_0_neuron1", "body_1_0_shortcut_0"):
        assert {before for before, after in edges if after == reader} == {"stem_0", "body_0_0_conv2"}


def test_what_nir_cannot_say_is_refused_by_its_node(tmp_path):
    for (_, graph), message in [
        (dyadic("ds_resnet8"), r"^body\.0: got a neuron with 3 firing levels; expected"),
        (trained("sew_resnet18", size=65), r"^(stem|body)\.\d: got a max-pool"),
    ]:
        with pytest.raises(ConversionError, match=message):
            export_nir(graph, tmp_path / "x.nir", input_shape=(3, SIZE, SIZE))
    assert list(tmp_path.iterdir()) == []


def test_another_lif_is_not_read(tmp_path):
    _, graph = dyadic("ms_resnet8")
    for name, value in (("tau", 2.0), ("r", 1.0), ("v_leak", 0.5)):
        export_nir(graph, tmp_path / "x.nir")
        with h5py.File(tmp_path / "x.nir", "r+") as file:
            file["node/nodes/body_3"][name][...] = value
        with pytest.raises(InvalidArtifact, match=r"body_3: got a LIF node of other tau, r or v_leak"):
            read_nir(tmp_path / "x.nir")
