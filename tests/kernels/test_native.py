"""The loader of the C++ kernels: compilers that are not there, fail or lie, and a cache that is shared or damaged.

The compiler here is a script that notes its calls and hands out a small library, built once.
"""

import ctypes
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from test_simulate import network, pictures

from s_resnet.conversion.spill import Spill
from s_resnet.errors import ConversionError
from s_resnet.kernels import describe, fastest
from s_resnet.kernels.build import cache, compiler
from s_resnet.kernels.membrane import layer

ROOT = Path(__file__).resolve().parents[2]
REAL, LOAD = compiler._compiler(), compiler.compiled.__wrapped__
needs_compiler = pytest.mark.skipif(compiler.compiled()[0] is None, reason=compiler.compiled()[1])

VERSION = 'case "$*" in *--version*) echo "script ${SCRIPT_VERSION:-1}"; exit 0;; esac\n'
TARGET = 'for word; do [ "$before" = -o ] && target=$word; before=$word; done\n'
COMPILE = VERSION + TARGET + 'case "$*" in *-shared*) cp "$LIBRARY" "$target";; *) : > "$target";; esac\n'


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A library with one function, ``answer``."""
    place = tmp_path_factory.mktemp("small")
    (place / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    command = [REAL, "-shared", "-fPIC", "-O0", str(place / "small.cpp"), "-o", str(place / "small.so")]
    subprocess.run(command, check=True, timeout=120)
    return place / "small.so"


class Machine:
    """A cache and a compiler of its own."""

    def __init__(self, place, monkeypatch):
        self.place, self.monkeypatch, self.log = place, monkeypatch, place / "log"
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        monkeypatch.setenv("LOG", str(self.log))
        self.forget()

    def compiler(self, body, name="compiler"):
        script = self.place / name
        script.write_text(f'#!/bin/sh\necho "$*" >> "$LOG"\n{body}')
        script.chmod(0o755)
        self.monkeypatch.setenv("CXX", str(script))
        return script

    def forget(self):
        """As a new process would find it."""
        self.monkeypatch.setattr(cache, "folder", functools.cache(cache.folder.__wrapped__))

    def load(self):
        self.forget()
        return LOAD()

    def works(self):
        """Load the small library; gives how often the compiler was asked to compile or link."""
        before = len(self.calls())
        library, how = self.load()
        assert library is not None and library.answer() == 42, how
        return len(self.calls()) - before

    def calls(self):
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line for line in lines if "--version" not in line]

    def files(self):
        return sorted((self.place / "cache" / "s_resnet").iterdir())


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def built(machine, small):
    """A machine whose compiler works, and has."""
    machine.monkeypatch.setenv("LIBRARY", str(small))
    machine.compiler(COMPILE)
    assert machine.works() == len(compiler.SOURCES) + 1
    return machine


# ---- no compiler ----


def test_without_a_compiler_plain_torch_gives_the_same_answers(tmp_path):
    program = (
        "import torch; from test_simulate import network, pictures\n"
        "from s_resnet.kernels import describe, fastest\nfrom s_resnet.kernels.build import compiler\n"
        "print(compiler.compiled()[1]); print(fastest(torch.device('cpu'))); print(describe())\n"
        "torch.save(network()(pictures(3), 9), 'answers')"
    )
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "simulation"), str(ROOT / "tests")))
    environment = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reason, name, words = done.stdout.splitlines()
    assert reason == "no C++ compiler: no-such-compiler not found" and name == "cpu" and reason in words
    assert torch.equal(torch.load(tmp_path / "answers", weights_only=True), network()(pictures(3), 9))
    assert not (tmp_path / "s_resnet").exists()


def test_without_one_in_the_path_the_three_names_are_said(machine, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(machine.place))
    assert machine.load() == (None, "no C++ compiler: c++, g++ and clang++ not found")
    for name in ("clang++", "g++", "c++"):  # each is taken before the last
        machine.compiler("exit 0", name)
        monkeypatch.delenv("CXX")
        assert compiler._compiler() == str(machine.place / name)
    named = machine.compiler("exit 0", "mine")
    assert compiler._compiler() == str(named)


# ---- compilers that fail ----

FAILING = {
    "always": ("exit 1", "--version failed"),
    "no version": ("exit 0", "--version failed"),
    "with a message": (VERSION + "echo 'error: no space left\nmore' >&2; exit 1", "failed: error: no space left"),
    "in silence": (VERSION + "exit 3", "status 3"),
    "with an empty line": (VERSION + "echo >&2; exit 3", "status 3"),
    "in another encoding": (VERSION + "printf 'erreur: \\351chec' >&2; exit 1", "failed: erreur: "),
    "by a signal": (VERSION + "kill -9 $$", "failed: "),
    "without a result": (VERSION + "exit 0", "No such file"),
    "with rubbish": (VERSION + TARGET + 'echo rubbish > "$target"', "failed: "),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_compiler_that_fails_is_a_reason_and_not_an_exception(machine, name):
    body, reason = FAILING[name]
    script = machine.compiler(body)
    library, how = machine.load()
    assert library is None and str(script) in how and reason in how and "\n" not in how
    machine.monkeypatch.setattr(compiler, "compiled", lambda: (library, how))
    assert fastest(torch.device("cpu")) == "cpu" and how in describe()
    left = machine.files() if (machine.place / "cache").exists() else []
    assert all(path.name.startswith("host-") for path in left), "something half done was left behind"


@pytest.mark.parametrize("kind", ["not executable", "a folder", "no interpreter"])
def test_what_is_no_program(machine, kind):
    script = machine.compiler(VERSION)
    if kind == "not executable":
        script.chmod(0o644)
    elif kind == "a folder":
        script.unlink(), script.mkdir()
    else:
        script.write_text("#!/no/such/interpreter\n")
    library, how = machine.load()
    assert library is None and str(script) in how


def test_a_compiler_that_hangs_is_given_up(machine, monkeypatch):
    machine.compiler(VERSION)
    plain, stuck = compiler._run, ["--version", compiler.FLAGS[0]]

    def slow(command):
        if command[1] == stuck[0]:
            raise subprocess.TimeoutExpired(command, 300)
        return plain(command)

    monkeypatch.setattr(compiler, "_run", slow)
    while stuck:
        library, how = machine.load()
        assert library is None and "timed out" in how
        stuck.pop(0)


@needs_compiler
def test_a_compiler_without_openmp_compiles_without(machine, small):
    machine.monkeypatch.setenv("LIBRARY", str(small))
    machine.compiler(VERSION + 'case "$*" in *-fopenmp*) echo "unsupported -fopenmp" >&2; exit 1;; esac\n' + COMPILE)
    works, calls = machine.works(), machine.calls()
    failed = sum("-fopenmp" in call for call in calls)  # at the same time, but for those that have not begun by then
    assert 1 <= failed <= len(compiler.SOURCES) and works == failed + len(compiler.SOURCES) + 1
    assert not any("-fopenmp" in call for call in calls[failed:])


# ---- the cache ----


@needs_compiler
def test_the_library_is_built_once(built):
    sources = [str(compiler.HERE / name) for name in compiler.SOURCES]
    compiled = [next(word for word in call.split() if word in sources) for call in built.calls()[:-1]]
    assert sorted(compiled) == sorted(sources)  # at the same time, so in any order
    assert all("-ffp-contract=off" in call and "-march=native" in call for call in built.calls()[:-1])
    library, note = built.files()
    assert library.suffix == ".so" and note.name == f"{library.name}.sha256"
    assert stat.S_IMODE(library.parent.stat().st_mode) & 0o077 == 0, "others could put their library there"
    assert built.works() == 0 and built.works() == 0
    assert built.files() == [library, note]


# compiler.py without the package, and so without torch: a process in no time.
ALONE = """
import sys, types
for name, folder in (("s_resnet", "."), ("s_resnet.kernels", "kernels"), ("s_resnet.kernels.build", "kernels/build")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [f"{sys.argv[1]}/{folder}"]
from s_resnet.kernels.build import compiler
library, how = compiler.compiled()
print(library.answer() if library else how, compiler.compiled()[1])
"""


def start():
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, str(compiler.HERE.parents[1])], stdout=subprocess.PIPE, text=True
    )


@needs_compiler
def test_another_process_does_not_build_it_again(built):
    before = len(built.calls())
    assert start().communicate(timeout=60)[0].strip() == "42 script 1"
    assert len(built.calls()) == before
    shutil.rmtree(built.place / "cache")
    assert start().communicate(timeout=60)[0].strip() == "42 script 1"
    assert len(built.calls()) == 2 * before


@needs_compiler
def test_several_processes_at_once(machine, small):
    machine.monkeypatch.setenv("LIBRARY", str(small))
    machine.compiler(VERSION + "sleep 0.2\n" + COMPILE)
    processes = [start() for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["42 script 1"] * 4
    assert len(machine.calls()) > len(compiler.SOURCES) + 1, "they did not meet"
    assert len(machine.files()) == 2 and machine.works() == 0


def rewrite(path, data):
    """A new file in its place: the old one may still be mapped."""
    path.unlink()
    path.write_bytes(data)


DAMAGE = {
    "half the library": lambda so, note: rewrite(so, so.read_bytes()[: so.stat().st_size // 2]),
    "an empty library": lambda so, note: rewrite(so, b""),
    "one bit": lambda so, note: rewrite(so, so.read_bytes()[:-1] + bytes([so.read_bytes()[-1] ^ 1])),
    "no library": lambda so, note: so.unlink(),
    "no digest": lambda so, note: note.unlink(),
    "another digest": lambda so, note: note.write_text("0" * 64),
    "an empty digest": lambda so, note: note.write_text(""),
    "a digest of other bytes": lambda so, note: note.write_bytes(b"\xff\xfe"),
}


@needs_compiler
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_built_again(built, name):
    DAMAGE[name](*built.files())
    assert built.works() == len(compiler.SOURCES) + 1
    assert built.works() == 0 and len(built.files()) == 2


@needs_compiler
@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_cache_that_cannot_be_written_is_replaced(built, tmp_path, place, monkeypatch):
    (tmp_path / "blocked").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked" / ("" if place == "a file" else "deeper")))
    assert built.works() == len(compiler.SOURCES) + 1
    (instead,) = (tmp_path / "temporary").iterdir()
    assert len(list(instead.iterdir())) == 2 and stat.S_IMODE(instead.stat().st_mode) == 0o700


needs_users = pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files")
OPEN = {
    "the folder, to all": (".", 0o777),
    "the folder, to its group": (".", 0o770),
    "the folder above": ("..", 0o777),
    "the library": ("*.so", 0o722),
    "the digest": ("*.sha256", 0o666),
}


@needs_users
@needs_compiler
@pytest.mark.parametrize("what", OPEN)
def test_what_others_can_write_is_not_loaded(built, what, tmp_path, monkeypatch):
    """A library that was put there by somebody else would run as this user."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    place = built.place / "cache" / "s_resnet"
    pattern, mode = OPEN[what]
    target = {".": place, "..": place.parent}.get(pattern) or next(place.glob(pattern))
    target.chmod(mode)
    assert built.works() == len(compiler.SOURCES) + 1, "it was taken"
    assert built.works() == 0, "and built anew every time"
    elsewhere = list((tmp_path / "temporary").iterdir())
    assert len(elsewhere) == (target.is_dir()) and all(stat.S_IMODE(f.stat().st_mode) == 0o700 for f in elsewhere)


@needs_users
@needs_compiler
@pytest.mark.parametrize("what", ["the folder", "the library"])
def test_what_is_another_users_is_not_loaded(built, what, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    place = built.place / "cache" / "s_resnet"
    target, real = place if what == "the folder" else next(place.glob("*.so")), os.lstat

    def lstat(path, **options):
        status = real(path, **options)
        if options or Path(path) != target:
            return status
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:10]))

    monkeypatch.setattr(os, "lstat", lstat)
    assert built.works() == len(compiler.SOURCES) + 1


