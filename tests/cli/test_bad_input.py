"""Bad input through the real program: one line that says what to do, exit 1 or 2, nothing half-written."""

import json
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from forks import Process
from test_cli import CALIBRATED, SIZE, Program, make_checkpoint, make_photos, put_converted, tiny, unexpected

import s_resnet

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
NOTICES = ("No --calibration: ", "Left out ")  # what may stand on stderr before the error
PLAIN = ("tiny.pth", "--input-size", SIZE, "--recipe", "s-resnet", "-o", "tiny.snn")  # converted without data


class Strict(Program):
    def fails(self, *arguments: object, code: int = 1, says: str = "", notices: int = 0) -> str:
        """The one line that it says; asserts that it leaves every file as it was, and no other."""
        before = files()
        got, out, err = self(*arguments)
        lines = err.splitlines()
        assert got == code and out == "" and "Traceback" not in err, (got, out, err)
        assert len(lines) == 1 + notices and err.endswith("\n"), err
        assert all(line.startswith(NOTICES) for line in lines[:-1]), err
        assert lines[-1].startswith("Error: ") and says in lines[-1], (says, err)
        assert files() == before
        return lines[-1]


def files() -> dict[str, bytes | None]:
    paths = sorted(Path().rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """The program in a folder with tiny.pth and photos/ in three classes."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    return Strict(monkeypatch, capfd)


@pytest.fixture
def network(program, tmp_path):
    """Also tiny.snn, calibrated on six of the photos."""
    return put_converted(tmp_path)


# ---- options

USAGE = [
    (["--timesteps", "0"], "below 1"), (["--timesteps", "-5"], "below 1"), (["--timesteps", "abc"], "'abc'"),
    (["--percentile", "0"], "0<x<=100"), (["--percentile", "101"], "0<x<=100"),
    (["--mean", "1,2"], "0.485,0.456,0.406"), (["--std", "1,2,3,4"], "0.485,0.456,0.406"),
    (["--mean", "red,green,blue"], "0.485,0.456,0.406"), (["--input-size", "0"], "x>=1"),
    (["--calibration-images", "1"], "x>=2"), (["--calibration-images", "x"], "'x'"),
    (["-o", "photos"], "is a directory"), (["--nonsense"], "--nonsense"), (["other.pth"], "other.pth"),
    (["--recipe", "magic"], "'s-resnet', 's-resnet-v0'"), (["--recipe", "calibrate"], "Did you mean calibrated?"),
    (["--recipe", "calibrated-streaming"], "'calibrated-streaming' is now named calibrated-constant"),
    (["--recipe", "calibrated", "--classes", "natural"], "need --calibration"), (["--download"], "need --calibration"),
    (["--calibration-images", "9"], "need --calibration"), (["--device", "mps"], "not supported"),
]  # fmt: skip
USAGE_EVALUATE = [
    (["--timesteps", "0"], "x>=1"), (["--timesteps", "-5"], "x>=1"),
    (["--timesteps", "abc"], "'abc'"), (["--timesteps", "4", "--at", "0"], "below 1"),
    (["--timesteps", "4", "--at", "2,-1"], "below 1"), (["--timesteps", "4", "--at", "2,5"], "beyond --timesteps 4"),
    (["--timesteps", "4", "--at", "x"], "8,16,32"), (["--timesteps", "4", "--at", "1,,2"], "8,16,32"),
    (["--timesteps", "4", "--limit", "0"], "x>=1"), (["--timesteps", "4", "--batch-size", "0"], "x>=1"),
    (["--timesteps", "4", "--device", "tpu"], "auto, cpu, cuda, cuda:N"),
    (["--timesteps", "4", "--json", "photos"], "is a directory"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_convert_refuses_senseless_options(program, options, says):
    program.fails("convert", "tiny.pth", *options, code=2, says=says)


@pytest.mark.parametrize(
    ("options", "says"), USAGE_EVALUATE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_evaluate_refuses_senseless_options(program, network, options, says):
    program.fails("evaluate", *options, code=2, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--arch", "resnet18"), "expected exactly those of resnet18"),
        (("--arch", "vgg16"), "cifar_resnet20"),
        (("--calibration", "nope:photos"), "unknown prefix 'nope'"),
        (("--calibration", "nowhere"), "Name data that exist"),
        (("--calibration", "tiny.pth"), "a directory of class folders"),
        (("--calibration", "cifar10:nowhere"), "--download"),
        (("--std", "0,1,1"), "above 0"),
        (("--mean", "nan,0,0"), "three numbers"),
        (("--recipe", "s-resnet", "--percentile", "nan"), "got percentile nan"),
        (("--input-size", "9000000"), "--input-size"),
    ],
)
def test_convert_says_what_is_wrong(program, options, says):
    program.fails("convert", "tiny.pth", *options, says=says)


def test_no_such_command_and_no_checkpoint(program):
    program.fails("evolve", code=2, says="'evolve'")
    program.fails("convert", code=2, says="CHECKPOINT")
    program.fails("inspect", code=2, says="NETWORK")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu(program, network):
    program.fails("evaluate", "--timesteps", 4, "--device", "cuda", says="Use --device cpu or --device auto")


# ---- checkpoints


class Evil:
    """Pickled, it writes a file where it is loaded."""

    def __reduce__(self):
        return exec, ("open('run.txt', 'w').close()",)


def with_nan() -> dict[str, torch.Tensor]:
    state = tiny().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_bytes(Path("tiny.pth").read_bytes()[:20_000]), "damaged"),
        (lambda path: path.write_bytes(Path("tiny.pth").read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_text("<html>404</html>"), "not a checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "torch.save(model.state_dict(), path)"),
        (lambda path: torch.save(Evil(), path), "torch.save(model.state_dict(), path)"),
        (lambda path: torch.save({"state_dict": tiny().state_dict(), "x": Evil()}, path), "model.state_dict()"),
        (lambda path: torch.save(with_nan(), path), "tensor layer2.0.conv1.weight"),
        (lambda path: torch.save({"encoder.weight": torch.ones(3, 3), "b": torch.ones(3)}, path), "--arch"),
        (lambda path: torch.save([1, 2], path), "state dict"),
    ],
    ids=["missing", "folder", "empty", "half", "last byte", "text", "pickle", "saved code", "code beside weights",
         "nan", "unknown keys", "list"],
)  # fmt: skip
def test_checkpoints_that_are_none(program, make, says):
    make(Path("bad.pth"))
    program.fails("convert", "bad.pth", says=says)
    assert not Path("run.txt").exists()


def test_a_file_name_with_a_line_break_stays_on_one_line(program):
    program.fails("inspect", "a\nb.snn", says="a b.snn")


# ---- data


def test_wrong_number_of_classes(program, network, tmp_path):
    make_photos(tmp_path / "four", classes="abcd")
    says = "got 4 classes for a network of 3"
    program.fails("convert", "tiny.pth", "--calibration", "four", says=says)
    program.fails("evaluate", "--timesteps", 4, "--data", "four", says=says)


def test_folders_without_images(program, network, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    for folder, says in ("empty", "class folders"), ("hollow", "'a'"):
        program.fails("convert", "tiny.pth", "--calibration", folder, says=says)
        program.fails("evaluate", "--timesteps", 4, "--data", folder, says=says)


def test_unreadable_images_are_named_and_counted(program, tmp_path):
    (tmp_path / "photos" / "a" / "text.png").write_text("no image")
    whole = (tmp_path / "photos" / "b" / "0.png").read_bytes()
    (tmp_path / "photos" / "b" / "half.png").write_bytes(whole[: len(whole) // 2])
    os.symlink("/proc/self/mem", tmp_path / "photos" / "c" / "broken.png")
    code, out, err = program("convert", *PLAIN, "--calibration", "photos", "--recipe", "s-resnet", "--timesteps", 4)
    assert code == 0 and "from 12 images, compensation" in out and "from 12 others" in out
    err = unexpected(err)
    assert err.startswith("Left out 3 unreadable image(s): ") and err.count("\n") == 1
    assert all(name in err for name in ("a/text.png", "b/half.png", "c/broken.png"))
    program("convert", *PLAIN, "--force")
    code, out, err = program("evaluate", "--timesteps", 2, "--data", "photos")
    assert code == 0 and "24 images" in out
    assert err.startswith("Left out 3 unreadable image(s): ") and err.count("\n") == 1


def test_many_unreadable_images_still_take_one_line(program, network, tmp_path):
    for number in range(30):
        (tmp_path / "photos" / "a" / f"text{number}.png").write_text("no image")
    code, _, err = program("evaluate", "--timesteps", 2)
    assert code == 0 and err.startswith("Left out 30 unreadable image(s): ") and len(err) < 300


def test_nothing_but_unreadable_images(program, network, tmp_path):
    for name in "abc":
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "1.png").write_text("no image")
    program.fails("convert", *PLAIN, "--force", "--calibration", "texts", says="/1.png")
    program.fails("evaluate", "--timesteps", 2, "--data", "texts", says="none of 3")


@pytest.mark.parametrize("data", [("--calibration", "photos"), ()], ids=["data", "no data"])
@pytest.mark.parametrize("dead", ["layer2.0.bn1", "layer1.0.bn2", "linear", "one channel"])
def test_what_never_fires_converts(program, tmp_path, data, dead):
    """Its threshold is positive and finite, and it is named; what follows it works."""
    model = tiny()
    with torch.no_grad():
        if dead == "one channel":
            model.layer2[0].bn1.weight[0], model.layer2[0].bn1.bias[0] = 0, -1
        else:
            for tensor in model.get_submodule(dead).parameters():
                tensor.fill_(-0.0)
    make_checkpoint(tmp_path / "tiny.pth", model)
    if data:
        data = (*data, "--calibration-images", 8, "--recipe", "s-resnet")
    code, out, _ = program("convert", *PLAIN, "--timesteps", 4, *data)
    known = s_resnet.load("tiny.snn").provenance.calibration
    assert code == 0 and all(0 < scale < np.inf for scale in known.scales.values())
    assert all(torch.isfinite(tensor).all() for tensor in safetensors.torch.load_file("tiny.snn").values())
    silent = {"layer2.0.bn1": ["layer2.0.relu"], "linear": ["linear"]}.get(dead, [])
    assert list(known.silent) == silent and ("Never active" in out) == bool(silent)
    assert all(name in out for name in silent)
    program.works("evaluate", "--timesteps", 4, "--data", "photos", "--json", "out.json")
    report = json.loads(Path("out.json").read_text())
    assert all(0 <= row["agreement"] <= 1 and row["spikes_per_neuron"] >= 0 for row in report["snn"])


# ---- networks


def test_truncated_networks(program, network):
    whole = network.read_bytes()
    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        Path("cut.snn").write_bytes(whole[:length])
        program.fails("inspect", "cut.snn", says="Convert the checkpoint again")
    program.fails("evaluate", "cut.snn", "--timesteps", 1, says="cut.snn")


def test_edited_networks(program, network):
    """Any byte: of the header, of a weight."""
    whole = network.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for place in (*rng.integers(8, header, 15), *rng.integers(8 + header, len(whole), 15)):
        edited = bytearray(whole)
        edited[place] ^= 1
        Path("edited.snn").write_bytes(edited)
        program.fails("inspect", "edited.snn", says="edited.snn: ")


def test_other_files_and_newer_formats(program, network):
    safetensors.torch.save_file({"x": torch.ones(2)}, "weights.snn")
    program.fails("inspect", "weights.snn", says="without a network")
    with safetensors.safe_open("tiny.snn", framework="pt") as file:
        header = json.loads(file.metadata()["s_resnet"])
    header["format"] += 1
    safetensors.torch.save_file({}, "newer.snn", {"s_resnet": json.dumps(header)})
    program.fails("inspect", "newer.snn", says="Upgrade")
    for path, says in ("tiny.pth", "expected a .snn file"), ("photos", "photos: "), ("no.snn", "no.snn: "):
        program.fails("inspect", path, says=says)
        program.fails("evaluate", path, "--timesteps", 1, says=says)


def test_which_network_and_which_data(program, network):
    network.rename("../tiny.snn")
    program.fails("evaluate", "--timesteps", 4, code=2, says="none here")
    program("convert", *PLAIN, "-o", "one.snn")
    program.fails("evaluate", "--timesteps", 4, code=2, says="Pass --data DATA")
    program("convert", *PLAIN, "-o", "two.snn")
    line = program.fails("evaluate", "--timesteps", 4, code=2, says="one.snn, two.snn")
    assert "sresnet evaluate NETWORK.snn" in line
    s_resnet.save(s_resnet.convert(tiny(), (3, SIZE, SIZE), "s-resnet"), "python.snn")
    program.fails("evaluate", "python.snn", "--timesteps", 4, "--data", "photos", says="from Python")


# ---- output


def test_output_that_cannot_be_written_is_found_before_the_work(program, network, monkeypatch):
    os.mkfifo("pipe")
    for name in ("convert", "evaluate"):
        monkeypatch.setattr(s_resnet, name, lambda *args, **named: pytest.fail("worked for nothing"))
    before = os.listdir()
    for place, code, says in (
        ("nowhere/x", 1, "nowhere"), ("tiny.pth/x", 1, "tiny.pth"), ("photos", 2, "directory"), ("pipe", 2, "pipe"),
    ):  # fmt: skip
        for command in (("convert", *PLAIN, "-o", place), ("evaluate", "--timesteps", 1, "--json", place)):
            got, out, err = program(*command)
            assert (got, out) == (code, "") and err.startswith("Error: ") and err.count("\n") == 1 and says in err
    assert sorted(os.listdir()) == sorted(before)


def test_names_that_are_too_long(program, network):
    name = 300 * "x"
    program.fails("convert", *PLAIN, "-o", name, says="File name too long", notices=1)
    program.fails("convert", f"{name}.pth", says="xxx.pth: ")
    program.fails("inspect", f"{name}.snn", says="xxx.snn: ")


def test_nothing_is_written_over_what_was_read(program, network):
    program.fails("convert", "tiny.pth", "-o", "tiny.pth", code=2, says="would be overwritten")
    program.fails("evaluate", "tiny.snn", "--timesteps", 1, "--json", "tiny.snn", code=2, says="would be overwritten")
    program.fails("demo", "-o", "tiny.snn/demo", says="Choose another one with -o")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_the_old_file_survives_a_failing_disk(program, network, monkeypatch, error):
    program.works("evaluate", "--timesteps", 1, "--json", "out.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(error))
        program.fails("convert", *PLAIN, "--force", says=error.strerror, notices=1)
        before = files()
        code, out, err = program("evaluate", "--timesteps", 1, "--json", "out.json", "--force")
    assert code == 1 and "spikes/neuron" in out and files() == before  # the figures are on the screen at least
    assert err.startswith("Error: out.json: cannot be written") and err.count("\n") == 1


def test_the_old_file_survives_a_full_disk(program, network, tmp_path_factory):
    """A true one, as far as a process can have it: files may grow to 10,000 bytes."""
    before = files()
    code = (
        "import resource, sys, torch; from sresnet_cli.__main__ import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); main()"
    )
    said = tmp_path_factory.mktemp("said")
    result = Process(code, "convert", "--force", *PLAIN, place=Path.cwd(), folder=said).done()
    assert result.returncode == 1 and files() == before and len(before["tiny.snn"]) > 10_000
    assert result.stderr.splitlines()[1:] and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: tiny.snn: cannot be written")


# ---- Ctrl-C


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("s_resnet.convert", ("convert", "tiny.pth", *CALIBRATED, "--force")),
        ("s_resnet.conversion.calibrate.Fraction", ("convert", "tiny.pth", *CALIBRATED, "--force")),  # half-way through
        ("os.replace", ("convert", "tiny.pth", *CALIBRATED, "--force")),  # all is written, under another name
        ("s_resnet.analysis.evaluate.answers", ("evaluate", "--timesteps", 2, "--json", "new.json")),
        ("os.replace", ("evaluate", "--timesteps", 2, "--json", "new.json")),
    ],
)
def test_an_interrupt_leaves_nothing(program, network, monkeypatch, where, command):
    before = files()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        module, _, name = where.rpartition(".")
        patch.setattr(sys.modules[module], name, interrupt)
        code, _, err = program(*command)
    assert code == 130 and err.split() == ["Interrupted."] and files() == before


def test_a_true_interrupt_while_workers_decode(program, network, tmp_path_factory):
    before = files()
    code = "\n".join((
        # A shell's background jobs are born deaf to the interrupt.
        "import signal", "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "import s_resnet.data.images as data", "data.FEW = 1",  # few samples have workers too
        "import sys, s_resnet; report = sys.modules['s_resnet.analysis.evaluate']", "real = report.answers",
        "def answers(*args, **named): print('started', flush=True); return real(*args, **named)",
        "report.answers = answers", "from sresnet_cli.__main__ import main", "main()",
    ))  # fmt: skip
    asked = ("evaluate", "--timesteps", 1000000, "--at", 1000000, "--batch-size", 1)
    process = Process(code, *asked, place=Path.cwd(), folder=tmp_path_factory.mktemp("said"))
    process.wait_for(lambda: process.said() == "started\n")
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = process.done()
    assert (code, out, err.split()) == (130, "started\n", ["Interrupted."])
    assert files() == before
