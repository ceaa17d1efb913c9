"""Is everything that touches a GPU right there? Against the CPU and against plain torch; a failure stops nothing.

    python benchmarks/gpu/checks.py [GROUP ...] --networks FOLDER [--device cuda|cpu] [--only NAME;...]

Groups: engine, analysis, streams, arithmetic, training; without one, all. FOLDER is what `networks.py` made. A line for
each check is appended to `benchmarks/results/gpu_checks.jsonl`; the exit status is 1 where one failed. On
`--device cpu` what needs a GPU says so, and the others are a dry run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import check_analysis
import check_arithmetic
import check_engine
import check_streams
import check_training
import torch
from check_arithmetic import CALLERS
from checking import CHECKS, run
from lines import RESULTS
from networks import Networks

GROUPS = tuple(
    m.__name__.removeprefix("check_")
    for m in (check_engine, check_analysis, check_streams, check_arithmetic, check_training)
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", metavar="NAME;...", help="checks by name")
    parser.add_argument("--caller", choices=tuple(CALLERS), help="what a caller has set in torch before")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_checks.jsonl")
    got = parser.parse_args(arguments)
    if got.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing is checked")
    unknown = set(got.groups) - set(GROUPS)
    wanted = got.only.split(";") if got.only else list(CHECKS)
    if unknown or not set(wanted) <= CHECKS.keys():
        raise SystemExit(f"got {unknown or set(wanted) - CHECKS.keys()}; expected of {GROUPS}, {list(CHECKS)}")
    warnings.simplefilter("default")
    if got.caller:
        CALLERS[got.caller]()
    names = [name for name in wanted if not got.groups or CHECKS[name].group in got.groups]
    failed, left = run(names, Networks(got.networks, torch.device(got.device)), got.output)
    if left:  # the device is lost to this process, not to the next one
        again = [sys.executable, __file__, "--only", ";".join(left), "--networks", str(got.networks)]
        failed += subprocess.run([*again, "--output", str(got.output)]).returncode
    print(f"{len(names) - len(left)} checks, {failed} FAIL")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
