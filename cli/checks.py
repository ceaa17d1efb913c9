"""What a command says of its data: what looks wrong, what was left out, and how the network itself does on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .say import say
from .words import spoken


@contextmanager
def shown_warnings() -> Iterator[None]:
    """The warnings of s_resnet as a line each on stderr."""
    import s_resnet

    with warnings.catch_warnings():
        warnings.simplefilter("always", s_resnet.errors.SResNetWarning)
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, s_resnet.errors.SResNetWarning):
                say(f"Warning: {spoken(' '.join(str(message).splitlines()))}", err=True)
            else:
                others(message, category, *rest, **named)

        warnings.showwarning = show
        yield


def open_matched(spec: str, split: str, download: bool, wish: str | None, known: Any) -> Any:
    """The data with their classes numbered as the network's: as wished, else as known, else in their own order."""
    import s_resnet

    data = s_resnet.data.open_data(spec, split, download)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, which all get here
    if first and wish is None and not known and (note := s_resnet.data.order_note(data)):
        say(spoken(note), err=True)
    return s_resnet.data.match_classes(data, s_resnet.data.network_classes(wish, data, known))


def check_classes(data: Any, classes: int) -> None:
    """Raise InvalidData unless the data have as many classes as the network."""
    import s_resnet

    if len(data.classes) != classes:
        raise s_resnet.errors.InvalidData(
            f"data {data.spec!r}: got {len(data.classes)} classes for a network of {classes}; expected equal numbers. "
            "Choose the data that the network was trained on, or give the names of all its classes (--classes FILE)."
        )


def warn_unreadable(unreadable: tuple[str, ...]) -> None:
    """Name and count the images that were left out."""
    if unreadable:
        names = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        say(f"Left out {len(unreadable)} unreadable image(s): {names}", err=True)


def warn_left_out(*loaders: Any) -> None:
    """Name and count what was left out of the data."""
    warn_unreadable(tuple(dict.fromkeys(name for loader in loaders for name in loader.unreadable)))
    for said in dict.fromkeys(", ".join(loader.data.skipped) for loader in loaders):
        if said:
            say(f"Left out what is no image by its name: {said}", err=True)
    for loader in loaders[:1]:
        events, outside = loader.events
        if outside:
            say(f"Left out {100 * outside / events:.1f} % of {events:,} events: outside the bins", err=True)


def source_line(check: dict[str, Any]) -> str:
    """How the network that is converted does on the first calibration images."""
    images, sure = check["images"], f"mean confidence {check['confidence']:.2f}"
    if "right" not in check:
        return f"The ANN on {images} calibration images without usable labels: {sure}"
    return f"The ANN is right on {check['right']} of {images} calibration images: {check['right'] / images:.1%}, {sure}"


def suggestion(path: str, loaded: Any, batches: Any, preprocessing: Any, check: dict[str, Any]) -> str | None:
    """Where images and network do not fit, which other choice would have fitted; else None."""
    import s_resnet

    found = check.get("batchnorm", {})
    if found.get("first") is None or loaded.data is not None or not isinstance(batches, s_resnet.data.ImageLoader):
        return None
    images, _ = next(iter(batches))
    say("Trying other input sizes, mean and std, and variants of the architecture ...", err=True)
    fitting = s_resnet.conversion.alternatives(path, loaded, images, preprocessing)
    said = f"Images and network do not fit, first at {found['first']} (score {found['score']:.2f}, should be below 1)"
    if fitting:
        options = " or ".join(f"{one.options} (score {one.score:.2f})" for one in fitting[:2])
        return f"{said}. They would with {options}"
    others = "other sizes, mean and std" + (" or --arch" if s_resnet.models.variants_of(loaded.arch) else "")
    return (
        f"{said}, nor with {others}. If {Path(path).name} is another network than {loaded.arch}, convert it from "
        "Python: s_resnet.convert(model, batches)"
    )
