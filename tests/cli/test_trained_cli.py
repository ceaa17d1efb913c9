"""The whole command line on a directly trained network's file."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sresnet_cli.__main__ import sresnet
from trained_networks import CLASSES, SIZE, T, trained

from s_resnet import convert, load, save
from s_resnet.data import Preprocessing
from s_resnet.graph.provenance import Source

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module", params=["ms_resnet8", "ds_resnet8"])
def place(request, tmp_path_factory):
    """A folder with net.snn and its images, and the module."""
    folder = tmp_path_factory.mktemp(request.param)
    model, _ = trained(request.param)
    snn = convert(model, [torch.zeros(1, 3, SIZE, SIZE)])
    source, preprocessing = Source(arch=request.param, classes=CLASSES), Preprocessing(SIZE, SIZE, MEAN, STD)
    save(snn.with_provenance(preprocessing=preprocessing, source=source), folder / "net.snn")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8), rng.integers(0, CLASSES, 24)
    np.savez(folder / "data.npz", x=x, y=y)
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (MEAN, STD))
    return folder, model, (torch.tensor(x).permute(0, 3, 1, 2) / 255 - mean) / std, torch.tensor(y)


def run(folder, *words):
    named = [str(folder / word) if "." in word and "/" not in word else word for word in words]
    result = CliRunner().invoke(sresnet, named)
    assert result.exit_code == 0, result.output
    return result.output


def test_evaluate_says_what_it_was_trained_for(place):
    folder, model, images, labels = place
    options = ("--timesteps", "4", "--at", f"1,{T}", "--data", "data.npz", "--json", "a.json")
    said = run(folder, "evaluate", "net.snn", *options)
    entry = json.loads((folder / "a.json").read_text())
    top1 = float((model(images).argmax(1) == labels).double().mean())
    assert entry["snn"][1]["top1"] == pytest.approx(top1) and entry["ann"] is None and entry["recipe"] == "trained"
    assert f"trained for T = {T}" in said and "ANN" not in said


def test_verify_needs_no_timesteps(place):
    folder, _, _, _ = place
    said = run(folder, "verify", "net.snn", "--data", "data.npz", "--json", "b.json")
    entry = json.loads((folder / "b.json").read_text())
    assert entry["timesteps"] == entry["trained_for"] == T and "dormant" in said and "top-1 SNN" in said
    assert "drift" not in said and "drift" in run(folder, "verify", "net.snn", "--data", "data.npz", "--timesteps", "1")


def test_inspect_and_report(place):
    folder, _, _, _ = place
    assert f"directly trained for T = {T}" in run(folder, "inspect", "net.snn")
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    said = run(folder, "report", "net.snn", "--data", "data.npz", "-o", str(folder / "page"))
    assert f"trained for T = {T}" in said and "dense pass" in said and "ANN" not in said
    page = (folder / "page" / "index.html").read_text()
    assert "directly trained" in page and "calibration" not in page


def test_export(place, tmp_path):
    pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
    folder, _, _, _ = place
    words = ["export", str(folder / "net.snn"), "--format", "nir", "-o", str(tmp_path / "x.nir"), "--verify", "nir"]
    result = CliRunner().invoke(sresnet, [*words, "--data", str(folder / "data.npz")])
    if len(load(folder / "net.snn").neurons[0].op.thresholds) > 1:
        assert result.exit_code == 1 and "body.0: got a neuron with 3 firing levels" in str(result.exception)
    else:
        assert result.exit_code == 0 and "images with the same spikes" in result.output
