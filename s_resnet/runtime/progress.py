"""How far long work is: a bar on a terminal or in a notebook; elsewhere, as in a log, a line every 30 seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")
EVERY = 30.0  # seconds between two lines, whichever work they are about


class Progress(Generic[T]):
    """Goes through ``items``, or counts what ``update`` is told, and shows how far it is on stderr.

    total: how many there are, where ``items`` do not tell. initial: how many were done before. Work within
    other work is named behind it.
    """

    _under_way: list[Progress[Any]] = []  # noqa: RUF012 (of all of them, the outermost first)
    _told = _seen = 0.0  # when the last line was written, and when there last was work

    def __init__(
        self,
        items: Iterable[T] | None = None,
        *,
        total: int | None = None,
        desc: str,
        unit: str,
        shown: bool,
        initial: int = 0,
    ) -> None:
        self._items, self._desc, self._done, self._initial = items, desc, initial, initial
        self._total = len(items) if isinstance(items, Sized) else total
        self._figures: dict[str, str] = {}
        from tqdm import auto  # late: in a notebook without ipywidgets it warns, which is for the first bar to do

        drawn = shown and (auto.notebook_tqdm is not auto.std_tqdm or _terminal())
        self._lines = shown and not drawn
        self._bar = auto.tqdm(
            total=self._total, desc=desc, unit=unit, leave=False, initial=initial, disable=not drawn, file=sys.stderr
        )

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items or ():
                yield item
                self.update()

    def __enter__(self) -> Progress[T]:
        self._started = time.monotonic()
        if self._lines:
            if self._started - Progress._seen >= EVERY:
                Progress._told = self._started  # the first line comes after 30 seconds of work
            Progress._seen = self._started
            self._under_way.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self in self._under_way:
            self._under_way.remove(self)

    def update(self, count: int = 1) -> None:
        """Say that so much more is done."""
        if count == 0:
            return
        self._done += count
        self._bar.update(count)
        if not self._lines:
            return
        now = Progress._seen = time.monotonic()
        if now - Progress._told >= EVERY:
            Progress._told = now
            with suppress(OSError):  # whoever has closed the log does not mean to stop the work
                print(self._line(now), file=sys.stderr, flush=True)

    def show(self, now: bool = False, **figures: str) -> None:
        """Show these beside the count, from now on or from the next update on."""
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
    """Whoever interrupts what is within is told from which file its repetition goes on, if anything is finished."""
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
