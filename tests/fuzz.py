"""The long fuzzing: thousands of mutated files for every reader, each read by a process that may die of it.

    python tests/fuzz.py --cases 10000 --readers snn
    make fuzz

A worker reads one file after the other and says what becomes of each; the parent watches its time and its memory, and
starts another where it crashes, hangs or takes too much. What must stay at zero: exceptions that are not ours, crashes,
hangs, blow-ups, and files that are accepted and are then not finite or not the same twice. With --sanitize the C++
kernels are built with AddressSanitizer and UndefinedBehaviorSanitizer, which end a worker at the first mistake.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path += [str(folder) for folder in HERE.parent.iterdir() if folder.is_dir()]  # as setup.cfg has it for pytest
PATIENCE, MOST = 60.0, 2 * 2**30  # seconds and bytes of memory for one file
FAULTS = ("raw", "crash", "hang", "blow-up", "fault")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--cases", type=int, default=0, help="per reader; by default 2,000, of snn 10,600, of which 10,000 are sealed"
    )
    options.add_argument("--first", type=int, default=0, help="the seed of the first case")
    options.add_argument("--readers", default="", help="names with commas between them; by default all")
    options.add_argument("--sanitize", action="store_true", help="with the sanitizers in the C++ kernels")
    options.add_argument("--keep", default="", help="a folder for the files that were not refused and not accepted")
    options.add_argument("--worker", nargs=4, metavar=("READER", "FIRST", "END", "FOLDER"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.worker:
        reader, first, end, folder = asked.worker
        work(reader, int(first), int(end), Path(folder), asked.sanitize)
        return
    more: dict[str, str] = {}
    if asked.sanitize:
        import sanitized

        more = {**sanitized.environment(), "SANITIZED": str(Path(tempfile.mkdtemp(prefix="fuzz-")) / "host.so")}
        sanitized.compile_to(Path(more["SANITIZED"]), more["CXX"])
    names = asked.readers.split(",") if asked.readers else list(names_of_readers())
    bad = 0
    for name in names:
        cases = asked.cases or (10_600 if name == "snn" else 2_000)
        watch = Watch(name, asked, more)
        counts = watch.run(asked.first, asked.first + cases)
        bad += sum(counts[fault] for fault in FAULTS)
        print(
            f"{name}: seeds {asked.first} to {asked.first + cases - 1}, {sum(counts.values())} files, "
            f"{watch.sealed} of them sealed: "
            f"{', '.join(f'{n} {k}' for k, n in sorted(counts.items()))}",
            flush=True,
        )
    sys.exit(bool(bad))


def names_of_readers() -> tuple[str, ...]:
    return (
        "snn",
        "checkpoint",
        "safetensors",
        "index",
        "training",
        "partial",
        "npz",
        "events",
        "toml",
        "onnx",
        "program",
    )


class Watch:
    """The parent of one reader's workers."""

    def __init__(self, reader: str, asked: argparse.Namespace, environment: dict[str, str]) -> None:
        self.reader, self.asked = reader, asked
        self.environment = {**os.environ, **environment}
        self.counts: collections.Counter[str] = collections.Counter()
        self.sealed = 0  # files with right checksums

    def run(self, first: int, end: int) -> collections.Counter[str]:
        while first < end:
            first = self._one(first, end)
        return self.counts

    def _one(self, first: int, end: int) -> int:
        """One worker until its end; the case to go on with."""
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        words = ["--worker", self.reader, str(first), str(end), str(folder)] + ["--sanitize"] * self.asked.sanitize
        log = open(folder / "stderr", "w+b")  # noqa: SIM115
        worker = subprocess.Popen(
            [sys.executable, str(HERE), *words], stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def listen() -> None:
            assert worker.stdout is not None
            for line in worker.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        at, begun, why = first - 1, time.monotonic() + 600, "crash"  # base files take a while
        while True:
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                if time.monotonic() - begun > PATIENCE:
                    why = "hang"
                elif not self.asked.sanitize and resident(worker.pid) > 2 * MOST:
                    why = "blow-up"
                else:
                    continue
                worker.kill()
                continue
            if line is None:
                break
            said = json.loads(line)
            if "begin" in said:
                at, begun = said["begin"], time.monotonic()
                continue
            begun = time.monotonic() + PATIENCE
            self._count(said["end"], said, folder)
        worker.wait()
        log.seek(0)
        text = log.read().decode(errors="replace")
        if at < first and worker.returncode:
            raise SystemExit(f"{self.reader}: a worker could not begin\n{text[-3000:]}")
        if worker.returncode:
            self._count(at, {"outcome": why, "detail": f"exit {worker.returncode}: {text[-1500:]}"}, folder)
        shutil.rmtree(folder)
        return at + 1

    def _count(self, at: int, said: dict[str, str], folder: Path) -> None:
        self.counts[said["outcome"]] += 1
        self.sealed += bool(said.get("sealed"))
        if said["outcome"] not in FAULTS:
            return
        print(f"{self.reader} {at}: {said['outcome']}: {said['detail']}", file=sys.stderr, flush=True)
        if self.asked.keep:
            for path in folder.glob("mutated*"):
                shutil.copy(path, Path(self.asked.keep, f"{self.reader}-{at}-{path.name}"))


def resident(process: int) -> int:
    """Bytes of memory that a process has now."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


# ---- a worker ----


def work(name: str, first: int, end: int, folder: Path, sanitize: bool) -> None:
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if sanitize:
        import sanitized

        sanitized.load(os.environ["SANITIZED"])
    from mutations import READERS, Fault, mutated, tried

    reader = READERS[name](folder)
    for seed in range(first, end):
        say({"begin": seed})
        path = mutated(reader, folder, random.Random(seed))
        before = 0 if sanitize else peak(reset=True)  # the sanitizers' own memory takes minutes to look through
        try:
            outcome, detail = tried(reader, path), ""
        except Fault as fault:
            outcome, detail = "fault", str(fault)
        except Exception as error:
            outcome, detail = "raw", "".join(traceback.format_exception(error, limit=-4))
        if outcome in ("accepted", "refused") and not sanitize and peak() - before > MOST:
            outcome, detail = "blow-up", f"{(peak() - before) / 2**30:.1f} GiB"
        say({"end": seed, "outcome": outcome, "detail": detail, "sealed": path.stem.endswith("sealed")})


def say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


def peak(reset: bool = False) -> int:
    """The most memory that this process has had since the last reset, in bytes."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
