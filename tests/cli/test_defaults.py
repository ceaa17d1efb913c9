"""What is taken where nothing is said: the recipe, T, names, data; what is refused before the work; what comes next."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import images
from test_cli import SIZE, Program, make_checkpoint, make_photos, put_converted, randomized, tiny

import s_resnet
from s_resnet import RECIPES
from s_resnet.graph.provenance import AppliedRecipe
from s_resnet.kernels.build import compiler
from s_resnet.models import CifarResNet

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
FEW = ("--calibration", "photos", "--calibration-images", 6, "--input-size", SIZE)


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """The program in a folder with tiny.pth and photos/ in three classes."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    return Program(monkeypatch, capfd)


def made(place="."):
    return sorted(path.name for path in Path(place).glob("*.snn"))


def recipe_of(path):
    recipe = s_resnet.load(path).provenance.recipe
    return recipe.name, recipe.timesteps


# ---- the recipe


def test_with_images_few_steps_and_without_more(program):
    said = program.works("convert", "tiny.pth", *FEW)
    assert recipe_of("tiny-calibrated-T16.snn") == ("calibrated", 16)
    assert "Recipe calibrated is the default with calibration images; --recipe s-resnet" in said
    code, said, err = program("convert", "tiny.pth", "--input-size", SIZE)
    assert code == 0 and recipe_of("tiny-calibrated-currents-T128.snn") == ("calibrated-currents", 128)
    assert (
        "thresholds and currents from 16 images made from BatchNorm statistics" in said and "is the default" not in said
    )
    assert "No --calibration: fitted to 16 images made from BatchNorm statistics (seed 0)" in err
    said = program.works("convert", "tiny.pth", *FEW, "--recipe", "calibrated", "--timesteps", 4)
    assert recipe_of("tiny-calibrated-T4.snn") == ("calibrated", 4) and "is the default" not in said


def test_python_takes_the_same():
    model, x = randomized(CifarResNet(8, width=4)), images(16, 8)
    for batches, name in (([x], "calibrated"), (None, "calibrated-currents")):
        snn = s_resnet.convert(model, batches or (3, 8, 8))
        assert snn.provenance.recipe.name == name == s_resnet.conversion.default_recipe(batches is not None).name
        assert snn.provenance.recipe.timesteps == RECIPES[name].timesteps


def test_the_recipes_of_the_command_line_are_those_there_are():
    assert (*RECIPES, "auto") == sys.modules["sresnet_cli.convert"].RECIPES
    assert (*s_resnet.conversion.PUBLISHED,) == sys.modules["sresnet_cli.convert"].PUBLISHED


# ---- names, and nothing written over


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--weights", "int8"), "tiny-calibrated-T16-int8"),
        (("--recipe", "multilevel", "--weights", "dyadic"), "tiny-multilevel-T4-dyadic"),
        (("--recipe", "phased", "--timesteps", 3, "--reconstruct"), "tiny-phased-T3-reconstructed"),
        (("--recipe", "auto", "--latency", 2), "tiny-auto-E2"),
        (("--recipe", "auto", "--spikes", "binary"), "tiny-auto-binary-E16"),
        (("--recipe", "auto", "--spikes", "signed", "--target-drop", 2.5), "tiny-auto-signed-drop2.5"),
        (("--recipe", "s-resnet-released"), "tiny-s-resnet-released-T350"),
    ],
)
def test_names_say_recipe_and_t_and_are_taken_once(program, monkeypatch, options, name):
    """Known before the work: what is there is refused then, and after it, it has that name."""
    Path(f"{name}.snn").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(s_resnet.data, "open_data", lambda *_: pytest.fail("worked for nothing"))
        code, out, err = program("convert", "tiny.pth", *FEW, *options)
    assert (code, out) == (2, "") and err.startswith(f"Error: {name}.snn already exists. ") and "--force" in err
    assert Path(f"{name}.snn").read_text() == "mine"

    plain = s_resnet.convert

    def quick(model, batches, recipe, **settings):  # the name is what is tested
        return plain(model, (3, SIZE, SIZE), "s-resnet", timesteps=2)

    monkeypatch.setattr(s_resnet, "convert", quick)
    assert program("convert", "tiny.pth", *FEW, *options, "--force")[0] == 0
    assert made() == [f"{name}.snn"] and s_resnet.load(f"{name}.snn").neurons


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("a.pth.tar", "a"), ("b-1.5.th", "b-1.5"), ("weights.snn", "weights"), ("plain", "plain"), (".pth", ".pth"),
        ("two words.safetensors", "two words"),
    ],
)  # fmt: skip
def test_names_of_checkpoints(checkpoint, name):
    output = sys.modules["sresnet_cli.output"]
    found = output.network_path(Path("models") / checkpoint, "phased", "T4")
    assert found == Path("models") / f"{name}-phased-T4.snn"


