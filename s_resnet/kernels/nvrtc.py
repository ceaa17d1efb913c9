"""CUDA C++ compiled at run time by NVRTC: no nvcc, no build step, and for the compiling itself no driver and no GPU.

By ``cuda-core`` (public; the extra ``[cuda]``) where it is installed, else by what CUDA builds of torch keep private.
Instances of the kernels, which are templates, stay in memory once loaded and on disk once compiled.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BackendUnavailable
from .cache import built

HERE = Path(__file__).parent
HEADERS = ("membrane.h", "surrogate.h", "vectors.cuh")
BLOCK = 128  # threads of a block
# No contraction: a fused multiply-add rounds once where the reference rounds twice.
FLAGS = ("--std=c++17", "--fmad=false", f"-DSRESNET_BLOCK={BLOCK}")

# What a kernel takes: tensors (None is a null pointer), doubles and 32-bit integers.
Argument = Tensor | float | int | None
Compile = Callable[[str, str, str], tuple[str, bytes]]
Launch = Callable[[int, tuple[Argument, ...]], None]


@cache
def compiler() -> tuple[Compile | None, str]:
    """What compiles an instance for an architecture from a file, or None; and its name, or why there is none."""
    try:
        core = importlib.import_module("cuda.core")
        bindings = importlib.import_module("cuda.bindings.nvrtc")
    except ImportError:
        if torch.version.cuda is None or not hasattr(torch.cuda, "_compile_kernel"):
            return None, "no NVRTC: no cuda-core, and none in this torch"
        return _compile_by_torch, f"NVRTC {torch.version.cuda} by torch"
    try:
        _, major, minor = bindings.nvrtcVersion()
    except Exception as error:  # whatever the search for the library raises
        return None, f"no NVRTC: cuda-core {core.__version__} finds no library ({str(error).splitlines()[0]})"
    return _compile_by_core, f"NVRTC {major}.{minor} by cuda-core {core.__version__}"


def binary(instance: str, arch: str, file: str = "membrane.cu") -> tuple[str, bytes]:
    """Symbol and cubin of an instance such as ``sresnet::membrane<...>`` for ``sm_90``, compiled or from the disk.

    file: the source that has the template.

    Raises:
        BackendUnavailable: there is no NVRTC, or it cannot compile for this architecture.
    """
    compile_instance, name = compiler()
    if compile_instance is None:
        raise BackendUnavailable(f"cuda kernel: got {name}; expected a compiler. Install cuda-core: s-resnet[cuda].")
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


def _compile_by_core(instance: str, arch: str, file: str = "membrane.cu") -> tuple[str, bytes]:
    core = importlib.import_module("cuda.core")
    options = core.ProgramOptions(
        arch=arch, std="c++17", fma=False, define_macro=("SRESNET_BLOCK", str(BLOCK)), include_path=str(HERE)
    )
    try:
        program = core.Program((HERE / file).read_text(), "c++", options)
        code = program.compile("cubin", name_expressions=(instance,))
    except Exception as error:  # cuda-core raises plain exceptions with NVRTC's log in them
        raise BackendUnavailable(_refused(instance, arch, error)) from error
    symbol = code.symbol_mapping[instance]
    return symbol.decode() if isinstance(symbol, bytes) else str(symbol), bytes(code.code)


def _compile_by_torch(instance: str, arch: str, file: str = "membrane.cu") -> tuple[str, bytes]:
    private = importlib.import_module("torch.cuda._utils")
    source = (HERE / file).read_text()
    try:
        code, symbol = private._nvrtc_compile(source, instance, arch.removeprefix("sm_"), [str(HERE)], list(FLAGS))
    except Exception as error:  # a private function: it may raise anything in another version
        raise BackendUnavailable(_refused(instance, arch, error)) from error
    return str(symbol), bytes(code)


def _refused(instance: str, arch: str, error: Exception) -> str:
    log = " ".join(str(error).split())
    return f"cuda kernel: NVRTC refused {instance} for {arch}, got {log[:400]}; expected a cubin. Update cuda-core."


_loaded: dict[tuple[int, str], Launch] = {}


def loaded(instance: str, device: int, file: str = "membrane.cu") -> Launch:
    """The launcher of an instance on a device: blocks and arguments to a launch on torch's current stream there.

    file: the source that has the template.

    Raises:
        BackendUnavailable: it cannot be compiled or loaded, or a CUDA graph is captured that it is too late for.
    """
    launch = _loaded.get((device, instance))
    if launch is None:
        if torch.cuda.is_current_stream_capturing():
            raise BackendUnavailable(
                f"cuda kernel: got a first use of {instance} while a CUDA graph is captured; expected one before it. "
                f"Call warm_up with the same arguments first."
            )
        symbol, code = binary(instance, "sm_{}{}".format(*torch.cuda.get_device_capability(device)), file)
        load = _load_by_core if compiler()[0] is _compile_by_core else _load_by_torch
        try:
            launch = load(symbol, code, device)
        except Exception as error:  # the driver's own errors, by either way
            log = " ".join(str(error).split())
            raise BackendUnavailable(
                f"cuda kernel: the driver refused the cubin of {compiler()[1]}, got {log[:400]}; expected it to load. "
                f"Update the driver, or install a cuda-core for it."
            ) from error
        _loaded[device, instance] = launch
    return launch


def _load_by_core(symbol: str, code: bytes, device: int) -> Launch:
    core = importlib.import_module("cuda.core")
    module = core.ObjectCode.from_cubin(code)
    kernel = module.get_kernel(symbol)

    def launch(blocks: int, arguments: tuple[Argument, ...]) -> None:
        handle = torch.cuda.current_stream(device).cuda_stream
        # torch's default stream is the legacy one, whose handle is null.
        stream = core.Stream.from_handle(handle) if handle else core.LEGACY_DEFAULT_STREAM
        core.launch(stream, core.LaunchConfig(grid=blocks, block=BLOCK), kernel, *map(_for_core, arguments))

    return launch


def _for_core(argument: Argument) -> object:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if argument is None:
        return 0  # cuda-core passes Python integers as pointers
    return argument if isinstance(argument, float) else ctypes.c_int(argument)


def _load_by_torch(symbol: str, code: bytes, device: int) -> Launch:
    kernel = importlib.import_module("torch.cuda._utils")._cuda_load_module(code, [symbol])[symbol]
    null = torch.empty(0, device=f"cuda:{device}")  # an empty tensor is a null pointer

    def launch(blocks: int, arguments: tuple[Argument, ...]) -> None:
        given = [null if argument is None else argument for argument in arguments]
        kernel((blocks, 1, 1), (BLOCK, 1, 1), given, 0, torch.cuda.current_stream(device))

    return launch
