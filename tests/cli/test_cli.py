"""The command line: its frozen form, and the whole path from a checkpoint to figures through the real program."""

import functools
import hashlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image
from sresnet_cli.__main__ import main, sresnet
from torch import nn
from trained_networks import T, put_trained

import s_resnet
from s_resnet.graph.provenance import Source

# A single core makes torch warn about two workers, and Python 3.12 about forking beside torch's threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
SIZE = 8  # pixels
PAPERS = ("-o", "tiny.snn", "--recipe", "s-resnet", "--timesteps", 4)
CALIBRATED = ("--calibration", "photos", "--calibration-images", 6, "--input-size", SIZE, *PAPERS)


def randomized(model: nn.Module) -> nn.Module:
    """Seeded weights and BatchNorm statistics, no two alike."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1, generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def tiny(classes: int = 3, shortcut: str = "B") -> nn.Module:
    return randomized(s_resnet.models.CifarResNet(8, num_classes=classes, width=4, shortcut=shortcut))


def make_checkpoint(path: Path, model: nn.Module | None = None) -> Path:
    torch.save((model or tiny()).state_dict(), path)
    return path


def make_photos(root: Path, count: int = 8, classes: str = "abc", seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def unexpected(err: str) -> str:
    """What is on stderr besides what training begins with, what convert finds of random networks (no fit), and how far
    it is on a busy machine, where a test takes 30 seconds."""
    looked_at = (
        "Warning: convert: the network is right on",
        "Warning: convert: images and network",
        "The images are of ",  # a part of the classes
        "Trying other",
        "Assumed, since no checkpoint tells",
        "Training ",
    )
    far = re.compile(r".*\d+/\d+.*, \d+:\d\d(:\d\d)?(, about [\d:]+ left)?$")
    lines = (line for line in err.splitlines(keepends=True) if not line.startswith(looked_at))
    return "".join(line for line in lines if not far.match(line.strip()))


class Program:
    """The program in this process: arguments in; exit code, stdout and stderr out."""

    def __init__(self, monkeypatch, capfd):
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # main() sets it, which would outlive the test
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["sresnet", *map(str, arguments)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = self.capfd.readouterr()
        return exit.value.code or 0, out, err

    def works(self, *arguments: object) -> str:
        """What it prints, having done its work without a word on stderr but that a random network knows nothing."""
        code, out, err = self(*arguments)
        assert (code, unexpected(err)) == (0, ""), (code, out, err)
        return out


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capfd)


def record_loaders(monkeypatch) -> list[list[bytes]]:
    """For every loader that the program makes, the stored bytes of its images: the truth about what is used."""
    loaders: list[list[bytes]] = []

    class Recorder(s_resnet.data.ImageLoader):
        def __init__(self, data, indices, *rest, **named):
            super().__init__(data, indices, *rest, **named)
            if data.pixels is not None:
                loaders.append([data.pixels[index].tobytes() for index in indices])
            else:
                loaders.append([Path(data.root, data.names[index]).read_bytes() for index in indices])

    monkeypatch.setattr(s_resnet.data, "ImageLoader", Recorder)
    monkeypatch.setattr(sys.modules["s_resnet.data.open"], "ImageLoader", Recorder)  # what loader_for makes
    return loaders


@functools.cache
def converted() -> dict[str, bytes]:
    """tiny.pth, photos/ (24 images) and tiny.snn, calibrated on 6 of them: what a conversion makes, made once."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_checkpoint(Path("tiny.pth"))
            make_photos(Path("photos"))
            sresnet.main(["convert", "tiny.pth", *map(str, CALIBRATED)], standalone_mode=False)
            return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        finally:
            os.chdir(before)


def put_converted(folder: Path) -> Path:
    """Those files in a folder; the path of its tiny.snn."""
    for name, content in converted().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    snn = s_resnet.load(folder / "tiny.snn")
    calibrated_on = replace(snn.provenance.data, spec=str(folder / "photos"))  # as if converted right here
    s_resnet.save(snn.with_provenance(data=calibrated_on), folder / "tiny.snn")
    return folder / "tiny.snn"


@pytest.fixture
def network(program, tmp_path):
    """The files of converted() in the current folder."""
    return put_converted(tmp_path)


