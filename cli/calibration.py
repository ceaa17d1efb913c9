"""What a network is converted with: calibration images, their preprocessing, and class names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .inputs import check_classes
from .say import say

if TYPE_CHECKING:
    import s_resnet

    from .inputs import Data, Preprocessing
    from .shared import Triple


@dataclass(frozen=True)
class Source:
    """What a network is converted with, besides its weights.

    Attributes:
        preprocessing: how its images are prepared.
        batches: the calibration images, or the mean frames of events; None without.
        origin: what the artifact records about them, as parts of its provenance.
    """

    preprocessing: Preprocessing
    batches: s_resnet.data.Loader | None
    origin: s_resnet.graph.provenance.Parts

    @property
    def input_size(self) -> int | None:
        """Height and width of the images; None for events."""
        import s_resnet

        return self.preprocessing.size if isinstance(self.preprocessing, s_resnet.data.Preprocessing) else None


def calibration_source(
    data: Data,
    count: int,
    preprocessing: Preprocessing,
    loaded: s_resnet.frontend.Checkpoint,
    place: tuple[int, int] = (0, 1),
) -> Source:
    """A seeded random subset of the data to calibrate on: the part of the process ``place``, its rank of so many."""
    import s_resnet

    names = data.classes
    if names and len(names) > loaded.num_classes:
        check_classes(data, loaded.num_classes)
    indices = s_resnet.data.choose(data, count)
    if 0 < len(names) < loaded.num_classes:
        say(
            f"Labels are not used: the data have {len(names)} classes, the network {loaded.num_classes}, and nothing "
            "says which ones they are. Name all the network's classes in order with --classes FILE to use them.",
            err=True,
        )
        data, names = s_resnet.data.without_labels(data), ()
    part, total = s_resnet.runtime.shard(indices, *place), len(indices)
    batches: s_resnet.data.Loader
    if isinstance(data, s_resnet.data.EventData):
        preprocessing = data.binning
        batches = s_resnet.data.MeanFrameLoader(data, part, preprocessing, batch_size=32, total=total)
    elif isinstance(data, s_resnet.data.ArrayData):
        preprocessing = data.preprocessing
        batches = s_resnet.data.ArrayLoader(data, part, preprocessing, batch_size=32, total=total)
    elif loaded.channels in (1, 3):
        batches = s_resnet.data.loader_for(data, part, preprocessing, batch_size=32, total=total)
    else:
        where, got = f"data {data.spec!r}", f"images for a network of {loaded.channels} channels"
        expected, remedy = "one of 3 (RGB) or 1 (gray)", "Convert it from Python, with batches [B, C, H, W]"
        raise s_resnet.errors.InvalidData(s_resnet.errors.message(where, "", got, expected, remedy))
    marks = tuple(s_resnet.data.fingerprints(data, indices))
    kept = s_resnet.graph.provenance.SeenData(data.spec, data.split, len(indices), marks)
    origin = s_resnet.graph.provenance.Parts(data=kept, preprocessing=preprocessing)
    if names:
        origin["classes"] = tuple(names)
    return Source(preprocessing, batches, origin)


def read_class_names(path: str, loaded: s_resnet.frontend.Checkpoint) -> tuple[str, ...]:
    """The names of the network's classes from a file."""
    import s_resnet

    names = s_resnet.data.read_names(path)
    if len(names) != loaded.num_classes:
        where, got = f"classes {path!r}", f"{len(names)} names for a network of {loaded.num_classes}"
        expected, remedy = "one for each class, one per line", "Name every class once, in the order of the outputs"
        raise s_resnet.errors.InvalidData(s_resnet.errors.message(where, "", got, expected, remedy))
    return tuple(names)


def preprocessing_of(
    loaded: s_resnet.frontend.Checkpoint, input_size: int | None, mean: Triple | None, std: Triple | None
) -> Preprocessing:
    """How images are prepared: as asked for, or else as the network was trained."""
    import s_resnet

    if loaded.preprocessing is not None and not (input_size or mean or std):
        return loaded.preprocessing
    return s_resnet.data.preprocessing_for(
        input_size or loaded.input_size,
        mean or s_resnet.data.IMAGENET_MEAN,
        std or s_resnet.data.IMAGENET_STD,
        gray=loaded.channels == 1,
    )


def checkpoint_source(loaded: s_resnet.frontend.Checkpoint) -> s_resnet.graph.provenance.Source:
    """What the artifact says about the checkpoint."""
    import s_resnet

    arch = f"{loaded.arch} (our interpretation)" if loaded.arch.startswith("danet") else loaded.arch
    return s_resnet.graph.provenance.Source(loaded.name, arch, loaded.num_classes, loaded.digest)
