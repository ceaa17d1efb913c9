"""One file for several T through the real program: made, evaluated at each T with its numbers, exported, compared."""

import json
from pathlib import Path

import pytest
from sresnet_cli.contenders import from_file, source_digest
from test_cli import SIZE, make_checkpoint, make_photos
from test_cli import program as program  # a fixture

import s_resnet

FILE = "tiny-calibrated-T2-4.snn"


def test_one_file_is_made_and_used_for_several_t(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "train", 8)
    make_photos(tmp_path / "test", 2, seed=1)
    asked = ("--calibration", "train", "--calibration-images", 12, "--input-size", SIZE)
    said = program.works("convert", "tiny.pth", *asked, "--timesteps", "4,2")
    assert f"{FILE}: " in said and "T = 2, 4: one network" in said
    snn, data = s_resnet.load(FILE), ("--data", "test")
    assert snn.fitted == (2, 4)

    said = program.works("evaluate", FILE, *data, "--json", "all.json")
    assert "numbers of its own for T = 2, 4" in said and "*" not in said
    images = s_resnet.data.open_data("test", "evaluation")
    loader = s_resnet.data.loader_for(images, range(len(images)), snn.provenance.preprocessing, 32)
    for row in json.loads(Path("all.json").read_text())["snn"]:
        (own,) = s_resnet.evaluate(snn.at(row["timesteps"]), loader, row["timesteps"]).snn
        assert row == {**own.to_dict(), "fitted": True}
    assert "3*" in program.works("evaluate", FILE, *data, "--timesteps", 3)
    assert "at most T = 4, with its numbers" in program.works("evaluate", FILE, *data, "--exit-confidence", 0.9)
    assert "tuned for T = 2, 4" in program.works("inspect", FILE)

    code, out, err = program("export", FILE, "--format", "npz", "-o", "net.npz", "--timesteps", 3)
    assert code == 0 and "T = 3 has no numbers of its own (T = 2, 4 have): those for T = 2 are used" in err
    assert f"one of the T that {FILE} is for: T = 2" in out
    s_resnet.export.export_npz(snn.at(2), tmp_path / "two.npz")
    assert Path("net.npz").read_bytes() == Path("two.npz").read_bytes()

    path = Path(FILE)
    contender = from_file(path, snn, {source_digest(path, snn): "tiny"}, (2, 3, 8, 16))
    assert contender.latencies == {2: (2,), 4: (8,)}
    contender = from_file(path, snn, {source_digest(path, snn): "tiny"}, (8, 16))
    assert contender.latencies == {4: (8,)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--timesteps", "4,8", "--recipe", "s-resnet"), "several T for recipe s-resnet"),
        (("--timesteps", "4,x"), "is not a list of steps such as 8,16,32"),
        (("--timesteps", "4,4"), "each once"),
    ],
)
def test_several_t_that_cannot_be_are_refused_before_anything_is_read(program, tmp_path, arguments, said):
    make_checkpoint(tmp_path / "tiny.pth")
    code, out, err = program("convert", "tiny.pth", "--calibration", "nowhere", *arguments)
    assert code in (1, 2) and said in err and not out
