"""ImageNet as it is distributed: every layout gives each image the class that it is of, or is refused in one line."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import FIXTURES, needs_fixtures, randomized
from PIL import Image
from test_cli import program as program  # the fixture

import s_resnet
from s_resnet.data import open_data
from s_resnet.data.classes import match_classes, network_classes, same_names
from s_resnet.data.meta_mat import read_synsets
from s_resnet.data.wordnet import are_imagenets, imagenet_ids, imagenet_output
from s_resnet.errors import InvalidData

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
SOME = ("n01440764", "n01443537", "n02123045", "n15075141")  # tench, goldfish, tabby, toilet tissue
OUTPUTS = (0, 1, 281, 999)
OF = (2, 0, 3, 3, 1, 0)  # validation image 1 is of the third class, and so on


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(int(path.stem[-3:]) if path.stem[-3:].isdigit() else 0).integers(
        0, 256, (40, 44, 3), dtype=np.uint8
    )
    Image.fromarray(pixels).save(path, format="JPEG")


def val(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def devkit(folder: Path, numbers: dict[str, int]) -> None:
    """The devkit's files, with ILSVRC's own class numbers; synsets above the classes come last."""
    io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    rows = [*sorted((number, wnid) for wnid, number in numbers.items()), (1001, "n00001740")]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    table = np.empty((len(rows), 1), dtype=fields)
    for place, (number, wnid) in enumerate(rows):
        table[place, 0] = (np.float64(number), wnid, "a, b", np.uint8(0))
    folder.mkdir(parents=True, exist_ok=True)
    io.savemat(folder / "meta.mat", {"other": np.eye(2), "synsets": table}, do_compression=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[SOME[k]]}\n" for k in OF))


def kaggle(root: Path) -> None:
    rows = [f"{val(n).removesuffix('.JPEG')},{SOME[k]} 1 2 3 4 {SOME[k]} 5 6 7 8" for n, k in enumerate(OF, 1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


def ilsvrc_numbers() -> dict[str, int]:
    """ILSVRC's numbers are in another order than WordNet ids."""
    mixed = random.Random(0).sample(imagenet_ids(), 1000)
    return {wnid: number for number, wnid in enumerate(mixed, 1)}


def class_folders(root: Path, named: object = str) -> None:
    for number, k in enumerate(OF, 1):
        image(root / named(SOME[k]) / val(number))


def layout(kind: str, root: Path) -> None:
    """One way in which the data lie on a disk, with six validation images and a training image of each class."""
    name = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    names = {wnid: name[output] for wnid, output in zip(SOME, OUTPUTS, strict=True)}
    base = root / "ILSVRC/Data/CLS-LOC" if kind == "kaggle" else root
    train, held = ("ILSVRC2012_img_train", "ILSVRC2012_img_val") if kind == "archives" else ("train", "val")
    forms = {"names": names.__getitem__, "both": lambda wnid: f"{wnid}_{names[wnid].replace(' ', '_')}"}
    for wnid in SOME:
        image(base / train / forms.get(kind, str)(wnid) / f"{wnid}_1.JPEG")
    if kind in ("folders", "names", "both"):
        class_folders(base / held, forms.get(kind, str))
        return
    for number in range(1, len(OF) + 1):
        image(base / held / val(number))
    if kind == "kaggle":
        kaggle(root)
        image(base / "test" / "ILSVRC2012_test_00000001.JPEG")  # the real ones have no labels
    else:
        devkit(root / ("ILSVRC2012_devkit_t12/data" if kind == "archives" else ""), ilsvrc_numbers())


@pytest.mark.parametrize("kind", ["folders", "names", "both", "archives", "kaggle", "devkit beside"])
def test_every_layout_gives_each_image_its_class(tmp_path, kind):
    layout(kind, tmp_path)
    data = open_data(f"imagenet:{tmp_path}", "evaluation")
    assert data.classes == imagenet_ids() and data.split == "val" and data.skipped == ()
    got = {os.path.basename(name): label for name, label in zip(data.names, data.labels, strict=True)}
    assert got == {val(number): OUTPUTS[k] for number, k in enumerate(OF, 1)}
    assert data.image(3).size == (44, 40)
    train = open_data(f"imagenet:{tmp_path}", "calibration")
    assert train.split == "train" and train.classes == imagenet_ids() and sorted(train.labels) == sorted(OUTPUTS)
    assert [os.path.basename(name) for name in train.names] == [f"{wnid}_1.JPEG" for wnid in SOME] or kind == "names"


