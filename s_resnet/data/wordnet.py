"""ImageNet's 1,000 classes: their WordNet ids and names, in the order in which networks number them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

CLASSES = 1000


@cache
def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes of ILSVRC 2012, sorted.

    That is the order of torchvision's networks and of nearly all others. It is not the order of ILSVRC's own numbers.
    """
    text = resources.files(__package__).joinpath("imagenet_ids.txt").read_text(encoding="ascii")
    return tuple(text.split())


@cache
def _outputs() -> tuple[Mapping[str, int], Mapping[str, int]]:
    """The output of every id and of every name that torchvision gives a class: as written, and in lower case.

    What two classes share in lower case is not in the second: a Cardigan is a dog, a cardigan is not.
    """
    from torchvision.models import ResNet18_Weights

    names = [_spaced(name) for name in ResNet18_Weights.IMAGENET1K_V1.meta["categories"]]
    exact = {name: output for some in (names, imagenet_ids()) for output, name in enumerate(some)}
    times = Counter(map(str.casefold, exact))
    return exact, {name.casefold(): output for name, output in exact.items() if times[name.casefold()] == 1}


def _spaced(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip())


def plain(name: str) -> str:
    """A name as it is compared: in lower case, with a space for every run of spaces, underscores and hyphens."""
    return _spaced(name).casefold()


def imagenet_output(name: str) -> int | None:
    """The output for a class named ``n01440764``, ``tench`` or ``n01440764_tench``; None for one that ImageNet has not.

    Of an id with a name, the id counts: sources give the same id different names.
    """
    known = _spaced(name)
    led = re.match(r"([nN]\d{8}) ", known)
    exact, folded = _outputs()
    known = led[1] if led else known
    return exact.get(known, folded.get(known.casefold()))


def are_imagenets(names: Sequence[str]) -> bool:
    """Whether the names are those of ImageNet's classes, all of them in order, as ids or as names."""
    return len(names) == CLASSES and all(imagenet_output(name) == output for output, name in enumerate(names))
