"""Images that a network was made with are told again by content, and are never evaluated on."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import images, narrow_resnet18
from test_cli import CALIBRATED, SIZE, Program, figures, make_checkpoint, make_photos, record_loaders, tiny

import s_resnet
from s_resnet.data import ImageData, fingerprints, leakage, open_data, used_for_calibration

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capfd)


@pytest.fixture
def used(monkeypatch):
    return record_loaders(monkeypatch)


@pytest.fixture
def network(program, tmp_path):
    """tiny.snn, calibrated on 6 of the 24 images in photos/, in the current folder."""
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    program.works("convert", "tiny.pth", *CALIBRATED)
    return tmp_path / "tiny.snn"


def contents(*folders: str | Path) -> list[bytes]:
    return [path.read_bytes() for folder in folders for path in Path(folder).rglob("*.png")]


# ---- fingerprints and seen, against brute force


def make_files(root: Path, seed: int) -> ImageData:
    """Files of few sizes and contents, so that some are equal and many are only of equal size."""
    rng = np.random.default_rng(seed)
    for name in "ab":
        (root / name).mkdir(parents=True)
        for number in range(30):
            (root / name / f"{number}.png").write_bytes(rng.integers(0, 3, rng.integers(0, 5), np.uint8).tobytes())
    return open_data(str(root), "calibration")


def make_pixels(seed: int, shape: tuple[int, ...] = (60, 1, 2, 3)) -> ImageData:
    pixels = np.random.default_rng(seed).integers(0, 2, shape, np.uint8)
    names = tuple(map(str, range(len(pixels))))
    return ImageData("made", "all", ("a",), names, (0,) * len(pixels), pixels=pixels)


def stored(data: ImageData) -> list[bytes]:
    if data.pixels is not None:
        return [image.tobytes() for image in data.pixels]
    return [Path(data.root, name).read_bytes() for name in data.names]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["files", "pixels", "gray"])
def test_seen_is_what_brute_force_finds(tmp_path, kind, seed):
    """In other data, under other names: exactly the images whose stored bytes were among those marked."""
    if kind == "files":
        first, second = make_files(tmp_path / "one", seed), make_files(tmp_path / "two", seed + 100)
    else:
        shape = (60, 1, 2, 3) if kind == "pixels" else (60, 2, 3)
        first, second = make_pixels(seed, shape), make_pixels(seed + 100, shape)
    indices = np.random.default_rng(seed).permutation(60)[:20].tolist()
    marked = {stored(first)[index] for index in indices}
    marks = fingerprints(first, indices)
    assert len(marks) == 20
    for data in (first, second):
        expected = {name for name, content in zip(data.names, stored(data), strict=True) if content in marked}
        assert used_for_calibration(data, marks) == used_for_calibration(data, set(marks)) == expected
        assert 0 < len(expected) < 60


def test_the_form_of_a_fingerprint_is_frozen(tmp_path):
    """Networks saved yesterday hold them."""
    data = ImageData("made", "all", ("a",), ("0",), (0,), pixels=np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(bytes(range(12)))
    assert fingerprints(data, [0]) == ["12-4e85a98c0a3de55d"]
    assert fingerprints(open_data(str(tmp_path), "calibration"), [0]) == ["12-4e85a98c0a3de55d"]


def test_an_array_with_gaps_has_the_fingerprints_of_its_images():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), np.uint8)
    views = pixels.transpose(0, 2, 3, 1)  # not contiguous
    one, other = (ImageData("", "all", ("a",), "0123", (0,) * 4, pixels=x) for x in (views, views.copy()))
    assert fingerprints(one, range(4)) == fingerprints(other, range(4))
    assert len(set(fingerprints(one, range(4)))) == 4


def test_content_is_read_only_where_the_size_is_right(tmp_path, monkeypatch):
    """Reading ImageNet whole takes minutes, asking for sizes seconds."""
    data = make_files(tmp_path / "files", 0)
    sizes = [len(content) for content in stored(data)]
    marks = fingerprints(data, [sizes.index(4)])
    read = []
    monkeypatch.setattr(leakage, "opened", lambda *given, real=leakage.opened: read.append(given) or real(*given))
    assert used_for_calibration(data, marks) and len(read) == sizes.count(4) < 60
    read.clear()
    assert used_for_calibration(data, ()) == set() and not read


def test_a_file_that_cannot_be_read_is_no_other_and_no_crash(tmp_path):
    data = make_files(tmp_path / "files", 0)
    for name, target in (("gone", "/nowhere"), ("broken", "/proc/self/mem"), ("loop", "loop.png")):
        os.symlink(target, tmp_path / "files" / "a" / f"{name}.png")
    data = open_data(str(tmp_path / "files"), "calibration")
    damaged = [index for index, name in enumerate(data.names) if name[2:-4] in ("gone", "broken", "loop")]
    empty = {name for name in data.names if (tmp_path / "files" / name).is_file() and
             (tmp_path / "files" / name).stat().st_size == 0}  # fmt: skip
    assert len(damaged) == 3
    assert used_for_calibration(data, fingerprints(data, damaged)) <= empty | {data.names[index] for index in damaged}


# ---- through the program


def test_evaluate_alone_never_uses_a_calibration_image(program, used, network):
    assert "18 images" in program.works("evaluate", "--timesteps", 2)
    calibrated, evaluated = used
    assert len(calibrated) == 6 and not set(calibrated) & set(evaluated)
    assert sorted(calibrated + evaluated) == sorted(contents("photos"))


def rename(photos: Path) -> Path:
    """Every file gets another name, and another class folder's order."""
    for folder in sorted(photos.iterdir()):
        for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
            path.rename(folder / f"renamed-{number}.PNG")
        folder.rename(folder.with_name({"a": "z", "b": "y", "c": "x"}[folder.name]))
    return photos