def refused(spec: object, said: str, split: str = "evaluation") -> str:
    with pytest.raises(InvalidData, match=said) as error:
        open_data(f"imagenet:{spec}", split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing_or_packed_is_said(tmp_path):
    image(tmp_path / "only" / "test" / "ILSVRC2012_test_00000001.JPEG")  # ImageNet's own test images have no labels
    refused(tmp_path / "only", "val images, got no such folder; expected val/, unpacked")
    refused(tmp_path / "none", "path, got nothing there; expected a directory. Name one that exists")
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    refused(tmp_path, r"got the archive ILSVRC2012_img_val.tar; expected val/, unpacked\. Run: mkdir val && tar -xf")
    refused(tmp_path / "ILSVRC2012_img_val.tar", r"got the file ILSVRC2012_img_val.tar; expected val/, unpacked")
    with pytest.raises(InvalidData, match=r"got a file; .*Unpack it \(mkdir DIR && tar -xf ILSVRC2012_img_val.tar -C"):
        open_data(str(tmp_path / "ILSVRC2012_img_val.tar"), "evaluation")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").touch()
    refused(tmp_path, r"got the archive n01440764.tar; expected class folders\. Run: .*for f in \*\.tar", "calibration")
    with pytest.raises(InvalidData, match="its license has to be accepted first"):
        open_data(f"imagenet:{tmp_path}", "evaluation", download=True)
    image(tmp_path / "val" / val(1))
    refused(tmp_path, "labels, got none for the images in val/; expected LOC_val_solution.csv .* or ILSVRC2012_val")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    refused(tmp_path, "got ILSVRC2012_validation_ground_truth.txt without meta.mat beside it")


def test_other_classes_and_missing_labels_are_named(tmp_path):
    layout("folders", tmp_path)
    image(tmp_path / "val" / "spam" / "1.jpg")
    refused(tmp_path, r"folder val/, got 'spam'; expected one named n01440764, tench or n01440764_tench")
    layout("kaggle", tmp_path / "k")
    image(tmp_path / "k/ILSVRC/Data/CLS-LOC/val" / val(7))
    refused(tmp_path / "k", f"got {val(7)}; expected one of the 6 in the list")
    for text in ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "a,b\n1,2\n", "ImageId,PredictionString\nx,y"):
        (tmp_path / "k" / "LOC_val_solution.csv").write_text(text)
        refused(tmp_path / "k", "LOC_val_solution.csv: labels, got .*; expected ImageId, and a PredictionString")
    layout("devkit beside", tmp_path / "d")
    truth = tmp_path / "d" / "ILSVRC2012_validation_ground_truth.txt"
    for number in ("1001", "0", "x"):  # a synset above the classes, none, no number
        truth.write_text(f"{number}\n")
        refused(tmp_path / "d", "labels, got .*; expected one number of meta.mat for each image")


def test_a_damaged_meta_mat_is_refused_or_read(tmp_path):
    devkit(tmp_path, ilsvrc_numbers())
    whole = (tmp_path / "meta.mat").read_bytes()
    assert read_synsets(whole) == {**{number: wnid for wnid, number in ilsvrc_numbers().items()}, 1001: "n00001740"}
    io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    tables = {"synsets": io.loadmat(tmp_path / "meta.mat")["synsets"]}
    io.savemat(tmp_path / "plain.mat", tables, do_compression=False)
    plain = (tmp_path / "plain.mat").read_bytes()
    assert read_synsets(plain) == read_synsets(whole)
    chance = random.Random(0)
    for content in (whole, plain):
        for _ in range(100):
            damaged = bytearray(content)
            for _ in range(3):
                damaged[chance.randrange(100, min(len(damaged), 4000))] = chance.randrange(256)
            try:
                assert isinstance(read_synsets(bytes(damaged[: chance.choice((len(damaged), 2000))])), dict)
            except ValueError as error:
                assert str(error)


