"""What a command says about its data: warnings, and what was left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from .say import say
from .words import spoken

if TYPE_CHECKING:
    import s_resnet


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Show each warning of s_resnet as one line on stderr, and none twice."""
    import s_resnet

    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", s_resnet.errors.SResNetWarning)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, s_resnet.errors.SResNetWarning):
                said = f"Warning: {spoken(' '.join(str(message).splitlines()))}"
                if said not in told:
                    told.add(said)
                    say(said, err=True)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def warn_unreadable(unreadable: Sequence[str]) -> None:
    """Count and name the images that could not be read."""
    if unreadable:
        names = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        say(f"Left out {len(unreadable)} unreadable image(s): {names}", err=True)


def warn_left_out(*loaders: s_resnet.data.Loader) -> None:
    """Count and name everything that was left out of the data."""
    warn_unreadable(tuple(dict.fromkeys(name for loader in loaders for name in loader.unreadable)))
    for skipped in dict.fromkeys(", ".join(loader.data.skipped) for loader in loaders):
        if skipped:
            say(f"Left out files without an image suffix: {skipped}", err=True)
    for loader in loaders[:1]:
        events, outside = loader.events
        if outside:
            say(f"Left out {100 * outside / events:.1f}% of {events:,} events, which are outside the bins", err=True)
