"""Signals and other data that are numbers already: they go into the network as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InvalidData, message
from ..runtime.display import Displayed
from .images import LabeledData, is_count
from .loader import Loader

Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class AsStored(Displayed):
    """The preprocessing of data that are prepared already: none.

    Attributes:
        shape: of one sample, ``(C, L)`` of a signal or ``(C, H, W)`` of an image.

    Raises:
        InvalidData: ``shape`` is something else.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.shape) if isinstance(self.shape, list | tuple) else ()
        if len(shape) not in (2, 3) or not all(is_count(size, 1) for size in shape):
            expected, remedy = "(C, L) or (C, H, W)", "Pass the shape of one sample, such as (12, 1000)"
            raise InvalidData(message("preprocessing", "shape", self.shape, expected, remedy))
        object.__setattr__(self, "shape", shape)

    def __call__(self, sample: Numbers) -> Tensor:
        """The sample as a tensor of this shape, float32.

        Raises:
            InvalidData: it has another shape.
        """
        if sample.shape != self.shape:
            got, expected = (" x ".join(map(str, shape)) for shape in (sample.shape, self.shape))
            remedy = "Cut or resample the data to what the network was made for"
            raise InvalidData(message("preprocessing", "sample", got, expected, remedy))
        return torch.from_numpy(sample.copy())


@dataclass(frozen=True, eq=False, repr=False)
class ArrayData(LabeledData):
    """Labeled arrays in memory; see :class:`LabeledData` for the other fields.

    Attributes:
        numbers: float32 ``[B, C, L]`` or ``[B, C, H, W]``, preprocessed as for the source model.
    """

    numbers: Numbers = field(kw_only=True)

    @property
    def preprocessing(self) -> AsStored:
        """That of these data."""
        return AsStored(self.numbers.shape[1:])

    def decode(self, index: int) -> Any:
        sample = self.numbers[index]
        if not np.isfinite(sample).all():
            raise ValueError("numbers that are not finite")
        return sample


class ArrayLoader(Loader):
    """A :class:`Loader` of signals ``[B, C, L]`` or images ``[B, C, H, W]`` float32, and labels ``[B]`` int64."""

    def __init__(
        self,
        data: ArrayData,
        indices: Sequence[int],
        preprocessing: AsStored,
        batch_size: int,
        workers: int | None = 0,
        total: int | None = None,
    ) -> None:
        if preprocessing != data.preprocessing:
            got, expected = (" x ".join(map(str, one.shape)) for one in (data.preprocessing, preprocessing))
            remedy = "Cut or resample them to what the network was made for"
            raise InvalidData(message(f"data '{data.spec}'", "samples", got, expected, remedy))
        super().__init__(data, indices, preprocessing, batch_size, workers, total)
