"""The benchmark that kills commands finds what it looks for: half files, leftovers and other weights."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
kills = importlib.import_module("kills")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time is read as Linux has it")

BURN = """
import json, os, time
end = time.process_time() + 0.3
def burn():
    while time.process_time() < end:
        pass
"""
IN_PLACE = BURN + "file = open('out', 'w'); file.write('[1, '); file.flush(); burn(); file.write('2]'); file.close()"
APART = BURN + "file = open('x.tmp', 'w'); file.write('[1, 2]'); file.close(); burn(); os.replace('x.tmp', 'out')"
OTHER = BURN + "seen = os.path.exists('part'); open('part', 'w'); burn(); open('out', 'w').write(str([1 + seen]))"


def case(program, repeatable=False):
    def read(path):
        return [torch.tensor(json.loads(path.read_text()))]

    return kills.Case((sys.executable, "-c", program), ("out",), read, repeatable)


def killed(program, tmp_path, repeatable=False, there=False):
    one = case(program, repeatable)
    seconds, said = kills.finished(one, tmp_path)
    assert seconds >= 0.25 and said == ""
    chance = SimpleNamespace(uniform=lambda low, high: (low + high) / 2)
    return kills.killed(one, tmp_path, seconds, chance, there)


def test_a_file_that_is_written_in_place_is_half(tmp_path):
    line = killed(IN_PLACE, tmp_path, there=True)
    assert line["outputs"]["out"].startswith("HALF: ") and not line["ended"]
    assert line["afterwards"] == {"out": "whole"} and line["left_afterwards"] == []


def test_a_file_that_is_written_apart_is_old_or_none(tmp_path):
    line = killed(APART, tmp_path, there=True)
    assert line["outputs"] == {"out": "whole"} and line["left"] == ["x.tmp"] and line["left_afterwards"] == []
    (tmp_path / "new").mkdir()
    assert killed(APART, tmp_path / "new")["outputs"] == {"out": "none"}


def test_other_weights_are_found(tmp_path):
    assert killed(OTHER, tmp_path, repeatable=True)["same"] is False


def test_the_commands_are_those_of_the_program(tmp_path):
    """Each writes what it is read by; the processor time of a process grows."""
    found = kills.cases(tmp_path, tmp_path / "base.snn")
    assert list(found) == ["convert", "evaluate", "report", "export", "train", "reconstruct"]
    assert all(one.outputs[0].split("/")[0].split(".")[0] in ("out", "page") for one in found.values())
    assert kills.used(1) >= 0