@pytest.mark.parametrize(
    "move",
    [
        lambda photos: photos.rename(photos.with_name("moved")),
        lambda photos: shutil.copytree(photos, photos.with_name("copied")),
        lambda photos: photos.with_name("link").symlink_to(photos) or photos.with_name("link"),
        lambda photos: Path(".", "..", photos.parent.name, photos.name),
        rename,
    ],
    ids=["moved", "copied", "linked", "relative", "renamed"],
)
def test_wherever_the_images_went(program, used, network, tmp_path, move):
    place = move(tmp_path / "photos")
    names = ()
    if move is rename:
        (tmp_path / "names.txt").write_text("z\ny\nx\n")
        names = ("--classes", "names.txt")
    every = [path.read_bytes() for path in place.rglob("*.[pP][nN][gG]")]
    assert "18 images" in program.works("evaluate", "--timesteps", 1, "--data", place, *names)
    calibrated, evaluated = used
    assert not set(calibrated) & set(evaluated) and sorted(calibrated + evaluated) == sorted(every)


@pytest.mark.parametrize("calibrated", ["photos", "photos/train"])
@pytest.mark.parametrize("evaluated", [None, "photos", "photos/train", "photos/val"])
def test_train_and_its_parent_are_the_same_images(program, used, tmp_path, calibrated, evaluated):
    make_checkpoint(tmp_path / "tiny.pth")
    train = contents(make_photos(tmp_path / "photos" / "train"))
    val = contents(make_photos(tmp_path / "photos" / "val", count=4, seed=1))
    program.works("convert", "tiny.pth", "--calibration", calibrated, *CALIBRATED[2:])
    program.works("evaluate", "--timesteps", 1, *(() if evaluated is None else ("--data", evaluated)))
    assert len(used[0]) == 6 and set(used[0]) <= set(train)
    in_train = evaluated == "photos/train"  # val is preferred where nothing is said
    assert sorted(used[1]) == sorted(set(train) - set(used[0]) if in_train else val)


def test_a_copy_of_a_calibration_image_under_another_name_is_left_out(program, used, network, tmp_path):
    twin = next(path for path in Path("photos").rglob("*.png") if path.read_bytes() in used[0])
    shutil.copy(twin, twin.with_name("twin.png"))
    assert "18 images" in program.works("evaluate", "--timesteps", 1)
    assert twin.read_bytes() not in used[1]


@pytest.mark.parametrize("count", [24, 1000])
def test_when_every_image_was_used_it_says_what_to_do(program, used, network, count):
    program.works("convert", "tiny.pth", *CALIBRATED[:2], "--calibration-images", count, *CALIBRATED[4:], "--force")
    code, out, err = program("evaluate", "--timesteps", 1)
    assert (code, out) == (1, "") and err.startswith("Error: ") and err.count("\n") == 1
    assert "every image was used for calibration" in err and "fewer images" in err


def test_when_the_images_are_gone_it_says_so(program, network, tmp_path):
    shutil.rmtree(tmp_path / "photos")
    code, _, err = program("evaluate", "--timesteps", 1)
    assert code == 1 and err.startswith("Error: ") and err.count("\n") == 1 and str(tmp_path / "photos") in err


def test_limit_is_the_same_random_choice_in_every_run(program, used, network, tmp_path):
    for name in ("one.json", "two.json"):
        program.works("evaluate", "--timesteps", 2, "--limit", 9, "--json", name)
    program.works("evaluate", "--timesteps", 2)
    _, first, second, every = used
    assert first == second and len(set(first)) == 9 and set(first) < set(every)
    assert figures(tmp_path / "one.json") == figures(tmp_path / "two.json")
    classes = {path.read_bytes(): path.parent.name for path in Path("photos").rglob("*.png")}
    assert Counter(classes[image] for image in first) == {"a": 3, "b": 3, "c": 3}
    in_order = [path.read_bytes() for path in sorted(Path("photos").rglob("*.png"))]
    assert first != [image for image in in_order if image in every][:9]


