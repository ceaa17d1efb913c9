"""Files that appear whole or not at all, whoever else writes there; what killed writers leave is swept."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from s_resnet import SResNetError, files
from s_resnet.files import read, replacing, save_json


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    """Each is held while the others write: with one temporary name among them the last would take half a file."""
    path, together, names = tmp_path / "out", threading.Barrier(4, timeout=60), []

    def write(letter):
        with replacing(path) as temporary:
            names.append(temporary.name)
            with open(temporary, "w") as file:
                for _ in range(50):
                    file.write(letter)
                    file.flush()
                    together.wait()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 4 and path.read_text() in {letter * 50 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["out"]


# Of the library only this module: all of it takes seconds to import.
WRITER = """
import os, sys, types
sys.modules["s_resnet"] = package = types.ModuleType("s_resnet")
package.__path__ = [sys.argv[1]]
from s_resnet import files
files.os.getpid = lambda: 1  # as in a container
files._machine = lambda: sys.argv[3]
with files.replacing(sys.argv[2]) as temporary:
    print(temporary.name, flush=True)
    sys.stdin.readline()
    temporary.write_text(sys.argv[3])
"""


def test_processes_of_one_number_on_two_machines_do_not_meet(tmp_path):
    root = os.path.dirname(files.__file__)
    command = [sys.executable, "-c", WRITER, root, str(tmp_path / "out")]
    writers = [
        subprocess.Popen([*command, machine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for machine in ("one", "two")
    ]
    names = [writer.stdout.readline().strip() for writer in writers]
    assert len(set(names)) == 2 and sorted(os.listdir(tmp_path)) == sorted(names), "one has swept or taken the other's"
    for writer in writers:
        writer.communicate("\n", timeout=60)
        assert writer.returncode == 0
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out").read_text() in ("one", "two")


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_what_a_killed_writer_leaves_is_swept_by_the_next(tmp_path):
    root = os.path.dirname(files.__file__)
    plain = WRITER.replace("files.os.getpid", "unused").replace("files._machine", "unused")
    command = [sys.executable, "-c", plain, root, str(tmp_path / "out"), "half"]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    left = writer.stdout.readline().strip()
    writer.kill()
    writer.communicate()
    assert os.listdir(tmp_path) == [left]
    others = [".other.tmp", f".out.{files._machine()}-x-1.tmp", f".out.00000000-{writer.pid}-1.tmp", "out.tmp"]
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "out"])


def test_what_another_machine_has_left_goes_after_a_day(tmp_path):
    """Nobody can ask it, or a container that is no more, whether its writers still run."""
    for age, name in ((files.DAY - 600, "new"), (files.DAY + 600, "old")):
        for machine in ("00000000", files._machine()):
            left = tmp_path / f".{name}.{machine}-{os.getpid()}-1.tmp"
            left.write_text(name)
            os.utime(left, (time.time() - age,) * 2)
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("whole")
    mine = [f".{name}.{files._machine()}-{os.getpid()}-1.tmp" for name in ("new", "old")]  # this process still runs
    assert sorted(os.listdir(tmp_path)) == sorted(["new", "old", *mine, f".new.00000000-{os.getpid()}-1.tmp"])


def test_what_cannot_be_swept_stops_nobody(tmp_path, monkeypatch):
    left = tmp_path / f".out.{files._machine()}-4194305-1.tmp"
    left.write_text("half")

    def forbidden(*_):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, **_: forbidden() if self == left else None)
        files.sweep(tmp_path, ".out.")
    assert left.exists()
    files.sweep(tmp_path, ".out.")
    assert not left.exists()


def test_an_error_of_ours_is_one_line_without_escapes():
    said = str(SResNetError("a\nb\x1b]0;owned\x07 \ud800 Öl 猫"))
    assert said == "a b?]0;owned? ? Öl 猫" and said.isprintable()
    assert SResNetError(3).args == (3,)


def test_a_file_is_read_up_to_its_size(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert read(tmp_path / "a", 3) == b"123"
    with pytest.raises(OSError, match="3 bytes, more than 2"):
        read(tmp_path / "a", 2)
    with pytest.raises(OSError, match="no regular file"):
        read(Path("/dev/null"), 3)


def test_what_to_do_depends_on_why_a_file_cannot_be_written(tmp_path):
    """More room does not help where the folder is missing."""
    (tmp_path / "file").touch()
    for path, remedy in (
        (tmp_path / "none" / "a.json", f"expected a folder that exists. Create {tmp_path / 'none'}, "),
        (tmp_path / "file" / "a.json", f"expected a file in a folder. {tmp_path / 'file'} is a file: "),
        (tmp_path, "expected the name of a file. Add a name to the folder."),
    ):
        with pytest.raises(SResNetError, match=re.escape(remedy)):
            save_json(path, {})
