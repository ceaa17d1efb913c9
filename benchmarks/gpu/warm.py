"""Which instances of the kernels does a visit need, and can they be compiled before it? Yes: it takes NVRTC, no GPU.

    python benchmarks/gpu/warm.py record FILE --networks FOLDER    on a CPU: what checks, tests and timings would launch
    python benchmarks/gpu/warm.py compile FILE [--arch sm_90] [--processes N]

The first runs the checks on the CPU as if it were a GPU, and lists every instance that would be asked for. The second
compiles what is not in the cache yet (`$XDG_CACHE_HOME/s_resnet`), for the device that is there or for ``--arch``.
Where the device is, it also compiles the CPU's kernels, which every process would do for itself otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import check_training
import checks
import inside
import membrane
import torch

import s_resnet


def of_tests() -> Iterator[inside.Instance]:
    """What the tests of the kernels, and `sanitize.py`, launch on a GPU."""
    import membrane_cases as cases
    import test_surrogate_cuda as trained

    def each(case: cases.Case, shape: tuple[int, ...], steps: int) -> inside.Instance:
        current, v, settings = cases.make(case, shape, steps)
        return inside.membrane_instance(current, v, inside.Update(**settings))

    for case in cases.EVERY:
        for shape, steps in [*cases.launches(case), ((2, 24, 7, 9), 33)]:
            yield each(case, shape, steps)
    for case in cases.OTHERS:
        for shape, steps in itertools.product(((2, 8, 3, 5), (2, 16, 7, 7), (2, 3, 5, 7)), (1, 7)):
            yield each(case, shape, steps)
    for dtype, steps, levels in itertools.product(trained.FLOATS, (1, 4, 7, 20), (1, 3)):
        current = torch.zeros(steps, 2, 24, 9, 8, dtype=dtype)
        for firing, backward in itertools.product(list(trained.neurons(levels, levels))[::3], (False, True)):
            yield from inside.surrogate_instance(current, backward, firing)


def of_checks() -> Iterator[inside.Instance]:
    """Of 16 bits, which the CPU does not train in."""
    for (steps, firing), dtype in itertools.product(check_training.neurons(), check_training.DTYPES):
        for backward in (False, True):
            yield from inside.surrogate_instance(
                torch.zeros(steps, *check_training.PIXELS, dtype=dtype), backward, firing
            )


def of_timings() -> Iterator[inside.Instance]:
    """The membrane kernel alone; the networks are those of the checks in other sizes."""
    for steps, branch in itertools.product((1, 5), (False, True)):
        given = membrane.layer((64, 7, 7), steps, 2, branch, torch.device("cpu"))
        yield inside.membrane_instance(*given)


def record(file: Path, networks: Path) -> int:
    """Write the list; 1 where a check failed, since what it would have launched is missing then."""
    found: set[inside.Instance] = {*of_tests(), *of_checks(), *of_timings()}
    with inside.as_on_a_gpu(found):
        failed = checks.main(["--device", "cpu", "--networks", str(networks), "--output", "/dev/null"])
    file.write_text(json.dumps(sorted(found)))
    print(f"{len(found)} instances")
    return failed


def compile_one(instance: list[str], arch: str) -> str | None:
    """The error, if any."""
    try:
        inside.compile_instance((instance[0], instance[1]), arch)
    except s_resnet.SResNetError as error:
        return str(error)
    return None


def compile_all(file: Path, arch: str | None, processes: int) -> int:
    """Compile the list; 1 where one could not be, which is told."""
    if arch is None and not torch.cuda.is_available():
        raise SystemExit("no CUDA device to compile for: name one with --arch")
    here = arch is None
    if arch is None:
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    instances, start = json.loads(file.read_text()), time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        host = pool.submit(inside.compile_host) if here else None
        errors = [error for error in pool.map(compile_one, instances, itertools.repeat(arch)) if error is not None]
    for error in errors[:3]:
        print(error, file=sys.stderr)
    if host is not None:
        print(f"kernels of the CPU: {host.result()}")
    done = f"{len(instances) - len(errors)} of {len(instances)}"
    print(f"{done} instances for {arch} by {inside.compiler()} in {time.perf_counter() - start:.0f} s")
    return int(bool(errors))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("record", "compile"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--networks", type=Path, help="what networks.py made; a dry run's are enough")
    parser.add_argument("--arch", help="such as sm_90; by default the device that is there")
    parser.add_argument("--processes", type=int, default=2)
    got = parser.parse_args(arguments)
    if got.task == "compile":
        return compile_all(got.file, got.arch, got.processes)
    if got.networks is None:
        parser.error("record needs --networks")
    return record(got.file, got.networks)


if __name__ == "__main__":
    sys.exit(main())
