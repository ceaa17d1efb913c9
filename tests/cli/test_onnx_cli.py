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
    code, out, err = program("convert", "net.onnx", "-o", "net.snn")
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
    code, _, err = program("convert", "any.onnx", "-o", "any.snn", "--input-size", 16)
    assert code == 0 and "Assumed" not in err
    code, _, err = program("convert", "any.onnx", "-o", "large.snn")
    assert code == 0 and said in err
    assert s_resnet.load("any.snn").provenance.input_shape == (3, 16, 16)


def test_what_it_refuses_is_one_line(program):
    put("net.onnx", onnx_models.resnet(13))
    code, _, err = program("convert", "net.onnx", "--arch", "resnet18", "-o", "net.snn")
    assert (code, err.count("\n")) == (1, 1) and err.endswith("says which network it holds. Leave out --arch.\n")
    Path("cut.onnx").write_bytes(Path("net.onnx").read_bytes()[:500])
    code, _, err = program("convert", "cut.onnx", "-o", "net.snn")
    assert (code, err.count("\n")) == (1, 1) and err.startswith("Error: cut.onnx: cannot be read")
