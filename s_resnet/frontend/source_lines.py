"""Where in the user's code something went wrong: ``(file, line: code)`` for messages."""

from __future__ import annotations

import linecache
import os
import re
import sys
import traceback
from types import FrameType

import torch

TORCH = os.path.dirname(torch.__file__) + os.sep


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type, without a period."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def line_of_error(error: BaseException, besides: str) -> str:
    """The last line on the way to an error that is neither torch's nor below ``besides``; empty without one."""
    places = [(f.filename, f.lineno or 0, f.line or "") for f in traceback.extract_tb(error.__traceback__)]
    return _last(places, besides)


def line_here(besides: str, outermost: str) -> str:
    """The same of the call that is running, within the function ``outermost`` of a file below ``besides``."""
    frame: FrameType | None = sys._getframe(1)
    places = []
    while frame is not None and not (
        frame.f_code.co_name == outermost and frame.f_code.co_filename.startswith(besides)
    ):
        file, number = frame.f_code.co_filename, frame.f_lineno
        places.append((file, number, linecache.getline(file, number, frame.f_globals).strip()))
        frame = frame.f_back
    return _last(places[::-1], besides)


def library_of(place: str) -> str:
    """The installed package that a line is of; empty for the user's own."""
    found = re.search(r"[\\/](?:site|dist)-packages[\\/]([^\\/,]+)", place)
    return found[1].removesuffix(".py") if found else ""


def _last(places: list[tuple[str, int, str]], besides: str) -> str:
    """The last line that there is text of: code that was made by ``exec`` has none."""
    own = [place for place in places if place[2] and not place[0].startswith((TORCH, besides))]
    return f" ({own[-1][0]}, line {own[-1][1]}: {own[-1][2]})" if own else ""
