"""Checks that stand alone: a wrong one says so in its line, and stops no other."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lines import described, write
from networks import Networks
from timing import NEEDS

PASS, FAIL = "PASS", "FAIL"
Run = Callable[[Networks], object]


@dataclass(frozen=True)
class Check:
    """What is asked, by whom, and whether only a GPU can answer."""

    group: str
    name: str
    run: Run
    gpu: bool


CHECKS: dict[str, Check] = {}


class Wrong(Exception):
    """What was found is not what was expected."""


def check(name: str, gpu: bool = False) -> Callable[[Run], Run]:
    """Add a check to its group, which is named like its module. It returns what it has to tell, or raises."""

    def add(run: Run) -> Run:
        group = getattr(run, "func", run).__module__.removeprefix("check_")  # a partial is of its function's
        CHECKS[name] = Check(group, name, run, gpu)
        return run

    return add


def expect(right: bool, told: object) -> None:
    """Raise Wrong, with what there is to tell, where it is not right."""
    if not right:
        raise Wrong(str(told))


def answer(one: Check, given: Networks) -> dict[str, Any]:
    """Run one check: its state, what it told, and its seconds."""
    start, told = time.perf_counter(), None
    if one.gpu and given.device.type != "cuda":
        return {"state": NEEDS}
    try:
        told, state = one.run(given), PASS
        if given.device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # whatever it is, it belongs into the line, and the next check has its turn
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        text = (str(error).splitlines() or [""])[0][:600]
        told, state = text if isinstance(error, Wrong) else f"{type(error).__name__}: {text} at {where}", FAIL
    return {"state": state, "told": told, "seconds": round(time.perf_counter() - start, 2)}


def broken(device: torch.device) -> bool:
    """Whether the device answers nothing in this process any more: after an illegal access, say."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def run(names: list[str], given: Networks, output: Path) -> tuple[int, list[str]]:
    """Run checks in turn, a line for each; how many failed, and those that are left where the device broke."""
    failed = 0
    for index, name in enumerate(names):
        got = answer(CHECKS[name], given)
        failed += got["state"] == FAIL
        line = {"question": "check", "group": CHECKS[name].group, "check": name, **got}
        write(line | described(given.device), output)
        print(f"{got['state']} {name}: {json.dumps(got.get('told'), default=str)}", flush=True)
        if got["state"] == FAIL and broken(given.device):
            return failed, names[index + 1 :]
    return failed, []
