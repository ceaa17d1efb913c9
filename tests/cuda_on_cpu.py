"""The CUDA kernels on the CPU: ``membrane.cu`` itself, compiled by the host's compiler under ``cuda_on_cpu.h``."""

import ctypes
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import torch

from s_resnet.kernels import check
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.build.cache import built
from s_resnet.kernels.layout import empty_steps
from s_resnet.kernels.membrane import cuda

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
BLOCK = 64  # two warps: enough for everything that warps do together
# Compiling takes longer than running; -O0, and without the checks that take a switch of stacks for a mistake.
FLAGS = [
    "-std=c++17",
    "-O0",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-w",
]
POINTERS, INTEGERS = 11, 12
TYPES = (*["const void*"] * 7, *["void*"] * 3, "int*", "double", *["int"] * INTEGERS)
GUARD = 8192  # bytes around every result that must stay as they are: room for all threads of a block to go astray

_kernels = {}


def kernels(instances, arch=None, source=None, file="membrane.cu", types=TYPES):
    """Instances of a file as C functions, compiled together when they are not there yet; types: what they take.

    With ``__CUDA_ARCH__`` when given, and from ``source`` instead of the file.
    """
    missing = sorted({i for i in instances if (i, arch, source) not in _kernels})
    if missing:
        names = [f"a{i}" for i in range(len(types))]
        lines = [f'#include "{HERE / "cuda_on_cpu.h"}"', f'#include "{source or nvrtc.HERE / file}"']
        for i, instance in enumerate(missing):
            given = ", ".join(f"{t} {n}" for t, n in zip(types, names, strict=True))
            call = f"on_cpu::run(blocks, [&] {{ {instance}({', '.join(names)}); }})"
            lines.append(f'extern "C" int run_{i}(int blocks, {given}) {{ return {call}; }}')
        flags = [*FLAGS, f"-DSRESNET_BLOCK={BLOCK}", f"-I{nvrtc.HERE}", *([f"-D__CUDA_ARCH__={arch}"] if arch else [])]
        headers = [nvrtc.HERE / name for name in nvrtc.HEADERS]
        read = [Path(source or nvrtc.HERE / file), *headers, HERE / "cuda_on_cpu.h"]
        version = subprocess.run([COMPILER, "--version"], check=True, capture_output=True, text=True).stdout

        def build(path):
            main = path.with_suffix(".cpp")
            main.write_text("\n".join(lines))
            done = subprocess.run([COMPILER, *flags, str(main), "-o", str(path)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:4000]

        key = "\n".join([version, *flags, *lines, *(path.read_text() for path in read)])
        library = ctypes.CDLL(str(built("cuda_on_cpu.so", key, build)))
        for i, instance in enumerate(missing):
            _kernels[instance, arch, source] = getattr(library, f"run_{i}")
    return [_kernels[instance, arch, source] for instance in instances]


def guarded(like):
    """A tensor of the strides of ``like`` between guards, and a check that the guards are whole."""
    size = like.numel() * like.element_size()
    room = torch.full((size + 2 * GUARD + 16,), 0x5A, dtype=torch.uint8)
    start = GUARD - room.data_ptr() % 16
    inside = room[start : start + size].view(like.dtype).as_strided(like.shape, like.stride())

    def check():
        assert (room[:start] == 0x5A).all() and (room[start + size :] == 0x5A).all(), "written outside of the result"

    return inside, check


def prepare(current, v, update):
    """The plan of a launch on CPU tensors, its results, and what is to be done after it."""
    check.membrane(current, v, update)
    spikes, check_spikes = guarded(empty_steps(len(current), v, update.spike_dtype or v.dtype))
    checks, held = [check_spikes], []
    for given in (v if update.after is None else update.after, update.emitted_after):
        room, guards = guarded(given) if given is not None and given.is_cpu else (given, None)
        held.append(room)
        checks += [] if guards is None else [guards]
    # What is written in place is read from where it is written.
    emitted = update.emitted
    v = held[0].copy_(v) if update.after is v else v
    emitted = held[1].copy_(emitted) if emitted is not None and update.emitted_after is emitted else emitted
    guarded_update = replace(update, emitted=emitted, after=held[0], emitted_after=held[1])
    plan = cuda.plan(current, v, guarded_update, spikes, BLOCK)

    def finish():
        for intact in checks:
            intact()
        if update.emitted_after is not None:
            update.emitted_after.copy_(held[1])
        return spikes, held[0] if update.after is None else update.after.copy_(held[0])

    return plan, finish


def integrate_and_fire(current, v, update, arch=None, source=None):
    """:func:`s_resnet.kernels.membrane.cuda.integrate_and_fire` with CPU tensors: its plan, its source, no GPU."""
    plan, finish = prepare(current, v, update)
    (run,) = kernels([plan.instance], arch, source)
    pointers, decay, integers = plan.arguments[:POINTERS], plan.arguments[POINTERS], plan.arguments[POINTERS + 1 :]
    assert len(integers) == INTEGERS and isinstance(decay, float)
    given = [ctypes.c_void_p(None if p is None else p.data_ptr()) for p in pointers]
    stuck = run(plan.blocks, *given, ctypes.c_double(decay), *map(ctypes.c_int, integers))
    assert not stuck, "threads wait for each other for ever"
    return finish()