def figures(path: Path) -> dict:
    """The JSON without what differs from run to run."""
    report = json.loads(path.read_text())
    measured = ("images_per_second", "seconds_per_step_per_image", "peak_memory_bytes")
    return {name: value for name, value in report.items() if name not in measured}


# ---- the frozen form

FROZEN = {
    "convert": (["CHECKPOINT"], [
        ("-o", "--output"), ("--force",), ("--arch",), ("--ema",), ("--recipe",), ("--weights",), ("--timesteps",),
        ("--reconstruct",), ("--spikes",), ("--target-drop",), ("--latency",), ("--no-step-currents",),
        ("--no-delays",), ("--lag",), ("--percentile",), ("--calibration",),
        ("--calibration-images",), ("--input-size",), ("--mean",), ("--std",), ("--classes",), ("--device",),
        ("--memory",), ("--download",),
    ]),
    "evaluate": (["NETWORK"], [
        ("--timesteps",), ("--at",), ("--exit-confidence",), ("--data",), ("--limit",), ("--classes",),
        ("--batch-size",), ("--memory",), ("--device",), ("--precision",), ("--spike-by-spike",), ("--json",),
        ("--force",), ("--download",),
    ]),
    "compare": (["CHECKPOINT|NETWORK.snn..."], [
        ("--data",), ("--calibration",), ("--calibration-images",), ("--recipes",), ("--latency",), ("-o", "--output"),
        ("--format",), ("--work",), ("--limit",), ("--arch",), ("--ema",), ("--input-size",), ("--mean",), ("--std",),
        ("--classes",), ("--batch-size",), ("--memory",), ("--device",), ("--force",), ("--download",),
    ]),
    "inspect": (["NETWORK"], []),
    "verify": (["NETWORK"], [
        ("--data",), ("--timesteps",), ("--limit",), ("--classes",), ("--batch-size",), ("--memory",), ("--device",),
        ("--json",), ("--force",), ("--download",),
    ]),
    "report": (["NETWORK [NETWORK]"], [
        ("--data",), ("-o", "--output"), ("--timesteps",), ("--limit",), ("--classes",), ("--batch-size",),
        ("--memory",), ("--device",), ("--constants",), ("--force",), ("--download",),
    ]),
    "export": (["NETWORK"], [
        ("--format",), ("-o", "--output"), ("--force",), ("--timesteps",), ("--verify",), ("--data",), ("--limit",),
        ("--tie-shortcuts",), ("--pool",), ("--classes",), ("--download",),
    ]),
    "train": (["ARCH"], [
        ("--from",), ("--data",), ("-o", "--output"), ("--preset",), ("--epochs",), ("--batch-size",),
        ("--optimizer",), ("--lr",), ("--momentum",), ("--weight-decay",), ("--schedule",), ("--step-epochs",),
        ("--gamma",), ("--warmup",), ("--label-smoothing",), ("--augment",), ("--timesteps",), ("--width",),
        ("--input-size",), ("--limit",), ("--test-limit",), ("--validation",), ("--activation",), ("--levels",),
        ("--amp",), ("--recompute",), ("--seed",), ("--device",), ("--workers",), ("--tensorboard",), ("--force",),
        ("--download",),
    ]),
    "demo": ([], [("-o", "--output"), ("--force",)]),
}  # fmt: skip
DEFAULTS = {
    ("convert", "--recipe"): None,  # by whether there are images
    ("convert", "--weights"): "float32",
    ("convert", "--calibration-images"): 1024,
    ("convert", "--device"): "auto",
    ("evaluate", "--batch-size"): 32,
    ("evaluate", "--device"): "auto",
    ("evaluate", "--precision"): "exact",
    ("compare", "--calibration-images"): 1024,
    ("compare", "--latency"): "4,8,16,32",
    ("compare", "--format"): "text",
    ("compare", "--batch-size"): 32,
    ("compare", "--device"): "auto",
    ("verify", "--limit"): 256,
    ("verify", "--batch-size"): 32,
    ("verify", "--device"): "auto",
    ("report", "--limit"): 500,
    ("report", "--batch-size"): 32,
    ("report", "--device"): "auto",
    ("train", "--amp"): None,  # a preset may say it
    ("train", "--device"): "auto",
    ("export", "--limit"): 8,
    ("demo", "-o"): "demo",
}
REQUIRED = {"report": ["-o"], "export": ["--format", "-o"], "train": ["--data", "-o"]}