def test_an_npz_is_data(program, tmp_path, used):
    make_checkpoint(tmp_path / "tiny.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels, y=np.arange(20) % 3)
    program.works("convert", "tiny.pth", "--calibration", "images.npz", *CALIBRATED[2:])
    np.savez(tmp_path / "other.npz", x=pixels[::-1], y=np.arange(19, -1, -1) % 3)
    for options in ((), ("--data", "other.npz")):
        assert "14 images" in program.works("evaluate", "--timesteps", 2, *options)
        assert not set(used[0]) & set(used[-1])
        assert sorted(used[0] + used[-1]) == sorted(image.tobytes() for image in pixels)


def test_digits_are_data(program, tmp_path, used):
    pytest.importorskip("sklearn")
    make_checkpoint(tmp_path / "tiny.pth", tiny(10))
    program.works("convert", "tiny.pth", "--calibration", "digits", *CALIBRATED[2:])
    assert "40 images" in program.works("evaluate", "--timesteps", 2, "--limit", 40)
    assert not set(used[0]) & set(used[1])
    assert s_resnet.load("tiny.snn").provenance.data.split == "train"


def test_an_evaluation_says_how_many_of_its_images_were_calibrated_on() -> None:
    model = narrow_resnet18(3)
    calibrated, others = images(8, 32, seed=1), images(4, 32, seed=2)
    snn = s_resnet.convert(model, [calibrated], timesteps=2)
    labels = torch.zeros(6, dtype=torch.int64)
    mixed = s_resnet.evaluate(snn, [(torch.cat([others, calibrated[:2]]), labels)], 2)
    assert mixed.calibrated_on == mixed.to_dict()["calibrated_on"] == 2
    assert "2 of the images were calibrated on" in mixed.table()
    clean = s_resnet.evaluate(snn, [(others, labels[:4])], 2)
    assert clean.calibrated_on == 0
    assert "calibrated_on" not in clean.to_dict()
    assert "calibrated on" not in clean.table()


# ---- networks that were converted in Python


def test_a_network_converted_in_python_with_our_loader_is_evaluated_by_the_program(program, tmp_path):
    """The loader knows which images they are and how they are prepared; the network keeps it, as the program does."""
    make_photos(tmp_path / "photos")
    make_checkpoint(tmp_path / "net.pth", tiny())
    program.works("convert", "net.pth", *CALIBRATED, "--recipe", "calibrated", "-o", "by-program.snn")
    by_program = s_resnet.load(tmp_path / "by-program.snn").provenance
    data = open_data(by_program.data.spec, "calibration")
    chosen = s_resnet.data.choose(data, by_program.data.images)
    loader = s_resnet.data.ImageLoader(data, chosen, by_program.preprocessing, batch_size=32)
    snn = s_resnet.convert(tiny().eval(), loader, recipe="calibrated", timesteps=4)
    for name in ("data", "preprocessing", "classes"):
        assert getattr(snn.provenance, name) == getattr(by_program, name)
    s_resnet.save(snn, tmp_path / "by-python.snn")
    names = ("by-python.snn", "by-program.snn")
    one, other = (program.works("evaluate", name, "--timesteps", 4, "--at", 4).split("\n\n")[1] for name in names)
    assert one == other and "ANN" in one


def test_how_torchvisions_weights_want_their_images_is_kept():
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    dataset = torchvision.datasets.FakeData(
        8, (3, 40, 40), 10, transform=weights.transforms(crop_size=32, resize_size=36)
    )
    batches = torch.utils.data.DataLoader(dataset, batch_size=4)
    known = s_resnet.convert(tiny().eval(), batches, recipe="calibrated", timesteps=2).provenance
    expected = s_resnet.data.Preprocessing(32, 36, s_resnet.data.IMAGENET_MEAN, s_resnet.data.IMAGENET_STD)
    assert known.preprocessing == expected and not known.data and known.classes is None


def test_of_other_batches_nothing_is_made_up():
    dataset = torchvision.datasets.FakeData(4, (3, 16, 16), 10, transform=torchvision.transforms.ToTensor())
    for batches in ([images(4, 16)], torch.utils.data.DataLoader(dataset, batch_size=4)):
        known = s_resnet.convert(tiny().eval(), batches, recipe="calibrated", timesteps=2).provenance
        assert not {"data", "preprocessing", "classes"} & known.to_json().keys()