WRITERS = {
    "convert": (("tiny.pth", "--input-size", SIZE, "-o", "there"), "there"),
    "evaluate": (("tiny.snn", "--json", "there"), "there"),
    "verify": (("tiny.snn", "--json", "there"), "there"),
    "report": (("tiny.snn", "-o", "."), "index.html"),
    "report ": (("tiny.snn", "-o", "."), "report.json"),
    "export": (("tiny.snn", "--format", "npz", "-o", "there"), "there"),
    "train": (("--from", "tiny.snn", "--data", "photos", "-o", "there"), "there"),
    "demo": (("-o", "."), "digits-s-resnet-T256.snn"),
}


@pytest.mark.parametrize("command", WRITERS)
def test_nothing_is_written_over_without_being_told(program, monkeypatch, tmp_path, command):
    put_converted(tmp_path)
    arguments, name = WRITERS[command]
    Path(name).write_text("mine")
    for work in ("convert", "evaluate", "verify", "report.measure", "export.export_npz", "fine_tune"):
        monkeypatch.setattr(f"s_resnet.{work}", lambda *_, **__: pytest.fail("worked for nothing"))
    monkeypatch.setattr(sys.modules["sresnet_cli.demo"], "_train", lambda _: pytest.fail("trained for nothing"))
    code, out, err = program(command.strip(), *arguments)
    assert (code, out) == (2, "") and f"{name} already exists" in err and "--force" in err and err.count("\n") == 1
    assert Path(name).read_text() == "mine"


def test_a_run_of_training_is_never_written_over(program):
    Path("x.pt").write_text("mine")
    given = ("train", "ms_resnet8", "--data", "photos", "-o", "x.pt")
    assert program(*given)[0] == 1 and program(*given, "--force")[0] == 2
    assert Path("x.pt").read_text() == "mine"


# ---- T, and which network


def rows(path):
    return [row["timesteps"] for row in json.loads(Path(path).read_text())["snn"]]


def test_t_is_the_networks_own(program):
    """Of a recipe that is fitted to its T that row alone; others run at any, and show it."""
    program.works("convert", "tiny.pth", *FEW, "--timesteps", 5, "-o", "few.snn")
    program.works("convert", "tiny.pth", *FEW, "--recipe", "s-resnet", "--timesteps", 5, "-o", "many.snn")
    for number, (network, options, want) in enumerate((
        ("few.snn", (), [5]), ("few.snn", ("--timesteps", 8), [8]), ("few.snn", ("--at", "2,7"), [2, 7]),
        ("many.snn", (), [1, 2, 4, 5]), ("many.snn", ("--at", "3"), [3]), ("many.snn", ("--timesteps", 2), [1, 2]),
    )):  # fmt: skip
        table = program.works("evaluate", network, *options, "--json", f"{number}.json")
        assert rows(f"{number}.json") == want
        assert ("not fitted to this T but to T = 5" in table) == (network == "few.snn" and want != [5])
    assert program("evaluate", "few.snn", "--at", "9", "--timesteps", "8")[0] == 2
    for network, steps, marked in (("few.snn", 5, False), ("few.snn", 8, True), ("many.snn", 8, False)):
        said = program.works("verify", network, "--timesteps", steps)
        assert said.startswith("Note: the network was fitted to T = 5, not to 8") == marked
    one = s_resnet.evaluate(s_resnet.load("few.snn"), [(images(4, SIZE), torch.arange(4) % 3)], 8)
    assert [row.timesteps for row in one.snn] == [8]
    snn = s_resnet.load("few.snn")
    s_resnet.save(snn.with_provenance(recipe=AppliedRecipe()), "untold.snn")
    code, _, err = program("evaluate", "untold.snn")
    assert code == 2 and "Pass --timesteps T" in err


