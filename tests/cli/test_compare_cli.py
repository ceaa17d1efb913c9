"""``sresnet compare`` through the real program: what it makes, what it takes from its folder, what it refuses."""

import json
from pathlib import Path

import pytest
from test_cli import SIZE, make_checkpoint, make_photos, tiny
from test_cli import program as program  # a fixture

import s_resnet
from s_resnet.report import FORMS

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
ASKED = ("tiny.pth", "--calibration", "train", "--calibration-images", 12, "--input-size", SIZE, "--data", "test")
SHORT = ("--recipes", "phased,s-resnet-released", "--latency", "4,8")


@pytest.fixture
def compare(program, tmp_path):
    """The command on a checkpoint and photos; its exit code, stdout and stderr."""
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "train", 8)
    make_photos(tmp_path / "test", 4, seed=1)
    return lambda *arguments: program("compare", *arguments)


def rows(file="out.json"):
    return {(row["name"], row["latency"]): row for row in json.loads(Path(file).read_text())["rows"]}


def test_it_converts_measures_and_writes_and_goes_on_from_its_folder(compare, monkeypatch, tmp_path):
    code, out, err = compare(*ASKED, *SHORT, "-o", "out.json", "-o", "out.html")
    assert code == 0 and out.startswith("tiny: 12 images.") and "Taken" not in err
    found = rows()
    assert found["phased", 4]["reason"].startswith("not at this latency, as with T = 1 it answers after 7 steps")
    assert (found["phased", 8]["timesteps"], found["phased", 8]["end_to_end_steps"]) == (1, 7)
    assert [found["s-resnet-released", e]["timesteps"] for e in (4, 8)] == [4, 8]
    assert {"ANN", "ANN, 2 levels", "ANN, 5 levels", "ANN, 9 levels"} <= {name for name, _ in found}
    snn = s_resnet.load("out.work/tiny-phased-T1.snn")
    loader = s_resnet.data.loader_for(
        data := s_resnet.data.open_data("test", "evaluation"), range(len(data)), snn.provenance.preprocessing, 32
    )
    again = s_resnet.evaluate(snn, loader, 1)
    assert (found["phased", 8]["top1"], found["ANN", None]["top1"]) == (again.snn[0].top1, again.ann["top1"])
    assert found["phased", 8]["drop"] == pytest.approx(again.snn[0].drop)
    made = {path.name: path.read_bytes() for path in Path("out.work").iterdir()}
    assert sorted(made)[:2] == ["tiny-ann-1.json", "tiny-ann-4.json"] and len(made) == 11

    def never(*arguments, **named):
        raise AssertionError("it was made already")

    for name in ("convert", "evaluate"):
        monkeypatch.setattr(s_resnet, name, never)
    monkeypatch.setattr(s_resnet.analysis, "measure_candidates", never)
    monkeypatch.setattr(s_resnet.analysis, "measure_ann", never)
    code, repeated, err = compare(*ASKED, *SHORT, "-o", "out.json", "-o", "out.html", "--force")
    assert (code, repeated) == (0, out)
    assert "Taken from out.work: 2 network(s) and 7 measurement(s)." in err
    assert made == {path.name: path.read_bytes() for path in Path("out.work").iterdir()}


