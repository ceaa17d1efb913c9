"""The CUDA membrane kernel compiled for GPUs without one: registers, spills, vectors; and the binaries on disk."""

import importlib
import itertools
import re
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from by_nvrtc import compiled, needs_nvrtc

from s_resnet.errors import BackendUnavailable
from s_resnet.kernels.build import cache, nvrtc
from s_resnet.kernels.membrane import cuda

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
REGISTERS = 96  # 5 blocks of 128 threads on one multiprocessor


# ---- compiled ----


def instances():
    """What the simulator runs in either precision and in integers, and what needs most registers."""
    types = [
        ("f32", "f32", "f32", "float", "4"),
        ("f16", "f16", "f16", "float", "8"),
        ("f32", "f16", "f16", "float", "4"),
        ("bf16", "bf16", "bf16", "float", "8"),
        ("i32", "u8", "u8", "int", "4"),
        ("f16", "f32", "f32", "float", "4"),
        ("f16", "i8", "i8", "float", "8"),
        ("f32", "f32", "f32", "float", "1"),
        ("f16", "f16", "i8", "float", "1"),
    ]
    most = ("true", "EACH", "EACH", "EACH")
    settings = [
        ("false", "ONE", "EACH", "EACH"),
        ("false", "ONE", "NONE", "BARE"),
        most,
    ]
    found = []
    for (current, branch, spikes, v, width), (leaky, *kinds) in itertools.product(types, settings):
        leaks = "false" if v == "int" else leaky
        for last in ("true", "false") if (leaky, *kinds) == most else ("true",):
            ahead, reset = str(cuda.AHEAD), "ZERO" if leaks == "true" else "SUBTRACT"
            found.append(cuda._instance(current, branch, spikes, v, width, last, leaks, reset, *kinds, ahead))
    for (current, branch, spikes, v, width), rule in itertools.product(types, ("LEVELS", "SIGNED")):
        ahead = str(cuda.AHEAD // 2 if width == "8" else cuda.AHEAD)
        for last in ("true", "false"):
            leaks = "false" if v == "int" else "true"
            found.append(cuda._instance(current, branch, spikes, v, width, last, leaks, rule, *most[1:], ahead))
    for (current, branch, spikes, v, width), schedule in itertools.product(types, ("LAGGED", "PHASED")):
        for rule, kinds in (("SUBTRACT", ("ROWS", "EACH")), ("SIGNED", ("ROWS", "BARE"))):
            crowded = width == "8" and rule == "SIGNED"
            parts = [current, branch, spikes, v, width, "true", "false", rule, "ONE", *kinds]
            found.append(cuda._instance(*parts, str(cuda.AHEAD // 2 if crowded else cuda.AHEAD), schedule))
    for ahead, schedule in itertools.product((1, cuda.AHEAD // 2), ("LAGGED", "PHASED", "STREAMING")):
        parts = ["f16", "f16", "f16", "float", "8", "true", "false", "SUBTRACT", "EACH", "ROWS", "EACH", str(ahead)]
        found.append(cuda._instance(*parts, *([] if schedule == "STREAMING" else [schedule])))
    return found


INSTANCES = instances()


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_few_registers_and_nothing_spilled(arch):
    assert len(INSTANCES) > 50 and len(set(INSTANCES)) == len(INSTANCES)
    instances = INSTANCES[ARCHITECTURES.index(arch) :: len(ARCHITECTURES)]  # each is compiled for one of them
    _, log = compiled("CUBIN", instances, arch, "--ptxas-options=-v")
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    stacks = [tuple(map(int, found)) for found in re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)]  # fmt: skip
    assert len(registers) == len(stacks) == len(instances), log[:2000]
    assert 16 < max(registers) <= REGISTERS
    assert set(stacks) == {(0, 0, 0)}


@needs_nvrtc
def test_the_check_of_spills_sees_them():
    """Eight floats of shortcut, four steps ahead: that is why the plan takes four."""
    name = cuda._instance("f16", "f32", "f16", "float", "8", "true", "true", "ZERO", "EACH", "EACH", "EACH", "4")
    _, log = compiled("CUBIN", [name], "sm_90", "--ptxas-options=-v")
    assert re.search(r"[1-9]\d* bytes spill stores", log)


def ptx_of(name):
    return compiled("PTX", [name], "compute_90")[0].decode()


@needs_nvrtc
def test_memory_is_moved_16_bytes_at_a_time_and_nothing_is_contracted():
    name = cuda._instance("f16", "f16", "f16", "float", "8", "true", "true", "SUBTRACT", "ONE", "NONE", "EACH", "4")
    ptx = ptx_of(name)
    loads, stores = re.findall(r"ld\.global\S*", ptx), re.findall(r"st\.global\S*", ptx)
    wide = [load for load in loads if ".v4." in load]
    assert len(wide) >= 2 * 4 + 2 + 2 * 4  # currents and shortcut: before the loop and in it; the membrane
    assert all(".v4." in store for store in stores) and len(stores) >= 2 + 4
    assert not re.search(r"fma\S*f32", ptx) and re.search(r"mul\S*f32", ptx)


@needs_nvrtc
@pytest.mark.parametrize("rule", ["LEVELS", "SIGNED"])
def test_the_quotient_is_ieee_division_and_its_product_is_not_contracted(rule):
    ptx = ptx_of(cuda._instance("f16", "i8", "i8", "float", "8", "true", "true", rule, "ONE", "NONE", "EACH", "2"))
    assert len(re.findall(r"div\.rn\.f32", ptx)) >= 8 and not re.search(r"div\.(approx|full)", ptx)
    assert not re.search(r"fma\S*f32", ptx) and re.search(r"sub\S*f32", ptx)


@needs_nvrtc
def test_what_is_run_is_the_source_without_contraction():
    name = cuda._instance("f32", "f32", "f32", "float", "4", "true", "true", "SUBTRACT", "ONE", "NONE", "EACH", "4")
    _, code = nvrtc._compile(name, "sm_90")
    plain, _ = compiled("CUBIN", [name], "sm_90")
    contracted, _ = compiled("CUBIN", [name], "sm_90", flags=[f for f in nvrtc.FLAGS if "fmad" not in f])
    assert instructions(code) == instructions(plain) != instructions(contracted)


@needs_nvrtc
def test_a_log_of_one_byte_is_written_into_no_constant_of_python():
    name = cuda._instance("f32", "f32", "f32", "float", "4", "true", "true", "SUBTRACT", "ONE", "NONE", "EACH", "4")
    _, log = compiled("CUBIN", [name], "sm_90")
    every = bytes(range(256))
    assert log == "\0" and [every[n : n + 1][0] for n in range(256)] == list(range(256))  # one object per byte


def instructions(cubin):
    """The machine code of a cubin, which is an ELF file: some of the rest differs between two runs of the compiler."""
    table, size, count, names = (*struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<HHH", cubin, 58))
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    start = headers[names][4]
    found = [h for h in headers if cubin[start + h[0] :].startswith(b".text.")]
    assert len(found) == 1
    return cubin[found[0][4] : found[0][4] + found[0][5]]


@needs_nvrtc
def test_a_refused_source_or_device_says_what_the_compiler_said():
    with pytest.raises(BackendUnavailable, match=r'NVRTC_ERROR_COMPILATION.* error: .*no member "not_a_kernel"'):
        nvrtc.binary("sresnet::not_a_kernel<float>", "sm_90")
    with pytest.raises(BackendUnavailable, match=r"for sm_12, got .*NVRTC_ERROR_INVALID_OPTION.*invalid value"):
        nvrtc.binary(cuda._instance(*cuda.PROBE), "sm_12")


@needs_nvrtc
def test_headers_are_ours_wherever_the_package_lies(monkeypatch, tmp_path):
    """A folder with spaces, quotes and other letters; other headers of the same names in the current one."""
    name, folder = cuda._instance(*cuda.PROBE), tmp_path / 'it\'s a "folder", é'
    want = nvrtc._compile(name, "sm_90")
    folder.mkdir()
    for file in ("membrane.cu", *nvrtc.HEADERS):
        (folder / file).write_bytes((nvrtc.HERE / file).read_bytes())
        (tmp_path / file).write_text("#error not this one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nvrtc, "HERE", folder)
    symbol, code = nvrtc._compile(name, "sm_90")
    assert symbol == want[0] and instructions(code) == instructions(want[1])


@needs_nvrtc
def test_threads_may_compile_first_at_the_same_time(tmp_path):
    """In a process of its own, where nothing is imported yet."""
    program = (
        f"import os, threading; os.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}\n"
        "from s_resnet.kernels.build import nvrtc\nfrom s_resnet.kernels.membrane import cuda\n"
        "parts, barrier, found = list(cuda.PROBE), threading.Barrier(4), []\n"
        "def one(ahead):\n"
        "    barrier.wait()\n"
        "    found.append(nvrtc.binary(cuda._instance(*parts[:-1], ahead), 'sm_90')[1][:4])\n"
        "threads = [threading.Thread(target=one, args=(ahead,)) for ahead in '1122']\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "assert found == [b'\\x7fELF'] * 4, found"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr


# ---- bindings that are missing, or odd ----


@needs_nvrtc
def test_the_name_says_nvrtc_and_bindings():
    from cuda.bindings import __version__

    assert re.fullmatch(rf"NVRTC 1\d\.\d+ by cuda-bindings {re.escape(__version__)}", nvrtc.compiler()[1])


@pytest.fixture
def bindings(monkeypatch):
    """Bindings without a library behind them: whatever is set is called, all else is not there."""
    fake = SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(__version__="99.0"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", fake)
    monkeypatch.setattr(nvrtc, "compiler", nvrtc.compiler.__wrapped__)
    return fake


@pytest.mark.parametrize(
    ("built_for", "install"),
    [("13.0", "cuda-bindings==13.*"), ("12.8", "cuda-bindings==12.*"), (None, "cuda-bindings")],
)
def test_without_bindings_it_is_said_what_to_install(built_for, install, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    compile_instance, reason = nvrtc.compiler.__wrapped__()
    assert compile_instance is None
    assert reason.startswith("no cuda-bindings: ") and reason.endswith(f"(pip install '{install}')")


def test_bindings_that_find_no_library_say_what_to_install(bindings, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    bindings.nvrtcVersion = lambda: importlib.import_module("no_such_library")
    compile_instance, reason = nvrtc.compiler()
    assert compile_instance is None and "cuda-bindings 99.0" in reason and "no_such_library" in reason
    assert reason.endswith("(pip install 'cuda-bindings[all]==12.*')")
    with pytest.raises(BackendUnavailable, match=r"got no NVRTC for cuda-bindings 99\.0"):
        nvrtc.binary("a", "sm_90")


def test_threads_reach_the_bindings_one_after_another(bindings):
    """The first import of a package, or the first call that loads its library, need not be safe for threads."""
    inside, seen = [], []

    def version():
        inside.append(1)
        seen.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return 0, 13, 0

    bindings.nvrtcVersion = version
    threads = [threading.Thread(target=nvrtc.compiler) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 4


@pytest.mark.parametrize("function", [None, lambda *_: 1 / 0, lambda *_: (SimpleNamespace(), 1), lambda *_: 7])
def test_bindings_of_another_kind_are_a_reason_and_no_crash(bindings, function):
    if function is not None:
        bindings.nvrtcCreateProgram = function
    assert nvrtc.compiler()[1] == "NVRTC 13.0 by cuda-bindings 99.0"
    with pytest.raises(BackendUnavailable, match=r"NVRTC 13\.0 by cuda-bindings 99\.0 refused a for sm_90, got"):
        nvrtc._compile("a", "sm_90")


# ---- the cache on disk ----


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """An empty cache, and a compiler that counts what it is asked for."""
    asked = []

    def compile_instance(instance, arch, file):
        asked.append((instance, arch))
        return "symbol", b"code of " + instance.encode() + b"\nfor " + arch.encode()

    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(nvrtc, "compiler", lambda: (compile_instance, "NVRTC for a test"))
    return asked


def test_a_binary_is_compiled_once_for_each_instance_and_architecture(counted):
    for _ in range(2):
        assert nvrtc.binary("a", "sm_80") == ("symbol", b"code of a\nfor sm_80")
        assert nvrtc.binary("a", "sm_90") == ("symbol", b"code of a\nfor sm_90")
        assert nvrtc.binary("b", "sm_80") == ("symbol", b"code of b\nfor sm_80")
    assert len(counted) == 3


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b.replace(b"code", b"evil")])
def test_a_damaged_binary_is_never_used(counted, tmp_path, damage):
    nvrtc.binary("a", "sm_80")
    (file,) = tmp_path.glob("*.cubin")
    file.write_bytes(damage(file.read_bytes()))
    assert nvrtc.binary("a", "sm_80") == ("symbol", b"code of a\nfor sm_80")
    assert len(counted) == 2 and b"code of a" in file.read_bytes()


def test_two_files_have_two_binaries(counted, tmp_path):
    nvrtc.binary("a", "sm_80")
    nvrtc.binary("a", "sm_80", "surrogate.cu")
    assert len(counted) == 2
    assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*.cubin")) == ["membrane", "surrogate"]


def test_another_compiler_makes_another_binary(counted, monkeypatch):
    nvrtc.binary("a", "sm_80")
    compile_instance, _ = nvrtc.compiler()
    monkeypatch.setattr(nvrtc, "compiler", lambda: (compile_instance, "a newer NVRTC"))
    nvrtc.binary("a", "sm_80")
    monkeypatch.setattr(nvrtc, "FLAGS", ())
    nvrtc.binary("a", "sm_80")
    assert len(counted) == 3


def test_another_source_makes_another_binary(counted, monkeypatch, tmp_path):
    files = ("membrane.cu", *nvrtc.HEADERS)
    for name in files:
        nvrtc.binary("a", "sm_80")
        before = len(counted)
        changed = tmp_path / name.replace(".", "_")
        changed.mkdir()
        for file in files:
            (changed / file).write_text((nvrtc.HERE / file).read_text() + ("// changed" if file == name else ""))
        monkeypatch.setattr(nvrtc, "HERE", changed)
        nvrtc.binary("a", "sm_80")
        assert len(counted) == before + 1


def test_a_disk_that_cannot_be_written_is_no_reason_to_stop(counted, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(nvrtc, "built", full)
    assert nvrtc.binary("a", "sm_80") == ("symbol", b"code of a\nfor sm_80")
