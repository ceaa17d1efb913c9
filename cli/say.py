"""What the program says: text, never control codes for the terminal; and a reader who leaves stops no work."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

_hushed = [False]  # whether another process says the same
_unheard: list[OSError] = []  # failures to write standard output since `unheard` was last called


def begin(on: object) -> None:
    """Say on a terminal what is being read: importing torch takes seconds, and an empty screen looks like a fault."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        say(f"Reading {on} ...", err=True)


def say(text: str, err: bool = False) -> None:
    """Print ``text``; characters that cannot be printed, such as escapes, come out as ?.

    Once nobody reads any more (``| head``, a full disk), the rest is dropped and :func:`unheard` reports it: files are
    written all the same.
    """
    if _hushed[-1]:
        return
    stream = sys.stderr if err else sys.stdout
    letters = "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
    code = getattr(stream, "encoding", None) or "utf-8"
    try:
        click.echo(letters.encode(code, "replace").decode(code), err=err)
    except OSError as error:
        _silence(err, error)


@contextmanager
def hushed(hushed: bool) -> Iterator[None]:
    """Say nothing in the block: of several processes the first speaks for all."""
    _hushed.append(hushed)
    try:
        yield
    finally:
        _hushed.pop()


def unheard() -> OSError | None:
    """The error that kept standard output from being written, or None; called once, at the end."""
    for err in (False, True):
        stream = sys.stderr if err else sys.stdout
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError as error:  # of text that click has written itself, such as --help
            _silence(err, error)
    found = _unheard[0] if _unheard else None
    _unheard.clear()
    return found


def closed(error: OSError) -> bool:
    """Whether the reader has left on purpose, which is no fault."""
    return error.errno == errno.EPIPE


def _silence(err: bool, error: OSError) -> None:
    """Discard the stream from now on: what is left in its buffer would fail again, at the latest when Python exits."""
    stream = sys.stderr if err else sys.stdout
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    if not err:
        _unheard.append(error)
