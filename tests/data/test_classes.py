"""Class names: their order, and data matched to a network by name."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cli import SIZE, make_checkpoint, make_photos, tiny
from test_cli import program as program  # the fixture

import s_resnet
from s_resnet.analysis.measured_on import check_names
from s_resnet.data import ImageData, match_classes, natural_order, open_data, order_note
from s_resnet.data.classes import network_classes, read_names
from s_resnet.data.folders import held_out_beside
from s_resnet.errors import InvalidData

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


def data(*classes, root="/photos"):
    """Two images of each class."""
    labels = tuple(label for label in range(len(classes)) for _ in range(2))
    return ImageData("photos", "all", tuple(classes), tuple(map(str, range(len(labels)))), labels, root)


def named(found):
    """The name that each image's label stands for."""
    return [found.classes[label] for label in found.labels]


def test_natural_order_has_2_before_10():
    assert natural_order(["10", "2", "1"]) == ("1", "2", "10")
    assert natural_order(["class10", "class9", "b"]) == ("b", "class9", "class10")
    names = [f"{number}" for number in range(1, 120)]
    assert natural_order(random.Random(0).sample(names, len(names))) == tuple(names)


@pytest.mark.parametrize("seed", range(5))
def test_matching_keeps_every_images_name(seed):
    """Brute force: whatever the orders, and also of a part of the classes."""
    chance = random.Random(seed)
    names = [f"kind {number}" for number in range(12)]
    theirs = chance.sample(names, 12 - seed)
    before = data(*theirs)
    after = match_classes(before, names)
    assert after.classes == tuple(names) and named(after) == named(before)


def test_case_and_separators_do_not_count():
    after = match_classes(data("Fire_Truck", "AIRPLANE"), ["airplane", "fire truck", "ship"])
    assert named(after) == ["fire truck"] * 2 + ["airplane"] * 2


def test_case_counts_where_names_of_the_network_differ_in_nothing_else():
    after = match_classes(data("cardigan", "Cardigan"), ["Cardigan", "ship", "cardigan"])
    assert after.labels == (2, 2, 0, 0)
    with pytest.raises(InvalidData, match="got 'CARDIGAN', which the network has not"):
        match_classes(data("CARDIGAN"), ["Cardigan", "ship", "cardigan"])


def test_numbers_without_names_match_by_position():
    numbers = ("0", "1", "2")
    assert match_classes(data(*numbers, root=""), ["cat", "dog", "owl"]).labels == data(*numbers).labels
    assert match_classes(data("cat", "dog", "owl"), numbers).labels == data(*numbers).labels
    folders = data("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")  # folders in the order of text
    assert named(match_classes(folders, [str(n) for n in range(12)])) == named(folders)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("airplane", "cat", "plane"), "got 'plane', which the network has not; expected those of the network.*'dog'"),
        (("a", "b", "c", "d"), "got 4 classes for a network of 3"),
        (("x", "y", "z"), "got 'x', 'y', 'z', which"),
    ],
)
def test_other_names_are_refused_also_at_equal_numbers(classes, said):
    with pytest.raises(InvalidData, match=said) as error:
        match_classes(data(*classes), ["airplane", "cat", "dog"])
    assert "\n" not in str(error.value)


def test_a_file_of_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\n\n  dog \nübel\n", encoding="utf-8")
    assert read_names(path) == ("cat", "dog", "übel") == network_classes(str(path), data("a"))
    for text, said in (("", "none"), ("cat\ndog\ncat\n", "'cat' twice")):
        path.write_text(text)
        with pytest.raises(InvalidData, match=said):
            read_names(path)
    path.write_bytes(b"\xff\xfe\x00")
    for place in (path, tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidData, match="one class name per line"):
            read_names(place)


def test_a_file_of_names_has_an_end(tmp_path):
    """A device, a pipe without a writer, a file of holes; very many names, and numbers of very many digits."""
    os.symlink("/dev/zero", tmp_path / "zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "holes").touch()
    os.truncate(tmp_path / "holes", 2**42)
    for name in ("zero", "pipe", "holes"):
        with pytest.raises(InvalidData, match=r"got (no regular file|.* bytes, more than)"):
            read_names(tmp_path / name)
    path = tmp_path / "names.txt"
    many = [f"n{number}" for number in range(300_000)]
    path.write_text("\n".join(many))
    assert read_names(path) == tuple(many)
    path.write_text("\n".join([*many, "n5"]))
    with pytest.raises(InvalidData, match="'n5' twice"):
        read_names(path)
    assert natural_order(["9" * 5000, "10", "2"]) == ("2", "10", "9" * 5000)


def test_which_names_a_network_has():
    found = data("1", "10", "2")
    assert network_classes(None, found) == ("1", "10", "2")
    assert network_classes("natural", found, ("x", "y", "z")) == ("1", "2", "10")
    assert network_classes(None, found, ("2", "1", "10")) == ("2", "1", "10")


def test_the_order_is_said_only_where_text_and_numbers_differ():
    assert "(1, 10, 2, ...)" in order_note(data("1", "10", "2", "3"))
    assert "1, 2, 3, ..." in order_note(data("1", "10", "2", "3")) and "natural_order" in order_note(
        data("1", "10", "2")
    )
    for quiet in (data("cat", "dog"), data("0", "1", "2"), data("01", "02", "10"), data("1", "10", "2", root="")):
        assert order_note(quiet) == ""


# ---- a loader of one's own


class Set(torch.utils.data.Dataset):
    """What torchvision's data sets are: classes, and items."""

    def __init__(self, classes):
        self.classes = classes

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), index


