"""Loading samples: batches of a data set, decoded in worker processes or in this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InvalidData, message
from ..runtime.display import Displayed, Table
from .images import BROKEN, ImageData, LabeledData, Preprocessing, is_count, reason

T = TypeVar("T")
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
FEW = 64  # samples: fewer are decoded before worker processes have started


@dataclass(frozen=True)
class _Batches(Dataset[tuple[Tensor, Tensor, list[str], tuple[int, int]]]):
    """Item ``i`` is the whole of batch ``i``, and what was left out of it; used in worker processes."""

    data: LabeledData
    batches: tuple[tuple[int, ...], ...]
    preprocessing: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[str], tuple[int, int]]:
        samples, labels, unreadable = [], [], []
        events = outside = 0
        for index in self.batches[number]:
            try:
                sample = self.data.decode(index)
            except BROKEN as error:
                unreadable.append(f"{self.data.names[index]} ({reason(error)})")
                continue
            samples.append(self.preprocessing(sample))
            labels.append(self.data.labels[index])
            found, left_out = self.data.events_outside(sample, self.preprocessing)
            events, outside = events + found, outside + left_out
        stacked = torch.stack(samples) if samples else torch.empty(0)
        return stacked, torch.tensor(labels, dtype=torch.int64), unreadable, (events, outside)


def forks() -> bool:
    """Whether worker processes are forked. Asking does not fix the start method."""
    method = multiprocessing.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


def started(loader: DataLoader[T]) -> Iterator[T]:
    """The loader's batches, once its worker processes have started; signals to stop are held back until then.

    Python loses what a signal handler raises while a process is being forked.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        return iter(loader)
    received: list[tuple[Callable[[int, FrameType | None], object], int, FrameType | None]] = []
    usual = {number: handler for number in STOPPING if callable(handler := signal.getsignal(number))}
    for number, handler in usual.items():
        signal.signal(number, lambda *got, handler=handler: received.append((handler, *got)))
    try:
        return iter(loader)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for handler, number, frame in received[:1]:
            handler(number, frame)


class Loader(Displayed):
    """Batches of samples ``[B, *]`` and labels ``[B]`` int64, in the order of ``indices``; it can be iterated again.

    Samples that cannot be read are left out of their batch, and a batch without any is not yielded.

    Args:
        data: the samples.
        indices: which of them.
        preprocessing: turns a decoded sample into a tensor.
        batch_size: samples per batch.
        workers: processes of one thread each that decode; 0 decodes in this process. None means 2, or 1 on one core, or
            0 for few samples and where processes are spawned, since each would run a script without a main guard again.
        total: how many samples there are in all, where ``indices`` are one process's shard of them; such a shard may be
            empty, or hold nothing readable.

    Attributes:
        images: the number of indices.
        unreadable: name and reason of the samples that the last pass left out.
        events: how many events the recordings of the last pass had, and how many of them lie outside the bins.
        excluded: how many samples were left out because a network was made with them; set by whoever chose ``indices``.

    Raises:
        InvalidData: an argument is out of range, or a pass could read nothing.
    """

    def __init__(
        self,
        data: LabeledData,
        indices: Sequence[int],
        preprocessing: Callable[[Any], Tensor],
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
    ) -> None:
        if not is_count(batch_size, 1):
            raise InvalidData(message("loader", "batch size", batch_size, "a whole number >= 1", "Pass at least 1"))
        if workers is not None and not is_count(workers, 0):
            raise InvalidData(message("loader", "workers", workers, "a whole number >= 0", "Pass 0 for no processes"))
        if not (total or len(indices)) or min(indices, default=0) < 0 or max(indices, default=0) >= len(data):
            got = f"{min(indices)} to {max(indices)}" if len(indices) else "none"
            raise InvalidData(
                message("loader", "indices", got, f"some of 0 to {len(data) - 1}", "Pass those that choose() returns")
            )
        batches = tuple(tuple(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size))
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = min(2, cores) if len(indices) >= FEW and forks() else 0
        self.data, self.images, self._total = data, len(indices), len(indices) if total is None else total
        self.unreadable: tuple[str, ...] = ()
        self.events = (0, 0)
        self.excluded = 0
        self.indices, self.preprocessing = tuple(indices), preprocessing
        self._batches = _Batches(data, batches, preprocessing)
        self._workers = min(workers, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def to_dict(self) -> dict[str, Any]:
        """The samples and what was left out of them, as plain JSON values."""
        known = {"data": self.data.spec, "split": self.data.split, "samples": self.images, "of": len(self.data)}
        return {
            **known,
            "batches": len(self),
            "left_out": {"made_with": self.excluded, "unreadable": list(self.unreadable)},
        }

    def _lines(self) -> Iterator[str]:
        samples = f"{self.images:,} of the {len(self.data):,} samples of {self.data.spec} ({self.data.split})"
        yield f"{type(self).__name__}: {samples} in {len(self)} batches"

    def _parts(self) -> Iterator[str | Table]:
        yield from self._lines()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.unreadable, self.events = (), (0, 0)
        own = torch.Generator()  # otherwise DataLoader draws from the global generator, which is the caller's
        batches = DataLoader(self._batches, batch_size=None, num_workers=self._workers, generator=own)
        for images, labels, unreadable, (events, outside) in started(batches):
            self.unreadable += tuple(unreadable)
            self.events = (self.events[0] + events, self.events[1] + outside)
            if len(labels):
                yield images, labels
        if len(self.unreadable) == self._total:
            got = f"none of {self.images}: {', '.join(self.unreadable[:3])}"
            raise InvalidData(
                message("loader", "readable images", got, "at least one", "Copy or download the files again")
            )


class ImageLoader(Loader):
    """A :class:`Loader` of images ``[B, 3, H, W]`` float32, or gray ``[B, 1, H, W]``."""

    def __init__(
        self,
        data: ImageData,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        batch_size: int,
        workers: int | None = None,
        total: int | None = None,
    ) -> None:
        super().__init__(data, indices, preprocessing, batch_size, workers, total)
