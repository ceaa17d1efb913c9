"""What the provenance records about the batches that a network was converted with."""

from __future__ import annotations

from itertools import zip_longest

from ..data.arrays import AsStored
from ..data.events import Binning
from ..data.images import Preprocessing
from ..data.leakage import fingerprints
from ..data.loader import Loader
from ..errors import InvalidData
from ..graph.provenance import Parts, SeenData
from ..runtime.processes import all_gather


def origin(batches: object, classes: int) -> Parts:
    """Which images a network was converted with, how they were preprocessed, and the names of their classes.

    A :class:`s_resnet.data.ImageLoader` or EventLoader tells all of it; a DataLoader whose data set has the transform
    of torchvision's weights tells how images were preprocessed; other iterables tell nothing.

    Args:
        batches: what the network was calibrated on.
        classes: the number of classes of the network; if the data have another number, their names are left out.
    """
    if isinstance(batches, Loader):
        data = batches.data
        every = all_gather(list(fingerprints(data, batches.indices)))
        marks = tuple(mark for row in zip_longest(*every) for mark in row if mark is not None)  # as they were shared
        known = Parts(data=SeenData(data.spec, data.split, len(marks), marks))
        if isinstance(batches.preprocessing, Preprocessing | AsStored | Binning):
            known["preprocessing"] = batches.preprocessing
        if len(data.classes) == classes:
            known["classes"] = tuple(data.classes)
        return known
    transform = getattr(getattr(batches, "dataset", None), "transform", None)
    try:  # torchvision.transforms._presets.ImageClassification, without importing torchvision
        size, resize = transform.crop_size[0], transform.resize_size[0]  # type: ignore[union-attr]
        return Parts(preprocessing=Preprocessing(size, resize, tuple(transform.mean), tuple(transform.std)))  # type: ignore[union-attr]
    except (AttributeError, LookupError, TypeError, InvalidData):
        return Parts()
