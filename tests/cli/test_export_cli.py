"""``sresnet export`` through the real program."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_program, narrow_resnet18
from sresnet_cli import export
from test_cli import CALIBRATED, SIZE, make_checkpoint, make_photos
from test_cli import network as network  # the fixtures
from test_cli import program as program
from trained_networks import put_trained

import s_resnet
from s_resnet.graph.provenance import AppliedRecipe

nir = pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
NIR = ("--format", "nir", "-o", "tiny.nir", "--force")


def test_a_network_becomes_a_file_and_one_line(program, network):
    said = program.works("export", "tiny.snn", *NIR)
    assert said.startswith("tiny.nir: 7 neuron layers, ") and said.count("\n") == 1
    graph = nir.read("tiny.nir")
    assert int(graph.metadata["timesteps"]) == 4
    assert json.loads(graph.metadata["preprocessing"])["size"] == SIZE
    assert json.loads(graph.metadata["classes"]) == ["a", "b", "c"]
    program.works("export", "tiny.snn", *NIR, "--timesteps", 9)
    assert int(nir.read("tiny.nir").metadata["timesteps"]) == 9


@pytest.mark.parametrize("tied", [(), ("--tie-shortcuts",)])
def test_verify_shows_every_layer(program, network, tied):
    lines = program.works("export", "tiny.snn", *NIR, "--verify", "nir", *tied).splitlines()
    snn = s_resnet.load("tiny.snn")
    assert lines[2].startswith("data: ") and lines[2].endswith("photos (all), 8 of 24 images")
    assert lines[3].startswith("nir ") and "8 images   T = 4   float32" in lines[3]
    rows = {line.split()[0]: line.split()[1:3] for line in lines[6 : 7 + len(snn.neurons)]}
    assert list(rows) == [*(node.name for node in snn.neurons), "all"]
    assert sum(int(rows[name][0].replace(",", "")) for name in rows if name != "all") == int(
        rows["all"][0].replace(",", "")
    ) > 100  # fmt: skip
    assert "of 8 images with the same spikes" in lines[-1 if rows["all"][1] == "0" else -2]


def test_a_program_answers_without_this_package(program, network):
    said = program.works("export", "tiny.snn", "--format", "torch", "-o", "tiny.pt2", "--timesteps", 3)
    assert said.startswith("tiny.pt2: 7 neuron layers, ")
    x = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    answers = load_program("tiny.pt2").module()(x)
    torch.testing.assert_close(answers, s_resnet.load("tiny.snn")(x, 3), rtol=1e-4, atol=1e-4)


def test_arrays_for_chip_code(program, network):
    assert program.works("export", "tiny.snn", "--format", "npz", "-o", "tiny.npz").startswith("tiny.npz: 7 neuron")
    with np.load("tiny.npz", allow_pickle=False) as file:
        nodes = json.loads(bytes(file["graph"]))["nodes"]
    assert [node["name"] for node in nodes] == [node.name for node in s_resnet.load("tiny.snn").nodes]


@pytest.mark.parametrize("form", ["torch", "npz"])
@pytest.mark.parametrize("option", [("--verify", "nir"), ("--tie-shortcuts",), ("--pool", "host")])
def test_what_only_nir_has_is_refused_elsewhere(program, network, form, option):
    code, out, err = program("export", "tiny.snn", "--format", form, "-o", "out", *option)
    assert (code, out) == (2, "") and "go with --format nir" in err and not Path("out").exists()


def test_limit_and_data_choose_the_images(program, network):
    make_photos(Path("others"), count=4, seed=5)
    said = program.works("export", "tiny.snn", *NIR, "--verify", "nir", "--data", "others", "--limit", 5)
    assert "others (all), 5 of 12 images" in said and "5 of 5 images" in said


def test_rounding_is_told_from_mistakes(program, network, monkeypatch):
    """Where float32 has mismatches it counts again in float64, and says which of the two it is."""
    compare = s_resnet.export.verify_export
    wrong = {"float32": 3, "float64": 0}

    def fake(*arguments):
        found = compare(*arguments)
        layer = s_resnet.export.LayerComparison("relu", 100, wrong[found.dtype])
        return s_resnet.export.Comparison(**{**vars(found), "layers": (layer,)})

    monkeypatch.setattr(s_resnet.export, "verify_export", fake)
    said = program.works("export", "tiny.snn", *NIR, "--verify", "nir").splitlines()
    assert said[-1].startswith(
        "in float64 0 of 100 spikes differ: the differences in float32 are rounding at the threshold"
    )
    wrong["float64"] = 2
    assert program.works("export", "tiny.snn", *NIR, "--verify", "nir").splitlines()[-1] == (
        "in float64 2 of 100 spikes differ"
    )


def pooled(program):
    """A ResNet-18, which has a max-pool, converted for 32 pixels."""
    torch.save(narrow_resnet18(3).state_dict(), "pooled.pth")
    make_photos(Path("photos"))
    settings = ("--calibration", "photos", "--calibration-images", 4, "--input-size", 32, "--timesteps", 2)
    program.works("convert", "pooled.pth", "-o", "pooled.snn", "--recipe", "s-resnet", *settings)


def test_max_pools(program):
    pooled(program)
    code, out, err = program("export", "pooled.snn", "--format", "nir", "-o", "x.nir")
    assert (code, out) == (1, "") and err.startswith("Error: maxpool: got a max-pool") and err.count("\n") == 1
    assert not Path("x.nir").exists()
    said = program.works("export", "pooled.snn", "--format", "nir", "-o", "x.nir", "--pool", "host", "--verify", "nir",
                         "--limit", 2)  # fmt: skip
    assert "2 of 2 images with the same spikes" in said
    assert nir.read("x.nir").metadata["input_node"] == "maxpool"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("export", "tiny.snn", "--format", "nir"), 2, "-o"),
        (("export", "tiny.snn", "-o", "x.nir"), 2, "--format"),
        (("export", "tiny.snn", "--format", "onnx", "-o", "x.nir"), 2, "onnx"),
        (("export", "tiny.snn", *NIR, "--verify", "brian"), 2, "brian"),
        (("export", "tiny.snn", "--format", "nir", "-o", "tiny.snn"), 2, "is an input and would be overwritten"),
        (("export", "tiny.snn", "--format", "nir", "-o", "nowhere/x.nir"), 1, "nowhere"),
        (("export", "none.snn", *NIR), 1, "none.snn"),
        (("export", "tiny.pth", *NIR), 1, "tiny.pth"),
        (("export", "tiny.snn", *NIR, "--pool", "average"), 2, "'host'"),
        (("export", "tiny.snn", *NIR, "--pool", "host"), 1, "no max-pool"),
        (("export", "tiny.snn", *NIR, "--verify", "nir", "--data", "nowhere"), 1, "nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(program, network, arguments, code, told):
    got, _, err = program(*arguments)
    assert got == code and told in err and "Traceback" not in err and err.count("\n") == 1
    assert s_resnet.load("tiny.snn").neurons and not Path("tiny.nir").exists()


def test_an_engine_that_is_not_installed_is_told_before_anything_is_written(program, network, monkeypatch):
    for engine, package in (("snntorch", "snntorch"), ("norse", "norse.torch"), ("sinabs", "sinabs")):
        monkeypatch.setitem(sys.modules, package, None)
        code, _, err = program("export", "tiny.snn", *NIR, "--verify", engine)
        assert code == 1 and package in err and f"pip install {engine}." in err and not Path("tiny.nir").exists()


def test_what_is_there_is_not_written_over(program, network):
    for form in export.FORMATS:
        Path("there").write_text("mine")
        code, _, err = program("export", "tiny.snn", "--format", form, "-o", "there")
        assert code == 2 and "there already exists" in err and Path("there").read_text() == "mine"
        program.works("export", "--format", form, "-o", "there", "--force")  # of the only network here
        assert Path("there").stat().st_size > 100


def test_networks_that_the_format_cannot_say(program, network):
    program.works("convert", "tiny.pth", *CALIBRATED, "--recipe", "phased", "-o", "phased.snn")
    code, _, err = program("export", "phased.snn", *NIR)
    assert code == 1 and "got a neuron with schedule 'phased'" in err
    assert "--recipe calibrated-constant or --recipe s-resnet" in err


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8"])
def test_trained_networks_of_one_level(program, tmp_path, arch):
    put_trained(tmp_path, arch)
    code, out, err = program("export", "net.snn", *NIR, "--verify", "nir", "--data", "data.npz")
    if arch == "ds_resnet8":
        assert code == 1 and "body.0: got a neuron with 3 firing levels" in err
    else:
        assert code == 0 and "images with the same spikes" in out


def test_without_nir_it_names_the_extra(program, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    code, _, err = program("export", "tiny.snn", *NIR)
    assert code == 1 and "pip install nir." in err and err.count("\n") == 1


def test_a_network_without_T_asks(program):
    make_checkpoint(Path("tiny.pth"))
    make_photos(Path("photos"))
    program.works("convert", "tiny.pth", *CALIBRATED)
    snn = s_resnet.load("tiny.snn")
    s_resnet.save(snn.with_provenance(recipe=AppliedRecipe()), "tiny.snn")
    code, _, err = program("export", "tiny.snn", *NIR)
    assert code == 2 and "--timesteps T" in err
    program.works("export", "tiny.snn", *NIR, "--timesteps", 3)


def test_the_engines_are_those_there_are():
    assert tuple(s_resnet.export.ENGINES) == export.ENGINES