@needs_users
@needs_compiler
def test_a_link_in_place_of_the_library_is_not_followed(built):
    library, _ = built.files()
    library.rename(built.place / "elsewhere.so")
    library.symlink_to(built.place / "elsewhere.so")
    assert built.works() == len(compiler.SOURCES) + 1 and not library.is_symlink()


def test_without_a_home_or_with_a_relative_place_the_temporary_folder_serves(machine, tmp_path, monkeypatch):
    """One of this user's, the same for all runs: else each would compile anew."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    places = []
    for _ in range(2):
        machine.forget()
        places.append(cache.folder())
    assert places[0] == places[1] and places[0].parent == tmp_path / "temporary" and not Path("relative").exists()


@pytest.mark.parametrize("home", ["relative", "."])
def test_a_home_that_is_no_place_is_none(machine, tmp_path, monkeypatch, home):
    """Else the cache would be wherever the program is started."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", home)
    machine.forget()
    assert cache.folder().parent == tmp_path / "temporary" and os.listdir() == ["temporary"]


def nowhere(monkeypatch):
    """Neither a home nor a folder for temporary files, as in a container that is read-only."""
    monkeypatch.setattr(cache, "_places", lambda: iter(()))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nothing"])


@needs_compiler
def test_without_any_place_plain_torch_does_it(machine, monkeypatch):
    nowhere(monkeypatch)
    machine.forget()
    library, why = LOAD()
    assert library is None and "No usable temporary directory" in why


