"""Files mutated on purpose, and what reads them: for the short fuzzing of the tests and the long one of fuzz.py.

A *reader* makes its base files once in a folder of its own, mutates one of them with a source of chance (a
``random.Random``, or Hypothesis's), and reads and uses what came out. It ends in ``"accepted"``, or in an SResNetError;
every other end is a fault.
"""

import contextlib
import copy
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import safetensors.torch
import torch
from conftest import images, randomized
from sresnet_cli.__main__ import sresnet
from test_event_data import CIFAR, aedat4, make_gestures, some_events
from test_train import BRIEF, data
from torch import nn
from trained_networks import FAMILIES, trained

import s_resnet
from s_resnet.conversion.resume import resumed
from s_resnet.graph import artifact
from s_resnet.graph.provenance import ReconstructedBlock, Reconstruction, Source
from s_resnet.training import Execution, run, saved

SIZE, T = 8, 3
ON_CPU = Execution(device="cpu", workers=0)
Chance = Any  # random.Random, or what stands for it


class Fault(Exception):
    """What must not be: a file that is accepted and then is not what it has to be."""


@dataclass
class Reader:
    """mutate: base files and chance to the bytes of a new file, and whether they are sealed. use: reads a file."""

    suffix: str
    bases: list[bytes]
    mutate: Callable[[list[bytes], Chance], bytes]
    use: Callable[[Path], None]


# ---- odd values ----

ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        8,
        9,
        64,
        255,
        256,
        65535,
        65536,
        2**31 - 1,
        2**31,
        -(2**31),
        2**63,
        10**30,
    ),
    *(0.0, 0.5, -0.5, 1.0, 2.5, 1e-30, 1e30, 1e300, -1e300, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "zero",
        "subtract",
        "streaming",
        "lagged",
        "phased",
        "spikes",
        "current",
        "rectangle",
        "\x1b]0;owned\x07",
    ),
    *(
        "\ud800",
        "a\nb",
        [],
        [0],
        [1],
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 1],
        [-1, -1],
        [2**31, 1],
        [1, 2, 3],
        [None],
        {},
        {"a": 1},
    ),
    *([[None, None, None]], [[0, 1, 2]], [[None, None, -1]], [[None, None, 0]], [0, 0, 0, 0, 2, 2], [9] * 8, [[[[]]]]),
]
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32),
    *(torch.int64, torch.bool),
]


def odd(chance: Chance, like: Any = None) -> Any:
    """A value that does not belong there, or is near one that does."""
    if isinstance(like, bool) or not isinstance(like, int | float) or chance.random() < 0.6:
        return copy.deepcopy(chance.choice(ODD))
    return chance.choice([like + 1, like - 1, like * 2, -like, like * 1000, like / 2, str(like), [like, like]])


def odd_tensor(value: torch.Tensor, chance: Chance) -> torch.Tensor:
    """A tensor of another shape, another type, or with other numbers."""
    kind = chance.randrange(16)
    if (kind < 6 and not value.is_floating_point()) or value.numel() == 0:
        kind += 6
    flat = value.clone().flatten()
    at = chance.randrange(max(1, flat.numel()))
    if kind < 6 and flat.numel():
        number = chance.choice([float("nan"), float("inf"), -1.0, 0.0, 1e30, -1e30, 1e-30, 1e38, 3e5])
        if kind < 3:
            flat[at] = number
            return flat.view(value.shape)
        return value * number if kind < 5 else torch.full_like(value, number)
    if kind < 8:
        return value.to(chance.choice(DTYPES))
    if kind == 8 and value.ndim:
        axis = chance.randrange(value.ndim)
        return value.narrow(axis, 0, chance.randrange(value.shape[axis] + 1))
    if kind == 9 and value.ndim:
        return torch.cat([value, value], chance.randrange(value.ndim))
    if kind == 10:
        return value.unsqueeze(chance.randrange(value.ndim + 1))
    if kind == 11 and value.ndim > 1:
        return value.transpose(0, 1)
    if kind == 12:
        return flat
    if kind == 13:
        return flat[:1].view(()) if flat.numel() else value
    if kind == 14:
        return torch.full((chance.choice([0, 1, 5, 4000]), *[1] * chance.randrange(5)), 0.5)
    return torch.zeros(chance.choice([(), (0,), (1,), (4,), (8,), (5, 5), (4, 4, 1, 1), (1, 1, 1, 1, 1), (2**22,)]))


class Flipped(bytes):
    """What nobody has sealed again."""


