"""Folders of images: class folders, splits beside each other, and images without labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InvalidData, message
from .images import ImageData, reason

HOLDOUTS = ("test", "val", "validation")
TRAINING = ("train", "training")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
AGAIN, BESIDE = "link(s) to a folder above", "beside the class folders"


@dataclass
class Listing:
    """Images below a folder.

    Attributes:
        names: their paths below it, with forward slashes.
        labels: one for each.
        others: other files, by kind.
    """

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, file: str, label: int) -> None:
        """Take a file in, or count it where it is no image; one whose name begins with a dot is hidden."""
        if file.lower().endswith(EXTENSIONS):
            self.names.append(name)
            self.labels.append(label)
        elif not file.startswith("."):
            self.others[os.path.splitext(file)[1].lower() or "without a suffix"] += 1

    @property
    def skipped(self) -> tuple[str, ...]:
        """The other files in words."""
        kinds = sorted(self.others.items(), key=lambda kind: (kind[0] == BESIDE, kind[0]))
        return tuple(f"{count} {kind}" for kind, count in kinds if count)

    def data(self, spec: str, split: str, classes: tuple[str, ...], root: str) -> ImageData:
        """The images as data."""
        return ImageData(spec, split, classes, self.names, self.labels, root=root, skipped=self.skipped)


def open_directory(path: Path, split: str) -> ImageData:
    """A folder of class folders, of splits, or of images without labels.

    Raises:
        InvalidData: it is none of these, or cannot be read.
    """
    where = f"data '{path}'"
    try:
        folders = class_names(path)
        nested = [name for name in ("train", *HOLDOUTS) if name in folders and class_names(path / name)]
        if len(nested) > 1 and nested[0] == "train":
            return _open_folders(path, "train" if split == "calibration" else nested[1])
        if nested and {"train", *HOLDOUTS}.issuperset(folders):  # as classes they would give wrong labels
            got = f"class folders in {nested[0]}/ only"
            expected = "train/ and one of test/, val/, validation/"
            raise InvalidData(message(where, "splits", got, expected, f"Add the other, or name '{path / nested[0]}'"))
        return _open_folders(path, None) if folders else _open_flat(path, split)
    except OSError as error:
        raise InvalidData(
            message(
                where, "path", reason(error), "a readable directory", "Change its permissions so that you can read it"
            )
        ) from error


def _open_flat(folder: Path, split: str) -> ImageData:
    """The images that lie in the folder itself: they have no labels, so they are for calibration only."""
    where = f"data '{folder}'"
    found = Listing()
    for item in os.scandir(folder):
        if item.is_file() and not item.name.startswith("."):
            found.add(item.name, item.name, -1)
    if not found.names:
        expected = "one for each class, or images to calibrate on"
        raise InvalidData(message(where, "class folders", "none", expected, "Sort the images into folders"))
    if split == "evaluation":
        got = f"{len(found.names)} images and no folder"
        advice = "Sort them into folders; without labels they can be calibrated on, not evaluated"
        raise InvalidData(message(where, "class folders", got, "one for each class", advice))
    found.names.sort()
    return found.data(str(folder), "all", (), str(folder))


def class_names(path: Path) -> list[str]:
    """The class folders in a folder, sorted."""
    found = (item for item in os.scandir(path) if _is_folder(item) and not item.name.startswith("."))
    return sorted(item.name for item in found if not _leads_back(item))


def _is_folder(item: os.DirEntry[str]) -> bool:
    return os.path.isdir(item.path) if item.is_symlink() else item.is_dir()  # is_dir() raises for a link to itself


def _leads_back(item: os.DirEntry[str]) -> bool:
    """Whether it is a link to its own folder or one above, below which everything would be found again."""
    if not item.is_symlink():
        return False
    here, there = os.path.realpath(os.path.dirname(item.path)), os.path.realpath(item.path)
    return os.path.join(here, "").startswith(os.path.join(there, ""))


def _open_folders(root: Path, split: str | None) -> ImageData:
    """The class folders in ``root``, or in ``root/split`` with the labels that ``root/train`` gives them."""
    folder = root / split if split else root
    where, present = f"data '{folder}'", class_names(folder)
    classes = class_names(root / "train") if split else present
    if not present:
        raise InvalidData(message(where, "class folders", "none", "one for each class", "Sort the images into folders"))
    if unknown := sorted(set(present) - set(classes)):
        got = f"{unknown[0]!r}, which train/ has not"
        raise InvalidData(message(where, "class folders", got, "the classes of train/", "Rename or remove the folder"))
    there = set(present)
    wanted = {name: label for label, name in enumerate(classes) if name in there}
    return images_in(folder, wanted, root).data(str(root), split or "all", tuple(classes), str(root))


def images_in(folder: Path, labels: Mapping[str, int], root: Path) -> Listing:
    """Every image in the class folders of a folder, as torchvision's ImageFolder lists them.

    Each folder is read once and no file is opened, so that a million names take seconds. Other files are counted,
    except those whose name begins with a dot.

    Args:
        folder: where the class folders lie.
        labels: their names, and the label of each.
        root: the folder that the images' names begin below.

    Raises:
        InvalidData: a class folder has no image.
        OSError: a folder cannot be read.
    """
    found = Listing()
    for name, label in labels.items():
        before, (inside, again) = len(found.names), _read(os.path.join(folder, name))
        found.others[AGAIN] += again
        for place, files in sorted(inside.items()):
            prefix = os.path.relpath(place, root).replace(os.sep, "/")
            for file in sorted(files):
                found.add(f"{prefix}/{file}", file, label)
        if len(found.names) == before:
            got, expected = f"none in class folder {name!r}", f"files named {' '.join(EXTENSIONS)}"
            raise InvalidData(message(f"data '{folder}'", "images", got, expected, "Fill or remove the folder"))
    for item in os.scandir(folder):
        found.others[AGAIN] += _is_folder(item) and _leads_back(item)
        found.others[BESIDE] += item.name.lower().endswith(EXTENSIONS) and os.path.isfile(item.path)
    return found


def _read(start: str) -> tuple[dict[str, list[str]], int]:
    """The files in ``start`` and all folders below it, links followed, each folder once.

    Also how many links lead to one of them again.
    """
    found: dict[str, list[str]] = {}
    waiting, known, again = [start], {os.path.realpath(start)}, 0
    while waiting:
        here = waiting.pop()
        files = found.setdefault(here, [])
        with os.scandir(here) as items:
            for item in items:
                if not _is_folder(item):
                    files.append(item.name)
                elif (real := os.path.realpath(item.path)) in known or _leads_back(item):
                    again += 1
                else:
                    known.add(real)
                    waiting.append(item.path)
    return found, again


def held_out_beside(spec: str) -> str | None:
    """The folder of held-out images beside a folder of training images of the same classes: ``test`` beside ``train``.

    None where ``spec`` is no such folder, or nothing lies beside it.
    """
    path = Path(spec)
    if path.name.lower() not in TRAINING or not path.is_dir():
        return None
    siblings = [path.parent / name for name in HOLDOUTS]
    try:
        classes = set(class_names(path))
        found = (folder for folder in siblings if folder.is_dir() and set(class_names(folder)) & classes)
        return next((str(folder) for folder in found if classes.issuperset(class_names(folder))), None)
    except OSError:  # a folder that may not be read is not proposed
        return None
