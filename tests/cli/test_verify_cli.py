"""``sresnet verify`` through the real program."""

import json

import pytest
from sresnet_cli.words import spoken
from test_cli import network as network  # the fixtures
from test_cli import program as program
from test_verify import one
from trained_networks import T, put_trained

from s_resnet import save
from s_resnet.analysis.losses import MEASURES

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def test_it_says_which_layer_loses_what(program, network, tmp_path):
    """On the images it was not calibrated on, at its own T."""
    code, out, err = program("verify", "tiny.snn", "--json", "out.json")
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert (stored["images"], stored["timesteps"], stored["recipe"], stored["network"]) == (
        18,
        4,
        "s-resnet",
        "tiny.snn",
    )
    rows = [line.split() for line in out.splitlines()]
    assert rows[1][0] == "data:" and rows[3][0] == "layer" and len(rows[3]) == 11
    for row, layer in zip(rows[4:], stored["layers"], strict=False):
        assert row[:2] == [layer["name"], f"{layer['rate']:.4f}"]
        assert row[2:8] == [f"{100 * layer['errors'][name]:.1f}%" for name in MEASURES]
        assert row[9:] == [f"{len(layer[few])}/{len(layer['channels']['rate'])}" for few in ("dead", "saturated")]
    assert out.rstrip().endswith(f"{stored['verdict']}\n{spoken(stored['advice'])}") and "--" in out
    code, out, _ = program("verify", "tiny.snn", "--timesteps", 9, "--limit", 5, "--data", "photos")
    assert code == 0 and "T = 9   5 images" in out


def test_it_asks_and_refuses_in_one_line(program, network):
    assert program("verify", "absent.snn")[0] == 1
    assert program("verify", "tiny.snn", "--timesteps", 0)[0] == 2
    save(one(), "bare.snn")
    code, _, err = program("verify", "bare.snn")
    assert code == 2 and "Pass --timesteps T" in err
    code, _, err = program("verify", "tiny.snn", "--json", "absent/out.json")
    assert code == 1 and err.startswith("Error: absent/out.json") and err.count("\n") == 1


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8"])
def test_a_trained_network_needs_no_timesteps(program, tmp_path, arch):
    put_trained(tmp_path, arch)
    said = program.works("verify", "net.snn", "--data", "data.npz", "--json", "out.json")
    entry = json.loads((tmp_path / "out.json").read_text())
    assert entry["timesteps"] == entry["trained_for"] == T and "dormant" in said and "top-1 SNN" in said
    assert "drift" not in said
    assert "drift" in program.works("verify", "net.snn", "--data", "data.npz", "--timesteps", 1)
