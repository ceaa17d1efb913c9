"""The page of directly trained networks: no ANN in it, figures against the network itself, both roads side by side."""

import json

import pytest
import torch
from conftest import images
from test_page import Page, small
from trained_networks import CLASSES, SIZE, T, trained, watched

from s_resnet.report import measure, write_page
from s_resnet.simulation import record

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")


def batches(count=16, batch=8, seed=3):
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return list(zip(images(count, SIZE, seed=seed).split(batch), labels.split(batch), strict=True))


def written(folder, *pairs):
    """The page, its text and its JSON, of (name, network, T)."""
    write_page([measure(snn, batches(), steps, network=name) for name, snn, steps in pairs], folder)
    text = (folder / "index.html").read_text(encoding="utf-8")
    return Page(text), text, json.loads((folder / "report.json").read_text())


def titles(page):
    return {attributes.get("id") for attributes in page.all("section")}


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8"])
def test_a_trained_network_has_a_page_without_an_ann(tmp_path, arch):
    _, graph = trained(arch)
    page, _, entry = written(tmp_path, ("net.snn", graph, T))
    (found,) = entry["networks"]
    x, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    top1 = float((graph(x, T).argmax(1) == labels).double().mean())
    assert found["evaluation"]["snn"][-1]["top1"] == pytest.approx(top1)
    assert found["evaluation"]["ann"] is found["drop"] is found["answers"] is None
    assert found["evaluation"]["trained_for"] == T and found["shortcuts"] == []
    assert all(layer["errors"] is None for layer in found["verification"]["layers"])
    assert titles(page) == {"headline", "accuracy", "layers", "spikes", "energy", "settings"}
    said = page.text.replace("as an ANN would make it", "").replace("there is no ANN", "")
    said = said.replace("The fair rival of a spiking network is the ANN quantized to equal bits", "")
    assert "ANN" not in said and f"directly trained for T = {T}" in said and "dormant" in said
    assert "dense MAC" in said


def test_at_another_number_of_steps(tmp_path):
    _, graph = trained("ms_resnet8")
    page, _, entry = written(tmp_path, ("net.snn", graph, 1))
    found = entry["networks"][0]
    x = torch.cat([part for part, _ in batches()])
    assert found["evaluation"]["snn"][0]["agreement"] == pytest.approx(
        float((graph(x, 1).argmax(1) == graph(x, T).argmax(1)).double().mean())
    )
    assert f"Drop from T = {T}, trained for" in page.text and "drift" in page.text


def test_both_roads_beside_each_other(tmp_path):
    """A converted and a trained network on one page: the ANN is the converted one's alone."""
    converted, (_, graph) = small(timesteps=4), trained("ms_resnet8")
    page, _, entry = written(tmp_path, ("converted.snn", converted, 4), ("trained.snn", graph, T))
    one, other = entry["networks"]
    assert one["evaluation"]["ann"]["top1"] >= 0 and other["evaluation"]["ann"] is None
    assert entry["top1_difference"] == pytest.approx(
        one["evaluation"]["snn"][-1]["top1"] - other["evaluation"]["snn"][-1]["top1"]
    )
    assert {"shortcuts", "disagreements"} <= titles(page)
    assert "Dormant" in page.text and "unevenness" in page.text and "ANN or dense pass" in page.text


def test_recorded_spikes_and_membranes_are_those_of_the_module():
    """In numbers of spikes, and membranes in thresholds, after the reset to zero; of several levels the first."""
    for arch in ("ms_resnet8", "ds_resnet8", "sew_resnet8"):
        model, graph = trained(arch)
        x, layer = images(1, SIZE, seed=8), graph.neurons[1].name
        (trace,) = record(graph, x, T, [layer], 6)
        given, spikes = (part[:, 0].flatten(1)[:, list(trace.neurons)] for part in watched(model, x, T)[1][layer])
        op = graph[layer].op
        theta, v, path = float(op.threshold), torch.zeros(6), []
        for now in given:
            v = op.decay * v + now
            v = v * (v < theta)
            path.append(v / theta)
        assert torch.equal(trace.spikes, spikes) and trace.spikes.sum() > 0
        assert torch.allclose(trace.membrane, torch.stack(path), atol=1e-5)