def test_the_options_are_frozen():
    """Others script against these. Change this table only when section 4 of the design changes."""
    assert sorted(sresnet.commands) == sorted(FROZEN)
    assert [tuple(option.opts) for option in sresnet.params] == [("--version",)]
    for name, (arguments, options) in FROZEN.items():
        params = sresnet.commands[name].params
        assert [p.human_readable_name for p in params if p.param_type_name == "argument"] == arguments
        found = [p for p in params if p.param_type_name == "option"]
        assert [tuple(p.opts) for p in found] == options
        assert [p.opts[0] for p in found if p.required] == REQUIRED.get(name, [])
        for p in found:
            default = False if p.is_flag else None
            assert p.to_info_dict()["default"] == DEFAULTS.get((name, p.opts[0]), default), p.opts
    required = {name: [p.required for p in sresnet.commands[name].params][:1] for name in FROZEN}
    assert required == {name: [name in ("convert", "compare")] for name in FROZEN}


HELP = """
import contextlib, io, json, sys
from sresnet_cli.__main__ import main
said = {}
for command in sys.argv[1:]:
    sys.argv, out = ["sresnet", *command.split(), "--help"], io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as exit:
            assert not exit.code, exit.code
    said[command] = [out.getvalue(), sorted({"torch", "numpy", "s_resnet"} & set(sys.modules))]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helped():
    """What --help prints, and what of the heavy modules is loaded then: of every command in one process."""
    result = subprocess.run([sys.executable, "-c", HELP, "", *FROZEN], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", ["", *FROZEN])
def test_help_teaches_without_loading_torch(helped, command):
    text, loaded = helped[command]
    assert not loaded
    assert all(option in text for opts in FROZEN.get(command, ((), ()))[1] for option in opts)
    if command in ("", "convert", "evaluate", "compare", "verify", "report", "export", "train"):
        assert f"  sresnet {command}".rstrip() in text.partition("\n")[2]  # an example, beside the usage
    if command in ("convert", "evaluate", "compare", "verify", "report", "export", "train"):
        for form in ("directory of class folders", "cifar10:DIR", "cifar100:DIR", "mnist:DIR", "imagenet:DIR",
                     "digits", ".npz"):  # fmt: skip
            assert form in text, form
        assert command == "export" or "events: cifar10dvs:DIR, dvsgesture:DIR." in " ".join(text.split())


# An option does something or is something; what it belongs to comes later in the sentence.
FRAGMENTS = {"of", "by", "for", "in", "on", "with", "to", "from", "where", "what", "which", "how", "no", "only"}


@pytest.mark.parametrize("command", FROZEN)
def test_help_is_whole_sentences_and_click_shows_the_defaults(command):
    found = sresnet.commands[command]
    context = click.Context(found, show_default=True)
    for option in (one for one in found.params if isinstance(one, click.Option)):
        assert option.help[0].isupper() and option.help.endswith("."), option.opts
        assert option.help.split()[0].lower() not in FRAGMENTS, option.opts
        assert "default" not in option.help and "default None" not in option.get_help_record(context)[1], option.opts
        default = option.to_info_dict()["default"]
        if default not in (None, False):
            assert f"[default: {default}" in option.get_help_record(context)[1], option.opts
    text, first = inspect.cleandoc(found.help), found.get_short_help_str(64)
    assert first == text.partition("\n\n")[0] and first.endswith("."), "cut off in the list of commands"
    assert f"\n  sresnet {command}" in text, "no example"


def test_alone_it_shows_its_help(program):
    assert program.works() == program.works("--help") == program.works("-h")


def test_python_m_is_the_same_program():
    (script,) = entry_points(group="console_scripts", name="sresnet")
    assert script.value == "sresnet_cli.__main__:main"
    command = [sys.executable, "-m", "sresnet_cli", "convert", "-h"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: sresnet convert ")


def test_version_says_which_kernel_runs(program):
    said = program.works("--version")
    assert said == f"sresnet {s_resnet.__version__}, {s_resnet.kernels.describe()}\n" and "kernel" in said


# ---- the whole path


def test_two_commands_from_a_checkpoint_to_figures(program, tmp_path):
    """The first as a shell starts it, which takes seconds; the second finds what that has written."""
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    command = [sys.executable, "-m", "sresnet_cli", "convert", "tiny.pth", *map(str, CALIBRATED)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, unexpected(result.stderr)) == (0, ""), result.stderr
    assert result.stdout.endswith("\nNext: sresnet evaluate tiny.snn\n")
    program.works("evaluate", "--json", "out.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "photos", "tiny.pth", "tiny.snn"]
    assert json.loads((tmp_path / "out.json").read_text())["images"] == 18


def test_the_network_is_written_beside_its_checkpoint_or_where_asked(program, tmp_path):
    (tmp_path / "models").mkdir()
    make_checkpoint(tmp_path / "models" / "tiny-1.5.pth")
    for target, options in ("models/tiny-1.5-s-resnet-T350.snn", ()), ("other.snn", ("-o", "other.snn")):
        code, out, _ = program("convert", "models/tiny-1.5.pth", *PAPERS[2:4], "--input-size", SIZE, *options)
        assert code == 0 and out.startswith(f"{target}: cifar_resnet8, recipe s-resnet")
        assert (tmp_path / target).is_file()
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert written == ["models/tiny-1.5-s-resnet-T350.snn", "models/tiny-1.5.pth", "other.snn"]


def test_json_is_as_documented_and_the_table_shows_it(program, network, tmp_path):
    table = program.works("evaluate", "--timesteps", 5, "--json", "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    types = {"schema": int, "network": str, "recipe": str, "images": int, "device": str, "kernel": str, "ann": dict,
             "snn": list, "images_per_second": float, "seconds_per_step_per_image": float,
             "peak_memory_bytes": int, "data": dict, "notes": list}  # fmt: skip
    assert {name: type(value) for name, value in report.items()} == types
    left_out = {"calibrated_on": 6, "unreadable": 0, "no_images": []}
    assert report["data"] == {"path": str(tmp_path / "photos"), "split": "all", "of": 24, "left_out": left_out}
    assert f"data: {tmp_path / 'photos'} (all), 18 of 24 images; left out: 6 calibrated on" in table
    assert report["schema"] == 1 and report["recipe"] == "s-resnet" and report["network"] == "tiny.snn"
    assert set(report["ann"]) == {"top1", "top5"}
    columns = {
        "timesteps",
        "end_to_end_steps",
        "top1",
        "top5",
        "agreement",
        "spikes_per_neuron",
        "drop",
        "drop_interval",
    }
    assert all(set(row) == columns for row in report["snn"])
    assert [row["timesteps"] for row in report["snn"]] == [1, 2, 4, 5]  # powers of two and T
    assert [row["end_to_end_steps"] for row in report["snn"]] == [1, 2, 4, 5]

    rows = [line.split() for line in table.splitlines() if "%" in line]
    lines = [row for row in rows if row[0] in ("ANN", "1", "2", "4", "5")]
    assert lines[0] == ["ANN", f"{100 * report['ann']['top1']:.2f}%"] and report["ann"]["top5"] is None
    for line, row in zip(lines[1:], report["snn"], strict=True):
        top1, agreement = (f"{100 * row[name]:.2f}%" for name in ("top1", "agreement"))
        drop, low, high = (f"{100 * value:+.2f}" for value in (row["drop"], *row["drop_interval"]))
        assert line == [
            str(row["timesteps"]),
            top1,
            drop,
            low,
            "to",
            high,
            agreement,
            f"{row['spikes_per_neuron']:.3f}",
        ]
        assert row["drop"] == pytest.approx(report["ann"]["top1"] - row["top1"]) and row["top5"] is None
    assert "18 images" in table and report["device"] in table and report["kernel"] in table


@pytest.mark.parametrize("arch", ["ms_resnet8", "ds_resnet8"])
def test_a_trained_network_has_no_ann_beside_it(program, tmp_path, arch):
    model, x, labels = put_trained(tmp_path, arch)
    asked = ("--timesteps", 4, "--at", f"1,{T}", "--data", "data.npz", "--json", "out.json")
    said = program.works("evaluate", "net.snn", *asked)
    entry = json.loads((tmp_path / "out.json").read_text())
    top1 = float((model(x).argmax(1) == labels).double().mean())
    assert entry["snn"][1]["top1"] == pytest.approx(top1) and entry["ann"] is None and entry["recipe"] == "trained"
    assert f"trained for T = {T}" in said and "ANN" not in said


def test_the_ann_beside_it_is_the_checkpoint(program, network, tmp_path, monkeypatch):
    """Its accuracy, computed by hand from the files that were evaluated."""
    used = record_loaders(monkeypatch)
    program.works("evaluate", "--timesteps", 1, "--json", "out.json")
    model, right = tiny(), 0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (s_resnet.data.IMAGENET_MEAN, s_resnet.data.IMAGENET_STD))
    for path in Path("photos").rglob("*.png"):
        if path.read_bytes() in used[-1]:
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            with torch.no_grad():
                right += int(model(((pixels - mean) / std)[None]).argmax()) == "abc".index(path.parent.name)
    assert len(used[-1]) == 18 and 0 < right < 18
    assert figures(tmp_path / "out.json")["ann"]["top1"] == pytest.approx(right / 18)


def test_at_chooses_the_steps(program, network, tmp_path):
    program.works("evaluate", "--timesteps", 8, "--json", "all.json")
    program.works("evaluate", "--timesteps", 8, "--at", "8,2,2", "--json", "some.json")
    every = {row["timesteps"]: row for row in figures(tmp_path / "all.json")["snn"]}
    assert figures(tmp_path / "some.json")["snn"] == [every[2], every[8]]


@pytest.mark.parametrize("size", [1, 5, 18])
def test_the_batch_size_changes_no_figure(program, network, tmp_path, size):
    """18 images: 5 leaves a smaller last batch."""
    for name, batch in (("one.json", 32), ("other.json", size)):
        program.works("evaluate", "--timesteps", 4, "--batch-size", batch, "--json", name)
    one, other = figures(tmp_path / "one.json"), figures(tmp_path / "other.json")
    assert [row.pop("spikes_per_neuron") for row in one["snn"]] == pytest.approx(
        [row.pop("spikes_per_neuron") for row in other["snn"]], rel=1e-3
    )
    assert one == other


@pytest.mark.parametrize("command", ["evaluate", "verify", "report"])
def test_too_little_memory_is_one_line_that_says_what_would_do(program, network, tmp_path, command):
    out = ("-o", "page") if command == "report" else ()
    code, _, err = program(command, "--timesteps", 4, "--memory", "1MB", *out)
    assert code == 1 and "a limit of 1MB" in err and "at least" in err and "Traceback" not in err
    code, _, err = program(command, "--timesteps", 4, "--memory", "much", *out)
    assert code == 1 and "'much'" in err and "4GB" in err


def test_without_data_it_says_so_in_one_line(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    code, out, err = program("convert", "tiny.pth", *PAPERS)
    assert code == 0 and "thresholds from BatchNorm statistics" in out
    said = unexpected(err)
    assert said.count("\n") == 1 and "No --calibration" in said and "BatchNorm" in said
    known = s_resnet.load("tiny.snn").provenance
    assert known.calibration.source == "batchnorm" and not known.data
    assert known.input_shape == (3, 32, 32)
    make_photos(tmp_path / "photos")
    assert "24 images" in program.works("evaluate", "--timesteps", 2, "--data", "photos")


def test_settings_reach_the_network(program, tmp_path):
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    settings = ("--arch", "cifar_resnet8", "--recipe", "s-resnet-released", "--timesteps", 7, "--percentile", 90)
    settings += ("--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6", "--input-size", 6)
    program.works(
        "convert", "tiny.pth", "-o", "tiny.snn", "--calibration", "photos", "--calibration-images", 10, *settings
    )
    known = s_resnet.load("tiny.snn").provenance
    digest = hashlib.sha256(Path("tiny.pth").read_bytes()).hexdigest()
    assert known.source == Source("tiny.pth", "cifar_resnet8", 3, digest)
    assert (known.recipe.name, known.recipe.timesteps) == ("s-resnet-released", 7)
    assert known.calibration.percentile == 90
    assert known.calibration.images + known.calibration.held_out == known.data.images == 10
    assert known.preprocessing == s_resnet.data.Preprocessing(6, 6, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert known.input_shape == (3, 6, 6) and known.classes == ("a", "b", "c")
    assert known.data.spec == str((tmp_path / "photos").resolve())


def test_it_says_how_many_images_went_into_what(program, tmp_path, monkeypatch):
    """Of 10 asked for, at most half are held out for the search of the compensation."""
    make_checkpoint(tmp_path / "tiny.pth")
    make_photos(tmp_path / "photos")
    given = ("convert", "tiny.pth", "--arch", "cifar_resnet8", "--input-size", SIZE, "--calibration", "photos")
    given += ("-o", "tiny.snn", "--force")
    said = program.works(*given, "--calibration-images", 10, "--timesteps", 4, "--recipe", "s-resnet")
    found = s_resnet.load("tiny.snn").provenance
    assert (found.calibration.images, found.compensation.images) == (5, 5)
    factor = found.compensation.factor
    assert f"thresholds from 5 images, compensation {factor:.4f} from 5 others" in said
    whole = s_resnet.Recipe.reconstructed
    monkeypatch.setattr(s_resnet.Recipe, "reconstructed", lambda self: whole(self, steps=1, joint=1))
    said = program.works(*given, "--calibration-images", 10, "--timesteps", 4, "--recipe", "phased", "--reconstruct")
    found = s_resnet.load("tiny.snn").provenance
    assert (found.calibration.fitted, found.reconstruction.images) == (10, 10)
    assert "thresholds and weights from 10 images\n" in said and "Reconstructed on 10 images: " in said


def test_defaults_are_the_papers(program, network):
    program("convert", "tiny.pth", "--input-size", SIZE, "--recipe", "s-resnet", "-o", "defaults.snn")
    known = s_resnet.load("defaults.snn").provenance
    assert (known.recipe.name, known.recipe.timesteps) == ("s-resnet", 350)
    assert known.calibration.percentile == 99.9
    assert known.preprocessing.mean == s_resnet.data.IMAGENET_MEAN


# ---- the demo


def test_the_demo_tells_the_whole_story(program, tmp_path, monkeypatch):
    """With an untrained small network in place of the training, which alone takes a minute."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    demo = sys.modules["sresnet_cli.demo"]
    monkeypatch.setattr(demo, "_train", lambda path: make_checkpoint(path, tiny(10)))
    for name, value in (("RECIPES", {"calibrated": 16, "s-resnet": 4}), ("IMAGES", 30), ("SIZE", SIZE)):
        monkeypatch.setattr(demo, name, value)
    out = program.works("demo", "-o", "new/place")
    networks = ["digits-calibrated-T16", "digits-s-resnet-T4"]
    made = [
        "accuracy.png",
        *(f"{name}.{kind}" for name in networks for kind in ("json", "snn")),
        "digits.pth",
        "report",
    ]
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == sorted(made)
    assert [figures(Path(f"new/place/{name}.json"))["images"] for name in networks] == [30, 30]
    with Image.open("new/place/accuracy.png") as picture:
        assert min(picture.size) > 300
    assert "Page: new/place/report/index.html" in out and Path("new/place/report/index.html").is_file()
    shown = [line.split("$ ")[1] for line in out.splitlines() if "$ sresnet" in line]
    assert (
        len(shown) == 5 and shown[0] == f"sresnet convert new/place/digits.pth --calibration digits --input-size {SIZE}"
    )
    following = [line.split("#")[0] for line in out.partition("Try next:\n")[2].splitlines() if "YOUR" not in line]
    for line in (*shown, *following):  # each works as it stands, but that what is there is not written over
        code, _, err = program(*line.split()[1:])
        assert code == 0 or ("--force" in err and " -o " not in line) or "--json" in line or "report" in line, (
            line,
            err,
        )


def test_the_demo_writes_over_nothing_and_learns_first_whether_it_can_draw(program, tmp_path, monkeypatch):
    demo = sys.modules["sresnet_cli.demo"]
    monkeypatch.setattr(demo, "_train", lambda path: pytest.fail("trained for nothing"))
    Path("demo").mkdir()
    for name in ("accuracy.png", "digits-calibrated-T16.json", "digits.pth"):
        (tmp_path / "demo" / name).write_text("mine")
        code, _, err = program("demo")
        assert code == 2 and f"demo/{name} already exists" in err and "--force" in err
        (tmp_path / "demo" / name).unlink()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    code, _, err = program("demo")
    assert code == 1 and "pip install scikit-learn matplotlib" in err
