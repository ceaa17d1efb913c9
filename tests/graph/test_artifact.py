"""The ``.snn`` file: what is saved comes back bit for bit, and everything else is refused in one line."""

import errno
import inspect
import json
import os
import pickle
import stat
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import safetensors
import torch
from forks import Process
from safetensors.torch import save_file

from s_resnet import Graph, SResNetError, load, save
from s_resnet.errors import InvalidArtifact
from s_resnet.graph import Neuron, Node, Readout, SpikingMaxPool2d, artifact, neuron, ops, readout
from s_resnet.graph.alphabet import Amplitudes, Differential
from s_resnet.graph.artifact import FORMAT
from s_resnet.graph.ops import SpikingWeights
from s_resnet.graph.provenance import AppliedRecipe, Provenance

GENERATOR = torch.Generator().manual_seed(0)
PROVENANCE = {
    "recipe": {"name": "s-resnet", "timesteps": 350, "passes": [{"pass": "normalize"}]},
    "classes": ["Katze", "Öl", "猫"],
    "percentile": 99.99,
    "nothing": None,
    "yes": True,
}


def rand(*shape):
    return torch.randn(shape, generator=GENERATOR)


def gain(factor):
    return SpikingWeights(gain=factor)


def every_op():
    """A network with every operation there is, every setting away from its default."""
    half, one = torch.tensor(0.5), torch.ones(())
    rows = [
        ("input", ops.Input()),
        (
            "conv",
            ops.Conv2d(rand(6, 1, 3, 2), rand(6), (2, 1), (1, 2), (1, 2), 3, SpikingWeights(gain=1.0625)),
            "input",
        ),
        ("bn", ops.BatchNorm2d(rand(6), rand(6), rand(6), rand(6).abs() + 0.5, 1e-3), "conv"),
        ("affine", ops.Affine(rand(6), rand(6)), "bn"),
        ("pool", ops.MaxPool2d((3, 2), (1, 1), (1, 1), (1, 1), True), "affine"),
        ("first", Neuron(rand(6).abs() + 0.1, 0.25), "pool"),
        ("gate", SpikingMaxPool2d((2, 3), (1, 1), (1, 0), (1, 1), True), "first"),
        ("short", ops.Scale(rand(6), gain(1.5)), "gate"),
        ("plain", ops.Conv2d(rand(6, 6, 1, 1), None), "gate"),
        ("second", Neuron(half, 0.5, "zero", 0.75), "plain", "short"),
        ("cut", ops.Slice(((None, 4, None), (1, None, 2), (None, None, 2))), "second"),
        ("pad", ops.Pad((0, 1, 0, 0, 1, 1)), "cut"),
        ("relu", ops.ReLU(torch.full((6,), 0.625)), "pad"),
        ("quantized", ops.QCFS(torch.tensor(0.75), 4), "relu"),
        ("sum", ops.Add(), "pad", "quantized"),
        ("avg", ops.AvgPool2d((2, 2), (1, 1), (1, 0), True, False), "sum"),
        ("mixed", ops.Conv2d(rand(6, 6, 1, 1), None, spiking=SpikingWeights(rand(6, 6, 1, 1))), "avg"),
        (
            "third",
            Neuron(
                half, correction=rand(9, 6), schedule="lagged", spikes=Amplitudes(3, True), scale=one, limit=4 * one
            ),
            "mixed",
        ),
        (
            "fourth",
            Neuron(half, correction=rand(6), schedule="phased", spikes=Differential(), scale=rand(6) ** 2),
            "third",
        ),
        ("adaptive", ops.AdaptiveAvgPool2d((2, 1)), "fourth"),
        ("flat", ops.Flatten(), "adaptive"),
        ("fc", ops.Linear(rand(5, 12), rand(5), SpikingWeights(rand(5, 12), 1.125)), "flat"),
        ("readout", Readout(one * 3, "spikes", 0.5, rand(9).abs(), rand(5)), "fc"),
    ]
    nodes = tuple(Node(name, op, tuple(inputs)) for name, op, *inputs in rows)
    return Graph(nodes, Provenance.from_json(PROVENANCE)).validate()


