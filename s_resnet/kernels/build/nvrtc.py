"""CUDA C++ compiled at run time by NVRTC: no nvcc, no build step, and for the compiling itself no driver and no GPU.

NVRTC and the driver are reached through ``cuda-bindings``, which torch's own CUDA builds for Linux bring from 2.10 on.
Instances of the kernels, which are templates, stay in memory once loaded and on disk once compiled.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendUnavailable, message
from .cache import built

HERE = Path(__file__).parents[1] / "csrc"
HEADERS = ("membrane.h", "surrogate.h", "vectors.cuh")
BLOCK = 128  # threads of a block
# No contraction: a fused multiply-add rounds once where the reference rounds twice.
FLAGS = ("--std=c++17", "--fmad=false", f"-DSRESNET_BLOCK={BLOCK}")
LEGACY = 1  # CU_STREAM_LEGACY: torch's default stream, whose handle is 0, whatever 0 means to the bindings

# What a kernel takes: tensors (None is a null pointer), doubles and 32-bit integers.
Argument = Tensor | float | int | None
Compile = Callable[[str, str, str], tuple[str, bytes]]
Launch = Callable[[int, tuple[Argument, ...]], None]

_lock = threading.RLock()  # around the first import of the bindings, and every first load
_loaded: dict[tuple[int, str], Launch] = {}


@cache
def compiler() -> tuple[Compile | None, str]:
    """What compiles an instance for an architecture from a file, or None; and its name, or why there is none."""
    with _lock:
        try:
            version = importlib.import_module("cuda.bindings").__version__
            bindings = importlib.import_module("cuda.bindings.nvrtc")
        except Exception as error:  # whatever a broken or very old one raises
            return None, f"no cuda-bindings: {_line(error)} ({_install('cuda-bindings')})"
        try:
            major, minor = _values(bindings.nvrtcVersion())
        except Exception as error:  # whatever the search for the library raises
            return None, f"no NVRTC for cuda-bindings {version}: {_line(error)} ({_install('cuda-bindings[all]')})"
    return _compile, f"NVRTC {major}.{minor} by cuda-bindings {version}"


def _install(package: str) -> str:
    major = (torch.version.cuda or "").partition(".")[0]
    return f"pip install '{package}=={major}.*'" if major else f"pip install '{package}'"


def binary(instance: str, arch: str, file: str = "membrane.cu") -> tuple[str, bytes]:
    """Symbol and cubin of an instance, compiled or from the disk.

    Args:
        instance: such as ``sresnet::membrane<...>``.
        arch: such as ``sm_90``.
        file: the source that has the template.

    Raises:
        BackendUnavailable: there is no NVRTC, or it cannot compile for this architecture.
    """
    compile_instance, name = compiler()
    if compile_instance is None:
        remedy = "Install what is missing"
        raise BackendUnavailable(message("cuda kernel", "", name, "NVRTC", remedy))
    sources = [(HERE / name).read_text() for name in (file, *HEADERS)]
    key = "\n".join([name, arch, instance, *FLAGS, *sources])

    def build(path: Path) -> None:
        symbol, code = compile_instance(instance, arch, file)
        path.write_bytes(symbol.encode() + b"\n" + code)

    try:
        symbol, _, code = built(f"{Path(file).stem}.cubin", key, build).read_bytes().partition(b"\n")
    except OSError:  # the disk is full, say; memory will do
        return compile_instance(instance, arch, file)
    return symbol.decode(), code


def _compile(instance: str, arch: str, file: str = "membrane.cu") -> tuple[str, bytes]:
    try:
        return _compiled(instance.encode(), arch, file)
    except Exception as error:  # NVRTC's no, or whatever another version of the bindings raises
        what, remedy = f"{compiler()[1]} refused {instance} for {arch}", "Install a torch whose CUDA knows this device"
        raise BackendUnavailable(message("cuda kernel", what, _line(error), "a cubin", remedy)) from error


def _compiled(instance: bytes, arch: str, file: str) -> tuple[str, bytes]:
    bindings: Any = importlib.import_module("cuda.bindings.nvrtc")
    source, *headers = ((HERE / name).read_bytes() for name in (file, *HEADERS))
    # The headers themselves, not a path: whatever the path is called and whatever lies in the current folder.
    names = [name.encode() for name in HEADERS]
    (program,) = _values(bindings.nvrtcCreateProgram(source, file.encode(), len(headers), headers, names))
    try:
        _values(bindings.nvrtcAddNameExpression(program, instance))
        options = [option.encode() for option in (*FLAGS, f"--gpu-architecture={arch}")]
        (status,) = bindings.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = _filled(program, bindings.nvrtcGetProgramLogSize, bindings.nvrtcGetProgramLog)
            raise RuntimeError(f"{status.name}: {log.rstrip(bytes(1)).decode(errors='replace')}")
        (symbol,) = _values(bindings.nvrtcGetLoweredName(program, instance))
        return symbol.decode(), _filled(program, bindings.nvrtcGetCUBINSize, bindings.nvrtcGetCUBIN)
    finally:
        bindings.nvrtcDestroyProgram(program)


def _filled(program: object, size_of: Callable[..., Any], get: Callable[..., Any]) -> bytes:
    (size,) = _values(size_of(program))
    found = bytearray(size)
    _values(get(program, found))
    return bytes(found)


def _values(returned: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a function of the bindings returns behind its status."""
    status, *values = returned
    if int(status) != 0:
        raise RuntimeError(status.name)
    return tuple(values)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def loaded(instance: str, device: int, file: str = "membrane.cu") -> Launch:
    """The launcher of an instance: takes blocks and arguments, and launches on torch's current stream of the device.

    Args:
        instance: such as ``sresnet::membrane<...>``.
        device: torch's current device, now and when the launcher is called.
        file: the source that has the template.

    Raises:
        BackendUnavailable: it cannot be compiled or loaded, or this first use is inside the capture of a CUDA graph.
    """
    launch = _loaded.get((device, instance))
    if launch is not None:
        return launch
    if torch.cuda.is_current_stream_capturing():
        got, remedy = f"a first use of {instance} in a CUDA graph", "Call warm_up with the same arguments first"
        raise BackendUnavailable(message("cuda kernel", "", got, "one before the capture", remedy))
    with _lock:
        if (device, instance) not in _loaded:  # another thread was first
            symbol, code = binary(instance, "sm_{}{}".format(*torch.cuda.get_device_capability(device)), file)
            try:
                _loaded[device, instance] = _load(symbol, code, device)
            except Exception as error:  # the driver's no, or whatever another version of the bindings raises
                what, remedy = f"the driver refused the cubin of {compiler()[1]}", _install("cuda-bindings[all]")
                said = message("cuda kernel", what, _line(error), "it to load", f"Update the driver, or {remedy}")
                raise BackendUnavailable(said) from error
        return _loaded[device, instance]