def test_without_any_place_what_needs_one_says_so_in_one_line(monkeypatch):
    nowhere(monkeypatch)
    with pytest.raises(ConversionError, match="more bytes after 0 in a folder for temporary files, got ") as caught:
        Spill().append(torch.ones(1, 2))
    assert "\n" not in str(caught.value) and "Set TMPDIR" in str(caught.value)


LAST = """
import os, sys, tempfile, types
sys.modules["s_resnet"] = package = types.ModuleType("s_resnet")
sys.modules["s_resnet.kernels"] = kernels = types.ModuleType("s_resnet.kernels")
sys.modules["s_resnet.kernels.build"] = build_room = types.ModuleType("s_resnet.kernels.build")
package.__path__, kernels.__path__ = [sys.argv[1]], [os.path.join(sys.argv[1], "kernels")]
build_room.__path__ = [os.path.join(sys.argv[1], "kernels", "build")]
from s_resnet.kernels.build import cache
tempfile.tempdir = sys.argv[2]
cache._places = lambda: iter(())
place = cache.folder()
assert place == cache.folder() and os.path.dirname(place) == sys.argv[2]
open(place / "library", "w").close()
"""


def test_the_folder_of_one_process_goes_with_it(tmp_path):
    """What only serves as the last resort is not left for ever."""
    root = Path(cache.__file__).parents[2]
    subprocess.run([sys.executable, "-c", LAST, str(root), str(tmp_path)], check=True)
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys, types
from pathlib import Path
sys.modules["s_resnet"] = package = types.ModuleType("s_resnet")
sys.modules["s_resnet.kernels"] = kernels = types.ModuleType("s_resnet.kernels")
sys.modules["s_resnet.kernels.build"] = build_room = types.ModuleType("s_resnet.kernels.build")
package.__path__, kernels.__path__ = [sys.argv[1]], [os.path.join(sys.argv[1], "kernels")]
build_room.__path__ = [os.path.join(sys.argv[1], "kernels", "build")]
from s_resnet.kernels.build import cache
def build(path):
    path.write_text("half")
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
cache.folder = lambda: Path(sys.argv[2])
print(cache.built("some.so", sys.argv[3], build).read_text())
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_what_a_killed_compiler_leaves_is_swept_by_the_next(tmp_path):
    root = Path(cache.__file__).parents[2]
    for how, left in (("killed", 1), ("whole", 2)):  # a library and its digest, and nothing of the other
        subprocess.run([sys.executable, "-c", KILLED, str(root), str(tmp_path), how])
        assert len(os.listdir(tmp_path)) == left, os.listdir(tmp_path)
    assert not any(name.endswith(".tmp") for name in os.listdir(tmp_path))


