"""Being stopped: no signal is lost, wherever it arrives; it says how to go on, and leaves no file behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sresnet_cli import stop
from test_cli import Program, make_photos, put_converted
from test_train import data as training_data
from test_train import trained

from s_resnet import files
from s_resnet.conversion import recipes
from s_resnet.conversion.block import Block
from s_resnet.data import loader
from s_resnet.training import loop

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks are POSIX")

# Where Python can only say that an exception was ignored, or where somebody swallows it.
PLACES = {
    "a fork": "os.register_at_fork(before=hit); os.fork() or os._exit(0); os.wait()",
    "after a fork": "os.register_at_fork(after_in_parent=hit); os.fork() or os._exit(0); os.wait()",
    "__del__": "type('Dying', (), {'__del__': lambda self: hit()})()",
    "a weak reference": "some = threading.Event(); kept = weakref.ref(some, lambda _: hit()); del some",
    "a callback from C": "ctypes.CFUNCTYPE(None)(hit)()",
    "who swallows it": """
try:
    hit()
except BaseException:
    pass
""",
    "plain code": "hit()",
}
# A child for every place and signal, all at once: the program as it ends, its words in files.
SCRIPT = """
import ctypes, itertools, json, os, signal, sys, threading, time, weakref
from sresnet_cli import stop
from sresnet_cli.__main__ import main, sresnet
places, numbers = json.loads(sys.argv[1]), sys.argv[2:]
for usual in stop.SIGNALS:
    signal.signal(usual, signal.default_int_handler if usual == signal.SIGINT else signal.SIG_DFL)
hits = []
def child(name, number):
    for words, file in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{name}-{number}.{words}", os.O_CREAT | os.O_WRONLY), file)
    stop.LATER = 0.3 if name == "who swallows it" else 60.0  # seconds
    def hit():
        if not hits:
            hits.append(1)
            signal.raise_signal(getattr(signal, number))
    @sresnet.command()
    def work():
        exec(places[name], globals() | {"hit": hit})
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.001)
        print("lost")
    sys.argv[1:] = ["work"]
    main()
children = {}
for name, number in itertools.product(places, numbers):
    children[f"{name}-{number}"] = pid = os.fork()
    if not pid:
        child(name, number)
print(json.dumps({name: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for name, pid in children.items()}))
"""
NUMBERS = ("SIGINT", "SIGTERM", "SIGHUP")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Exit code, stdout and stderr of a program that was hit by a signal, by place and signal."""
    folder = tmp_path_factory.mktemp("hit")
    path = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", SCRIPT, json.dumps(PLACES), *NUMBERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=path)
    assert (done.returncode, done.stderr) == (0, "")
    words = {
        name: [(folder / f"{name}.{kind}").read_text() for kind in ("out", "err")] for name in json.loads(done.stdout)
    }
    return {name: (code, *words[name]) for name, code in json.loads(done.stdout).items()}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("place", PLACES)
