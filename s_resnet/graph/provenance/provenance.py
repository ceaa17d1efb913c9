"""Where a network came from: how it was converted, from what, on which data, for which images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict, TypeVar, Unpack

from ...data.arguments import check_kind
from ...data.arrays import AsStored
from ...data.events import Binning
from ...data.images import Preprocessing
from ...data.open import read_preprocessing, stored_preprocessing
from ...errors import InvalidData, message
from ...runtime.display import plain
from .entry import Entry, listed, refused, said, text, whole
from .parts import (
    AppliedRecipe,
    CalibrationSummary,
    Choice,
    Compensation,
    Reconstruction,
    SeenData,
    Source,
    SourceSummary,
    Tuning,
    Versions,
    count,
)

SIDE, BINS = 2**12, 2**9  # pixels and bins: the most that make sense, so that no file has a run without an end

E = TypeVar("E", bound=Entry)
_side = whole(1, SIDE)


def _part(kind: type[E]) -> E:
    """A part that is always there, and may say nothing."""
    return field(default=kind(), metadata={"kind": kind.read})


def _preprocessing(value: object, where: str) -> Preprocessing | AsStored | Binning:
    """Settings of images, under ``arrays`` of prepared data, or under ``events`` of recordings; of sensible sizes."""
    if not isinstance(value, Mapping):
        expected = "a dict with size, resize, mean and std, or with arrays or events"
        raise refused(where, value, expected)
    settings = value.get("events", value)
    if "arrays" in value and isinstance(value["arrays"], Mapping):
        listed(whole(1, 2**31 - 1))(value["arrays"].get("shape"), f"{where}.shape")
    elif isinstance(settings, Mapping):
        sizes = listed(_side) if "events" in value else _side
        for name, kind in {"size": sizes, "resize": whole(1, 2 * SIDE), "bins": whole(1, BINS)}.items():
            if name in settings:
                kind(settings[name], f"{where}.{name}")
    return read_preprocessing(value)


@dataclass(frozen=True, repr=False)
class Provenance(Entry):
    """Where a network came from. All parts exist: unknown values are None, and an empty part is false.

    The user's own entries, which must be JSON, are in ``extra``.

    Attributes:
        recipe: how it was converted, and for which T.
        source: what it was converted from.
        data: what it was calibrated, tuned or trained on.
        calibration: the statistics of these data.
        preprocessing: how its images, or recordings of events, are preprocessed.
        classes: their names, in the order of the answer.
        input_shape: ``(C, H, W)`` of the images that it was converted with.
        fixed_size: ``(H, W)`` if it takes images of that size only.
        answer_shape: ``(N, 1, 1)`` if the source network answers in that shape; internally it is ``(N,)``.
        check: the check of the source network.
        compensation: the record of the pass of that name.
        reconstruction: the record of the pass of that name.
        choice: the record of recipe ``"auto"``.
        tuning: the record of fine-tuning.
        versions: the versions of the packages that it was converted with.
    """

    recipe: AppliedRecipe = _part(AppliedRecipe)
    source: Source = _part(Source)
    data: SeenData = _part(SeenData)
    calibration: CalibrationSummary = _part(CalibrationSummary)
    preprocessing: Preprocessing | AsStored | Binning | None = said(_preprocessing)
    classes: tuple[str, ...] | None = said(listed(text))
    input_shape: tuple[int, ...] | None = said(listed(whole(1, 2**31 - 1), 3))
    fixed_size: tuple[int, ...] | None = said(listed(_side, 2))
    answer_shape: tuple[int, ...] | None = said(listed(count))
    check: SourceSummary = _part(SourceSummary)
    compensation: Compensation = _part(Compensation)
    reconstruction: Reconstruction = _part(Reconstruction)
    choice: Choice = _part(Choice)
    tuning: Tuning = _part(Tuning)
    versions: Versions = _part(Versions)

    def to_json(self) -> dict[str, object]:
        """What is said, in dicts, lists, texts and numbers."""
        known = super().to_json()
        if isinstance(self.preprocessing, Preprocessing | AsStored | Binning):
            known["preprocessing"] = plain(stored_preprocessing(self.preprocessing))
        return known

    @classmethod
    def from_json(cls, said: Mapping[str, object]) -> Provenance:
        """The provenance that :meth:`to_json` wrote. Names that this package does not read are the user's own.

        Raises:
            InvalidData: an entry of a name that this package reads is of another kind than it writes.
        """
        return cls.read(said, "")

    def checked(self) -> Provenance:
        """The same as it comes back from a file; InvalidData where it would not."""
        return Provenance.from_json(self.to_json())

    def with_parts(self, **parts: Unpack[Parts]) -> Provenance:
        """The same with these parts in place of its own; ``extra`` is added to what is there."""
        unknown = set(parts) - Parts.__annotations__.keys()
        if unknown:
            expected, remedy = f"one of {', '.join(Parts.__annotations__)}", "Pass entries of your own as extra={...}"
            raise InvalidData(message("provenance", "", f"part {min(unknown)!r}", expected, remedy))
        check_kind(parts.get("extra", {}), Mapping, "provenance", "extra", "Pass a dict of JSON")
        extra = {**self.extra, **parts.get("extra", {})}
        return replace(replace(self, **parts), extra=extra).checked()

    def without_lists(self) -> Provenance:
        """The same without what has an entry for each image or layer."""
        data, calibration = replace(self.data, fingerprints=None), replace(self.calibration, marks=None, scales=None)
        return replace(self, data=data, calibration=calibration)


class Parts(TypedDict, total=False):
    """The parts of a :class:`Provenance`, by name."""

    recipe: AppliedRecipe
    source: Source
    data: SeenData
    calibration: CalibrationSummary
    preprocessing: Preprocessing | AsStored | Binning
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    fixed_size: tuple[int, ...]
    answer_shape: tuple[int, ...]
    check: SourceSummary
    compensation: Compensation
    reconstruction: Reconstruction
    choice: Choice
    tuning: Tuning
    versions: Versions
    extra: Mapping[str, object]