def test_what_was_made_from_something_else_is_made_again(compare):
    one = ("--recipes", "s-resnet-released", "--latency", "2", "--work", "kept")
    assert compare(*ASKED, *one)[0] == 0
    name = "tiny-s-resnet-released-T350"
    network, measured = Path(f"kept/{name}.snn"), Path(f"kept/{name}-at-T2.json")
    others = [*ASKED[:4], 10, *ASKED[5:]]
    before = network.read_bytes()
    _, _, err = compare(*others, *one)
    assert f"Made again: {name}: other calibration images." in err and network.read_bytes() != before
    assert "Made again: tiny-ann-2: other calibration images." in err
    _, _, err = compare(*others, *one[:3], "1,2", *one[4:])
    assert "Made again" not in err and "1 network(s) and 3 measurement(s)" in err, "another latency costs only itself"
    _, _, err = compare(*others, *one, "--limit", 3)
    assert "at-T2: other test images." in err and "T350: other" not in err
    network.write_bytes(network.read_bytes()[:-1])
    measured.write_text(measured.read_text().replace('"labels"', '"lables"'))
    code, _, err = compare(*others, *one, "--limit", 3)
    assert code == 0 and "T350: its file was changed or removed." in err and "at-T2: its file was changed" in err
    measured.write_text("{")
    assert "at-T2: cannot be read" in compare(*others, *one, "--limit", 3)[2]
    make_checkpoint(Path("tiny.pth"), tiny(shortcut="A"))
    assert "T350: other checkpoint" in compare(*others, *one, "--limit", 3)[2]


def test_networks_are_taken_as_they_are_beside_those_of_their_checkpoint(compare, program):
    settings = ("--calibration", "train", "--calibration-images", 6, "--input-size", SIZE)
    program.works("convert", "tiny.pth", *settings, "--recipe", "multilevel", "--timesteps", 2, "-o", "mine.snn")
    code, out, err = compare("mine.snn", *ASKED, "--recipes", "max-norm,multilevel", "--latency", "4", "-o", "out.json")
    assert code == 0 and "max-norm: Diehl, Neil," in out, err
    found = rows()
    assert [found[name, 4]["timesteps"] for name in ("mine.snn", "max-norm", "multilevel")] == [2, 4, 4]
    assert {row["network"] for row in found.values()} == {"tiny"} and ("ANN, 31 levels", None) in found
    code, out, err = compare("mine.snn", "--data", "test", "--latency", "1", "--format", "csv")
    line = out.splitlines()[2].split(",")
    assert code == 0 and line[:6] == ["tiny", "mine.snn", "snn", "", "2", "2"], "at its own T, whatever was asked"


def test_mistakes_say_what_to_do(compare, tmp_path):
    make_photos(tmp_path / "elsewhere")
    make_checkpoint(tmp_path / "elsewhere" / "tiny.pth")
    (tmp_path / "there.md").write_text("mine")
    (tmp_path / "flat").mkdir()
    next((tmp_path / "test" / "a").iterdir()).rename(tmp_path / "flat" / "one.png")
    for arguments, code, says in (
        ((*ASKED, "--recipes", "phasd"), 2, "Did you mean phased?"),
        ((*ASKED, "--recipes", "calibrated-streaming"), 1, "It is now named calibrated-constant"),
        ((*ASKED, "--recipes", "auto"), 2, "auto chooses one of the recipes that are compared here. Name these"),
        ((*ASKED, "--recipes", "phased,phased"), 2, "phased is named twice"),
        ((*ASKED, "--latency", "0"), 2, "step below 1"),
        ((*ASKED, "--latency", "4;8"), 2, "list of steps such as 8,16,32"),
        ((*ASKED, "--recipes", "phased", "--latency", "4"), 2, "There is nothing to compare. phased: not at this"),
        ((*ASKED, "-o", "there.md"), 2, "there.md already exists"),
        ((*ASKED, "-o", "table.doc"), 1, "expected one of .txt, .md"),
        ((*ASKED, "elsewhere/tiny.pth"), 2, "would both be called tiny. Rename one of them."),
        (("tiny.pth", "--data", "test"), 2, "Name images for that with --calibration DATA."),
        ((*ASKED[:-1], "flat", *SHORT), 1, "class folders"),
        ((*ASKED, "--work", "there.md"), 2, "there.md"),
    ):
        got, out, err = compare(*arguments)
        assert (got, out) == (code, "") and says in err, (arguments, err)


def test_its_forms_are_those_of_the_library():
    from sresnet_cli.compare import FORMS as OFFERED

    assert OFFERED == FORMS
