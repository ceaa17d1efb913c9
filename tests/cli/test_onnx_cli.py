"""From an .onnx file to a spiking network, its figures and its report, through the real program."""

import json
from pathlib import Path

import onnx_models
import pytest
from test_cli import Program

import s_resnet

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capfd)


def put(name, model):
    Path(name).write_bytes(model.SerializeToString())


def photos():
    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(0)
    for label in "abcde":
        Path("photos", label).mkdir(parents=True)
        for number in range(6):
            pixels = chance.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("photos", label, f"{number}.png"))


def test_convert_evaluate_and_report(program):
    """Input size and channels are the file's, the output is named after it, and the provenance says what it was."""
    put("net.onnx", onnx_models.resnet(13))
    photos()
    code, out, _ = program("convert", "net.onnx", "--calibration", "photos", "--calibration-images", 16)
    assert code == 0 and "or --arch" not in out and "another network" not in out
    assert out.startswith("net-calibrated-T16.snn: ONNX opset 13 of hand, recipe calibrated, 5 neuron layers")
    snn = s_resnet.load("net-calibrated-T16.snn")
    assert (snn.provenance.input_shape, snn.provenance.preprocessing.size) == ((3, 16, 16), 16)
    assert snn.provenance.source.name == "net.onnx" and snn.provenance.source.classes == onnx_models.CLASSES
    assert "Relu_2" in [node.name for node in snn.neurons]
    program.works("evaluate", "--timesteps", 8, "--json", "out.json")
    assert json.loads(Path("out.json").read_text())["images"] == 14
    program.works("report", "net-calibrated-T16.snn", "--timesteps", 8, "--limit", 4, "-o", "page")
    assert "ONNX opset 13 of hand" in Path("page/index.html").read_text()


def test_without_images_where_batchnorm_is_not_folded(program):
    put("net.onnx", onnx_models.resnet(13))
    code, out, err = program("convert", "net.onnx", "--recipe", "s-resnet", "-o", "net.snn")
    assert code == 0 and "thresholds from BatchNorm statistics" in out and err.count("\n") == 1
    assert s_resnet.load("net.snn").provenance.input_shape == (3, 16, 16)
    put("folded.onnx", onnx_models.channels_last())
    code, _, err = program("convert", "folded.onnx", "-o", "folded.snn")
    assert (code, err.count("\n")) == (1, 1) and "Pass --calibration DATA" in err


def test_the_size_of_images_is_assumed_and_said_where_a_file_takes_any(program):
    put("any.onnx", onnx_models.small_resnet(4))
    said = (
        "Assumed, since the file does not tell (--input-size chooses otherwise): images of 224 x 224 pixels, of those"
    )
    code, _, err = program("convert", "any.onnx", "--recipe", "s-resnet", "-o", "any.snn", "--input-size", 16)
    assert code == 0 and "Assumed" not in err
    code, _, err = program("convert", "any.onnx", "--recipe", "s-resnet", "-o", "large.snn")
    assert code == 0 and said in err
    assert s_resnet.load("any.snn").provenance.input_shape == (3, 16, 16)


def test_what_it_refuses_is_one_line(program):
    put("net.onnx", onnx_models.resnet(13))
    code, _, err = program("convert", "net.onnx", "--arch", "resnet18", "-o", "net.snn")
    assert (code, err.count("\n")) == (1, 1) and err.endswith("says which network it holds. Leave out --arch.\n")
    Path("cut.onnx").write_bytes(Path("net.onnx").read_bytes()[:500])
    code, _, err = program("convert", "cut.onnx", "-o", "net.snn")
    assert (code, err.count("\n")) == (1, 1) and err.startswith("Error: cut.onnx: cannot be read")


def test_files_under_other_names(program):
    """By the content, also where the name says otherwise: a program is read, a checkpoint named, an empty file too."""
    import torch
    from torch import nn

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.norm(self.conv(x))).mean(2))

    model = Rows().eval()
    model.norm.running_mean.fill_(0.1)
    torch.export.save(torch.export.export(model, (torch.randn(2, 2, 40),)), "net.pt2")
    Path("net.pt2").rename("program.onnx")
    code, out, _ = program("convert", "program.onnx", "-o", "net.snn")  # of signals, without images
    assert code == 0 and "torch.export program" in out
    torch.save(model.state_dict(), "weights.onnx")
    code, _, err = program("convert", "weights.onnx", "-o", "no.snn")
    assert code == 1 and "a checkpoint by its content" in err and "ends in .pth" in err
    Path("empty.onnx").touch()
    code, _, err = program("convert", "empty.onnx", "-o", "no.snn")
    assert code == 1 and "empty file, got 0 bytes" in err


def test_features_are_not_to_be_evaluated(program):
    import torch
    import torchvision

    state = torchvision.models.resnet18().state_dict()
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, "headless.pth")
    code, out, _ = program("convert", "headless.pth", "--recipe", "s-resnet", "--input-size", 32, "-o", "net.snn")
    assert code == 0 and "Its answers are features" in out and "sresnet evaluate" not in out
