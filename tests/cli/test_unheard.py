"""Nobody reads, or the disk is full: files are written before words, and a failing stream stops no work."""

import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import images, randomized
from sresnet_cli import say as module
from sresnet_cli.say import say, unheard
from test_cli import CALIBRATED, Program, put_converted
from test_train import data as training_data
from test_train import trained

import s_resnet
from s_resnet import SResNetError
from s_resnet.training import saved

pytestmark = pytest.mark.skipif(os.name != "posix", reason="closed pipes, /dev/full and file limits are POSIX")
STREAMS = ("stdout", "stderr")


@contextmanager
def closed():
    """A pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w")  # noqa: SIM115 (what click has left in it cannot be written when it is closed)
    yield stream
    with suppress(BrokenPipeError):
        stream.close()


def full():
    return open("/dev/full", "w")


KINDS = {"a pipe without a reader": closed, "a full disk": full}


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    put_converted(tmp_path)
    return Program(monkeypatch, capfd)


def figures(name):
    return lambda: json.loads(Path(name).read_text())


COMMANDS = {
    "evaluate": (("evaluate", "--timesteps", 2, "--json", "out.json"), figures("out.json")),
    "verify": (("verify", "tiny.snn", "--timesteps", 2, "--json", "out.json"), figures("out.json")),
    "convert": (
        ("convert", "tiny.pth", *CALIBRATED, "-o", "new.snn"),
        lambda: s_resnet.load("new.snn"),
    ),
    "train": (
        (
            *("train", "ms_resnet8", "--data", "photos", "--width", 4, "--batch-size", 4, "--timesteps", 1),
            *("--workers", 0, "--epochs", 3, "-o", "x.pt"),
        ),
        lambda: len(torch.load("x.pt", weights_only=True)["history"]) == 3 or pytest.fail("stopped early"),
    ),
    "inspect": (("inspect", "tiny.snn"), lambda: None),
    "export": (("export", "tiny.snn", "--format", "npz", "-o", "x.npz"), lambda: Path("x.npz").stat()),
    "version": (("--version",), lambda: None),
    "help": (("evaluate", "--help"), lambda: None),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_stream_that_fails_stops_no_work(program, monkeypatch, command, kind, stream):
    arguments, check = COMMANDS[command]
    with monkeypatch.context() as patch, KINDS[kind]() as broken:
        patch.setattr(sys, stream, broken)
        code, out, err = program(*arguments)
        patch.undo()
    check()
    assert "Traceback" not in err
    if stream == "stderr":
        assert code == 0 and out
    elif command == "help" and kind == "a pipe without a reader":
        assert code == 1  # click's own
    else:
        words = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert code == 1 and not out
        assert len(words) == (kind == "a full disk") and all("No space left on device" in line for line in words)


@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_figures_are_in_their_file_before_anything_is_said(program, monkeypatch, command):
    """A kill or a lost terminal between the two would take them."""
    there = []
    monkeypatch.setattr(
        sys.modules[f"sresnet_cli.{command}"], "say", lambda *_, **__: there.append(Path("out.json").exists())
    )
    program(*COMMANDS[command][0])
    assert there and all(there)


def test_what_the_terminal_cannot_show_is_a_question_mark(monkeypatch, tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        say("± \udce9 a\tb")
    assert (tmp_path / "log").read_text() == "? ? a\tb\n"
    assert unheard() is None
    monkeypatch.setattr(sys, "stdout", None)  # as without a console
    say("to nobody")
    assert unheard() is None and not module._unheard


# ---- a full disk, for every kind of file


@contextmanager
def room(size):
    """Files may grow to so many bytes, which is as near to a full disk as a process can bring itself."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def snn():
    model = randomized(s_resnet.models.CifarResNet(8, num_classes=3, width=4))
    return s_resnet.convert(model, (3, 8, 8), "s-resnet", timesteps=4)


def evaluated(snn):
    return s_resnet.evaluate(snn, [(images(2, 8), torch.tensor([0, 1]))], 2)