def test_the_only_network_here_is_meant(program, tmp_path):
    put_converted(tmp_path)
    commands = [("evaluate",), ("verify",), ("inspect",), ("report", "-o", "page"),
                ("export", "--format", "npz", "-o", "out.npz")]  # fmt: skip
    for command in commands:
        assert "tiny.snn" in program.works(*command) or command[0] == "export"
    assert Path("page/index.html").is_file() and Path("out.npz").is_file()
    shutil.copy("tiny.snn", "other.snn")
    for command in commands:
        code, _, err = program(*command)
        assert code == 2 and "Found other.snn, tiny.snn here" in err and f"sresnet {command[0]} NETWORK.snn" in err


def test_what_is_converted_already_is_not_converted(program, tmp_path):
    put_converted(tmp_path)
    code, _, err = program("convert", "tiny.snn")
    assert code == 2 and "already a spiking network" in err and err.count("\n") == 1


# ---- what comes next


def next_command(said):
    (line,) = (line for line in said.splitlines() if line.startswith("Next: "))
    program, *arguments = shlex.split(line.removeprefix("Next: "))
    assert program == "sresnet"
    return arguments


def flat(folder, count=6):
    """Images without class folders."""
    Path(folder).mkdir(parents=True)
    for number, path in enumerate(sorted(Path("photos").rglob("*.png"))[:count]):
        shutil.copy(path, Path(folder) / f"{number}.png")
    return folder


def split_photos():
    make_photos(Path("both") / "train", seed=2)
    make_photos(Path("both") / "val", count=2, seed=3)


