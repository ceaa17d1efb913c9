"""Datasets, choosing images, preprocessing and the loader, against arrays, torchvision and brute force."""

import builtins
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import traceback
import zlib
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from s_resnet.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageData,
    Preprocessing,
    choose,
    preprocessing_for,
)
from s_resnet.data.leakage import fingerprints
from s_resnet.data.loader import ImageLoader
from s_resnet.data.open import open_data, read_preprocessing, stored_preprocessing
from s_resnet.errors import InvalidData
from s_resnet.training.images import usual_workers

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures"

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_folders(root: Path, counts: dict[str, int]) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise(6, 6, 100 * label + number).save(root / name / f"{number:03}.png")
    return root


def in_memory(labels: list[int], size: int = 4) -> ImageData:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    classes = tuple(str(label) for label in range(max(labels) + 1))
    return ImageData("made", "all", classes, [str(i) for i in range(len(labels))], labels, pixels=pixels)


def assert_form(error: pytest.ExceptionInfo[InvalidData]) -> None:
    """``<where>: <what>, got X; expected Y. <what to do>.`` on one line."""
    text = str(error.value)
    where, _, rest = text.partition(": ")
    assert where and ", got " in rest and "; expected " in rest and text.endswith("."), text
    assert "\n" not in text and ". " in rest.partition("; expected ")[2], text


def fails(match: str, spec: object, split: str = "evaluation", download: bool = False) -> None:
    with pytest.raises(InvalidData, match=match) as error:
        open_data(str(spec), split, download)
    assert_form(error)


# Preprocessing


@pytest.mark.parametrize("size", [1, 8, 31, 32, 127, 128, 224])
@pytest.mark.parametrize("shape", [(32, 32), (40, 57), (301, 256), (8, 8)])
def test_preprocessing_is_torchvisions_evaluation(size: int, shape: tuple[int, int]) -> None:
    image = noise(*shape)
    resize = round(size / 0.875) if size >= 128 else size
    oracle = transforms.Compose(
        [
            transforms.Resize(resize, antialias=True),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    result = preprocessing_for(size)(image)
    assert result.dtype == torch.float32 and result.shape == (3, size, size) and result.is_contiguous()
    assert torch.equal(result, oracle(image))


def test_preprocessing_by_hand() -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, 1:3] = [255, 51, 0]  # the center, which the crop keeps
    result = Preprocessing(2, 2, mean=(0.5, 0.1, 0.25), std=(0.5, 0.1, 0.125))(Image.fromarray(pixels))
    expected = torch.tensor([1.0, 1.0, -2.0])[:, None, None].expand(3, 2, 2)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_preprocessing_takes_every_mode(mode: str) -> None:
    image = noise(9, 9).convert(mode)
    process = preprocessing_for(8)
    assert torch.equal(process(image), process(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, form: str) -> None:
    """The upper 8 bits, as of the same image in 8 bits, whatever mode Pillow opens the file in."""
    deep = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (40, 1))
    (tmp_path / "a").mkdir()
    suffix = {"PNG": "png", "TIFF": "tiff", "PPM": "pgm"}[form]
    Image.fromarray(deep).save(tmp_path / "a" / f"deep.{suffix}", form)
    data = open_data(str(tmp_path), "calibration")
    expected = np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, 2)
    assert np.array_equal(np.array(data.image(0)), expected)
    with Image.open(tmp_path / "a" / f"deep.{suffix}") as image:
        image.load()
        assert torch.equal(preprocessing_for(8)(image), preprocessing_for(8)(Image.fromarray(expected)))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_left_out_and_said(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((8, 8), 70_000, dtype)).save(tmp_path / "a" / "deep.tiff")
    noise(8, 8).save(tmp_path / "a" / "plain.png")
    data = open_data(str(tmp_path), "calibration")
    loader = ImageLoader(data, range(2), preprocessing_for(8), 2, workers=0)
    assert sum(len(labels) for _, labels in loader) == 1
    assert re.fullmatch(r"a/deep.tiff \(32-bit pixels \(mode [IF]\)\)", loader.unreadable[0])
    with pytest.raises(InvalidData, match=r"32-bit pixels.*8 or 16 bits") as error:
        preprocessing_for(8)(Image.fromarray(np.full((8, 8), 1, dtype)))
    assert_form(error)