def small():
    rows = [
        ("input", ops.Input()),
        ("conv", ops.Conv2d(torch.arange(8.0).view(2, 1, 2, 2) / 8, torch.tensor([0.5, -0.5])), "input"),
        ("neuron", Neuron(torch.tensor(1.0)), "conv"),
        ("flat", ops.Flatten(), "neuron"),
        ("readout", Readout(torch.tensor(2.0)), "flat"),
    ]
    return Graph(tuple(Node(name, op, tuple(inputs)) for name, op, *inputs in rows), Provenance(AppliedRecipe("none")))


def pictures():
    return torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "network.snn"
    save(small(), path)
    return path


def refused(path):
    """The message of load's InvalidArtifact: one line that begins with the file."""
    with pytest.raises(InvalidArtifact) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "expected" in message
    return message


# ---- there and back ----


def test_the_network_above_has_every_operation():
    known = {
        kind
        for module in (ops, neuron, readout)
        for _, kind in inspect.getmembers(module, is_dataclass)
        if kind.__module__ == module.__name__ and "run" in vars(kind) and not kind.__name__.startswith("_")
    }
    assert {type(node.op) for node in every_op().nodes} == known and len(known) >= 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, dtype):
    graph = every_op()
    if dtype != torch.float32:
        graph = Graph(tuple(Node(n.name, cast(n.op, dtype), n.inputs) for n in graph.nodes), graph.provenance)
    save(graph, tmp_path / "all.snn")
    again = load(str(tmp_path / "all.snn"))
    assert again.provenance == graph.provenance and again.provenance.to_json() == PROVENANCE
    assert [(n.name, n.inputs, type(n.op)) for n in again.nodes] == [
        (n.name, n.inputs, type(n.op)) for n in graph.nodes
    ]
    tensors = 0
    for old, new in zip(graph.nodes, again.nodes, strict=True):
        for a, b in zip(values(old.op), values(new.op), strict=True):
            if isinstance(a, torch.Tensor):
                tensors += 1
                assert a.dtype == b.dtype == dtype and a.shape == b.shape and torch.equal(a, b)
            else:
                assert a == b and type(a) is type(b)
    assert tensors == 29
    if dtype == torch.float32:
        assert torch.equal(again.run(pictures()), graph.run(pictures()))
        assert torch.equal(again(pictures(), 9), graph(pictures(), 9)) and graph(pictures(), 9).std() > 0


