"""Names that are not UTF-8, as folders of older systems have them: what is written there is read there."""

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import images
from test_cli import CALIBRATED, SIZE, Program, make_checkpoint, make_photos, tiny

import s_resnet

NAME = os.fsdecode(b"caf\xe9")  # Latin-1


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """The program in a folder of such a name, with a checkpoint and photos in folders and files of such names."""
    folder = tmp_path / NAME
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system has UTF-8 names only")
    monkeypatch.chdir(folder)
    make_checkpoint(folder / f"{NAME}.pth")
    make_photos(folder / "photos")
    (folder / "photos" / "a").rename(folder / "photos" / NAME)
    first = next((folder / "photos" / NAME).iterdir())
    first.rename(first.with_name(f"{NAME}.png"))
    return Program(monkeypatch, capfd)


def test_every_command_reads_what_the_others_write_there(program):
    here = Path.cwd() / NAME  # with the folder's name as well
    network, photos = f"{here}.snn", str(Path.cwd() / "photos")
    data = ("--data", photos, "--limit", 4)
    calibrated = [photos if word == "photos" else word for word in CALIBRATED]
    program.works("convert", f"{here}.pth", *calibrated, "-o", network)
    program.works("inspect", network)
    program.works("evaluate", network, "--timesteps", 2, *data, "--json", f"{here}.json")
    program.works("verify", network, "--timesteps", 2, *data, "--json", f"{here}-layers.json")
    program.works("export", network, "--format", "npz", "-o", f"{here}.npz")
    training = ("ms_resnet8", "--data", photos, "--width", 4, "--batch-size", 4, "--timesteps", 1, "--workers", 0)
    for _ in range(2):  # the second finds it finished
        code, _, err = program("train", *training, "--epochs", 1, "-o", f"{here}.pt")
        assert code == 0 and "Error" not in err
    program.works("convert", f"{here}.pt", "-o", f"{here}-trained.snn")
    left = {name for name in os.listdir() if name.endswith((".tmp", ".partial"))}
    assert not left and {f"{NAME}.snn", f"{NAME}.json", f"{NAME}.npz", f"{NAME}.pt"} <= set(os.listdir())


def test_a_page_of_such_names_is_written(program):
    pytest.importorskip("matplotlib")
    here = str(Path.cwd())
    calibrated = [f"{here}/photos" if word == "photos" else word for word in CALIBRATED]
    program.works("convert", f"{NAME}.pth", *calibrated, "-o", f"{here}/{NAME}.snn")
    program.works("report", f"{here}/{NAME}.snn", "--timesteps", 2, "--limit", 4, "-o", f"{here}/{NAME}-page")
    assert "</html>" in (Path(f"{NAME}-page") / "index.html").read_text("utf-8")


def test_the_other_readers_and_writers_there(program):
    safetensors.torch.save_file(tiny().state_dict(), "plain.safetensors")
    os.rename("plain.safetensors", f"{NAME}.safetensors")
    with open(f"{NAME}.npz", "wb") as file:
        pixels = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
        np.savez(file, x=pixels, y=np.arange(6) % 3)
    model = s_resnet.load_checkpoint(f"{NAME}.safetensors").model
    snn = s_resnet.convert(model, (3, SIZE, SIZE), "s-resnet", timesteps=2)
    assert len(s_resnet.data.open_data(f"{NAME}.npz", "evaluation")) == 6
    s_resnet.export.export_torch(snn, f"{NAME}.pt2", 2)
    Path(f"{NAME}.toml").write_text(s_resnet.analysis.Constants().to_toml())
    assert s_resnet.analysis.load_constants(f"{NAME}.toml") == s_resnet.analysis.Constants()
    pytest.importorskip("nir")
    s_resnet.export.export_nir(snn, f"{NAME}.nir", timesteps=2)
    found = s_resnet.export.verify_export(f"{NAME}.nir", snn, images(2, SIZE), 2, "nir", "float64")
    assert found.mismatches == 0 and torch.is_tensor(snn(images(1, SIZE), 2))