def flipped(content: bytes, chance: Chance) -> Flipped:
    """The bytes with some of them flipped, cut out, doubled, or the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        if not changed:
            break
        at, kind = chance.randrange(len(changed)), chance.randrange(10)
        if kind < 6:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 6:
            changed[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 7:
            del changed[at : at + chance.choice([1, 2, 16, 1000])]
        elif kind == 8:
            changed[at:at] = changed[at : at + chance.choice([1, 4, 64])]
        else:
            del changed[at:]
    return Flipped(changed)


def reheaded(content: bytes, chance: Chance) -> Flipped:
    """A safetensors file whose own header says something else: types, shapes, places in the file, names."""
    length = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + length])
    name = chance.choice([name for name in said if name != "__metadata__"])
    kind, entry = chance.randrange(8), said[name]
    begin, end = entry["data_offsets"]
    if kind == 0:
        entry["dtype"] = chance.choice(["F64", "F16", "I8", "BOOL", "U64", "F8_E4M3", "C64", "X", 1, None])
    elif kind == 1:
        entry["shape"] = chance.choice([[], [0], [1], [2**40], [2**62, 4], [-1], ["x"], None, [*entry["shape"], 1]])
    elif kind == 2:
        entry["data_offsets"] = chance.choice([[end, begin], [0, 2**60], [begin, end + 4], [-4, end], [0], [], "x"])
    elif kind == 3:
        said[f"{name}x"] = entry  # two of one place
    elif kind == 4:
        del said[name]  # a gap
    elif kind == 5:
        said["__metadata__"] = odd(chance)
    elif kind == 6:
        entry.pop(chance.choice(sorted(entry)))
    text = json.dumps(said).encode()
    length = chance.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(text) + 1]) if kind == 7 else len(text)
    return Flipped(length.to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :])


# ---- .snn ----


def unsealed(content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors of a .snn file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["s_resnet"]), safetensors.torch.load(content)


def sealed(header: Any, tensors: dict[str, torch.Tensor]) -> bytes:
    """A .snn file of these, with a digest that fits."""
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    if isinstance(header, dict):
        header = json.loads(json.dumps({name: value for name, value in header.items() if name != "digest"}))
        header["digest"] = artifact._digest(header, tensors)
    return safetensors.torch.save(tensors, {"s_resnet": json.dumps(header)})


def mutate_snn(bases: list[bytes], chance: Chance) -> bytes:
    """One to three changes to nodes, settings, tensors, provenance or header, sealed again; seldom to the bytes."""
    content = chance.choice(bases)
    if (luck := chance.random()) < 0.05:
        return flipped(content, chance) if luck < 0.03 else reheaded(content, chance)
    header, tensors = unsealed(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        kinds = [_setting, _setting, _setting, _tensor, _tensor, _tensor, _node, _provenance, _header]
        chance.choice([*kinds, _extreme, _extreme, _extreme])(header, tensors, chance)
    return sealed(header, tensors)


# Values that a setting may have; most networks with them are accepted.
ALLOWED: dict[str, list[Any]] = {
    "stride": [[1, 1], [2, 2], [1, 2], [7, 7]],
    "padding": [[0, 0], [1, 1], [2, 1], [3, 3]],
    "dilation": [[1, 1], [2, 2], [2, 1]],
    "kernel": [[1, 1], [2, 2], [3, 3], [3, 2]],
    "groups": [1, 2, 4, 8],
    "gain": [0.0, -1.0, 1e-30, 1e10, 1.8e19, -1.8e19],
    "initial_potential": [0.0, -65536, 65536, 0.5, 1e-30],
    "reset": ["subtract", "zero"],
    "decay": [0.0, 0.5, 1.0, 1e-30],
    "schedule": ["streaming", "lagged", "phased"],
    "kind": [
        *("Binary", "Signed", "Amplitudes", "Differential", "MultiThreshold", "Surrogate"),
        *("SpikingWeights", "IntegerWeights", "IntegerNeuron"),
    ],
    "spiking": [None, {"kind": "SpikingWeights"}, {"kind": "SpikingWeights", "gain": 1.5}],
    "integer": [None, {"kind": "IntegerWeights"}, {"kind": "IntegerNeuron"}],
    "step": [0.0, 1e-30, 1e19, -1.0],
    "spikes": [
        {"kind": "Binary"},
        {"kind": "Signed"},
        {"kind": "Amplitudes", "count": 3, "signed": True},
        {"kind": "Differential", "count": 2},
    ],
    "count": [1, 2, 3, 8],
    "signed": [True, False],
    "levels": [1, 2, 3, 8],  # as formats up to 5 have it
    "differential": [True, False],
    "amplitude": [None, 1.0, 0.0, -1.0, 1e-30, 1e19],
    "quantization_levels": [0, 1, 4, 65536],
    "surrogate": [None, {"kind": "Surrogate", "shape": "arctan"}, "arctan"],
    "shape": ["rectangle", "triangle", "sigmoid", "arctan"],
    "width": [1e-19, 1.0, 1e19],
    "detach_reset": [True, False],
    "mode": ["current", "spikes"],
    "ceil_mode": [True, False],
    "count_include_pad": [True, False],
    "eps": [0.0, 1e-30, 1.0],
    "grid": [0, 1, 8, 255, 4096],
    "integer_step": [0.0, 1e-30, 1e19, -1.0],
    "output_size": [[1, 1], [2, 2], [5, 3]],
}


def _extreme(header: dict[str, Any], tensors: dict[str, torch.Tensor], chance: Chance) -> None:
    """A value that may be: another setting of its kind, or numbers that are very large, very small or negative."""
    parts = [part for node in header["nodes"] for _, part in _parts(node)]
    known = [(part, name) for part in parts for name in sorted(part) if name in ALLOWED]
    if known and (not tensors or chance.random() < 0.5):
        settings, name = chance.choice(known)
        settings[name] = copy.deepcopy(chance.choice(ALLOWED[name]))
        return
    floats = [name for name in sorted(tensors) if tensors[name].is_floating_point() and tensors[name].numel()]
    if not floats:
        return
    name = chance.choice(floats)
    factor = chance.choice([0.0, -1.0, 2.0**-40, 2.0**-63, 2.0**20, 2.0**40, 2.0**60, 2.0**63])
    value = tensors[name].double() * factor
    if chance.random() < 0.5:  # of one number alone, where there are several
        value = torch.where(torch.arange(value.numel()).view(value.shape) == chance.randrange(value.numel()), value,
                            tensors[name].double())  # fmt: skip
    tensors[name] = value.to(tensors[name].dtype)


def _parts(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of a node and of the parts inside it, with how the names of their tensors begin."""
    if isinstance(node, dict) and isinstance(node.get("settings"), dict):
        todo = [(f"{node.get('name')}/", node["settings"])]
        while todo:
            where, settings = todo.pop()
            yield where, settings
            todo += [(f"{where}{name}.", value) for name, value in settings.items() if isinstance(value, dict)]


