"""How far long work is: in a log a line every 30 seconds of any work, on a terminal a bar, and nothing unasked."""

import io
import subprocess
import sys

import pytest
import torch
from conftest import images, randomized
from every_recipe import SIZE, network
from test_house import OURS, PROGRAM

import s_resnet
from s_resnet.runtime import progress
from s_resnet.runtime.progress import Progress

EVERY = progress.EVERY  # as it is outside of tests


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    monkeypatch.setattr(progress, "EVERY", EVERY)
    monkeypatch.setattr(Progress, "_told", 0.0)
    monkeypatch.setattr(Progress, "_active", 0.0)
    return found


def test_a_log_gets_a_line_every_thirty_seconds(clock, capsys):
    assert EVERY == 30
    seen = []
    for item in Progress(range(100), desc="evaluate", unit="batch", shown=True):
        seen.append(item)
        clock.now += 2.5
    assert seen == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"evaluate {n}/100, {_minutes(n * 2.5)}, about {_minutes((100 - n) * 2.5)} left" for n in range(12, 97, 12)
    ]


def _minutes(seconds):
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def test_short_works_one_after_the_other_share_the_clock(clock, capsys):
    """No work lasts 30 seconds, and yet the log is not silent."""
    for name in "abcdef":
        for _ in Progress(range(4), desc=name, unit="step", shown=True):
            clock.now += 3
    assert [line[0] for line in capsys.readouterr().err.splitlines()] == ["c", "e"]
    clock.now += 3600
    with Progress[None](total=2, desc="later", unit="step", shown=True) as bar:
        bar.update()
    assert capsys.readouterr().err == "", "the hour before was no work of ours"


def test_work_within_work_is_named_behind_it(clock, capsys):
    with Progress[None](total=15, desc="auto", unit="recipe", shown=True) as outer:
        outer.update(2)
        with Progress[None](total=None, desc="fit", unit="node", shown=True) as inner:
            inner.show(loss="0.31")
            clock.now += 40
            inner.update(7)
        with pytest.raises(ValueError, match="stop"):
            for _ in Progress(range(3), desc="broken", unit="node", shown=True):
                raise ValueError("stop")
        clock.now += 40
        outer.update()
    assert capsys.readouterr().err.splitlines() == [
        "auto 2/15, fit 7, loss 0.31, 0:40",
        "auto 3/15, 1:20, about 5:20 left",
    ]


def test_what_was_done_before_does_not_count_for_the_time_left(clock, capsys):
    with Progress[None](total=100, desc="reconstruct", unit="step", shown=True) as bar:
        bar.resume(80)
        clock.now += 3600
        bar.update(10)
    assert capsys.readouterr().err == "reconstruct 90/100, 1:00:00, about 1:00:00 left\n"


def test_nothing_unasked_and_a_closed_log_stops_nothing(clock, capsys, monkeypatch):
    for _ in Progress(range(3), desc="quiet", unit="step", shown=False):
        clock.now += 100
    for _ in Progress(range(3), desc="short", unit="step", shown=True):
        clock.now += 1  # what was silent before does not count
    assert capsys.readouterr().err == ""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    done = 0
    for _ in Progress(range(3), desc="log", unit="step", shown=True):
        clock.now += 100
        done += 1
    assert done == 3
    monkeypatch.setattr(sys, "stderr", None)  # as without a console
    assert list(Progress(range(3), desc="log", unit="step", shown=True)) == [0, 1, 2]


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress[None](total=4, desc="work", unit="step", shown=True) as bar:
        bar.show(loss="0.5")
        bar.update(4)
        assert "work" in sys.stderr.getvalue() and "\r" in sys.stderr.getvalue()


def test_no_other_bar_in_the_library():
    """One that is not ours is silent in a log, and in a notebook."""
    makers = [path for path, text in {**OURS, **PROGRAM}.items() if "tqdm" in text]
    assert makers == ["s_resnet/runtime/progress.py"]


class Terminal(io.StringIO):
    """Where bars are drawn."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("recipe", "inside"), [("calibrated-lagged", False), ("calibrated-constant", True)])
def test_no_bar_stands_still_within_a_batch(monkeypatch, recipe, inside):
    """The window of a network that waits is one chunk: such a bar would stand at 0 and vanish."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    s_resnet.evaluate(
        network(recipe),
        [(images(2, SIZE), torch.arange(2))],
        4,
        s_resnet.analysis.EvaluationSettings(progress=True),
        device="cpu",
    )
    assert "evaluate" in terminal.getvalue() and ("simulate" in terminal.getvalue()) == inside


def test_a_recipe_shows_which_of_its_steps_runs(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    model, batches = randomized(s_resnet.models.CifarResNet(8, width=4)), [images(16, SIZE)]
    s_resnet.convert(model, batches, recipe="calibrated-lagged", timesteps=4, progress=True)
    steps = s_resnet.RECIPES["calibrated-lagged"].steps
    assert "calibrated-lagged, T = 4: " in terminal.getvalue()
    assert f" {len(steps) - 1}/{len(steps)} " in terminal.getvalue()
    assert all(f", step={step.name}]" in terminal.getvalue() for step in steps)


def test_importing_in_a_notebook_warns_of_nothing():
    """Of tqdm's notebook mode, or of ipywidgets that are not there."""
    program = "import sys, types; sys.modules['ipykernel.zmqshell'] = types.ModuleType('zmqshell'); import s_resnet"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print('tqdm.auto' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout == "False\n" and "tqdm" not in done.stderr.lower(), done.stderr
