"""``sresnet report`` through the real program."""

import json
from pathlib import Path

import pytest
from conftest import FIXTURES, needs_fixtures
from test_bad_input import Strict
from test_cli import SIZE, make_checkpoint, make_photos, tiny
from test_cli import network as network  # fixtures
from test_cli import program as program
from test_page import read
from trained_networks import T, put_trained

import s_resnet

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
pytestmark = [
    pytest.mark.usefixtures("unrendered"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


@pytest.fixture
def strict(network, monkeypatch, capfd):
    return Strict(monkeypatch, capfd)


def test_the_program_writes_page_and_json(program, network, tmp_path):
    said = program.works("report", "tiny.snn", "-o", "new/place", "--limit", 10)
    assert "tiny.snn: top-1 " in said and f"Page: {Path('new/place/index.html')}" in said
    page, _, report = read(tmp_path / "new" / "place")
    entry = report["networks"][0]
    assert entry["timesteps"] == 4 and entry["evaluation"]["images"] == 10 and entry["classes"] == ["a", "b", "c"]
    assert report["command"] == "sresnet report tiny.snn -o new/place --limit 10" in page.text
    assert entry["provenance"]["source"]["name"] == "tiny.pth" and "fingerprints" not in entry["provenance"]["data"]
    program.works("evaluate", "tiny.snn", "--timesteps", 4, "--limit", 10, "--json", "evaluated.json")
    evaluated = json.loads(Path("evaluated.json").read_text())
    photos = (tmp_path / "photos").resolve()
    assert entry["data"] == f"{photos} (all), 10 of 24 images; left out: 6 calibrated on"
    assert entry["data"] in page.text
    assert entry["evaluation"]["ann"]["top1"] == evaluated["ann"]["top1"]
    assert [row["top1"] for row in entry["evaluation"]["snn"]] == [row["top1"] for row in evaluated["snn"]]


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8"])
def test_a_trained_network(program, tmp_path, arch):
    put_trained(tmp_path, arch)
    said = program.works("report", "net.snn", "--data", "data.npz", "-o", "page")
    assert f"trained for T = {T}" in said and "dense pass" in said and "ANN" not in said
    text = (tmp_path / "page" / "index.html").read_text()
    assert "directly trained" in text and "calibration" not in text


def test_the_program_compares_two_on_images_that_neither_was_calibrated_on(program, network, tmp_path):
    settings = ("--calibration", "photos", "--calibration-images", 9, "--input-size", SIZE, "--timesteps", 2)
    program.works("convert", "tiny.pth", *settings, "-o", "other.snn")
    (tmp_path / "mine.toml").write_text(s_resnet.analysis.Constants(name="my chip").to_toml())
    said = program.works("report", "tiny.snn", "other.snn", "-o", "page", "--constants", "mine.toml")
    page, _, report = read(tmp_path / "page")
    assert [entry["timesteps"] for entry in report["networks"]] == [4, 2]
    known = {mark for name in ("tiny", "other") for mark in s_resnet.load(f"{name}.snn").provenance.data.fingerprints}
    assert {entry["evaluation"]["images"] for entry in report["networks"]} == {24 - len(known)}
    assert not any(entry["evaluation"].get("calibrated_on") for entry in report["networks"])
    assert "my chip" in page.text and said.count("top-1") == 2


def test_mistakes_at_the_command_line(strict, tmp_path):
    make_photos(tmp_path / "four", classes="abcd")
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "empty").mkdir()
    for arguments, code, says in (
        (["tiny.snn"], 2, "'-o'"),
        (["tiny.snn", "tiny.snn", "tiny.snn", "-o", "page"], 2, "Got 3 networks"),
        (["none.snn", "-o", "page"], 1, "none.snn: got no such file"),
        (["photos/a/0.png", "-o", "page"], 1, "cannot be read"),
        (["tiny.snn", "-o", "taken"], 2, "taken"),
        (["tiny.snn", "-o", "taken/page"], 1, "cannot be written"),
        (["tiny.snn", "-o", "page", "--data", "empty"], 1, "class folders"),
        (["tiny.snn", "-o", "page", "--data", "four"], 1, "got 4 classes for a network of 3"),
        (["tiny.snn", "-o", "page", "--limit", "0"], 2, "x>=1"),
        (["tiny.snn", "-o", "page", "--constants", "none.toml"], 1, "none.toml: cannot be read"),
    ):
        strict.fails("report", *arguments, code=code, says=says)


def test_two_networks_of_other_classes_do_not_compare(strict, tmp_path):
    make_checkpoint(tmp_path / "ten.pth", tiny(10))
    assert strict("convert", "ten.pth", "--recipe", "s-resnet", "--input-size", SIZE, "-o", "ten.snn")[0] == 0
    strict.fails("report", "tiny.snn", "ten.snn", "-o", "page", says="got 3 classes for a network of 10")


@needs_fixtures
def test_a_real_resnet(program, tmp_path):
    """ResNet-20 at T = 8 on 24 images: the whole path."""
    checkpoint = FIXTURES / "checkpoints" / "resnet20-12fca82f.th"
    data = ("--calibration", FIXTURES / "cifar10" / "train", "--calibration-images", 32)
    program.works("convert", checkpoint, *data, "--timesteps", 8, "-o", "r20.snn")
    program.works("report", "r20.snn", "--data", FIXTURES / "cifar10", "--limit", 24, "-o", "page")
    page, text, report = read(tmp_path / "page")
    entry = report["networks"][0]
    assert len(entry["verification"]["layers"]) == 19 and len(entry["shortcuts"]) == 9
    assert entry["evaluation"]["ann"]["top1"] > 0.7 and "airplane" in entry["classes"]
    assert len(text) < 5e6 and "layer3.2.relu_1" in page.text
