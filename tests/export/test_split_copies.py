"""Several plain neurons in place of one: together they send what it sends, by hand, as a network and in its files."""

import json
from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from conftest import images, narrow_resnet18, randomized

from s_resnet import RECIPES, convert, evaluate, load, save
from s_resnet.errors import ConversionError
from s_resnet.export import export_nir, export_npz, split_copies, verify_export
from s_resnet.graph import Copies, Neuron, StreamSettings
from s_resnet.graph.execution import FASTEST
from s_resnet.models import CifarResNet

T, SIZE = 6, 8
DELAYS = {"streaming": 0, "lagged": 1, "phased": T}


def plain(current, threshold, start, delay):
    """One neuron of spikes of 0 and 1 by hand: its spike at each step."""
    v, sent = start, []
    for now in range(len(current) + delay):
        v += current[now] if now < len(current) else 0
        if now >= delay:
            sent.append(int(v >= threshold))
            v -= threshold * sent[-1]
    return sent


@pytest.mark.parametrize("count", [3, 7])
@pytest.mark.parametrize("schedule", DELAYS)
def test_n_plain_neurons_send_together_what_the_layer_sends(schedule, count):
    generator = torch.Generator().manual_seed(count)
    currents = torch.randint(-2 * 8 * count, 3 * 8 * count, (T, 1, 300), generator=generator) / 8
    op = Neuron(torch.ones(()), 0.5, schedule=schedule, spikes=Copies(count))
    counts = torch.zeros(T, 1, dtype=torch.int32)
    got, _ = op.advance([currents], None, how=replace(FASTEST, counts=counts))
    for place in range(currents.shape[2]):
        current = [Fraction(float(value)) for value in currents[:, 0, place]]
        sent = [plain(current, count, Fraction(2 * i + 1, 2), DELAYS[schedule]) for i in range(count)]
        assert got[:, 0, place].tolist() == [sum(step) for step in zip(*sent, strict=True)]
    assert {0, 1, 2, count} <= set(got.unique().tolist())
    assert torch.equal(counts[:, 0], got.sum((1, 2)).to(torch.int32))  # three spikes are three, not two amplitudes


def test_constant_currents_are_counted_as_the_identity_of_hermite_says():
    for x in (Fraction(k, 32) for k in range(33)):  # of the threshold of a plain neuron, per step
        for count in (3, 7):
            charge = torch.full((T, 1, 1), float(x * count))
            spikes, _ = Neuron(torch.ones(()), 0.5, spikes=Copies(count)).advance([charge], None)
            each = [floor(T * x + Fraction(2 * i + 1, 2 * count)) for i in range(count)]
            assert int(spikes.sum()) == sum(each) == floor(count * T * x + Fraction(1, 2))


def converted(model, recipe, size=SIZE):
    return convert(model, [images(16, size, seed=2)], RECIPES[recipe].at(T).with_weights("dyadic"))


def streamed(snn, x):
    """Answers of all steps, and every value that is computed."""
    values = {}
    (part,) = snn.stream(x, T, T, settings=StreamSettings(observe=values.__setitem__))
    return part, values


@pytest.mark.parametrize("model", ["channels of zeros", "projections"])
def test_the_network_of_all_plain_neurons_answers_the_same_bit_for_bit(model):
    if model == "channels of zeros":
        snn, x = converted(randomized(CifarResNet(8, width=4)), "calibrated-fission"), images(3, SIZE, seed=5)
    else:
        snn, x = converted(narrow_resnet18(5), "calibrated-fission", 32), images(2, 32, seed=5)
    assert snn.copies == 3 and snn.alphabet == "binary, 3 neurons for each"
    expanded = split_copies(snn)
    assert expanded.alphabet == "binary" and len(expanded.neurons) == 3 * len(snn.neurons)
    (compact, sent), (whole, each) = streamed(snn, x), streamed(expanded, x)
    assert torch.equal(compact.outputs, whole.outputs)
    for node in snn.neurons:
        names = [f"{node.name}.copy{i}" for i in (1, 2, 3)]
        own = [each[name].float() for name in names]
        assert all(set(spikes.unique().tolist()) <= {0.0, 1.0} for spikes in own)
        assert torch.equal(sum(own), sent[node.name].float())
        assert torch.equal(sum(whole.spikes[name] for name in names), compact.spikes[node.name])
    assert split_copies(expanded) is expanded


def test_figures_say_how_many_there_are_and_count_all_of_them(tmp_path):
    snn = converted(randomized(CifarResNet(8, width=4)), "calibrated-fission")
    save(snn, tmp_path / "a.snn")
    snn, batches = load(tmp_path / "a.snn"), [(images(4, SIZE, seed=5), torch.arange(4))]
    report, whole = (evaluate(graph, batches, timesteps=T) for graph in (snn, split_copies(snn)))
    assert report.snn[-1].spikes_per_neuron == whole.snn[-1].spikes_per_neuron <= T
    assert (report.to_dict()["copies"], report.to_dict()["alphabet"]) == (3, "binary, 3 neurons for each")
    assert "copies" not in whole.to_dict() and "alphabet" not in whole.to_dict()
    assert "spikes: binary, 3 neurons for each" in report.table()
    assert "3 neurons for each" in str(snn) and "Neuron (3 neurons for each)" in snn.table()


def test_files_hold_every_plain_neuron(tmp_path):
    recipe = RECIPES["calibrated-constant"].set("relu_to_neuron", copies=3).at(T).with_weights("dyadic")
    snn = convert(randomized(CifarResNet(8, width=4)), [images(16, SIZE, seed=2)], recipe)
    export_npz(snn, tmp_path / "a.npz")
    stored = np.load(tmp_path / "a.npz", allow_pickle=False)
    header = json.loads(bytes(stored["graph"]))
    neurons = [node for node in header["nodes"] if node["op"] == "Neuron"]
    assert header["alphabet"] == "binary" and len(neurons) == 3 * len(snn.neurons)
    assert {node["settings"]["levels"] for node in neurons} == {1}
    assert [float(stored[f"relu.copy{i}/v0"][0]) for i in (1, 2, 3)] == [0.5, 1.5, 2.5]
    assert {float(stored[f"relu.copy{i}/threshold"][0]) for i in (1, 2, 3)} == {3.0}
    pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
    export_nir(snn, tmp_path / "a.nir")
    found = verify_export(tmp_path / "a.nir", snn, (images(2, SIZE, seed=6) * 64).round() / 64, T)
    assert len(found.layers) == 3 * len(snn.neurons) and found.mismatches == 0 and found.same_spikes == 2
    assert sum(layer.spikes for layer in found.layers) > 0


def test_what_cannot_be_written_one_by_one_is_refused(tmp_path):
    snn = converted(randomized(CifarResNet(8, width=4)), "calibrated-fission")
    with pytest.raises(ConversionError, match="a correction for every step"):
        export_nir(snn, tmp_path / "a.nir")
    heavy = [
        replace(node, op=replace(node.op, threshold=torch.tensor(2.0))) if isinstance(node.op, Neuron) else node
        for node in snn.nodes
    ]
    with pytest.raises(ConversionError, match=r"relu: got threshold 2; expected 1 for several neurons"):
        split_copies(replace(snn, nodes=tuple(heavy)))
