"""The C++ kernels of the CPU: compiled at first use by the machine's own compiler, cached, called through ctypes.

Without a compiler plain torch does the same, slower. ``$CXX`` names the compiler to take.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

from .cache import built

HERE = Path(__file__).parents[1] / "csrc"
SOURCES = ("events.cpp", "membrane.cpp", "normalize.cpp", "surrogate.cpp")
HEADERS = ("layer.h", "membrane.h", "rows.h", "surrogate.h")
# No contraction: a fused multiply-add rounds once where the reference rounds twice.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC")


@cache
def compiled() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels, or None; and which compiler made them, or why there are none."""
    compiler = _compiler()
    if compiler is None:
        return None, f"no C++ compiler: {os.environ.get('CXX') or 'c++, g++ and clang++'} not found"
    try:
        version = _run([compiler, "--version"]).splitlines()[0]
    except (subprocess.SubprocessError, OSError, IndexError) as error:
        return None, f"{compiler} --version failed: {error}"
    sources = [(HERE / name).read_text() for name in (*SOURCES, *HEADERS)]
    reason = ""
    for threading in (("-fopenmp",), ()):
        key = "\n".join([version, *FLAGS, *threading, _processor(), *sources])
        try:
            return ctypes.CDLL(str(built("host.so", key, partial(_compile, compiler, threading)))), version
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip() or str(error)).splitlines()[0]
        except (subprocess.TimeoutExpired, OSError) as error:
            reason = str(error)
    return None, f"{compiler} failed: {reason}"


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    found = (shutil.which(name) for name in ((named,) if named else ("c++", "g++", "clang++")))
    return next((path for path in found if path), None)


def _compile(compiler: str, threading: tuple[str, ...], target: Path) -> None:
    objects = [str(target.with_name(f"{name}.o")) for name in SOURCES]
    commands = [
        [compiler, *FLAGS, *threading, "-c", str(HERE / name), "-o", at]
        for name, at in zip(SOURCES, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(commands)) as at_once:
        list(at_once.map(_run, commands))
    # Linked without OpenMP: its runtime is torch's, which is loaded already. A second one would fight for the cores.
    _run([compiler, "-shared", *objects, "-o", str(target)])


def _run(command: list[str]) -> str:
    # A compiler may speak in another encoding than Python expects.
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=300)
    return done.stdout


def _processor() -> str:
    """What -march=native stands for: a home folder may be shared by machines with different processors."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {features}"


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return any(feature in _processor().split() for feature in ("avx512_bf16", "amx_bf16", "bf16"))
