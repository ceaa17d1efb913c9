"""The first word of a command: importing torch takes seconds, in which an empty screen looks like a fault."""

from __future__ import annotations

import sys

from .say import say


def begin(on: object) -> None:
    """Say on a terminal what is being read, where torch is still to be imported."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        say(f"Reading {on} ...", err=True)