def test_a_loader_with_the_classes_in_another_order_is_refused():
    snn = s_resnet.convert(tiny(), (3, 8, 8), "s-resnet").with_provenance(classes=("a", "b", "c"))
    loader = torch.utils.data.DataLoader(Set(["a", "c", "b"]), 2)
    with pytest.raises(InvalidData, match=r"another order, 'c' as number 1; expected 'b' as number 1.*match_classes"):
        s_resnet.evaluate(snn, loader, 2)
    assert check_names(torch.utils.data.DataLoader(Set(["a", "b", "c"]), 2), snn) == check_names([], snn) == []
    part = torch.utils.data.DataLoader(torch.utils.data.Subset(Set(["a", "b", "d"]), [0]), 2)
    (note,) = check_names(part, snn)
    assert "'d' as number 2" in note and "by number" in note


# ---- through the program


def evaluated(program, *options):
    """Which label every image of the evaluation had, by its folder."""
    found, loaders = [], []
    evaluate, make = s_resnet.evaluate, s_resnet.data.loader_for

    def loader_for(*arguments, **named):
        loaders.append(arguments)
        return make(*arguments, **named)

    with program.monkeypatch.context() as patch:
        watch = lambda images, labels, *_: found.extend(labels.tolist())  # noqa: E731

        def watched(snn, loader, timesteps, settings, **named):
            return evaluate(snn, loader, timesteps, replace(settings, watch=watch), **named)

        patch.setattr(s_resnet, "evaluate", watched)
        patch.setattr(s_resnet.data, "loader_for", loader_for)
        program.works("evaluate", "tiny.snn", "--timesteps", 1, *options)
    used, indices = loaders[0][:2]
    return {Path(used.names[i]).parent.name: label for i, label in zip(indices, found, strict=True)}


CONVERT = (
    "convert",
    "tiny.pth",
    "-o",
    "tiny.snn",
    "--force",
    "--calibration-images",
    6,
    "--input-size",
    SIZE,
    "--timesteps",
    2,
    "--calibration",
)


def test_the_network_keeps_its_names_and_other_folders_follow_them(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    program.works(*CONVERT, "photos")
    assert s_resnet.load("tiny.snn").provenance.classes == ("a", "b", "c")
    for name in "bc":  # of two of the three classes
        (tmp_path / "part" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "part" / name / "0.png")
    assert evaluated(program, "--data", "part") == {"b": 1, "c": 2}
    (tmp_path / "part" / "b").rename(tmp_path / "part" / "beta")
    code, out, err = program("evaluate", "tiny.snn", "--timesteps", 1, "--data", "part")
    assert (code, out) == (1, "") and "'beta', which the network has not" in err and err.count("\n") == 1
    (tmp_path / "names").write_text("a\nbeta\nc\n")
    assert evaluated(program, "--data", "part", "--classes", "names") == {"beta": 1, "c": 2}


def test_folders_named_by_number(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth", tiny(11))
    numbers = [str(number) for number in range(1, 12)]
    make_photos(tmp_path / "photos", count=2, classes=numbers)
    code, _, err = program(*CONVERT, "photos")
    assert code == 0 and "order of text (1, 10, 11, ...)" in err and "--classes natural" in err
    assert s_resnet.load("tiny.snn").provenance.classes == tuple(sorted(numbers))
    code, _, err = program(*CONVERT, "photos", "--classes", "natural")
    assert code == 0 and "order of text" not in err and s_resnet.load("tiny.snn").provenance.classes == tuple(numbers)
    assert evaluated(program) == {number: int(number) - 1 for number in numbers}


def test_held_out_images_beside_a_training_folder(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos" / "train")
    program.works(*CONVERT, "photos/train")
    table = program.works("evaluate", "--timesteps", 1)
    assert f"data: {tmp_path / 'photos' / 'train'} (all), 18 of 24 images; left out: 6 calibrated on" in table
    assert "Note: these are training images" in table
    make_photos(tmp_path / "photos" / "val", count=2, seed=1)
    table = program.works("evaluate", "--timesteps", 1)
    assert f"data: {tmp_path / 'photos' / 'val'} (all), 6 of 6 images\n" in table and "training images" not in table
    assert f"data: {tmp_path / 'photos' / 'val'} (all), 6 of 6" in program.works("verify", "tiny.snn")
    assert "these are training images" in program.works("evaluate", "--timesteps", 1, "--data", "photos/train")


def test_a_folder_beside_is_proposed_only_where_its_classes_are_known(tmp_path):
    make_photos(tmp_path / "train")
    assert (
        held_out_beside(str(tmp_path / "train")) is held_out_beside(str(tmp_path)) is held_out_beside("digits") is None
    )
    make_photos(tmp_path / "test", count=1, classes="xyz")
    assert held_out_beside(str(tmp_path / "train")) is None
    make_photos(tmp_path / "validation", count=1, classes="ab")
    assert held_out_beside(str(tmp_path / "train")) == str(tmp_path / "validation")
    assert open_data(str(tmp_path / "validation"), "evaluation").classes == ("a", "b")