def arrays(name="x.npz", labels=True):
    x = np.random.default_rng(0).integers(0, 256, (30, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(name, x=x, **({"y": np.arange(30) % 3} if labels else {}))


LEFT = ("--calibration-images", 6)
AFTER = {  # what there is, options of convert, the command that follows
    "a folder": (lambda: None, (*LEFT, "--calibration", "photos"), "evaluate"),
    "all images used": (lambda: None, ("--calibration", "photos"), "inspect"),
    "all used, a val beside": (split_photos, ("--calibration", "both/train"), "evaluate"),
    "train and val": (split_photos, ("--calibration", "both"), "evaluate"),
    "no data": (lambda: None, (), "inspect"),
    "no labels": (lambda: flat("flat"), (*LEFT, "--calibration", "flat"), "inspect"),
    "no labels, a test beside": (
        lambda: (flat("some/train"), make_photos(Path("some/test"), seed=4)),
        (*LEFT, "--calibration", "some/train"),
        "inspect",
    ),
    "arrays": (arrays, (*LEFT, "--calibration", "x.npz"), "evaluate"),
    "arrays without labels": (lambda: arrays(labels=False), (*LEFT, "--calibration", "x.npz"), "inspect"),
    "a name with quotes": (lambda: None, (*LEFT, "--calibration", "photos", "-o", "it's a \"net.snn"), "evaluate"),
    "a name like an option": (lambda: None, (*LEFT, "--calibration", "photos", "-o", "-x.snn"), "evaluate"),
    "classes that are named": (
        lambda: Path("names").write_text("c\nb\na\n"),
        (*LEFT, "--calibration", "photos", "--classes", "names"),
        "evaluate",
    ),
    "of other classes": (
        lambda: (split_photos(), shutil.rmtree("both/val/a"), Path("both/val/b").rename("both/val/z")),
        ("--calibration", "both/train"),
        "inspect",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AFTER)
def test_the_next_command_works_as_it_stands(program, case):
    make, options, what = AFTER[case]
    make()
    paper = ("--recipe", "s-resnet", "--timesteps", 2)
    code, said, err = program("convert", "tiny.pth", "--input-size", SIZE, *paper, *options)
    assert code == 0, err
    command = next_command(said)
    assert command[0] == what and ("--data DATA" in said) == (what == "inspect")
    code, out, err = program(*command)
    assert code == 0 and out, err


def test_the_next_command_after_training(program):
    make_photos(Path("two words") / "train", seed=2)
    make_photos(Path("two words") / "test", count=2, seed=3)
    quick = ("--data", "two words", "--width", 4, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    for arch, more in (
        ("cifar_resnet8", ()),
        ("ms_resnet8", ("--timesteps", 2)),
        ("cifar_resnet8", ("--activation", "qcfs")),
    ):
        output = f"{arch} {len(more)}.pt"
        code, said, err = program("train", arch, *quick, *more, "-o", output)
        for _ in range(2):  # convert, then evaluate
            assert code == 0, err
            command = next_command(said)
            code, said, err = program(*command)
        assert code == 0 and command[0] == "evaluate" and "two words" in said


def test_what_a_trained_network_does_not_take_is_named(program):
    quick = ("--data", "photos", "--width", 4, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    assert program("train", "ms_resnet8", *quick, "--timesteps", 2, "-o", "x.pt")[0] == 0
    for options in (("--weights", "int8"), ("--recipe", "phased"), ("--timesteps", 2)):
        code, out, err = program("convert", "x.pt", *options)
        assert (code, out) == (2, "") and err.count("\n") == 1, err
        assert f"x.pt was trained as a spiking network, to which {options[0]} cannot be applied" in err
    assert made() == []


# ---- a part of the classes


def test_a_part_of_the_classes_is_evaluated(program):
    """By name, whether the names came with the images, from a file, or only at the evaluation."""
    make_photos(Path("part"), count=3, classes="c", seed=5)
    Path("names").write_text("a\nb\nc\n")
    program.works("convert", "tiny.pth", *FEW, "--timesteps", 2, "-o", "by-images.snn")
    plain = ("convert", "tiny.pth", "--input-size", SIZE, "--recipe", "s-resnet", "--timesteps", 2, "-o")
    assert program(*plain, "untold.snn")[0] == 0 and program(*plain, "told.snn", "--classes", "names")[0] == 0
    found = []
    for network, options in (("by-images.snn", ()), ("told.snn", ()), ("untold.snn", ("--classes", "names"))):
        program.works("evaluate", network, "--data", "part", *options, "--json", f"{network}.json")
        found.append(json.loads(Path(f"{network}.json").read_text())["ann"]["top1"])
    model = tiny()
    data = s_resnet.data.open_data("part", "evaluation")
    x = torch.cat([x for x, _ in s_resnet.data.ImageLoader(data, range(3), s_resnet.data.preprocessing_for(SIZE), 3)])
    with torch.no_grad():
        right = float((model(x).argmax(1) == 2).float().mean())  # c is the third of the three
    assert found == pytest.approx([right] * 3)
    code, _, err = program("evaluate", "untold.snn", "--data", "part")
    assert code == 1 and "got 1 classes for a network of 3" in err and "--classes FILE" in err
    for text, says in (("a\nb\n", "got 2 names for a network of 3"), ("", "names, got none")):
        Path("names").write_text(text)
        code, _, err = program(*plain, "new.snn", "--classes", "names")
        assert code == 1 and says in err and not Path("new.snn").exists()


def test_images_of_a_part_of_the_classes_calibrate_without_their_labels(program):
    make_photos(Path("part"), classes="bc", seed=5)
    code, said, err = program("convert", "tiny.pth", "--calibration", "part", *FEW[2:], "-o", "part.snn")
    assert (
        code == 0 and "Labels are not used: the data have 2 classes, the network 3" in err and "--classes FILE" in err
    )
    assert "calibration images without usable labels" in said
    known = s_resnet.load("part.snn").provenance
    assert known.classes is None and known.check.right is None
    Path("names").write_text("a\nb\nc\n")
    code, said, err = program(
        "convert", "tiny.pth", "--calibration", "part", *FEW[2:], "-o", "named.snn", "--classes", "names"
    )
    assert code == 0 and "The ANN is right on" in said and "Labels are not used" not in err
    make_photos(Path("more"), classes="abcd")
    code, _, err = program("convert", "tiny.pth", "--calibration", "more", "--input-size", SIZE)
    assert code == 1 and "got 4 classes for a network of 3" in err


# ---- images without labels


def test_images_without_labels_calibrate_as_those_with(program):
    """The same images with and without class folders and labels give the same thresholds, and no label is made up."""
    flat("flat", count=24)
    Path("flat/notes.txt").write_text("x")
    for folder, name in (("photos", "with.snn"), ("flat", "without.snn")):
        given = ("--calibration", folder, "--calibration-images", 24, "--input-size", SIZE, "--timesteps", 2)
        code, _, err = program("convert", "tiny.pth", *given, "-o", name)
        assert code == 0 and ("1 .txt" in err) == (folder == "flat")
    scales = [s_resnet.load(name).provenance.calibration.scales for name in ("with.snn", "without.snn")]
    assert scales[0] == pytest.approx(scales[1])
    assert s_resnet.load("without.snn").provenance.classes is None
    code, out, err = program("evaluate", "without.snn", "--data", "flat")
    assert (code, out) == (1, "") and "24 images and no folder" in err and "not evaluated" in err
    code, _, err = program("train", "ms_resnet8", "--data", "flat", "-o", "x.pt")
    assert code == 1 and "class folders" in err and not Path("x.pt").exists()


def test_what_opens_without_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(Path("photos"))
    flat("flat")
    arrays("bare.npz", labels=False)
    for spec, count in (("flat", 6), ("bare.npz", 30)):
        data = s_resnet.data.open_data(spec, "calibration")
        assert (data.classes, set(data.labels), len(data)) == ((), {-1}, count)
        assert s_resnet.data.match_classes(data, ("a", "b")) is data and len(s_resnet.data.choose(data, 4)) == 4
        with pytest.raises(s_resnet.errors.InvalidData, match=r"class folders|arrays"):
            s_resnet.data.open_data(spec, "evaluation")
    Path("empty").mkdir()
    with pytest.raises(s_resnet.errors.InvalidData, match="Sort the images into folders"):
        s_resnet.data.open_data("empty", "calibration")
    np.savez("one.npz", x=np.uint8(3))
    with pytest.raises(s_resnet.errors.InvalidData, match=r"arrays, got x; expected x and y"):
        s_resnet.data.open_data("one.npz", "calibration")


# ---- refused before the work


IMPOSSIBLE = {
    "differences in int8": (("--recipe", "dcgs-4", "--weights", "int8"), 1, "expected spikes that are counted"),
    "copies in int8": (
        ("--recipe", "calibrated-fission", "--weights", "int8"),
        1,
        "calibrated, calibrated-constant, calibrated-currents, calibrated-lagged, phased, signed, multilevel",
    ),
    "released in int8": (("--recipe", "s-resnet-released", "--weights", "int8"), 1, "choose s-resnet"),
    "released in dyadic": (("--recipe", "s-resnet-released", "--weights", "dyadic"), 1, "choose s-resnet"),
    "reconstructed paper": (("--recipe", "s-resnet", "--reconstruct"), 1, "got nothing to reconstruct for"),
    "percentile of a fit": (("--percentile", 99), 2, "--percentile applies to the paper's recipes; calibrated chooses"),
    "percentile of auto": (("--recipe", "auto", "--percentile", 99), 2, "--percentile applies to the paper's recipes"),
    "spikes by name": (("--spikes", "signed"), 1, "choose --recipe auto"),
    "a drop by name": (("--recipe", "phased", "--target-drop", 1), 1, "choose --recipe auto"),
    "a drop and a latency": (("--recipe", "auto", "--target-drop", 1, "--latency", 4), 1, "one of them"),
    "a T for auto": (("--recipe", "auto", "--timesteps", 4), 1, "Pass --latency E, or choose a recipe by name"),
    "a latency by name": (("--recipe", "phased", "--latency", 4), 1, "got --latency with a recipe by name"),
    "a lag of none": (("--lag", "blocks"), 1, "Choose calibrated-lagged or signed"),
    "a lag of auto": (("--recipe", "auto", "--lag", "blocks"), 2, "auto tries every choice"),
    "a target by name": (("--no-delays", "--no-step-currents"), 1, "got --no-step-currents, --no-delays with a recipe"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_had_is_refused_before_a_look_at_the_data(program, monkeypatch, case):
    options, want, says = IMPOSSIBLE[case]
    monkeypatch.setattr(s_resnet.data, "open_data", lambda *_: pytest.fail("worked for nothing"))
    code, out, err = program("convert", "tiny.pth", *FEW, *options)
    assert (code, out) == (want, "") and says in err and err.count("\n") == 1, err
    assert made() == []


def test_what_chooses_by_images_wants_some_at_once(program, monkeypatch):
    for work in ("calibrate_from_batchnorm", "check_source"):
        monkeypatch.setattr(
            sys.modules["s_resnet.conversion.convert"], work, lambda *_: pytest.fail("worked for nothing")
        )
    with pytest.raises(s_resnet.errors.ConversionError, match=r"^recipe auto: got no calibration images"):
        s_resnet.convert(tiny(), (3, SIZE, SIZE), "auto")
    code, out, err = program("convert", "tiny.pth", "--recipe", "auto")
    assert (code, out) == (1, "") and "--calibration DATA" in err and err.count("\n") == 1


@pytest.mark.parametrize("weights", ["float32", "dyadic", "int8"])
def test_what_is_not_refused_can_be_had(weights):
    """The other way round: every recipe and kind of weights that passes the look beforehand converts."""
    model, batches = randomized(CifarResNet(8, width=4)), [images(12, 8)]
    converted = 0
    for name in RECIPES:
        try:
            recipe = RECIPES[name].at(2).with_weights(weights)
        except s_resnet.errors.ConversionError:
            continue
        assert s_resnet.convert(model, batches, recipe).is_integer == (weights == "int8")
        converted += 1
    assert converted == {"float32": 11, "dyadic": 10, "int8": 9}[weights]


# ---- saved from Python


def test_a_network_from_python_says_what_it_lacks_and_can_be_told(program):
    snn = s_resnet.convert(tiny(), [images(16, SIZE)], timesteps=2)
    s_resnet.save(snn, "python.snn")
    code, _, err = program("evaluate", "python.snn", "--data", "photos")
    assert code == 1 and "converted from Python" in err and "without calibration images" not in err
    assert "snn.with_provenance(preprocessing=" in err
    prepared = s_resnet.data.preprocessing_for(SIZE)
    s_resnet.save(snn.with_provenance(preprocessing=prepared), "python.snn")
    assert "24 of 24 images" in program.works("evaluate", "python.snn", "--data", "photos")
    code, _, err = program("evaluate", "python.snn")
    assert code == 2 and "does not name any" in err and "--data DATA" in err


# ---- words


@pytest.mark.parametrize("command", ["evaluate", "verify", "inspect", "report", "export"])
def test_what_is_no_network_is_called_what_it_is(program, command):
    options = {"report": ("-o", "page"), "export": ("--format", "npz", "-o", "x.npz")}.get(command, ())
    torch.save(tiny().state_dict(), "old.pth", _use_new_zipfile_serialization=False)
    for name, says in (
        ("tiny.pth", "got a checkpoint of PyTorch; expected a .snn file. Convert it first: sresnet convert tiny.pth."),
        ("old.pth", "Convert it first: sresnet convert old.pth."),
        ("none.snn", "got no such file; expected a .snn file. Check the path."),
        ("photos/a/0.png", "cannot be read"),
    ):
        code, out, err = program(command, name, *options)
        assert (code, out) == (1, "") and err.startswith(f"Error: {name}: ") and says in err and err.count("\n") == 1


def test_a_first_word_before_torch_is_there(monkeypatch, capfd):
    begin = sys.modules["sresnet_cli.say"].begin
    for terminal, late, want in ((True, True, "Reading x.pth ...\n"), (False, True, ""), (True, False, "")):
        with monkeypatch.context() as patch:
            patch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
            if late:
                patch.delitem(sys.modules, "torch")
            begin("x.pth")
        assert capfd.readouterr().err == want


def test_without_a_compiler_it_says_why_it_is_slow(program, tmp_path, monkeypatch):
    put_converted(tmp_path)
    assert program("evaluate", "--timesteps", 1)[2] == ""
    reason = "no C++ compiler: c++, g++ and clang++ not found"
    monkeypatch.setattr(compiler, "compiled", lambda: (None, reason))
    code, table, err = program("evaluate", "--timesteps", 1)
    assert code == 0 and "kernel cpu\n" in table and f"membrane kernel: cpu ({reason})" in err and "g++" in err


def test_messages_name_packages_that_there_are():
    """What an extra of this package brings is named itself: it can be had from any index."""
    root = Path(s_resnet.__file__).parent
    texts = [*root.rglob("*.py"), *Path(sys.modules["sresnet_cli.convert"].__file__).parent.glob("*.py")]
    assert len(texts) > 100 and not [path for path in texts if "pip install 's-resnet" in path.read_text()]
