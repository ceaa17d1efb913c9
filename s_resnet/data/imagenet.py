"""ImageNet (ILSVRC 2012) as it is distributed: unpacked archives, the devkit's or Kaggle's labels, or class folders."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from .. import files
from ..errors import InvalidData, message
from .folders import Listing, class_names, images_in
from .images import ImageData, reason
from .meta_mat import read_synsets
from .wordnet import imagenet_ids, imagenet_output

BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # below DIR: the archives', Kaggle's
TRAIN = ("train", "ILSVRC2012_img_train")
VAL = ("val", "ILSVRC2012_img_val", "validation", "test")  # the real test images have no labels
DEVKITS = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")
SOLUTION, TRUTH, META = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
LARGEST = 2**26  # bytes of a file of labels; the real ones have at most 2 MB
LABELS = f"{SOLUTION} (of Kaggle), or {TRUTH} with {META} (of the devkit)"


def open_imagenet(root: Path, split: str, download: bool = False) -> ImageData:
    """ILSVRC 2012 in a folder, with the 1,000 WordNet ids in sorted order as its classes.

    It holds ``train/`` (or ``ILSVRC2012_img_train/``) with a folder for each class, and ``val/`` (or
    ``ILSVRC2012_img_val/``) either with such folders or with the 50,000 images as they come out of the archive. Those
    get their labels from Kaggle's ``LOC_val_solution.csv``, or from the devkit's
    ``ILSVRC2012_validation_ground_truth.txt`` and ``meta.mat``, in the folder or its unpacked devkit. ILSVRC's own
    class numbers, which the devkit uses, are in another order than WordNet ids; the latter are what networks use. Of
    Kaggle's folders, the one that holds ``ILSVRC/`` is named. Class folders may be called ``n01440764``, ``tench`` or
    ``n01440764_tench``, and some classes may be absent.

    Args:
        root: the folder.
        split: ``"calibration"`` (train) or ``"evaluation"`` (val).
        download: refused; the license has to be accepted first.

    Raises:
        InvalidData: something is missing, packed, or of another form.
    """
    where = f"data 'imagenet:{root}'"
    if download:
        expected = "a dataset that can be downloaded; its license has to be accepted first"
        remedy = "Put the archives from image-net.org there and unpack them, or name a directory of class folders"
        raise InvalidData(message(where, "download", "imagenet", expected, remedy))
    try:
        return _open(root, where, TRAIN if split == "calibration" else VAL)
    except OSError as error:
        remedy = "Change its permissions so that you can read it"
        raise InvalidData(message(where, "path", reason(error), "a readable directory", remedy)) from error


def _open(root: Path, where: str, names: tuple[str, ...]) -> ImageData:
    part = names[0]
    places = [path for base in BASES for name in names if (path := root / base / name).is_dir()]
    folder = next((path for path in places if path.name != "test" or class_names(path)), None)
    if folder is None:
        if not root.exists():
            raise InvalidData(message(where, "path", "nothing there", "a directory", "Name one that exists"))
        got = _packed(root) or "no such folder"
        raise InvalidData(message(where, f"{part} images", got, f"{part}/, unpacked", _unpack(part)))
    spec = f"imagenet:{root}"
    if found := class_names(folder):
        labels = {name: output for name in found if (output := imagenet_output(name)) is not None}
        if unknown := [name for name in found if name not in labels]:
            expected = "one named n01440764, tench or n01440764_tench"
            remedy = "Rename or remove it; for other classes name the directory without imagenet:"
            raise InvalidData(message(where, f"folder {folder.name}/", repr(unknown[0]), expected, remedy))
        return images_in(folder, labels, root).data(spec, part, imagenet_ids(), str(root))
    if part == "train" or (_packed(folder) and not any(map(_number, os.listdir(folder)))):
        got = _packed(folder) or "no class folders"
        raise InvalidData(message(where, f"folder {folder.name}/", got, "class folders", _unpack(part)))
    return _flat(root, folder, where).data(spec, part, imagenet_ids(), str(root))


def _packed(folder: Path) -> str:
    """The first archive in the folder, or the folder's name where it is one itself; empty without any."""
    if folder.is_file():
        return f"the file {folder.name}"
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return next((f"the archive {name}" for name in names if name.endswith((".tar", ".tar.gz", ".zip"))), "")


def _unpack(part: str) -> str:
    """How to unpack the archives; nothing is extracted here, as an archive may write anywhere."""
    into = f"mkdir {part} && tar -xf ILSVRC2012_img_{part}.tar -C {part}"
    if part == "val":
        return f"Run: {into}"
    return f"Run: {into} && cd train && for f in *.tar; do mkdir ${{f%.tar}} && tar -xf $f -C ${{f%.tar}}; done"


def _number(file: str) -> int | None:
    """The number of a validation image; None for another file."""
    found = re.match(r"ILSVRC2012_val_(\d{8})\.", file)
    return int(found[1]) if found else None


def _flat(root: Path, folder: Path, where: str) -> Listing:
    """The validation images as they come out of the archive."""
    outputs = _solution(root) or _truth(root, where)
    prefix = os.path.relpath(folder, root).replace(os.sep, "/")
    found = Listing()
    for file in sorted(item.name for item in os.scandir(folder) if item.is_file()):
        number = _number(file)
        if number is None:
            found.others["other file(s)"] += not file.startswith(".")
        elif number in outputs:
            found.add(f"{prefix}/{file}", file, outputs[number])
        else:
            expected, remedy = f"one of the {len(outputs):,} in the list of labels", "Complete the list"
            raise InvalidData(message(where, "validation image", file, expected, remedy))
    if not found.names:
        expected = "class folders, or ILSVRC2012_val_00000001.JPEG and so on"
        raise InvalidData(message(where, f"images in {folder.name}/", "none", expected, _unpack("val")))
    return found


def _solution(root: Path) -> dict[int, int]:
    """Kaggle's labels: the output of every image, by its number; empty without such a file.

    Raises:
        InvalidData: the file is of another form.
    """
    path = root / SOLUTION
    if not path.exists():
        return {}
    try:
        lines = files.read(path, LARGEST).decode().splitlines()
        rows = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
        return {_known(_number(f"{image}.")): _known(imagenet_output(wnid)) for image, wnid in rows.items()}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, csv.Error) as error:
        expected, remedy = "ImageId, and a PredictionString that begins with a WordNet id", "Copy it again"
        raise InvalidData(message(str(path), "labels", reason(error), expected, remedy)) from error


def _truth(root: Path, where: str) -> dict[int, int]:
    """The devkit's labels: the output of every image, by its number.

    Raises:
        InvalidData: the files are not there, or of another form.
    """
    there = [path for place in DEVKITS if (path := root / place / TRUTH).exists()]
    if not there or not there[0].with_name(META).exists():
        got = f"{TRUTH} without {META} beside it" if there else "none for the images in val/"
        remedy = f"Put it into {root}, or sort the images into class folders"
        raise InvalidData(message(where, "labels", got, LABELS, remedy))
    truth, meta = there[0], there[0].with_name(META)
    try:
        outputs = {number: imagenet_output(wnid) for number, wnid in read_synsets(files.read(meta, LARGEST)).items()}
        numbers = files.read(truth, LARGEST).decode().split()
        return {image: _known(outputs.get(int(number))) for image, number in enumerate(numbers, 1)}
    except (OSError, ValueError) as error:
        expected = f"one number of {META} for each image"
        raise InvalidData(message(str(truth), "labels", reason(error), expected, "Unpack the devkit again")) from error


def _known(number: int | None) -> int:
    if number is None:
        raise ValueError("a name or number that is not in the list of classes")
    return number