def _load(symbol: str, code: bytes, device: int) -> Launch:
    driver: Any = importlib.import_module("cuda.bindings.driver")
    _values(driver.cuInit(0))
    (ordinal,) = _values(driver.cuDeviceGet(device))
    (context,) = _values(driver.cuDevicePrimaryCtxRetain(ordinal))  # torch's own
    _values(driver.cuCtxSetCurrent(context))
    (library,) = _values(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
    (kernel,) = _values(driver.cuLibraryGetKernel(library, symbol.encode()))
    (function,) = _values(driver.cuKernelGetFunction(kernel))  # loads it now: a captured launch must not

    def launch(blocks: int, arguments: tuple[Argument, ...]) -> None:
        stream = torch.cuda.current_stream(device).cuda_stream or LEGACY
        values = [_as_c(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        shape = (blocks, 1, 1, BLOCK, 1, 1, 0)
        try:
            _values(driver.cuCtxSetCurrent(context))  # a thread that is new to CUDA has none
            _values(driver.cuLaunchKernel(function, *shape, stream, ctypes.addressof(addresses), 0))
        except Exception as error:  # as above; or what an earlier kernel did
            got, remedy = f"{_line(error)} from a launch of {blocks} blocks", "Find it with CUDA_LAUNCH_BLOCKING=1"
            expected = "it to start, unless an earlier kernel failed"
            raise BackendUnavailable(message("cuda kernel", "", got, expected, remedy)) from error

    return launch


def _as_c(argument: Argument) -> ctypes.c_void_p | ctypes.c_double | ctypes.c_int32:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int32(argument)