def _setting(header: dict[str, Any], tensors: dict[str, torch.Tensor], chance: Chance) -> None:
    parts = list(_parts(chance.choice(header["nodes"] or [None])))
    if not parts:
        return
    where, settings = chance.choice(parts)
    name = chance.choice([*sorted(settings), "speed"])
    kind = chance.randrange(10)
    if kind == 0:
        settings.pop(name, None)
    elif kind == 1 and tensors:
        settings.pop(name, None)
        tensors[f"{where}{name}"] = odd_tensor(tensors[chance.choice(sorted(tensors))], chance)
    else:
        settings[name] = odd(chance, settings.get(name))


def _tensor(header: dict[str, Any], tensors: dict[str, torch.Tensor], chance: Chance) -> None:
    if not tensors:
        return
    name, kind = chance.choice(sorted(tensors)), chance.randrange(12)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = tensors[chance.choice(sorted(tensors))]
    elif kind == 2:
        tensors[f"{name}x"] = tensors[name]
    else:
        tensors[name] = odd_tensor(tensors[name], chance)


def _node(header: dict[str, Any], tensors: dict[str, torch.Tensor], chance: Chance) -> None:
    nodes = header["nodes"]
    if not nodes:
        return
    at = chance.randrange(len(nodes))
    node, kind = nodes[at], chance.randrange(9)
    if kind == 0:
        node["op"] = chance.choice([*artifact._OPS, "LSTM", 1, None])
    elif kind == 1:
        node["inputs"] = [chance.choice(nodes)["name"] for _ in range(chance.randrange(4))]
    elif kind == 2:
        node["name"] = chance.choice([*ODD, chance.choice(nodes)["name"]])
    elif kind == 3:
        del nodes[at]
    elif kind == 4:
        nodes.insert(chance.randrange(len(nodes)), copy.deepcopy(node))
    elif kind == 5:
        other = chance.randrange(len(nodes))
        nodes[at], nodes[other] = nodes[other], nodes[at]
    elif kind == 6:
        node[chance.choice(sorted(node))] = odd(chance)
    elif kind == 7:
        node["inputs"] = [*node["inputs"], *node["inputs"]] if isinstance(node["inputs"], list) else []
    else:
        node.pop(chance.choice(sorted(node)))


def _provenance(header: dict[str, Any], tensors: dict[str, torch.Tensor], chance: Chance) -> None:
    known = header["provenance"]
    if not isinstance(known, dict):
        return
    names = ("recipe", "source", "data", "calibration", "preprocessing", "classes", "input_shape", "reconstruction")
    name = chance.choice(names)
    if isinstance(known.get(name), dict) and known[name] and chance.random() < 0.7:
        part = chance.choice(sorted(known[name]))
        known[name][part] = odd(chance, known[name][part])
    else:
        known[name] = odd(chance)


