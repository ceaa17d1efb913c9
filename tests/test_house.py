"""The plan of the house, read from the source by ``ast``: who may import whom, what is exported, what is never done."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import s_resnet

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, CLI = ROOT / "s_resnet", ROOT / "cli"

# DESIGN, section 2: a room imports only from rooms of a lower level.
LEVELS: dict[str, float] = {
    "errors": 0,
    "version": 0,
    "source_lines": 0,
    "display": 0.7,
    "kernels": 1,
    "data": 1,
    "arguments": 1,
    "intervals": 1,
    "classes": 1.1,
    "event_data": 1.2,
    "open_data": 1.4,
    "device": 1,
    "progress": 1,
    "opcodes": 1,
    "checkpoint_file": 1.5,
    "files": 0.5,
    "provenance": 1,
    "distributed": 1,
    "neuron": 2,
    "ops": 2,
    "heldout": 2,
    "engine": 2.5,  # runs the operations for the Graph
    "features": 2.5,  # what the Graph says of its nodes
    "shapes": 2.5,
    "validate": 2.5,
    "inputs": 2.8,
    "graph": 3,
    "graph_module": 4,
    "qcfs": 4.3,
    "models": 3,
    "checkpoint": 4.6,  # what was trained with QCFS comes back as that
    "trained_layers": 3.5,
    "frontend": 3.8,
    "batchnorm_check": 3.5,
    "trace": 4,
    "artifact": 4,
    "calibrate": 4,
    "batchnorm": 4.2,
    "spill": 1,
    "least_squares": 3,
    "lockstep": 4,
    "kept": 4.2,
    "layerwise": 4.4,
    "resume": 4.4,
    "simulate": 4,
    "closed_form": 4.5,
    "rivals": 4.2,
    "source_check": 4.5,
    "alternatives": 4.8,
    "fan_out": 2.5,
    "wiring": 3.5,
    "layer_operations": 4.2,
    "operations": 5.2,  # folds BatchNorm first
    "energy": 5.3,
    "export": 5.2,  # needs artifact and simulate, and folds BatchNorm first
    "passes": 5,
    "figures": 4.9,
    "measured_on": 4.9,
    "report": 5,
    "losses": 4.5,
    "verify_trained": 4.95,
    "verify": 5,
    "shortcuts": 2.5,
    "network_table": 2.6,
    "recorder": 4.5,
    "page": 5.5,
    "training": 5,
    "recipes": 6,
    "apply_recipe": 6.3,
    "auto": 6.6,
    "request": 6.8,
    "convert": 7,
}
# Files over 400 lines that have a reason to be: none so far.
LONG: dict[str, str] = {}


def sources(*folders):
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    assert len(files) >= len(folders)
    return {str(path.relative_to(ROOT)): path.read_text() for path in files}


OURS = sources(PACKAGE)
PROGRAM = sources(CLI)
MODULES = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in OURS}
EVERYTHING = {**OURS, **PROGRAM, **sources(ROOT / "benchmarks")}


def imported(path, text, modules=MODULES):
    """Every module that a file imports, at its top, in a function or for type checking; relative names resolved."""
    package = path.removesuffix(".py").split("/")[:-1]  # the folder, for a module as for an __init__
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {
                f"{base}.{a.name}" if f"{base}.{a.name}" in modules or not node.module else base for a in node.names
            }
    return names


def room(module):
    """The first part below s_resnet; the empty one is s_resnet itself, which no room may import."""
    return module.split(".")[1] if "." in module else ""


def trespasses(path, text, modules=MODULES):
    """What a file of s_resnet imports although its level forbids it."""
    here = room(path.removesuffix(".py").replace("/", "."))
    own = {name for name in imported(path, text, modules) if name.split(".")[0] == "s_resnet"}
    sharing = ("engine", "kernels", "models", "page", "export", "training", "frontend")
    if path.endswith("/__init__.py") or here in sharing:  # a package gathers its own; these share
        own = {name for name in own if room(name) != here or name == f"s_resnet.{here}"}
    return {name for name in own if LEVELS.get(room(name), 99) >= LEVELS[here]}


# ---- who imports whom ----


def test_every_room_has_a_level():
    rooms = {room(module) for module in MODULES} - {""}
    assert len(rooms) >= 18
    assert rooms <= LEVELS.keys(), "a new room: give it a level in DESIGN, section 2, and here"


@pytest.mark.parametrize("path", [path for path in OURS if path != "s_resnet/__init__.py"])
def test_imports_only_go_down(path):
    assert not trespasses(path, OURS[path])


def test_the_imports_that_are_checked_are_there():
    """Some that everyone knows of: the check above would pass on nothing as well."""
    assert {"s_resnet.errors", "s_resnet.neuron", "s_resnet.ops"} <= imported(
        "s_resnet/graph.py", OURS["s_resnet/graph.py"]
    )
    assert {"s_resnet.neuron", "s_resnet.ops"} <= imported("s_resnet/artifact.py", OURS["s_resnet/artifact.py"])
    assert "s_resnet.graph" in imported("s_resnet/passes/normalize.py", OURS["s_resnet/passes/normalize.py"])
    assert "s_resnet.kernels" in imported("s_resnet/neuron.py", OURS["s_resnet/neuron.py"])


@pytest.mark.parametrize(
    ("path", "line", "found"),
    [
        ("s_resnet/ops.py", "def f():\n    from .graph import Graph", {"s_resnet.graph"}),
        ("s_resnet/ops.py", "if TYPE_CHECKING:\n    from . import graph", {"s_resnet.graph"}),
        ("s_resnet/ops.py", "from s_resnet.neuron import Neuron", {"s_resnet.neuron"}),
        ("s_resnet/ops.py", "import s_resnet.simulate as x", {"s_resnet.simulate"}),
        ("s_resnet/ops.py", "import s_resnet", {"s_resnet"}),
        ("s_resnet/ops.py", "from . import Graph", {"s_resnet.Graph"}),
        ("s_resnet/ops.py", "from .kernels import cpu, per_channel\nimport torch", set()),
        ("s_resnet/kernels/cpu.py", "from .. import errors", set()),
        ("s_resnet/kernels/cpu.py", "from ..ops import Pair", {"s_resnet.ops"}),
        ("s_resnet/kernels/cpu.py", "from .reference import integrate_and_fire", set()),
        ("s_resnet/kernels/__init__.py", "from . import cpu\nfrom .reference import f", set()),
        ("s_resnet/passes/normalize.py", "from ..recipes import RECIPES", {"s_resnet.recipes"}),
        ("s_resnet/passes/normalize.py", "from . import compensate", {"s_resnet.passes.compensate"}),
        ("s_resnet/models/resnet.py", "from ..graph import Graph", {"s_resnet.graph"}),
    ],
)
def test_the_check_of_imports_sees_every_kind(path, line, found):
    assert trespasses(path, line) == found


def mentions(text, module):
    """Whether a file imports a module such as torch.fx or reaches it as an attribute."""
    parent, _, child = module.rpartition(".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)] if parent and node.attr == child else []
        else:
            continue
        if any(name == module or name.startswith(f"{module}.") for name in names):
            return True
    return False


def test_torch_fx_is_imported_nowhere():
    """The frontend looks at what a model calls while it runs."""
    assert not [path for path, text in EVERYTHING.items() if mentions(text, "torch.fx")]
    for line in ("import torch.fx", "from torch import fx", "from torch.fx import Node", "torch.fx.symbolic_trace(m)"):
        assert mentions(line, "torch.fx")


# ---- the command line ----

LATE = {"torch", "torchvision", "numpy", "matplotlib", "sklearn", "safetensors", "tqdm", "s_resnet"}


def at_import(tree):
    """The statements that run when a module is imported: all but the bodies of functions."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


