"""What the program says: letters, never orders to the terminal; and whoever does not listen stops no work."""

from __future__ import annotations

import errno
import os
import sys

import click

_unheard: list[OSError] = []  # what became of standard output since `heard` was last asked


def say(text: str, err: bool = False) -> None:
    """Print ``text``; what is neither a letter nor the end of a line comes out as ?, escapes above all.

    Where nobody reads any more (``| head``, a full disk), the rest is said to nobody, and :func:`unheard` knows of it:
    files are written all the same.
    """
    stream = sys.stderr if err else sys.stdout
    letters = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
    code = getattr(stream, "encoding", None) or "utf-8"
    try:
        click.echo(letters.encode(code, "replace").decode(code), err=err)
    except OSError as error:
        _silence(err, error)


def unheard() -> OSError | None:
    """Why standard output could not be written, if it could not; asked once, at the end."""
    for err in (False, True):
        stream = sys.stderr if err else sys.stdout
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:  # what click has said itself, as for --help
            _silence(err, error)
    found = _unheard[0] if _unheard else None
    _unheard.clear()
    return found


def closed(error: OSError) -> bool:
    """Whether its reader has left on purpose, which is no fault to speak of."""
    return error.errno == errno.EPIPE


def _silence(err: bool, error: OSError) -> None:
    """Let the stream go nowhere from now on: what waits in it would fail again, last when Python ends."""
    stream = sys.stderr if err else sys.stdout
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    if not err:
        _unheard.append(error)