def _header(header: dict[str, Any], tensors: dict[str, torch.Tensor], chance: Chance) -> None:
    name = chance.choice(["format", "nodes", "provenance", "more"])
    if chance.random() < 0.3:
        header[name] = odd(chance) if name != "nodes" else []
    if not isinstance(header.get("nodes"), list) or not all(isinstance(node, dict) for node in header["nodes"]):
        header["nodes"] = []


def use_snn(path: Path) -> None:
    """Load it, look at it, simulate it twice and go on, run its ANN, and one use more: finite, and the same again."""
    graph = s_resnet.load(path)
    _program("inspect", str(path))
    first = next((node.op for node in graph.nodes[1:] if graph.nodes[0].name in node.inputs), None)
    channels = first.weight.shape[1] * first.groups if isinstance(first, s_resnet.graph.ops.Conv2d) else 3
    x = images(2, SIZE, channels).to(
        next((v.dtype for v in vars(first).values() if isinstance(v, torch.Tensor)), torch.float32)
    )
    if graph.neurons:
        one, two = (s_resnet.simulate(graph, x, T) for _ in range(2))
        if not torch.equal(one.outputs, two.outputs):
            raise Fault("not repeatable")
        answers = [one.outputs, *one.spikes.values()]
        if not graph.windowed:
            answers.append(s_resnet.simulate(graph.at(T), x, T, state=one.state).outputs)
        if not all(bool(answer.isfinite().all()) for answer in answers):
            raise Fault("not finite")
    if (not graph.trained or graph.trained_for <= 100) and not bool(graph.run(x).isfinite().all()):
        raise Fault("not finite, analog")
    if graph.neurons:
        _used(graph, x, path)


def _used(graph: s_resnet.Graph, x: torch.Tensor, path: Path) -> None:
    """One use more, another for every content; SResNetError where the network is not for that."""
    labels = torch.zeros(len(x), dtype=torch.int64)
    kind = zlib.crc32(path.read_bytes()) % 8
    found: Any = 0.0
    if kind == 0:
        found = s_resnet.simulate(graph, x, T, s_resnet.simulation.SimulationSettings(precision="fast")).outputs
    elif kind == 1:
        found = s_resnet.simulate(graph, x, T, s_resnet.simulation.SimulationSettings(coding="poisson")).outputs
    elif kind == 2:
        names = [node.name for node in graph.nodes[1:]]
        found = torch.cat([v.flatten() for v in s_resnet.simulation.features(graph, x, T, names).values()])
    elif kind == 3:
        found = s_resnet.simulation.simulate_with_early_exit(graph, x, T, 0.5).outputs
    elif kind == 4:
        s_resnet.evaluate(graph, [(x, labels)], timesteps=T).to_dict()
        _program("evaluate", str(path), "--timesteps", str(T), "--limit", "4", "--data", str(path.with_name("x.npz")))
    elif kind == 5:
        s_resnet.verify(graph, [(x, labels)], T).to_dict()
        _program("verify", str(path), "--limit", "2", "--data", str(path.with_name("x.npz")))
    elif kind == 6:
        s_resnet.analysis.count_operations(graph, [x], T)
        _program("export", str(path), "--format", "npz", "-o", str(path.with_name("exported.npz")))
    else:
        s_resnet.export.export_nir(graph, path.with_name("exported.nir"), input_shape=tuple(x.shape[1:]))
    if not bool(torch.as_tensor(found).isfinite().all()):
        raise Fault(f"not finite, use {kind}")


def _program(*words: str) -> None:
    """Run the program: it ends in its own way, and says nothing that a terminal would obey."""
    told = click.testing.CliRunner().invoke(sresnet, words)
    if told.exception is not None and not isinstance(told.exception, SystemExit | s_resnet.SResNetError):
        raise told.exception
    if any(not (c.isprintable() or c in "\n\t") for c in told.output):
        raise Fault("an escape reaches the terminal")


def networks() -> dict[str, s_resnet.Graph]:
    """Converted networks of every recipe and kind of weight, with a max-pool too, and directly trained ones."""
    model = randomized(s_resnet.models.CifarResNet(8, 5, 4))
    projected = randomized(s_resnet.models.CifarResNet(8, 5, 4, shortcut="B"))
    batches = [images(8, SIZE, seed=seed) for seed in range(3)]
    found = {name: s_resnet.convert(model, batches, name, timesteps=T) for name in s_resnet.RECIPES}
    found["several"] = s_resnet.convert(model, batches, timesteps=(T, 2))
    found["projected"] = s_resnet.convert(projected, batches, timesteps=T)
    found["pooled"] = s_resnet.convert(Pooled(), batches, "s-resnet-released", timesteps=T)
    for weights, recipe in (
        ("int8", "s-resnet"),
        ("int8", "phased"),
        ("dyadic", "calibrated-lagged"),
        ("dyadic", "signed"),
    ):
        found[f"{recipe}, {weights}"] = s_resnet.convert(
            model, batches, s_resnet.RECIPES[recipe].at(T).with_weights(weights)
        )
    said = {"preprocessing": s_resnet.data.preprocessing_for(SIZE), "classes": tuple("abcde")}
    source = Source("x.pth", "cifar_resnet8", 5, "0" * 64)
    found = {name: graph.with_provenance(**said, source=source) for name, graph in found.items()}
    return found | {name: trained(name, T, size=SIZE)[1] for name in FAMILIES}