WRITERS = {
    ".snn": lambda snn, path: s_resnet.save(snn, path),
    ".npz": lambda snn, path: s_resnet.export.export_npz(snn, path),
    ".nir": lambda snn, path: s_resnet.export.export_nir(snn, path, input_shape=(3, 8, 8)),
    ".pt2": lambda snn, path: s_resnet.export.export_torch(snn, path, 2, input_shape=(3, 8, 8)),
    "training": lambda snn, path: trained(path, images=training_data()),
    "evaluation": lambda snn, path: evaluated(snn).save(path),
    "verification": lambda snn, path: s_resnet.verify(snn, [images(2, 8)], 2).save(path),
}


@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, 100) for kind in WRITERS), ("training", 0), ("training", 3000), (".snn", 0)]
)
def test_a_full_disk_is_one_line_and_the_old_file_stays(kind, size, snn, tmp_path):
    if kind == ".nir":
        pytest.importorskip("nir")
        pytest.importorskip("h5py")
    path, write = tmp_path / "out", WRITERS[kind]
    write(snn, path)
    whole = path.stat().st_size
    if kind == "training":
        path.unlink()  # it would be gone on from
    else:
        path.write_bytes(b"old")
    with (
        room(min(size, whole - 1)),
        pytest.raises(SResNetError, match=r"out: cannot be written, got .*File too large") as got,
    ):
        write(snn, path)
    assert "\n" not in str(got.value)
    assert kind == "training" or path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ([] if kind == "training" else ["out"])


def test_an_error_that_is_not_the_systems_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match=r"^ours$"), s_resnet.files.replacing(tmp_path / "out"):
        raise RuntimeError("ours")
    assert os.listdir(tmp_path) == []


# ---- a training goes on with the weights that it left, or not at all


def last_bit(tensor):
    tensor.view(-1).view(torch.int32)[0] ^= 1


def changed(content, how):
    how(content)
    return content


EDITS = {
    "a weight's last bit": lambda kept: last_bit(next(v for v in kept["state_dict"].values() if v.is_floating_point())),
    "a statistic's last bit": lambda kept: last_bit(kept["state_dict"]["bn1.running_mean"]),
    "a momentum's last bit": lambda kept: last_bit(kept["optimizer"]["state"][0]["momentum_buffer"]),
    "a momentum that is another's": lambda kept: kept["optimizer"]["state"].update({
        1: kept["optimizer"]["state"][2], 2: kept["optimizer"]["state"][1]
    }),
    "a loss": lambda kept: kept["history"][0].update(loss=kept["history"][0]["loss"] + 1e-9),
    "no digest": lambda kept: kept.pop("digest"),
    "another digest": lambda kept: kept.update(digest="0" * 64),
    "one thing more": lambda kept: kept.update(more=1),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_a_checkpoint_that_was_changed_is_not_gone_on_from(edit, tmp_path):
    path = tmp_path / "x.pt"
    trained(path, images=training_data())
    kept = torch.load(path, weights_only=True)
    torch.save(kept, path)
    trained(path, images=training_data())  # as it was
    torch.save(changed(kept, EDITS[edit]), path)
    before = path.read_bytes()
    with pytest.raises(SResNetError, match=r"x\.pt: is there, got a checkpoint that is not as this run left it"):
        trained(path, images=training_data())
    assert path.read_bytes() == before


def test_the_digest_tells_what_is_not_the_same():
    """Types, shapes, order, and where one thing ends and the next begins."""
    one = torch.tensor([1.0, 2.0])
    contents = [
        *({"a": one}, {"a": one.double()}, {"a": one.view(1, 2)}, {"b": one}, {"a": one, "b": 1}, {"b": 1, "a": one}),
        *({"a": [1, 2]}, {"a": (1, 2)}, {"a": [1, [2]]}, {"a": [[1], 2]}, {"a": "1"}, {"a": 1}, {"a": 1.0}),
        *({"a": True}, {"a": None}, {"a": {}}, {"a": []}, {"a": ["b", "c"]}, {"a": ["b'; 'c"]}, {1: 2}, {"1": 2}),
        *({"a": one.bfloat16()}, {"a": torch.tensor(1.0)}, {"a": -one}, {"a": "\udce9"}, {}),
    ]
    assert len({saved.digest(content) for content in contents}) == len(contents)
    assert saved.digest({"a": one}) == saved.digest({"a": one.clone()})
