"""Today's names of recipes, in place of those that lines of results were written with.

Until 2026-11-28 `calibrated` was what is now `calibrated-lagged`, `calibrated-constant` was `calibrated-streaming`, and
today's `calibrated` was `calibrated-unlagged`, which no command made. Neither did one make what is now
`calibrated-lagged-blocks`. Lines of results are records and keep these names.
"""

from __future__ import annotations

import argparse
from typing import Any

Line = dict[str, Any]

RENAMED = {
    "calibrated-streaming": "calibrated-constant",
    "calibrated-unlagged": "calibrated",
    "calibrated-blocks": "calibrated-lagged-blocks",
}


def today(line: Line) -> Line:
    """A line of results with today's name of its recipe: a `calibrated` that answers later than after T is lagged."""
    name, plus, more = line["recipe"].partition("+")
    if name == "calibrated" and line["end_to_end_steps"] > line["timesteps"]:
        name = "calibrated-lagged"
    return {**line, "recipe": f"{RENAMED.get(name, name)}{plus}{more}"}


def of_report(line: Line) -> str:
    """The recipe of a line of `conversion.py`: `s-resnet` started at v(0) = 0 while lines did not say where."""
    name: str = line["report"]["recipe"]
    return "s-resnet-v0" if name == "s-resnet" and "initial_potential" not in line else name


def current(text: str) -> str:
    """The name of a recipe on the command line, for argparse, which refuses former names."""
    name = text.partition("+")[0]
    if name in RENAMED:
        raise argparse.ArgumentTypeError(f"{text} is now named {text.replace(name, RENAMED[name])}")
    return text