class Pooled(nn.Module):
    """A stem with a max-pool, a strided convolution, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.conv2 = nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1, bias=False)
        self.average, self.fc = nn.AvgPool2d(2), nn.Linear(8, 5)
        randomized(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.average(torch.relu(self.conv2(x))).flatten(1))


def snn(folder: Path, kept: dict[str, s_resnet.Graph] | None = None) -> Reader:
    """The reader of .snn files."""
    bases = []
    np.savez(folder / "x.npz", x=data(classes=5).pixels, y=np.array(data(classes=5).labels))
    for graph in (kept or networks()).values():
        s_resnet.save(graph, folder / "base.snn")
        bases.append((folder / "base.snn").read_bytes())
    earlier = sorted((Path(__file__).parent / "graph" / "formats").glob("*.snn"))
    assert earlier
    bases += [path.read_bytes() for path in earlier]
    return Reader(".snn", bases, mutate_snn, use_snn)


# ---- checkpoints ----


def rezipped(content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """The zip with its members changed and its checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return out.getvalue()


def mutate_checkpoint(bases: list[bytes], chance: Chance) -> bytes:
    """Flipped bytes; or sealed: flipped opcodes, flipped numbers, or other objects in what was saved."""
    content, kind = chance.choice(bases), chance.randrange(10)
    if kind < 3 or not content.startswith(b"PK"):
        return flipped(content, chance)
    if kind < 6:  # opcodes and their arguments, the checksum right
        return rezipped(content, lambda name, part: flipped(part, chance) if name.endswith("data.pkl") else part)
    state = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(chance.choice([1, 1, 2])):
        _object(state, chance)
    if isinstance(state, dict) and "digest" in state and chance.random() < 0.9:
        with contextlib.suppress(ValueError, RuntimeError):
            state["digest"] = saved.digest({name: value for name, value in state.items() if name != "digest"})
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def _object(state: Any, chance: Chance, depth: int = 0) -> None:
    """Change something somewhere in what was saved."""
    keys = list(state) if isinstance(state, dict) else list(range(len(state)))
    if not keys:
        return
    key = chance.choice(keys)
    value, kind = state[key], chance.randrange(8)
    if isinstance(value, dict | list) and depth < 4 and kind < 7:
        _object(value, chance, depth + 1)
    elif kind == 0 and isinstance(state, dict):
        del state[key]
    elif kind == 1 and isinstance(state, dict):
        state[chance.choice(["x", "layer1.0.x", 3, "\x1b[2J"])] = value
    elif isinstance(value, torch.Tensor) and kind < 7:
        state[key] = (
            odd_tensor(value, chance) if kind < 6 else torch.zeros(1).expand(chance.choice([10**4, 10**7, 10**10]))
        )
    else:
        state[key] = chance.choice([odd(chance, value), nested(chance.choice([3, 50, 200]))])


def nested(depth: int) -> Any:
    """Dicts in each other."""
    found: Any = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def use_checkpoint(path: Path) -> None:
    """Load it: finite weights, or refused."""
    found = s_resnet.load_checkpoint(path)
    for name, value in found.model.state_dict().items():
        if not bool(value.isfinite().all()) or (name.endswith("running_var") and bool((value < 0).any())):
            raise Fault("not finite")


def checkpoint(folder: Path) -> Reader:
    """The reader of checkpoints: as torch.save writes them, nested, in the old format; and those of ``train``."""
    model = randomized(s_resnet.models.CifarResNet(8, 5, 4))
    bases = []
    for content, old in (
        (model.state_dict(), False),
        (model.state_dict(), True),
        ({"model": model.state_dict(), "epoch": 3}, False),
    ):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=not old)
        bases.append(out.getvalue())
    for arch in ("cifar_resnet8", "ms_resnet8"):
        s_resnet.train(arch, data(), folder / f"{arch}.pt", BRIEF, execution=ON_CPU)
        bases.append((folder / f"{arch}.pt").read_bytes())
    return Reader(".pth", bases, mutate_checkpoint, use_checkpoint)


