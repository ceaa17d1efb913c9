"""Progress of long work: a bar on a terminal or in a notebook; elsewhere, as in a log, a line every 30 seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")
EVERY = 30.0  # seconds between two lines, of all work together


class Progress(Generic[T]):
    """Iterates over ``items``, or counts the calls of ``update``, and shows the progress on stderr.

    Lines about work within other work begin with the outer one.

    Args:
        items: what to iterate over.
        total: the number of items, where ``items`` has no length.
        desc: what is being done.
        unit: what is counted.
        shown: whether to show anything.
    """

    _under_way: list[Progress[Any]] = []  # noqa: RUF012 (shared by all, the outermost first)
    _told = _active = 0.0  # times of the last line and of the last update

    def __init__(
        self,
        items: Iterable[T] | None = None,
        *,
        total: int | None = None,
        desc: str,
        unit: str,
        shown: bool,
    ) -> None:
        self._items, self._desc, self._done, self._initial = items, desc, 0, 0
        self._total = len(items) if isinstance(items, Sized) else total
        self._figures: dict[str, str] = {}
        from tqdm import auto  # late: in a notebook without ipywidgets the import warns

        drawn = shown and (auto.notebook_tqdm is not auto.std_tqdm or _terminal())
        self._lines = shown and not drawn
        self._bar = auto.tqdm(total=self._total, desc=desc, unit=unit, leave=False, disable=not drawn, file=sys.stderr)

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items or ():
                yield item
                self.update()

    def __enter__(self) -> Progress[T]:
        self._started = time.monotonic()
        if self._lines:
            if self._started - Progress._active >= EVERY:
                Progress._told = self._started  # the first line comes after 30 seconds of work
            Progress._active = self._started
            self._under_way.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self in self._under_way:
            self._under_way.remove(self)

    def resume(self, done: int) -> None:
        """Count from ``done`` on, which an earlier run has finished; the time left is estimated without it."""
        self._done = self._initial = self._bar.initial = self._bar.n = done

    def update(self, count: int = 1) -> None:
        """Count ``count`` more as done."""
        if count == 0:
            return
        self._done += count
        self._bar.update(count)
        if not self._lines:
            return
        now = Progress._active = time.monotonic()
        if now - Progress._told >= EVERY:
            Progress._told = now
            with suppress(OSError):  # a closed log must not stop the work
                print(self._line(now), file=sys.stderr, flush=True)

    def show(self, now: bool = False, **figures: str) -> None:
        """Show ``figures`` beside the count: at once if ``now``, otherwise from the next update on."""
        self._figures = figures
        self._bar.set_postfix(figures, refresh=now)

    def _line(self, now: float) -> str:
        outer = self._under_way[: self._under_way.index(self)] if self in self._under_way else []
        counts = ", ".join(f"{one._desc} {one._count()}" for one in (*outer, self))
        figures = "".join(f", {name} {value}" for name, value in self._figures.items())
        spent, done = now - self._started, self._done - self._initial
        said = f"{counts}{figures}, {_time(spent)}"
        if self._total is None or not done:
            return said
        return f"{said}, about {_time(spent / done * (self._total - self._done))} left"

    def _count(self) -> str:
        return f"{self._done}" if self._total is None else f"{self._done}/{self._total}"


@contextmanager
def repeatable(path: str | os.PathLike[str] | None, finished: Callable[[], str]) -> Iterator[None]:
    """Tell whoever interrupts the block from which file a repetition resumes, if anything is finished.

    Args:
        path: the file with the state; None where nothing is kept.
        finished: says what is finished, or an empty string.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        if path is not None and (done := finished()):
            stopped.add_note(f"Repeat it to go on from {os.fspath(path)}: {done} finished.")
        raise


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
