"""Labels and answers: do they fit each other?"""

from __future__ import annotations

from torch import Tensor

from .intervals import wilson

OTHERS = 4  # images of a class needed to say that it gets another class's answer


def at_chance(right: int, images: int, classes: int) -> bool:
    """Whether an accuracy is less than a quarter of the way from chance to perfect, beyond what few images explain."""
    chance = 1 / max(classes, 2)
    return right / images < chance + 0.25 * (1 - chance) and wilson(right, images)[1] < chance + 0.5 * (1 - chance)


def label_notes(answers: Tensor, labels: Tensor | None, classes: int, kind: str = "calibration") -> list[str]:
    """Notes on labels that disagree with the source network's answers: impossible, placeholders, or in another order.

    Args:
        answers: the network's class numbers, int64 ``[B]``.
        labels: the class numbers of the data, int64 ``[B]``; None, or -1 for each image, where there are none.
        classes: how many classes the network has.
        kind: what the images are for, in the text.
    """
    if labels is None or bool((labels < 0).all()):
        return []
    low, high, images = int(labels.min()), int(labels.max()), len(labels)
    if low < 0 or high >= classes:
        return [
            f"got labels {low} to {high} for a network of {classes} classes; expected 0 to {classes - 1}. They are "
            "ignored. Number the classes from 0, in the order of the network's outputs."
        ]
    if images > 1 and low == high and classes > 2:
        if at_chance(int((answers == labels).sum()), images, classes):
            return [f"all {images} labels are {low}, and the network disagrees: they seem to be placeholders."]
        return []
    moved, right = _moved(answers, labels, classes), int((answers == labels).sum())
    if moved:
        label, answer, same, count = moved[0]
        return [
            f"the network is right on {right} of {images} {kind} images, and {len(moved)} classes mostly get the "
            f"answer of another one (of label {label}, {same} of {count} images are answered {answer}): the classes of "
            "the data are in another order than the network's. Match them: s_resnet.data.match_classes(data, names)."
        ]
    if at_chance(right, images, classes):
        return [
            f"the network is right on {right} of {images} {kind} images, hardly more than by chance (1 in {classes}): "
            "it was probably trained on other data, with other preprocessing, or with its classes in another order."
        ]
    return []


def _moved(answers: Tensor, labels: Tensor, classes: int) -> list[tuple[int, int, int, int]]:
    """Labels whose images mostly get one other answer: label, answer, images with that answer, images in all.

    A wrong order moves at least two classes, and no two of them to the same answer. Otherwise the result is empty: a
    network that always gives the same answer says nothing about the order.
    """
    found = []
    for label in sorted(set(labels.tolist())):
        given = answers[labels == label].bincount(minlength=classes)
        answer, same, count = int(given.argmax()), int(given.max()), int(given.sum())
        if answer != label and count >= OTHERS and same > 0.6 * count and int(given[label]) <= 0.2 * count:
            found.append((label, answer, same, count))
    distinct = len({answer for _, answer, _, _ in found}) == len(found)
    return found if len(found) > 1 and distinct else []