def test_the_cache_is_in_the_home_folder_by_default(machine, monkeypatch):
    monkeypatch.setenv("HOME", str(machine.place / "home"))
    for unset in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", "") if unset == "" else monkeypatch.delenv("XDG_CACHE_HOME")
        machine.forget()
        assert cache.folder() == machine.place / "home" / ".cache" / "s_resnet" and cache.folder().is_dir()


@needs_compiler
@pytest.mark.parametrize("change", ["version", "source", "header", "flags", "processor"])
def test_the_library_belongs_to_its_source_compiler_and_processor(built, change, monkeypatch):
    with monkeypatch.context() as changed:
        if change == "version":
            changed.setenv("SCRIPT_VERSION", "2")
        elif change == "flags":
            changed.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-O1"))
        elif change == "processor":
            changed.setattr(compiler, "_processor", lambda: "another")
        else:
            sources = Path(shutil.copytree(compiler.HERE, built.place / "sources"))
            with (sources / {"source": compiler.SOURCES[0], "header": compiler.HEADERS[0]}[change]).open("a") as file:
                file.write("// changed\n")
            changed.setattr(compiler, "HERE", sources)
        assert built.works() == len(compiler.SOURCES) + 1
        assert built.works() == 0
    assert built.works() == 0, "what was there before was thrown away"
    assert len(built.files()) == 4


def test_every_source_and_header_is_part_of_the_key():
    """A file that is compiled but not named would be changed without effect."""
    assert {path.name for path in compiler.HERE.glob("*.cpp")} == set(compiler.SOURCES)
    assert {path.name for path in compiler.HERE.glob("*.h")} == set(compiler.HEADERS)


# ---- the real one ----


@needs_compiler
def test_the_layer_is_laid_out_as_in_the_header():
    """ctypes and C++ have their own ideas of the structure: a field more on one side would shift all that follows."""
    text = (compiler.HERE / "layer.h").read_text()
    body = text[text.index("struct Layer {") : text.index("};", text.index("struct Layer {"))]
    fields = [line.split("//")[0].strip() for line in body.splitlines()[1:]]
    names = [n.strip(" *;") for line in fields for n in line.replace("const ", "").partition(" ")[2].split(",")]
    assert [name for name, _ in layer.Layer._fields_] == names
    assert ctypes.sizeof(layer.Layer) == 8 * 10 + 4 * 8 + 8 * 11


def test_bfloat16_is_a_feature_of_the_processor(monkeypatch):
    for features, there in (
        ("flags : avx512_bf16 x", True),
        ("Features : asimd bf16", True),
        ("flags : avx512f", False),
    ):
        monkeypatch.setattr(compiler, "_processor", lambda features=features: features)
        assert compiler.has_bf16() is there