def safetensor(folder: Path) -> Reader:
    """The reader of checkpoints in safetensors."""
    model = randomized(s_resnet.models.CifarResNet(8, 5, 4))

    def mutate(bases: list[bytes], chance: Chance) -> bytes:
        if (luck := chance.random()) < 0.4:
            return flipped(bases[0], chance) if luck < 0.2 else reheaded(bases[0], chance)
        tensors = safetensors.torch.load(bases[0])
        _tensor({}, tensors, chance)
        return safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})

    return Reader(".safetensors", [safetensors.torch.save(model.state_dict())], mutate, use_checkpoint)


PLACES = [
    *("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "nowhere.safetensors", "C:\\x.safetensors"),
    *("\x1b[2J.safetensors", "model-00001-of-00002.safetensors", "x" * 5000 + ".bin", "link.safetensors", "pipe.bin"),
]


def index(folder: Path) -> Reader:
    """The reader of weights in two files, whose index is mutated."""
    state = randomized(s_resnet.models.CifarResNet(8, 5, 4)).state_dict()
    names, places = list(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.torch.save_file({name: state[name].clone() for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "link.safetensors").symlink_to("/proc/self/mem")
    os.mkfifo(folder / "pipe.bin")
    total = sum(tensor.nbytes for tensor in state.values())
    base = json.dumps({"metadata": {"total_size": total}, "weight_map": places}).encode()

    def mutate(bases: list[bytes], chance: Chance) -> bytes:
        if chance.random() < 0.4:
            return flipped(bases[0], chance)
        said = json.loads(bases[0])
        for _ in range(chance.choice([1, 1, 2])):
            if chance.random() < 0.6 and isinstance(said.get("weight_map"), dict):
                said["weight_map"][chance.choice([*names, "x"])] = chance.choice(PLACES)
            else:
                _object(said, chance)
        return json.dumps(said).encode()

    return Reader(".safetensors.index.json", [base], mutate, use_checkpoint)


# ---- exported programs ----


def mutate_program(bases: list[bytes], chance: Chance) -> bytes:
    """Flipped bytes; or sealed: other things in the JSON of the program or of its weights, or flipped numbers."""
    content, kind = chance.choice(bases), chance.randrange(12)
    if kind < 2:
        return flipped(content, chance)
    part = chance.choice(["models/model.json"] * 6 + ["model_weights_config.json"] * 2 + ["weight_3", "version"])

    def change(name: str, said: bytes) -> bytes:
        if not name.endswith(part):
            return said
        if not name.endswith(".json") or kind == 2:
            return flipped(said, chance)
        tree = json.loads(said)
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            _program_part(tree, chance)
        return json.dumps(tree).encode()

    return rezipped(content, change)


def _program_part(tree: Any, chance: Chance) -> None:
    """Change the nodes of a program, or whatever is somewhere in the JSON."""
    if not isinstance(tree, dict) or chance.random() < 0.3:
        _anything(tree, chance)
        return
    with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):
        graph = tree["graph_module"]["graph"] if "graph_module" in tree else None
        parts = graph["nodes"] if graph else list(tree["config"].values())
        one, other, kind = chance.choice(parts), chance.choice(parts), chance.randrange(8)
        if kind == 0:
            one["target"] = other["target"]
        elif kind == 1:
            one["inputs"] = copy.deepcopy(other["inputs"])
        elif kind == 2:
            parts.remove(one)
        elif kind == 3:
            parts.insert(chance.randrange(len(parts)), copy.deepcopy(other))
        elif kind == 4:
            one["outputs"] = copy.deepcopy(other["outputs"])
        else:
            _anything(one, chance)


def _anything(tree: Any, chance: Chance) -> None:
    """Change one thing somewhere in a tree of JSON."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = chance.choice(keys)
        if not isinstance(tree[key], dict | list) or chance.random() < 0.08:
            break
        tree = tree[key]
    if chance.random() < 0.15:
        del tree[key]
    else:
        tree[key] = odd(chance, tree[key])


def use_program(path: Path) -> None:
    """Load it and trace it: finite answers, the same as a Graph, or refused."""
    found = s_resnet.load_checkpoint(path)
    if not 0 < found.channels * found.input_size**2 <= 2**16:
        return
    x = images(2, found.input_size, found.channels)
    graph = s_resnet.trace(found.model, x)
    if not bool(graph.run(x).isfinite().all()):
        raise Fault("not finite")


def exported(folder: Path) -> Reader:
    """The reader of torch.export programs: as they are exported, in few operators, and for any number of images."""
    model, x, bases = Pooled(), images(2, SIZE), []
    free = ({0: torch.export.Dim.AUTO},)
    for shapes, few in ((None, False), (None, True), (free, False)):
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        out = io.BytesIO()
        torch.export.save(program.run_decompositions() if few else program, out)
        bases.append(out.getvalue())
    return Reader(".pt2", bases, mutate_program, use_program)


# ---- training files, and those of an interrupted reconstruction ----


def training(folder: Path) -> Reader:
    """The checkpoint that a run goes on from: the run's own weights, or refused."""
    paths = {}
    for arch, settings in (("cifar_resnet8", BRIEF), ("ms_resnet8", BRIEF)):
        s_resnet.train(arch, data(), folder / f"{arch}.pt", settings, execution=ON_CPU)
        paths[arch] = folder / f"{arch}.pt"
    bases = [path.read_bytes() for path in paths.values()]
    whole = [torch.load(io.BytesIO(content), weights_only=True) for content in bases]

    def use(path: Path) -> None:
        sealed_again = path.stem.endswith("sealed")
        said = "ms_resnet8" if b"ms_resnet8" in path.read_bytes()[:4000] else "cifar_resnet8"
        with run.ExitStack() as stack:
            now = run.prepare(run.Task(said, data(), path, BRIEF), ON_CPU, torch.device("cpu"), stack)
            history = run.resume(now)
            expected = whole[list(paths).index(said)]["state_dict"]
            same = all(torch.equal(value, expected[name]) for name, value in now.model.state_dict().items())
            if history and not same and not sealed_again:
                raise Fault("goes on with other weights")
            if not all(bool(value.isfinite().all()) for value in now.model.state_dict().values()):
                raise Fault("not finite")
            now.optimizer.zero_grad()
            nn.functional.cross_entropy(now.model.train()(images(4, SIZE)), torch.tensor([0, 1, 2, 0])).backward()
            now.optimizer.step()

    return Reader(".pt", bases, mutate_checkpoint, use)


def partial(folder: Path) -> Reader:
    """What an interrupted reconstruction goes on from."""
    graph = s_resnet.convert(Pooled(), [images(8, SIZE)], "phased", timesteps=T)
    blocks = [part[-1].name for part in s_resnet.simulation.lockstep.blocks(graph)][:1]
    done = Reconstruction(tuple(ReconstructedBlock(name, 3, True) for name in blocks), key="k")
    s_resnet.save(graph.with_provenance(reconstruction=done), folder / "base.snn")

    def use(path: Path) -> None:
        kept, _ = resumed(graph, path, "k")
        if not bool(kept(images(2, SIZE), T).isfinite().all()):
            raise Fault("not finite")

    return Reader(".partial", [(folder / "base.snn").read_bytes()], mutate_snn, use)


# ---- data ----


def npz(folder: Path) -> Reader:
    """The reader of arrays: images of 8 bits, and signals."""
    bases = []
    signals = np.linspace(-1, 1, len(data()) * 24).reshape(-1, 3, 8).astype(np.float32)
    for write, x in ((np.savez, data().pixels), (np.savez_compressed, data().pixels), (np.savez, signals)):
        out = io.BytesIO()
        write(out, x=x, y=np.array(data().labels))
        bases.append(out.getvalue())

    def mutate(bases: list[bytes], chance: Chance) -> bytes:
        content, kind = chance.choice(bases), chance.randrange(6)
        if kind < 2:
            return flipped(content, chance)
        if kind < 4:
            return rezipped(content, lambda name, part: flipped(part[:130], chance) + part[130:])
        arrays: dict[str, Any] = {"x": data().pixels, "y": np.array(data().labels)}
        name = chance.choice(["x", "y", "z"])
        made = chance.choice(
            [
                lambda: np.zeros(
                    chance.choice([(0,), (5,), (20, 0, 8, 3), (20, 1, 3000, 3), (20, 8, 8, 1), (2, 3)]), "u1"
                ),
                lambda: np.array(
                    chance.choice([["a"], [None], [1.5] * 20, [-1] * 20, [2**62] * 20]),
                    dtype=chance.choice([None, object]),
                ),
                lambda: np.zeros((chance.choice([20, 4000]), 64, 64, 3), "u1"),
                lambda: np.zeros(20, chance.choice(["i1", "u8", "?", "f2", "M8[s]", "c8", "S4"])),
                lambda: np.full(
                    chance.choice([(20, 3, 8), (20, 8), (20, 3, 8, 8), (20, 0, 8)]),
                    chance.choice([0, 1e39, np.nan, np.inf]),
                    chance.choice(["f2", ">f4", "f8", "g", "c8"]),
                ),
            ]
        )
        arrays[name] = made()
        out = io.BytesIO()
        chance.choice([np.savez, np.savez_compressed])(out, **arrays)
        return out.getvalue()

    def use(path: Path) -> None:
        found = s_resnet.data.open_data(str(path), "evaluation")
        usual = s_resnet.data.preprocessing_for(SIZE)
        prepared = found.preprocessing if isinstance(found, s_resnet.data.ArrayData) else usual
        loader = s_resnet.data.loader_for(found, s_resnet.data.choose(found, 4), prepared, 2, workers=0)
        if not all(bool(batch.isfinite().all()) for batch, _ in loader):
            raise Fault("not finite")

    return Reader(".npz", bases, mutate, use)


def events(folder: Path) -> Reader:
    """The readers of event recordings: arrays and AEDAT 4 as tonic reads them."""
    make_gestures(folder / "gestures")
    shared = folder / "shared"
    shared.write_bytes(aedat4(some_events(0)))
    for name in CIFAR:
        place = folder / "cifar" / "CIFAR10DVS" / name
        place.mkdir(parents=True)
        for number in range(1000):
            (place / f"cifar10_{name}_{number}.aedat4").hardlink_to(shared)
    opened = {
        ".npy": s_resnet.data.open_data(f"dvsgesture:{folder / 'gestures'}", "evaluation"),
        ".aedat4": s_resnet.data.open_data(f"cifar10dvs:{folder / 'cifar'}", "evaluation"),
    }
    stored = {suffix: Path(found.root, found.names[0]) for suffix, found in opened.items()}
    bases = [place.read_bytes() for place in stored.values()]

    def use(path: Path) -> None:
        content = path.read_bytes()
        kind = ".npy" if content[:1] == b"\x93" or b"NUMPY" in content[:8] else ".aedat4"
        stored[kind].unlink()
        stored[kind].write_bytes(content)
        found = opened[kind].events(0)
        if not bool(s_resnet.data.Binning(4, 1000, (8, 8))(found).isfinite().all()):
            raise Fault("not finite")

    def mutate(bases: list[bytes], chance: Chance) -> bytes:
        if chance.random() < 0.8:
            return flipped(chance.choice(bases), chance)
        rows = chance.choice([0, 1, 5, 10**6])
        array = np.full(
            (rows, chance.choice([0, 1, 4, 4, 4, 5])), chance.choice([0, 1, -1, 127, 128, 1e18, np.nan, np.inf])
        )
        array = array.astype(chance.choice(["f8", "f8", "f4", "i8", "u1", "?", "c8", "S4", "M8[s]", "O"]))
        array = chance.choice([array, array, array[..., None], array.reshape(-1), array.T])
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        return out.getvalue()

    return Reader(".events", bases, mutate, use)


def toml(folder: Path) -> Reader:
    """The reader of energy tables."""
    base = s_resnet.analysis.Constants().to_toml()

    def mutate(bases: list[bytes], chance: Chance) -> bytes:
        if chance.random() < 0.5:
            return flipped(bases[0], chance)
        lines = base.splitlines()
        at = chance.randrange(len(lines))
        name = lines[at].partition(" =")[0]
        odd_ones = [
            "nan",
            "inf",
            "-1",
            "true",
            "'x'",
            "9" * 400,
            "9" * 5000,
            "[" * 3000,
            "{}",
            "1e400",
            "1979-05-27",
            '"\\u001b"',
        ]
        lines[at] = f"{name} = {chance.choice(odd_ones)}"
        return "\n".join(lines).encode()

    def use(path: Path) -> None:
        found = s_resnet.analysis.load_constants(path)
        if not all(value >= 0 and value < 1e300 for value in vars(found).values() if isinstance(value, float)):
            raise Fault("not finite")

    return Reader(".toml", [base.encode()], mutate, use)


def onnx(folder: Path) -> Reader:
    """The reader of ONNX files."""
    import onnx_mutations

    def mutate(bases: list[bytes], chance: Chance) -> bytes:
        return flipped(chance.choice(bases), chance) if chance.random() < 0.3 else onnx_mutations.mutate(bases, chance)

    return Reader(".onnx", onnx_mutations.bases(), mutate, onnx_mutations.use)


READERS = {
    "snn": snn,
    "checkpoint": checkpoint,
    "safetensors": safetensor,
    "index": index,
    "training": training,
    "partial": partial,
    "npz": npz,
    "events": events,
    "toml": toml,
    "onnx": onnx,
    "program": exported,
}


def mutated(reader: Reader, folder: Path, chance: Chance) -> Path:
    """The file of one mutation; its name says whether its checksums are right."""
    content = reader.mutate(reader.bases, chance)
    path = folder / f"mutated{'' if isinstance(content, Flipped) else '-sealed'}{reader.suffix}"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def tried(reader: Reader, path: Path) -> str:
    """What becomes of one file: "accepted" or "refused". Everything else is raised."""
    try:
        reader.use(path)
    except s_resnet.SResNetError as error:
        text = str(error)
        if "\n" in text or not text.isprintable():
            raise Fault(f"an error that a terminal would obey: {text!r}") from error
        return "refused"
    return "accepted"
