"""The C++ kernels built with AddressSanitizer and UndefinedBehaviorSanitizer, for a process that has their runtime."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

RUNTIMES = ("libasan.so", "libubsan.so")
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g1",
    "-O0",  # it runs as fast as -O1 here, and compiles in a third of the time
)


def compiler() -> str | None:
    """A compiler that has the runtimes as libraries which can be loaded first."""
    for name in ("g++", "c++"):
        if (path := shutil.which(name)) and all(Path(place).is_absolute() for place in _places(path)):
            return path
    return None


def _places(path: str) -> list[str]:
    asked = ([path, f"-print-file-name={name}"] for name in RUNTIMES)
    return [subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() for words in asked]


def environment() -> dict[str, str]:
    """What a process needs to load the kernels: the runtimes before all else. Python's own leaks do not matter here."""
    found = compiler()
    assert found is not None
    return {
        "LD_PRELOAD": " ".join(_places(found)),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "CXX": found,
    }


def compile_to(library: Path, path: str) -> None:
    """Compile the kernels to a library, with the sanitizers in them."""
    subprocess.run([*_command(path), "-o", str(library)], check=True, timeout=600)


def _command(path: str) -> list[str]:
    from s_resnet.kernels.build import compiler

    flags = [flag for flag in compiler.FLAGS if flag != "-O3"]
    return [path, *flags, *SANITIZERS, "-fopenmp", "-shared", *(str(compiler.HERE / name) for name in compiler.SOURCES)]


def compiled_in(folder: Path, path: str) -> Path:
    """The library in a folder that outlives a run: compiled anew when the compiler, its flags or a source changed."""
    from s_resnet.kernels.build import compiler

    digest = hashlib.sha256(subprocess.run([path, "--version"], capture_output=True, check=True).stdout)
    digest.update("\0".join(_command(path)).encode())
    for name in (*compiler.SOURCES, *compiler.HEADERS):
        digest.update((compiler.HERE / name).read_bytes())
    library = folder / f"{digest.hexdigest()[:32]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(f".{os.getpid()}")
        compile_to(fresh, path)
        os.replace(fresh, library)
    return library


def load(library: str) -> None:
    """Have this process run them."""
    from s_resnet.kernels.build import compiler

    loaded = ctypes.CDLL(library)
    compiler.compiled = lambda: (loaded, "sanitized")
