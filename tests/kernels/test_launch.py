"""What the driver gets: kernels loaded and launched through a driver that writes down what it is asked for."""

import ctypes
import enum
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from cuda_on_cpu import prepare
from membrane_cases import Case, make

from s_resnet.errors import BackendUnavailable
from s_resnet.kernels import Update
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.surrogate import cuda
from s_resnet.kernels.surrogate.reference import Firing

LEGACY = 1  # CU_STREAM_LEGACY of cuda.h
THERE = 0x7F00_0000_1000  # a stream's handle


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209


def signature(file, kernel):
    """The C types that a kernel of a source takes, by name; by place where a parameter has none."""
    text = re.search(rf"\b{kernel}\((.*?)\) \{{", (nvrtc.HERE / file).read_text(), re.DOTALL).group(1)
    kinds = {"void*": ctypes.c_void_p, "int*": ctypes.c_void_p, "double": ctypes.c_double, "int": ctypes.c_int32}
    found = {}
    for place, parameter in enumerate(text.split(",")):
        kind, *name = [word for word in parameter.split() if word not in ("const", "__restrict__")]
        found[name[0] if name else place] = kinds[kind]
    return found


class Driver:
    """``cuda.bindings.driver``, as far as it is used; ``refuses``: the name of a function that does not do it."""

    def __init__(self):
        self.asked, self.launches, self.refuses, self.types = [], [], None, ()
        self.current = threading.local()

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*given):
            self.asked.append(name)
            if name == self.refuses:
                return (Status.CUDA_ERROR_NO_BINARY_FOR_GPU, *[None] * (name != "cuLaunchKernel"))
            return getattr(self, f"_{name}")(*given)

        return call

    def _cuInit(self, flags):
        assert flags == 0
        return (Status.CUDA_SUCCESS,)

    def _cuDeviceGet(self, ordinal):
        return Status.CUDA_SUCCESS, f"device {ordinal}"

    def _cuDevicePrimaryCtxRetain(self, device):
        return Status.CUDA_SUCCESS, f"context of {device}"

    def _cuCtxSetCurrent(self, context):
        self.current.context = context
        return (Status.CUDA_SUCCESS,)

    def _cuLibraryLoadData(self, code, *options):
        assert options == ([], [], 0, [], [], 0)
        return Status.CUDA_SUCCESS, code

    def _cuLibraryGetKernel(self, library, symbol):
        return Status.CUDA_SUCCESS, (library, symbol)

    def _cuKernelGetFunction(self, kernel):
        return Status.CUDA_SUCCESS, (*kernel, self.current.context)

    def _cuLaunchKernel(self, function, *rest):
        *shape, stream, parameters, extra = rest
        if getattr(self.current, "context", None) != function[2]:
            return (Status.CUDA_ERROR_INVALID_CONTEXT,)
        assert extra == 0
        addresses = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.cast(addresses[i], ctypes.POINTER(c)).contents.value for i, c in enumerate(self.types)]
        self.launches.append((function, shape, stream, values))
        return (Status.CUDA_SUCCESS,)


@pytest.fixture
def driver(monkeypatch):
    """Devices of compute capability 9.0 behind that driver, and a compiler that takes a moment."""
    fake = Driver()
    fake.stream, fake.compiled = 0, []

    def compile_instance(instance, arch, file="membrane.cu"):
        time.sleep(0.05)
        fake.compiled.append((instance, arch, file))
        return f"symbol of {instance}", b"cubin"

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setattr(nvrtc, "compiler", lambda: (compile_instance, "NVRTC for a test"))
    monkeypatch.setattr(nvrtc, "binary", compile_instance)
    monkeypatch.setattr(nvrtc, "_loaded", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=fake.stream))
    return fake


def passed(arguments):
    """What C must see: addresses, no address, numbers."""
    return [(a.data_ptr() or None) if isinstance(a, torch.Tensor) else a for a in arguments]


def launched(driver, plan, file, types):
    driver.types = tuple(types.values())
    assert len(plan.arguments) == len(types)
    for (name, kind), argument in zip(types.items(), plan.arguments, strict=True):
        assert type(nvrtc._as_c(argument)) is kind, name
    nvrtc.loaded(plan.instance, 0, file)(plan.blocks, plan.arguments)
    return driver.launches[-1]


# ---- arguments ----


def test_c_types_have_the_sizes_of_the_kernels():
    sizes = [ctypes.sizeof(kind) for kind in signature("membrane.cu", "membrane").values()]
    assert sizes == [8] * 11 + [8] + [4] * 12
    assert list(map(ctypes.sizeof, signature("surrogate.cu", "surrogate_backward").values())) == [8] * 17 + [4] * 6