def test_no_signal_is_lost(ended, place, number):
    assert ended[f"{place}-{number}"] == (128 + getattr(signal, number), "", "Interrupted.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_was_to_be_ignored_is_ignored(number, monkeypatch):
    """As nohup does it, and a shell of its background jobs."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop.obeyed() as found:
            signal.raise_signal(number)
        assert not found.done or signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_afterwards_everything_is_as_before():
    def found():
        return [signal.getsignal(number) for number in stop.SIGNALS] + [sys.unraisablehook]

    before = found()
    with pytest.raises(KeyboardInterrupt), stop.obeyed():
        assert found() != before
        signal.raise_signal(signal.SIGTERM)
    assert found() == before
    with stop.obeyed() as one:
        one.end()
        signal.raise_signal(signal.SIGTERM)  # the program ends already


def test_elsewhere_than_in_the_main_thread_nothing_is_done():
    seen = []

    def work():
        with stop.obeyed():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


# ---- the library alone


class Starting:
    """A loader that is hit by a signal while its workers start, which for Python is a fork."""

    def __init__(self, number):
        self.number, self.started = number, False

    def __iter__(self):
        signal.raise_signal(self.number)
        self.started = True
        return iter([1, 2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_while_workers_start_is_raised_when_they_have(number):
    def raising(number, frame):
        raise KeyboardInterrupt(number)

    starting, before = Starting(number), signal.signal(number, raising)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            loader.started(starting)
        assert starting.started and caught.value.args == (number,)
        assert signal.getsignal(number) is raising
    finally:
        signal.signal(number, before)


def test_a_thread_starts_workers_as_ever():
    class Quiet(Starting):
        def __iter__(self):
            return iter([1, 2])

    found = []
    thread = threading.Thread(target=lambda: found.extend(loader.started(Quiet(0))))
    thread.start()
    thread.join()
    assert found == [1, 2]


# ---- how to go on


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capfd)


def stopped_at(count, plain):
    """The function, which is interrupted at its call of that number."""
    calls = []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return plain(*arguments, **named)

    return call


TRAIN = ("train", "ms_resnet8", "--data", "photos", "--width", 4, "--batch-size", 4, "--timesteps", 1, "--workers", 0)


def test_a_training_says_how_to_go_on(program, monkeypatch):
    make_photos(Path("photos"))
    for count, epochs in ((1, 0), (3, 2), (1, 2)):  # at first, after two epochs, and at once after they were found
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_epoch", stopped_at(count, loop._epoch))
            code, _, err = program(*TRAIN, "--epochs", 4, "-o", "x.pt")
        said = f" Repeat it to go on from x.pt: {epochs} of 4 epochs finished." if epochs else ""
        assert (code, err.splitlines()[-1]) == (130, f"Interrupted.{said}")
    code, out, err = program(*TRAIN, "--epochs", 4, "-o", "x.pt")
    assert code == 0 and "holds this run up to epoch 2 of 4: it goes on" in err and out.count("epoch ") == 2


def test_a_reconstruction_says_how_to_go_on_and_that_it_does(program, monkeypatch, tmp_path):
    put_converted(tmp_path)
    asked = ("convert", "tiny.pth", "--calibration", "photos", "--calibration-images", 6, "--input-size", 8)
    asked = (*asked, "--recipe", "phased", "--timesteps", 2, "--reconstruct", "-o", "new.snn")
    short = recipes.Recipe.reconstructed
    monkeypatch.setattr(recipes.Recipe, "reconstructed", lambda self: short(self, steps=1, joint=1))
    with monkeypatch.context() as patch:
        patch.setattr(Block, "train", stopped_at(3, Block.train))
        code, _, err = program(*asked)
    last = err.splitlines()[-1]
    assert code == 130 and last.startswith("Interrupted. Repeat it to go on from new.snn.partial: 2 of ")
    assert last.endswith(" parts finished.") and not Path("new.snn").exists()
    code, _, err = program(*asked)
    assert code == 0 and "Resuming the reconstruction in new.snn.partial, of which 2 parts are finished" in err
    assert Path("new.snn").exists() and not Path("new.snn.partial").exists()


def test_from_python_the_note_is_on_the_interrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_epoch", stopped_at(2, loop._epoch))
    with pytest.raises(KeyboardInterrupt) as caught:
        trained(tmp_path / "x.pt", images=training_data())
    (note,) = caught.value.__notes__
    assert note.startswith(f"Repeat it to go on from {tmp_path / 'x.pt'}: 1 of ")


# ---- what is left behind

# Of the library only what writes files: all of it takes seconds to import.
WRITER = """
import signal, sys, time, types
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
sys.modules["s_resnet"] = package = types.ModuleType("s_resnet")
package.__path__ = [sys.argv[1]]
from s_resnet import files
from sresnet_cli.__main__ import main, sresnet
@sresnet.command()
def write():
    with files.replacing("out") as temporary:
        temporary.write_text("half")
        print(temporary, flush=True)
        time.sleep(60)
sys.argv[1:] = ["write"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_that_the_next_run_does_not_sweep(number, tmp_path):
    path = os.environ | {"PYTHONPATH": os.pathsep.join(["", str(ROOT), os.environ.get("PYTHONPATH", "")])[1:]}
    command = [sys.executable, "-c", WRITER, str(ROOT / "s_resnet")]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        temporary = process.stdout.readline().strip()
        assert os.listdir(tmp_path) == [temporary]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    if number == signal.SIGKILL:
        assert (process.returncode, err, os.listdir(tmp_path)) == (-number, "", [temporary])
    else:
        assert (process.returncode, err, os.listdir(tmp_path)) == (128 + number, "Interrupted.\n", [])
    with files.replacing(tmp_path / "out") as other:
        other.write_text("whole")
    assert os.listdir(tmp_path) == ["out"]