def test_the_ids_are_those_of_the_names_that_torchvision_gives():
    ids = imagenet_ids()
    assert len(set(ids)) == 1000 and list(ids) == sorted(ids) and are_imagenets(ids)
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert are_imagenets(names) and same_names(names, ids) and not are_imagenets([*ids[1:], ids[0]])
    assert not are_imagenets(ids[:-1]) and imagenet_output("n00001740") is None is imagenet_output("spam")
    assert (imagenet_output("Cardigan"), imagenet_output("cardigan"), imagenet_output("CARDIGAN")) == (264, 474, None)


@needs_fixtures
def test_the_ids_are_those_of_photographs_named_by_both():
    """The calibration photographs are called n01440764_tench.jpg and so on, by others than torchvision."""
    with np.load(FIXTURES / "imagenet" / "photos-calibration-1000.npz") as arrays:
        labels, wnids, names = (arrays[name].tolist() for name in ("label", "wnid", "classname"))
    assert [imagenet_output(wnid) for wnid in wnids] == labels and sorted(labels) == list(range(1000))
    others = [wnid for wnid, label, name in zip(wnids, labels, names, strict=True) if imagenet_output(name) != label]
    assert others == ["n02012849", "n03710721"]  # they call the bird crane, and the one-piece suit maillot, as well


def test_classes_match_in_either_form():
    ids, names = imagenet_ids(), torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    data = s_resnet.data.ImageData("d", "all", ("Tabby", "goldfish", "n15075141_x"), ("0", "1", "2"), (0, 1, 2), "/d")
    for known in (ids, tuple(names), tuple(f"{wnid} {name}" for wnid, name in zip(ids, names, strict=True))):
        matched = match_classes(data, known)
        assert matched.labels == (281, 1, 999) and matched.classes == known
    other = s_resnet.data.ImageData("d", "all", ("tabby", "spam"), ("0", "1"), (0, 1), "/d")
    with pytest.raises(InvalidData, match="got 'spam', which the network has not"):
        match_classes(other, ids)
    assert network_classes(None, data, outputs=1000) == ids
    assert network_classes(None, data, outputs=3) == network_classes(None, data) == data.classes
    assert network_classes(None, other, outputs=1000) == other.classes
    assert network_classes(None, data, ("x", "y"), 1000) == ("x", "y")


def test_a_part_of_imagenets_classes_is_evaluated_with_the_networks_own(program, tmp_path):
    """A network without any class names, and one that was calibrated on folders of ids; images in folders of names."""
    layout("folders", tmp_path / "ids")
    layout("names", tmp_path / "names")
    model = randomized(s_resnet.models.CifarResNet(8, num_classes=1000))
    torch.save(model.state_dict(), "net.pth")
    assert program("convert", "net.pth", "--recipe", "s-resnet", "-o", "bare.snn")[0] == 0
    code, _, err = program(
        "convert", "net.pth", "--calibration", "ids/train", "--calibration-images", "4", "-o", "k.snn"
    )
    assert code == 0 and "Labels are not used" not in err
    assert s_resnet.load("k.snn").provenance.classes == imagenet_ids()
    at = ("--timesteps", "2", "--at", "2")
    shown = []
    for network in ("bare.snn", "k.snn"):
        for data in ("ids/val", "names/val", "imagenet:names"):
            code, out, err = program("evaluate", network, "--data", data, *at)
            assert code == 0 and "The images are of 4 of the network's 1,000 classes." in err
            shown.append(next(line for line in out.splitlines() if line.strip().startswith("2")))
    assert len(set(shown[:3])) == 1 and shown[3:] == shown[3:4] * 3
    image(tmp_path / "names" / "val" / "spam" / "1.jpg")
    code, _, err = program("evaluate", "k.snn", "--data", "names/val", *at)
    assert code == 1 and "'spam', which the network has not" in err
    code, _, err = program("evaluate", "bare.snn", "--data", "names/val", *at)
    assert code == 1 and "got 5 classes for a network of 1000" in err
