"""Another process of Python that has torch and this package already: for tests that end, limit or kill one.

A new interpreter imports them for seconds. The server of these processes does so once for all tests.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

# Two processes on busy cores take minutes, and the compiler before them; one that hangs is ended here.
PATIENCE = 600


def context():
    """Where processes come from; one for all who ask."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["torchvision", "s_resnet", "sresnet_cli.__main__"])
    return fork


def words_to(folder, name=""):
    """From here on stdout and stderr are files of the folder."""
    for kind, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(folder) / f"{kind}{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)


def work(program, arguments, place, folder):
    os.setsid()  # its signals are its own
    words_to(folder)
    os.chdir(place)
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Process:
    """One that runs ``program`` in the folder ``place``; its words go to files of ``folder``, which is another."""

    def __init__(self, program, *arguments, place, folder):
        self.folder, told = folder, list(map(str, arguments))
        self.process = context().Process(target=work, args=(program, told, place, folder))
        self.process.start()
        self.pid = self.process.pid

    def running(self):
        return self.process.is_alive()

    def wait_for(self, seen):
        """Until ``seen()`` or its end."""
        end = time.monotonic() + PATIENCE
        while not seen() and self.running() and time.monotonic() < end:
            time.sleep(0.01)

    def said(self, kind="out"):
        path = self.folder / kind
        return path.read_text() if path.exists() else ""

    def done(self):
        """How it ended; one that hangs is killed."""
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        return Done(self.process.exitcode, self.said(), self.said("err"))
