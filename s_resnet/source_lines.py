"""Where in the user's code something went wrong: ``(file, line: code)`` for messages."""

from __future__ import annotations

import os
import re
import traceback

import torch


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type, without a period."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def line_of_error(error: BaseException, besides: str) -> str:
    """The last line on the way to an error that is neither torch's nor in the file ``besides``; empty without one."""
    places = [f"{f.filename}, line {f.lineno}: {f.line}" for f in traceback.extract_tb(error.__traceback__)]
    return _last_outside_torch(places, besides)


def line_of_trace(stack: str | None, besides: str) -> str:
    """The same of a stack as text, in Python's form."""
    found = re.findall(r'File "(.+)", (line \d+), in .*\n\s*(.*)', stack or "")
    return _last_outside_torch([f"{file}, {line}: {code}" for file, line, code in found], besides)


def _last_outside_torch(places: list[str], besides: str) -> str:
    torchs = os.path.dirname(torch.__file__) + os.sep
    own = [place for place in places if not place.startswith((torchs, besides))]
    return f" ({own[-1]})" if own else ""