@pytest.mark.parametrize(
    "case", [Case(), Case(torch.float16, decay=0.5), Case(shortcut="none", bias="none", levels=2, signed=True)], ids=str
)
def test_the_membrane_kernel_gets_its_arguments(case, driver):
    current, v, options = make(case, (2, 8, 3, 5), 4)
    plan = prepare(current, v, Update(**options))[0]
    types = signature("membrane.cu", "membrane")
    function, shape, stream, values = launched(driver, plan, "membrane.cu", types)
    assert values == passed(plan.arguments) and stream == LEGACY
    assert shape == [plan.blocks, 1, 1, nvrtc.BLOCK, 1, 1, 0]
    assert function[:2] == (b"cubin", f"symbol of {plan.instance}".encode())
    named = dict(zip(types, values, strict=True))
    assert (named["current"], named["v_before"]) == (current.data_ptr(), v.data_ptr())
    assert (named["steps"], named["images"], named["decay"], named["neurons"]) == (4, 2, case.decay, 120)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_surrogate_kernels_get_their_arguments(back, scaled, driver):
    x, spikes, out = (torch.ones(4, 2, 16) for _ in range(3))
    affine = (torch.ones(16), torch.zeros(16)) if scaled else None
    firing = Firing((0.5, 1.5), 0.25, initial=0.125)
    plan = cuda.plan(x, spikes if back else None, out, firing, affine)
    types = signature("surrogate.cu", "surrogate_backward" if back else "surrogate_forward")
    *_, values = launched(driver, plan, "surrogate.cu", types)
    assert values == passed(plan.arguments) and driver.compiled[0][2] == "surrogate.cu"
    named = dict(zip(types, values, strict=True))
    assert (named["decay"], named["initial"], named["a"], named["b"], named["h"]) == (0.25, 0.125, 0.5, 1.5, 0.0)
    assert (named["neurons"], named["channels"]) == (32, 16 if scaled else 1)


def test_numbers_keep_their_bits(driver):
    driver.types = (ctypes.c_double, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
    nvrtc.loaded("a", 0)(1, (0.1, -(2**31), None, 2**31 - 1))
    assert driver.launches[0][3] == [0.1, -(2**31), None, 2**31 - 1]


# ---- streams, devices, threads ----


def test_a_launch_is_on_the_current_stream_of_the_moment(driver):
    launch = nvrtc.loaded("a", 0)
    for handle, want in ((0, LEGACY), (THERE, THERE), (0, LEGACY)):
        driver.stream = handle
        launch(1, ())
        assert driver.launches[-1][2] == want


def test_a_device_loads_a_kernel_once_into_its_own_context(driver):
    for device in (0, 1, 0, 1):
        nvrtc.loaded("a", device)(1, ())
    assert driver.asked.count("cuLibraryLoadData") == 2
    contexts = [launch[0][2] for launch in driver.launches]
    assert contexts == ["context of device 0", "context of device 1"] * 2


def test_a_thread_that_is_new_to_cuda_has_a_context(driver):
    launch, failed = nvrtc.loaded("a", 0), []

    def other():
        try:
            launch(1, ())
        except BackendUnavailable as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert not failed and len(driver.launches) == 1


def test_threads_that_come_together_load_once(driver):
    """The second finds what the first has compiled and loaded while it waited."""
    barrier, found = threading.Barrier(4), []

    def one():
        barrier.wait()
        found.append(nvrtc.loaded("a", 0))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert driver.compiled == [("a", "sm_90", "membrane.cu")] and driver.asked.count("cuLibraryLoadData") == 1


# ---- what the driver refuses ----


@pytest.mark.parametrize("function", ["cuInit", "cuDevicePrimaryCtxRetain", "cuLibraryLoadData", "cuKernelGetFunction"])
def test_a_refused_load_says_what_the_driver_said(function, driver, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    driver.refuses = function
    with pytest.raises(BackendUnavailable, match="CUDA_ERROR_NO_BINARY_FOR_GPU") as caught:
        nvrtc.loaded("a", 0)
    assert "NVRTC for a test" in str(caught.value) and "'cuda-bindings[all]==12.*'" in str(caught.value)
    driver.refuses = None
    nvrtc.loaded("a", 0)(1, ())  # a no is not kept


def test_a_refused_launch_says_what_the_driver_said(driver):
    launch = nvrtc.loaded("a", 0)
    driver.refuses = "cuLaunchKernel"
    with pytest.raises(BackendUnavailable, match="CUDA_ERROR_NO_BINARY_FOR_GPU from a launch of 7 blocks"):
        launch(7, ())


def test_a_driver_of_another_kind_is_a_reason_and_no_crash(driver, monkeypatch):
    monkeypatch.setattr(Driver, "_cuLibraryLoadData", lambda self, code: None)  # other arguments
    with pytest.raises(BackendUnavailable, match="got TypeError"):
        nvrtc.loaded("a", 0)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendUnavailable, match="got ModuleNotFoundError"):
        nvrtc.loaded("a", 0)