def test_the_command_line_imports_torch_late():
    assert len(PROGRAM) >= 4
    for path, text in PROGRAM.items():
        for node in at_import(ast.parse(text)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not LATE & {name.split(".")[0] for name in names}, f"{path}: {ast.unparse(node)}"


def test_importing_the_command_line_does_not_import_torch():
    pytest.importorskip("sresnet_cli", reason="the package is not installed")
    program = f"import sys, sresnet_cli.__main__; print(sorted({LATE - {'tqdm'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_s_resnet_imports_neither_torchvision_nor_the_compiler():
    """They take longer than torch itself."""
    late = {"torchvision", "torch._dynamo", "torch._inductor"}
    program = f"import sys, s_resnet; print(sorted({late} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_line_uses_only_what_s_resnet_exports():
    used = set()
    for path, text in PROGRAM.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                inside = [alias.name for alias in node.names if alias.name.startswith("s_resnet.")]
                assert not inside and not any(a.name == "s_resnet" and a.asname for a in node.names), path
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "s_resnet":
                assert node.module == "s_resnet", f"{path} reaches into {node.module}"
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "s_resnet":
                used.add(node.attr)
    assert len(used) >= 10
    assert used <= set(s_resnet.__all__)


def test_the_command_line_prints_in_one_place():
    """What comes from a file is cleaned there of what a terminal would obey."""
    printing = {"click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"}
    found = {}
    for path, text in PROGRAM.items():
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
        found[path] = calls & printing
    assert {path for path, calls in found.items() if calls} == {"cli/say.py"} and len(found) >= 9


# ---- what is exported ----


def test_all_is_what_is_imported_and_sorted():
    bound = set()
    for node in ast.parse(OURS["s_resnet/__init__.py"]).body:
        if isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    names = s_resnet.__all__
    assert len(names) >= 30 and len(set(names)) == len(names)
    assert set(names) == bound
    assert all(getattr(s_resnet, name) is not None for name in names)
    # Constants, classes, functions, each by name: ruff's order.
    assert names == sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


@pytest.mark.parametrize("name", s_resnet.__all__)
def test_what_is_exported_says_what_it_is(name):
    thing = getattr(s_resnet, name)
    if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
        text = vars(thing).get("__doc__") or "" if inspect.isclass(thing) else thing.__doc__ or ""
        assert len(text.split()) >= 3
        assert not text.startswith(f"{name}("), "that is what dataclass makes up"
    else:
        assert isinstance(thing, dict | tuple | str) and thing


@pytest.mark.parametrize("path", OURS)
def test_every_module_says_what_it_is_and_imports(path):
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(name)
    assert Path(module.__file__).resolve() == ROOT / path
    assert path == "s_resnet/version.py" or module.__doc__


# ---- what is never done ----


@pytest.mark.parametrize("path", EVERYTHING)
def test_no_file_is_over_400_lines(path):
    assert len(EVERYTHING[path].splitlines()) <= 400 or path in LONG


def unsafe(text):
    """The calls of a file that could run what a file from elsewhere says."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
            found += [f"from torch import {a.name}" for a in node.names if a.name == "load"]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        flags = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        safe = flags.get("weights_only") is True
        if name in ("eval", "exec", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load"):
            safe = name.startswith(("np.", "numpy.")) and flags.get("allow_pickle", False) is False
        elif name not in ("torch.load", "torch.serialization.load"):
            continue
        if not safe:
            found.append(ast.unparse(node))
    return found


def test_nothing_that_is_read_can_run_code():
    assert {path: unsafe(text) for path, text in EVERYTHING.items() if unsafe(text)} == {}
    loads = sum(text.count("torch.load(") for text in OURS.values())
    assert loads >= 1, "checkpoints are no longer read by torch.load: look again at what this test looks for"
    for line in ("torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=w)", "eval(x)"):
        assert unsafe(line)
    assert unsafe("from torch import load") and unsafe("np.load(f, allow_pickle=True)")
    assert not unsafe("torch.load(f, weights_only=True)") and not unsafe("np.load(f)")


def test_pickle_is_imported_nowhere_but_in_the_reader_of_checkpoints():
    """It needs the names of its errors."""
    for module in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
        users = [path for path, text in EVERYTHING.items() if mentions(text, module)]
        assert users in ([], ["s_resnet/checkpoint_file.py"]), module
    assert mentions("def f():\n    import pickle as p", "pickle") and mentions("from pickle import loads", "pickle")
