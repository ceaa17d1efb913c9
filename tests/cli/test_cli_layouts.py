"""Checkpoints that are nearly those of a known network, through the real program: taken, and said in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomized
from sresnet_cli.__main__ import sresnet
from test_cli import SIZE, Program, make_photos, tiny
from torch import nn

import s_resnet
from s_resnet.frontend.weights.architectures import WORDS
from s_resnet.models import CifarResNet

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


PAPER = ("--recipe", "s-resnet", "--input-size", SIZE)


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capfd)


def test_counters_in_a_file_are_left_out_and_said(program):
    model = tiny()
    model.linear.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, "counted.pth")
    code, _, err = program("convert", "counted.pth", *PAPER)
    assert code == 0 and err.splitlines()[0] == "Left out 1 tensor(s) that belong to no layer: linear.total_ops"


def test_a_network_for_gray_images(program):
    """Its images are gray wherever it is calibrated and evaluated: colors differ, their brightness does not."""
    model = tiny()
    model.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
    torch.save(model.state_dict(), "gray.pth")
    make_photos(Path("photos"))
    gray = np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE), dtype=np.uint8)
    np.savez("gray.npz", x=gray, y=np.arange(24) % 3)
    np.savez("color.npz", x=np.repeat(gray[..., None], 3, axis=3), y=np.arange(24) % 3)
    options = (
        "--recipe",
        "s-resnet",
        "--input-size",
        SIZE,
        "--timesteps",
        4,
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25,0.25,0.25",
    )
    code, _, _ = program(
        "convert", "gray.pth", "-o", "gray.snn", *options, "--calibration", "photos", "--calibration-images", 8
    )
    assert code == 0 and s_resnet.load("gray.snn").provenance.input_shape == (1, SIZE, SIZE)
    found = []
    for data in ("gray.npz", "color.npz", "photos"):
        code, _, err = program("evaluate", "gray.snn", "--timesteps", 4, "--data", data, "--json", f"{data}.json")
        assert code == 0, err
        found.append(json.loads(Path(f"{data}.json").read_text())["ann"])
    assert found[0] == found[1]


def test_a_network_for_other_channels_is_told_where_to_convert_it(program):
    model = tiny()
    model.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    torch.save(model.state_dict(), "four.pth")
    make_photos(Path("photos"))
    code, _, err = program("convert", "four.pth", *PAPER, "--calibration", "photos")
    assert code == 1 and "network of 4 channels" in err and "from Python" in err and err.count("\n") == 1
    code, _, err = program("convert", "four.pth", *PAPER, "-o", "four.snn")
    assert code == 0 and s_resnet.load("four.snn").provenance.input_shape == (4, SIZE, SIZE)


def test_what_no_checkpoint_tells_is_said_in_one_line_and_chosen_by_a_word(program):
    torch.save(randomized(CifarResNet(8, 3, width=4)).state_dict(), "tiny.pth")
    command = ("convert", "tiny.pth", *PAPER, "-o")
    code, _, err = program(*command, "both.snn")
    (line,) = [line for line in err.splitlines() if line.startswith("Assumed")]
    assert code == 0 and "zeros before and after the channels of a shortcut (else cifar_resnet8-padafter)" in line
    code, _, err = program(*command, "after.snn", "--arch", "cifar_resnet8-padafter")
    (line,) = [line for line in err.splitlines() if line.startswith("Assumed")]
    assert code == 0 and "zeros" not in line
    both, after = s_resnet.load("both.snn"), s_resnet.load("after.snn")
    assert (both.provenance.source.arch, after.provenance.source.arch) == ("cifar_resnet8", "cifar_resnet8-padafter")
    x = torch.rand(2, 3, SIZE, SIZE)
    assert not torch.equal(both.run(x), after.run(x))


def test_a_file_that_needs_a_word_says_the_option(program):
    model = tiny()
    model.linear = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(model.state_dict(), "two.pth")
    code, _, err = program("convert", "two.pth", *PAPER)
    assert code == 1 and "--arch cifar_resnet8-fcrelu for a ReLU between the linear layers" in err
    code, out, _ = program("convert", "two.pth", *PAPER, "--arch", "cifar_resnet8-fcrelu")
    assert code == 0 and "8 neuron layers" in out


def test_the_help_of_arch_has_every_word():
    (option,) = (option for option in sresnet.commands["convert"].params if option.name == "arch")
    assert all(re.search(rf"\b{word}\b", option.help) for word in WORDS)


class Signals(nn.Module):
    """A small network of signals of two channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU())
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.norm(self.conv(x))).relu().mean(2))