def values(part):
    """Every value in an operation, the parts inside it by their kind and their own values."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield type(value)
            yield from values(value)
        else:
            yield value


def cast(op, dtype):
    moved = {f.name: getattr(op, f.name) for f in fields(op)}
    changed = {k: v.to(dtype) for k, v in moved.items() if isinstance(v, torch.Tensor)}
    return replace(op, **changed, **{k: cast(v, dtype) for k, v in moved.items() if is_dataclass(v)})


def test_tensors_that_share_memory_or_lie_oddly_come_back(tmp_path):
    shared = torch.tensor(2.0)
    weight = torch.arange(16.0).view(2, 2, 2, 2).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    rows = [
        ("input", ops.Input()),
        ("conv", ops.Conv2d(weight.requires_grad_(), None), "input"),
        ("a", Neuron(shared), "conv"),
        ("b", Neuron(shared), "a"),
    ]
    save(Graph(tuple(Node(name, op, tuple(inputs)) for name, op, *inputs in rows)), tmp_path / "a.snn")
    again = load(tmp_path / "a.snn")
    assert torch.equal(again["conv"].op.weight, weight) and again["b"].op.threshold == 2


def test_a_fresh_process_gives_the_same_logits_and_the_same_bytes(tmp_path):
    graph = every_op()
    save(graph, tmp_path / "a.snn")
    save(graph, tmp_path / "b.snn")
    save(Graph(graph.nodes, Provenance.from_json(dict(reversed(PROVENANCE.items())))), tmp_path / "d.snn")
    assert (tmp_path / "a.snn").read_bytes() == (tmp_path / "b.snn").read_bytes() == (tmp_path / "d.snn").read_bytes()
    program = (
        f"import torch; torch.set_num_threads({torch.get_num_threads()}); import s_resnet\n"
        "snn = s_resnet.load('a.snn'); s_resnet.save(snn, 'c.snn')\n"
        "x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))\n"
        "torch.save((snn(x, 9), snn.run(x)), 'logits.pt')"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=300)
    spiking, analog = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(spiking, graph(pictures(), 9)) and torch.equal(analog, graph.run(pictures()))
    assert (tmp_path / "c.snn").read_bytes() == (tmp_path / "a.snn").read_bytes()


def test_provenance_comes_back_as_json_makes_it(tmp_path):
    """Number keys become texts, which sort in another order: the digest must not mind."""
    save(small().with_provenance(extra={"counts": {2: "b", 10: "a"}, "size": (1, 2)}), tmp_path / "a.snn")
    assert load(tmp_path / "a.snn").provenance.extra["counts"] == {"2": "b", "10": "a"}
    assert load(tmp_path / "a.snn").provenance.extra["size"] == [1, 2]
    with pytest.raises(SResNetError, match="not JSON"):
        save(small().with_provenance(extra={"weights": torch.ones(2)}), tmp_path / "b.snn")
    assert os.listdir(tmp_path) == ["a.snn"]


def test_the_file_may_be_read_by_whoever_may_read_new_files(tmp_path, file):
    (tmp_path / "other").touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


# ---- damage ----


def test_a_truncated_file_is_refused(file):
    raw = file.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(raw) - 4, len(raw) - 1):
        file.write_bytes(raw[:length])
        refused(file)
    file.write_bytes(raw + b"\0")
    refused(file)


@pytest.mark.parametrize("mask", [0x01, 0x10, 0xFF])
def test_one_flipped_byte_anywhere_is_refused(file, mask):
    raw = file.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    positions = [*range(0, header, 3), *range(header, len(raw))]
    assert len(positions) > 300 and len(raw) - header == 4 * (8 + 2 + 1 + 1)
    for position in positions:
        damaged = bytearray(raw)
        damaged[position] ^= mask
        file.write_bytes(damaged)
        refused(file)


def rewrite(path, edit, sign=False):
    """Edit the JSON, with a digest that fits if asked for: what a careful vandal, or another program, would write."""
    with safetensors.safe_open(path, framework="pt") as stored:
        header = json.loads(stored.metadata()["s_resnet"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    header = edit(header, tensors) or header
    if sign:
        header["digest"] = artifact._digest(header, tensors)
    save_file(tensors, path, {"s_resnet": header if isinstance(header, str) else json.dumps(header)})


EDITS = {
    "a setting": lambda h, t: h["nodes"][1]["settings"].update(spiking={"kind": "SpikingWeights", "gain": 2.0}),
    "the provenance": lambda h, t: h["provenance"].update(recipe={"name": "better"}),
    "a name": lambda h, t: h["nodes"][2].update(name="n"),
    "no digest": lambda h, t: h.pop("digest") and None,
    "no format": lambda h, t: h.pop("format") and None,
    "an older format": lambda h, t: h.update(format=0),
    "a weight": lambda h, t: t["conv/weight"].add_(1) is None,
    "a shape": lambda h, t: t.update({"conv/bias": t["conv/bias"].view(1, 2)}),
    "a tensor less": lambda h, t: t.pop("conv/bias") is None,
    "a tensor more": lambda h, t: t.update(more=torch.ones(1)),
    "a list": lambda h, t: [1],
    "a text": lambda h, t: "network",
    "deep": lambda h, t: "[" * 100_000,
}
FORGED = {
    "an unknown operation": lambda h, t: h["nodes"][3].update(op="LSTM"),
    "a class that is none of ours": lambda h, t: h["nodes"][3].update(op=["os.system"]),
    "an unknown setting": lambda h, t: h["nodes"][1]["settings"].update(speed=2),
    "settings of another kind": lambda h, t: h["nodes"][1].update(settings=[1]),
    "an unknown reset": lambda h, t: h["nodes"][2]["settings"].update(reset="hard"),
    "an input from nowhere": lambda h, t: h["nodes"][2].update(inputs=["conv2"]),
    "no inputs": lambda h, t: h["nodes"][2].update(inputs=[]),
    "no nodes": lambda h, t: h.update(nodes=[]),
    "nodes of another kind": lambda h, t: h.update(nodes={"conv": 1}),
    "a missing weight": lambda h, t: t.pop("conv/weight") is None,
    "no provenance": lambda h, t: h.pop("provenance") and None,
    "provenance of another kind": lambda h, t: h.update(provenance=[1]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused(file, edit):
    rewrite(file, EDITS[edit])
    assert "damaged or edited" in refused(file)


@pytest.mark.parametrize("edit", FORGED)
def test_a_file_that_describes_no_network_is_refused_even_with_a_digest_that_fits(file, edit):
    rewrite(file, FORGED[edit], sign=True)
    assert "damaged or edited" in refused(file)


def test_the_digest_is_all_that_an_honest_edit_needs(file):
    """So the refusals above come from what they changed, not from the rewriting."""
    rewrite(
        file, lambda h, t: h["nodes"][1]["settings"].update(spiking={"kind": "SpikingWeights", "gain": 2.0}), sign=True
    )
    assert load(file)["conv"].op.spiking.gain == 2.0


def test_a_newer_format_asks_for_an_upgrade(file):
    rewrite(file, lambda h, t: h.update(format=FORMAT + 1, nodes="in another way"), sign=True)
    assert f"version {FORMAT + 1}" in refused(file) and "pgrade" in refused(file)


def test_what_is_no_snn_file_is_refused(tmp_path):
    foreign, pickled, checkpoint = (tmp_path / name for name in ("foreign.snn", "pickled.snn", "checkpoint.snn"))
    save_file({"weight": torch.ones(3)}, foreign, {"format": "pt"})
    assert "without a network" in refused(foreign)
    save_file({"weight": torch.ones(3)}, foreign)
    assert "without a network" in refused(foreign)
    pickled.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(pickled)
    torch.save(small().nodes[1].op.weight, checkpoint)
    refused(checkpoint)
    assert not (tmp_path / "ran").exists()
    refused(tmp_path)
    assert "no such file" in refused(tmp_path / "missing.snn")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# ---- failures to write ----


def fails_in(function, error):
    """The name in ``artifact`` that raises, and a stand-in that leaves half a file behind before it does."""

    def stand_in(*arguments):
        if function == "save_file":
            Path(arguments[1]).write_bytes(b"half a file")
        raise error

    return function, stand_in


FAILURES = {
    "disk full while writing": fails_in("save_file", OSError(errno.ENOSPC, "No space left on device")),
    "disk full in safetensors": fails_in(
        "save_file", safetensors.SafetensorError("I/O error:\nNo space left on device")
    ),
    "disk full while syncing": fails_in("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
    "no permission to rename": fails_in("os.replace", PermissionError(errno.EACCES, "Permission denied")),
    "interrupted while writing": fails_in("save_file", KeyboardInterrupt()),
    "interrupted while syncing": fails_in("os.fsync", KeyboardInterrupt()),
    "out of memory": fails_in("save_file", MemoryError()),
}


@pytest.mark.parametrize("old", [True, False], ids=["over an old file", "new"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_to_write_leaves_what_was_there(tmp_path, monkeypatch, failure, old):
    path = tmp_path / "network.snn"
    if old:
        save(every_op(), path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    where, stand_in = FAILURES[failure]
    monkeypatch.setattr(f"s_resnet.graph.artifact.{where}", stand_in)
    interrupted = "interrupted" in failure or "memory" in failure
    with pytest.raises((KeyboardInterrupt, MemoryError) if interrupted else SResNetError) as caught:
        save(small(), path)
    if not interrupted:
        message = str(caught.value)
        assert message.startswith(f"{path}: cannot be written") and "\n" not in message
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_place_that_cannot_be_written_is_named(tmp_path, file):
    kept = file.read_bytes()
    for place in (tmp_path / "no" / "a.snn", file / "a.snn", tmp_path, Path(), tmp_path / ("x" * 300)):
        with pytest.raises(SResNetError, match="cannot be written") as caught:
            save(small(), place)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["network.snn"] and file.read_bytes() == kept


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SResNetError, match="Permission denied"):
        save(small(), tmp_path / "a.snn")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
def test_a_really_full_disk_leaves_the_old_file(tmp_path, tmp_path_factory, file):
    """A limit on the size of files stands in for the disk: the error then comes from the system itself."""
    kept = file.read_bytes()
    program = (
        "import resource, signal; import s_resnet\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "snn = s_resnet.load('network.snn').with_provenance(extra={'more': 'x' * 10000})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: s_resnet.save(snn, 'network.snn')\n"
        "except s_resnet.SResNetError as error: print(error)"
    )
    done = Process(program, place=tmp_path, folder=tmp_path_factory.mktemp("said")).done()
    assert done.returncode == 0 and done.stdout.startswith("network.snn: cannot be written"), done.stderr
    assert os.listdir(tmp_path) == ["network.snn"] and file.read_bytes() == kept