def test_what_is_no_image_by_its_name_is_counted(tmp_path: Path) -> None:
    make_folders(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "cat" / "more").mkdir()
    for name in ("cat/a.txt", "cat/more/b.TXT", "dog/film.gif", "dog/README", "dog/.hidden", "beside.PNG", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    data = open_data(str(tmp_path), "calibration")
    assert len(data) == 3 and data.skipped == ("1 .gif", "2 .txt", "1 without a suffix", "1 beside the class folders")
    assert open_data(str(make_folders(tmp_path / "clean", {"cat": 1})), "calibration").skipped == ()


def test_what_is_no_regular_file_is_left_out_and_no_folder_is_gone_through_twice(tmp_path: Path) -> None:
    """A link to a device has no end, a pipe no writer, and a folder that links to its parent holds itself."""
    make_folders(tmp_path / "x", {"cat": 2, "dog": 2})
    names = open_data(str(tmp_path / "x"), "evaluation").names
    more = make_folders(tmp_path / "more", {"cats": 3})
    (tmp_path / "x" / "cat" / "more").symlink_to(more / "cats")  # what lies elsewhere belongs to the class
    (tmp_path / "x" / "cat" / "again").symlink_to(more / "cats")
    (tmp_path / "x" / "cat" / "up").symlink_to("..")
    (tmp_path / "x" / "dog" / "here").symlink_to(".")
    (tmp_path / "x" / "all").symlink_to(tmp_path)
    data = open_data(str(tmp_path / "x"), "evaluation")
    assert set(names) < set(data.names) and len(data) == 7 and data.classes == ("cat", "dog")
    assert data.skipped == ("4 link(s) to a folder above",)
    os.symlink("/dev/zero", tmp_path / "x" / "cat" / "zero.png")
    os.mkfifo(tmp_path / "x" / "cat" / "pipe.png")
    (tmp_path / "x" / "cat" / "gone.png").symlink_to("nowhere")
    data = open_data(str(tmp_path / "x"), "evaluation")
    assert len(data) == 10 == len(fingerprints(data, range(10)))
    loader = ImageLoader(data, range(10), preprocessing_for(8), 4, workers=0)
    assert sum(len(labels) for _, labels in loader) == 7
    assert sorted(loader.unreadable) == [
        "cat/gone.png (No such file or directory)",
        "cat/pipe.png (no regular file)",
        "cat/zero.png (no regular file)",
    ]


def test_thin_images_are_left_out(tmp_path: Path) -> None:
    """A few bytes, 30,000 pixels in a row: with the short side at 224 that is a billion and a half."""
    make_folders(tmp_path / "x", {"cat": 2})
    for size in ((30_000, 1), (1, 30_000), (8 * 64, 8), (8 * 64 + 1, 8)):
        Image.new("RGB", size).save(tmp_path / "x" / "cat" / "thin{}x{}.png".format(*size))
    data = open_data(str(tmp_path / "x"), "evaluation")
    loader = ImageLoader(data, range(len(data)), preprocessing_for(8), 8, workers=0)
    assert sum(len(labels) for _, labels in loader) == 3
    assert [text.partition(" ")[0] for text in loader.unreadable] == [
        "cat/thin1x30000.png", "cat/thin30000x1.png", "cat/thin513x8.png",
    ]  # fmt: skip
    assert "one side more than 64 times the other" in loader.unreadable[0]
    np.savez(tmp_path / "thin.npz", x=np.zeros((2, 1, 3000, 3), np.uint8), y=np.zeros(2, np.int64))
    with pytest.raises(InvalidData, match=r"readable images, got none of 2: 0 \(3000 x 1 pixels"):
        list(ImageLoader(open_data(str(tmp_path / "thin.npz"), "evaluation"), range(2), preprocessing_for(224), 2))
    with pytest.raises(InvalidData, match="preprocessing: image, got 30000 x 1 pixels"):
        preprocessing_for(224)(Image.new("RGB", (30_000, 1)))


def test_a_file_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a picture: Pillow would have Ghostscript run it."""
    make_folders(tmp_path, {"cat": 1})
    said = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "cat" / "eps.png").write_bytes(said)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with Image.open(tmp_path / "cat" / "eps.png") as opened:
        assert opened.format == "EPS"  # as Pillow takes it by itself
    data = open_data(str(tmp_path), "evaluation")
    loader = ImageLoader(data, range(2), preprocessing_for(8), 2, workers=0)
    assert sum(len(labels) for _, labels in loader) == 1 and loader.unreadable == ("cat/eps.png (not an image)",)


def test_a_file_without_end_has_a_mark_all_the_same(tmp_path: Path) -> None:
    make_folders(tmp_path, {"cat": 2})
    os.truncate(tmp_path / "cat" / "000.png", 2**42)
    data = open_data(str(tmp_path), "evaluation")
    assert len(set(fingerprints(data, range(2)))) == 2


def test_preprocessing_protocol_and_json() -> None:
    assert preprocessing_for(224) == Preprocessing(224, 256, IMAGENET_MEAN, IMAGENET_STD)
    assert [preprocessing_for(size).resize for size in (32, 64, 127, 128, 299)] == [32, 64, 127, 146, 342]
    made = preprocessing_for(32, mean=[0, 0.5, 1], std=[1, 0.5, 0.25])
    assert made.mean == (0.0, 0.5, 1.0) and all(type(value) is float for value in made.mean + made.std)
    assert Preprocessing(**json.loads(json.dumps(asdict(made)))) == made
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"size": 0}, "size, got 0; expected a whole number >= 1"),
        ({"size": 2.5}, "size, got 2.5"),
        ({"size": True}, "size, got True"),
        ({"resize": 31}, "resize, got 31; expected a whole number >= 32"),
        ({"std": (0.2, 0.0, 0.2)}, "std, got .*above 0"),
        ({"std": (0.2, 0.2)}, "std, got .*three numbers"),
        ({"std": (0.2, 0.2, math.inf)}, "std, got"),
        ({"mean": (0.2,) * 4}, "mean, got .*three numbers"),
        ({"mean": (0.2, 0.2, math.nan)}, "mean, got"),
        ({"mean": "rgb"}, "mean, got 'rgb'"),
        ({"mean": 0.5}, "mean, got 0.5"),
        ({"mean": (123.675, 116.28, 103.53)}, "mean, got .*Divide by 255.*: 0.485,0.456,0.406"),
        ({"std": (58.395, 57.12, 57.375)}, "std, got .*at most 1. Divide by 255.*: 0.229,0.224,0.225"),
        ({"mean": (-0.1, 0.5, 0.5)}, "mean, got .*from 0 to 1"),
    ],
)
def test_preprocessing_refuses(settings: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidData, match=match) as error:
        replace(preprocessing_for(32), **settings)
    assert_form(error)


# Directories


def test_class_folders(tmp_path: Path) -> None:
    make_folders(tmp_path, {"cat": 2, "dog": 3})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("no class")
    for split in ("calibration", "evaluation"):
        data = open_data(str(tmp_path), split)
        assert (data.spec, data.split, data.classes) == (str(tmp_path.resolve()), "all", ("cat", "dog"))
        assert list(data.names) == ["cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png", "dog/002.png"]
        assert list(data.labels) == [0, 0, 1, 1, 1] and len(data) == 5
    assert np.array_equal(np.array(data.image(3)), np.array(noise(6, 6, 101)))
    assert data.image(3).mode == "RGB"


def test_the_spec_does_not_depend_on_how_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folders(tmp_path / "real" / "digits", {"a": 1})
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    written = [str(folder), "./digits", "../real/digits/", str(tmp_path / "link"), "~/real/digits"]
    assert {open_data(spec, "evaluation").spec for spec in written} == {str(folder.resolve())}


@pytest.mark.parametrize("holdout", ["test", "val", "validation"])
def test_train_and_held_out_folders(tmp_path: Path, holdout: str) -> None:
    make_folders(tmp_path / "train", {"cat": 1, "dog": 2, "owl": 1})
    make_folders(tmp_path / holdout, {"owl": 1, "dog": 1})
    calibration, evaluation = (open_data(str(tmp_path), split) for split in ("calibration", "evaluation"))
    assert calibration.split == "train" and evaluation.split == holdout
    assert calibration.spec == evaluation.spec == str(tmp_path.resolve())
    names = ["train/cat/000.png", "train/dog/000.png", "train/dog/001.png", "train/owl/000.png"]
    assert list(calibration.names) == names
    # Held-out labels follow the training folders, though cat is missing here.
    assert evaluation.classes == calibration.classes == ("cat", "dog", "owl")
    assert list(evaluation.names) == [f"{holdout}/dog/000.png", f"{holdout}/owl/000.png"]
    assert list(evaluation.labels) == [1, 2]
    assert evaluation.image(0).size == (6, 6)


def test_flat_test_folder_gives_way_to_val(tmp_path: Path) -> None:
    make_folders(tmp_path, {"test": 1})  # images without labels
    make_folders(tmp_path / "train", {"cat": 1})
    make_folders(tmp_path / "val", {"cat": 1})
    assert open_data(str(tmp_path), "evaluation").split == "val"
    make_folders(tmp_path / "test", {"cat": 1})  # now it has labels, and comes first
    assert open_data(str(tmp_path), "evaluation").split == "test"


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    assert open_data(str(make_folders(tmp_path, {"test": 1, "train": 1})), "evaluation").classes == (
        "test",
        "train",
    )


def test_directories_refused(tmp_path: Path) -> None:
    fails("path, got nothing there; expected a directory of class folders", tmp_path / "absent")
    fails("path, got nothing", "")
    fails("unknown prefix 'foo'; expected .*cifar10:DIR", "foo:bar")
    fails("split, got 'testing'", tmp_path, split="testing")
    (tmp_path / "file.txt").write_text("x")
    fails("path, got a file; expected a directory", tmp_path / "file.txt")
    (tmp_path / "in\ntwo").mkdir()
    fails("class folders, got none", tmp_path / "in\ntwo")
    make_folders(tmp_path / "hollow", {"cat": 1, "dog": 0})
    (tmp_path / "hollow" / "dog" / "readme.txt").write_text("x")
    fails(r"images, got none in class folder 'dog'; expected .*\.jpg", tmp_path / "hollow")
    make_folders(tmp_path / "half" / "train", {"cat": 1})
    fails("splits, got class folders in train/ only; expected train/ and one of test/", tmp_path / "half")
    make_folders(tmp_path / "half", {"test": 1})
    fails("splits, got class folders in train/ only", tmp_path / "half")
    make_folders(tmp_path / "more" / "train", {"cat": 1})
    make_folders(tmp_path / "more" / "val", {"cat": 1, "eel": 1})
    fails("class folders, got 'eel', which train/ has not", tmp_path / "more")


@pytest.mark.skipif(not (FIXTURES / "cifar10").is_dir(), reason="shared/fixtures/cifar10 is not here")
def test_real_folders() -> None:
    calibration, evaluation = (open_data(str(FIXTURES / "cifar10"), split) for split in ("calibration", "evaluation"))
    oracle = datasets.ImageFolder(str(FIXTURES / "cifar10" / "test"))
    assert (len(calibration), len(evaluation)) == (2048, 500)
    assert list(evaluation.classes) == oracle.classes and list(evaluation.labels) == oracle.targets
    for index in (0, 250, 499):
        assert np.array_equal(np.array(evaluation.image(index)), np.array(oracle[index][0]))
    assert Counter(evaluation.labels[i] for i in choose(evaluation, 100)) == dict.fromkeys(range(10), 10)
    assert not set(calibration.names) & set(evaluation.names)


# .npz


def save_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


X = np.random.default_rng(3).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
Y = np.array([2, 0, 1, 2, 0])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, np.uint64])
def test_npz_gives_its_arrays(tmp_path: Path, dtype: type) -> None:
    path = save_npz(tmp_path / "images.npz", x=X, y=Y.astype(dtype))
    for split in ("calibration", "evaluation"):
        data = open_data(str(path), split)
        assert (data.spec, data.split, data.classes) == (str(path.resolve()), "all", ("0", "1", "2"))
        assert list(data.names) == ["0", "1", "2", "3", "4"] and list(data.labels) == Y.tolist()
        for index in range(5):
            assert np.array_equal(np.array(data.image(index)), X[index])


@pytest.mark.parametrize("gray", [X[..., 0], X[..., :1]])
def test_npz_of_gray_images(tmp_path: Path, gray: np.ndarray) -> None:
    """As MNIST and its kin: the same in all three channels, or as the one that a network of one channel wants."""
    data = open_data(str(save_npz(tmp_path / "images.npz", x=gray, y=Y)), "evaluation")
    assert np.array_equal(np.array(data.image(3)), np.repeat(X[3, :, :, :1], 3, axis=2))
    one = Preprocessing(6, 6, mean=(0.2, 0.3, 0.4), std=(0.5, 0.25, 0.15), gray=True)(data.image(3))
    torch.testing.assert_close(one, Preprocessing(6, 6, (0.3,) * 3, (0.3,) * 3)(data.image(3))[:1])
    by_hand = Preprocessing(1, 1, (0.25,) * 3, (0.5,) * 3, gray=True)(Image.fromarray(np.full((1, 1, 3), 51, np.uint8)))
    torch.testing.assert_close(by_hand, torch.tensor([[[(0.2 - 0.25) / 0.5]]]))
    assert read_preprocessing(stored_preprocessing(preprocessing_for(8, gray=True))).gray
    assert "gray" not in stored_preprocessing(preprocessing_for(8))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": X}, "arrays, got x; expected x and y"),
        ({"images": X, "labels": Y}, "arrays, got images, labels; expected x and y"),
        ({}, "arrays, got none"),
        (
            {"x": X.astype(np.float32), "y": Y},
            r"x, got float32 \[5, 6, 7, 3\]; expected uint8 images \[B, H, W, 3\]",
        ),
        ({"x": np.zeros((5, 24), np.float32), "y": Y}, r"x, got float32 \[5, 24\]; expected .* signals \[B, C, L\]"),
        ({"x": np.zeros((5, 3, 8), np.int16), "y": Y}, r"x, got int16 \[5, 3, 8\]"),
        ({"x": np.zeros((5, 3, 8), complex), "y": Y}, r"x, got complex128 \[5, 3, 8\]"),
        ({"x": np.zeros((5, 0, 8)), "y": Y}, r"x, got float64 \[5, 0, 8\]"),
        ({"x": X[..., :2], "y": Y}, r"x, got uint8 \[5, 6, 7, 2\]"),
        ({"x": X[0], "y": Y}, r"x, got uint8 \[6, 7, 3\]"),
        ({"x": X[:0], "y": Y[:0]}, r"x, got uint8 \[0, 6, 7, 3\]"),
        ({"x": X, "y": Y.astype(float)}, "y, got float64"),
        ({"x": X, "y": Y[:4]}, r"y, got int64 \[4\]; expected integer \[5\]"),
        ({"x": X, "y": Y[:, None]}, r"y, got int64 \[5, 1\]"),
        ({"x": X, "y": Y - 1}, "label, got -1; expected 0 to"),
        ({"x": X, "y": Y + 10**9}, "label, got 1000000002; expected 0 to"),
        ({"x": X, "y": np.array([object()] * 5)}, "file, got Object arrays cannot be loaded"),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
    fails(match, save_npz(tmp_path / "bad.npz", **arrays))


def test_npz_damaged(tmp_path: Path) -> None:
    whole = save_npz(tmp_path / "whole.npz", x=X, y=Y).read_bytes()
    bad = tmp_path / "bad.npz"
    np.save(tmp_path / "bare.npy", X)
    damaged = [b"", b"text", whole[:-30], whole[: len(whole) // 2], (tmp_path / "bare.npy").read_bytes()]
    damaged.append(whole[:300] + b"\0" * 200 + whole[500:])
    for content in damaged:
        bad.write_bytes(content)
        fails("file, got .*; expected an .npz archive", bad)


# torchvision's datasets and the digits


def fake_mnist(root: Path, train: int, test: int) -> np.ndarray:
    """Write the four IDX files of MNIST with random images; label i is i % 10. Returns the test images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([0x801, count], dtype=">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return images


def test_mnist(tmp_path: Path) -> None:
    images = fake_mnist(tmp_path, train=12, test=11)
    calibration, evaluation = (open_data(f"mnist:{tmp_path}", s) for s in ("calibration", "evaluation"))
    assert (calibration.split, len(calibration)) == ("train", 12)
    assert (evaluation.split, len(evaluation), len(evaluation.classes)) == ("test", 11, 10)
    assert evaluation.spec == f"mnist:{tmp_path.resolve()}"
    assert list(evaluation.labels) == [*range(10), 0] and evaluation.names[10] == "10"
    assert np.array_equal(np.array(evaluation.image(10)), images[10][:, :, None].repeat(3, axis=2))


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [3, 1, 4, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [(f"data_batch_{n}", None) for n in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [("test_batch", None)])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": None})
    assert len(open_data(f"cifar10:{tmp_path}", "calibration")) == 20
    data = open_data(f"cifar10:{tmp_path}", "evaluation")
    assert (data.split, data.classes, list(data.labels)) == ("test", tuple("abcdefghij"), [3, 1, 4, 1])
    assert np.array_equal(np.array(data.image(2)), rows[2].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "mnist"])
def test_torchvision_data_not_there(tmp_path: Path, kind: str) -> None:
    fails(f"dataset, got .*not found.*; expected the files of {kind} .*pass download=True", f"{kind}:{tmp_path}")
    fails(f"directory, got none; expected {kind}:DIR", f"{kind}:")


def test_torchvision_data_damaged(tmp_path: Path) -> None:
    fake_mnist(tmp_path, train=3, test=3)
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0")
    fails("dataset, got an incomplete one", f"mnist:{tmp_path}")


def test_download_is_passed_on_and_keeps_stdout_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(self: object) -> None:
        print("Downloading")
        fake_mnist(tmp_path, train=2, test=2)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    assert len(open_data(f"mnist:{tmp_path}", "evaluation", download=True)) == 2
    assert capsys.readouterr().out == ""


def test_digits() -> None:
    load_digits = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits
    stored = load_digits()
    train, test = (open_data("digits", split) for split in ("calibration", "evaluation"))
    assert (len(train), len(test), train.split, test.split) == (1297, 500, "train", "test")
    assert train.spec == test.spec == "digits" and train.classes == tuple("0123456789")
    assert Counter(test.labels) == dict.fromkeys(range(10), 50)
    assert sorted(map(int, [*train.names, *test.names])) == list(range(1797))
    for index in (0, 123, 499):
        original = int(test.names[index])
        assert test.labels[index] == stored.target[original]
        gray = np.array(test.image(index).convert("L"), dtype=float)
        assert np.abs(gray - stored.images[original] * 255 / 16).max() <= 0.5
    # Frozen: a split that moves would move every published figure.
    assert list(test.names[:8]) == ["9", "11", "15", "19", "20", "24", "26", "27"]


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    fails(r"scikit-learn, got no such package.*pip install scikit-learn", "digits")


# choose


UNEVEN = in_memory([0] * 50 + [1] * 20 + [2] * 3 + [4] * 27)


@pytest.mark.parametrize("seed", range(20))
def test_choose_takes_turns_in_the_order_of_the_hashes(seed: int) -> None:
    """Brute force: sort by hash, and count how often each class came before."""
    chance = random.Random(seed)
    count = chance.randrange(1, 200)
    names = [f"{chance.random()}é" for _ in range(count)]
    labels = [chance.randrange(-1, 1 + seed) for _ in range(count)]
    data = ImageData("x", "all", (), names, labels, "/x")
    excluded = chance.sample(names, chance.randrange(count))
    limit = chance.choice((None, chance.randrange(1, 250)))

    def order(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{names[index]}".encode(), digest_size=16).digest()

    mixed = sorted((i for i in range(count) if names[i] not in excluded), key=order)
    turns = [sum(labels[other] == labels[index] for other in mixed[:place]) for place, index in enumerate(mixed)]
    first = sorted(range(len(mixed)), key=lambda place: turns[place])[:limit]
    assert choose(data, limit, seed, excluded) == [mixed[place] for place in sorted(first)]


def test_names_are_listed_without_opening_or_asking_for_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million images would take minutes otherwise, on a file server hours."""
    make_folders(tmp_path / "train", {"cat": 7, "dog": 9})
    make_folders(tmp_path / "val", {"cat": 8})
    asked: list[str] = []
    for name in ("stat", "lstat", "open"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *a, real=real, **k: asked.append(str(path)) or real(path, *a, **k))
    data = open_data(str(tmp_path), "calibration")
    assert len(choose(data, 5)) == 5 and len(data) == 16
    assert not [path for path in asked if path.endswith(".png")]


@pytest.mark.parametrize("limit", [1, 3, 4, 10, 13, 40, 99])
@pytest.mark.parametrize("seed", [0, 7])
def test_choose_shares_between_classes(limit: int, seed: int) -> None:
    chosen = choose(UNEVEN, limit, seed)
    assert len(set(chosen)) == len(chosen) == limit
    counts, sizes = Counter(UNEVEN.labels[i] for i in chosen), Counter(UNEVEN.labels)
    assert len(counts) == min(limit, len(sizes))
    # Brute force: a class has fewer than the most by two only when it is used up.
    assert all(counts[c] >= max(counts.values()) - 1 or counts[c] == sizes[c] for c in sizes)


def test_choose_is_the_same_for_every_order_of_the_files() -> None:
    order = list(range(len(UNEVEN)))
    random.Random(1).shuffle(order)
    shuffled = replace(UNEVEN, names=[UNEVEN.names[i] for i in order], labels=[UNEVEN.labels[i] for i in order])
    for limit in (5, 60, None):
        names = [UNEVEN.names[i] for i in choose(UNEVEN, limit)]
        assert names == [UNEVEN.names[i] for i in choose(UNEVEN, limit)]
        assert names == [shuffled.names[i] for i in choose(shuffled, limit)]
    assert choose(UNEVEN, 5, seed=0) != choose(UNEVEN, 5, seed=1)


def test_choose_takes_and_mixes_all() -> None:
    for limit in (None, 100, 1000):
        chosen = choose(UNEVEN, limit)
        assert sorted(chosen) == list(range(100)) and chosen != sorted(chosen)
    labels = [UNEVEN.labels[i] for i in chosen]
    assert sum(a != b for a, b in pairwise(labels)) > 40
    assert {0, 1, 4} <= set(labels[:30]) and {0, 1, 4} <= set(labels[-30:])


def test_choose_never_gives_the_first() -> None:
    data = in_memory([0] * 1000)
    drawn = Counter(index for seed in range(200) for index in choose(data, 100, seed))
    # Each image is drawn 20 times on average, with a standard deviation of 4.2.
    assert len(drawn) == 1000 and max(drawn.values()) < 45
    assert abs(sum(drawn[index] for index in range(100)) - 2000) < 5 * math.sqrt(1800)


def test_choose_excludes() -> None:
    used = [UNEVEN.names[i] for i in choose(UNEVEN, 60)]
    rest = choose(UNEVEN, None, exclude=used)
    assert len(rest) == 40 and not {UNEVEN.names[i] for i in rest} & set(used)
    assert len(choose(UNEVEN, 8, exclude=used)) == 8
    with pytest.raises(InvalidData, match=r"images left, got none of 100, 100 excluded.*calibration") as error:
        choose(UNEVEN, 10, exclude=set(UNEVEN.names))
    assert_form(error)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_choose_refuses(limit: int) -> None:
    with pytest.raises(InvalidData, match=f"limit, got {limit}; expected a whole number >= 1") as error:
        choose(UNEVEN, limit)
    assert_form(error)


def test_choose_takes_names_that_are_not_utf8() -> None:
    data = replace(in_memory([0, 1]), names=["caf\udce9.png", "b.png"])
    assert sorted(choose(data, 2)) == [0, 1]


# ImageLoader


def everything(loader: ImageLoader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader_gives_every_image_in_order(workers: int) -> None:
    data, process = in_memory([0, 1, 2] * 7, size=9), preprocessing_for(8)
    indices = choose(data, None)
    loader = ImageLoader(data, indices, process, batch_size=4, workers=workers)
    expected = torch.stack([process(data.image(index)) for index in indices])
    assert len(loader) == 6 and loader.images == 21
    for _ in range(2):  # again: the loader can be iterated twice
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 1]
        images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(images, expected)
        assert labels.tolist() == [data.labels[index] for index in indices]
        assert loader.unreadable == ()


def test_loader_leaves_the_random_numbers_alone() -> None:
    loader = ImageLoader(in_memory([0, 1]), [0, 1], preprocessing_for(4), 1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_can_be_left_early() -> None:
    data = in_memory([0, 1] * 20)
    loader = ImageLoader(data, range(40), preprocessing_for(4), 2, workers=2)
    for _ in loader:
        break
    assert everything(loader)[1].tolist() == [0, 1] * 20


@pytest.mark.parametrize(("method", "want"), [("fork", 2), ("spawn", 0), ("forkserver", 0), (None, None)])
def test_spawned_workers_are_only_used_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, method: str | None, want: int | None
) -> None:
    """A script without a main guard would be run again in each of them."""
    asked: list[bool] = []

    def start_method(allow_none: bool = False) -> str | None:
        asked.append(allow_none)
        return method

    monkeypatch.setattr(multiprocessing, "get_start_method", start_method)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    if want is None:  # not settled yet: what the system begins with
        want = 2 if multiprocessing.get_all_start_methods()[0] == "fork" else 0
    assert ImageLoader(in_memory([0] * 64), range(64), preprocessing_for(4), 8)._workers == want
    assert usual_workers(torch.device("cpu")) == want
    assert ImageLoader(in_memory([0] * 64), range(64), preprocessing_for(4), 8, workers=3)._workers == 3
    assert all(asked)  # else the question would settle it for the caller


def spoil(root: Path) -> list[str]:
    """Write ten images, four of them damaged in different ways; returns their names and the one to delete."""
    make_folders(root, {"a": 5, "b": 5})
    png = (root / "a" / "000.png").read_bytes()
    (root / "a" / "001.png").write_bytes(png[: len(png) - 40])
    (root / "a" / "003.png").write_text("not an image at all")
    (root / "b" / "000.png").write_bytes(b"")
    (root / "b" / "001.png").write_bytes(png[:60])
    return ["a/001.png", "a/003.png", "b/000.png", "b/001.png", "b/002.png"]


@pytest.mark.parametrize(("count", "batch_size", "want"), [(63, 1, 0), (64, 1, 2), (64, 64, 1), (200, 32, 2)])
def test_few_samples_have_no_workers(monkeypatch: pytest.MonkeyPatch, count: int, batch_size: int, want: int) -> None:
    started: list[int] = []

    class Watched(DataLoader[Any]):
        def __init__(self, *given: Any, num_workers: int, **named: Any) -> None:
            started.append(num_workers)
            super().__init__(*given, num_workers=0, **named)

    monkeypatch.setattr("s_resnet.data.loader.DataLoader", Watched)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    loader = ImageLoader(in_memory([0] * count), range(count), preprocessing_for(4), batch_size)
    assert sum(len(labels) for _, labels in loader) == count and started == [want]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_notes_what_it_cannot_read(tmp_path: Path, workers: int) -> None:
    bad = spoil(tmp_path)
    data = open_data(str(tmp_path), "evaluation")
    (tmp_path / "b" / "002.png").unlink()  # gone after it was listed
    process = preprocessing_for(6)
    loader = ImageLoader(data, range(10), process, batch_size=2, workers=workers)
    batches = list(loader)
    good = [index for index, name in enumerate(data.names) if name not in bad]
    assert [len(labels) for _, labels in batches] == [1, 1, 1, 2]  # of five: b/001 and b/002 are both bad
    assert torch.equal(torch.cat([b[0] for b in batches]), torch.stack([process(data.image(i)) for i in good]))
    assert torch.cat([b[1] for b in batches]).tolist() == [data.labels[i] for i in good]
    assert [note.split(" ")[0] for note in loader.unreadable] == bad
    reasons = " ".join(loader.unreadable)
    assert "(not an image)" in reasons and "(No such file or directory)" in reasons and "0x" not in reasons
    noise(6, 6).save(tmp_path / "b" / "002.png")
    assert len(everything(loader)[1]) == 6 and len(loader.unreadable) == 4


def test_one_unreadable_image(tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(InvalidData, match=r"image 'a/003.png': file, got not an image") as error:
        open_data(str(tmp_path), "evaluation").image(3)
    assert_form(error)


def test_png_with_a_broken_chunk(tmp_path: Path) -> None:
    make_folders(tmp_path, {"a": 1})
    path = tmp_path / "a" / "000.png"
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") - 4
    length = int.from_bytes(content[at : at + 4], "big")
    data, rest = bytes(content[at + 8 : at + 8 + length]), bytes(content[at + 12 + length :])
    first = b"IDAT" + data[:20]
    chunk = (20).to_bytes(4, "big") + first + zlib.crc32(first).to_bytes(4, "big")
    path.write_bytes(bytes(content[:at]) + chunk + (9).to_bytes(4, "big") + b"\0\1\2\3" + data[20:] + rest)
    with pytest.raises(InvalidData, match="file, got broken PNG file"):  # a SyntaxError of Pillow's
        open_data(str(tmp_path), "evaluation").image(0)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about strange headers
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_damage_never_ends_in_another_exception(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"image.{suffix}"
    noise(16, 16).save(path)
    whole, chance, broken = path.read_bytes(), random.Random(0), 0
    data = open_data(str(tmp_path), "evaluation")
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[chance.randrange(min(60, len(content)))] = chance.randrange(256)
        path.write_bytes(content[: chance.randrange(len(content))] if chance.random() < 0.3 else content)
        try:
            data.image(0)
        except InvalidData:
            broken += 1
    assert broken > 20


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_stops_when_nothing_is_readable(tmp_path: Path, workers: int) -> None:
    make_folders(tmp_path, {"a": 4})
    data = open_data(str(tmp_path), "evaluation")
    for name in data.names:
        (tmp_path / name).write_text("junk")
    loader = ImageLoader(data, range(4), preprocessing_for(6), 2, workers)
    with pytest.raises(
        InvalidData, match=r"readable images, got none of 4: a/000.png \(not an image\), a/001"
    ) as error:
        list(loader)
    assert_form(error)
    assert len(loader.unreadable) == 4


class Faulty(Preprocessing):
    def __call__(self, image: Image.Image) -> torch.Tensor:
        raise ValueError("a mistake in the program")


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_hides_no_other_error(workers: int) -> None:
    loader = ImageLoader(in_memory([0, 1]), [0, 1], Faulty(4, 4), 1, workers)
    with pytest.raises(ValueError, match="a mistake in the program") as error:
        list(loader)
    traceback.clear_frames(error.tb)  # they hold the workers, which would wait for the garbage collector


def test_loader_takes_no_mistake_for_a_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(self: ImageData, index: int) -> Image.Image:
        raise TypeError("a mistake in the program")

    monkeypatch.setattr(ImageData, "decode", mistaken)
    with pytest.raises(TypeError, match="a mistake in the program"):
        list(ImageLoader(in_memory([0, 1]), [0, 1], preprocessing_for(4), 1, workers=0))


@pytest.mark.parametrize(
    ("indices", "batch_size", "workers", "match"),
    [
        ([0], 0, 0, "batch size, got 0"),
        ([0], 1.5, 0, "batch size, got 1.5"),
        ([0], 1, -1, "workers, got -1"),
        ([], 1, 0, "indices, got none; expected some of 0 to 1"),
        ([0, 2], 1, 0, "indices, got 0 to 2; expected some of 0 to 1"),
        ([-1], 1, 0, "indices, got -1 to -1"),
    ],
)
def test_loader_refuses(indices: list[int], batch_size: int, workers: int, match: str) -> None:
    with pytest.raises(InvalidData, match=match) as error:
        ImageLoader(in_memory([0, 1]), indices, preprocessing_for(4), batch_size, workers)
    assert_form(error)


def test_data_can_be_pickled(tmp_path: Path) -> None:
    fake_mnist(tmp_path / "mnist", train=2, test=2)
    make_folders(tmp_path / "folders", {"a": 1, "b": 1})
    npz = save_npz(tmp_path / "images.npz", x=X, y=Y)
    for spec in (f"mnist:{tmp_path / 'mnist'}", str(tmp_path / "folders"), str(npz)):
        data = open_data(spec, "evaluation")
        copy = pickle.loads(pickle.dumps(data))
        assert (copy.spec, copy.names, copy.labels) == (data.spec, data.names, data.labels)
        assert np.array_equal(np.array(copy.image(1)), np.array(data.image(1)))


def test_what_workers_are_given_can_be_pickled() -> None:
    """Python 3.14 starts workers by forkserver: they inherit nothing."""
    loader = ImageLoader(in_memory([0, 1, 2]), [2, 0, 1], preprocessing_for(4), 2, workers=1)
    images, labels, unreadable, events = pickle.loads(pickle.dumps(loader._batches))[0]
    assert labels.tolist() == [2, 0] and unreadable == [] and events == (0, 0)
    assert torch.equal(images, next(iter(loader))[0])


SCRIPT = """
import signal, sys
from s_resnet.data.images import preprocessing_for
from s_resnet.data.loader import ImageLoader
from s_resnet.data.open import open_data, read_preprocessing, stored_preprocessing
from s_resnet.training.images import usual_workers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    data = open_data(sys.argv[1], "evaluation")
    for _ in ImageLoader(data, [0] * 200_000, preprocessing_for(8), 64, workers=2):
        print("running", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="process groups and their signals are POSIX")
def test_interrupt_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    npz = save_npz(tmp_path / "images.npz", x=X, y=Y)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(npz)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C sends: to the workers too
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and "KeyboardInterrupt" in err