def test_a_network_of_signals(program):
    """Converted in Python; everything after that is done by the program, on floating-point numbers in an .npz."""
    model, x = randomized(Signals()), torch.randn(40, 2, 32, generator=torch.Generator().manual_seed(0))
    for name, part in (("train", x[:24]), ("test", x[24:])):
        np.savez(f"{name}.npz", x=part.numpy(), y=model(part).argmax(1).numpy())
    train = s_resnet.data.open_data("train.npz", "calibration")
    loader = s_resnet.data.loader_for(train, range(24), train.preprocessing, 8)
    s_resnet.save(s_resnet.convert(model, loader, "calibrated-constant", timesteps=8), "known.snn")
    s_resnet.save(s_resnet.convert(model, [x[:24]], "calibrated-constant", timesteps=8), "bare.snn")
    for network in ("known.snn", "bare.snn"):
        code, _, err = program("evaluate", network, "--data", "test.npz", "--json", f"{network}.json")
        assert code == 0, err
        found = json.loads(Path(f"{network}.json").read_text())
        assert found["images"] == 16 and found["ann"]["top1"] == 1 and found["snn"][-1]["top1"] >= 0.75
    for words in (
        ("verify", "known.snn", "--data", "test.npz"),
        ("report", "known.snn", "--data", "test.npz", "-o", "page"),
        ("inspect", "known.snn"),
        ("export", "known.snn", "--format", "nir", "-o", "known.nir"),
        ("export", "known.snn", "--format", "npz", "-o", "known_arrays.npz"),
        ("export", "known.snn", "--format", "torch", "-o", "known.pt2"),
    ):
        code, _, err = program(*words)
        assert code == 0, (words, err)
    exported = torch.export.load("known.pt2").module()(x[24:].unsqueeze(2))
    assert torch.allclose(exported, s_resnet.load("known.snn")(x[24:], 8), atol=1e-5)
    code, _, err = program("evaluate", "known.snn", "--data", "digits")
    assert code == 1 and "arrays that are prepared already, for which the network was made" in err.replace("\n", " ")
    code, _, err = program("train", "cifar_resnet8", "--data", "train.npz", "-o", "trained.pt")
    assert code == 2 and "prepared already" in err


def test_which_weights_of_a_file_are_taken(program):
    plain, average = tiny(), randomized(tiny(), seed=3)
    torch.save({"model": plain.state_dict(), "model_ema": average.state_dict()}, "both.pth")
    code, _, err = program("convert", "both.pth", *PAPER, "-o", "plain.snn")
    said = "Weights: model; the file also holds model_ema, their average over the training (--ema takes it)"
    assert code == 0 and err.splitlines()[0] == said
    code, _, err = program("convert", "both.pth", *PAPER, "-o", "average.snn", "--ema")
    said = "Weights: model_ema, an average over the training; the file also holds model, not averaged"
    assert code == 0 and err.splitlines()[0] == f"{said} (leave out --ema to take it)"
    x = torch.randn(2, 3, SIZE, SIZE)
    for name, model in (("plain", plain), ("average", average)):
        assert torch.allclose(s_resnet.load(f"{name}.snn").run(x), model.eval()(x), atol=1e-4)
    torch.save(plain.state_dict(), "plain.pth")
    code, _, err = program("convert", "plain.pth", "--ema")
    assert code == 1 and "Leave out --ema" in err
