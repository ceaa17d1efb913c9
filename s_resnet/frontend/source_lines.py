"""The line of the user's code at which something went wrong: ``(file, line N: code)`` for messages."""

from __future__ import annotations

import linecache
import os
import re
import sys
import traceback
from types import FrameType

import torch

TORCH = os.path.dirname(torch.__file__) + os.sep


def line_of_error(error: BaseException, besides: str) -> str:
    """The last line in an error's traceback outside of torch and the folder ``besides``; empty without one."""
    lines = [(f.filename, f.lineno or 0, f.line or "") for f in traceback.extract_tb(error.__traceback__)]
    return _last(lines, besides)


def line_here(besides: str, outermost: str) -> str:
    """The last such line of the running call, inside the function ``outermost`` of a file in ``besides``."""
    frame: FrameType | None = sys._getframe(1)
    lines = []
    while frame is not None and not (
        frame.f_code.co_name == outermost and frame.f_code.co_filename.startswith(besides)
    ):
        file, number = frame.f_code.co_filename, frame.f_lineno
        lines.append((file, number, linecache.getline(file, number, frame.f_globals).strip()))
        frame = frame.f_back
    return _last(lines[::-1], besides)


def library_of(line: str) -> str:
    """The installed package that contains a line; empty for the user's own code."""
    found = re.search(r"[\\/](?:site|dist)-packages[\\/]([^\\/,]+)", line)
    return found[1].removesuffix(".py") if found else ""


def _last(lines: list[tuple[str, int, str]], besides: str) -> str:
    """The last line with text; code from ``exec`` has none."""
    own = [line for line in lines if line[2] and not line[0].startswith((TORCH, besides))]
    return f" ({own[-1][0]}, line {own[-1][1]}: {own[-1][2]})" if own else ""
